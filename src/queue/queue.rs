//! The queue of a schema's struct, whichever engine is behind it.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{
    Capabilities, DeadLetter, Engine, GROUP_DEFAULT, JobChange, JobId, JobNumber, JobState,
    JobsBuilder, Memory, NewJob, Page, Producer, Push, Pushed, QueueCounters, QueueError,
    QueueOptions, QueueType, WorkerBuilder,
};
use crate::call::raw::deadline_after;
use crate::message::{Limits, MessageError, Msg, Plain, check_nesting};
use crate::schema::Described;

/// A struct with `$queue`: what is pushed, and through which queue.
pub trait Queueable: Plain + Described + Send + 'static {
    /// The queue's name.
    const NAME: &'static str;

    /// The value of the field with `$key`: jobs with equal keys are done one at a time, in order.
    fn key(&self) -> Option<Cow<'_, str>>;
}

/// How long a push waits where nobody says.
const PUSH_WAIT: Duration = Duration::from_secs(10);

/// A queue of jobs of one type. Cheap to clone; clones are one producer.
///
/// ```
/// # use bowline_test_schemas::everything::Thumbnail;
/// # use bowline::queue::{Queue, QueueOptions};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let queue = Queue::<Thumbnail>::memory(QueueOptions::default());
/// queue.push(&Thumbnail { image: "cat.jpg".into(), ..Default::default() }).await?;
///
/// let mut jobs = queue.jobs().start().await?;
/// let job = jobs.next().await.expect("one was pushed")?;
/// assert_eq!(job.plain()?.image, "cat.jpg");
/// job.ack().await?;
/// # Ok(()) }
/// ```
pub struct Queue<T> {
    engine: Arc<dyn Engine>,
    /// Why the engine is not to be used: it holds another queue.
    refused: Option<QueueError>,
    pub(super) producer: Producer,
    pub(super) limits: Limits,
    type_: PhantomData<fn() -> T>,
}

impl<T: Queueable> Queue<T> {
    /// A queue in memory: what is in it is lost with its process.
    pub fn memory(options: QueueOptions) -> Self {
        Self::on(Memory::new(options))
    }

    /// A queue in another process, which serves it with a [`QueueService`](super::QueueService) under the name in
    /// its schema.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] where there is no such queue, or nobody answers for 10 s.
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub async fn connect(endpoint: impl Into<String>) -> Result<Self, QueueError> {
        Ok(Self::on(
            super::Remote::builder().connect(endpoint, T::NAME).await?,
        ))
    }

    /// A queue on any engine, pushed to by a producer that ends with this process. Where the engine holds another
    /// queue, every method of this one fails with [`QueueError::WrongQueue`].
    pub fn on(engine: impl Engine) -> Self {
        Self::shared(Arc::new(engine))
    }

    /// The same, for an engine that others use too.
    pub fn shared(engine: Arc<dyn Engine>) -> Self {
        let queue = QueueType {
            name: T::NAME.to_owned(),
            type_name: T::INFO.name.to_owned(),
            type_id: T::INFO.id,
        };
        Self {
            refused: engine.claim(&queue).err(),
            engine,
            producer: Producer::ephemeral(),
            limits: Limits::default(),
            type_: PhantomData,
        }
    }

    /// Pushes as this producer, whose ID is the same after a restart. A push that is made again after a restart is
    /// another push all the same: give jobs an [ID](Push::id) to make them known.
    #[must_use]
    pub fn with_producer(mut self, producer: Producer) -> Self {
        self.producer = producer;
        self
    }

    /// What reading a job may cost.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The engine, to serve it or to ask what it can do.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// What of the promises of a queue its engine keeps.
    pub fn capabilities(&self) -> Capabilities {
        self.engine.capabilities()
    }

    /// A push of one job. Await it, or say first how it should be made.
    pub fn push(&self, job: &T) -> Push<'_, T> {
        Push::new(self, self.encode(job))
    }

    /// Pushes a received message as it is, under the key that it has: with the fields and members of unions that this
    /// program's schema does not have.
    ///
    /// A message that cannot be read fails the push, when it is awaited.
    pub fn push_message(&self, job: &Msg<T>) -> Push<'_, T> {
        let body = job.to_bytes();
        let new = check_nesting::<T>(&body).and_then(|()| job.plain());
        let new = new.map(|plain| self.new_job(&plain, body));
        Push::new(self, new.map_err(QueueError::from))
    }

    /// Pushes jobs in their order, and returns when all are as safe as the queue says; one result for each.
    ///
    /// Cheaper than one push after another. Waits for room for at most 10 s; see
    /// [`push_all_within`](Self::push_all_within).
    ///
    /// # Errors
    /// As [`Engine::push`].
    pub async fn push_all<'a>(
        &self,
        jobs: impl IntoIterator<Item = &'a T>,
    ) -> Result<Vec<Result<Pushed, QueueError>>, QueueError>
    where
        T: 'a,
    {
        self.push_all_within(jobs, PUSH_WAIT).await
    }

    /// The same, with the time that it may wait.
    ///
    /// # Errors
    /// As [`Engine::push`].
    pub async fn push_all_within<'a>(
        &self,
        jobs: impl IntoIterator<Item = &'a T>,
        wait_max: Duration,
    ) -> Result<Vec<Result<Pushed, QueueError>>, QueueError>
    where
        T: 'a,
    {
        let jobs: Result<Vec<NewJob>, QueueError> =
            jobs.into_iter().map(|job| self.encode(job)).collect();
        let deadline = deadline_after(wait_max);
        self.checked()?.push(jobs?, deadline).await
    }

    /// The engine, if it holds this queue.
    pub(super) fn checked(&self) -> Result<&Arc<dyn Engine>, QueueError> {
        match &self.refused {
            None => Ok(&self.engine),
            Some(error) => Err(error.clone()),
        }
    }

    fn encode(&self, job: &T) -> Result<NewJob, QueueError> {
        Ok(self.new_job(job, job.to_bytes()?))
    }

    fn new_job(&self, job: &T, body: Bytes) -> NewJob {
        let mut new = NewJob::new(self.producer.identity(), body);
        new.key = job.key().map(|key| Bytes::from(key.into_owned()));
        new
    }

    /// A stream of leased jobs, of a worker that does as it likes with them.
    pub fn jobs(&self) -> JobsBuilder<T> {
        JobsBuilder::new(self.clone())
    }

    /// A worker that does `at_once` jobs at a time.
    pub fn worker<H>(&self, at_once: usize, handler: H) -> WorkerBuilder<T, H> {
        WorkerBuilder::new(self.clone(), at_once, handler)
    }

    /// How many jobs are where, for the default group of workers.
    ///
    /// # Errors
    /// As [`Engine::counters`].
    pub async fn counters(&self) -> Result<QueueCounters, QueueError> {
        self.checked()?.counters(GROUP_DEFAULT).await
    }

    /// The job of an ID that a push gave, as long as the ID is known.
    ///
    /// # Errors
    /// As [`Engine::find`].
    pub async fn find(&self, id: &JobId) -> Result<Option<(JobNumber, JobState)>, QueueError> {
        self.checked()?.find(id).await
    }

    /// Cancels the job of an ID, if no worker has it yet. Its ID stays known, so that pushing it again is no new job.
    ///
    /// # Errors
    /// As [`Engine::cancel`].
    pub async fn cancel(&self, id: &JobId) -> Result<JobChange, QueueError> {
        self.checked()?.cancel(id).await
    }

    /// Makes the job of an ID due after this time from now, instead of when it was, if no worker has it yet. It takes a
    /// new place in the line of its key when it is due.
    ///
    /// # Errors
    /// As [`Engine::reschedule`].
    pub async fn reschedule(&self, id: &JobId, delay: Duration) -> Result<JobChange, QueueError> {
        self.checked()?.reschedule(id, delay).await
    }

    /// The dead letters of the default group.
    pub fn dead_letters(&self) -> DeadLetters<'_, T> {
        self.dead_letters_of(GROUP_DEFAULT)
    }

    /// The dead letters of a group.
    pub fn dead_letters_of<'a>(&'a self, group: &'a str) -> DeadLetters<'a, T> {
        DeadLetters { queue: self, group }
    }

    /// Takes no more jobs and sends none, and returns when all that was accepted is safe. Answers for jobs that
    /// workers have are still taken; when there are none any more, the directory of a queue on disk can be opened again
    /// at once. Workers may be drained before or after.
    ///
    /// # Errors
    /// As [`Engine::close`].
    pub async fn close(&self) -> Result<(), QueueError> {
        self.engine.close().await
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            engine: Arc::clone(&self.engine),
            refused: self.refused.clone(),
            producer: self.producer.clone(),
            limits: self.limits,
            type_: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue<{}>", std::any::type_name::<T>())
    }
}

/// The jobs that nobody could do, of one group of workers.
#[derive(Clone, Copy)]
pub struct DeadLetters<'a, T> {
    queue: &'a Queue<T>,
    group: &'a str,
}

impl<T: Queueable> DeadLetters<'_, T> {
    /// Lists those after `after`, in the order of their numbers, at most `max`. The page says where the next one begins,
    /// also where it has fewer since they are large.
    ///
    /// # Errors
    /// As [`Engine::dead_letters`].
    pub async fn list(
        &self,
        after: Option<JobNumber>,
        max: usize,
    ) -> Result<Page<DeadLetter>, QueueError> {
        let engine = self.queue.checked()?;
        engine.dead_letters_page(self.group, after, max).await
    }

    /// The job in a dead letter.
    ///
    /// # Errors
    /// As [`Msg::open`].
    pub fn open(&self, letter: &DeadLetter) -> Result<Msg<T>, MessageError> {
        Msg::open(letter.body.clone(), &self.queue.limits)
    }

    /// Sends them back, to be tried as if for the first time. Returns how many were there.
    ///
    /// # Errors
    /// As [`Engine::send_back`].
    pub async fn send_back(&self, numbers: Vec<JobNumber>) -> Result<usize, QueueError> {
        let engine = self.queue.checked()?;
        engine.send_back(self.group, numbers).await
    }

    /// Deletes them. Returns how many were there.
    ///
    /// # Errors
    /// As [`Engine::delete`].
    pub async fn delete(&self, numbers: Vec<JobNumber>) -> Result<usize, QueueError> {
        let engine = self.queue.checked()?;
        engine.delete(self.group, numbers).await
    }
}

impl<T> fmt::Debug for DeadLetters<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeadLetters({})", self.group)
    }
}

pub(super) fn push_deadline(wait_max: Option<Duration>) -> tokio::time::Instant {
    deadline_after(wait_max.unwrap_or(PUSH_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_longer_than_the_clock_can_say_is_a_long_one() {
        let hour = tokio::time::Instant::now() + Duration::from_secs(3600);
        assert!(push_deadline(Some(Duration::MAX)) > hour);
    }
}
