//! Deciding: what becomes of a job whose attempt has ended. Each decision is a fact, applied and kept for a log.

use std::time::Duration;

use super::Machine;
use super::fact::{Fact, Finish, GroupIndex, Moment};
use super::terms::Stale;
use crate::queue::Token;
use crate::queue::{FailureKind, JobNumber, Poison};

impl Machine {
    pub(super) fn decide(&mut self, now: Moment, fact: Fact) {
        self.apply(now, &fact);
        self.facts.push(fact);
    }

    pub(super) fn finish(&mut self, now: Moment, group: GroupIndex, number: u64, how: Finish) {
        let number = JobNumber(number);
        self.decide(now, Fact::Finished { group, number, how });
    }

    /// An attempt has failed: the job is tried again later, or never.
    pub(super) fn fail(
        &mut self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
        kind: FailureKind,
        cause: String,
        random: u64,
    ) {
        let mut attempts = self.groups[group]
            .history(number.0)
            .map(|history| history.attempts)
            .unwrap_or_default();
        attempts.count(kind);
        let is_over =
            attempts.used() >= self.options.attempts_max || attempts.lost >= self.options.lost_max;
        if is_over && !self.blocks_its_key(number.0) {
            return self.bury(now, group, number, kind, cause);
        }
        let due = match kind {
            FailureKind::Released => now,
            _ => {
                let failed = attempts.used() + attempts.lost;
                now + self.backoff(failed, mix(random, number.0))
            }
        };
        self.put_back(now, group, number, due, kind, cause);
    }

    pub(super) fn blocks_its_key(&self, number: u64) -> bool {
        let has_key = || self.extras.get(&number).is_some_and(|e| e.key.is_some());
        self.options.poison == Poison::Block && has_key()
    }

    /// Full jitter: anything from the shortest wait to twice as long after each failure, up to the longest.
    pub(super) fn backoff(&self, failed: u32, random: u64) -> Duration {
        let (min, max) = (self.options.backoff_min, self.options.backoff_max);
        let doubled = min.saturating_mul(1 << failed.min(30)).min(max.max(min));
        let part = (random >> 11) as f64 / (1u64 << 53) as f64;
        min + (doubled - min).mul_f64(part)
    }

    pub(super) fn put_back(
        &mut self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
        due: Moment,
        kind: FailureKind,
        cause: String,
    ) {
        let cause = shortened(cause, self.options.cause_bytes_max);
        let fact = Fact::Returned {
            group,
            number,
            due,
            kind,
            cause,
        };
        self.decide(now, fact);
        if self.has_expired(now, number.0) {
            self.finish(now, group, number.0, Finish::Expired);
        }
    }

    pub(super) fn bury(
        &mut self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
        kind: FailureKind,
        cause: String,
    ) {
        let cause = shortened(cause, self.options.cause_bytes_max);
        let fact = Fact::Buried {
            group,
            number,
            kind,
            cause,
        };
        self.decide(now, fact);
    }

    /// The session that has the lease, if the token is that of the lease and it has not ended.
    pub(super) fn valid(
        &self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
        token: Token,
    ) -> Result<u64, Stale> {
        let lease = self.groups[group].lease_of(number.0).ok_or(Stale)?;
        (lease.token == token && !lease.has_ended(now))
            .then_some(lease.session)
            .ok_or(Stale)
    }
}

/// A random number for each job, of one for all.
fn mix(random: u64, number: u64) -> u64 {
    // The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
    let mut mixed = random.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn shortened(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = text.floor_char_boundary(bytes_max);
        text.truncate(end);
    }
    text
}
