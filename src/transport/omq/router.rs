//! The server's socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use omq_proto::Message;
use omq_proto::proto::SocketType;

use super::door::{self, Door, Host, Keeper, ShownOut, Who};
use super::frames::{Parts, apart};
use super::inbox::{Inbox, Place};
use super::link::{Heard, Link, NotSent};
use crate::security::Principal;
use crate::transport::{
    self, BATCH_MAX, Closed, DoorCounters, Endpoint, Outgoing, Refused, Requests, TransportError,
    TransportOptions,
};

type Guest = Place<Caller, Message>;

/// Whom a message came from, and the principal that it has proved to be.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    guest: Arc<Guest>,
    principal: Option<Principal>,
}

/// What is known and counted of a connection.
#[derive(Debug)]
struct Caller {
    link: Arc<Link>,
    who: Who,
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
    pub fn principal(&self) -> Option<&Principal> {
        self.principal.as_ref()
    }

    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.guest, &other.guest)
    }

    /// Tells connections apart, while they are open.
    pub fn key(&self) -> u64 {
        Arc::as_ptr(&self.guest) as u64
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
}

impl Host for Callers {
    type Guest = Guest;

    fn welcome(&self, _: &Door<Self>, link: &Arc<Link>, who: Who) -> Arc<Guest> {
        Arc::new(Place::new(Caller {
            link: Arc::clone(link),
            who,
            running: AtomicUsize::new(0),
        }))
    }

    async fn hear(
        &self,
        _: &Door<Self>,
        guest: &Arc<Guest>,
        heard: &mut Vec<Heard>,
    ) -> Result<(), ShownOut> {
        let mut is_too_much = false;
        let messages = heard.drain(..).filter_map(|heard| match heard {
            Heard::Message(message) => {
                is_too_much |= message.len() > self.parts_max;
                // What came before it is served.
                let bytes = message.byte_len();
                (!is_too_much).then_some((message, bytes))
            }
            // A caller has nothing to say to a socket of this kind.
            Heard::Command(_) => None,
        });
        self.inbox.put(guest, messages);
        if is_too_much {
            return Err(ShownOut);
        }
        self.inbox.has_room(guest).await;
        Ok(())
    }

    fn may_stay(&self, _: &Door<Self>, _: &Guest) -> bool {
        true
    }

    fn left(&self, _: &Arc<Guest>) {}
}

pub(in crate::transport) async fn bind_router(
    endpoint: &Endpoint,
    options: &TransportOptions,
) -> Result<(RouterSender, RouterReceiver, Endpoint), TransportError> {
    let callers = Callers {
        inbox: Inbox::new(options.receive_queue_max as usize),
        parts_max: options.parts_max,
    };
    let bytes_max = options.message_bytes_max;
    let (door, keeper, actual) =
        door::open(callers, SocketType::Router, endpoint, options, bytes_max).await?;
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
        let link = &peer.guest.of.link;
        if !self.has_room(link, outgoing.payload().len()) {
            return Err(Refused::Full(Box::new(outgoing)));
        }
        match link.try_send(Parts::from(&outgoing)) {
            Ok(()) => Ok(()),
            Err(NotSent::Full) => Err(Refused::Full(Box::new(outgoing))),
            Err(NotSent::Closed) => Err(Refused::NoPeer),
        }
    }

    fn has_room(&self, link: &Link, bytes: usize) -> bool {
        let waiting = self.door.waiting.load(Relaxed);
        // Nearly always enough, and then the peer's own need not be asked for.
        fits(waiting, 1, bytes, self.waiting_total_max)
            || fits(waiting, link.waiting_bytes(), bytes, self.waiting_total_max)
    }

    /// Closes the connection of a peer.
    pub fn show_out(&self, peer: &Peer) {
        self.door.show_out(&peer.guest.of.link);
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

/// Whether so many bytes more may wait, of all peers together; one reply alone always may. A few peers
/// that do not read must not take the room of those who do: half of it is for those of whom nothing
/// waits.
fn fits(waiting: usize, of_peer: usize, bytes: usize, total_max: usize) -> bool {
    let max = match of_peer {
        0 => total_max,
        _ => total_max / 2,
    };
    waiting == 0 || waiting + bytes <= max
}

#[derive(Debug)]
pub(crate) struct RouterReceiver {
    door: Arc<Door<Callers>>,
    last: Option<Known>,
}

/// Whom the last message came from, and how old what is known of them is.
#[derive(Debug)]
struct Known {
    peer: Peer,
    generation: u64,
}

impl RouterReceiver {
    pub async fn receive(&mut self, batch: &mut Requests) -> Result<(), Closed> {
        let Self { door, last } = self;
        std::future::poll_fn(|cx| {
            door.host.inbox.poll(cx, |guest, message| {
                match known(door, last, guest) {
                    Ok(peer) => apart(&message, batch.of(transport::Peer::Omq(peer))),
                    Err(ShownOut) => door.show_out(&guest.of.link),
                }
                batch.len() >= BATCH_MAX
            })
        })
        .await
    }
}

/// Who is not let in any more is not heard.
fn known(
    door: &Door<Callers>,
    last: &mut Option<Known>,
    guest: &Arc<Guest>,
) -> Result<Peer, ShownOut> {
    let generation = door.generation();
    if let Some(last) = last
        && Arc::ptr_eq(&last.peer.guest, guest)
        && last.generation == generation
    {
        return Ok(last.peer.clone());
    }
    let peer = Peer {
        principal: door.principal(guest.of.who.key)?,
        guest: Arc::clone(guest),
    };
    *last = Some(Known {
        peer: peer.clone(),
        generation,
    });
    Ok(peer)
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
        let fits = |waiting, of_peer, bytes| fits(waiting, of_peer, bytes, 8_000);
        // Half of it by those of whom something waits already.
        assert!(fits(3_000, 3_000, 1_000));
        assert!(!fits(3_000, 3_000, 1_001));
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
        let (sender, receiver, actual) = bind_router(&endpoint, &options).await.unwrap();
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
