//! Queues inside the process that owns them: the state machine behind a lock, and a shelf for the bodies.
//!
//! `memory` and `durable` are the two shelves; nothing here knows which it has. A caller takes its step in its own task;
//! tasks that wait for jobs, room or a commit are woken. The queue has one task, `LeaseWatch`, while jobs are leased.
//!
//! Here is what a step is, and who waits for room. What is done in a step is in `state`, who takes one in `engine` and
//! `worker`.

mod clock;
#[cfg(feature = "durable")]
mod durable;
mod engine;
#[cfg(feature = "durable")]
mod gathering;
mod memory;
mod progress;
#[cfg(feature = "durable")]
mod recent;
mod shelf;
#[cfg(feature = "durable")]
mod simulated;
mod state;
mod worker;
#[cfg(feature = "durable")]
mod writer;

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};

pub use clock::QueueClock;
#[cfg(feature = "durable")]
pub use durable::{Durable, DurableBuilder};
pub use memory::Memory;
pub(crate) use progress::Commit;
pub(crate) use shelf::{Shelf, StorageError, Stored};
#[cfg(feature = "durable")]
pub use simulated::SimulatedQueue;

use state::State;

use super::machine::{Fact, GroupIndex, Machine, Moment};
use super::{NewJob, Pushed, QueueError, QueueOptions, QueueType};
use crate::wire::Work;

/// How often a push that waits for room looks for it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Jobs of a push that one step takes in; others have a turn before the next.
const PUSH_JOBS: usize = 256;
/// Bytes of jobs that one step takes in; one job may be larger.
const PUSH_BYTES: usize = 1 << 20;
/// How often in each lease the queue looks at the time.
const LOOKS_PER_LEASE: u32 = 4;
/// How long storage has to say that a push is safe, however soon its deadline is.
const COMMIT_MIN: Duration = Duration::from_secs(1);

/// A queue in this process.
#[derive(Debug)]
pub(crate) struct Embedded<S: Shelf>(Arc<Inner<S>>);

impl<S: Shelf> Clone for Embedded<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
pub(crate) struct Inner<S> {
    locked: Mutex<Locked<S>>,
    /// Of each group: one who waits for jobs has something to look at.
    arrived: Vec<Notify>,
    /// Somebody who waits for room has something to look at.
    room: Arc<Notify>,
    clock: QueueClock,
    groups: Vec<String>,
    lease: Duration,
    job_bytes_max: AtomicUsize,
    /// Whether a task looks at the time.
    is_watched: AtomicBool,
}

#[derive(Debug)]
struct Locked<S> {
    /// None once the queue was closed and nothing is leased any more: its storage is free for others.
    state: Option<State<S>>,
    /// Whether it takes no more jobs and sends none. Answers are taken as long as a job is leased.
    is_closed: bool,
    /// When the last step was taken.
    stepped: Moment,
}

/// What is to be waited for after a step.
#[must_use = "a step is not safe before this says so"]
struct After<S> {
    commit: Option<Commit>,
    /// Storage that nothing needs any more.
    ended: Option<State<S>>,
}

impl<S: Shelf> Embedded<S> {
    pub fn new(machine: Machine, mut shelf: S, clock: QueueClock) -> Self {
        let room = Arc::new(Notify::new());
        shelf.tell_of_room(&room);
        let options: &QueueOptions = machine.options();
        Self(Arc::new(Inner {
            arrived: options
                .groups
                .names()
                .iter()
                .map(|_| Notify::new())
                .collect(),
            room,
            groups: options.groups.names().to_vec(),
            lease: options.lease,
            job_bytes_max: AtomicUsize::new(options.job_bytes_max),
            is_watched: AtomicBool::new(false),
            locked: Mutex::new(Locked {
                stepped: clock.now(),
                state: Some(State {
                    machine,
                    shelf,
                    facts: Vec::new(),
                }),
                is_closed: false,
            }),
            clock,
        }))
    }

    #[cfg(feature = "durable")]
    pub fn with_shelf<R>(&self, look: impl FnOnce(&S) -> R) -> Option<R> {
        let locked = self.0.lock();
        locked.state.as_ref().map(|state| look(&state.shelf))
    }

    fn group(&self, name: &str) -> Result<GroupIndex, QueueError> {
        let index = self.0.groups.iter().position(|group| group == name);
        index.ok_or_else(|| QueueError::NoSuchGroup(name.to_owned()))
    }

    /// See [`Engine::claim`](super::Engine::claim).
    pub fn claim(&self, queue: &QueueType) -> Result<(), QueueError> {
        let mut locked = self.0.lock();
        let Some(state) = &mut locked.state else {
            return Err(QueueError::Closed);
        };
        match state.shelf.holds() {
            Some(holds) if holds.is_same(queue) => Ok(()),
            Some(holds) => Err(QueueError::WrongQueue {
                holds: Box::new(holds.clone()),
                asked: Box::new(queue.clone()),
            }),
            None => {
                let now = self.0.clock.now();
                state.shelf.claim(now, &state.machine, queue.clone());
                // Safe with what is pushed next, or when the queue is idle.
                let _ = state.shelf.commit(now, &state.machine);
                Ok(())
            }
        }
    }

    /// See [`Engine::limit_job_bytes`](super::Engine::limit_job_bytes).
    pub fn limit_job_bytes(&self, bytes_max: usize) {
        self.0.job_bytes_max.fetch_min(bytes_max, Ordering::Relaxed);
    }

    /// Has a task look at the time while jobs are leased: leases end by themselves, and a time in which the process
    /// did not run is told from one in which nobody asked. The task ends with the last lease, the queue or its runtime.
    fn watch_leases(&self) {
        if !self.0.clock.is_real() || self.0.is_watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let watch = LeaseWatch(Arc::downgrade(&self.0));
        let every = self.0.clock.real(self.0.lease / LOOKS_PER_LEASE);
        tokio::spawn(async move {
            loop {
                sleep(every).await;
                let Some(queue) = watch.queue() else {
                    return;
                };
                if !queue.look_at_leases().await {
                    // A job that was leased since the look has found the task still there.
                    drop(watch);
                    if queue.look_at_leases().await {
                        queue.watch_leases();
                    }
                    return;
                }
            }
        });
    }

    /// Ends the leases whose time is over. Returns whether there may be others.
    async fn look_at_leases(&self) -> bool {
        match self.0.step(|state, _| state.machine.has_leases()) {
            Ok((true, _)) => true,
            Ok((false, after)) => {
                // The last step of a closed queue frees its storage.
                let _ = after.safe().await;
                false
            }
            Err(QueueError::Closed) => false,
            Err(_) => true,
        }
    }

    async fn push_all(
        &self,
        jobs: Vec<NewJob>,
        deadline: Instant,
    ) -> Result<Vec<Result<Pushed, QueueError>>, QueueError> {
        let safe_by = deadline.max(Instant::now() + COMMIT_MIN);
        let mut results = Vec::with_capacity(jobs.len());
        let mut jobs = jobs.into_iter().peekable();
        let mut commits = Vec::new();
        loop {
            let room = self.0.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.push_some(&mut jobs, &mut results) {
                Ok((ended, after)) => {
                    commits.extend(after.commit);
                    match ended {
                        PushEnded::All => break,
                        PushEnded::Budget => {
                            yield_now().await;
                            continue;
                        }
                        PushEnded::Full => {}
                    }
                }
                Err(error) if results.is_empty() => return Err(error),
                Err(error) => {
                    results.extend(jobs.map(|_| Err(error.clone())));
                    break;
                }
            }
            // Storage that has found room on a disk that was full tells nobody.
            let look_again = deadline.min(Instant::now() + LOOK_AGAIN);
            if timeout_at(look_again, room).await.is_err() && Instant::now() >= deadline {
                results.extend(jobs.map(|_| Err(QueueError::Full)));
                break;
            }
        }
        for commit in commits {
            match timeout_at(safe_by, commit).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    return Err(QueueError::unavailable(error, Work::OutcomeUnknown));
                }
                Err(_) => {
                    let reason = "its storage does not answer";
                    return Err(QueueError::unavailable(reason, Work::OutcomeUnknown));
                }
            }
        }
        Ok(results)
    }

    /// Takes in as many jobs as one step does.
    fn push_some(
        &self,
        jobs: &mut std::iter::Peekable<std::vec::IntoIter<NewJob>>,
        results: &mut Vec<Result<Pushed, QueueError>>,
    ) -> Result<(PushEnded, After<S>), QueueError> {
        let max = self.0.job_bytes_max.load(Ordering::Relaxed);
        self.0.step_while_open(|state, now| {
            let (mut count, mut bytes) = (0, 0);
            while let Some(job) = jobs.peek() {
                bytes += job.bytes();
                if count > 0 && (count == PUSH_JOBS || bytes > PUSH_BYTES) {
                    return PushEnded::Budget;
                }
                count += 1;
                match state.push(now, job, self.0.clock.wait(job.delay), max) {
                    None => return PushEnded::Full,
                    Some(result) => results.push(result),
                }
                jobs.next();
            }
            PushEnded::All
        })
    }
}

/// The task of a queue that looks at the time. Says that there is none where it is dropped with its runtime.
struct LeaseWatch<S>(Weak<Inner<S>>);

impl<S: Shelf> LeaseWatch<S> {
    fn queue(&self) -> Option<Embedded<S>> {
        self.0.upgrade().map(Embedded)
    }
}

impl<S> Drop for LeaseWatch<S> {
    fn drop(&mut self) {
        if let Some(queue) = self.0.upgrade() {
            queue.is_watched.store(false, Ordering::Release);
        }
    }
}

/// Why a step took in no more jobs.
enum PushEnded {
    All,
    Full,
    /// The step has done enough.
    Budget,
}

impl<S: Shelf> Inner<S> {
    fn lock(&self) -> MutexGuard<'_, Locked<S>> {
        // No code of others runs under it.
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step that takes a job in or sends one: not of a queue that was closed.
    fn step_while_open<R>(
        &self,
        what: impl FnOnce(&mut State<S>, Moment) -> R,
    ) -> Result<(R, After<S>), QueueError> {
        self.step_of(self.lock(), true, what)
    }

    /// One step: brings what is due, does `what`, and puts on the shelf what has happened.
    fn step<R>(
        &self,
        what: impl FnOnce(&mut State<S>, Moment) -> R,
    ) -> Result<(R, After<S>), QueueError> {
        self.step_of(self.lock(), false, what)
    }

    fn step_of<R>(
        &self,
        mut locked: MutexGuard<'_, Locked<S>>,
        only_open: bool,
        what: impl FnOnce(&mut State<S>, Moment) -> R,
    ) -> Result<(R, After<S>), QueueError> {
        let Locked {
            state,
            is_closed,
            stepped,
        } = &mut *locked;
        let Some(state) = state.as_mut().filter(|_| !(only_open && *is_closed)) else {
            return Err(QueueError::Closed);
        };
        state.repair(&self.clock)?;
        let now = self.clock.now();
        let gap = now.since(std::mem::replace(stepped, now));
        // The time is looked at four times in each lease, and workers renew three times: this process was stopped, or had
        // no processor, and renewals wait to be read.
        if gap > self.lease / 2 && self.clock.is_real() && state.machine.has_leases() {
            tracing::warn!(?gap, "a queue did not run: its leases begin anew");
            state.machine.give_back(now, gap);
        }
        state.machine.tick(now, fastrand::u64(..));
        let result = what(state, now);
        let State {
            machine,
            shelf,
            facts,
        } = state;
        machine.take_facts(facts);
        let (mut makes_room, mut makes_ready) = (false, false);
        for fact in facts.drain(..) {
            makes_room |= matches!(fact, Fact::Finished { .. });
            makes_ready |= !matches!(fact, Fact::Leased { .. });
            shelf.note(now, &fact, machine);
        }
        let commit = shelf.commit(now, machine);
        let is_ready = |group: &usize| makes_ready || machine.has_ready(*group);
        let groups = 0..self.arrived.len();
        let ready = groups
            .filter(is_ready)
            .fold(0u16, |ready, group| ready | 1 << group);
        let has_ended = *is_closed && S::IS_DURABLE && !machine.has_leases();
        let ended = match has_ended {
            true => locked.state.take(),
            false => None,
        };
        drop(locked);
        for (group, arrived) in self.arrived.iter().enumerate() {
            if ready & 1 << group != 0 {
                arrived.notify_one();
            }
        }
        if makes_room {
            self.room.notify_waiters();
        }
        Ok((result, After { commit, ended }))
    }
}

impl<S: Shelf> After<S> {
    /// Waits until the step is as safe as the shelf makes it; and, of the last of a closed queue, until its storage is free.
    async fn safe(self) -> Result<(), QueueError> {
        let Self { commit, ended } = self;
        let safe = match commit {
            None => Ok(()),
            Some(commit) => commit
                .await
                .map_err(|error| QueueError::unavailable(error, Work::OutcomeUnknown)),
        };
        if let Some(ended) = ended {
            // Its thread writes what is left: that may take a while.
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => {
                    let _ = runtime.spawn_blocking(move || drop(ended)).await;
                }
                Err(_) => drop(ended),
            }
        }
        safe
    }
}

/// A number that cannot be guessed.
fn secret() -> u64 {
    // Keyed by what the system draws.
    std::hash::RandomState::new().hash_one(0)
}
