//! Drives attempts with tokio: asks the store, runs the handler, and keeps leases alive.
//!
//! What an attempt does is decided in [`attempt`](super::attempt), what becomes of a record in
//! [`record`](super::record).
//!
//! From its claim to its recorded outcome, an attempt does not depend on its caller: a caller that
//! gives up leaves it running, in a task that the [`Once`] owns. `job` is that part of it, `shared` what
//! all of them use, `leases` what keeps them alive.

mod job;
mod leases;
mod shared;

use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::attempt::{Action, Attempt, Ended, Input, needs_an_id};
use super::{
    Change, Claim, Fingerprint, Key, OnceBuilder, OnceCounters, OnceError, Resolution, Store,
    StoreError, Terms, Verdict,
};
use crate::call::{RawRequest, ReplyFuture};
use crate::schema::{Effect, MethodInfo, Recovery};
use crate::wire::Status;
pub(super) use job::Handler;
use job::{Job, Work};
pub(super) use shared::Settings;
use shared::{Detached, Shared};

/// How often one who waits for the last attempt to end looks.
const DRAIN_TICK: Duration = Duration::from_millis(10);

/// Keeps the outcomes of requests in a store, so that a request which is sent twice is done once.
///
/// Cheap to clone; clones share everything. Dropping the last one ends the attempts that still run.
/// Outside a server, [`run`](Self::run) does for a job or an HTTP request what `$once` does for a call.
pub struct Once<S: Store = super::MemoryStore>(Arc<Owner<S>>);

impl<S: Store> std::fmt::Debug for Once<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Once").field(self.terms()).finish()
    }
}

impl<S: Store> Clone for Once<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
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

/// Owns the tasks; these know only what is shared, so that nothing keeps itself alive.
struct Owner<S: Store> {
    shared: Arc<Shared<S>>,
    jobs: Mutex<JoinSet<()>>,
    chores: OnceLock<tokio::task::AbortHandle>,
}

impl<S: Store> Once<S> {
    pub(super) fn new(store: S, settings: Settings) -> Self {
        Self(Arc::new(Owner {
            shared: Arc::new(Shared::new(store, settings)),
            jobs: Mutex::default(),
            chores: OnceLock::new(),
        }))
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.0.shared.store
    }

    /// The terms that outcomes are kept under.
    pub fn terms(&self) -> &Terms {
        &self.0.shared.settings.terms
    }

    /// What it has counted.
    pub fn counters(&self) -> OnceCounters {
        self.0.shared.counted()
    }

    /// Up to `max` keys that are in doubt, for a person or a program to look into.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn in_doubt(&self, max: usize) -> Result<Vec<Key>, StoreError> {
        self.store().in_doubt(max).await
    }

    /// Says what became of a request that is in doubt. [`Verdict::Applied`] if it was in doubt;
    /// otherwise what is recorded of it, which stays as it is.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn resolve(&self, key: &Key, resolution: Resolution) -> Result<Verdict, StoreError> {
        let epoch = None;
        let change = Change::Resolve { epoch, resolution };
        self.store().apply(key, change).await
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
        let shared = &self.0.shared;
        let (attempt, action) = Attempt::look(shared.settings.terms, shared.age(&key));
        let job = Job {
            shared: Arc::clone(shared),
            key,
            attempt,
            work: Work::None,
            transaction: None,
            deadline,
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
        let shared = &self.0.shared;
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
        };
        let mut action = job.go_on_until_run(action);
        if matches!(action, Action::Run) && shared.is_full() {
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
        self.start_chores();
        let mut has_waited = false;
        loop {
            action = match action {
                Action::Answer(ended) => {
                    self.0.shared.count(&ended, has_waited);
                    return ended;
                }
                Action::Wait { until } => {
                    has_waited = true;
                    let waits = job.shared.wait(&job.key, until);
                    let waited = match job.deadline {
                        Some(deadline) => timeout_at(deadline, waits).await,
                        None => {
                            waits.await;
                            Ok(())
                        }
                    };
                    if waited.is_err() {
                        return Err(Status::deadline_exceeded(crate::wire::Work::OutcomeUnknown));
                    }
                    job.attempt.step(Input::Changed)
                }
                Action::AskAboutDoubt { epoch, status } => {
                    if !job.shared.ask_about_doubt(&job.key, epoch).await {
                        return Err(status);
                    }
                    job.attempt.step(Input::Changed)
                }
                Action::Apply(Change::Begin(_) | Change::Look(_)) if job.shared.is_full() => {
                    return Err(too_many());
                }
                Action::Apply(change @ Change::Release { .. }) => {
                    // Its answer is the same, whatever the store says to this.
                    let (shared, key) = (Arc::clone(&job.shared), job.key.clone());
                    let detached = Detached::new(&shared);
                    self.spawn(async move {
                        let _detached = detached;
                        shared.apply(&key, change).await;
                    });
                    job.attempt.step(Input::StoreFailed)
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
        let detached = Detached::new(&self.0.shared);
        self.spawn(async move {
            let _detached = detached;
            // Where the caller has gone, the outcome is in the store.
            let _ = sender.send(job.await);
        });
        receiver
            .await
            .map_err(|_| Status::internal("the attempt was ended"))
    }

    fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let mut jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        while jobs.try_join_next().is_some() {}
        jobs.spawn(job);
    }

    /// Whether no job runs. Ends them all where the time is up.
    fn is_idle(&self, is_time_up: bool) -> bool {
        let mut jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        while jobs.try_join_next().is_some() {}
        if is_time_up {
            jobs.abort_all();
        }
        is_time_up || jobs.is_empty()
    }

    fn start_chores(&self) {
        self.0.chores.get_or_init(|| {
            let shared = Arc::downgrade(&self.0.shared);
            let every = self.terms().lease / 3;
            tokio::spawn(leases::chores(shared, every)).abort_handle()
        });
    }

    /// Waits until no attempt runs, and ends those that do when the time is up.
    pub(crate) async fn drain(&self, until: Instant) {
        while !self.is_idle(Instant::now() >= until) {
            sleep(DRAIN_TICK).await;
        }
    }
}

impl<S: Store> Drop for Owner<S> {
    fn drop(&mut self) {
        if let Some(chores) = self.chores.get() {
            chores.abort();
        }
    }
}

fn too_many() -> Status {
    Status::resource_exhausted("too many $once requests run at once")
}
