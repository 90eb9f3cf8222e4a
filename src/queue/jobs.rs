//! A worker's jobs: a stream of them, each to be answered.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use capnp::traits::Owned;
use futures_core::Stream;
use tokio::sync::mpsc;

use super::keeper::{self, Ended, Incoming, Lease};
use super::{
    Answer, Attempts, Credit, GROUP_DEFAULT, Identity, JobId, JobNumber, Priority, Queue,
    QueueError, Queueable,
};
use crate::message::{Limits, MessageError, Msg, Plain};
use crate::wire::{RequestId, RequestKey};

/// Settings of a stream of jobs.
#[derive(Debug)]
#[must_use = "no job comes before it is started"]
pub struct JobsBuilder<T> {
    queue: Queue<T>,
    group: String,
    credit: Credit,
}

impl<T: Queueable> JobsBuilder<T> {
    pub(super) fn new(queue: Queue<T>) -> Self {
        Self {
            queue,
            group: GROUP_DEFAULT.to_owned(),
            credit: Credit {
                jobs: 16,
                bytes: 16 << 20,
                takes_any_first: true,
            },
        }
    }

    /// The group of workers to join. Default: [`GROUP_DEFAULT`].
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = group.into();
        self
    }

    /// Jobs that it has at once, waiting here or being done. Default: 16.
    pub fn jobs_max(mut self, jobs: usize) -> Self {
        self.credit.jobs = jobs.max(1);
        self
    }

    /// Bytes of the jobs that it has at once; a single job may have more. Default: 16 MiB.
    pub fn bytes_max(mut self, bytes: usize) -> Self {
        self.credit.bytes = bytes;
        self
    }

    /// Joins the group; jobs begin to come. Their leases are renewed from a thread of their own.
    ///
    /// # Errors
    /// As [`Engine::worker`](super::Engine::worker).
    pub async fn start(self) -> Result<Jobs<T>, QueueError> {
        let engine = Arc::clone(self.queue.checked()?);
        let (receiver, ended) = keeper::start(engine, self.group, self.credit).await?;
        Ok(Jobs {
            receiver,
            ended,
            limits: self.queue.limits,
            type_: PhantomData,
        })
    }
}

/// Leased jobs, one after another, for ever: a `Stream`.
///
/// An error says that the queue could not be asked; the stream goes on and asks again. It ends when the queue
/// is closed. Dropping it gives back, unbegun, what it has not yielded.
pub struct Jobs<T> {
    receiver: mpsc::Receiver<Incoming>,
    ended: Ended,
    limits: Limits,
    type_: PhantomData<fn() -> T>,
}

impl<T> Jobs<T> {
    /// The next job. `None` when the queue is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Job<T>, QueueError>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Takes no more. What is returned resolves when all that it has is answered, and it has let go of the queue.
    pub(super) fn end(self) -> Ended {
        self.ended
    }
}

impl<T> Stream for Jobs<T> {
    type Item = Result<Job<T>, QueueError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.receiver.poll_recv(cx).map(|incoming| {
            Some(incoming?.map(|mut lease| {
                lease.is_taken = true;
                Job {
                    lease,
                    limits: this.limits,
                    type_: PhantomData,
                }
            }))
        })
    }
}

impl<T> fmt::Debug for Jobs<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jobs")
    }
}

/// A job that this worker has, until it answers or its lease ends.
///
/// The lease is renewed by itself, for up to `attempt_max`. Dropping it without an answer is a lost attempt, and
/// a refusal where a panic drops it.
pub struct Job<T> {
    lease: Lease,
    limits: Limits,
    type_: PhantomData<fn() -> T>,
}

impl<T> Job<T> {
    /// It is done. Returns when that is as safe as the queue makes it.
    ///
    /// # Errors
    /// [`QueueError::Stale`] where the lease is over: another worker may do it, or have done it.
    pub async fn ack(self) -> Result<(), QueueError> {
        self.lease.answer(Answer::Done).await
    }

    /// It is to be sent again after this time. Uses up no attempt.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn retry_after(self, time: Duration) -> Result<(), QueueError> {
        let answer = Answer::RetryAfter(time, "put off".into());
        self.lease.answer(answer).await
    }

    /// It could not be done: it is sent again after a while, and goes to the dead letters after so many attempts.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn reject(self, cause: impl ToString) -> Result<(), QueueError> {
        self.lease.answer(Answer::Refuse(cause.to_string())).await
    }

    /// It can never be done: it goes to the dead letters now.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn bury(self, cause: impl ToString) -> Result<(), QueueError> {
        self.lease.answer(Answer::Bury(cause.to_string())).await
    }

    /// Begins the lease anew, and says whether it still holds. It is renewed without this too: ask before
    /// a step that must not be done twice.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn extend(&self) -> Result<(), QueueError> {
        self.lease.renew().await
    }

    /// Answers for a handler that has ended, though others may still have the job.
    pub(super) async fn answer(&self, answer: Answer) -> Result<(), QueueError> {
        self.lease.answer(answer).await
    }

    /// Gives the job back, unless it was answered.
    pub(super) fn end(&self) {
        self.lease.end();
    }

    /// Its number in the queue.
    pub fn number(&self) -> JobNumber {
        self.lease.job.number
    }

    /// Which push it was.
    pub fn identity(&self) -> Identity {
        self.lease.job.identity
    }

    /// The caller's own name for it.
    pub fn id(&self) -> Option<&JobId> {
        self.lease.job.id.as_ref()
    }

    /// Its class.
    pub fn priority(&self) -> Priority {
        self.lease.job.priority
    }

    /// How earlier attempts ended.
    pub fn earlier(&self) -> Attempts {
        self.lease.job.earlier
    }

    /// A request ID that is the same at each attempt: for calls of `$once` methods, so that what a job does is
    /// done once however often the job is sent.
    pub fn request_id(&self) -> RequestId {
        let identity = self.identity();
        let key = match self.id() {
            Some(id) => return RequestId::Key(id.clone()),
            None => RequestKey::new(identity.to_string()),
        };
        key.map_or_else(|_| RequestId::new(), RequestId::Key)
    }
}

impl<T: Plain> Job<T> {
    /// Opens the job for reading in place.
    ///
    /// # Errors
    /// As [`Msg::open`].
    pub fn open(&self) -> Result<Msg<T>, MessageError> {
        Msg::open(self.lease.job.body.clone(), &self.limits)
    }

    /// The job as a plain struct.
    ///
    /// # Errors
    /// As [`Msg::open`] and [`Msg::plain`].
    pub fn plain(&self) -> Result<T, MessageError> {
        self.open()?.plain()
    }

    /// Reads the job in place.
    ///
    /// # Errors
    /// As [`Msg::open`] and [`Msg::get`], and what `read` returns.
    pub fn read<R, E: From<MessageError>>(
        &self,
        read: impl FnOnce(<T::Capnp as Owned>::Reader<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        read(self.open()?.get()?)
    }
}

impl<T> fmt::Debug for Job<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({})", self.number())
    }
}
