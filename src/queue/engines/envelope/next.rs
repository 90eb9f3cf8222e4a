//! What becomes of a job after an answer, or without one: counted and decided here, carried out by its engine.

use std::time::Duration;

use crate::queue::{Answer, FailureKind, JobFailure, QueueOptions};

use super::Envelope;

/// What is to be done with a job after an answer.
#[derive(Debug, PartialEq)]
pub(in super::super) enum Next {
    /// It is done.
    Finish,
    /// It is to be sent again, after the delay that it carries.
    Again(Envelope),
    /// It goes to the dead letters.
    Bury(Envelope),
}

impl Envelope {
    /// It was sent to workers of whom nothing was heard again. Says whether they were too many.
    pub fn lose(&mut self, times: u32, options: &QueueOptions, now_ms: u64) -> bool {
        if times > 0 {
            self.attempts.lost = self.attempts.lost.saturating_add(times - 1);
            self.fail(
                FailureKind::Lost,
                "nothing was heard of the worker".into(),
                options,
                now_ms,
            );
        }
        self.attempts.lost >= options.lost_max
    }

    /// What is to be done after a worker's answer. `random` is for the jitter, from 0 to 1.
    pub fn answered(
        mut self,
        answer: Answer,
        options: &QueueOptions,
        now_ms: u64,
        random: f64,
    ) -> Next {
        let (kind, cause) = match answer {
            Answer::Done => return Next::Finish,
            Answer::Release => {
                self.delay = Duration::ZERO;
                return Next::Again(self);
            }
            Answer::RetryAfter(delay, cause) => {
                self.fail(FailureKind::Postponed, cause, options, now_ms);
                self.delay = delay;
                return Next::Again(self);
            }
            Answer::Bury(cause) => {
                self.fail(FailureKind::Refused, cause, options, now_ms);
                return Next::Bury(self);
            }
            Answer::Refuse(cause) => (FailureKind::Refused, cause),
            Answer::Abandon(cause) => (FailureKind::Lost, cause),
        };
        self.fail(kind, cause, options, now_ms);
        let failed = self.attempts.used() + self.attempts.lost;
        if self.attempts.used() >= options.attempts_max || self.attempts.lost >= options.lost_max {
            return Next::Bury(self);
        }
        // Full jitter, as of the embedded queue.
        let (min, max) = (
            options.backoff_min,
            options.backoff_max.max(options.backoff_min),
        );
        let longest = min.saturating_mul(1 << failed.min(30)).min(max);
        self.delay = min + (longest - min).mul_f64(random.clamp(0.0, 1.0));
        Next::Again(self)
    }

    fn fail(&mut self, kind: FailureKind, mut cause: String, options: &QueueOptions, now_ms: u64) {
        self.attempts.count(kind);
        cause.truncate(cause.floor_char_boundary(options.cause_bytes_max));
        let age = Duration::from_millis(now_ms.saturating_sub(self.pushed_ms));
        self.failures.push(JobFailure { kind, cause, age });
        let over = self
            .failures
            .len()
            .saturating_sub(options.failures_max.max(1));
        self.failures.drain(..over);
    }
}
