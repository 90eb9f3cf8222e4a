//! A push that is ready to be made: await it, or say first how it should be made.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use super::queue::push_deadline;
use super::{JobId, NewJob, Priority, Pushed, Queue, QueueError, Queueable};

/// A push of one job. Nothing happens before it is awaited.
///
/// Dropping the future that it becomes may or may not leave the job pushed; with a job ID, another
/// push of it tells.
#[must_use = "a job is not pushed before this is awaited"]
#[derive(Debug)]
pub struct Push<'a, T> {
    queue: &'a Queue<T>,
    job: Result<NewJob, QueueError>,
    deadline: Option<Instant>,
}

impl<'a, T> Push<'a, T> {
    pub(super) fn new(queue: &'a Queue<T>, job: Result<NewJob, QueueError>) -> Self {
        Self {
            queue,
            job,
            deadline: None,
        }
    }

    /// The caller's own name for the job: pushed again within the retention time, it is the same job.
    pub fn id(self, id: JobId) -> Self {
        self.with(|job| job.id = Some(id))
    }

    /// How long it is not to be sent to a worker.
    pub fn delay(self, delay: Duration) -> Self {
        self.with(|job| job.delay = delay)
    }

    /// Which of the jobs that are ready goes first.
    pub fn priority(self, priority: Priority) -> Self {
        self.with(|job| job.priority = priority)
    }

    /// How long after this push it is no longer worth doing: it is dropped then, and counted.
    pub fn expires_after(self, time: Duration) -> Self {
        self.with(|job| job.expires_after = Some(time))
    }

    /// How long to wait for room, instead of 10 s.
    pub fn wait_max(self, wait: Duration) -> Self {
        let deadline = push_deadline(Some(wait));
        self.deadline(deadline)
    }

    /// Until when to wait for room.
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    fn with(mut self, change: impl FnOnce(&mut NewJob)) -> Self {
        if let Ok(job) = &mut self.job {
            change(job);
        }
        self
    }
}

impl<'a, T: Queueable + 'a> IntoFuture for Push<'a, T> {
    type Output = Result<Pushed, QueueError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self {
            queue,
            job,
            deadline,
        } = self;
        let engine = queue.checked().cloned();
        Box::pin(async move {
            let deadline = deadline.unwrap_or_else(|| push_deadline(None));
            let mut results = engine?.push(vec![job?], deadline).await?;
            // One result for each job.
            results.pop().unwrap_or(Err(QueueError::Closed))
        })
    }
}
