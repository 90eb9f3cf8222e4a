//! The server's socket.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use omq_tokio::{Error, Identity, Message, MessagePool, Socket, SocketType, TrySendError};
use tokio::sync::watch;

use super::door::{Door, Keeper, key_of};
use super::{TABLES_KEPT, actual, apart, given_back, options, receive, to_error, to_message};
use crate::security::{Principal, PublicKey};
use crate::transport::{
    self, BATCH_MAX, Closed, DoorCounters, Endpoint, Outgoing, Refused, Requests, TransportError,
    TransportOptions,
};

/// Payloads of at least so many bytes are weighed while they wait to be sent. Smaller ones are
/// counted, by the length of the peer's queue, so that most replies cost nothing more.
const WEIGHED_MIN: usize = 512;
/// Replies that may wait for one peer, however small.
const REPLIES_MAX: u32 = 1024;
/// Peers that are remembered before those that went are forgotten.
const GUESTS_MAX: usize = 2048;

/// Whom a message came from: the routing identity, as omq knows it, which any peer may claim, and
/// the principal, which it has proved.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    identity: Identity,
    guest: Arc<Guest>,
    principal: Option<Principal>,
}

/// What is known and counted of a connection.
#[derive(Debug)]
struct Guest {
    key: Option<PublicKey>,
    /// Closed when the connection is lost.
    connected: watch::Receiver<()>,
    running: AtomicUsize,
    queued: AtomicUsize,
}

/// One of a connection's requests in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Guest>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

impl Peer {
    pub fn principal(&self) -> Option<&Principal> {
        self.principal.as_ref()
    }

    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.guest, &other.guest)
    }

    /// Returns when the connection is lost.
    pub async fn gone(&self) {
        let mut connected = self.guest.connected.clone();
        // Nothing is ever said over it.
        while connected.changed().await.is_ok() {}
    }

    /// Whether the connection has `max` in flight already.
    pub fn is_busy(&self, max: usize) -> bool {
        self.guest.running.load(Relaxed) >= max
    }

    pub fn enter(&self) -> InFlight {
        self.guest.running.fetch_add(1, Relaxed);
        InFlight(Arc::clone(&self.guest))
    }
}

pub(in crate::transport) async fn bind_router(
    endpoint: &Endpoint,
    from: &TransportOptions,
) -> Result<(RouterSender, RouterReceiver, Endpoint), TransportError> {
    let failed = |error| to_error(endpoint, error);
    let (door, left) = Door::new(from, None);
    // Half of what may wait for a peer is on its way through the socket, half is in its queue.
    let options = door.guard(
        options(from)
            .router_mandatory(true)
            .send_hwm(from.send_queue_max.min(REPLIES_MAX))
            .transmit_slot_cap(from.send_bytes_max / 2),
    );
    let socket = Socket::try_new(SocketType::Router, options).map_err(failed)?;
    let keeper = door.keep(&socket, socket.monitor(), left);
    let bound = socket.bind(endpoint.to_string()).await.map_err(failed)?;
    let actual = actual(endpoint, &bound)?;
    let receiver = RouterReceiver {
        socket: socket.clone_shared(),
        messages: Vec::with_capacity(BATCH_MAX),
        door: Arc::clone(&door),
        parts_max: from.parts_max,
        guests: HashMap::new(),
        last: None,
    };
    let sender = RouterSender {
        socket: Arc::new(socket),
        bound,
        pool: MessagePool::new(TABLES_KEPT, 4),
        door,
        _keeper: keeper,
        queued_max: from.send_bytes_max / 2,
        queued_total_max: from.send_bytes_total_max,
    };
    Ok((sender, receiver, actual))
}

#[derive(Debug)]
pub(crate) struct RouterSender {
    socket: Arc<Socket>,
    bound: omq_tokio::Endpoint,
    pool: MessagePool,
    door: Arc<Door>,
    _keeper: Keeper,
    queued_max: usize,
    queued_total_max: usize,
}

impl RouterSender {
    pub fn try_send(&self, peer: &Peer, outgoing: Outgoing) -> Result<(), Refused> {
        if outgoing.payload().len() < WEIGHED_MIN {
            return self.hand_over(peer, outgoing);
        }
        let payload = outgoing.payload().clone();
        let Some(weighed) = self.weigh(&peer.guest, &payload) else {
            return Err(Refused::Full(Box::new(outgoing)));
        };
        self.hand_over(peer, outgoing.with_payload(weighed))
            .map_err(|refused| match refused {
                // The payload as it came, so that it is not weighed twice.
                Refused::Full(back) => Refused::Full(Box::new(back.with_payload(payload))),
                other => other,
            })
    }

    fn hand_over(&self, peer: &Peer, outgoing: Outgoing) -> Result<(), Refused> {
        let calls = outgoing.calls();
        let message = to_message(&self.pool, outgoing);
        match self.socket.try_send_to(&peer.identity, message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => match given_back(&message, calls) {
                Some(back) => Err(Refused::Full(Box::new(back))),
                None => Err(Refused::Closed), // it gives back what it was given
            },
            Err(TrySendError::Error(Error::Unroutable)) => Err(Refused::NoPeer),
            Err(_) => Err(Refused::Closed),
        }
    }

    /// The payload to send, which is counted until it has left. `None` where no more may wait; one
    /// alone always may.
    fn weigh(&self, guest: &Arc<Guest>, payload: &Bytes) -> Option<Bytes> {
        let bytes = payload.len();
        let fits = |queued: usize, max: usize| queued == 0 || queued + bytes <= max;
        let queued = guest.queued.load(Relaxed);
        // A few peers that do not read must not take the room of those who do.
        let total_max = match queued {
            0 => self.queued_total_max,
            _ => self.queued_total_max / 2,
        };
        if !fits(queued, self.queued_max) || !fits(self.door.queued.load(Relaxed), total_max) {
            return None;
        }
        guest.queued.fetch_add(bytes, Relaxed);
        self.door.queued.fetch_add(bytes, Relaxed);
        Some(Bytes::from_owner(Weighed {
            payload: payload.clone(),
            guest: Arc::clone(guest),
            door: Arc::clone(&self.door),
        }))
    }

    /// Closes the connection of a peer, in the background.
    pub fn show_out(&self, peer: &Peer) {
        self.door.show_out(peer.identity.peer_info().connection_id);
    }

    pub fn counters(&self) -> DoorCounters {
        self.door.counters()
    }

    pub async fn stop_accepting(&self) {
        // The only error is that the socket is closed already.
        let _ = self.socket.unbind(self.bound.clone()).await;
    }

    pub async fn close(&self) {
        let _ = self.socket.clone_shared().close().await;
    }
}

/// What waits to be sent.
struct Weighed {
    payload: Bytes,
    guest: Arc<Guest>,
    door: Arc<Door>,
}

impl AsRef<[u8]> for Weighed {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl Drop for Weighed {
    fn drop(&mut self) {
        self.guest.queued.fetch_sub(self.payload.len(), Relaxed);
        self.door.queued.fetch_sub(self.payload.len(), Relaxed);
    }
}

#[derive(Debug)]
pub(crate) struct RouterReceiver {
    socket: Socket,
    /// That have come, the first last.
    messages: Vec<Message>,
    door: Arc<Door>,
    parts_max: usize,
    /// By the numbers of their connections.
    guests: HashMap<u64, Arc<Guest>>,
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
        if self.messages.is_empty() {
            receive(&self.socket, &mut self.messages).await?;
            self.messages.reverse();
        }
        // A message may have many calls: what is too much for a batch is the next.
        while batch.len() < BATCH_MAX
            && let Some(mut message) = self.messages.pop()
        {
            // omq puts it in front of every message.
            if let Some(identity) = message.pop_identity() {
                self.accept(identity, &message, batch);
            }
        }
        Ok(())
    }

    /// Who is not let in any more, or sends what no peer would, is shown out and not heard.
    fn accept(&mut self, identity: Identity, message: &Message, batch: &mut Requests) {
        let connection = identity.peer_info().connection_id;
        match self.peer(identity) {
            Ok(peer) if message.len() <= self.parts_max => {
                apart(message, batch.of(transport::Peer::Omq(peer)));
            }
            _ => self.door.show_out(connection),
        }
    }

    fn peer(&mut self, identity: Identity) -> Result<Peer, ()> {
        let generation = self.door.generation();
        if let Some(last) = &self.last
            && last.peer.identity == identity
            && last.generation == generation
        {
            return Ok(last.peer.clone());
        }
        if self.guests.len() >= GUESTS_MAX {
            // What still runs or waits holds on to its own.
            self.guests.retain(|_, guest| Arc::strong_count(guest) > 1);
        }
        let info = identity.peer_info();
        let guest = self.guests.entry(info.connection_id).or_insert_with(|| {
            Arc::new(Guest {
                key: key_of(&info.authentication),
                connected: self.door.arrived(info.connection_id),
                running: AtomicUsize::new(0),
                queued: AtomicUsize::new(0),
            })
        });
        let peer = Peer {
            principal: self.door.principal(guest.key)?,
            guest: Arc::clone(guest),
            identity,
        };
        self.last = Some(Known {
            peer: peer.clone(),
            generation,
        });
        Ok(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    async fn sender(options: &TransportOptions) -> RouterSender {
        let endpoint = "tcp://127.0.0.1:0".parse().unwrap();
        bind_router(&endpoint, options).await.unwrap().0
    }

    fn guest() -> Arc<Guest> {
        Arc::new(Guest {
            key: None,
            connected: watch::channel(()).1,
            running: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
        })
    }

    fn body(bytes: usize) -> Bytes {
        Bytes::from(vec![7; bytes])
    }

    #[tokio::test]
    async fn replies_fill_a_peers_queue_to_the_last_byte_and_go_on_when_one_has_left() {
        let sender = sender(&TransportOptions::default()).await;
        let (peer, other) = (guest(), guest());
        // The other half is on its way through the socket.
        let first = sender.weigh(&peer, &body(2 << 20)).unwrap();
        assert!(sender.weigh(&peer, &body(1)).is_none());
        assert!(sender.weigh(&other, &body(1)).is_some());
        drop(first);
        let first = sender.weigh(&peer, &body(1 << 20)).unwrap();
        let second = sender.weigh(&peer, &body(1 << 20)).unwrap();
        assert!(sender.weigh(&peer, &body(1)).is_none());
        drop((first, second));
        // One alone always may, however large.
        let large = sender.weigh(&peer, &body(3 << 20)).unwrap();
        assert!(sender.weigh(&peer, &body(1)).is_none());
        drop(large);
        assert_eq!(sender.door.queued.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn replies_to_all_peers_fill_their_total_to_the_last_byte() {
        let options = TransportOptions::default().with_send_bytes_total_max(8 * KIB);
        let sender = sender(&options).await;
        let guests = [guest(), guest(), guest()];
        let weigh = |of: usize, bytes| sender.weigh(&guests[of], &body(bytes));
        // Half of it by those who have something waiting.
        let first = weigh(0, 2 * KIB).unwrap();
        let second = weigh(0, 2 * KIB).unwrap();
        assert!(weigh(0, 1).is_none());
        // The other half is for those who have not.
        let third = weigh(1, 4 * KIB).unwrap();
        assert!(weigh(1, 1).is_none());
        assert!(weigh(2, 1).is_none());
        drop(first);
        let fourth = weigh(2, 2 * KIB).unwrap();
        assert!(weigh(0, 1).is_none());
        drop((second, third, fourth));
        assert_eq!(sender.door.queued.load(Relaxed), 0);
    }
}
