//! Where an embedded queue keeps the bodies of its jobs, and what has happened to them.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{Commit, QueueClock};
use crate::queue::machine::{Arrival, Fact, Machine, Moment};
use crate::queue::{JobNumber, NewJob, QueueOptions, QueueType};

/// Keeps bodies and facts. Called under the queue's lock, so nothing of it may wait for long.
pub(crate) trait Shelf: Send + 'static {
    /// Whether what is committed survives.
    const IS_DURABLE: bool;

    /// Which queue it holds, where that was said.
    fn holds(&self) -> Option<&QueueType>;

    /// Keeps which queue it holds.
    fn claim(&mut self, now: Moment, machine: &Machine, holds: QueueType);

    /// Whether a body of this size can be stored now.
    fn has_room(&self, bytes: usize) -> bool {
        let _ = bytes;
        true
    }

    /// Whom to tell when there is room again, though no job is finished.
    fn tell_of_room(&mut self, room: &Arc<Notify>) {
        let _ = room;
    }

    /// Stores a job; its `Pushed` follows in [`note`](Self::note).
    fn store(
        &mut self,
        now: Moment,
        number: JobNumber,
        arrival: &Arrival,
        job: &NewJob,
        machine: &Machine,
    );

    /// Something has happened. The machine is as it is after all facts of this step.
    fn note(&mut self, now: Moment, fact: &Fact, machine: &Machine);

    /// A job that is not finished, and is of so many bytes; `None` where what is stored of it is damaged, and set aside.
    ///
    /// # Errors
    /// Where it cannot be read at present. Nothing is known of it then, and nothing was set aside.
    fn fetch(&mut self, number: JobNumber, bytes: usize) -> Result<Option<Stored>, StorageError>;

    /// Begins to make all of it safe; `None` where there is nothing to wait for.
    fn commit(&mut self, now: Moment, machine: &Machine) -> Option<Commit>;

    /// Where storage has failed, tries to bring it back, and gives the machine as storage has it.
    fn repair(
        &mut self,
        options: &QueueOptions,
        clock: &QueueClock,
    ) -> Result<Option<Machine>, StorageError> {
        let _ = (options, clock);
        Ok(None)
    }
}

/// A job as it was stored.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub job: NewJob,
    pub pushed: Moment,
}

/// Storage failed; what was asked is not known to be safe, or cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the queue's storage failed: {0}")]
pub(crate) struct StorageError(pub String);

#[cfg(feature = "durable")]
impl StorageError {
    pub fn unreadable(number: JobNumber, error: &std::io::Error) -> Self {
        Self(format!("job {number} cannot be read: {error}"))
    }
}
