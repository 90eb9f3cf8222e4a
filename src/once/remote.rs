//! What stores on servers have in common, beside how they [`compare`](super::compare) and set: how long they
//! wait, whose clock counts, and connections that are made when they are needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Bounds, Clock, StoreError, Timestamp};

/// Settings that mean the same whatever the server.
#[derive(Clone, Debug)]
pub(super) struct Common {
    pub operation_timeout: Duration,
    pub bounds: Bounds,
    pub clock: Clock,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            operation_timeout: Duration::from_secs(5),
            bounds: Bounds::default(),
            clock: Clock::System,
        }
    }
}

impl Common {
    /// When an operation that begins now has failed.
    pub fn until(&self) -> Instant {
        Instant::now() + self.operation_timeout
    }

    /// The time that a test has set.
    pub fn set_time(&self) -> Option<Timestamp> {
        match self.clock {
            Clock::System => None,
            Clock::Manual(_) => Some(self.clock.now()),
        }
    }
}

/// What a server's clock shows, give or take the time of a message: milliseconds since 1970.
pub(super) struct ServerClock {
    /// How much it is ahead of `since`.
    ahead: AtomicI64,
    since: Instant,
}

impl ServerClock {
    pub fn new(now: i64) -> Self {
        let since = Instant::now();
        let ahead = AtomicI64::new(now);
        Self { ahead, since }
    }

    pub fn now(&self) -> i64 {
        self.ahead.load(Ordering::Relaxed) + self.since.elapsed().as_millis() as i64
    }

    /// The server has said what it shows.
    pub fn set(&self, now: i64) {
        let ahead = now - self.since.elapsed().as_millis() as i64;
        self.ahead.store(ahead, Ordering::Relaxed);
    }
}

/// A connection that may be lost, or have been given up.
pub(super) trait Connected {
    fn is_usable(&self) -> bool;
}

/// Where a connection is that any number of operations share. Held while one is made, so that one is
/// made at a time.
pub(super) struct Place<C>(Mutex<Option<Arc<C>>>);

impl<C> Default for Place<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C: Connected> Place<C> {
    /// The connection that is there, or what `connect` gives.
    pub async fn get(
        &self,
        connect: impl Future<Output = Result<C, StoreError>>,
    ) -> Result<Arc<C>, StoreError> {
        let mut place = self.0.lock().await;
        match &*place {
            Some(connection) if connection.is_usable() => Ok(Arc::clone(connection)),
            _ => {
                *place = None;
                let connection = Arc::new(connect.await?);
                *place = Some(Arc::clone(&connection));
                Ok(connection)
            }
        }
    }
}

/// Records that a server forgets at once, so that it is never busy with that for long.
pub(super) const FORGOTTEN_AT_ONCE: usize = 1000;

/// Has up to `max` records forgotten, so many at once. Returns how many were.
pub(super) async fn forget_in_steps<F>(
    max: usize,
    mut forget: impl FnMut(usize) -> F,
) -> Result<usize, StoreError>
where
    F: Future<Output = Result<usize, StoreError>>,
{
    let mut forgotten = 0;
    while forgotten < max {
        let at_once = (max - forgotten).min(FORGOTTEN_AT_ONCE);
        let count = forget(at_once).await?;
        forgotten += count;
        if count < at_once {
            break;
        }
    }
    Ok(forgotten)
}
