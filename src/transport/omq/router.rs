//! The server's socket.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use std::task::Context;

use omq_proto::Message;
use omq_proto::proto::SocketType;

use super::door::{self, Door, Host, Keeper, ShownOut, Who};
use super::frames::{Parts, apart, envelope};
use super::inbox::{Inbox, Place};
use super::link::{Heard, Link, NotSent};
use crate::security::{Holder, Pool, Principal, Share, Shares, may_take};
use crate::transport::{
    self, BATCH_MAX, Closed, DoorCounters, Endpoint, Envelope, Outgoing, Refused, Requests,
    TransportError, TransportOptions,
};

/// How often a connection is looked at that is not read because of its share.
const ROOM_RETRY: Duration = Duration::from_millis(5);

type Guest = Place<Caller, Message>;

/// The connection that a message came from.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    guest: Arc<Guest>,
    /// Where in front of the connection's own peer it is, if it is.
    envelope: Envelope,
}

/// What is known and counted of a connection.
#[derive(Debug)]
struct Caller {
    link: Arc<Link>,
    who: Who,
    /// Of its principal, or of its address without keys: as long as it lasts, since a key that gets another name has
    /// to connect again.
    share: Arc<Share>,
    running: AtomicUsize,
}

/// One of a connection's requests in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Guest>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.of.running.fetch_sub(1, Relaxed);
    }
}

impl Peer {
    /// The connection's own peer.
    fn of(guest: &Arc<Guest>) -> Self {
        Self {
            guest: Arc::clone(guest),
            envelope: Envelope::default(),
        }
    }

    pub fn principal(&self) -> Option<&Principal> {
        self.guest.of.share.principal()
    }

    pub fn share(&self) -> &Arc<Share> {
        &self.guest.of.share
    }

    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.guest, &other.guest) && self.envelope == other.envelope
    }

    pub fn has_envelope(&self) -> bool {
        !self.envelope.is_empty()
    }

    /// Tells peers apart, while their connections are open.
    pub fn key(&self, hash: &RandomState) -> u64 {
        let connection = Arc::as_ptr(&self.guest) as u64;
        match self.has_envelope() {
            false => connection,
            true => hash.hash_one((connection, &self.envelope)),
        }
    }

    /// Returns when the connection is lost.
    pub async fn gone(&self) {
        self.guest.of.link.ended().await;
    }

    /// Whether the connection has `max` in flight already.
    pub fn is_busy(&self, max: usize) -> bool {
        self.guest.of.running.load(Relaxed) >= max
    }

    pub fn enter(&self) -> InFlight {
        self.guest.of.running.fetch_add(1, Relaxed);
        InFlight(Arc::clone(&self.guest))
    }
}

#[derive(Debug)]
struct Callers {
    inbox: Inbox<Caller, Message>,
    parts_max: usize,
    envelope_bytes_max: usize,
    shares: Shares,
    /// Bytes that are received, and not taken yet: of whole messages, and of those of which a part has come.
    received: Arc<Pool>,
}

impl Host for Callers {
    type Guest = Guest;

    fn welcome(&self, door: &Door<Self>, link: &Arc<Link>, who: Who) -> Arc<Guest> {
        // One that is not allowed any more is disconnected before it is heard.
        let principal = door.principal(who.key).ok().flatten();
        let share = self.shares.of(Holder::of(principal.as_ref(), who.address));
        link.count_for(&share, &self.received);
        Arc::new(Place::new(Caller {
            link: Arc::clone(link),
            who,
            share,
            running: AtomicUsize::new(0),
        }))
    }

    async fn hear(
        &self,
        _: &Door<Self>,
        guest: &Arc<Guest>,
        heard: &mut Vec<Heard>,
    ) -> Result<(), ShownOut> {
        let held = &guest.of.share.received_bytes;
        let mut is_too_much = false;
        let messages = heard.drain(..).filter_map(|heard| match heard {
            Heard::Message(message) => {
                is_too_much |= message.len() > self.parts_max;
                // What came before it is served.
                let bytes = message.byte_len();
                (!is_too_much).then(|| {
                    self.received.take(held, bytes);
                    (message, bytes)
                })
            }
            // A caller has nothing to say to a socket of this kind.
            Heard::Command(_) => None,
        });
        self.inbox.put(guest, messages);
        if is_too_much {
            return Err(ShownOut("it sent a message of too many parts"));
        }
        Ok(())
    }

    /// One that sends more than is taken waits for itself, and so does one that does not read its
    /// replies, or whose principal or address holds its share.
    async fn may_read(&self, guest: &Arc<Guest>) {
        guest.of.link.relieved().await;
        self.inbox.has_room(guest).await;
        while !guest.of.link.may_receive() {
            tokio::time::sleep(ROOM_RETRY).await;
        }
    }

    fn may_stay(&self, door: &Door<Self>, guest: &Guest) -> bool {
        door.principal(guest.of.who.key)
            .is_ok_and(|principal| principal.as_ref() == guest.of.share.principal())
    }

    fn left(&self, _: &Arc<Guest>) {}
}

pub(in crate::transport) async fn bind_router(
    endpoint: &Endpoint,
    addresses: &[SocketAddr],
    options: &TransportOptions,
) -> Result<(RouterSender, RouterReceiver, Endpoint), TransportError> {
    let callers = Callers {
        inbox: Inbox::new(options.receive_queue_max as usize),
        parts_max: options.parts_max,
        envelope_bytes_max: options.envelope_bytes_max,
        shares: Shares::default(),
        received: Arc::new(Pool::new(options.receive_bytes_total_max, usize::MAX)),
    };
    let bytes_max = options.message_bytes_max;
    let place = (endpoint, addresses);
    let (door, keeper, actual) =
        door::open(callers, SocketType::Router, place, options, bytes_max).await?;
    let receiver = RouterReceiver {
        door: Arc::clone(&door),
        last: None,
    };
    let sender = RouterSender {
        door,
        keeper,
        waiting_total_max: options.send_bytes_total_max,
    };
    Ok((sender, receiver, actual))
}

#[derive(Debug)]
pub(crate) struct RouterSender {
    door: Arc<Door<Callers>>,
    keeper: Keeper,
    waiting_total_max: usize,
}

impl RouterSender {
    pub fn try_send(&self, peer: &Peer, outgoing: Outgoing) -> Result<(), Refused> {
        let Caller { link, share, .. } = &peer.guest.of;
        if !self.has_room(share, outgoing.payload().len()) {
            return Err(Refused::Full(Box::new(outgoing)));
        }
        match link.try_send(Parts::from(&outgoing).behind(&peer.envelope)) {
            Ok(()) => Ok(()),
            Err(NotSent::Full) => Err(Refused::Full(Box::new(outgoing))),
            Err(NotSent::Closed) => Err(Refused::NoPeer),
        }
    }

    fn has_room(&self, share: &Share, bytes: usize) -> bool {
        let waiting = self.door.waiting.load(Relaxed);
        let held = share.reply_bytes.load(Relaxed);
        fits(waiting, held, bytes, self.waiting_total_max)
    }

    /// Closes the connection of a peer.
    pub fn show_out(&self, peer: &Peer) {
        self.door
            .show_out(&peer.guest.of.link, "it does not read what is sent to it");
    }

    pub fn counters(&self) -> DoorCounters {
        self.door.counters()
    }

    pub async fn stop_accepting(&self) {
        self.keeper.stop_accepting().await;
    }

    pub async fn close(&self) {
        self.stop_accepting().await;
        self.door.close().await;
        self.door.host.inbox.close();
    }
}

/// Whether so many bytes more may wait of one holder of a share, where `waiting` do of all; one reply alone always
/// may. Half of the room is for those of whom nothing waits; the rest share the other half.
fn fits(waiting: usize, of_holder: usize, bytes: usize, total_max: usize) -> bool {
    match of_holder {
        0 => waiting == 0 || waiting + bytes <= total_max,
        _ => may_take(total_max / 2, waiting, of_holder, bytes),
    }
}

#[derive(Debug)]
pub(crate) struct RouterReceiver {
    door: Arc<Door<Callers>>,
    /// The connection of the last message, and how old what is known of it is.
    last: Option<(Arc<Guest>, u64)>,
}

impl RouterReceiver {
    pub async fn receive(&mut self, batch: &mut Requests) -> Result<(), Closed> {
        let Self { door, last } = self;
        std::future::poll_fn(|cx| {
            let is_congested = |guest: &Guest, cx: &Context<'_>| guest.of.link.poll_congested(cx);
            door.host
                .inbox
                .poll(cx, is_congested, |guest, message, bytes| {
                    let held = &guest.of.share.received_bytes;
                    door.host.received.give_back(held, bytes);
                    match known(door, last, guest) {
                        Ok(mut peer) => {
                            let envelope = envelope(&message, door.host.envelope_bytes_max);
                            peer.envelope = envelope.clone();
                            apart(&message, &envelope, batch.of(transport::Peer::Omq(peer)));
                        }
                        Err(ShownOut(why)) => door.show_out(&guest.of.link, why),
                    }
                    batch.len() >= BATCH_MAX
                })
        })
        .await
    }
}

/// The peer of a message; an error for one whose key is not allowed any more, or has another principal now: it
/// connects again, under its new name.
fn known(
    door: &Door<Callers>,
    last: &mut Option<(Arc<Guest>, u64)>,
    guest: &Arc<Guest>,
) -> Result<Peer, ShownOut> {
    let generation = door.generation();
    if let Some((known, at)) = last
        && Arc::ptr_eq(known, guest)
        && *at == generation
    {
        return Ok(Peer::of(guest));
    }
    let principal = door.principal(guest.of.who.key)?;
    if principal.as_ref() != guest.of.share.principal() {
        return Err(ShownOut("its key has another principal now"));
    }
    *last = Some((Arc::clone(guest), generation));
    Ok(Peer::of(guest))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::transport::omq::connect_dealer;
    use crate::wire::Packed;

    #[test]
    fn replies_to_all_peers_fill_their_total_to_the_last_byte() {
        let fits = |waiting, of_holder, bytes| fits(waiting, of_holder, bytes, 8_000);
        // Half of it by those of whom something waits already, each three times what is free of it.
        assert!(fits(2_000, 2_000, 1_000));
        assert!(!fits(2_000, 2_000, 2_001));
        assert!(!fits(3_000, 3_000, 1));
        assert!(fits(3_000, 1_000, 1_000));
        assert!(!fits(3_000, 1_000, 1_001));
        assert!(!fits(4_000, 1, 1));
        // The other half is for those of whom nothing does.
        assert!(fits(4_000, 0, 4_000));
        assert!(!fits(4_000, 0, 4_001));
        assert!(!fits(8_000, 0, 1));
        // One alone always may, however large.
        assert!(fits(0, 0, 100_000));
    }

    #[tokio::test]
    async fn a_socket_that_is_dropped_with_messages_unread_leaves_nothing_behind() {
        let options = TransportOptions::default();
        let endpoint = "tcp://127.0.0.1:0".parse().unwrap();
        let (sender, receiver, actual) =
            bind_router(&endpoint, &[([127, 0, 0, 1], 0).into()], &options)
                .await
                .unwrap();
        let (dealer, replies) = connect_dealer(&actual, &options).await.unwrap();
        let bytes = Bytes::from_static(b"unread");
        let unread = Outgoing::Compact(Packed { bytes, calls: 1 });
        while dealer.try_send(unread.clone()).is_err() {
            sleep(Duration::from_millis(5)).await;
        }
        sleep(Duration::from_millis(100)).await; // it has come
        let door = Arc::downgrade(&sender.door);
        drop((sender, receiver, dealer, replies));
        let gone = async {
            while door.upgrade().is_some() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), gone).await.unwrap();
    }
}
