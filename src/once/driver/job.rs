//! One attempt on its way: claims, runs its handler, records. It does not wait for another's outcome;
//! that is its caller's to do, who may give up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use tokio::time::{Instant, interval, timeout};

use super::leases::Renewed;
use super::shared::{Claiming, Running, Shared};
use crate::call::deadline::within;
use crate::call::raw::Transaction;
use crate::call::{RawRequest, ReplyFuture};
use crate::once::attempt::{Action, Attempt, Ended, Input};
use crate::once::{AtOnce, Change, Claimed, Key, Store};
use crate::schema::Recovery;
use crate::wire::Status;

/// An attempt on its way, with what it may still have to run.
pub struct Job<S: Store> {
    pub shared: Arc<Shared<S>>,
    pub key: Key,
    pub attempt: Attempt,
    pub work: Work,
    pub transaction: Option<Arc<S::Transaction>>,
    /// Of the caller that it runs for, which calls of its handler inherit.
    pub deadline: Option<Instant>,
    /// Where its handler has begun to wait.
    pub running: Option<Running<S>>,
    /// Until the store has said whether it may run.
    pub claiming: Option<Claiming<S>>,
}

/// What an attempt runs: called where it is, or kept until the store has answered.
pub trait Handler {
    /// Runs it.
    fn call(self, request: RawRequest) -> ReplyFuture;

    /// To run it later.
    fn keep(self) -> Kept;
}

type Kept = Box<dyn FnOnce(RawRequest) -> ReplyFuture + Send>;

impl<F: FnOnce(RawRequest) -> ReplyFuture + Send + 'static> Handler for F {
    fn call(self, request: RawRequest) -> ReplyFuture {
        self(request)
    }

    fn keep(self) -> Kept {
        Box::new(self)
    }
}

/// How far its work is.
#[derive(Default)]
pub enum Work {
    /// Its handler, if it comes to that.
    Handler { request: RawRequest, handler: Kept },
    /// A handler that was begun, and was not ready at once.
    Begun(ReplyFuture),
    /// Nothing yet, or nothing any more: its handler has ended or panicked.
    #[default]
    None,
}

impl<S: Store> Job<S> {
    /// Has the store apply what it can at once. Returns what it would have to wait for, or to run.
    pub fn go_on_until_run(&mut self, mut action: Action) -> Action {
        while let Action::Apply(change) = action {
            if let Some(verdict) = self.shared.runs_here(&self.key, &change) {
                action = self.attempt.step(Input::Verdict(verdict));
                continue;
            }
            action = match self.shared.store.apply_now(&self.key, change) {
                AtOnce::Applied(verdict) => {
                    self.shared.note(&self.key, &verdict);
                    self.attempt.step(Input::Verdict(verdict))
                }
                AtOnce::NotApplied(change) => return Action::Apply(change),
            };
        }
        action
    }

    /// Runs the handler as far as it comes without waiting, and has the store apply what it can then.
    pub fn run_now(&mut self, request: RawRequest, handler: impl Handler) -> Action {
        // The waker of this first poll is lost. Whoever polls next asks again.
        let mut nobody = Context::from_waker(Waker::noop());
        match self.begin(request, |request| handler.call(request), &mut nobody) {
            Poll::Pending => {
                self.running = Some(Running::new(&self.shared));
                Action::Run
            }
            Poll::Ready(ended) => {
                let input = self.ran(ended);
                let action = self.attempt.step(input);
                self.go_on_until_run(action)
            }
        }
    }

    /// What an attempt does once it has claimed, or may have: until it is over, or waits for another.
    pub async fn go_on(mut self, mut action: Action) -> (Self, Action) {
        let mut is_gone = false;
        loop {
            let input = match action {
                // What the store may have begun although it did not say so is given back beside: nobody waits for it.
                Action::Apply(Change::Release { epoch }) if is_gone => {
                    self.shared.releases.add(self.key.clone(), epoch);
                    Input::StoreFailed
                }
                Action::Apply(change) => {
                    let input = self.shared.apply(&self.key, change).await;
                    self.claiming = None;
                    is_gone = matches!(input, Input::StoreFailed);
                    let release = self.attempt.release();
                    if let (Input::StoreFailed | Input::NotApplied, Some(epoch)) = (&input, release)
                    {
                        self.shared.releases.add(self.key.clone(), epoch);
                    }
                    input
                }
                Action::Run if self.running.is_none() && self.shared.is_full() => {
                    self.shared.count_overload();
                    Input::Ran(Err(super::too_many()))
                }
                Action::Run => {
                    let shared = &self.shared;
                    self.running.get_or_insert_with(|| Running::new(shared));
                    let ended = self.run().await;
                    self.ran(ended)
                }
                other => return (self, other),
            };
            action = self.attempt.step(input);
        }
    }

    async fn run(&mut self) -> Ended {
        let now = std::future::poll_fn(|cx| Poll::Ready(self.poll_handler(cx))).await;
        if let Poll::Ready(ended) = now {
            return ended;
        }
        let Some(claim) = self.attempt.claim() else {
            return Err(Status::internal("it runs without a claim"));
        };
        let (_renewed, mut superseded) = Renewed::new(&self.shared, &self.key, claim);
        let run_max = self.shared.settings.run_max;
        let shared = Arc::clone(&self.shared);
        let mut chores = interval(shared.renew_every());
        let handler = std::future::poll_fn(|cx| self.poll_handler(cx));
        let handler = timeout(run_max, handler);
        tokio::pin!(handler);
        loop {
            tokio::select! {
                biased;
                ended = &mut handler => {
                    return ended.unwrap_or_else(|_| Err(Status::deadline_exceeded(crate::wire::Work::OutcomeUnknown)));
                }
                _ = &mut superseded => return Err(Status::new(
                    crate::wire::Code::Aborted,
                    crate::wire::Work::OutcomeUnknown,
                    "another attempt has taken over",
                )
                .with_reason(crate::wire::Reason::Superseded)),
                _ = chores.tick() => shared.ensure_chores(),
            }
        }
    }

    fn ran(&mut self, ended: Ended) -> Input {
        self.work = Work::None;
        let transaction = self.transaction.take();
        match transaction.and_then(|transaction| S::committed(&transaction)) {
            // Whatever the handler did afterwards.
            Some(reply) => Input::Committed(Ok(reply)),
            None => Input::Ran(ended),
        }
    }

    fn poll_handler(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if let Work::Handler { .. } = self.work
            && let Work::Handler { request, handler } = std::mem::take(&mut self.work)
        {
            return self.begin(request, handler, cx);
        }
        let Work::Begun(handler) = &mut self.work else {
            return Poll::Ready(Err(panicked()));
        };
        let poll = || within(self.deadline, || handler.as_mut().poll(cx));
        catch_unwind(AssertUnwindSafe(poll)).unwrap_or_else(|_| Poll::Ready(Err(panicked())))
    }

    /// Calls the handler and polls it for the first time.
    fn begin(
        &mut self,
        mut request: RawRequest,
        handler: impl FnOnce(RawRequest) -> ReplyFuture,
        cx: &mut Context<'_>,
    ) -> Poll<Ended> {
        self.shared.counters.ran.fetch_add(1, Ordering::Relaxed);
        if let Some(claim) = self.attempt.claim()
            && claim.recovery == Recovery::Atomic
        {
            let terms = &self.shared.settings.terms;
            let claimed = Claimed {
                key: self.key.clone(),
                epoch: claim.epoch,
                retention: terms.retention,
                reply_bytes_max: terms.reply_bytes_max,
            };
            if let Some(transaction) = self.shared.store.transaction(claimed) {
                let transaction = Arc::new(transaction);
                self.transaction = Some(Arc::clone(&transaction));
                request.transaction = Some(Transaction(transaction));
            }
        }
        let begin = || {
            let mut begun = handler(request);
            let poll = begun.as_mut().poll(cx);
            (poll, begun)
        };
        match catch_unwind(AssertUnwindSafe(|| within(self.deadline, begin))) {
            Ok((Poll::Ready(ended), _)) => Poll::Ready(ended),
            Ok((Poll::Pending, begun)) => {
                self.work = Work::Begun(begun);
                Poll::Pending
            }
            Err(_) => Poll::Ready(Err(panicked())),
        }
    }
}

fn panicked() -> Status {
    Status::internal("the handler panicked")
}
