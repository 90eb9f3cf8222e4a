//! A queue in memory: as safe as its process.

use std::collections::HashMap;

use super::{Commit, Embedded, QueueClock, Shelf, StorageError, Stored};
use crate::queue::machine::{Arrival, Fact, Machine, Moment};
use crate::queue::{JobNumber, NewJob, QueueOptions, QueueType};

/// A queue in memory. What is in it is lost with its process.
///
/// ```
/// # use bowline::queue::{Memory, QueueOptions};
/// let engine = Memory::new(QueueOptions::default().with_jobs_max(1000));
/// ```
#[derive(Clone, Debug)]
pub struct Memory {
    queue: Embedded<Jobs>,
}

#[derive(Debug, Default)]
pub(crate) struct Jobs {
    stored: HashMap<JobNumber, Stored>,
    holds: Option<QueueType>,
}

impl Memory {
    /// An empty queue.
    pub fn new(options: QueueOptions) -> Self {
        Self::with_clock(options, QueueClock::default())
    }

    /// With a clock of its own, for tests.
    pub fn with_clock(options: QueueOptions, clock: QueueClock) -> Self {
        // A late answer from before a restart shows a token of another opening.
        let opening = fastrand::u32(..1 << 24);
        let machine = Machine::new(options, opening, super::secret());
        Self {
            queue: Embedded::new(machine, Jobs::default(), clock),
        }
    }
}

impl Shelf for Jobs {
    const IS_DURABLE: bool = false;

    fn holds(&self) -> Option<&QueueType> {
        self.holds.as_ref()
    }

    fn claim(&mut self, _: Moment, _: &Machine, holds: QueueType) {
        self.holds = Some(holds);
    }

    fn store(&mut self, now: Moment, number: JobNumber, _: &Arrival, job: &NewJob, _: &Machine) {
        let job = job.clone();
        self.stored.insert(number, Stored { job, pushed: now });
    }

    fn note(&mut self, _: Moment, fact: &Fact, machine: &Machine) {
        if let Fact::Finished { number, .. } = fact
            && !machine.is_live(*number)
        {
            self.stored.remove(number);
        }
    }

    fn fetch(&mut self, number: JobNumber, _: usize) -> Result<Option<Stored>, StorageError> {
        Ok(self.stored.get(&number).cloned())
    }

    fn commit(&mut self, _: Moment, _: &Machine) -> Option<Commit> {
        None
    }
}

/// Passes every method on to the queue that an engine wraps.
macro_rules! delegate_engine {
    ($type:ty) => {
        impl $crate::queue::Engine for $type {
            fn capabilities(&self) -> $crate::queue::Capabilities {
                self.queue.capabilities()
            }

            fn push(
                &self,
                jobs: Vec<$crate::queue::NewJob>,
                deadline: tokio::time::Instant,
            ) -> $crate::queue::EngineFuture<
                '_,
                Vec<Result<$crate::queue::Pushed, $crate::queue::QueueError>>,
            > {
                self.queue.push(jobs, deadline)
            }

            fn worker(
                &self,
                group: &str,
            ) -> $crate::queue::EngineFuture<'_, Box<dyn $crate::queue::EngineWorker>> {
                self.queue.worker(group)
            }

            fn dead_letters(
                &self,
                group: &str,
                after: Option<$crate::queue::JobNumber>,
                max: usize,
            ) -> $crate::queue::EngineFuture<'_, Vec<$crate::queue::DeadLetter>> {
                self.queue.dead_letters(group, after, max)
            }

            fn send_back(
                &self,
                group: &str,
                numbers: Vec<$crate::queue::JobNumber>,
            ) -> $crate::queue::EngineFuture<'_, usize> {
                self.queue.send_back(group, numbers)
            }

            fn delete(
                &self,
                group: &str,
                numbers: Vec<$crate::queue::JobNumber>,
            ) -> $crate::queue::EngineFuture<'_, usize> {
                self.queue.delete(group, numbers)
            }

            fn find(
                &self,
                id: &$crate::queue::JobId,
            ) -> $crate::queue::EngineFuture<
                '_,
                Option<($crate::queue::JobNumber, $crate::queue::JobState)>,
            > {
                self.queue.find(id)
            }

            fn counters(
                &self,
                group: &str,
            ) -> $crate::queue::EngineFuture<'_, $crate::queue::QueueCounters> {
                self.queue.counters(group)
            }

            fn close(&self) -> $crate::queue::EngineFuture<'_, ()> {
                self.queue.close()
            }

            fn dead_letters_page(
                &self,
                group: &str,
                after: Option<$crate::queue::JobNumber>,
                max: usize,
            ) -> $crate::queue::EngineFuture<'_, $crate::queue::Page<$crate::queue::DeadLetter>>
            {
                self.queue.dead_letters_page(group, after, max)
            }

            fn cancel(
                &self,
                id: &$crate::queue::JobId,
            ) -> $crate::queue::EngineFuture<'_, $crate::queue::JobChange> {
                self.queue.cancel(id)
            }

            fn reschedule(
                &self,
                id: &$crate::queue::JobId,
                delay: std::time::Duration,
            ) -> $crate::queue::EngineFuture<'_, $crate::queue::JobChange> {
                self.queue.reschedule(id, delay)
            }

            fn claim(
                &self,
                queue: &$crate::queue::QueueType,
            ) -> Result<(), $crate::queue::QueueError> {
                self.queue.claim(queue)
            }

            fn limit_job_bytes(&self, bytes_max: usize) {
                self.queue.limit_job_bytes(bytes_max);
            }
        }
    };
}
#[cfg(feature = "durable")]
pub(crate) use delegate_engine;

delegate_engine!(Memory);
