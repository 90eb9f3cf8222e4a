//! Topics: one publisher, any number of subscribers, no promise but honesty about what was lost.
//!
//! An event that a subscriber has no room for is dropped, and never silently: per publisher epoch
//! and topic, what is delivered and what is reported missed are together what was published since
//! the subscription was confirmed. The numbers behind that are a state machine, `sequence`;
//! `publisher` and `subscriber` drive sockets. Nothing here is stored: what must not be lost is a
//! queue's work.

mod buffer;
mod confirmations;
mod departures;
mod event;
mod names;
mod prefixes;
mod publisher;
mod sequence;
#[cfg(test)]
mod simulation;
mod subscriber;
mod subscriptions;

use std::borrow::Cow;

use crate::message::Plain;
use crate::schema::Described;

pub use buffer::SlowPolicy;
pub use event::{Event, EventMessage};
pub use names::{Keys, TopicName};
pub use publisher::{
    PrincipalSubscriptions, PublishError, Published, Publisher, PublisherBuilder, PublisherCounters,
};
pub use subscriber::{
    SubscribeError, Subscriber, SubscriberBuilder, SubscriberCounters, SubscriberEnd,
};

pub use crate::transport::ConnectedSubscriber;
#[cfg(fuzzing)]
pub(crate) use {names::read_any as read_any_name, subscriber::read_any as read_any_tails};

/// A struct with `$topic`: what is published, and under which name.
///
/// Its events go by the full topic `NAME/key`, or `NAME/` where it has no field with `$key`.
pub trait Topic: Plain + Described {
    /// The topic's name.
    const NAME: &'static str;

    /// The value of the field with `$key`, the last part of the full topic.
    fn key(&self) -> Option<Cow<'_, str>>;
}
