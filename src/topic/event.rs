//! What a subscription yields: events, and what was missed between them.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use capnp::traits::Owned;

use super::TopicName;
use crate::message::{Limits, MessageError, Msg, Plain};
use crate::wire::Metadata;

/// What comes from a subscription.
#[derive(Debug)]
pub enum Event<T> {
    /// An event.
    Message(EventMessage<T>),
    /// Events that were published and will not come: this subscriber was slow, or the connection lost.
    Missed {
        /// Of which topic.
        topic: TopicName,
        /// The number of the first one.
        from: u64,
        /// The number of the last one.
        to: u64,
    },
    /// The publisher began anew: numbers count from 1 again, and what the old one published last
    /// may be lost without a trace.
    Restarted {
        /// The new epoch.
        epoch: u64,
    },
}

/// An event that has arrived.
pub struct EventMessage<T> {
    pub(super) body: Bytes,
    pub(super) limits: Limits,
    pub(super) topic: TopicName,
    pub(super) sequence: u64,
    pub(super) epoch: u64,
    pub(super) metadata: Metadata,
    pub(super) type_: PhantomData<fn() -> T>,
}

impl<T: Plain> EventMessage<T> {
    /// Opens the event for reading in place.
    ///
    /// # Errors
    /// As [`Msg::open`].
    pub fn open(&self) -> Result<Msg<T>, MessageError> {
        Msg::open(self.body.clone(), &self.limits)
    }

    /// The event as a plain struct.
    ///
    /// # Errors
    /// As [`Msg::open`] and [`Msg::plain`].
    pub fn plain(&self) -> Result<T, MessageError> {
        self.open()?.plain()
    }

    /// Reads the event in place.
    ///
    /// # Errors
    /// As [`Msg::open`] and [`Msg::get`], and what `read` returns.
    pub fn read<R, E: From<MessageError>>(
        &self,
        read: impl FnOnce(<T::Capnp as Owned>::Reader<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        read(self.open()?.get()?)
    }
}

impl<T> EventMessage<T> {
    /// Its full topic.
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Its number in that topic.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The epoch of its publisher.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the publisher sent beside it.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl<T> fmt::Debug for EventMessage<T> {
    /// Not the body: it may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventMessage({} {})", self.topic, self.sequence)
    }
}
