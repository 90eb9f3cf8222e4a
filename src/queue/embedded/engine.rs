//! An embedded queue as an engine: each call is a step, and an answer when that is safe. What a step does is in `state`,
//! what a worker does in `worker`.

use tokio::time::Instant;

use super::state::State;
use super::worker::Worker;
use super::{Embedded, Shelf, safe};
use crate::queue::machine::Digest;
use crate::queue::{
    Capabilities, DeadLetter, Engine, EngineFuture, EngineWorker, JobId, JobNumber, JobState,
    NewJob, Pushed, QueueCounters, QueueError,
};
use crate::wire::Work;

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
                    .filter_map(|number| state.dead_letter(now, group, number).transpose())
                    .collect::<Result<_, _>>()
            })?;
            safe(commit).await?;
            letters.map_err(|error| QueueError::unavailable(error, Work::NotDone))
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
