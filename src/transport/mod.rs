//! Sockets: the only place that names a ZeroMQ crate.
//!
//! A transport carries frames between a *dealer* (who connects, and sends requests) and a *router*
//! (who binds, and knows its peers), and between a *publish* and a *subscribe* socket. It does not
//! know what the frames mean, does not correlate, and never answers by itself.
//!
//! The seam is made of enums and not of traits: there are few transports, all in this folder, and
//! an enum costs neither a box nor a task hop. Each sends without waiting (`try_send`, then
//! `writable`), and receives in batches: what has arrived together is handled together. A third
//! kind of transport is a folder beside [`memory`] and [`omq`], an arm in each `match` below and in
//! the macros of [`sockets`].

mod changes;
mod connection;
mod endpoint;
mod envelope;
mod failure;
mod index;
mod ipc;
mod memory;
mod omq;
mod options;
mod requests;
mod sockets;
mod tcp;
mod wanted;
#[cfg(feature = "zeromq")]
mod zeromq;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;

use crate::message;
use crate::security::{Principal, PublicKey, Wanted};
use crate::wire::{self, COMPACT_BYTES_MAX, EventHeader, EventKind, HeaderBytes, Packed};

use envelope::Envelope;

pub use endpoint::{Endpoint, EndpointError};
pub use failure::ConnectionFailure;
pub(crate) use index::Index;
pub use options::{Carrier, TransportOptions};
pub(crate) use requests::Requests;
pub(crate) use sockets::{
    DealerReceiver, DealerSender, InFlight, Peer, PublishSender, RouterReceiver, RouterSender,
    SubscribeReceiver, SubscribeSender, SubscriptionWatch,
};

/// Most messages that one receive hands over: enough to spread the cost of a wake-up, few enough
/// that the first need not wait for the last.
const BATCH_MAX: usize = 128;

/// Longest subscription that a subscriber sends, and that a publisher reads, whatever their options say.
pub(crate) const SUBSCRIPTION_BYTES_CEILING: usize = 64 << 10;

/// A request or a reply.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    pub header: HeaderBytes,
    pub body: Bytes,
}

/// How requests and replies lie in their messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `[empty][header][body]`, one in a message.
    Classic,
    /// `[header body header body ...]`, in one part.
    Compact,
}

/// A message of a call or of several, to be sent.
#[derive(Clone, Debug)]
pub(crate) enum Outgoing {
    Classic(Frames),
    Compact(Packed),
}

/// A message, or what is left of one, that is in neither form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub parts: usize,
}

pub(crate) type Received = Result<(Form, Frames), Malformed>;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = self.parts;
        match parts {
            1 => f.write_str("expected pairs of a header and a body, got something else"),
            _ => write!(
                f,
                "expected [envelope ...][empty][header][body], got a message of {parts} parts"
            ),
        }
    }
}

impl Outgoing {
    /// Requests or replies in it.
    pub fn calls(&self) -> usize {
        match self {
            Self::Classic(_) => 1,
            Self::Compact(packed) => packed.calls,
        }
    }

    /// Where nearly all of its bytes are.
    pub fn payload(&self) -> &Bytes {
        match self {
            Self::Classic(frames) => &frames.body,
            Self::Compact(packed) => &packed.bytes,
        }
    }
}

/// Whether a socket takes the compact form: not where it takes only smaller messages, nor in process,
/// where messages cost nothing.
pub(crate) fn takes_compact(endpoint: &Endpoint, options: &TransportOptions) -> bool {
    !matches!(endpoint, Endpoint::Inproc(_)) && options.message_bytes_max >= COMPACT_BYTES_MAX
}

/// Takes apart a message of one part; what is no call in it comes last, if there is any.
fn unpack(message: &Bytes) -> impl Iterator<Item = Received> {
    wire::unpack(message).map(|call| match call {
        Ok((header, body)) => {
            let frames = Frames {
                header: header.into(),
                body: message::part(message, body),
            };
            Ok((Form::Compact, frames))
        }
        Err(wire::NotCompact) => Err(Malformed { parts: 1 }),
    })
}

/// A message of a topic, to be sent.
#[derive(Clone, Debug)]
pub(crate) enum TopicMessage {
    Classic(TopicFrames),
    /// Events of one topic, in one part.
    Compact(Bytes),
}

impl TopicMessage {
    /// What begins with its topic, and is compared with subscriptions.
    fn first_part(&self) -> &Bytes {
        match self {
            Self::Classic(frames) => &frames.topic,
            Self::Compact(events) => events,
        }
    }

    /// How many events are in it: none where it only helps.
    fn events(&self) -> u64 {
        match self {
            Self::Classic(frames) => u64::from(frames.is_event()),
            Self::Compact(message) => match wire::unpack_events(message) {
                Ok((_, events)) => events.flatten().count() as u64,
                Err(wire::NotCompact) => 0,
            },
        }
    }
}

/// Takes a topic's message of one part apart; what is no event in it comes last, if there is any.
/// `last_topic` is that of the message before, which is often this one's too.
fn unpack_events(
    message: &Bytes,
    last_topic: &mut Bytes,
) -> impl Iterator<Item = Result<TopicFrames, Malformed>> {
    let (topic, events, error) = match wire::unpack_events(message) {
        Ok((topic, events)) => (remembered(last_topic, topic), Some(events), None),
        Err(wire::NotCompact) => (Bytes::new(), None, Some(Err(Malformed { parts: 1 }))),
    };
    let events = events.into_iter().flatten();
    let events = events.map(move |event| match event {
        Ok((header, body)) => Ok(TopicFrames {
            topic: topic.clone(),
            header: header.into(),
            body: message::part(message, body),
        }),
        Err(wire::NotCompact) => Err(Malformed { parts: 1 }),
    });
    events.chain(error)
}

/// A topic in memory of its own, which events of the same topic share.
fn remembered(last: &mut Bytes, topic: &[u8]) -> Bytes {
    if last != topic {
        *last = message::copied(topic);
    }
    last.clone()
}

/// An event, or what goes beside events: `[topic][header][body]`.
#[derive(Clone, Debug)]
pub(crate) struct TopicFrames {
    pub topic: Bytes,
    pub header: HeaderBytes,
    pub body: Bytes,
}

impl TopicFrames {
    fn is_event(&self) -> bool {
        let header = EventHeader::decode(&self.header);
        header.is_ok_and(|header| header.kind == EventKind::Event)
    }
}

/// What changed about a publisher's subscriptions. A peer is a number of the transport's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SubscriptionChange {
    /// All that is known, instead of what was known before.
    Reset(Vec<(u64, Vec<Bytes>)>),
    Added {
        peer: u64,
        prefix: Bytes,
    },
    Removed {
        peer: u64,
        prefix: Bytes,
    },
    Gone {
        peer: u64,
    },
}

/// A message that could not be sent now.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The queue is full: wait until the socket is writable. With the message back.
    Full(Box<Outgoing>),
    /// There is no such peer, or none at all.
    NoPeer,
    /// The socket is closed, or the message is over its limits.
    Closed,
}

/// Why a message could not be published now.
#[derive(Debug)]
pub(crate) enum PublishRefused {
    /// Wait until the socket is writable.
    #[cfg_attr(
        not(feature = "zeromq"),
        allow(dead_code, reason = "the others pass over single peers that are full")
    )]
    Full,
    /// The socket is closed.
    Closed,
}

/// Why a message could not be sent to one subscriber now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendToRefused {
    /// As much as may waits for it already.
    Full,
    /// It has gone, or the socket is closed.
    Gone,
}

/// What a peer's subscription to a prefix is for; `None` where it may not have it.
pub(crate) type Admit = Arc<dyn Fn(Option<&Principal>, &[u8]) -> Option<Wanted> + Send + Sync>;

/// Whether an event with this topic is taken from the publisher with this key.
pub(crate) type Take = Arc<dyn Fn(&PublicKey, &[u8]) -> bool + Send + Sync>;

/// What a bound socket has counted of those who came to its door.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DoorCounters {
    /// Connections that are open now.
    pub connections: usize,
    /// Connections refused: no key on the list, or as many as there may be.
    pub connections_refused: u64,
    /// Handshakes that came to nothing, for whatever reason.
    pub handshakes_failed: u64,
    /// Connections closed from this side: a key that was revoked, a limit that was passed.
    pub disconnected: u64,
    /// Connections that ended in an error: a message or a frame that is too large or is none, a heartbeat that was not
    /// answered, a network that broke.
    pub broken: u64,
    /// Subscriptions refused.
    pub subscriptions_refused: u64,
}

/// A subscriber that is connected to a publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectedSubscriber {
    /// Who it has proved to be; `None` without keys.
    pub principal: Option<Principal>,
    /// Where it connects from, over `tcp`.
    pub address: Option<IpAddr>,
    /// Events dropped for it since it has connected, because as much as may was waiting for it already.
    pub dropped: u64,
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
        "{endpoint} can be reached from other machines and has no keys: give it some \
         (`TransportOptions::with_server_security`, `Keys::generate`), bind a loopback address \
         or ipc, or say `insecure`"
    )]
    Insecure {
        /// What should have been bound.
        endpoint: Endpoint,
    },
    /// The `zeromq` transport has no CURVE, so it cannot have keys.
    #[error("{endpoint}: the `zeromq` transport has no CURVE; take `omq`, or no keys")]
    NoKeys {
        /// What should have been bound or connected.
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
    refuse_keys(endpoint, options.client_security.is_some(), options)?;
    refuse_port_0(endpoint)?;
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
        #[cfg(feature = "zeromq")]
        (_, Carrier::Zeromq) => {
            let (sender, receiver) = zeromq::connect_dealer(endpoint, options).await?;
            Ok((
                DealerSender::Zeromq(sender),
                DealerReceiver::Zeromq(receiver),
            ))
        }
    }
}

/// Opens the two halves of a server's socket; the endpoint returned is the one that it really has.
pub(crate) async fn bind_router(
    endpoint: &Endpoint,
    options: &TransportOptions,
) -> Result<(RouterSender, RouterReceiver, Endpoint), TransportError> {
    let addresses = to_bind(endpoint, options).await?;
    ipc::take_over(endpoint).await?;
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
            let (sender, receiver, endpoint) =
                omq::bind_router(endpoint, &addresses, options).await?;
            Ok((
                RouterSender::Omq(sender),
                RouterReceiver::Omq(receiver),
                endpoint,
            ))
        }
        #[cfg(feature = "zeromq")]
        (_, Carrier::Zeromq) => {
            let (sender, receiver, endpoint) =
                zeromq::bind_router(endpoint, &addresses, options).await?;
            Ok((
                RouterSender::Zeromq(sender),
                RouterReceiver::Zeromq(receiver),
                endpoint,
            ))
        }
    }
}

/// Whether the options have keys that the carrier of the endpoint cannot use.
#[cfg_attr(
    not(feature = "zeromq"),
    allow(unused_variables, reason = "every carrier can")
)]
fn refuse_keys(
    endpoint: &Endpoint,
    has_keys: bool,
    options: &TransportOptions,
) -> Result<(), TransportError> {
    #[cfg(feature = "zeromq")]
    if has_keys && options.carrier == Carrier::Zeromq && !matches!(endpoint, Endpoint::Inproc(_)) {
        return Err(TransportError::NoKeys {
            endpoint: endpoint.clone(),
        });
    }
    Ok(())
}

/// Returns the addresses to bind, where the options allow to bind them.
async fn to_bind(
    endpoint: &Endpoint,
    options: &TransportOptions,
) -> Result<Vec<SocketAddr>, TransportError> {
    refuse_keys(endpoint, options.server_security.is_some(), options)?;
    let addresses = tcp::to_bind(endpoint).await?;
    // What is not `tcp` has no address that another machine could reach.
    let is_local = addresses.iter().all(|address| address.ip().is_loopback());
    if options.insecure || is_local || options.server_security.is_some() {
        return Ok(addresses);
    }
    Err(TransportError::Insecure {
        endpoint: endpoint.clone(),
    })
}

fn refuse_port_0(endpoint: &Endpoint) -> Result<(), TransportError> {
    match endpoint {
        Endpoint::Tcp { port: 0, .. } => Err(TransportError::Refused {
            endpoint: endpoint.clone(),
            reason: "nothing can be connected to port 0, which is for binding to a free port"
                .to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Opens the sending half of a publisher's socket, and the watch over its subscriptions.
pub(crate) async fn bind_publish(
    endpoint: &Endpoint,
    options: &TransportOptions,
    admit: Admit,
) -> Result<(PublishSender, SubscriptionWatch, Endpoint), TransportError> {
    let addresses = to_bind(endpoint, options).await?;
    ipc::take_over(endpoint).await?;
    match (endpoint, options.carrier) {
        (Endpoint::Inproc(name), _) => {
            let (sender, watch) = memory::bind_publish(name, options)?;
            Ok((
                PublishSender::Memory(sender),
                SubscriptionWatch::Memory(watch),
                endpoint.clone(),
            ))
        }
        (_, Carrier::Omq) => {
            let (sender, watch, endpoint) =
                omq::bind_publish(endpoint, &addresses, options, admit).await?;
            Ok((
                PublishSender::Omq(sender),
                SubscriptionWatch::Omq(watch),
                endpoint,
            ))
        }
        #[cfg(feature = "zeromq")]
        (_, Carrier::Zeromq) => {
            let (sender, watch, endpoint) =
                zeromq::bind_publish(endpoint, &addresses, options).await?;
            Ok((
                PublishSender::Zeromq(sender),
                SubscriptionWatch::Zeromq(watch),
                endpoint,
            ))
        }
    }
}

/// Opens the two halves of a subscriber's socket. Connecting goes on in the background, for ever;
/// a connection that is made again has all subscriptions again.
pub(crate) async fn connect_subscribe(
    endpoint: &Endpoint,
    options: &TransportOptions,
    take: Option<Take>,
) -> Result<(SubscribeSender, SubscribeReceiver), TransportError> {
    refuse_keys(endpoint, options.client_security.is_some(), options)?;
    refuse_port_0(endpoint)?;
    match (endpoint, options.carrier) {
        (Endpoint::Inproc(name), _) => {
            let (sender, receiver) = memory::connect_subscribe(name, options);
            Ok((
                SubscribeSender::Memory(sender),
                SubscribeReceiver::Memory(receiver),
            ))
        }
        (_, Carrier::Omq) => {
            let (sender, receiver) = omq::connect_subscribe(endpoint, options, take).await?;
            Ok((
                SubscribeSender::Omq(sender),
                SubscribeReceiver::Omq(receiver),
            ))
        }
        #[cfg(feature = "zeromq")]
        (_, Carrier::Zeromq) => {
            let (sender, receiver) = zeromq::connect_subscribe(endpoint, options).await?;
            Ok((
                SubscribeSender::Zeromq(sender),
                SubscribeReceiver::Zeromq(receiver),
            ))
        }
    }
}
