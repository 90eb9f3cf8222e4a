//! When to prefer other endpoints to one that keeps failing: a circuit breaker. No clock inside.
//!
//! Closed, it counts; open, it says so; half open, it lets one call through to see. After Nygard,
//! *Release It!*, and Envoy's outlier detection. It refuses nothing itself: [`Balance`](super::Balance) sends
//! first attempts to an endpoint with an open breaker where there is no other, so that a server which is well
//! again is never kept waiting, and sends nothing there a second time.

use std::time::Duration;

use tokio::time::Instant;

use crate::wire::{Code, Origin, Reason, Status, Work};

/// When a breaker opens, and for how long. It counts calls, not attempts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerPolicy {
    /// Failures one after the other that open it. Default: 5; fewer is chance.
    pub failures_max: u32,
    /// How much of the last [`window`](Self::window) calls may fail. Default: 0.5.
    pub failed_ratio_max: f64,
    /// Calls that the ratio is counted over. Default: 100.
    pub window: u32,
    /// How long it stays open the first time, unless its connection is made anew. Default: 1 s, about a restart.
    pub open_first: Duration,
    /// It doubles up to this as long as probes fail. Default: 5 s. One call in five seconds costs a
    /// broken endpoint nothing, and the others do not miss it much longer once it works again.
    pub open_max: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            failures_max: 5,
            failed_ratio_max: 0.5,
            window: 100,
            open_first: Duration::from_secs(1),
            open_max: Duration::from_secs(5),
        }
    }
}

/// A breaker of one endpoint.
#[derive(Clone, Debug)]
pub struct Breaker {
    policy: BreakerPolicy,
    state: State,
    /// How often it opened without a success in between.
    opened: u32,
}

#[derive(Clone, Debug)]
enum State {
    Closed {
        in_a_row: u32,
        calls: u32,
        failed: u32,
    },
    Open {
        until: Instant,
    },
    /// One call is on its way to see; if it is never heard of again, another may go.
    HalfOpen {
        until: Instant,
    },
}

/// What a breaker has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerChange {
    /// It has opened, for so long.
    Opened(Duration),
    /// It has closed.
    Closed,
}

const CLOSED: State = State::Closed {
    in_a_row: 0,
    calls: 0,
    failed: 0,
};

impl Breaker {
    /// Closed.
    pub fn new(policy: BreakerPolicy) -> Self {
        Self {
            policy,
            state: CLOSED,
            opened: 0,
        }
    }

    /// Whether it would let a call through. Nothing is changed by asking.
    pub fn is_open(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => false,
            State::Open { until } | State::HalfOpen { until } => now < until,
        }
    }

    /// Returns whether it is closed and no recent call has failed.
    pub fn is_clear(&self) -> bool {
        matches!(self.state, State::Closed { failed: 0, .. })
    }

    /// The connection was made anew: an open breaker lets the next call through to see.
    pub fn connected(&mut self, now: Instant) {
        if let State::Open { until } | State::HalfOpen { until } = &mut self.state {
            *until = now.min(*until);
        }
    }

    /// A call goes through, whether or not it should. One that goes through an open breaker whose
    /// time is up is the probe.
    pub fn enter(&mut self, now: Instant) {
        if let State::Open { until } | State::HalfOpen { until } = self.state
            && now >= until
        {
            let until = now + self.policy.open_first;
            self.state = State::HalfOpen { until };
        }
    }

    /// A call has ended. Returns what that changes.
    pub fn ended(&mut self, now: Instant, is_failure: bool) -> Option<BreakerChange> {
        match (&mut self.state, is_failure) {
            (
                State::Closed {
                    in_a_row,
                    calls,
                    failed,
                },
                _,
            ) => {
                *calls += 1;
                *in_a_row = if is_failure { *in_a_row + 1 } else { 0 };
                *failed += u32::from(is_failure);
                let is_full = *calls >= self.policy.window;
                let ratio = f64::from(*failed) / f64::from(*calls);
                if *in_a_row >= self.policy.failures_max
                    || is_full && ratio > self.policy.failed_ratio_max
                {
                    return Some(self.open(now));
                }
                if is_full {
                    // Half of the window is kept in mind, so that the ratio slides.
                    *calls /= 2;
                    *failed /= 2;
                }
                None
            }
            (State::HalfOpen { .. }, true) => {
                self.open(now);
                None
            }
            (State::HalfOpen { .. } | State::Open { .. }, false) => {
                self.state = CLOSED;
                self.opened = 0;
                Some(BreakerChange::Closed)
            }
            // A call from before it opened, or one that had no other endpoint.
            (State::Open { .. }, true) => None,
        }
    }

    fn open(&mut self, now: Instant) -> BreakerChange {
        let times = 2u32.saturating_pow(self.opened.min(16));
        let open = (self.policy.open_first * times).min(self.policy.open_max);
        self.opened += 1;
        self.state = State::Open { until: now + open };
        BreakerChange::Opened(open)
    }
}

/// What the end of an attempt says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// It answers.
    Works,
    /// It answers that it cannot do what this method needs.
    Fails,
    /// It has not answered in time.
    Silent,
    /// Its connection was lost.
    Lost,
    /// Nothing: the attempt never left, or the server refuses in good order.
    Nothing,
}

/// Returns what a status says of the endpoint of its attempt.
///
/// A full server is not a broken one: it says when to come back. What is wrong with the request, and a bug that one
/// method has, is answered by a server that works. Nor is an open circuit that it passes on a failure of its own: were
/// it left out for that, each tier of a chain would wait for the one behind it, one after the other.
pub(super) fn evidence(status: &Status) -> Evidence {
    use Reason::{
        CircuitOpen, ClientClosed, InDoubt, InProgress, RuntimeShutDown, ShuttingDown, TooLarge,
    };
    let is_not_done = status.work() == Work::NotDone;
    match status.origin() {
        Origin::Connection if is_not_done => return Evidence::Nothing,
        Origin::Connection => return Evidence::Lost,
        Origin::Breaker => return Evidence::Nothing,
        Origin::Other => {}
    }
    match status.reason() {
        Some(ShuttingDown | ClientClosed | RuntimeShutDown) => return Evidence::Nothing,
        Some(InDoubt | InProgress | CircuitOpen | TooLarge) => return Evidence::Works,
        _ => {}
    }
    match status.code() {
        Code::Unavailable if status.retry_after().is_none() => Evidence::Fails,
        Code::DeadlineExceeded if !is_not_done => Evidence::Silent,
        _ => Evidence::Works,
    }
}

/// Returns whether a status speaks against the endpoint that its attempt went to: a connection that was lost, no
/// answer in time, or `Unavailable` without saying when to come back.
pub fn is_failure(status: &Status) -> bool {
    matches!(
        evidence(status),
        Evidence::Fails | Evidence::Silent | Evidence::Lost
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_lets_one_call_through_to_see() {
        let (mut breaker, start) = (Breaker::new(BreakerPolicy::default()), Instant::now());
        for _ in 0..4 {
            breaker.ended(start, true);
        }
        breaker.ended(start, false);
        for _ in 0..4 {
            breaker.ended(start, true);
            assert!(
                !breaker.is_open(start),
                "a success in between starts the count again"
            );
        }
        breaker.ended(start, true);
        assert!(breaker.is_open(start));
        let later = start + second(1);
        assert!(!breaker.is_open(later), "its time is up");
        breaker.enter(later);
        assert!(breaker.is_open(later), "one probe at a time");
        breaker.ended(later, false);
        assert!(!breaker.is_open(later));
    }

    #[test]
    fn it_stays_open_twice_as_long_each_time_up_to_a_limit() {
        let (mut breaker, mut now) = (Breaker::new(BreakerPolicy::default()), Instant::now());
        for _ in 0..5 {
            breaker.ended(now, true);
        }
        for expected in [1, 2, 4, 5, 5] {
            assert!(breaker.is_open(now + second(expected) - Duration::from_millis(1)));
            now += second(expected);
            assert!(!breaker.is_open(now));
            breaker.enter(now);
            breaker.ended(now, true);
        }
    }

    #[test]
    fn it_opens_when_more_than_half_fail_though_never_five_in_a_row() {
        let (mut breaker, now) = (Breaker::new(BreakerPolicy::default()), Instant::now());
        for call in 0..100 {
            assert!(!breaker.is_open(now));
            breaker.ended(now, call % 3 != 0);
        }
        assert!(breaker.is_open(now));
    }

    proptest! {
        #[test]
        fn without_failures_it_never_opens_and_a_success_always_closes_it(
            steps in prop::collection::vec((any::<bool>(), 0..3000u64), 0..300)
        ) {
            let (mut breaker, mut now) = (Breaker::new(BreakerPolicy::default()), Instant::now());
            for (fails, milliseconds) in steps {
                now += Duration::from_millis(milliseconds);
                if !breaker.is_open(now) {
                    breaker.enter(now);
                    breaker.ended(now, fails);
                }
                prop_assert!(!breaker.is_open(now + second(5)), "it never stays open for ever");
            }
            breaker.ended(now, false);
            let mut fine = breaker.clone();
            for _ in 0..1000 {
                fine.ended(now, false);
            }
            prop_assert!(!fine.is_open(now));
        }
    }
}
