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
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

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
use crate::transport::TransportError;
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
}

/// Why a subscription is not confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The publisher does not take it: its rules do not allow it to this subscriber, or it is one too
    /// many. It is not asked for any more.
    #[error("the publisher refuses the subscription")]
    Denied,
    /// No publisher has confirmed it in time. It stays asked for, and is in force once one is there.
    #[error("no publisher has confirmed the subscription in time; it stays asked for")]
    Unconfirmed,
    /// The subscriber is closed.
    #[error("the subscriber is closed")]
    Closed,
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
    /// Cancel safe: the subscription then stays asked for.
    ///
    /// # Errors
    /// [`SubscribeError::Denied`], and [`SubscribeError::Unconfirmed`] with no publisher there, or one that is not Bowline's (see
    /// [`subscribe_unconfirmed`](Self::subscribe_unconfirmed)).
    pub async fn subscribe(&self, keys: Keys<'_>) -> Result<(), SubscribeError> {
        let prefix = keys.prefix(T::NAME);
        let (confirm, confirmed) = oneshot::channel();
        self.shared.subscribe(prefix, Some(confirm)).await?;
        match timeout(self.confirm_within, confirmed).await {
            Ok(Ok(Confirmed::Yes)) => Ok(()),
            Ok(Ok(Confirmed::Refused)) => {
                self.shared.unsubscribe(keys.prefix(T::NAME)).await?;
                Err(SubscribeError::Denied)
            }
            Ok(Err(_)) => Err(SubscribeError::Closed),
            Err(_) => Err(SubscribeError::Unconfirmed),
        }
    }

    /// Asks for the events with these keys and does not wait: for a publisher that is a plain PUB
    /// socket in another language. Gaps between events are still reported; what was published
    /// before the first one is not.
    ///
    /// # Errors
    /// [`SubscribeError::Closed`].
    pub async fn subscribe_unconfirmed(&self, keys: Keys<'_>) -> Result<(), SubscribeError> {
        self.shared.subscribe(keys.prefix(T::NAME), None).await
    }

    /// Takes a subscription back. What has arrived before still comes.
    ///
    /// # Errors
    /// [`SubscribeError::Closed`].
    pub async fn unsubscribe(&mut self, keys: Keys<'_>) -> Result<(), SubscribeError> {
        let prefix = keys.prefix(T::NAME);
        self.incoming.forget(&prefix);
        self.shared.unsubscribe(prefix).await
    }

    /// The next event; `None` once the subscriber is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Event<T>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Whether the publisher is there now.
    pub fn is_connected(&self) -> bool {
        self.shared.sender.is_connected()
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
        }
    }

    /// Closes the socket.
    pub async fn close(self) {
        self.shared.sender.close().await;
    }

    /// Turns an arrival into events: at most one of its own, after what it says was missed.
    fn accept(&mut self, arrived: Arrived) {
        let Arrived {
            topic,
            epoch,
            connection,
            content,
        } = arrived;
        self.incoming.over(connection);
        let (restarted, missed, is_new) = match &content {
            Content::Confirmed { tails } => {
                let (restarted, missed) =
                    self.incoming
                        .confirmed(epoch, &topic, tails.iter().cloned());
                (restarted, missed, false)
            }
            Content::Tail { last } => {
                let arrival = self.incoming.tail(epoch, &topic, *last);
                let missed = arrival.missed.map(|range| (topic.clone(), range));
                (arrival.restarted, missed.into_iter().collect(), false)
            }
            Content::Event { number, .. } => {
                let arrival = self.incoming.event(epoch, &topic, *number);
                let missed = arrival.missed.map(|range| (topic.clone(), range));
                (
                    arrival.restarted,
                    missed.into_iter().collect(),
                    arrival.is_new,
                )
            }
        };
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
        if let Content::Event {
            number,
            metadata,
            body,
        } = content
            && is_new
        {
            self.ready.push_back(Event::Message(EventMessage {
                body,
                limits: self.limits,
                topic: TopicName(topic),
                sequence: number,
                epoch,
                metadata,
                type_: PhantomData,
            }));
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
            let arrived = {
                let mut state = self.shared.lock();
                match state.buffer.pop() {
                    Some(arrived) => arrived,
                    None if state.closed || state.buffer.is_overflowed() => {
                        return Poll::Ready(None);
                    }
                    None => {
                        state.waker = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                }
            };
            self.accept(arrived);
        }
    }
}

impl<T> Unpin for Subscriber<T> {}

impl<T> Drop for Subscriber<T> {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
