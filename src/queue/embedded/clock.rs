//! What time a queue has: it runs on with the monotonic clock, so that nothing the wall clock does is early or late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::queue::machine::Moment;

/// The time of a queue.
#[derive(Clone, Debug)]
pub struct QueueClock(Source);

#[derive(Clone, Debug)]
enum Source {
    /// From this moment of the queue, at this instant of the machine.
    System(Moment, Instant),
    Manual(Arc<AtomicU64>),
}

impl Default for QueueClock {
    fn default() -> Self {
        Self::system(Moment(0))
    }
}

impl QueueClock {
    /// What somebody sets it to, for tests: milliseconds.
    pub fn manual(milliseconds: Arc<AtomicU64>) -> Self {
        Self(Source::Manual(milliseconds))
    }

    /// Goes on from a moment of the queue.
    pub(crate) fn system(from: Moment) -> Self {
        Self(Source::System(from, Instant::now()))
    }

    pub(crate) fn now(&self) -> Moment {
        match &self.0 {
            Source::System(from, started) => {
                // Rounds down, as moments to wait for are rounded up.
                Moment(from.0 + started.elapsed().as_millis() as u64)
            }
            Source::Manual(milliseconds) => Moment(milliseconds.load(Ordering::Relaxed)),
        }
    }

    /// What the wall clock says, in milliseconds since 1970. Only ever written down and compared after a restart.
    #[cfg(feature = "durable")]
    pub(crate) fn wall() -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| since.as_millis() as u64)
    }

    /// How long to wait for real before so much time of the queue may have passed.
    pub(crate) fn real(&self, time: Duration) -> Duration {
        match &self.0 {
            Source::System(..) => time,
            Source::Manual(_) => time.min(Duration::from_millis(1)),
        }
    }
}
