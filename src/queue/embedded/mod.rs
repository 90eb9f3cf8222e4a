//! Queues inside the process that owns them: the state machine behind a lock, and a shelf for the bodies.
//!
//! `memory` and `durable` are the two shelves; nothing here knows which it has. A step is taken by whoever
//! asks, in its own task; those who wait for jobs, room or a commit are woken. There is no task of its own.
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

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

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
use super::{NewJob, Pushed, QueueError, QueueOptions};
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

/// Waits until a step is as safe as the shelf makes it.
async fn safe(commit: Option<Commit>) -> Result<(), QueueError> {
    match commit {
        None => Ok(()),
        Some(commit) => commit
            .await
            .map_err(|error| QueueError::unavailable(error, Work::OutcomeUnknown)),
    }
}
