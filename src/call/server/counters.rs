//! What a server counts, and how often it says so.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::security::Principal;

/// A kind of trouble is logged at most once in this time; the counters have all of it.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What a server has counted since it was bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerCounters {
    /// Requests that reached a handler.
    pub handled: u64,
    /// Messages that were no requests: wrong parts, no header, a version that is not spoken here.
    pub malformed: u64,
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
    pub unknown: Counter,
    pub refused: Counter,
    pub denied: Counter,
    pub panicked: Counter,
    pub timed_out: Counter,
    pub abandoned: Counter,
    pub replies_dropped: Counter,
}

impl Counters {
    pub fn read(&self) -> ServerCounters {
        ServerCounters {
            handled: self.handled.read(),
            malformed: self.malformed.read(),
            unknown: self.unknown.read(),
            refused: self.refused.read(),
            denied: self.denied.read(),
            panicked: self.panicked.read(),
            timed_out: self.timed_out.read(),
            abandoned: self.abandoned.read(),
            replies_dropped: self.replies_dropped.read(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counter {
    count: AtomicU64,
    logged: Mutex<Option<Instant>>,
}

impl Counter {
    pub fn count(&self) {
        self.count.fetch_add(1, Relaxed);
    }

    pub fn add(&self, n: usize) {
        self.count.fetch_add(n as u64, Relaxed);
    }

    /// Counts, and calls `log` with the count so far unless it was called a moment ago.
    pub fn count_and_log(&self, log: impl FnOnce(u64)) {
        self.add_and_log(1, log);
    }

    pub fn add_and_log(&self, n: usize, log: impl FnOnce(u64)) {
        let count = self.count.fetch_add(n as u64, Relaxed) + n as u64;
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if logged.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL) {
            *logged = Some(now);
            drop(logged);
            log(count);
        }
    }

    fn read(&self) -> u64 {
        self.count.load(Relaxed)
    }
}
