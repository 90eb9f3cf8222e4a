//! The task that pushes: what waits, many jobs in one call, one call at a time. So pushes keep their order.

use std::collections::VecDeque;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::super::{BATCH_BYTES_MAX, BATCH_JOBS_MAX};
use super::TRAVEL;
use super::connection::Connection;
use crate::queue::{NewJob, Pushed, QueueError};
use crate::wire::Work;

/// Pushes that wait for the one before.
const PUSHES_MAX: usize = 4096;

/// Where jobs are handed over.
#[derive(Debug)]
pub(super) struct Pusher {
    pushes: mpsc::Sender<Pushing>,
    /// The task ends with this.
    task: AbortHandle,
}

impl Pusher {
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(connection: Connection) -> Self {
        let (pushes, waiting) = mpsc::channel(PUSHES_MAX);
        let task = tokio::spawn(push_all(connection, waiting));
        Self {
            pushes,
            task: task.abort_handle(),
        }
    }

    /// Pushes, behind those that wait.
    pub async fn push(
        &self,
        jobs: Vec<NewJob>,
        deadline: Instant,
    ) -> Result<Vec<Result<Pushed, QueueError>>, QueueError> {
        let (told, tells) = oneshot::channel();
        let pushing = Pushing {
            jobs: jobs.into(),
            deadline,
            results: Vec::new(),
            told,
        };
        match timeout_at(deadline, self.pushes.send(pushing)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(QueueError::Closed),
            Err(_) => {
                let reason = "other pushes were in front of it until its deadline";
                return Err(QueueError::unavailable(reason, Work::NotDone));
            }
        }
        let unknown = |reason| QueueError::unavailable(reason, Work::OutcomeUnknown);
        match timeout_at(deadline + 2 * TRAVEL, tells).await {
            Ok(Ok(results)) => results,
            Ok(Err(_)) => Err(unknown("the connection was closed")),
            Err(_) => Err(unknown("no answer until its deadline")),
        }
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Jobs that somebody waits to be pushed.
struct Pushing {
    jobs: VecDeque<NewJob>,
    deadline: Instant,
    results: Vec<Result<Pushed, QueueError>>,
    told: oneshot::Sender<Result<Vec<Result<Pushed, QueueError>>, QueueError>>,
}

/// Pushes what waits, many jobs in one call, one call at a time.
async fn push_all(connection: Connection, mut waiting: mpsc::Receiver<Pushing>) {
    let mut line: VecDeque<Pushing> = VecDeque::new();
    loop {
        if line.is_empty() {
            match waiting.recv().await {
                Some(pushing) => line.push_back(pushing),
                None => return,
            }
        }
        while line.len() < BATCH_JOBS_MAX
            && let Ok(pushing) = waiting.try_recv()
        {
            line.push_back(pushing);
        }
        let (mut batch, mut bytes, mut deadline) = (Vec::new(), 0, None::<Instant>);
        'gather: for pushing in &line {
            for job in &pushing.jobs {
                bytes += job.bytes();
                let is_over = batch.len() >= BATCH_JOBS_MAX || bytes > BATCH_BYTES_MAX;
                if is_over && !batch.is_empty() {
                    break 'gather;
                }
                batch.push(job.clone());
            }
            deadline = Some(deadline.map_or(pushing.deadline, |d| d.min(pushing.deadline)));
        }
        let deadline = deadline
            .or_else(|| line.front().map(|pushing| pushing.deadline))
            .unwrap_or_else(Instant::now);
        let mut outcome = match batch.is_empty() {
            true => Ok(Vec::new()),
            false => connection.push(&batch, deadline).await,
        }
        .map(VecDeque::from);
        let now = Instant::now();
        let mut left = batch.len();
        for pushing in &mut line {
            let of_batch = pushing.jobs.len().min(left);
            left -= of_batch;
            match &mut outcome {
                Ok(results) => {
                    for _ in 0..of_batch {
                        let result = results.pop_front().unwrap_or(Err(QueueError::Full));
                        let waits_on = matches!(result, Err(QueueError::Full));
                        if waits_on && now < pushing.deadline {
                            // It was another's deadline; these stay the first in line.
                            break;
                        }
                        pushing.jobs.pop_front();
                        pushing.results.push(result);
                    }
                    if pushing.results.last().is_some_and(Result::is_err) && now >= pushing.deadline
                    {
                        let rest = pushing.jobs.drain(..);
                        pushing.results.extend(rest.map(|_| Err(QueueError::Full)));
                    }
                }
                Err(error) if of_batch > 0 => {
                    pushing
                        .results
                        .extend((0..of_batch).map(|_| Err(error.clone())));
                    pushing.jobs.drain(..of_batch);
                }
                Err(_) => {}
            }
            if left == 0 {
                break;
            }
        }
        while let Some(pushing) = line.front()
            && pushing.jobs.is_empty()
        {
            if let Some(pushing) = line.pop_front() {
                // Whoever does not wait any more does not want to know.
                let _ = pushing.told.send(Ok(pushing.results));
            }
        }
    }
}
