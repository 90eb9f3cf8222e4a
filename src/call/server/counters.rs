//! What a server counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::counter::Counter;
use crate::security::Principal;

/// What a server has counted since it was bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerCounters {
    /// Requests that reached a handler.
    pub handled: u64,
    /// Messages that were no requests: wrong parts, no header, a version that is not spoken here.
    pub malformed: u64,
    /// Requests whose body is over [`Limits::message_bytes_max`](crate::Limits::message_bytes_max).
    pub too_large: u64,
    /// Requests that ended because a body could not be read: it is no message of its type, or costs more than
    /// [`Limits`](crate::Limits) allow. What a handler's `?` makes of it counts, its own words do not.
    pub unreadable: u64,
    /// Requests for an interface or a method that no service here has.
    pub unknown: u64,
    /// Requests refused because of a concurrency limit, or while draining.
    pub refused: u64,
    /// Requests refused because no rule allows them to who sent them.
    pub denied: u64,
    /// Handlers that panicked.
    pub panicked: u64,
    /// Handlers that were ended because their caller's deadline had passed.
    pub timed_out: u64,
    /// Handlers that were ended because the connection of their caller was lost.
    pub abandoned: u64,
    /// Replies that were dropped because their caller had gone or did not read.
    pub replies_dropped: u64,
    /// Replies that are larger than their caller takes; a status was sent instead.
    pub replies_too_large: u64,
    /// Handlers that were ended because their caller dropped its call.
    pub cancelled: u64,
    /// Calls that are [parked](crate::call::park) now.
    pub parked: usize,
}

/// What a server has counted of one principal since it was bound.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrincipalCounters {
    /// Whose they are; `None` for all together that came after the first
    /// [`principals_max`](super::ServerBuilder::principals_max).
    pub principal: Option<Principal>,
    /// Requests that reached a handler.
    pub handled: u64,
    /// Requests refused because of a concurrency limit.
    pub refused: u64,
    /// Requests refused because no rule allows them.
    pub denied: u64,
}

/// The counters of one principal.
#[derive(Debug, Default)]
pub(super) struct OfPrincipal {
    pub handled: AtomicU64,
    pub refused: AtomicU64,
    pub denied: AtomicU64,
}

impl OfPrincipal {
    pub fn read(principal: Option<&Principal>, of: &Self) -> PrincipalCounters {
        PrincipalCounters {
            principal: principal.cloned(),
            handled: of.handled.load(Relaxed),
            refused: of.refused.load(Relaxed),
            denied: of.denied.load(Relaxed),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub handled: Counter,
    pub malformed: Counter,
    pub too_large: Counter,
    pub unreadable: Counter,
    pub unknown: Counter,
    pub refused: Counter,
    pub denied: Counter,
    pub panicked: Counter,
    pub timed_out: Counter,
    pub abandoned: Counter,
    pub replies_dropped: Counter,
    pub replies_too_large: Counter,
    pub cancelled: Counter,
}

impl Counters {
    pub fn read(&self) -> ServerCounters {
        ServerCounters {
            handled: self.handled.read(),
            malformed: self.malformed.read(),
            too_large: self.too_large.read(),
            unreadable: self.unreadable.read(),
            unknown: self.unknown.read(),
            refused: self.refused.read(),
            denied: self.denied.read(),
            panicked: self.panicked.read(),
            timed_out: self.timed_out.read(),
            abandoned: self.abandoned.read(),
            replies_dropped: self.replies_dropped.read(),
            replies_too_large: self.replies_too_large.read(),
            cancelled: self.cancelled.read(),
            parked: 0,
        }
    }
}
