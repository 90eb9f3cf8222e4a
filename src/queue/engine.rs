//! What keeps jobs: what an engine has to do, and nothing about how.
//!
//! Everything above, [`Queue`](super::Queue) and its workers, knows queues by these two traits. An engine
//! passes the suite in `tests/queues`, or says in its [`Capabilities`] what it does not have.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use super::{
    Answer, Credit, DeadLetter, JobChange, JobId, JobNumber, JobState, LeasedJob, NewJob, Page,
    Pushed, QueueCounters, QueueError, QueueType, Stale, Token,
};

/// What an engine's methods return.
pub type EngineFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, QueueError>> + Send + 'a>>;

/// Keeps jobs between those who push them and those who do them.
///
/// Dropping a future of it may or may not leave done what was asked; asking again is safe. A lease whose
/// future is dropped gives its jobs back, at once or when the lease ends.
pub trait Engine: Send + Sync + 'static {
    /// What of the promises of a queue it keeps.
    fn capabilities(&self) -> Capabilities;

    /// Takes jobs in, in their order, and returns when they are as safe as the engine says; waits for room until
    /// `deadline`. One result for each job.
    ///
    /// # Errors
    /// For all of them. For one of them: [`QueueError::Full`] and [`QueueError::TooLarge`], not accepted.
    fn push(
        &self,
        jobs: Vec<NewJob>,
        deadline: Instant,
    ) -> EngineFuture<'_, Vec<Result<Pushed, QueueError>>>;

    /// Joins a group of workers.
    ///
    /// # Errors
    /// [`QueueError::NoSuchGroup`].
    fn worker(&self, group: &str) -> EngineFuture<'_, Box<dyn EngineWorker>>;

    /// Dead letters of a group in the order of their numbers, those after `after`, at most `max`.
    ///
    /// # Errors
    /// [`QueueError::Unsupported`] where the engine cannot list them.
    fn dead_letters(
        &self,
        group: &str,
        after: Option<JobNumber>,
        max: usize,
    ) -> EngineFuture<'_, Vec<DeadLetter>>;

    /// The same, saying whether there are more: a page may have fewer than `max` where they are large.
    ///
    /// # Errors
    /// As [`dead_letters`](Self::dead_letters).
    fn dead_letters_page(
        &self,
        group: &str,
        after: Option<JobNumber>,
        max: usize,
    ) -> EngineFuture<'_, Page<DeadLetter>> {
        let items = self.dead_letters(group, after, max);
        Box::pin(async move {
            let items = items.await?;
            // An engine that does not say how many there are may have none behind a full page.
            let last = items.last().filter(|_| items.len() >= max);
            let next = last.map(|letter| letter.number);
            Ok(Page { items, next })
        })
    }

    /// Sends dead letters back, to be tried as if for the first time. Returns how many were there.
    ///
    /// # Errors
    /// As [`dead_letters`](Self::dead_letters).
    fn send_back(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize>;

    /// Deletes dead letters. Returns how many were there.
    ///
    /// # Errors
    /// As [`dead_letters`](Self::dead_letters).
    fn delete(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize>;

    /// The job of an ID, as long as the ID is known.
    ///
    /// # Errors
    /// [`QueueError::Unsupported`] where the engine does not know.
    fn find(&self, id: &JobId) -> EngineFuture<'_, Option<(JobNumber, JobState)>>;

    /// How many jobs are where, in one group.
    ///
    /// # Errors
    /// [`QueueError::NoSuchGroup`].
    fn counters(&self, group: &str) -> EngineFuture<'_, QueueCounters>;

    /// Cancels a job that no worker has yet, in every group of workers.
    ///
    /// # Errors
    /// [`QueueError::Unsupported`] where the engine cannot.
    fn cancel(&self, id: &JobId) -> EngineFuture<'_, JobChange> {
        let _ = id;
        Box::pin(async { Err(QueueError::Unsupported("cancelling a job by its ID")) })
    }

    /// Makes a job that no worker has yet due after this time from now, instead of when it was, in every group of
    /// workers.
    ///
    /// # Errors
    /// [`QueueError::Unsupported`] where the engine cannot.
    fn reschedule(&self, id: &JobId, delay: Duration) -> EngineFuture<'_, JobChange> {
        let _ = (id, delay);
        Box::pin(async { Err(QueueError::Unsupported("rescheduling a job by its ID")) })
    }

    /// Checks that the engine holds this queue; an engine that holds none yet records it.
    ///
    /// # Errors
    /// [`QueueError::WrongQueue`] where it holds another. An engine that does not record it never says so.
    fn claim(&self, queue: &QueueType) -> Result<(), QueueError> {
        let _ = queue;
        Ok(())
    }

    /// Refuses jobs of more bytes from now on: those that push and those that work are behind a wire with that limit.
    fn limit_job_bytes(&self, bytes_max: usize) {
        let _ = bytes_max;
    }

    /// Takes no more jobs and sends none, and returns when all that was accepted is safe. Answers for jobs that are
    /// leased are still taken. When none is leased any more, an engine that holds files has released them.
    fn close(&self) -> EngineFuture<'_, ()>;
}

/// One worker's side of an engine. Dropping it without [`leave`](Self::leave) is a lost connection.
pub trait EngineWorker: Send + Sync + 'static {
    /// How long a job is leased for: to be renewed well before.
    fn lease_time(&self) -> Duration;

    /// Jobs within the credit. None at once where the next job is larger than the credit, and none at `until`
    /// where there is none until then.
    ///
    /// # Errors
    /// Where the engine cannot be reached.
    fn lease(&self, credit: Credit, until: Instant) -> EngineFuture<'_, Vec<LeasedJob>>;

    /// Answers for leased jobs. Returns when the answers are as safe as a push; one result for each.
    ///
    /// # Errors
    /// For all of them, where the engine cannot be reached. For one of them, that its lease is over.
    fn answer(
        &self,
        answers: Vec<(JobNumber, Token, Answer)>,
    ) -> EngineFuture<'_, Vec<Result<(), Stale>>>;

    /// Begins leases anew. An engine without leases answers that all are.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    fn renew(&self, leases: Vec<(JobNumber, Token)>) -> EngineFuture<'_, Vec<Result<(), Stale>>>;

    /// Gives back what it has, unbegun, and goes.
    ///
    /// # Errors
    /// Where the engine cannot be reached; its leases then end by themselves.
    fn leave(&self) -> EngineFuture<'_, ()>;
}

/// Which promises of a queue an engine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// An accepted push survives the death of the process and of the machine.
    pub is_durable: bool,
    /// A late answer is refused.
    pub fences: bool,
    /// Leases end by themselves, one by one, and can be renewed.
    pub leases: bool,
    /// A push with a known job ID is not a second job.
    pub deduplicates: bool,
    /// A push that is sent again by its producer is not a second job.
    pub recognises_pushes: bool,
    /// Jobs of one key are done one at a time, in order.
    pub orders_keys: bool,
    /// Delays of pushes and of attempts.
    pub delays: bool,
    /// Priority classes.
    pub priorities: bool,
    /// Expiry.
    pub expires: bool,
    /// Dead letters can be listed, looked at, sent back and deleted.
    pub dead_letters: bool,
    /// A job's ID can be asked for.
    pub finds: bool,
    /// A job that waits or is delayed can be cancelled and rescheduled by its ID.
    pub cancels: bool,
    /// A full queue makes a push wait.
    pub bounds: bool,
    /// Body, ID and key of the largest job that it takes.
    pub job_bytes_max: usize,
}

impl Capabilities {
    /// Every one of them, and jobs of any size.
    pub const ALL: Self = Self {
        is_durable: true,
        fences: true,
        leases: true,
        deduplicates: true,
        recognises_pushes: true,
        orders_keys: true,
        delays: true,
        priorities: true,
        expires: true,
        dead_letters: true,
        finds: true,
        cancels: true,
        bounds: true,
        job_bytes_max: usize::MAX,
    };
}
