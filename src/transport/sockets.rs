//! The sockets of the seam: each is one of the carriers', and every call goes straight to it.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bytes::Bytes;

#[cfg(feature = "zeromq")]
use super::zeromq;
use super::{
    Closed, ConnectedSubscriber, ConnectionFailure, DoorCounters, Malformed, Outgoing,
    PublishRefused, Received, Refused, Requests, SendToRefused, SubscriptionChange, TopicFrames,
    TopicMessage, memory, omq,
};
use crate::security::{Principal, Share};

/// A socket of each carrier under one name.
macro_rules! sockets {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        #[allow(
            clippy::large_enum_variant,
            reason = "one a socket, and a box would be followed for every message"
        )]
        pub(crate) enum $name {
            Memory(memory::$name),
            Omq(omq::$name),
            #[cfg(feature = "zeromq")]
            Zeromq(zeromq::$name),
        }
    )*};
}

sockets! {
    /// The sending half of a client's socket; shared by all its callers.
    DealerSender;
    /// The receiving half of a client's socket.
    DealerReceiver;
    /// The sending half of a server's socket; shared by all its handlers.
    RouterSender;
    /// The receiving half of a server's socket.
    RouterReceiver;
    /// A publisher's socket.
    PublishSender;
    /// The subscriptions of a publisher, as they change.
    SubscriptionWatch;
    /// The controlling half of a subscriber's socket.
    SubscribeSender;
    /// The receiving half of a subscriber's socket.
    SubscribeReceiver;
}

/// The same call, whichever carrier's the socket is.
macro_rules! carried {
    ($self:ident, $socket:ident => $call:expr) => {
        match $self {
            Self::Memory($socket) => $call,
            Self::Omq($socket) => $call,
            #[cfg(feature = "zeromq")]
            Self::Zeromq($socket) => $call,
        }
    };
}

/// Whom a router received from: where a reply goes.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    Memory(u64),
    Omq(omq::Peer),
    #[cfg(feature = "zeromq")]
    Zeromq(zeromq::Peer),
}

/// One of a connection's requests in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(
    #[allow(dead_code, reason = "counts until it is dropped")] Option<omq::InFlight>,
);

impl Peer {
    /// Who it has proved to be, where it was asked for a key.
    pub fn principal(&self) -> Option<&Principal> {
        match self {
            Self::Omq(peer) => peer.principal(),
            _ => None,
        }
    }

    /// What it holds together with the other connections of its principal or address, where the carrier counts that.
    pub fn share(&self) -> Option<&Arc<Share>> {
        match self {
            Self::Omq(peer) => Some(peer.share()),
            _ => None,
        }
    }

    /// Whether it is behind other sockets, as a ROUTER and a DEALER of `zmq.proxy`, and so may be one
    /// of many on its connection.
    pub fn has_envelope(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Omq(peer) => peer.has_envelope(),
            #[cfg(feature = "zeromq")]
            Self::Zeromq(peer) => peer.has_envelope(),
        }
    }

    /// Whether it is the same peer of the same connection; a `false` may be wrong.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Memory(a), Self::Memory(b)) => a == b,
            (Self::Omq(a), Self::Omq(b)) => a.is(b),
            #[cfg(feature = "zeromq")]
            (Self::Zeromq(a), Self::Zeromq(b)) => a == b,
            _ => false,
        }
    }

    /// Tells peers apart, while their connections are open: those of one connection by their envelopes.
    pub fn key(&self, hash: &RandomState) -> u64 {
        match self {
            Self::Memory(peer) => hash.hash_one(peer),
            Self::Omq(peer) => peer.key(hash),
            #[cfg(feature = "zeromq")]
            Self::Zeromq(peer) => hash.hash_one(peer),
        }
    }

    /// Whether it has `max` requests in flight already. Carriers whose peers are of this machine do
    /// not count.
    pub fn is_busy(&self, max: usize) -> bool {
        match self {
            Self::Omq(peer) => peer.is_busy(max),
            _ => false,
        }
    }

    /// Counts one more of its requests in flight.
    pub fn enter(&self) -> InFlight {
        InFlight(match self {
            Self::Omq(peer) => Some(peer.enter()),
            _ => None,
        })
    }
}

/// For a log: its principal, or its address.
impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory(_) => f.write_str("this process"),
            Self::Omq(peer) => write!(f, "{}", peer.share().holder()),
            #[cfg(feature = "zeromq")]
            Self::Zeromq(_) => f.write_str("a peer over the `zeromq` transport"),
        }
    }
}

impl DealerSender {
    /// Sends, or says at once why not.
    pub fn try_send(&self, message: Outgoing) -> Result<(), Refused> {
        carried!(self, socket => socket.try_send(message))
    }

    /// Returns when sending is worth another try.
    pub async fn writable(&self) {
        carried!(self, socket => socket.writable().await);
    }

    /// Why there is no connection, where there is none.
    pub fn failure(&self) -> ConnectionFailure {
        carried!(self, socket => socket.failure())
    }

    /// Why the last connection ended, where one has.
    pub fn last_lost(&self) -> Option<String> {
        carried!(self, socket => socket.last_lost())
    }

    /// Whether the server is there.
    pub fn is_connected(&self) -> bool {
        carried!(self, socket => socket.is_connected())
    }

    /// Counts up whenever the server comes or goes.
    pub fn connection_generation(&self) -> u64 {
        carried!(self, socket => socket.connection_generation())
    }

    /// Waits until the generation is another than `seen`.
    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        carried!(self, socket => socket.connection_changed(seen).await)
    }

    /// Closes the socket, in no more than the linger time.
    pub async fn close(&self) {
        carried!(self, socket => socket.close().await);
    }
}

impl DealerReceiver {
    /// Waits for a message, then appends all that are there to `batch`, apart. Cancel safe.
    pub async fn receive(&mut self, batch: &mut Vec<Received>) -> Result<(), Closed> {
        carried!(self, socket => socket.receive(batch).await)
    }
}

impl RouterSender {
    /// Returns when the connection of a peer is lost.
    pub async fn gone(&self, peer: &Peer) {
        match (self, peer) {
            (Self::Memory(socket), Peer::Memory(peer)) => socket.gone(*peer).await,
            (_, Peer::Omq(peer)) => peer.gone().await,
            #[cfg(feature = "zeromq")]
            (_, Peer::Zeromq(peer)) => peer.gone().await,
            _ => std::future::pending().await,
        }
    }

    /// Sends to one peer, or says at once why not. `Full` means that peer only.
    pub fn try_send(&self, peer: &Peer, message: Outgoing) -> Result<(), Refused> {
        match (self, peer) {
            (Self::Memory(socket), Peer::Memory(peer)) => socket.try_send(*peer, message),
            (Self::Omq(socket), Peer::Omq(peer)) => socket.try_send(peer, message),
            #[cfg(feature = "zeromq")]
            (Self::Zeromq(socket), Peer::Zeromq(peer)) => socket.try_send(peer, message),
            _ => Err(Refused::NoPeer), // a peer of another socket
        }
    }

    /// Closes the connection of a peer that passed a limit, in the background.
    pub fn show_out(&self, peer: &Peer) {
        if let (Self::Omq(socket), Peer::Omq(peer)) = (self, peer) {
            socket.show_out(peer);
        }
    }

    /// What was counted at the door, where the carrier has one.
    pub fn door(&self) -> DoorCounters {
        match self {
            Self::Omq(socket) => socket.counters(),
            _ => DoorCounters::default(),
        }
    }

    /// Stops to accept connections; those that are open stay.
    pub async fn stop_accepting(&self) {
        carried!(self, socket => socket.stop_accepting().await);
    }

    /// Closes the socket, in no more than the linger time.
    pub async fn close(&self) {
        carried!(self, socket => socket.close().await);
    }
}

impl RouterReceiver {
    /// Waits for a message, then appends those that are there to `batch`, apart, until it has some
    /// hundred. Cancel safe.
    pub async fn receive(&mut self, batch: &mut Requests) -> Result<(), Closed> {
        carried!(self, socket => socket.receive(batch).await)
    }
}

impl PublishSender {
    /// Hands the message to every subscriber that has room for it. Sends it to nobody where the
    /// socket itself has no room.
    pub fn try_send(&self, message: TopicMessage) -> Result<(), PublishRefused> {
        carried!(self, socket => socket.try_send(message))
    }

    /// Sends the message to one subscriber, by the number that its changes in the [`SubscriptionWatch`] have; to all
    /// whom it matches where the carrier does not know them.
    pub fn try_send_to(&self, peer: u64, message: TopicMessage) -> Result<(), SendToRefused> {
        match self {
            Self::Memory(socket) => socket.try_send_to(peer, message),
            Self::Omq(socket) => socket.try_send_to(peer, message),
            #[cfg(feature = "zeromq")]
            Self::Zeromq(socket) => socket.try_send(message).map_err(|refused| match refused {
                PublishRefused::Full => SendToRefused::Full,
                PublishRefused::Closed => SendToRefused::Gone,
            }),
        }
    }

    /// Returns when sending is worth another try.
    pub async fn writable(&self) {
        carried!(self, socket => socket.writable().await);
    }

    /// What was counted at the door, where the carrier has one.
    pub fn door(&self) -> DoorCounters {
        match self {
            Self::Omq(socket) => socket.counters(),
            _ => DoorCounters::default(),
        }
    }

    /// Whether the changes of its [`SubscriptionWatch`] say whose they are, and not only which prefixes there are.
    pub fn knows_peers(&self) -> bool {
        match self {
            Self::Memory(_) | Self::Omq(_) => true,
            #[cfg(feature = "zeromq")]
            Self::Zeromq(_) => false,
        }
    }

    /// Events dropped for single subscribers that had no room, where the carrier counts them.
    pub fn dropped(&self) -> Option<u64> {
        match self {
            Self::Memory(socket) => Some(socket.dropped()),
            Self::Omq(socket) => Some(socket.dropped()),
            #[cfg(feature = "zeromq")]
            Self::Zeromq(_) => None,
        }
    }

    /// Those who are connected; nobody where the carrier does not say who is.
    pub fn subscribers(&self) -> Vec<ConnectedSubscriber> {
        match self {
            Self::Memory(socket) => socket.subscribers(),
            Self::Omq(socket) => socket.subscribers(),
            #[cfg(feature = "zeromq")]
            Self::Zeromq(_) => Vec::new(),
        }
    }

    /// Closes the socket, in no more than the linger time.
    pub async fn close(&self) {
        carried!(self, socket => socket.close().await);
    }
}

impl SubscriptionWatch {
    /// Waits for the next change. Cancel safe.
    pub async fn next(&mut self) -> Result<SubscriptionChange, Closed> {
        carried!(self, socket => socket.next().await)
    }
}

impl SubscribeSender {
    /// Asks for all topics that begin with `prefix`, now and on every later connection. What is asked first reaches
    /// the publisher first.
    pub fn subscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        carried!(self, socket => socket.subscribe(prefix))
    }

    /// Takes it back.
    pub fn unsubscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        carried!(self, socket => socket.unsubscribe(prefix))
    }

    /// Returns when few of these changes wait to be sent.
    pub async fn flushed(&self) {
        if let Self::Omq(socket) = self {
            socket.flushed().await;
        }
    }

    /// Says that the receiver reads nothing for now, so that the publisher is told that this side lives.
    pub fn hold(&self, holds: bool) {
        if let Self::Omq(socket) = self {
            socket.hold(holds);
        }
    }

    /// Why there is no connection, where there is none.
    pub fn failure(&self) -> ConnectionFailure {
        carried!(self, socket => socket.failure())
    }

    /// Whether the publisher is there.
    pub fn is_connected(&self) -> bool {
        carried!(self, socket => socket.is_connected())
    }

    /// Counts up whenever the publisher comes or goes.
    pub fn connection_generation(&self) -> u64 {
        carried!(self, socket => socket.connection_generation())
    }

    /// Waits until the generation is another than `seen`.
    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        carried!(self, socket => socket.connection_changed(seen).await)
    }

    /// Closes the socket.
    pub async fn close(&self) {
        carried!(self, socket => socket.close().await);
    }
}

impl SubscribeReceiver {
    /// The number of the connection over which the last batch came, greater than that of any before.
    pub fn connection(&self) -> u64 {
        carried!(self, socket => socket.connection())
    }

    /// Waits for a message, then appends all that are there to `batch`. Cancel safe.
    pub async fn receive(
        &mut self,
        batch: &mut Vec<Result<TopicFrames, Malformed>>,
    ) -> Result<(), Closed> {
        carried!(self, socket => socket.receive(batch).await)
    }
}
