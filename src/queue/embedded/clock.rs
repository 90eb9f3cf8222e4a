//! What time a queue has: it runs on with the monotonic clock, so that nothing the wall clock does is early or late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::queue::machine::Moment;

const MILLISECOND: Duration = Duration::from_millis(1);

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
            Source::System(from, started) => after(*from, started.elapsed()),
            Source::Manual(milliseconds) => Moment(milliseconds.load(Ordering::Relaxed)),
        }
    }

    /// Whether it is the machine's, so that what did not run missed it.
    pub(crate) fn is_real(&self) -> bool {
        matches!(self.0, Source::System(..))
    }

    /// How much time of the queue a wait for so long has to last, so that it does not end before: the moment that it
    /// is counted from may be over in a moment.
    pub(crate) fn wait(&self, time: Duration) -> Duration {
        match &self.0 {
            Source::System(..) if !time.is_zero() => time.saturating_add(MILLISECOND),
            _ => time,
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
            Source::Manual(_) => time.min(MILLISECOND),
        }
    }
}

/// Rounds down to whole milliseconds.
fn after(from: Moment, elapsed: Duration) -> Moment {
    Moment(from.0 + elapsed.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_does_not_end_before_its_time_wherever_in_a_millisecond_it_begins() {
        let clock = QueueClock::default();
        for microseconds in (0..2_000).step_by(100) {
            let began = Duration::from_micros(microseconds);
            for time in [1, 999, 1_000, 1_001, 60_000].map(Duration::from_micros) {
                let due = after(Moment(5), began) + clock.wait(time);
                let shortly_before = began + time - Duration::from_nanos(1);
                assert!(after(Moment(5), shortly_before) < due, "{began:?} {time:?}");
            }
            let due = after(Moment(5), began) + clock.wait(Duration::ZERO);
            assert_eq!(due, after(Moment(5), began), "no wait is no wait");
        }
    }
}
