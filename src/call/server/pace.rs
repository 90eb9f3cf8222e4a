//! Which methods compute for long in their first poll: a state machine, without clock or task.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// A slow method that was quick so many times in a row is taken for a quick one again.
const QUICK_AGAIN: u32 = 100;

/// How long one method's handlers compute before they wait or end.
#[derive(Debug, Default)]
pub(super) struct Pace {
    is_slow: AtomicBool,
    /// First polls since the last slow one.
    quick: AtomicU32,
    was_logged: AtomicBool,
}

impl Pace {
    pub fn is_slow(&self) -> bool {
        self.is_slow.load(Relaxed)
    }

    /// A first poll was slow. Returns whether it is the first time, which is worth a log line.
    pub fn was_slow(&self) -> bool {
        self.is_slow.store(true, Relaxed);
        self.quick.store(0, Relaxed);
        !self.was_logged.swap(true, Relaxed)
    }

    /// A first poll of a slow method was quick.
    pub fn was_quick(&self) {
        if self.quick.fetch_add(1, Relaxed) + 1 >= QUICK_AGAIN {
            self.is_slow.store(false, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_slow_until_it_was_quick_often_and_is_logged_once() {
        let pace = Pace::default();
        assert!(!pace.is_slow());
        assert!(pace.was_slow());
        for _ in 1..QUICK_AGAIN {
            pace.was_quick();
        }
        assert!(pace.is_slow());
        assert!(!pace.was_slow());
        for _ in 0..QUICK_AGAIN {
            assert!(pace.is_slow());
            pace.was_quick();
        }
        assert!(!pace.is_slow());
    }
}
