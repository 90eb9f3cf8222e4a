//! Counting what goes wrong, and saying so now and then: who sends nonsense may send much of it, and a
//! log has an end. Knows nothing of what it counts.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A kind of trouble is logged at most once in this time; the counters have all of it.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// How often something has happened, in all.
#[derive(Debug, Default)]
pub(crate) struct Counter {
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

    pub fn read(&self) -> u64 {
        self.count.load(Relaxed)
    }
}

/// Limits log lines of several kinds: each kind has one line in each [`LOG_INTERVAL`]. A kind is one
/// of few that the program knows, never something that a peer chooses.
#[derive(Debug)]
pub(crate) struct LogPerKind<K>(Mutex<HashMap<K, Instant>>);

impl<K> Default for LogPerKind<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> LogPerKind<K> {
    /// Calls `log` unless a line of this kind was logged a moment ago.
    pub fn log(&self, kind: K, log: impl FnOnce()) {
        let now = Instant::now();
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = logged
            .get(&kind)
            .is_none_or(|at| now.duration_since(*at) >= LOG_INTERVAL);
        if is_due {
            logged.insert(kind, now);
            drop(logged);
            log();
        }
    }
}

/// Limits log lines of normal events that come in bursts: so many in each [`LOG_INTERVAL`].
#[derive(Debug)]
pub(crate) struct LogBurst {
    lines_max: u32,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogBurst {
    pub fn new(lines_max: u32) -> Self {
        Self {
            lines_max,
            window: Mutex::default(),
        }
    }

    /// Calls `log`, with the number of lines that were suppressed since the last one, unless there
    /// were too many in this interval.
    pub fn log(&self, log: impl FnOnce(u64)) {
        let now = Instant::now();
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |since: Instant| now.duration_since(since) >= LOG_INTERVAL;
        if window.since.is_none_or(is_over) {
            window.since = Some(now);
            window.lines = 0;
        }
        if window.lines >= self.lines_max {
            window.suppressed += 1;
            return;
        }
        window.lines += 1;
        let suppressed = std::mem::take(&mut window.suppressed);
        drop(window);
        log(suppressed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_is_logged_once_in_an_interval() {
        let limit = LogPerKind::default();
        let mut logged = Vec::new();
        for _ in 0..20 {
            for kind in [1, 2] {
                limit.log(kind, || logged.push(kind));
            }
            tokio::time::advance(LOG_INTERVAL / 10).await;
        }
        assert_eq!(logged, [1, 2, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_logged_up_to_its_limit_and_the_rest_is_counted() {
        let limit = LogBurst::new(3);
        let mut logged = Vec::new();
        for _ in 0..10 {
            limit.log(|suppressed| logged.push(suppressed));
        }
        tokio::time::advance(LOG_INTERVAL).await;
        limit.log(|suppressed| logged.push(suppressed));
        assert_eq!(logged, [0, 0, 0, 7]);
    }

    #[tokio::test(start_paused = true)]
    async fn all_is_counted_and_one_a_second_is_logged() {
        let counter = Counter::default();
        let mut logged = Vec::new();
        for _ in 0..30 {
            counter.count_and_log(|count| logged.push(count));
            tokio::time::advance(LOG_INTERVAL / 10).await;
        }
        assert_eq!((counter.read(), logged), (30, vec![1, 11, 21]));
    }
}
