//! Sockets: the only place that names a ZeroMQ crate.
//!
//! A transport carries frames between a *dealer* (who connects, and sends requests) and a *router*
//! (who binds, and knows its peers), and between a *publish* and a *subscribe* socket. It does not
//! know what the frames mean, does not correlate, and never answers by itself.
//!
//! The seam is made of enums and not of traits: there are few transports, all in this folder, and
//! an enum costs neither a box nor a task hop. Each sends without waiting (`try_send`, then
//! `writable`), and receives in batches: what has arrived together is handled together. A third
//! kind of transport is a folder beside [`memory`] and [`omq`] and one more arm in each `match`.

mod endpoint;
mod memory;
mod omq;
mod options;

use bytes::Bytes;

pub use endpoint::{Endpoint, EndpointError};
pub use options::{Carrier, TransportOptions};

/// Most messages that one receive hands over: enough to spread the cost of a wake-up, few enough
/// that the first need not wait for the last.
const BATCH_MAX: usize = 128;

/// What stands behind the empty delimiter of a request or a reply.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    pub header: Bytes,
    pub body: Bytes,
}

/// A message that is not `[empty][header][body]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub parts: usize,
}

pub(crate) type Received = Result<Frames, Malformed>;

/// A message that could not be sent now, with its frames back.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The queue is full: wait until the socket is writable.
    Full(Frames),
    /// There is no such peer, or none at all.
    NoPeer,
    /// The socket is closed, or the message is over its limits.
    Closed,
}

/// The socket is closed, by this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// Why a socket could not be bound or connected. Nothing is left open.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The text is no endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Other machines could reach the endpoint, and it has no keys.
    #[error(
        "{endpoint} can be reached from other machines and has no keys: \
         bind a loopback address or ipc, or say `insecure`"
    )]
    Insecure {
        /// What should have been bound.
        endpoint: Endpoint,
    },
    /// The endpoint is taken.
    #[error("{endpoint} is in use")]
    InUse {
        /// What should have been bound.
        endpoint: Endpoint,
    },
    /// The transport says no.
    #[error("{endpoint}: {reason}")]
    Refused {
        /// What should have been bound or connected.
        endpoint: Endpoint,
        /// Why, in the words of the library or the system.
        reason: String,
    },
}

/// Opens the two halves of a client's socket. Connecting goes on in the background, for ever.
pub(crate) async fn connect_dealer(
    endpoint: &Endpoint,
    options: &TransportOptions,
) -> Result<(DealerSender, DealerReceiver), TransportError> {
    match (endpoint, options.carrier) {
        (Endpoint::Inproc(name), _) => {
            let (sender, receiver) = memory::connect_dealer(name, options);
            Ok((
                DealerSender::Memory(sender),
                DealerReceiver::Memory(receiver),
            ))
        }
        (_, Carrier::Omq) => {
            let (sender, receiver) = omq::connect_dealer(endpoint, options).await?;
            Ok((DealerSender::Omq(sender), DealerReceiver::Omq(receiver)))
        }
    }
}

/// Opens the two halves of a server's socket; the endpoint returned is the one that it really has.
pub(crate) async fn bind_router(
    endpoint: &Endpoint,
    options: &TransportOptions,
) -> Result<(RouterSender, RouterReceiver, Endpoint), TransportError> {
    refuse_insecure(endpoint, options)?;
    match (endpoint, options.carrier) {
        (Endpoint::Inproc(name), _) => {
            let (sender, receiver) = memory::bind_router(name, options)?;
            Ok((
                RouterSender::Memory(sender),
                RouterReceiver::Memory(receiver),
                endpoint.clone(),
            ))
        }
        (_, Carrier::Omq) => {
            let (sender, receiver, endpoint) = omq::bind_router(endpoint, options).await?;
            Ok((
                RouterSender::Omq(sender),
                RouterReceiver::Omq(receiver),
                endpoint,
            ))
        }
    }
}

fn refuse_insecure(endpoint: &Endpoint, options: &TransportOptions) -> Result<(), TransportError> {
    if options.insecure || endpoint.is_local() {
        return Ok(());
    }
    Err(TransportError::Insecure {
        endpoint: endpoint.clone(),
    })
}

/// The sending half of a client's socket; shared by all its callers.
#[derive(Debug)]
pub(crate) enum DealerSender {
    Memory(memory::DealerSender),
    Omq(omq::DealerSender),
}

impl DealerSender {
    /// Sends, or says at once why not.
    pub fn try_send(&self, frames: Frames) -> Result<(), Refused> {
        match self {
            Self::Memory(sender) => sender.try_send(frames),
            Self::Omq(sender) => sender.try_send(frames),
        }
    }

    /// Returns when sending is worth another try.
    pub async fn writable(&self) {
        match self {
            Self::Memory(sender) => sender.writable().await,
            Self::Omq(sender) => sender.writable().await,
        }
    }

    /// Whether the server is there.
    pub fn is_connected(&self) -> bool {
        match self {
            Self::Memory(sender) => sender.is_connected(),
            Self::Omq(sender) => sender.is_connected(),
        }
    }

    /// Counts up whenever the server comes or goes.
    pub fn connection_generation(&self) -> u64 {
        match self {
            Self::Memory(sender) => sender.connection_generation(),
            Self::Omq(sender) => sender.connection_generation(),
        }
    }

    /// Waits until the generation is another than `seen`.
    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        match self {
            Self::Memory(sender) => sender.connection_changed(seen).await,
            Self::Omq(sender) => sender.connection_changed(seen).await,
        }
    }

    /// Closes the socket, in no more than the linger time.
    pub async fn close(&self) {
        match self {
            Self::Memory(sender) => sender.close(),
            Self::Omq(sender) => sender.close().await,
        }
    }
}

/// The receiving half of a client's socket.
#[derive(Debug)]
pub(crate) enum DealerReceiver {
    Memory(memory::DealerReceiver),
    Omq(omq::DealerReceiver),
}

impl DealerReceiver {
    /// Waits for a message, then appends all that are there to `batch`. Cancel safe.
    pub async fn receive(&mut self, batch: &mut Vec<Received>) -> Result<(), Closed> {
        match self {
            Self::Memory(receiver) => receiver.receive(batch).await,
            Self::Omq(receiver) => receiver.receive(batch).await,
        }
    }
}

/// Whom a router received from: where a reply goes.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    Memory(u64),
    Omq(omq::Peer),
}

/// The sending half of a server's socket.
#[derive(Clone, Debug)]
pub(crate) enum RouterSender {
    Memory(memory::RouterSender),
    Omq(omq::RouterSender),
}

impl RouterSender {
    /// Sends to one peer, or says at once why not. `Full` means that peer only.
    pub fn try_send(&self, peer: &Peer, frames: Frames) -> Result<(), Refused> {
        match (self, peer) {
            (Self::Memory(sender), Peer::Memory(peer)) => sender.try_send(*peer, frames),
            (Self::Omq(sender), Peer::Omq(peer)) => sender.try_send(peer, frames),
            _ => Err(Refused::NoPeer), // a peer of another socket
        }
    }

    /// Stops to accept connections; those that are open stay.
    pub async fn stop_accepting(&self) {
        match self {
            Self::Memory(sender) => sender.stop_accepting(),
            Self::Omq(sender) => sender.stop_accepting().await,
        }
    }

    /// Closes the socket, in no more than the linger time.
    pub async fn close(&self) {
        match self {
            Self::Memory(sender) => sender.close(),
            Self::Omq(sender) => sender.close().await,
        }
    }
}

/// The receiving half of a server's socket.
#[derive(Debug)]
pub(crate) enum RouterReceiver {
    Memory(memory::RouterReceiver),
    Omq(omq::RouterReceiver),
}

impl RouterReceiver {
    /// Waits for a message, then appends all that are there to `batch`. Cancel safe.
    pub async fn receive(&mut self, batch: &mut Vec<(Peer, Received)>) -> Result<(), Closed> {
        match self {
            Self::Memory(receiver) => receiver.receive(batch).await,
            Self::Omq(receiver) => receiver.receive(batch).await,
        }
    }
}
