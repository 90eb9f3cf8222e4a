//! Queues inside the process that owns them: the state machine behind a lock, and a shelf for the bodies.
//!
//! `memory` and `durable` are the two shelves; nothing here knows which it has. A step is taken by whoever
//! asks, in its own task; those who wait for jobs, room or a commit are woken. There is no task of its own.

mod clock;
#[cfg(feature = "durable")]
mod durable;
mod memory;
mod progress;
#[cfg(feature = "durable")]
mod recent;
mod shelf;
#[cfg(feature = "durable")]
mod simulated;
#[cfg(feature = "durable")]
mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

pub use clock::QueueClock;
#[cfg(feature = "durable")]
pub use durable::{Durable, DurableBuilder};
pub use memory::Memory;
pub(crate) use progress::Commit;
pub(crate) use shelf::{Shelf, StorageError, Stored};
#[cfg(feature = "durable")]
pub use simulated::SimulatedQueue;

use super::machine::{Admission, Digest, Fact, GroupIndex, Machine, Moment, Push};
use super::{
    Answer, Capabilities, Credit, DeadLetter, Engine, EngineFuture, EngineWorker, FailureKind,
    JobFailure, JobId, JobNumber, JobState, LeasedJob, NewJob, Pushed, QueueCounters, QueueError,
    QueueOptions, Stale, Token,
};
use crate::wire::Work;

/// How often a push that waits for room looks for it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A queue in this process.
#[derive(Debug)]
pub(crate) struct Embedded<S>(Arc<Inner<S>>);

impl<S> Clone for Embedded<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
pub(crate) struct Inner<S> {
    state: Mutex<State<S>>,
    /// Of each group: one who waits for jobs has something to look at.
    arrived: Vec<Notify>,
    /// Somebody who waits for room has something to look at.
    room: Arc<Notify>,
    clock: QueueClock,
    groups: Vec<String>,
    lease: Duration,
    job_bytes_max: usize,
}

#[derive(Debug)]
pub(crate) struct State<S> {
    machine: Machine,
    shelf: S,
    facts: Vec<Fact>,
    is_closed: bool,
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
            clock,
            groups: options.groups.names().to_vec(),
            lease: options.lease,
            job_bytes_max: options.job_bytes_max,
            state: Mutex::new(State {
                machine,
                shelf,
                facts: Vec::new(),
                is_closed: false,
            }),
        }))
    }

    #[cfg(feature = "durable")]
    pub fn with_shelf<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        look(&self.0.lock().shelf)
    }

    fn group(&self, name: &str) -> Result<GroupIndex, QueueError> {
        let index = self.0.groups.iter().position(|group| group == name);
        index.ok_or_else(|| QueueError::NoSuchGroup(name.to_owned()))
    }

    /// One step: brings what is due, does `what`, and puts on the shelf what has happened.
    fn step<R>(
        &self,
        what: impl FnOnce(&mut State<S>, Moment) -> R,
    ) -> Result<(R, Option<Commit>), QueueError> {
        self.0.step(what)
    }

    async fn push_all(
        &self,
        jobs: Vec<NewJob>,
        deadline: Instant,
    ) -> Result<Vec<Result<Pushed, QueueError>>, QueueError> {
        let mut results = Vec::with_capacity(jobs.len());
        let mut jobs = jobs.into_iter().peekable();
        let mut push = |jobs: &mut std::iter::Peekable<std::vec::IntoIter<NewJob>>| {
            self.step(|state, now| {
                while let Some(job) = jobs.peek() {
                    match state.push(now, job, self.0.clock.wait(job.delay)) {
                        None => return true,
                        Some(result) => results.push(result),
                    }
                    jobs.next();
                }
                false
            })
        };
        let (mut is_full, mut commit) = push(&mut jobs)?;
        while is_full {
            let room = self.0.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            // There may be some since it was looked for.
            (is_full, commit) = push(&mut jobs)?;
            if !is_full {
                break;
            }
            // Storage that has found room on a disk that was full tells nobody.
            let look_again = deadline.min(Instant::now() + LOOK_AGAIN);
            if timeout_at(look_again, room).await.is_err() && Instant::now() >= deadline {
                results.extend(jobs.map(|_| Err(QueueError::Full)));
                break;
            }
        }
        safe(commit).await?;
        Ok(results)
    }
}

impl<S: Shelf> Inner<S> {
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        // No code of others runs under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step<R>(
        &self,
        what: impl FnOnce(&mut State<S>, Moment) -> R,
    ) -> Result<(R, Option<Commit>), QueueError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(QueueError::Closed);
        }
        state.repair(&self.clock)?;
        let now = self.clock.now();
        state.machine.tick(now, fastrand::u64(..));
        let result = what(&mut state, now);
        let State {
            machine,
            shelf,
            facts,
            ..
        } = &mut *state;
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
        drop(state);
        for (group, arrived) in self.arrived.iter().enumerate() {
            if ready & 1 << group != 0 {
                arrived.notify_one();
            }
        }
        if makes_room {
            self.room.notify_waiters();
        }
        Ok((result, commit))
    }
}

impl<S: Shelf> State<S> {
    /// Brings storage that has failed back, if it can be.
    fn repair(&mut self, clock: &QueueClock) -> Result<(), QueueError> {
        match self.shelf.repair(self.machine.options(), clock) {
            Ok(None) => Ok(()),
            Ok(Some(machine)) => {
                self.machine = machine;
                Ok(())
            }
            Err(error) => Err(QueueError::unavailable(error, Work::NotDone)),
        }
    }

    /// `None` where there is no room.
    fn push(
        &mut self,
        now: Moment,
        job: &NewJob,
        delay: Duration,
    ) -> Option<Result<Pushed, QueueError>> {
        let push = Push {
            identity: job.identity,
            id: job.id.as_ref().map(|id| Digest::of(id.as_bytes())),
            key: job.key.as_ref().map(|key| Digest::of(key)),
            priority: job.priority,
            delay,
            expires_after: job.expires_after,
            bytes: job.bytes(),
        };
        if !self.shelf.has_room(push.bytes) {
            return None;
        }
        Some(match self.machine.push(now, push) {
            Admission::Accepted(number) => {
                if let Some(arrival) = self.machine.arrival() {
                    self.shelf.store(now, number, arrival, job, &self.machine);
                }
                Ok(Pushed::Accepted(number))
            }
            Admission::Duplicate(Some(number)) => Ok(Pushed::Duplicate {
                number,
                state: self.machine.state(number),
            }),
            Admission::Duplicate(None) => Ok(Pushed::Again),
            Admission::TooLarge => Err(QueueError::TooLarge {
                bytes: push.bytes,
                max: self.machine.options().job_bytes_max,
            }),
            Admission::Full => return None,
        })
    }

    fn lease(
        &mut self,
        now: Moment,
        group: GroupIndex,
        session: u64,
        credit: Credit,
    ) -> Vec<LeasedJob> {
        let sent = self.machine.lease(now, group, session, credit);
        let mut jobs = Vec::with_capacity(sent.len());
        for sent in sent {
            let Some(Stored { job, .. }) = self.shelf.fetch(sent.number) else {
                self.machine.damaged(now, sent.number);
                continue;
            };
            jobs.push(LeasedJob {
                number: sent.number,
                token: sent.token,
                earlier: sent.earlier,
                identity: job.identity,
                id: job.id,
                key: job.key,
                priority: job.priority,
                body: job.body,
            });
        }
        jobs
    }

    fn dead_letter(
        &mut self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
    ) -> Option<DeadLetter> {
        let Some(Stored { job, pushed }) = self.shelf.fetch(number) else {
            self.machine.damaged(now, number);
            return None;
        };
        let (attempts, failures) = self.machine.failures(group, number);
        let failures = failures.into_iter().map(|(kind, cause, at)| JobFailure {
            kind,
            cause,
            age: at.since(pushed),
        });
        Some(DeadLetter {
            number,
            identity: job.identity,
            id: job.id,
            key: job.key,
            priority: job.priority,
            attempts,
            failures: failures.collect(),
            body: job.body,
        })
    }
}

/// Waits until a step is as safe as the shelf makes it.
async fn safe(commit: Option<Commit>) -> Result<(), QueueError> {
    match commit {
        None => Ok(()),
        Some(commit) => commit
            .await
            .map_err(|error| QueueError::unavailable(error, Work::OutcomeUnknown)),
    }
}

impl<S: Shelf> Engine for Embedded<S> {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            is_durable: S::IS_DURABLE,
            job_bytes_max: self.0.job_bytes_max,
            ..Capabilities::ALL
        }
    }

    fn push(
        &self,
        jobs: Vec<NewJob>,
        deadline: Instant,
    ) -> EngineFuture<'_, Vec<Result<Pushed, QueueError>>> {
        Box::pin(self.push_all(jobs, deadline))
    }

    fn worker(&self, group: &str) -> EngineFuture<'_, Box<dyn EngineWorker>> {
        let group = self.group(group);
        Box::pin(async move {
            let worker: Box<dyn EngineWorker> = Box::new(Worker {
                engine: self.clone(),
                group: group?,
                session: fastrand::u64(1..),
            });
            Ok(worker)
        })
    }

    fn dead_letters(
        &self,
        group: &str,
        after: Option<JobNumber>,
        max: usize,
    ) -> EngineFuture<'_, Vec<DeadLetter>> {
        let group = self.group(group);
        Box::pin(async move {
            let group = group?;
            let (letters, commit) = self.step(|state, now| {
                let dead = state.machine.dead_after(group, after);
                let numbers: Vec<JobNumber> = dead.take(max).collect();
                let letters = numbers.into_iter();
                letters
                    .filter_map(|number| state.dead_letter(now, group, number))
                    .collect()
            })?;
            safe(commit).await?;
            Ok(letters)
        })
    }

    fn send_back(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let group = self.group(group);
        Box::pin(async move {
            let group = group?;
            let (count, commit) = self.step(|state, now| {
                let revived = |number: &&JobNumber| state.machine.revive(now, group, **number);
                numbers.iter().filter(revived).count()
            })?;
            safe(commit).await?;
            Ok(count)
        })
    }

    fn delete(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let group = self.group(group);
        Box::pin(async move {
            let group = group?;
            let (count, commit) = self.step(|state, now| {
                let deleted = |number: &&JobNumber| state.machine.delete(now, group, **number);
                numbers.iter().filter(deleted).count()
            })?;
            safe(commit).await?;
            Ok(count)
        })
    }

    fn find(&self, id: &JobId) -> EngineFuture<'_, Option<(JobNumber, JobState)>> {
        let id = Digest::of(id.as_bytes());
        Box::pin(async move {
            let (found, commit) = self.step(|state, _| {
                let number = state.machine.find(id)?;
                Some((number, state.machine.state(number)))
            })?;
            safe(commit).await?;
            Ok(found)
        })
    }

    fn counters(&self, group: &str) -> EngineFuture<'_, QueueCounters> {
        let group = self.group(group);
        Box::pin(async move {
            let group = group?;
            let (counters, _) = self.step(|state, _| state.machine.counters(group))?;
            Ok(counters)
        })
    }

    fn close(&self) -> EngineFuture<'_, ()> {
        Box::pin(async move {
            let commit = {
                let mut state = self.0.lock();
                state.is_closed = true;
                let State { machine, shelf, .. } = &mut *state;
                shelf.commit(self.0.clock.now(), machine)
            };
            for arrived in &self.0.arrived {
                arrived.notify_waiters();
            }
            self.0.room.notify_waiters();
            safe(commit).await
        })
    }
}

/// A worker in the same process as its queue.
struct Worker<S: Shelf> {
    engine: Embedded<S>,
    group: GroupIndex,
    session: u64,
}

impl<S: Shelf> Worker<S> {
    async fn lease(&self, credit: Credit, until: Instant) -> Result<Vec<LeasedJob>, QueueError> {
        let inner = &self.engine.0;
        loop {
            let arrived = inner.arrived[self.group].notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let ((jobs, next, has_more), commit) = inner.step(|state, now| {
                let jobs = state.lease(now, self.group, self.session, credit);
                let next = state.machine.next_tick();
                let has_more = state.machine.has_ready(self.group);
                (jobs, next.map(|next| next.since(now)), has_more)
            })?;
            if !jobs.is_empty() || has_more {
                // What is not safe yet must not be seen: its push may still fail.
                let given = Given { worker: self, jobs };
                safe(commit).await?;
                return Ok(given.keep());
            }
            let next = next.map_or(until, |next| Instant::now() + inner.clock.real(next));
            tokio::select! {
                () = &mut arrived => {}
                () = sleep_until(next.min(until)) => {}
            }
            if Instant::now() >= until {
                // Another may have to look at the time now.
                inner.arrived[self.group].notify_one();
                return Ok(Vec::new());
            }
        }
    }
}

/// Jobs on their way to a worker, who may stop waiting for them.
struct Given<'a, S: Shelf> {
    worker: &'a Worker<S>,
    jobs: Vec<LeasedJob>,
}

impl<S: Shelf> Given<'_, S> {
    fn keep(mut self) -> Vec<LeasedJob> {
        std::mem::take(&mut self.jobs)
    }
}

impl<S: Shelf> Drop for Given<'_, S> {
    fn drop(&mut self) {
        let group = self.worker.group;
        let jobs = std::mem::take(&mut self.jobs);
        if jobs.is_empty() {
            return;
        }
        // A queue that is closed or broken by now has given them back already, or will.
        let _ = self.worker.engine.step(|state, now| {
            for job in jobs {
                let released = Answer::Release;
                let _ = state
                    .machine
                    .answer(now, group, job.number, job.token, released, 0);
            }
        });
    }
}

impl<S: Shelf> EngineWorker for Worker<S> {
    fn lease_time(&self) -> Duration {
        self.engine.0.lease
    }

    fn lease(&self, credit: Credit, until: Instant) -> EngineFuture<'_, Vec<LeasedJob>> {
        Box::pin(self.lease(credit, until))
    }

    fn answer(
        &self,
        answers: Vec<(JobNumber, Token, Answer)>,
    ) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        Box::pin(async move {
            let random = fastrand::u64(..);
            let clock = &self.engine.0.clock;
            let (results, commit) = self.engine.step(|state, now| {
                let answer = |(number, token, answer)| {
                    let answer = match answer {
                        Answer::RetryAfter(time, why) => Answer::RetryAfter(clock.wait(time), why),
                        other => other,
                    };
                    state
                        .machine
                        .answer(now, self.group, number, token, answer, random)
                };
                answers.into_iter().map(answer).collect()
            })?;
            safe(commit).await?;
            Ok(results)
        })
    }

    fn renew(&self, leases: Vec<(JobNumber, Token)>) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        Box::pin(async move {
            let (results, _) = self.engine.step(|state, now| {
                let renew = |(number, token)| state.machine.renew(now, self.group, number, token);
                leases.into_iter().map(renew).collect()
            })?;
            Ok(results)
        })
    }

    fn leave(&self) -> EngineFuture<'_, ()> {
        Box::pin(async move {
            let ((), commit) = self.engine.step(|state, now| {
                let kind = FailureKind::Released;
                state.machine.end_session(now, self.session, kind, 0);
            })?;
            safe(commit).await
        })
    }
}
