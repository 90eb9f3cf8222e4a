//! Sending again: when, after how long, and when no longer.
//!
//! What decides is [`Retries`], a state machine without clock or randomness; [`Retry`] drives it.
//! The request ID stays over all attempts; the attempt number counts up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tower_layer::Layer;
use tower_service::Service;

use super::budget::{Budget, BudgetPolicy};
use crate::call::deadline::inherit;
use crate::call::{CallService, RawReply, RawRequest, ReplyFuture, TIMEOUT_DEFAULT};
use crate::schema::Effect;
use crate::wire::{Code, Reason, Status, Work};

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

/// The retries of one call.
#[derive(Clone, Debug)]
pub struct Retries {
    policy: RetryPolicy,
    effect: Effect,
    deadline: Instant,
    attempts: u16,
    /// An attempt may have been done, whatever a later one says.
    is_unknown: bool,
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
    /// That is how the call ends.
    Stop(Status),
}

impl Retries {
    /// Before the first attempt.
    pub fn new(policy: RetryPolicy, effect: Effect, deadline: Instant) -> Self {
        Self {
            policy,
            effect,
            deadline,
            attempts: 0,
            is_unknown: false,
        }
    }

    /// After an attempt failed with `status`. `random` is from 0 to 1.
    ///
    /// The wait is random up to a bound that doubles: "full jitter"
    /// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>), so that callers
    /// who failed together do not come back together. A server that says when to come back is obeyed,
    /// with jitter on top.
    pub fn failed(&mut self, now: Instant, status: Status, random: f64) -> Next {
        self.attempts = self.attempts.saturating_add(1);
        self.is_unknown |= status.work() == Work::OutcomeUnknown;
        let in_progress = status.reason() == Some(Reason::InProgress);
        let may = self.may_be_sent_again(&status)
            // Asking again is not trying again: nothing failed.
            && (in_progress || self.attempts < self.policy.attempts_max);
        let doublings = u32::from(self.attempts - 1).min(20);
        let bound = (self.policy.wait_first * 2u32.pow(doublings)).min(self.policy.wait_max);
        let after =
            status.retry_after().unwrap_or_default() + bound.mul_f64(random.clamp(0.0, 1.0));
        if !may || now + after >= self.deadline {
            return Next::Stop(self.stop(status));
        }
        let from_budget = !in_progress;
        Next::Again { after, from_budget }
    }

    /// How the call ends with this status, and not with another attempt.
    pub fn stop(&self, status: Status) -> Status {
        match status.work() {
            // Only who asks for an outcome is told this, and asking twice does nothing.
            Work::NotDone if status.reason() == Some(Reason::KeyUnknown) => status,
            // An earlier attempt may have been done, though this one was not.
            Work::NotDone if self.is_unknown => status.with_work(Work::OutcomeUnknown),
            _ => status,
        }
    }

    fn may_be_sent_again(&self, status: &Status) -> bool {
        match status.reason() {
            Some(
                Reason::KeyReused
                | Reason::KeyExpired
                | Reason::InDoubt
                | Reason::ReplyNotRetained
                | Reason::KeyUnknown
                // It is refused because there is nowhere else to go, here or behind the server.
                | Reason::CircuitOpen,
            ) => return false,
            Some(Reason::InProgress) => return true,
            _ => {}
        }
        let is_transient = match status.code() {
            Code::Unavailable | Code::ResourceExhausted | Code::Aborted => true,
            // Of one attempt: that of the call is checked by its caller.
            Code::DeadlineExceeded => true,
            // A bug, or a crash: another server may do better, where that is safe.
            Code::Internal | Code::Unknown => self.effect.may_be_resent(),
            _ => false,
        };
        is_transient && (status.work() == Work::NotDone || self.effect.may_be_resent())
    }
}

/// Puts retries around a service. All clones of what it makes share one budget.
#[derive(Clone, Debug)]
pub struct RetryLayer {
    policy: RetryPolicy,
    budget: SharedBudget,
}

/// One budget for all calls of a client, and for its hedges.
#[derive(Clone, Debug)]
pub struct SharedBudget(Arc<Spending>);

#[derive(Debug)]
struct Spending {
    /// None where everything may be sent again.
    budget: Option<Mutex<Budget>>,
    granted: AtomicU64,
    refused: AtomicU64,
}

impl SharedBudget {
    /// A second's worth; `None` for one without bounds.
    pub fn new(policy: impl Into<Option<BudgetPolicy>>) -> Self {
        let budget = policy.into().map(|policy| Mutex::new(Budget::new(policy)));
        Self(Arc::new(Spending {
            budget,
            granted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// How many attempts it has paid for.
    pub fn granted(&self) -> u64 {
        self.0.granted.load(Ordering::Relaxed)
    }

    /// How many it has not.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    pub(super) fn deposit(&self) {
        if let Some(mut budget) = self.lock() {
            budget.deposit();
        }
    }

    pub(super) fn withdraw(&self) -> bool {
        let may = self
            .lock()
            .is_none_or(|mut budget| budget.withdraw(Instant::now()));
        let counter = if may {
            &self.0.granted
        } else {
            &self.0.refused
        };
        counter.fetch_add(1, Ordering::Relaxed);
        may
    }

    fn lock(&self) -> Option<std::sync::MutexGuard<'_, Budget>> {
        let budget = self.0.budget.as_ref()?;
        Some(budget.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for SharedBudget {
    fn default() -> Self {
        Self::new(BudgetPolicy::default())
    }
}

impl RetryLayer {
    /// With a budget that others may share.
    pub fn new(policy: RetryPolicy, budget: SharedBudget) -> Self {
        Self { policy, budget }
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service whose failed calls are sent again, where that is safe and helps.
#[derive(Clone, Debug)]
pub struct Retry<S> {
    inner: S,
    layer: RetryLayer,
}

impl<S: CallService + 'static> Service<RawRequest> for Retry<S> {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Each attempt waits for itself: another endpoint may be ready by then.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: RawRequest) -> ReplyFuture {
        let own = request
            .deadline
            .unwrap_or_else(|| Instant::now() + TIMEOUT_DEFAULT);
        let deadline = inherit(own);
        request.deadline = Some(deadline);
        let layer = self.layer.clone();
        let mut inner = self.inner.clone();
        request.tried = Some(Arc::new(AtomicU64::new(0)));
        Box::pin(async move {
            layer.budget.deposit();
            let mut retries = Retries::new(layer.policy, request.effect, deadline);
            loop {
                let status = match call_once(&mut inner, request.clone()).await {
                    Ok(reply) => return Ok(reply),
                    Err(status) => status,
                };
                let (after, from_budget) =
                    match retries.failed(Instant::now(), status.clone(), fastrand::f64()) {
                        Next::Again { after, from_budget } => (after, from_budget),
                        Next::Stop(status) => return Err(status),
                    };
                if from_budget && !layer.budget.withdraw() {
                    return Err(retries.stop(status));
                }
                sleep(after).await;
                request.attempt = request.attempt.saturating_add(1);
            }
        })
    }
}

pub(super) async fn call_once<S: CallService>(
    service: &mut S,
    request: RawRequest,
) -> Result<RawReply, Status> {
    let status = |error: S::Error| Status::from_error(error.into());
    std::future::poll_fn(|cx| service.poll_ready(cx))
        .await
        .map_err(status)?;
    service.call(request).await.map_err(status)
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

    fn is_sent_again(effect: Effect, status: Status) -> bool {
        let (now, mut retries) = retries(effect);
        matches!(retries.failed(now, status, 0.5), Next::Again { .. })
    }

    #[test]
    fn who_asks_for_an_outcome_and_loses_an_answer_is_not_told_that_it_is_unknown() {
        let (now, mut retries) = retries(ONCE);
        let lost = Status::deadline_exceeded(Work::OutcomeUnknown);
        assert!(matches!(retries.failed(now, lost, 0.5), Next::Again { .. }));
        let unknown = Status::not_found("nothing is recorded").with_reason(Reason::KeyUnknown);
        let stop = Next::Stop(unknown.clone());
        assert_eq!(retries.failed(now, unknown, 0.5), stop);
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
                let next = retries.failed(now, Status::unavailable(""), random);
                let after = Duration::from_millis(expected);
                assert_eq!(
                    next,
                    Next::Again {
                        after,
                        from_budget: true
                    }
                );
            }
            let next = retries.failed(now, Status::unavailable(""), random);
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
        let waits = (0..90).map(|_| retries.failed(now, Status::unavailable(""), 1.0));
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
        match retries.failed(now, status, 0.5) {
            Next::Again { after, .. } => assert!(after >= wait && after <= wait * 2),
            Next::Stop(status) => panic!("{status}"),
        }
        let too_long = Status::unavailable("busy").with_retry_after(Duration::from_secs(100));
        assert!(matches!(retries.failed(now, too_long, 0.5), Next::Stop(_)));
    }

    #[test]
    fn a_call_in_progress_is_asked_for_without_end_and_without_budget() {
        let (now, mut retries) = retries(ONCE);
        for _ in 0..100 {
            let status = Status::unavailable("still").with_reason(Reason::InProgress);
            let next = retries.failed(now, status, 1.0);
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
        retries.failed(now, Status::internal("?"), 0.5);
        let next = retries.failed(now, Status::permission_denied("not any more"), 0.5);
        let Next::Stop(status) = next else {
            panic!("{next:?}")
        };
        assert_eq!(
            (status.code(), status.work()),
            (Code::PermissionDenied, Work::OutcomeUnknown)
        );
    }
}
