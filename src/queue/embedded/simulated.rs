//! A queue on disk without a thread, a lock or a clock, for the simulator: the same machine and the same log,
//! written when it is told to.

use std::io;
use std::sync::Arc;

use super::{StorageError, Stored, state};
use crate::queue::log::{Flusher, Opened, Recovery, Storage, StoredJob, Tail, Times, open};
use crate::queue::machine::{Admission, Digest, Machine, Moment, Push};
use crate::queue::{
    Answer, Credit, JobNumber, LeasedJob, NewJob, Pushed, QueueCounters, QueueError, QueueOptions,
    Stale, Token,
};
use crate::wire::Work;

/// The queue of one life of a simulated machine. Times are milliseconds since it was opened.
#[derive(Debug)]
pub struct SimulatedQueue {
    machine: Machine,
    tail: Tail,
    flusher: Flusher,
    storage: Arc<dyn Storage>,
    began: Moment,
    recovery: Recovery,
}

impl SimulatedQueue {
    /// Opens what the disk has.
    ///
    /// # Errors
    /// What the storage says.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: &QueueOptions,
        segment_bytes: u64,
        wall: u64,
        seed: u64,
    ) -> io::Result<Self> {
        let Opened {
            machine,
            mut tail,
            now,
            safe,
            unindexed,
            recovery,
        } = open(&*storage, options, segment_bytes, wall, seed, true)?;
        let mut flusher = Flusher::new(Arc::clone(&storage), segment_bytes, safe, unindexed);
        flusher.write(&tail.take_batch())?;
        Ok(Self {
            machine,
            tail,
            flusher,
            storage,
            began: now,
            recovery,
        })
    }

    /// What was found.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    fn times(&mut self, now: u64) -> Times {
        let now = Moment(self.began.0 + now);
        self.machine.tick(now, now.0);
        Times { now, wall: now.0 }
    }

    fn note(&mut self, times: Times) {
        let mut facts = Vec::new();
        self.machine.take_facts(&mut facts);
        for fact in &facts {
            self.tail.note(times, &self.machine, fact);
        }
        self.tail.retire(times, &self.machine);
        let storage = &*self.storage;
        // What is moved is written before a lease.
        let _ = self.tail.owes_cleaning();
        self.tail
            .clean(times, &self.machine, storage, 2, |_, _, _| {});
    }

    /// A push; safe after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`QueueError::Full`] and [`QueueError::TooLarge`].
    pub fn push(&mut self, now: u64, job: &NewJob) -> Result<Pushed, QueueError> {
        let times = self.times(now);
        let push = Push {
            identity: job.identity,
            id: job.id.as_ref().map(|id| Digest::of(id.as_bytes())),
            key: job.key.as_ref().map(|key| Digest::of(key)),
            priority: job.priority,
            delay: job.delay,
            expires_after: job.expires_after,
            bytes: job.bytes(),
        };
        let max = self.machine.options().job_bytes_max;
        let admission = self.machine.push(times.now, push, max);
        let pushed = match admission {
            Admission::Accepted(number) => {
                if let Some(arrival) = self.machine.arrival().copied() {
                    self.tail.push(times, &self.machine, number, &arrival, job);
                }
                Ok(Pushed::Accepted(number))
            }
            Admission::Duplicate(Some(number)) => Ok(Pushed::Duplicate {
                number,
                state: self.machine.state(number),
            }),
            Admission::Duplicate(None) => Ok(Pushed::Again),
            Admission::Full => Err(QueueError::Full),
            Admission::TooLarge => Err(QueueError::TooLarge {
                bytes: push.bytes,
                max: self.machine.options().job_bytes_max,
            }),
        };
        self.note(times);
        pushed
    }

    /// Jobs whose records are written: call it after a [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] where the disk cannot be read.
    pub fn lease(
        &mut self,
        now: u64,
        session: u64,
        credit: Credit,
    ) -> Result<Vec<LeasedJob>, QueueError> {
        let times = self.times(now);
        let Self {
            machine,
            tail,
            storage,
            ..
        } = self;
        let fetch = |number, _| match tail.read_job(&**storage, number) {
            Ok(StoredJob::Whole(pushed, job)) => Ok(Some(Stored { job, pushed })),
            Ok(StoredJob::Damaged(_) | StoredJob::Unknown) => Ok(None),
            Err(error) => Err(StorageError::unreadable(number, &error)),
        };
        let leased =
            state::lease(machine, times.now, 0, session, credit, fetch).map(|(jobs, _)| jobs);
        self.note(times);
        leased.map_err(|error| QueueError::unavailable(error, Work::NotDone))
    }

    /// An answer; safe after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// Where the lease is over.
    pub fn answer(
        &mut self,
        now: u64,
        number: JobNumber,
        token: Token,
        answer: Answer,
    ) -> Result<(), Stale> {
        let times = self.times(now);
        let told = self
            .machine
            .answer(times.now, 0, number, token, answer, now);
        self.note(times);
        told
    }

    /// How many jobs are where.
    pub fn counters(&mut self, now: u64) -> QueueCounters {
        let times = self.times(now);
        self.note(times);
        self.machine.counters(0)
    }

    /// Writes and syncs; all that was told before is safe when it returns.
    ///
    /// # Errors
    /// What the storage says: nothing is known to be safe then, and the queue has to be opened anew.
    pub fn flush(&mut self) -> io::Result<()> {
        // First, so that power that fails meanwhile is seen by whoever waits.
        self.flusher.index_now()?;
        let mut batch = self.tail.take_batch();
        batch.is_critical = true;
        self.flusher.write(&batch)?;
        self.tail.safe_up_to(batch.position);
        Ok(())
    }
}
