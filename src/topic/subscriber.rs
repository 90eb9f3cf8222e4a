//! The subscriber: asks for topics, takes what comes off the socket at once, and gives it out in
//! order with what was missed in between.

mod builder;
mod driver;
mod shared;

pub use builder::SubscriberBuilder;

#[cfg(fuzzing)]
pub(crate) use shared::read_any;

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Topic;
use super::buffer::{Arrived, Content};
use super::event::{Event, EventMessage};
use super::names::{Keys, TopicName};
use super::sequence::Incoming;
use crate::message::Limits;
use crate::transport::{ConnectionFailure, Endpoint, TransportError};
use shared::{Confirmed, Shared};

/// Receives events of one topic, as a [`Stream`] of [`Event`]s.
///
/// ```
/// # async fn f<Progress: bowline::topic::Topic + std::fmt::Debug>() -> Result<(), Box<dyn std::error::Error>> {
/// use bowline::topic::{Event, Keys};
///
/// let mut progress = bowline::Subscriber::<Progress>::connect("tcp://127.0.0.1:5556").await?;
/// progress.subscribe(Keys::All).await?;
/// while let Some(event) = progress.next().await {
///     match event {
///         Event::Message(message) => println!("{:?}", message.plain()?),
///         Event::Missed { topic, from, to } => println!("missed {from} to {to} of {topic}"),
///         Event::Restarted { .. } => println!("the publisher is a new one"),
///     }
/// }
/// # Ok(()) }
/// ```
///
/// It connects, and connects again with its subscriptions, in the background and for ever.
/// Dropping it closes the socket.
#[derive(Debug)]
pub struct Subscriber<T> {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
    incoming: Incoming,
    missed: u64,
    ready: VecDeque<Event<T>>,
    /// Out of the buffer, and not yet looked at.
    taken: VecDeque<Arrived>,
    limits: Limits,
    confirm_within: Duration,
}

/// What a subscriber has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriberCounters {
    /// Events dropped here because nobody took them; each is also reported as missed.
    pub dropped: u64,
    /// Events that it was told to have missed, here or on the way: the sum of all
    /// [`Event::Missed`].
    pub missed: u64,
    /// Messages that were no events.
    pub malformed: u64,
    /// Subscriptions that the publisher refused, also when they were asked for again after a new
    /// connection.
    pub refused: u64,
    /// Messages of a publisher that may not publish under their topic.
    pub denied: u64,
    /// Topics whose numbers were forgotten, because there were more than
    /// [`topics_max`](SubscriberBuilder::topics_max): what was missed of them meanwhile is not known.
    pub topics_forgotten: u64,
}

/// Why a subscriber has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriberEnd {
    /// It was closed.
    Closed,
    /// It was too slow, and its policy is [`SlowPolicy::Disconnect`](super::SlowPolicy::Disconnect).
    TooSlow,
    /// The tokio runtime that it was made in has shut down. Make a new subscriber.
    RuntimeShutDown,
}

/// Why a subscription is not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The publisher does not take it: its rules do not allow it to this subscriber, it is one too many, or it is too long
    /// for this publisher. It is not asked for any more.
    #[error("the publisher refuses the subscription")]
    Denied,
    /// The publisher is connected and has not confirmed it in time: it is not Bowline's, or does not
    /// go on. The subscription stays asked for.
    #[error(
        "the publisher is connected and has not confirmed the subscription in time; it stays asked for"
    )]
    Unconfirmed,
    /// There was no connection to the publisher in time, or it was lost. The subscription stays asked
    /// for, and is in force once there is one.
    #[error("no connection to {endpoint}: {failure}; the subscription stays asked for")]
    NotConnected {
        /// The endpoint of the publisher.
        endpoint: Endpoint,
        /// Why there is no connection.
        failure: ConnectionFailure,
    },
    /// The prefix is longer than [`subscription_bytes_max`](crate::TransportOptions::subscription_bytes_max), together with the
    /// topic's name. Nothing was sent.
    #[error("the subscription has {bytes} bytes, more than the {bytes_max} that it may have")]
    TooLong {
        /// Bytes of the topic's name, a slash, and the prefix.
        bytes: usize,
        /// As many as there may be.
        bytes_max: usize,
    },
    /// It would be one more than [`subscriptions_max`](crate::TransportOptions::subscriptions_max); or as many were taken back
    /// since an event was last taken. Nothing was sent.
    #[error("the subscriber has {max} subscriptions, as many as it may have")]
    TooMany {
        /// As many as there may be.
        max: usize,
    },
    /// The subscriber is closed.
    #[error("the subscriber is closed")]
    Closed,
    /// The tokio runtime that the subscriber was made in has shut down. Make a new subscriber.
    #[error("the runtime that drives the subscriber has shut down")]
    RuntimeShutDown,
}

impl Subscriber<()> {
    /// To set more than the endpoint.
    pub fn builder() -> SubscriberBuilder {
        SubscriberBuilder::default()
    }
}

impl<T: Topic> Subscriber<T> {
    /// With default settings; see [`SubscriberBuilder::connect`].
    ///
    /// # Errors
    /// For what is no endpoint.
    pub async fn connect(endpoint: impl AsRef<str>) -> Result<Self, TransportError> {
        SubscriberBuilder::default().connect(endpoint).await
    }

    /// Asks for the events with these keys; returns when the publisher has confirmed it. Every
    /// event that is published from then on is delivered or reported missed.
    ///
    /// Returns within [`confirm_within`](SubscriberBuilder::confirm_within). Cancel safe: the subscription then stays asked
    /// for.
    ///
    /// # Errors
    /// [`SubscribeError::Denied`]; [`SubscribeError::NotConnected`] without a connection to a publisher;
    /// [`SubscribeError::Unconfirmed`] where it is not Bowline's (see
    /// [`subscribe_unconfirmed`](Self::subscribe_unconfirmed)); [`SubscribeError::TooLong`] and [`SubscribeError::TooMany`]
    /// before anything is sent.
    pub async fn subscribe(&self, keys: Keys<'_>) -> Result<(), SubscribeError> {
        let (confirm, confirmed) = oneshot::channel();
        self.shared.subscribe(keys.prefix(T::NAME), Some(confirm))?;
        match timeout(self.confirm_within, confirmed).await {
            Ok(Ok(Confirmed::Yes)) => Ok(()),
            Ok(Ok(Confirmed::Refused)) => Err(SubscribeError::Denied),
            Ok(Err(_)) => Err(self.shared.ended()),
            Err(_) => Err(self.shared.unconfirmed()),
        }
    }

    /// Asks for the events with these keys and does not wait for the publisher: for one that is a plain PUB
    /// socket in another language. Gaps between events are still reported; what was published
    /// before the first one is not.
    ///
    /// Waits only where many changes have still to be sent, and within
    /// [`confirm_within`](SubscriberBuilder::confirm_within). Cancel safe.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe), but of what the publisher says.
    pub async fn subscribe_unconfirmed(&self, keys: Keys<'_>) -> Result<(), SubscribeError> {
        self.shared.subscribe(keys.prefix(T::NAME), None)?;
        self.flushed().await;
        Ok(())
    }

    /// Takes a subscription back. What has arrived before still comes. Waits as
    /// [`subscribe_unconfirmed`](Self::subscribe_unconfirmed) does. Cancel safe.
    ///
    /// # Errors
    /// [`SubscribeError::Closed`] and [`SubscribeError::RuntimeShutDown`]; [`SubscribeError::TooMany`] where 1,024 were taken
    /// back since an event was last taken.
    pub async fn unsubscribe(&mut self, keys: Keys<'_>) -> Result<(), SubscribeError> {
        self.shared.unsubscribe(&keys.prefix(T::NAME))?;
        self.flushed().await;
        Ok(())
    }

    /// What has not left by then is bounded by the socket.
    async fn flushed(&self) {
        let _ = timeout(self.confirm_within, self.shared.sender.flushed()).await;
    }

    /// The next event; `None` once the subscriber has [ended](Self::end) and all that it had was taken. Cancel safe.
    pub async fn next(&mut self) -> Option<Event<T>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Why [`next`](Self::next) gives nothing any more; `None` while it does.
    pub fn end(&self) -> Option<SubscriberEnd> {
        self.shared.lock().end
    }

    /// Whether the publisher is there now.
    pub fn is_connected(&self) -> bool {
        self.shared.sender.is_connected()
    }

    /// Returns why there is no connection to the publisher, where there is none.
    pub fn connection_failure(&self) -> Option<ConnectionFailure> {
        let failure = self.shared.sender.failure();
        (!self.is_connected()).then_some(failure)
    }

    /// What it has counted.
    pub fn counters(&self) -> SubscriberCounters {
        let state = self.shared.lock();
        SubscriberCounters {
            dropped: state.buffer.dropped(),
            missed: self.missed,
            malformed: self.shared.malformed.read(),
            refused: state.refused,
            denied: self.shared.denied.load(Ordering::Relaxed),
            topics_forgotten: self.incoming.forgotten(),
        }
    }

    /// Closes the socket.
    pub async fn close(self) {
        self.shared.sender.close().await;
    }

    /// Turns an arrival into events; returns the first, or `None` where it says nothing to the one who takes them. At most
    /// one is of its own, after what it says was missed.
    fn accept(&mut self, arrived: Arrived) -> Option<Event<T>> {
        let Arrived {
            topic,
            epoch,
            connection,
            content,
        } = arrived;
        let (restarted, missed) = match content {
            Content::Event {
                number,
                metadata,
                body,
            } => {
                self.incoming.over(connection);
                let arrival = self.incoming.event(epoch, &topic, number);
                let missed = arrival.missed.map(|range| (topic.clone(), range));
                let event = arrival.is_new.then(|| {
                    Event::Message(EventMessage {
                        body,
                        limits: self.limits,
                        topic: TopicName(topic),
                        sequence: number,
                        epoch,
                        metadata,
                        type_: PhantomData,
                    })
                });
                if arrival.restarted.is_none() && missed.is_none() {
                    return event; // as nearly always
                }
                self.report(arrival.restarted, missed);
                self.ready.extend(event);
                return self.ready.pop_front();
            }
            Content::Tail { last } => {
                self.incoming.over(connection);
                let arrival = self.incoming.tail(epoch, &topic, last);
                let missed = arrival.missed.map(|range| (topic, range));
                (arrival.restarted, missed.into_iter().collect())
            }
            Content::Tails { tails } => {
                self.incoming.over(connection);
                self.incoming.part(epoch, &topic, tails)
            }
            Content::Confirmed { tails, order } => {
                self.incoming.over(connection);
                self.incoming.confirmed(epoch, &topic, order, tails)
            }
            Content::TakenBack { order, is_asked } => {
                self.incoming.taken_back(&topic, order, is_asked);
                return None;
            }
        };
        self.report(restarted, missed);
        self.ready.pop_front()
    }

    fn report(
        &mut self,
        restarted: Option<u64>,
        missed: impl IntoIterator<Item = (Bytes, RangeInclusive<u64>)>,
    ) {
        self.ready
            .extend(restarted.map(|epoch| Event::Restarted { epoch }));
        for (topic, range) in missed {
            self.missed = self.missed.saturating_add(range.end() - range.start() + 1);
            self.ready.push_back(Event::Missed {
                topic: TopicName(topic),
                from: *range.start(),
                to: *range.end(),
            });
        }
    }
}

impl<T: Topic> Stream for Subscriber<T> {
    type Item = Event<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event<T>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            if let Some(arrived) = self.taken.pop_front() {
                match self.accept(arrived) {
                    Some(event) => return Poll::Ready(Some(event)),
                    None => continue,
                }
            }
            let Self { shared, taken, .. } = &mut *self;
            let mut state = shared.lock();
            state.buffer.take(taken);
            if state.is_holding() && state.buffer.is_half_empty() {
                shared.room.notify_one();
            }
            if taken.is_empty() {
                if state.end.is_some() || state.buffer.is_overflowed() {
                    return Poll::Ready(None);
                }
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
    }
}

impl<T> Unpin for Subscriber<T> {}

impl<T> Drop for Subscriber<T> {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
