//! Where an embedded queue keeps the bodies of its jobs, and what has happened to them.

use tokio::sync::watch;

use super::QueueClock;
use crate::queue::machine::{Arrival, Fact, Machine, Moment};
use crate::queue::{JobNumber, NewJob, QueueOptions};

/// Keeps bodies and facts. Called under the queue's lock, so nothing of it may wait for long.
pub(crate) trait Shelf: Send + 'static {
    /// Whether what is committed survives.
    const IS_DURABLE: bool;

    /// Whether a body of this size can be stored now.
    fn has_room(&self, bytes: usize) -> bool {
        let _ = bytes;
        true
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

    /// A job that is not finished; `None` where what is stored of it is damaged.
    fn fetch(&mut self, number: JobNumber) -> Option<Stored>;

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

/// Storage failed; what was asked is not known to be safe.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the queue's storage failed: {0}")]
pub(crate) struct StorageError(pub String);

/// How far storage has come: all up to a position is safe, or nothing more will be.
pub(crate) type Progress = Result<u64, StorageError>;

/// A position of the log that is to be safe.
#[derive(Debug)]
pub(crate) struct Commit {
    pub position: u64,
    pub progress: watch::Receiver<Progress>,
}

impl Commit {
    /// Returns when it is safe, or known not to become so.
    pub async fn wait(mut self) -> Result<(), StorageError> {
        let is_decided = |progress: &Progress| match progress {
            Ok(safe) => *safe >= self.position,
            Err(_) => true,
        };
        match self.progress.wait_for(is_decided).await {
            Ok(progress) => progress.clone().map(|_| ()),
            Err(_) => Err(StorageError("it was closed".into())),
        }
    }
}
