//! The task that pushes: what waits, many jobs in one call, one call at a time. So pushes keep their order.
//!
//! A push ends at its deadline, whatever the queue and its connection do: what was never sent is *not done* then. A call
//! that failed is made again while there is time, since a push is known by its identity.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::{BATCH_BYTES_MAX, BATCH_JOBS_MAX};
use super::PUSH_GRACE;
use super::connection::{Connection, PushFailed};
use crate::queue::{NewJob, Pushed, QueueError};
use crate::wire::Work;

/// Pushes that wait for the one before.
const PUSHES_MAX: usize = 4096;
/// How long to wait before a call that failed is made again, at first …
const RETRY_MIN: Duration = Duration::from_millis(10);
/// … and at most.
const RETRY_MAX: Duration = Duration::from_millis(250);
/// How long after its deadline a push ends that the task does not end: besides the call's own time.
const LATE: Duration = Duration::from_millis(20);

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
        let phase = Arc::new(Phase::default());
        let pushing = Pushing::new(jobs, deadline, told, Arc::clone(&phase));
        match timeout_at(deadline + LATE, self.pushes.send(pushing)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(QueueError::unavailable(TASK_ENDED, Work::NotDone)),
            Err(_) => return Err(QueueError::unavailable(BEHIND_OTHERS, Work::NotDone)),
        }
        let told = timeout_at(deadline + PUSH_GRACE + LATE, tells).await;
        let was_sent = || !phase.give_up();
        match told {
            Ok(Ok(results)) => results,
            Ok(Err(_)) if was_sent() => {
                Err(QueueError::unavailable(TASK_ENDED, Work::OutcomeUnknown))
            }
            Ok(Err(_)) => Err(QueueError::unavailable(TASK_ENDED, Work::NotDone)),
            Err(_) if was_sent() => {
                let reason = "no answer until its deadline";
                Err(QueueError::unavailable(reason, Work::OutcomeUnknown))
            }
            Err(_) => Err(QueueError::unavailable(BEHIND_OTHERS, Work::NotDone)),
        }
    }
}

const BEHIND_OTHERS: &str = "other pushes were in front of it until its deadline";
const TASK_ENDED: &str =
    "the tokio runtime in which the queue was connected has shut down: connect anew";

impl Drop for Pusher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How far a push is: who waits for it and the task that sends it agree on whether it was sent.
#[derive(Debug, Default)]
struct Phase(AtomicU8);

impl Phase {
    const SENT: u8 = 1;
    const GIVEN_UP: u8 = 2;

    fn change(&self, to: u8) -> bool {
        let changed = self
            .0
            .compare_exchange(0, to, Ordering::AcqRel, Ordering::Acquire);
        changed.is_ok() || changed == Err(to)
    }

    /// Says whether it may be sent.
    fn send(&self) -> bool {
        self.change(Self::SENT)
    }

    /// Says whether it never will be.
    fn give_up(&self) -> bool {
        self.change(Self::GIVEN_UP)
    }
}

/// Jobs that somebody waits to be pushed.
struct Pushing {
    /// Each with its place among the results.
    jobs: VecDeque<(usize, NewJob)>,
    deadline: Instant,
    results: Vec<Option<Result<Pushed, QueueError>>>,
    told: oneshot::Sender<Result<Vec<Result<Pushed, QueueError>>, QueueError>>,
    phase: Arc<Phase>,
    /// What to say of those that are left at the deadline.
    last: QueueError,
    /// Whether a call with them had no answer.
    may_be_done: bool,
}

impl Pushing {
    fn new(
        jobs: Vec<NewJob>,
        deadline: Instant,
        told: oneshot::Sender<Result<Vec<Result<Pushed, QueueError>>, QueueError>>,
        phase: Arc<Phase>,
    ) -> Self {
        Self {
            results: jobs.iter().map(|_| None).collect(),
            jobs: jobs.into_iter().enumerate().collect(),
            deadline,
            told,
            phase,
            last: QueueError::unavailable(BEHIND_OTHERS, Work::NotDone),
            may_be_done: false,
        }
    }

    /// Takes the answers for its first jobs. Those for which there was no room wait on, while there is time.
    fn answered(
        &mut self,
        results: impl Iterator<Item = Result<Pushed, QueueError>>,
        now: Instant,
    ) {
        let mut wait = VecDeque::new();
        for result in results {
            let Some((place, job)) = self.jobs.pop_front() else {
                return;
            };
            if matches!(result, Err(QueueError::Full)) && now < self.deadline {
                self.last = QueueError::Full;
                self.may_be_done = false;
                wait.push_back((place, job));
            } else {
                self.results[place] = Some(result);
            }
        }
        wait.append(&mut self.jobs);
        self.jobs = wait;
    }

    /// A call with some of its jobs failed.
    fn failed(&mut self, error: &QueueError, is_final: bool) {
        let is_unknown =
            matches!(error, QueueError::Unavailable { work, .. } if *work != Work::NotDone);
        self.may_be_done |= is_unknown;
        self.last = error.clone();
        if is_final {
            self.end();
        }
    }

    /// Nothing more is tried.
    fn end(&mut self) {
        let error = match &self.last {
            QueueError::Unavailable { reason, .. } if self.may_be_done => {
                QueueError::unavailable(reason, Work::OutcomeUnknown)
            }
            other => other.clone(),
        };
        for (place, _) in self.jobs.drain(..) {
            self.results[place] = Some(Err(error.clone()));
        }
    }

    fn tell(self) {
        let results = self.results.into_iter();
        let results = results.map(|result| result.unwrap_or(Err(QueueError::Closed)));
        // Whoever does not wait any more does not want to know.
        let _ = self.told.send(Ok(results.collect()));
    }
}

/// Pushes what waits, many jobs in one call, one call at a time.
async fn push_all(connection: Connection, mut waiting: mpsc::Receiver<Pushing>) {
    let mut line: VecDeque<Pushing> = VecDeque::new();
    let mut retry = RETRY_MIN;
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
        let (batch, deadline) = gather(&mut line);
        if !batch.is_empty() {
            let outcome = connection.push(&batch, deadline).await;
            let failed = settle(&mut line, batch.len(), outcome);
            if failed {
                let wait = Instant::now() + retry;
                let first = line.iter().map(|pushing| pushing.deadline).min();
                sleep_until(first.map_or(wait, |first| first.min(wait))).await;
                retry = (retry * 2).min(RETRY_MAX);
            } else {
                retry = RETRY_MIN;
            }
        }
        tell(&mut line);
    }
}

/// The jobs of the next call, and until when it may take. Drops what is not waited for any more.
fn gather(line: &mut VecDeque<Pushing>) -> (Vec<NewJob>, Instant) {
    let (mut batch, mut bytes, mut deadline) = (Vec::new(), 0, None::<Instant>);
    'gather: for pushing in line.iter_mut() {
        for (_, job) in &pushing.jobs {
            bytes += job.bytes();
            let is_over = batch.len() >= BATCH_JOBS_MAX || bytes > BATCH_BYTES_MAX;
            if is_over && !batch.is_empty() {
                break 'gather;
            }
            if !pushing.phase.send() {
                pushing.jobs.clear();
                break;
            }
            batch.push(job.clone());
            // That of another must not make it later.
            deadline = Some(deadline.map_or(pushing.deadline, |d| d.min(pushing.deadline)));
        }
    }
    (batch, deadline.unwrap_or_else(Instant::now))
}

/// Gives each of the first so many jobs its answer. Says whether the call is to be made again after a while.
fn settle(
    line: &mut VecDeque<Pushing>,
    count: usize,
    outcome: Result<Vec<Result<Pushed, QueueError>>, PushFailed>,
) -> bool {
    let now = Instant::now();
    let mut left = count;
    let (mut results, failed) = match outcome {
        Ok(results) => (results.into_iter(), None),
        Err(PushFailed::Passing(error)) => (Vec::new().into_iter(), Some((error, false))),
        Err(PushFailed::Final(error)) => (Vec::new().into_iter(), Some((error, true))),
    };
    for pushing in line {
        let of_batch = pushing.jobs.len().min(left);
        left -= of_batch;
        match &failed {
            None => {
                let results =
                    (0..of_batch).map(|_| results.next().unwrap_or(Err(QueueError::Full)));
                pushing.answered(results, now);
            }
            Some((error, is_final)) if of_batch > 0 => pushing.failed(error, *is_final),
            Some(_) => {}
        }
        if left == 0 {
            break;
        }
    }
    failed.is_some_and(|(_, is_final)| !is_final)
}

/// Tells those that have all their answers, and those whose time is over.
fn tell(line: &mut VecDeque<Pushing>) {
    let now = Instant::now();
    for mut pushing in std::mem::take(line) {
        if now >= pushing.deadline {
            pushing.end();
        }
        match pushing.jobs.is_empty() {
            true => pushing.tell(),
            false => line.push_back(pushing),
        }
    }
}
