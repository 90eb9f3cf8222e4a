//! An embedded queue as an engine: each call is a step, and an answer when that is safe. What a step does is in `state`,
//! what a worker does in `worker`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::Instant;

use super::state::State;
use super::worker::Worker;
use super::{After, Embedded, Shelf};
use crate::queue::machine::{Digest, GroupIndex, Machine, Moment};
use crate::queue::{
    Capabilities, DeadLetter, Engine, EngineFuture, EngineWorker, JobChange, JobId, JobNumber,
    JobState, NewJob, Page, Pushed, QueueCounters, QueueError, QueueType,
};
use crate::wire::Work;

/// Dead letters that one step reads.
const LETTERS: usize = 64;
/// Bytes of dead letters that one step reads; one letter may be larger.
const LETTERS_BYTES: usize = 1 << 20;
/// Bytes of dead letters of one page; one letter may be larger.
const PAGE_BYTES: usize = 16 << 20;
/// Dead letters that one step sends back or deletes.
const CHANGES: usize = 1024;

impl<S: Shelf> Embedded<S> {
    /// Does something with each dead letter, some of them in each step. Returns with how many it was done.
    async fn with_letters(
        &self,
        group: &str,
        numbers: Vec<JobNumber>,
        change: impl Fn(&mut Machine, Moment, GroupIndex, JobNumber) -> bool,
    ) -> Result<usize, QueueError> {
        let group = self.group(group)?;
        let mut count = 0;
        for numbers in numbers.chunks(CHANGES) {
            let (changed, after) = self.0.step(|state, now| {
                let changed =
                    |number: &&JobNumber| change(&mut state.machine, now, group, **number);
                numbers.iter().filter(changed).count()
            })?;
            count += changed;
            after.safe().await?;
        }
        Ok(count)
    }

    async fn change(
        &self,
        change: impl FnOnce(&mut Machine, Moment) -> Option<(JobNumber, Option<JobState>)>,
    ) -> Result<JobChange, QueueError> {
        let (changed, after) = self.0.step(|state, now| change(&mut state.machine, now))?;
        after.safe().await?;
        Ok(match changed {
            None => JobChange::Unknown,
            Some((number, None)) => JobChange::Done(number),
            Some((number, Some(state))) => JobChange::TooLate { number, state },
        })
    }
}

/// The dead letters that one step reads; says besides whether there are more.
fn letters<S: Shelf>(
    state: &mut State<S>,
    now: Moment,
    group: GroupIndex,
    after: &mut Option<JobNumber>,
    max: usize,
) -> Result<(Vec<DeadLetter>, bool), QueueError> {
    let dead = state.machine.dead_after(group, *after);
    let numbers: Vec<JobNumber> = dead.take(max.min(LETTERS) + 1).collect();
    let (mut letters, mut bytes) = (Vec::new(), 0);
    for number in &numbers {
        bytes += state.machine.bytes_of(*number);
        let is_first = letters.is_empty();
        if letters.len() == max.min(LETTERS) || (bytes > LETTERS_BYTES && !is_first) {
            return Ok((letters, true));
        }
        let letter = state.dead_letter(now, group, *number);
        let letter = letter.map_err(|error| QueueError::unavailable(error, Work::NotDone))?;
        letters.extend(letter);
        *after = Some(*number);
    }
    Ok((letters, false))
}

impl<S: Shelf> Engine for Embedded<S> {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            is_durable: S::IS_DURABLE,
            job_bytes_max: self.0.job_bytes_max.load(Ordering::Relaxed),
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
        let page = self.dead_letters_page(group, after, max);
        Box::pin(async move { Ok(page.await?.items) })
    }

    fn dead_letters_page(
        &self,
        group: &str,
        after: Option<JobNumber>,
        max: usize,
    ) -> EngineFuture<'_, Page<DeadLetter>> {
        let group = self.group(group);
        Box::pin(async move {
            let (group, mut after) = (group?, after);
            let (mut items, mut bytes) = (Vec::new(), 0);
            loop {
                let left = max - items.len();
                let (read, step) = self
                    .0
                    .step(|state, now| letters(state, now, group, &mut after, left))?;
                step.safe().await?;
                let (more, has_more) = read?;
                bytes += more.iter().map(|letter| letter.body.len()).sum::<usize>();
                items.extend(more);
                if !has_more {
                    return Ok(Page { items, next: None });
                }
                if items.len() >= max || bytes >= PAGE_BYTES {
                    return Ok(Page { items, next: after });
                }
                yield_now().await;
            }
        })
    }

    fn send_back(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let group = group.to_owned();
        Box::pin(async move { self.with_letters(&group, numbers, Machine::revive).await })
    }

    fn delete(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let group = group.to_owned();
        Box::pin(async move { self.with_letters(&group, numbers, Machine::delete).await })
    }

    fn cancel(&self, id: &JobId) -> EngineFuture<'_, JobChange> {
        let id = Digest::of(id.as_bytes());
        Box::pin(self.change(move |machine, now| machine.cancel(now, id)))
    }

    fn reschedule(&self, id: &JobId, delay: Duration) -> EngineFuture<'_, JobChange> {
        let id = Digest::of(id.as_bytes());
        let delay = self.0.clock.wait(delay);
        Box::pin(self.change(move |machine, now| machine.reschedule(now, id, delay)))
    }

    fn claim(&self, queue: &QueueType) -> Result<(), QueueError> {
        self.claim(queue)
    }

    fn limit_job_bytes(&self, bytes_max: usize) {
        self.limit_job_bytes(bytes_max);
    }

    fn find(&self, id: &JobId) -> EngineFuture<'_, Option<(JobNumber, JobState)>> {
        let id = Digest::of(id.as_bytes());
        Box::pin(async move {
            let (found, after) = self.0.step(|state, _| {
                let number = state.machine.find(id)?;
                Some((number, state.machine.state(number)))
            })?;
            after.safe().await?;
            Ok(found)
        })
    }

    fn counters(&self, group: &str) -> EngineFuture<'_, QueueCounters> {
        let group = self.group(group);
        Box::pin(async move {
            let group = group?;
            let (counters, After { ended, .. }) =
                self.0.step(|state, _| state.machine.counters(group))?;
            // What has come due is written, and nobody waits for it.
            let commit = None;
            After { commit, ended }.safe().await?;
            Ok(counters)
        })
    }

    fn close(&self) -> EngineFuture<'_, ()> {
        Box::pin(async move {
            self.0.lock().is_closed = true;
            for arrived in &self.0.arrived {
                arrived.notify_waiters();
            }
            self.0.room.notify_waiters();
            match self.0.step(|_, _| ()) {
                Ok(((), after)) => after.safe().await,
                // It was closed before.
                Err(QueueError::Closed) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }
}
