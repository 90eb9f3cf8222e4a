//! What stores on servers have in common, beside how they [`compare`](super::compare) and set: how long they
//! wait, whose clock counts, and connections that are made when they are needed.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::driver::Backoff;
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

/// Decides when a server that could not be reached is tried again: by one at a time, later each time. All others are told
/// at once what the last one was told.
#[derive(Default)]
pub(super) struct Reconnect(std::sync::Mutex<Away>);

#[derive(Default)]
struct Away {
    /// Why, and when it is tried again.
    failed: Option<(StoreError, Instant)>,
    backoff: Backoff,
}

impl Reconnect {
    /// What `connect` gives by `until`, unless the server is away and its next turn has not come. Nothing was asked of the
    /// server where this fails.
    pub async fn connect<C>(
        &self,
        until: Instant,
        connect: impl Future<Output = Result<C, StoreError>>,
    ) -> Result<C, StoreError> {
        let turn = self.take_turn(until)?;
        let connected = timeout_at(until, connect).await;
        let connected = connected.unwrap_or_else(|_| Err(late()));
        drop(turn);
        let mut away = self.lock();
        match connected {
            Ok(connection) => {
                if away.failed.take().is_some() {
                    tracing::info!("the store of outcomes is reached again");
                }
                away.backoff = Backoff::default();
                Ok(connection)
            }
            Err(error) => {
                let error = StoreError::not_applied(error.reason);
                let wait = away.backoff.next();
                away.failed = Some((error.clone(), Instant::now() + wait));
                Err(error)
            }
        }
    }

    fn take_turn(&self, until: Instant) -> Result<Turn<'_>, StoreError> {
        let mut away = self.lock();
        if let Some((error, again)) = &mut away.failed {
            if *again > Instant::now() {
                return Err(error.clone());
            }
            *again = until;
        }
        Ok(Turn(self))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Away> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to try. Dropped, also by a caller that gives up, it is the next one's.
struct Turn<'a>(&'a Reconnect);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some((_, again)) = &mut self.0.lock().failed {
            *again = Instant::now();
        }
    }
}

fn late() -> StoreError {
    StoreError::not_applied("the server did not answer in time")
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
    /// The connection that is there, or what `connect` gives. Nothing was asked of the server where this fails.
    pub async fn get(
        &self,
        reconnect: &Reconnect,
        until: Instant,
        connect: impl Future<Output = Result<C, StoreError>>,
    ) -> Result<Arc<C>, StoreError> {
        let place = timeout_at(until, self.0.lock()).await;
        let mut place = place.map_err(|_| late())?;
        match &*place {
            Some(connection) if connection.is_usable() => Ok(Arc::clone(connection)),
            _ => {
                *place = None;
                let connection = Arc::new(reconnect.connect(until, connect).await?);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn server_that_is_away_is_tried_by_one_at_a_time_with_backoff() {
        let reconnect = Reconnect::default();
        let mut attempts = 0;
        let mut asked = 0;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            asked += 1;
            let connect = async {
                attempts += 1;
                Err::<(), _>(StoreError::new("refused"))
            };
            let until = Instant::now() + Duration::from_secs(5);
            let error = reconnect.connect(until, connect).await.expect_err("away");
            assert!(error.is_not_applied(), "nothing can have begun");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(asked > 10_000, "all are told at once: {asked}");
        // 5 ms, 10 ms, ... 1 s, each shorter by up to a half.
        assert!((60..140).contains(&attempts), "{attempts}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let until = Instant::now() + Duration::from_secs(5);
        let back = reconnect.connect(until, async { Ok(()) }).await;
        assert!(back.is_ok());
        let hangs = std::future::pending::<Result<(), _>>();
        let late = reconnect.connect(until, hangs).await;
        assert!(late.is_err_and(|error| error.is_not_applied()));
        assert_eq!(Instant::now(), until);
    }
}
