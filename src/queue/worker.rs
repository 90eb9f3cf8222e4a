//! A worker that does so many jobs at a time, and drains when it is told to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::error::Then;
use super::{Answer, GROUP_DEFAULT, Job, Jobs, Queue, QueueError, Queueable, Refusal};
use crate::call::raw::deadline_after;

/// How long a worker that has drained waits for its queue to hear of it.
const LEAVE_MIN: Duration = Duration::from_millis(40);

/// Settings of a worker.
#[must_use = "a worker does nothing before it is started"]
pub struct WorkerBuilder<T, H> {
    queue: Queue<T>,
    at_once: usize,
    group: String,
    bytes_max: usize,
    handler: H,
}

impl<T: Queueable, H> WorkerBuilder<T, H> {
    pub(super) fn new(queue: Queue<T>, at_once: usize, handler: H) -> Self {
        Self {
            queue,
            at_once: at_once.max(1),
            group: GROUP_DEFAULT.to_owned(),
            bytes_max: 16 << 20,
            handler,
        }
    }

    /// The group of workers to join. Default: [`GROUP_DEFAULT`].
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = group.into();
        self
    }

    /// Bytes of the jobs that it has at once; a single job may have more. Default: 16 MiB.
    pub fn bytes_max(mut self, bytes: usize) -> Self {
        self.bytes_max = bytes;
        self
    }

    /// Starts it. A handler that returns `Ok` has done its job, whatever still has the job; any error refuses it, and so
    /// does a panic.
    ///
    /// # Errors
    /// As [`Engine::worker`](super::Engine::worker).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start<F>(self) -> Result<Worker, QueueError>
    where
        H: Fn(Arc<Job<T>>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), Refusal>> + Send + 'static,
    {
        let jobs = self
            .queue
            .jobs()
            .group(self.group)
            .jobs_max(self.at_once)
            .bytes_max(self.bytes_max)
            .start()
            .await?;
        let (stop, stopped) = watch::channel(None);
        let task = tokio::spawn(drive(jobs, Arc::new(self.handler), stopped));
        Ok(Worker { stop, task })
    }
}

impl<T: Queueable, H> fmt::Debug for WorkerBuilder<T, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "WorkerBuilder({:?}, {} at once)",
            self.queue, self.at_once
        )
    }
}

/// A worker that runs. Dropping it ends its handlers at once, as lost attempts.
#[derive(Debug)]
pub struct Worker {
    stop: watch::Sender<Option<Instant>>,
    task: JoinHandle<()>,
}

impl Worker {
    /// Takes no more jobs, gives back what it has not begun, and waits up to `wait` for what it has. Handlers
    /// that are not done by then are ended: lost attempts, of which none is used up.
    pub async fn drain(mut self, wait: Duration) {
        self.stop.send_replace(Some(deadline_after(wait)));
        // It ends by itself; handlers that panic do not reach it.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn drive<T, H, F>(
    mut jobs: Jobs<T>,
    handler: Arc<H>,
    mut stopped: watch::Receiver<Option<Instant>>,
) where
    T: Queueable,
    H: Fn(Arc<Job<T>>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), Refusal>> + Send + 'static,
{
    let mut running = JoinSet::new();
    loop {
        let job = tokio::select! {
            biased;
            _ = stopped.changed() => break,
            job = jobs.next() => job,
            Some(_) = running.join_next(), if !running.is_empty() => continue,
        };
        match job {
            Some(Ok(job)) => {
                let handler = Arc::clone(&handler);
                // As many as the stream's credit can run at once.
                running.spawn(run(job, handler));
            }
            Some(Err(error)) => tracing::warn!(%error, "no jobs"),
            None => break,
        }
    }
    let ended = jobs.end();
    let until = (*stopped.borrow()).unwrap_or_else(|| Instant::now() + Duration::from_secs(30));
    loop {
        tokio::select! {
            ended = running.join_next() => if ended.is_none() { break },
            () = sleep_until(until) => {
                running.shutdown().await;
                break;
            }
        }
    }
    // So that the queue can be opened again at once. A queue that does not answer is not waited for.
    let until = until.max(Instant::now() + LEAVE_MIN);
    let _ = timeout_at(until, ended.wait()).await;
}

/// Answers for its job when the handler has ended, however it has.
struct Running<T>(Arc<Job<T>>);

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.0.end();
    }
}

async fn run<T, H, F>(job: Job<T>, handler: Arc<H>)
where
    T: Queueable,
    H: Fn(Arc<Job<T>>) -> F,
    F: Future<Output = Result<(), Refusal>>,
{
    let number = job.number();
    let job = Running(Arc::new(job));
    let done = handler(Arc::clone(&job.0)).await;
    let answer = match done {
        Ok(()) => Answer::Done,
        Err(Refusal { cause, then }) => match then {
            Then::Backoff => Answer::Refuse(cause),
            Then::After(time) => Answer::RetryAfter(time, cause),
            Then::Never => Answer::Bury(cause),
        },
    };
    if let Err(error) = job.0.answer(answer).await {
        tracing::warn!(%number, %error, "an answer was not taken");
    }
}
