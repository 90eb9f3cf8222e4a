//! Drives attempts with tokio: asks the store, runs the handler, and keeps leases alive.
//!
//! What an attempt does is decided in [`attempt`](super::attempt), what becomes of a record in
//! [`record`](super::record).
//!
//! From its claim to its recorded outcome, an attempt does not depend on its caller: a caller that
//! gives up leaves it running, in a task that the [`Once`] owns.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::attempt::{Action, Attempt, Ended, Input, needs_an_id};
use super::key::KeyMap;
use super::{
    Age, Change, Claim, Claimed, Epoch, Fingerprint, Key, OnceBuilder, OnceCounters, OnceError,
    Resolution, Store, StoreError, Terms, Timestamp, Verdict,
};
use crate::call::deadline::within;
use crate::call::raw::Transaction;
use crate::call::{RawRequest, ReplyFuture};
use crate::schema::Recovery;
use crate::wire::Status;

/// Waits for a record that is watched on another machine's clock are not shorter than this.
const WAIT_MIN: Duration = Duration::from_millis(10);
/// How soon an outcome is offered again to a store that failed, at first and at last.
const RECORD_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Records that one round of housekeeping forgets.
const FORGOTTEN_MAX: usize = 10_000;

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

pub(super) struct Settings {
    pub terms: Terms,
    pub clock_skew_max: Duration,
    pub running_max: usize,
    pub run_max: Duration,
    pub resolver: Option<Resolver>,
}

/// Owns the tasks; these know only what is shared, so that nothing keeps itself alive.
struct Owner<S: Store> {
    shared: Arc<Shared<S>>,
    jobs: Mutex<JoinSet<()>>,
    chores: OnceLock<tokio::task::AbortHandle>,
}

struct Shared<S> {
    store: S,
    settings: Settings,
    owner: u64,
    attempts: AtomicU64,
    /// Jobs that go on without their caller's task, and how to stop them.
    running: Mutex<KeyMap<Running>>,
    detached: AtomicUsize,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    ran: AtomicU64,
    replayed: AtomicU64,
    joined: AtomicU64,
    in_doubt: AtomicU64,
    store_failed: AtomicU64,
}

struct Running {
    epoch: Epoch,
    /// Dropped when another attempt has taken over.
    _superseded: oneshot::Sender<()>,
}

/// What an attempt runs.
#[derive(Default)]
enum Work {
    /// Its handler, if it comes to that.
    Handler {
        request: RawRequest,
        handler: Box<dyn FnOnce(RawRequest) -> ReplyFuture + Send>,
    },
    /// A handler that was begun, and was not ready at once.
    Begun(ReplyFuture),
    /// Nothing yet, or nothing any more: its handler has ended or panicked.
    #[default]
    None,
}

/// An attempt on its way, with what it may still have to run.
struct Job<S: Store> {
    shared: Arc<Shared<S>>,
    key: Key,
    attempt: Attempt,
    claim: Option<Claim>,
    work: Work,
    transaction: Option<Arc<S::Transaction>>,
    /// Of the caller that it runs for, which calls of its handler inherit.
    deadline: Option<Instant>,
}

impl<S: Store> Once<S> {
    pub(super) fn new(store: S, settings: Settings) -> Self {
        use std::hash::{BuildHasher, RandomState};
        let shared = Shared {
            store,
            settings,
            owner: RandomState::new().hash_one(std::process::id()),
            attempts: AtomicU64::new(0),
            running: Mutex::default(),
            detached: AtomicUsize::new(0),
            counters: Counters::default(),
        };
        Self(Arc::new(Owner {
            shared: Arc::new(shared),
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
        let counters = &self.0.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        OnceCounters {
            ran: read(&counters.ran),
            replayed: read(&counters.replayed),
            joined: read(&counters.joined),
            in_doubt: read(&counters.in_doubt),
            store_failed: read(&counters.store_failed),
            running: self.0.shared.detached.load(Ordering::Relaxed),
        }
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

    /// Answers a request of a `$once` method: runs `handler` if nobody has, and otherwise gives what came of it.
    ///
    /// With a store that answers at once and a handler that is ready at once, all is done here.
    pub(super) fn answer(
        &self,
        principal: &str,
        request: RawRequest,
        recovery: Recovery,
        handler: impl FnOnce(RawRequest) -> ReplyFuture + Send + 'static,
    ) -> ReplyFuture {
        let answer = |ended: Ended| -> ReplyFuture { Box::pin(std::future::ready(ended)) };
        if let Some(status) = needs_an_id(&request) {
            return answer(Err(status));
        }
        let key = Key::of_call(principal, request.interface, request.method, &request.id);
        if request.outcome_only {
            return Box::pin(self.clone().outcome(key));
        }
        if request.deadline.is_some_and(|at| at <= Instant::now()) {
            return answer(Err(Status::deadline_exceeded(crate::wire::Work::NotDone)));
        }
        let fingerprint = match Fingerprint::of_parameters(&request.body, &request.limits) {
            Ok(fingerprint) => fingerprint,
            Err(error) => return answer(Err(error.into())),
        };
        self.attempt(key, fingerprint, recovery, request, handler)
    }

    /// How a request ended, without running it. Waits for one that runs, unless duplicates are refused.
    pub(super) async fn outcome(self, key: Key) -> Ended {
        let shared = &self.0.shared;
        let deadline = None;
        let (attempt, action) = Attempt::look(shared.settings.terms, shared.age(&key));
        let job = Job {
            shared: Arc::clone(shared),
            key,
            attempt,
            claim: None,
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
        handler: impl FnOnce(RawRequest) -> ReplyFuture + Send + 'static,
    ) -> ReplyFuture {
        let shared = &self.0.shared;
        let terms = shared.settings.terms;
        let deadline = request.deadline;
        let claim = Claim {
            epoch: Epoch {
                owner: shared.owner,
                number: shared.attempts.fetch_add(1, Ordering::Relaxed),
            },
            fingerprint,
            recovery,
            lease: terms.lease,
            age: shared.age(&key),
        };
        let (attempt, action) = Attempt::new(terms, claim.clone());
        let mut job = Job {
            shared: Arc::clone(shared),
            key,
            attempt,
            claim: Some(claim),
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
            job.begin(request, handler);
            action = job.go_on_now(action);
        } else {
            let handler = Box::new(handler);
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
                    job.shared.wait(&job.key, until).await;
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
            tokio::spawn(chores(shared, every)).abort_handle()
        });
    }

    /// Waits until no attempt runs, and ends those that do when the time is up.
    pub(crate) async fn drain(&self, until: Instant) {
        while !self.is_idle(Instant::now() >= until) {
            sleep(WAIT_MIN).await;
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

impl<S: Store> Job<S> {
    /// Has the store apply what it can at once. Returns what it would have to wait for, or to run.
    fn go_on_until_run(&mut self, mut action: Action) -> Action {
        while let Action::Apply(change) = &action {
            match self.shared.store.apply_now(&self.key, change) {
                Some(Ok(verdict)) => action = self.attempt.step(Input::Verdict(verdict)),
                _ => break,
            }
        }
        action
    }

    /// The same, and polls the handler once.
    fn go_on_now(&mut self, mut action: Action) -> Action {
        loop {
            let input = match self.go_on_until_run(action) {
                Action::Run => {
                    // The waker of this first poll is lost. Whoever polls next asks again.
                    match self.poll_handler(&mut Context::from_waker(Waker::noop())) {
                        Poll::Ready(ended) => self.ran(ended),
                        Poll::Pending => return Action::Run,
                    }
                }
                other => return other,
            };
            action = self.attempt.step(input);
        }
    }

    /// What an attempt does once it has claimed, or may have: until it is over or waits for another.
    async fn go_on(mut self, mut action: Action) -> (Self, Action) {
        loop {
            let input = match action {
                Action::Apply(change) => self.shared.apply(&self.key, change).await,
                Action::Run => {
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
        let Some(claim) = &self.claim else {
            return Err(Status::internal("it runs without a claim"));
        };
        let (_renewed, superseded) = Renewed::new(&self.shared, &self.key, claim.epoch);
        let run_max = self.shared.settings.run_max;
        let handler = std::future::poll_fn(|cx| self.poll_handler(cx));
        tokio::select! {
            biased;
            ended = timeout(run_max, handler) => {
                ended.unwrap_or_else(|_| Err(Status::deadline_exceeded(crate::wire::Work::OutcomeUnknown)))
            }
            _ = superseded => Err(Status::new(
                crate::wire::Code::Aborted,
                crate::wire::Work::OutcomeUnknown,
                "another attempt has taken over",
            )),
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
            self.begin(request, handler);
        }
        let Work::Begun(handler) = &mut self.work else {
            return Poll::Ready(Err(panicked()));
        };
        let poll = || within(self.deadline, || handler.as_mut().poll(cx));
        catch_unwind(AssertUnwindSafe(poll)).unwrap_or_else(|_| Poll::Ready(Err(panicked())))
    }

    /// Calls the handler, which panics or gives its future.
    fn begin(&mut self, mut request: RawRequest, handler: impl FnOnce(RawRequest) -> ReplyFuture) {
        self.shared.counters.ran.fetch_add(1, Ordering::Relaxed);
        if let Some(claim) = &self.claim
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
        let begun = catch_unwind(AssertUnwindSafe(|| {
            within(self.deadline, || handler(request))
        }));
        self.work = begun.map_or(Work::None, Work::Begun);
    }
}

impl<S: Store> Shared<S> {
    fn is_full(&self) -> bool {
        self.detached.load(Ordering::Relaxed) >= self.settings.running_max
    }

    fn age(&self, key: &Key) -> Age {
        Age {
            created: key.created(),
            retention: self.settings.terms.retention,
            clock_skew_max: self.settings.clock_skew_max,
        }
    }

    /// To begin or to look is asked once; what has to be recorded is said until the lease is over.
    async fn apply(&self, key: &Key, change: Change) -> Input {
        let only_once = matches!(change, Change::Begin(_) | Change::Look(_));
        let give_up = Instant::now() + self.settings.terms.lease;
        let mut wait = RECORD_AGAIN.0;
        loop {
            match self.store.apply(key, change.clone()).await {
                Ok(verdict) => return Input::Verdict(verdict),
                Err(error) => {
                    let count = self.counters.store_failed.fetch_add(1, Ordering::Relaxed);
                    if count.is_power_of_two() || count == 0 {
                        tracing::error!(%error, count, "the store of outcomes failed");
                    }
                    if only_once || Instant::now() + wait >= give_up {
                        return Input::StoreFailed;
                    }
                }
            }
            sleep(wait).await;
            wait = (wait * 2).min(RECORD_AGAIN.1);
        }
    }

    async fn wait(&self, key: &Key, until: Timestamp) {
        let lease = until.since(Timestamp::now()).max(WAIT_MIN);
        if let Ok(Err(_)) = timeout(lease, self.store.watch(key)).await {
            sleep(WAIT_MIN).await;
        }
    }

    /// Whether it is in doubt no longer.
    async fn ask_about_doubt(&self, key: &Key, epoch: Epoch) -> bool {
        let Some(resolver) = &self.settings.resolver else {
            return false;
        };
        let Some(resolution) = resolver(key.clone()).await else {
            return false;
        };
        let epoch = Some(epoch);
        let change = Change::Resolve { epoch, resolution };
        // Whoever resolved it, it is resolved; and another attempt is another doubt.
        matches!(
            self.store.apply(key, change).await,
            Ok(Verdict::Applied | Verdict::Done(_) | Verdict::Unknown | Verdict::Superseded)
        )
    }

    fn count(&self, ended: &Ended, has_waited: bool) {
        use crate::wire::Reason;
        let counter = match ended {
            Ok(reply) if reply.replayed && has_waited => &self.counters.joined,
            Ok(reply) if reply.replayed => &self.counters.replayed,
            Err(status) if status.reason() == Some(Reason::InDoubt) => &self.counters.in_doubt,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Renews the leases of what runs, and has the store forget what is over.
async fn chores<S: Store>(shared: Weak<Shared<S>>, every: Duration) {
    loop {
        sleep(every).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let lock = || {
            let running = shared.running.lock();
            running.unwrap_or_else(PoisonError::into_inner)
        };
        let running: Vec<(Key, Epoch)> = lock()
            .iter()
            .map(|(key, running)| (key.clone(), running.epoch))
            .collect();
        for (key, epoch) in running {
            let lease = shared.settings.terms.lease;
            let renewed = shared
                .store
                .apply(&key, Change::Renew { epoch, lease })
                .await;
            if let Ok(Verdict::Superseded) = renewed {
                let mut running = lock();
                if running.get(&key).is_some_and(|it| it.epoch == epoch) {
                    running.remove(&key);
                }
            }
        }
        if let Err(error) = shared.store.expire(FORGOTTEN_MAX).await {
            tracing::warn!(%error, "the store of outcomes could not forget");
        }
    }
}

/// Has its lease renewed while it lives.
struct Renewed<S: Store> {
    shared: Arc<Shared<S>>,
    key: Key,
    epoch: Epoch,
}

impl<S: Store> Renewed<S> {
    fn new(shared: &Arc<Shared<S>>, key: &Key, epoch: Epoch) -> (Self, oneshot::Receiver<()>) {
        let (sender, superseded) = oneshot::channel();
        let running = Running {
            epoch,
            _superseded: sender,
        };
        let mut all = shared
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.insert(key.clone(), running);
        let renewed = Self {
            shared: Arc::clone(shared),
            key: key.clone(),
            epoch,
        };
        (renewed, superseded)
    }
}

impl<S: Store> Drop for Renewed<S> {
    fn drop(&mut self) {
        let running = self.shared.running.lock();
        let mut running = running.unwrap_or_else(PoisonError::into_inner);
        if running
            .get(&self.key)
            .is_some_and(|it| it.epoch == self.epoch)
        {
            running.remove(&self.key);
        }
    }
}

/// Counts a job that goes on in a task of its own.
struct Detached<S>(Arc<Shared<S>>);

impl<S> Detached<S> {
    fn new(shared: &Arc<Shared<S>>) -> Self {
        shared.detached.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl<S> Drop for Detached<S> {
    fn drop(&mut self) {
        self.0.detached.fetch_sub(1, Ordering::Relaxed);
    }
}

fn too_many() -> Status {
    Status::resource_exhausted("too many $once requests run at once")
}

fn panicked() -> Status {
    Status::internal("the handler panicked")
}

impl<S: Store> Once<S> {
    /// Whether a method may be kept on these terms.
    pub(super) fn check(&self, method: &crate::schema::MethodInfo) -> Result<(), OnceError> {
        let crate::schema::Effect::Once(recovery) = method.effect else {
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
}
