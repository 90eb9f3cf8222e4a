//! Drives attempts with tokio: asks the store, runs the handler, and keeps leases alive.
//!
//! What an attempt does is decided in [`attempt`](super::attempt), what becomes of a record in
//! [`record`](super::record).
//!
//! From its claim to its recorded outcome, an attempt does not depend on its caller: a caller that
//! gives up leaves it running, in a task that the [`Once`] owns. `job` is that part of it, `shared` what
//! all of them use, `leases` what keeps them alive, `chores` what is done for the store beside.

mod chores;
mod job;
mod leases;
mod shared;

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::attempt::{Action, Attempt, Ended, Input, needs_an_id};
use super::{
    Change, Claim, Fingerprint, Key, OnceBuilder, OnceCounters, OnceError, PrincipalUsage,
    Resolution, Store, StoreError, Terms, Verdict,
};
use crate::call::{RawRequest, ReplyFuture};
use crate::schema::{Effect, MethodInfo, Recovery};
use crate::wire::Status;
pub(super) use job::Handler;
use job::{Job, Work};
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(super) use shared::Backoff;
pub(super) use shared::Settings;
use shared::{Claiming, Shared};

/// How often one who waits for the last attempt to end looks.
const DRAIN_TICK: Duration = Duration::from_millis(10);

/// Keeps the outcomes of requests in a store, so that a request which is sent twice is done once.
///
/// Cheap to clone; clones share everything. Dropping the last one ends the attempts that still run.
/// Outside a server, [`run`](Self::run) does for a job or an HTTP request what `$once` does for a call.
///
/// Several servers may have clones of one: each waits for its own attempts when it shuts down, and ends no others.
pub struct Once<S: Store = super::MemoryStore> {
    owner: Arc<Owner<S>>,
    jobs: Arc<Jobs>,
}

impl<S: Store> std::fmt::Debug for Once<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Once").field(self.terms()).finish()
    }
}

impl<S: Store> Clone for Once<S> {
    fn clone(&self) -> Self {
        Self {
            owner: Arc::clone(&self.owner),
            jobs: Arc::clone(&self.jobs),
        }
    }
}

impl Once<super::MemoryStore> {
    /// To say more than the store.
    pub fn builder() -> OnceBuilder {
        OnceBuilder::default()
    }
}

/// Finds out, for a request in doubt, what became of it; `None` if that cannot be told now.
pub type Resolver =
    Arc<dyn Fn(Key) -> Pin<Box<dyn Future<Output = Option<Resolution>> + Send>> + Send + Sync>;

/// Ends the tasks that work for the store; these know only what is shared.
struct Owner<S: Store> {
    shared: Arc<Shared<S>>,
}

/// Attempts that go on in tasks of their own.
#[derive(Default)]
struct Jobs(Mutex<JoinSet<()>>);

impl Jobs {
    fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while jobs.try_join_next().is_some() {}
        jobs.spawn(job);
    }

    /// Whether no job runs. Ends them all where the time is up.
    fn is_idle(&self, is_time_up: bool) -> bool {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while jobs.try_join_next().is_some() {}
        if is_time_up {
            jobs.abort_all();
        }
        is_time_up || jobs.is_empty()
    }
}

impl<S: Store> Once<S> {
    pub(super) fn new(store: S, settings: Settings) -> Self {
        let shared = Arc::new(Shared::new(store, settings));
        Self {
            owner: Arc::new(Owner { shared }),
            jobs: Arc::default(),
        }
    }

    /// The same store and limits, and attempts of its own to wait for: for another server.
    pub(crate) fn with_own_jobs(&self) -> Self {
        Self {
            owner: Arc::clone(&self.owner),
            jobs: Arc::default(),
        }
    }

    fn shared(&self) -> &Arc<Shared<S>> {
        &self.owner.shared
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.shared().store
    }

    /// The terms that outcomes are kept under.
    pub fn terms(&self) -> &Terms {
        &self.shared().settings.terms
    }

    /// What it has counted.
    pub fn counters(&self) -> OnceCounters {
        self.shared().counted()
    }

    /// What a full store cost each principal: outcomes that were forgotten before their time, requests that were refused.
    pub fn usage_by_principal(&self) -> Vec<PrincipalUsage> {
        self.shared().usage_by_principal()
    }

    /// Up to `max` keys that are in doubt, for a person or a program to look into.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn in_doubt(&self, max: usize) -> Result<Vec<Key>, StoreError> {
        // A clock that jumped may make an attempt look dead that runs here.
        let shared = self.shared();
        let running = shared.leases.lock().len();
        let mut keys = self.store().in_doubt(max.saturating_add(running)).await?;
        let leases = shared.leases.lock();
        keys.retain(|key| leases.fingerprint(key).is_none());
        keys.truncate(max);
        Ok(keys)
    }

    /// Says what became of a request that is in doubt. [`Verdict::Applied`] if it was in doubt;
    /// otherwise what is recorded of it, which stays as it is.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn resolve(&self, key: &Key, resolution: Resolution) -> Result<Verdict, StoreError> {
        let epoch = None;
        let change = Change::Resolve { epoch, resolution };
        match self.shared().runs_here(key, &change) {
            Some(in_flight) => Ok(in_flight),
            None => self.store().apply(key, change).await,
        }
    }

    /// Whether a method may be kept on these terms.
    pub(super) fn check(&self, method: &MethodInfo) -> Result<(), OnceError> {
        let Effect::Once(recovery) = method.effect else {
            return Ok(());
        };
        if recovery == Recovery::Atomic && !S::TRANSACTIONS {
            return Err(OnceError::NoTransactions {
                service: method.service,
                method: method.name,
            });
        }
        let horizon = method.timeout.unwrap_or_default();
        OnceError::check_retention(self.terms().retention, horizon)
    }

    /// Answers a request of a `$once` method: runs `handler` if nobody has, and otherwise gives what came of it.
    ///
    /// With a store that answers at once and a handler that is ready at once, all is done here.
    pub(super) fn answer(
        &self,
        principal: &str,
        request: RawRequest,
        recovery: Recovery,
        handler: impl Handler,
    ) -> ReplyFuture {
        let answer = |ended: Ended| -> ReplyFuture { Box::pin(std::future::ready(ended)) };
        if let Some(status) = needs_an_id(&request) {
            return answer(Err(status));
        }
        let key = Key::of_call(principal, request.interface, request.method, &request.id);
        let key = match request.address {
            Some(_) => key.with_address(request.address),
            None => key,
        };
        if request.outcome_only {
            return Box::pin(self.clone().outcome(key, request.deadline));
        }
        if request.deadline.is_some_and(|at| at <= Instant::now()) {
            return answer(Err(Status::deadline_exceeded(crate::wire::Work::NotDone)));
        }
        let fingerprint = match Fingerprint::of_parameters(&request.body, &request.limits) {
            Ok(fingerprint) => fingerprint,
            Err(error) => {
                return answer(Err(Status::of_request(error, crate::wire::Work::NotDone)));
            }
        };
        self.attempt(key, fingerprint, recovery, request, handler)
    }

    /// How a request ended, without running it. Waits for one that runs until `deadline`, unless duplicates are refused.
    pub(super) async fn outcome(self, key: Key, deadline: Option<Instant>) -> Ended {
        let shared = self.shared();
        let (attempt, action) = Attempt::look(shared.settings.terms, shared.age(&key));
        let job = Job {
            shared: Arc::clone(shared),
            key,
            attempt,
            work: Work::None,
            transaction: None,
            deadline,
            running: None,
            claiming: None,
        };
        self.follow(job, action).await
    }

    pub(super) fn attempt(
        &self,
        key: Key,
        fingerprint: Fingerprint,
        recovery: Recovery,
        request: RawRequest,
        handler: impl Handler,
    ) -> ReplyFuture {
        let shared = self.shared();
        let terms = shared.settings.terms;
        let deadline = request.deadline;
        let claim = Claim {
            epoch: shared.next_epoch(),
            fingerprint,
            recovery,
            lease: terms.lease,
            age: shared.age(&key),
        };
        let (attempt, action) = Attempt::new(terms, claim);
        let mut job = Job {
            shared: Arc::clone(shared),
            key,
            attempt,
            work: Work::None,
            transaction: None,
            deadline,
            running: None,
            claiming: None,
        };
        let mut action = job.go_on_until_run(action);
        if matches!(action, Action::Run) && shared.is_full() {
            shared.count_overload();
            // The claim is given back before anything is done.
            action = job.attempt.step(Input::Ran(Err(too_many())));
            action = job.go_on_until_run(action);
        } else if let Action::Run = action {
            action = job.run_now(request, handler);
        } else {
            let handler = handler.keep();
            job.work = Work::Handler { request, handler };
        }
        match action {
            Action::Answer(ended) => {
                shared.count(&ended, false);
                Box::pin(std::future::ready(ended))
            }
            action => Box::pin(self.clone().follow(job, action)),
        }
    }

    /// What an attempt does in its caller's task, and may be dropped with it: waiting.
    async fn follow(self, mut job: Job<S>, mut action: Action) -> Ended {
        self.shared().ensure_chores();
        let mut looks = 0;
        loop {
            action = match action {
                Action::Answer(ended) => {
                    self.shared().count(&ended, looks > 0);
                    return ended;
                }
                Action::Wait { until } => {
                    let waited = by(job.deadline, job.shared.wait(&job.key, until, looks)).await;
                    if waited.is_none() {
                        return Err(Status::deadline_exceeded(crate::wire::Work::OutcomeUnknown));
                    }
                    looks += 1;
                    job.attempt.step(Input::Changed)
                }
                Action::AskAboutDoubt { epoch, status } => {
                    if !job.shared.ask_about_doubt(&job.key, epoch).await {
                        return Err(status);
                    }
                    job.attempt.step(Input::Changed)
                }
                // A question needs no place: it does nothing that would have to be brought to an end.
                Action::Apply(change @ Change::Look(_)) => {
                    let looked = by(job.deadline, job.shared.apply(&job.key, change)).await;
                    let Some(input) = looked else {
                        return Err(Status::deadline_exceeded(crate::wire::Work::OutcomeUnknown));
                    };
                    job.attempt.step(input)
                }
                Action::Apply(change @ Change::Begin(_)) => {
                    if job.shared.is_full() {
                        job.shared.count_overload();
                        return Err(too_many());
                    }
                    if job.shared.is_full_of_claims() {
                        return Err(store_is_slow());
                    }
                    job.claiming = Some(Claiming::new(&job.shared));
                    let next;
                    (job, next) = self.uncancelled(job.go_on(Action::Apply(change))).await?;
                    next
                }
                action @ (Action::Apply(_) | Action::Run) => {
                    let next;
                    (job, next) = self.uncancelled(job.go_on(action)).await?;
                    next
                }
            };
        }
    }

    /// Runs a job to its end, whatever becomes of the caller: here while it does not have to wait,
    /// and otherwise in a task of its own.
    async fn uncancelled<T: Send + 'static>(
        &self,
        job: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Status> {
        let mut job = Box::pin(job);
        let first = std::future::poll_fn(|cx| Poll::Ready(job.as_mut().poll(cx))).await;
        if let Poll::Ready(done) = first {
            return Ok(done);
        }
        let (sender, receiver) = oneshot::channel();
        self.jobs.spawn(async move {
            // Where the caller has gone, the outcome is in the store.
            let _ = sender.send(job.await);
        });
        receiver
            .await
            .map_err(|_| Status::internal("the attempt was ended"))
    }

    /// Waits until no attempt runs, and ends those that do when the time is up.
    pub(crate) async fn drain(&self, until: Instant) {
        while !self.jobs.is_idle(Instant::now() >= until) {
            sleep(DRAIN_TICK).await;
        }
    }
}

impl<S: Store> Drop for Owner<S> {
    fn drop(&mut self) {
        self.shared.end_chores();
    }
}

/// What comes in time, or nothing.
async fn by<T>(deadline: Option<Instant>, what: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, what).await.ok(),
        None => Some(what.await),
    }
}

fn too_many() -> Status {
    Status::resource_exhausted("too many $once requests run at once")
}

fn store_is_slow() -> Status {
    Status::unavailable("too many requests wait for the store of outcomes, so nothing was begun")
        .with_reason(crate::wire::Reason::StoreUnavailable)
}
