//! What the attempts of one logical call share: numbers, and the endpoints that they went to.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Shared by all attempts of one logical call. Endpoints are known by their index, up to 64 of them.
#[derive(Debug, Default)]
pub(crate) struct Logical {
    next_attempt: AtomicU32,
    tried: AtomicU64,
    failed: AtomicU64,
    /// The attempt that was answered and the endpoint that answered it, both from 1: 0 before there is one.
    answered: AtomicU64,
    is_retried: bool,
}

impl Logical {
    /// Returns the state of a call whose first attempt has this number. A layer above sends again what fails.
    pub fn retried(first: u16) -> Self {
        Self {
            is_retried: true,
            ..Self::hedged(first)
        }
    }

    /// The same, where no layer above sends again what fails.
    pub fn hedged(first: u16) -> Self {
        Self {
            next_attempt: u32::from(first).into(),
            ..Self::default()
        }
    }

    /// Returns whether a layer above sends again what fails.
    pub fn is_retried(&self) -> bool {
        self.is_retried
    }

    /// Returns the number of the next attempt.
    pub fn next_attempt(&self) -> u16 {
        let number = self.next_attempt.fetch_add(1, Relaxed);
        u16::try_from(number).unwrap_or(u16::MAX)
    }

    /// Returns the endpoints that attempts went to, by bit.
    pub fn tried(&self) -> u64 {
        self.tried.load(Relaxed)
    }

    /// Records that an attempt goes to an endpoint.
    pub fn try_at(&self, endpoint: usize) {
        self.tried.fetch_or(bit(endpoint), Relaxed);
    }

    /// Records that no attempt got to an endpoint after all.
    pub fn untry_at(&self, endpoint: usize) {
        self.tried.fetch_and(!bit(endpoint), Relaxed);
    }

    /// Records that an attempt failed at an endpoint. Returns whether it is the first of this call to fail there.
    pub fn fail_at(&self, endpoint: usize) -> bool {
        let bit = bit(endpoint);
        bit == 0 || self.failed.fetch_or(bit, Relaxed) & bit == 0
    }

    /// Records that an attempt was answered by an endpoint.
    pub fn answer(&self, attempt: u16, endpoint: usize) {
        let endpoint = u64::try_from(endpoint + 1).unwrap_or(u64::MAX) & u64::from(u32::MAX);
        self.answered
            .store((u64::from(attempt) + 1) << 32 | endpoint, Relaxed);
    }

    /// Returns whether another endpoint has answered an attempt that began later than this one.
    pub fn is_overtaken(&self, attempt: u16, endpoint: usize) -> bool {
        let answered = self.answered.load(Relaxed);
        let (number, by) = (answered >> 32, answered & u64::from(u32::MAX));
        number > u64::from(attempt) + 1 && by != endpoint as u64 + 1
    }
}

fn bit(endpoint: usize) -> u64 {
    match endpoint {
        0..64 => 1 << endpoint,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_overtaken_by_a_later_one_at_another_endpoint() {
        let logical = Logical::hedged(0);
        assert!(!logical.is_overtaken(0, 0), "there is no answer");
        logical.answer(1, 5);
        assert!(logical.is_overtaken(0, 0));
        assert!(!logical.is_overtaken(0, 5), "the endpoint works");
        assert!(!logical.is_overtaken(2, 0), "it began later");
    }

    #[test]
    fn one_call_fails_once_at_each_endpoint() {
        let logical = Logical::retried(0);
        assert!(logical.fail_at(3) && logical.fail_at(4));
        assert!(!logical.fail_at(3) && !logical.fail_at(4));
    }
}
