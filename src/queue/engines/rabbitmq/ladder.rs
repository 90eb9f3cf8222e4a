//! How a delay is waited out by queues that can only wait a fixed time each.
//!
//! RabbitMQ ends the waiting of the first message of a queue before it looks at the second: one queue for all
//! delays would hold back the short ones behind the long ones. So there is a queue for each power of two of milliseconds, a
//! rung, and a job goes through those that add up to its delay, the longest first. No clocks are compared.

use std::time::Duration;

use super::super::envelope::milliseconds;

/// The shortest: a delay below is as long as this.
const SHORTEST_MS: u64 = 8;
/// The longest, about 12 days; what is longer goes through it several times.
const LONGEST_MS: u64 = 1 << 30;

/// The rung on which a job waits next, in milliseconds, and how long it has to wait after that.
///
/// A delay is rounded up to three binary digits: at most a quarter longer, and at most three rungs. One that is longer
/// than the longest rung is rounded when its rest is no longer than that; rounded at each hop, it would never get shorter.
pub(super) fn next_rung(delay: Duration) -> (u64, Duration) {
    let delay = milliseconds(delay).max(SHORTEST_MS);
    if delay > LONGEST_MS {
        return (LONGEST_MS, Duration::from_millis(delay - LONGEST_MS));
    }
    let longest = 1 << delay.ilog2();
    let unit = (longest / 4).max(1);
    let rounded = delay.div_ceil(unit) * unit;
    let rung = 1 << rounded.ilog2();
    (rung, Duration::from_millis(rounded - rung))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rungs_add_up_to_the_delay_and_not_much_more(delay_ms in 1..10 * LONGEST_MS) {
            let (mut rest, mut waited, mut hops) = (Duration::from_millis(delay_ms), 0, 0);
            while !rest.is_zero() {
                prop_assert!(hops < 20, "it never ends");
                let (rung, then) = next_rung(rest);
                prop_assert!(rung.is_power_of_two() && (SHORTEST_MS..=LONGEST_MS).contains(&rung));
                (rest, waited, hops) = (then, waited + rung, hops + 1);
            }
            prop_assert!(waited >= delay_ms);
            prop_assert!(waited <= delay_ms + delay_ms / 4 + 2 * SHORTEST_MS);
            prop_assert!(hops <= 3 + delay_ms / LONGEST_MS);
        }
    }
}
