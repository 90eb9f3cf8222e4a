//! What is behind the lock of an embedded queue: the machine and its shelf, and what takes both of them. No lock, no clock,
//! and nobody waits here.

use std::time::Duration;

use super::{QueueClock, Shelf, StorageError, Stored};
use crate::queue::machine::{Admission, Digest, Fact, GroupIndex, Machine, Moment, Push};
use crate::queue::{
    Credit, DeadLetter, JobFailure, JobNumber, LeasedJob, NewJob, Pushed, QueueError,
};
use crate::wire::Work;

/// How long a job that cannot be read waits before it is tried again, while others are sent.
const READ_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct State<S> {
    pub machine: Machine,
    pub shelf: S,
    pub facts: Vec<Fact>,
}

impl<S: Shelf> State<S> {
    /// Brings storage that has failed back, if it can be.
    pub fn repair(&mut self, clock: &QueueClock) -> Result<(), QueueError> {
        let holds = self.shelf.holds().cloned();
        match self.shelf.repair(self.machine.options(), clock) {
            Ok(None) => Ok(()),
            Ok(Some(machine)) => {
                self.machine = machine;
                // What was not safe yet when it failed is said again.
                if let (Some(holds), None) = (holds, self.shelf.holds()) {
                    self.shelf.claim(clock.now(), &self.machine, holds);
                }
                Ok(())
            }
            Err(error) => Err(QueueError::unavailable(error, Work::NotDone)),
        }
    }

    /// `None` where there is no room.
    pub fn push(
        &mut self,
        now: Moment,
        job: &NewJob,
        delay: Duration,
        bytes_max: usize,
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
        // There never is room for one that is too large: that is said, and not waited for.
        let max = bytes_max.min(self.machine.options().job_bytes_max);
        if push.bytes <= max && !self.shelf.has_room(push.bytes) {
            return None;
        }
        Some(match self.machine.push(now, push, max) {
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
                max,
            }),
            Admission::Full => return None,
        })
    }

    pub fn lease(
        &mut self,
        now: Moment,
        group: GroupIndex,
        session: u64,
        credit: Credit,
    ) -> Result<(Vec<LeasedJob>, bool), StorageError> {
        let Self { machine, shelf, .. } = self;
        lease(machine, now, group, session, credit, |number, bytes| {
            shelf.fetch(number, bytes)
        })
    }

    pub fn dead_letter(
        &mut self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
    ) -> Result<Option<DeadLetter>, StorageError> {
        let bytes = self.machine.bytes_of(number);
        let Some(Stored { job, pushed }) = self.shelf.fetch(number, bytes)? else {
            self.machine.damaged(now, number);
            return Ok(None);
        };
        let (attempts, failures) = self.machine.failures(group, number);
        let failures = failures.into_iter().map(|(kind, cause, at)| JobFailure {
            kind,
            cause,
            age: at.since(pushed),
        });
        Ok(Some(DeadLetter {
            number,
            identity: job.identity,
            id: job.id,
            key: job.key,
            priority: job.priority,
            attempts,
            failures: failures.collect(),
            body: job.body,
        }))
    }
}

/// Leases jobs, and fetches what is stored of them: of a number, and of so many bytes. One that is damaged is over; one
/// that cannot be read waits, unsent, while others are sent. Says besides whether a step could not look at more.
///
/// # Errors
/// Where there were jobs, and none could be read.
pub(super) fn lease(
    machine: &mut Machine,
    now: Moment,
    group: GroupIndex,
    session: u64,
    credit: Credit,
    mut fetch: impl FnMut(JobNumber, usize) -> Result<Option<Stored>, StorageError>,
) -> Result<(Vec<LeasedJob>, bool), StorageError> {
    let (sent, is_cut) = machine.lease(now, group, session, credit);
    let (mut jobs, mut unreadable) = (Vec::with_capacity(sent.len()), None);
    for sent in sent {
        let job = match fetch(sent.number, machine.bytes_of(sent.number)) {
            Ok(Some(Stored { job, .. })) => job,
            Ok(None) => {
                machine.damaged(now, sent.number);
                continue;
            }
            Err(error) => {
                machine.unreadable(now, group, sent.number, READ_AGAIN);
                unreadable = Some(error);
                continue;
            }
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
    if let Some(error) = unreadable {
        tracing::error!(%error, "a part of a queue's log cannot be read");
        if jobs.is_empty() {
            return Err(error);
        }
    }
    Ok((jobs, is_cut))
}
