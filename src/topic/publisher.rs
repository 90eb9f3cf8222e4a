//! The publisher: numbers events, hands them to the socket, confirms subscriptions, announces tails.

mod builder;
mod driver;
mod shared;

pub use builder::PublisherBuilder;

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use capnp::traits::Owned;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Topic;
use super::names::TopicName;
use crate::message::{self, MessageError, Msg};
use crate::security::Principal;
use crate::transport::{ConnectedSubscriber, DoorCounters, Endpoint, TransportError};
use shared::{Body, Shared};

/// Publishes events of one topic.
///
/// ```
/// # async fn f<Progress: bowline::topic::Topic>(event: Progress) -> Result<(), Box<dyn std::error::Error>> {
/// let publisher = bowline::Publisher::<Progress>::bind("tcp://127.0.0.1:5556").await?;
/// let published = publisher.publish(&event).await?;
/// println!("number {} went to {} subscribers", published.sequence, published.matched);
/// # Ok(()) }
/// ```
///
/// A subscriber that is slow or gone costs a bounded queue and delays nobody; what it misses it
/// sees in the numbers of what it gets. Cheap to clone; dropping the last clone closes the socket.
#[derive(Debug)]
pub struct Publisher<T> {
    inner: Arc<Inner>,
    type_: PhantomData<fn() -> T>,
}

impl<T> Clone for Publisher<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            type_: PhantomData,
        }
    }
}

/// What became of an event. It says nothing about its arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// Its number in its topic.
    pub sequence: u64,
    /// How many subscribers it matched.
    pub matched: usize,
}

/// What a publisher has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherCounters {
    /// Subscribers that are connected and have a subscription.
    pub subscribers: usize,
    /// Events dropped for single subscribers that had no room, also for those that have gone; see
    /// [`Publisher::subscribers`]. `None` where the transport does not count them; the subscribers do.
    pub dropped: Option<u64>,
}

/// What a publisher has counted of one principal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrincipalSubscriptions {
    /// Whose they are; `None` for all together that came after the first
    /// [`principals_max`](PublisherBuilder::principals_max).
    pub principal: Option<Principal>,
    /// Subscriptions that a rule allows.
    pub allowed: u64,
    /// Subscriptions refused because no rule allows them.
    pub denied: u64,
}

#[derive(Debug, Default)]
struct OfPrincipal {
    allowed: AtomicU64,
    denied: AtomicU64,
}

/// Why an event was not published: nothing of it was sent, and its number goes to the next.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The plain struct has no encoding.
    #[error("the event has no encoding: {0}")]
    Message(#[from] MessageError),
    /// The event would begin a topic beyond [`PublisherBuilder::topics_max`] or [`PublisherBuilder::topic_bytes_max`].
    #[error("the publisher has as many topics as it may")]
    TooManyTopics,
    /// The event is larger than [`PublisherBuilder::event_bytes_max`], or its message than
    /// [`message_bytes_max`](crate::TransportOptions::message_bytes_max).
    #[error("the event has {bytes} bytes, more than the {bytes_max} that it may have")]
    TooLarge {
        /// Bytes of the event, without topic and header.
        bytes: usize,
        /// As many as there may be.
        bytes_max: usize,
    },
    /// The full topic, its key included, is longer than 64 KiB, or than fits twice into a message of
    /// [`message_bytes_max`](crate::TransportOptions::message_bytes_max).
    #[error("the topic has {bytes} bytes with its key, more than the {bytes_max} that it may have")]
    TopicTooLong {
        /// Bytes of the topic's name, a slash, and the key.
        bytes: usize,
        /// As many as there may be.
        bytes_max: usize,
    },
    /// The publisher is closed.
    #[error("the publisher is closed")]
    Closed,
    /// The tokio runtime that the publisher was made in has shut down. Make a new publisher.
    #[error("the runtime that drives the publisher has shut down")]
    RuntimeShutDown,
}

/// Why a publisher has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PublishEnd {
    Closed,
    RuntimeShutDown,
}

impl From<PublishEnd> for PublishError {
    fn from(end: PublishEnd) -> Self {
        match end {
            PublishEnd::Closed => Self::Closed,
            PublishEnd::RuntimeShutDown => Self::RuntimeShutDown,
        }
    }
}

impl Publisher<()> {
    /// To set more than the endpoint.
    pub fn builder() -> PublisherBuilder {
        PublisherBuilder::default()
    }
}

impl<T: Topic> Publisher<T> {
    /// With default settings; see [`PublisherBuilder::bind`].
    ///
    /// # Errors
    /// As [`PublisherBuilder::bind`].
    pub async fn bind(endpoint: impl AsRef<str>) -> Result<Self, TransportError> {
        PublisherBuilder::default().bind(endpoint).await
    }

    /// Publishes another topic from the same endpoint.
    pub fn also<U: Topic>(&self) -> Publisher<U> {
        Publisher {
            inner: Arc::clone(&self.inner),
            type_: PhantomData,
        }
    }

    /// Where it can be reached, with the port that it really has.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.shared.endpoint
    }

    /// Publishes a plain struct, under the key that it has.
    ///
    /// Waits only for the socket's own queue, never for a subscriber. An event that is alone leaves at
    /// once; small ones of its topic that are published before the publisher's own task has its turn
    /// leave with it, in one message. Cancel safe: an event is published whole or not at all.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish(&self, event: &T) -> Result<Published, PublishError> {
        let body = message::build_in_buffer::<T::Capnp, capnp::Error>(event.init_len(), |to| {
            event.write(to)
        })
        .map_err(MessageError::from)?;
        message::check_nesting_of::<T>(&body)?;
        let key = event.key();
        let key = key.as_deref().unwrap_or_default();
        let body = Body::Built(body);
        self.inner.shared.publish(T::NAME, key, body).await
    }

    /// Publishes an event built in place. `key` is that of the field with `$key`, empty where the
    /// struct has none.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish_with(
        &self,
        key: &str,
        build: impl FnOnce(<T::Capnp as Owned>::Builder<'_>),
    ) -> Result<Published, PublishError> {
        let body = message::build_in_buffer::<T::Capnp, capnp::Error>(0, |to| {
            build(to);
            Ok(())
        })
        .map_err(MessageError::from)?;
        message::check_nesting_of::<T>(&body)?;
        let body = Body::Built(body);
        self.inner.shared.publish(T::NAME, key, body).await
    }

    /// Publishes a received message as it is, under the key that it has: with the fields and members of unions that
    /// this program's schema does not have.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::Message`] also where the message cannot be read.
    pub fn publish_message<'a>(
        &'a self,
        event: &Msg<T>,
    ) -> impl Future<Output = Result<Published, PublishError>> + Send + use<'a, T> {
        let body = event.to_bytes();
        let read = message::check_nesting::<T>(&body).and_then(|()| event.plain());
        let read = read.map(|plain| (plain.key().unwrap_or_default().into_owned(), body));
        let shared = &self.inner.shared;
        async move {
            let (key, body) = read?;
            shared.publish(T::NAME, &key, Body::Shared(body)).await
        }
    }

    /// How many subscribers an event with this key would match now.
    pub fn matching(&self, key: &str) -> usize {
        let topic = TopicName::new(T::NAME, key);
        self.inner.shared.lock().matching(&topic.0)
    }

    /// What it has counted.
    pub fn counters(&self) -> PublisherCounters {
        PublisherCounters {
            subscribers: self.inner.shared.lock().subscribers(),
            dropped: self.inner.shared.sender.dropped(),
        }
    }

    /// Each subscriber that is connected, the first to come first, with the events that were dropped for
    /// it because it was slow. Empty where the transport does not know them.
    pub fn subscribers(&self) -> Vec<ConnectedSubscriber> {
        self.inner.shared.sender.subscribers()
    }

    /// What it has counted of each principal, by name. Empty without keys.
    pub fn by_principal(&self) -> Vec<PrincipalSubscriptions> {
        let read = |principal: Option<&Principal>, of: &OfPrincipal| PrincipalSubscriptions {
            principal: principal.cloned(),
            allowed: of.allowed.load(Relaxed),
            denied: of.denied.load(Relaxed),
        };
        self.inner.shared.by_principal.read(read)
    }

    /// What it has counted of those who came to its door.
    pub fn door(&self) -> DoorCounters {
        self.inner.shared.sender.door()
    }

    /// Closes the socket. What waits for company has its linger time to find room in the socket, and what the socket
    /// has as long again to be sent.
    pub async fn close(self) {
        let shared = &self.inner.shared;
        shared.end(PublishEnd::Closed);
        let flushed = async {
            while !shared.stop_gathering() {
                shared.sender.writable().await;
            }
        };
        // What has no room in that time is lost with what the socket has not sent.
        let _ = timeout(shared.linger, flushed).await;
        shared.sender.close().await;
        self.inner.driver.abort();
    }
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without room it is lost, as what a publisher sends last may be.
        self.shared.stop_gathering();
        self.driver.abort();
    }
}
