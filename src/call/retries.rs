//! When a call is sent again, after how long, and when no longer: a state machine without clock, task or
//! randomness.
//!
//! Each layer that sends a call again asks it. What is known of the work over all attempts is counted in
//! [`Attempts`]; this adds whether another attempt is safe, helps, and is in time.

use std::time::Duration;

use tokio::time::Instant;

use super::RawRequest;
use super::attempts::Attempts;
use crate::schema::Effect;
use crate::wire::{Code, Origin, Reason, Status, Work};

/// How calls are sent again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts of one call, the first included. Default: 4; what three retries did not cure is no blip.
    pub attempts_max: u16,
    /// The first wait is random up to this. Default: 10 ms, about a garbage collection or a lost packet.
    pub wait_first: Duration,
    /// It doubles up to this. Default: 1 s, a restart.
    pub wait_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 4,
            wait_first: Duration::from_millis(10),
            wait_max: Duration::from_secs(1),
        }
    }
}

/// How long a server that shuts down is given, at least, before it is asked again: until then it would refuse again.
const SHUTDOWN_WAIT_MIN: Duration = Duration::from_millis(50);

/// The attempts of one call.
///
/// # Examples
/// ```
/// use bowline::resilience::{Next, Retries, RetryPolicy};
/// use bowline::schema::Effect;
/// use bowline::{Status, Work};
/// use tokio::time::Instant;
///
/// let now = Instant::now();
/// let deadline = now + std::time::Duration::from_secs(1);
/// let mut retries = Retries::new(RetryPolicy::default(), Effect::Unsafe, deadline);
/// retries.begin();
/// let refused = Status::unavailable("no server");
/// assert!(matches!(retries.failed(now, refused, 0.5), Next::Again { .. }));
/// retries.begin();
/// let lost = Status::unavailable("lost").with_work(Work::OutcomeUnknown);
/// assert!(matches!(retries.failed(now, lost, 0.5), Next::Stop(_)));
/// ```
#[derive(Clone, Debug)]
pub struct Retries {
    policy: RetryPolicy,
    effect: Effect,
    deadline: Instant,
    attempts: Attempts,
    /// Attempts that were no try: nothing had failed, or nothing had left.
    free: u16,
    failures: u16,
    waits_for_ready: bool,
    /// Whether only what a lost connection or a server that shuts down has refused is sent again.
    only_connection: bool,
    /// How the attempt ended that was the last to end.
    last: Option<Status>,
}

/// What to do after an attempt has failed.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Wait, and send it again.
    Again {
        /// How long to wait.
        after: Duration,
        /// Whether the budget has to allow it.
        from_budget: bool,
    },
    /// Wait for the attempts that are still in flight.
    Wait,
    /// That is how the call ends.
    Stop(Status),
}

impl Retries {
    /// Returns the state before the first attempt.
    pub fn new(policy: RetryPolicy, effect: Effect, deadline: Instant) -> Self {
        Self {
            policy,
            effect,
            deadline,
            attempts: Attempts::new(),
            free: 0,
            failures: 0,
            waits_for_ready: false,
            only_connection: false,
            last: None,
        }
    }

    /// Returns the state before the first attempt of `request`, which may wait for its server, and may ask for
    /// an outcome only.
    pub fn of(request: &RawRequest, policy: RetryPolicy, deadline: Instant) -> Self {
        Self {
            attempts: Attempts::of(request),
            waits_for_ready: request.wait_for_ready,
            ..Self::new(policy, request.effect, deadline)
        }
    }

    /// Sends again only what a connection that is down or was lost has ended, or a server that shuts down has
    /// refused: any other status is a handler's, and ends the call.
    pub fn only_connection(mut self) -> Self {
        self.only_connection = true;
        self
    }

    /// Records that an attempt begins. Until it [fails](Self::failed) it may have been done.
    pub fn begin(&mut self) {
        self.attempts.begin();
    }

    /// Returns what is known of the work now.
    pub fn work(&self) -> Work {
        self.attempts.work()
    }

    /// After an attempt failed with `status`. `random` is from 0 to 1.
    ///
    /// The wait is random up to a bound that doubles: "full jitter"
    /// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>), so that callers
    /// who failed together do not come back together. A server that says when to come back is obeyed,
    /// with jitter on top.
    pub fn failed(&mut self, now: Instant, status: Status, random: f64) -> Next {
        self.attempts.ended(&status);
        if matches!(status.origin(), Origin::Breaker) && self.attempts.begun() > 1 {
            // Nothing was sent. How the call ends is what made it send again.
            let last = self.last.clone().unwrap_or(status);
            return self.wait_or_stop(last);
        }
        let is_free = self.is_free(&status);
        match is_free {
            true => self.free = self.free.saturating_add(1),
            false => self.failures = self.failures.saturating_add(1),
        }
        if !self.is_curable(&status) {
            return Next::Stop(self.stop(status));
        }
        let random = random.clamp(0.0, 1.0);
        let doublings = u32::from(self.failures.max(self.free).saturating_sub(1)).min(20);
        let bound = (self.policy.wait_first * 2u32.pow(doublings)).min(self.policy.wait_max);
        let mut after = status.retry_after().unwrap_or_default() + bound.mul_f64(random);
        if status.reason() == Some(Reason::ShuttingDown) {
            after = after.max(SHUTDOWN_WAIT_MIN.mul_f64((1.0 + random) / 2.0));
        }
        let may = self.may_be_resent() && (is_free || self.tries() < self.policy.attempts_max);
        if !may || now + after >= self.deadline {
            return self.wait_or_stop(status);
        }
        // What never left this process costs no server anything.
        let from_budget = !is_free && !never_left(&status);
        self.last = Some(status);
        Next::Again { after, from_budget }
    }

    /// Returns whether another attempt may begin beside one that has been without an answer for long. It costs
    /// one of the budget.
    pub fn may_begin_another(&self) -> bool {
        !self.only_connection && self.is_safe() && self.tries() < self.policy.attempts_max
    }

    /// Returns whether none of its attempts is in flight.
    pub fn is_idle(&self) -> bool {
        self.attempts.in_flight() == 0
    }

    /// Returns the status that the call ends with, where it ends with this one and not with another attempt.
    pub fn stop(&self, status: Status) -> Status {
        self.attempts.conclude(status)
    }

    fn wait_or_stop(&mut self, status: Status) -> Next {
        if self.is_idle() {
            return Next::Stop(self.stop(status));
        }
        self.last = Some(status);
        Next::Wait
    }

    fn tries(&self) -> u16 {
        self.attempts.begun().saturating_sub(self.free)
    }

    /// Whether the attempt was no try: it asked whether another is still in progress, or waited for its server.
    fn is_free(&self, status: &Status) -> bool {
        let is_leaving = status.reason() == Some(Reason::ShuttingDown);
        status.reason() == Some(Reason::InProgress)
            || self.waits_for_ready
                && status.work() == Work::NotDone
                && (never_left(status) || is_leaving)
    }

    /// Whether sending it twice does no harm.
    fn is_safe(&self) -> bool {
        self.effect.may_be_resent() || self.attempts.is_question()
    }

    fn may_be_resent(&self) -> bool {
        self.is_safe() || self.attempts.work() == Work::NotDone
    }

    /// Whether another attempt may end otherwise.
    fn is_curable(&self, status: &Status) -> bool {
        match self.only_connection {
            true => status.is_of_connection() || status.reason() == Some(Reason::ShuttingDown),
            false => is_transient(status, self.is_safe()),
        }
    }
}

/// Returns whether a status of an attempt is one that another attempt may cure. `is_safe`: sending twice does no harm.
pub(crate) fn is_transient(status: &Status, is_safe: bool) -> bool {
    match status.reason() {
        Some(
            Reason::KeyReused
            | Reason::KeyExpired
            | Reason::InDoubt
            | Reason::ReplyNotRetained
            | Reason::KeyUnknown
            | Reason::TooLarge
            | Reason::ClientClosed
            | Reason::RuntimeShutDown
            // It is refused because there is nowhere else to go, here or behind the server.
            | Reason::CircuitOpen,
        ) => return false,
        Some(Reason::InProgress) => return true,
        _ => {}
    }
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted | Code::Aborted => true,
        // Of one attempt: that of the call is checked by its caller.
        Code::DeadlineExceeded => true,
        // A bug, or a crash: another server may do better, where that is safe.
        Code::Internal | Code::Unknown => is_safe,
        _ => false,
    }
}

fn never_left(status: &Status) -> bool {
    status.is_of_connection() && status.work() == Work::NotDone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Recovery;

    const ONCE: Effect = Effect::Once(Recovery::InDoubt);

    fn retries(effect: Effect) -> (Instant, Retries) {
        let now = Instant::now();
        let deadline = now + Duration::from_secs(60);
        (now, Retries::new(RetryPolicy::default(), effect, deadline))
    }

    impl Retries {
        fn fails(&mut self, now: Instant, status: Status, random: f64) -> Next {
            self.begin();
            self.failed(now, status, random)
        }
    }

    fn is_sent_again(effect: Effect, status: Status) -> bool {
        let (now, mut retries) = retries(effect);
        matches!(retries.fails(now, status, 0.5), Next::Again { .. })
    }

    #[test]
    fn a_question_for_an_outcome_that_is_answered_is_known() {
        let (now, mut retries) = retries(Effect::Unsafe);
        retries.attempts = Attempts::of(&question());
        let lost = Status::deadline_exceeded(Work::OutcomeUnknown);
        assert!(matches!(retries.fails(now, lost, 0.5), Next::Again { .. }));
        let unknown = Status::not_found("nothing is recorded").with_reason(Reason::KeyUnknown);
        let stop = Next::Stop(unknown.clone());
        assert_eq!(retries.fails(now, unknown, 0.5), stop);
    }

    fn question() -> RawRequest {
        let method = crate::schema::MethodInfo {
            service: "service",
            name: "method",
            interface: 1,
            ordinal: 0,
            effect: ONCE,
            timeout: None,
            params: 0,
            results: 0,
            fails: None,
        };
        let mut request = RawRequest::new(&method, bytes::Bytes::new());
        request.outcome_only = true;
        request
    }

    fn of_connection(work: Work) -> Status {
        Status::unavailable("no connection")
            .with_work(work)
            .with_origin(Origin::Connection)
    }

    #[test]
    fn what_never_left_costs_the_budget_nothing() {
        let (now, mut retries) = retries(Effect::Unsafe);
        let again = |from_budget| Next::Again {
            after: Duration::ZERO,
            from_budget,
        };
        let next = retries.fails(now, of_connection(Work::NotDone), 0.0);
        assert_eq!(next, again(false));
        let next = retries.fails(now, Status::unavailable("not now"), 0.0);
        assert_eq!(next, again(true));
    }

    #[test]
    fn a_call_that_waits_for_its_server_is_sent_again_after_lost_connections_only() {
        let (now, retries) = retries(Effect::Idempotent);
        let mut retries = retries.only_connection();
        retries.waits_for_ready = true;
        for _ in 0..100 {
            // Nothing has left: it waits on.
            let next = retries.fails(now, of_connection(Work::NotDone), 0.0);
            assert!(matches!(
                next,
                Next::Again {
                    from_budget: false,
                    ..
                }
            ));
        }
        let mut refused = retries.clone();
        for _ in 0..100 {
            let leaving = Status::unavailable("bye").with_reason(Reason::ShuttingDown);
            let next = refused.fails(now, leaving, 0.0);
            assert!(
                matches!(next, Next::Again { after, .. } if after >= Duration::from_millis(25))
            );
        }
        let by_a_handler = Status::unavailable("the database is away");
        let stop = Next::Stop(by_a_handler.clone());
        assert_eq!(retries.clone().fails(now, by_a_handler, 0.0), stop);
        for _ in 0..3 {
            let next = retries.fails(now, of_connection(Work::OutcomeUnknown), 0.0);
            assert!(matches!(
                next,
                Next::Again {
                    from_budget: true,
                    ..
                }
            ));
        }
        let lost = of_connection(Work::OutcomeUnknown);
        assert_eq!(retries.fails(now, lost.clone(), 0.0), Next::Stop(lost));
    }

    #[test]
    fn an_attempt_beside_another_is_waited_for_and_merged() {
        let (now, mut retries) = retries(ONCE);
        retries.policy.attempts_max = 2;
        retries.begin();
        assert!(retries.may_begin_another());
        retries.begin();
        assert!(!retries.may_begin_another());
        let refused = Status::unavailable("not now");
        assert_eq!(retries.failed(now, refused.clone(), 0.5), Next::Wait);
        let lost = Status::internal("?");
        assert_eq!(
            retries.clone().failed(now, lost.clone(), 0.5),
            Next::Stop(lost)
        );
        assert_eq!(
            retries.failed(now, refused.clone(), 0.5),
            Next::Stop(refused)
        );
    }

    #[test]
    fn a_resend_that_a_breaker_refuses_ends_the_call_with_what_came_before() {
        let (now, mut retries) = retries(Effect::Idempotent);
        let broken = Status::unavailable("broken");
        retries.fails(now, broken.clone(), 0.5);
        let open = Status::unavailable("open")
            .with_reason(Reason::CircuitOpen)
            .with_origin(Origin::Breaker);
        assert_eq!(retries.fails(now, open, 0.5), Next::Stop(broken));
    }

    #[test]
    fn what_was_not_done_is_sent_again_whatever_the_method() {
        for effect in [ONCE, Effect::Idempotent, Effect::Unsafe] {
            assert!(is_sent_again(effect, Status::unavailable("gone")));
            assert!(is_sent_again(effect, Status::resource_exhausted("full")));
            assert!(!is_sent_again(
                effect,
                Status::invalid_argument("never right")
            ));
            assert!(!is_sent_again(effect, Status::permission_denied("no")));
        }
    }

    #[test]
    fn what_may_have_been_done_is_sent_again_only_where_that_is_safe() {
        let unknown = Status::unavailable("lost").with_work(Work::OutcomeUnknown);
        for status in [
            unknown,
            Status::internal("broken"),
            Status::deadline_exceeded(Work::OutcomeUnknown),
        ] {
            assert!(is_sent_again(ONCE, status.clone()));
            assert!(is_sent_again(Effect::Idempotent, status.clone()));
            assert!(!is_sent_again(Effect::Unsafe, status));
        }
    }

    #[test]
    fn what_no_retry_can_cure_is_not_sent_again() {
        for reason in [
            Reason::KeyReused,
            Reason::KeyExpired,
            Reason::InDoubt,
            Reason::ReplyNotRetained,
            Reason::CircuitOpen,
        ] {
            let status = Status::unavailable("").with_reason(reason);
            assert!(!is_sent_again(ONCE, status), "{reason:?}");
        }
    }

    #[test]
    fn waits_double_to_their_limit_and_are_random_from_nothing_up() {
        for (random, expected) in [(1.0, [10, 20, 40]), (0.0, [0, 0, 0])] {
            let (now, mut retries) = retries(ONCE);
            for expected in expected {
                let next = retries.fails(now, Status::unavailable(""), random);
                let after = Duration::from_millis(expected);
                assert_eq!(
                    next,
                    Next::Again {
                        after,
                        from_budget: true
                    }
                );
            }
            let next = retries.fails(now, Status::unavailable(""), random);
            assert!(
                matches!(next, Next::Stop(_)),
                "the fourth attempt is the last"
            );
        }
        let policy = RetryPolicy {
            attempts_max: 100,
            ..Default::default()
        };
        let now = Instant::now();
        let mut retries = Retries::new(policy, ONCE, now + Duration::from_secs(60));
        let waits = (0..90).map(|_| retries.fails(now, Status::unavailable(""), 1.0));
        let longest = Next::Again {
            after: policy.wait_max,
            from_budget: true,
        };
        assert_eq!(waits.last(), Some(longest));
    }

    #[test]
    fn a_server_that_says_when_to_come_back_is_obeyed() {
        let (now, mut retries) = retries(ONCE);
        let wait = Duration::from_millis(500);
        let status = Status::resource_exhausted("busy").with_retry_after(wait);
        match retries.fails(now, status, 0.5) {
            Next::Again { after, .. } => assert!(after >= wait && after <= wait * 2),
            next => panic!("{next:?}"),
        }
        let too_long = Status::unavailable("busy").with_retry_after(Duration::from_secs(100));
        assert!(matches!(retries.fails(now, too_long, 0.5), Next::Stop(_)));
    }

    #[test]
    fn a_call_in_progress_is_asked_for_without_end_and_without_budget() {
        let (now, mut retries) = retries(ONCE);
        for _ in 0..100 {
            let status = Status::unavailable("still").with_reason(Reason::InProgress);
            let next = retries.fails(now, status, 1.0);
            assert!(matches!(
                next,
                Next::Again {
                    from_budget: false,
                    ..
                }
            ));
        }
    }

    #[test]
    fn one_unknown_attempt_makes_the_outcome_unknown() {
        let (now, mut retries) = retries(ONCE);
        retries.fails(now, Status::internal("?"), 0.5);
        let next = retries.fails(now, Status::permission_denied("not any more"), 0.5);
        let Next::Stop(status) = next else {
            panic!("{next:?}")
        };
        assert_eq!(
            (status.code(), status.work()),
            (Code::PermissionDenied, Work::OutcomeUnknown)
        );
    }
}
