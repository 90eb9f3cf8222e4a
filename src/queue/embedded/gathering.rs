//! For how long a batch waits for more, before it is written: a decision about times and counts, without a clock.
//!
//! Those who are told that they are safe are likely to come again at once, and then one sync is for all of them. So the
//! next batch waits until as many are there as were told, and no longer than that sync has taken; never longer than a
//! millisecond, and not where nobody comes any more.

use std::time::{Duration, Instant};

/// The longest that a batch waits.
const LONGEST: Duration = Duration::from_millis(1);
/// Of that time, the part for which it waits though nobody comes.
const PAUSE: u32 = 3;

#[derive(Clone, Copy, Debug)]
pub(super) struct Gathering {
    /// When the last batch was safe.
    began: Instant,
    /// How long after that the next is written at the latest.
    longest: Duration,
    /// How many steps there are when all are here.
    whole: usize,
    /// How many there were when it was last looked, and since when.
    came: usize,
    at: Instant,
}

impl Gathering {
    /// A batch was safe at `now`, `took` after it was begun. Then there are so many who may be in the next.
    pub fn after(now: Instant, took: Duration, whole: usize) -> Self {
        Self {
            began: now,
            longest: took.min(LONGEST),
            whole,
            came: 0,
            at: now,
        }
    }

    /// Whether a batch with so many steps is to be written now.
    pub fn is_over(&mut self, steps: usize, now: Instant) -> bool {
        if steps > self.came {
            (self.came, self.at) = (steps, now);
        }
        let is_late = now >= self.began + self.longest;
        steps >= self.whole || is_late || now >= self.at + self.longest / PAUSE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    /// How long a batch waits where one more comes every so often, and all would be so many.
    fn waits(took: Duration, every: Duration, whole: usize) -> Duration {
        let began = Instant::now();
        let mut gathering = Gathering::after(began, took, whole);
        let mut passed = Duration::ZERO;
        while !gathering.is_over(1 + passed.div_duration_f64(every) as usize, began + passed) {
            passed += MICROSECOND;
        }
        passed
    }

    #[test]
    fn a_batch_waits_for_no_longer_than_the_last_one_took_and_a_millisecond() {
        let took = 90 * MICROSECOND;
        assert_eq!(waits(took, 10 * MICROSECOND, 1000), took);
        let slow = 5000 * MICROSECOND;
        assert_eq!(waits(slow, 10 * MICROSECOND, 1000), LONGEST);
    }

    #[test]
    fn a_batch_waits_no_longer_than_until_all_are_there_or_nobody_comes() {
        let took = 90 * MICROSECOND;
        assert_eq!(waits(took, 10 * MICROSECOND, 1), Duration::ZERO);
        assert_eq!(waits(took, 10 * MICROSECOND, 4), 30 * MICROSECOND);
        assert_eq!(waits(took, Duration::from_secs(1), 64), took / PAUSE);
    }
}
