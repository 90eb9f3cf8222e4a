//! Counting what goes wrong, and saying so now and then: who sends nonsense may send much of it, and a
//! log has an end. Knows nothing of what it counts.

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

#[cfg(test)]
mod tests {
    use super::*;

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
