//! An engine whose queue is in another process.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

use super::codec;
use super::{
    ANSWER, BATCH_BYTES_MAX, BATCH_JOBS_MAX, CALL, COUNTERS, DEAD_LETTERS, DELETE, DESCRIBE, FIND,
    JOB_BYTES_MAX, LEASE, LEAVE, METHODS, PUSH, RENEW, SEND_BACK,
};
use crate::call::{Client, ClientBuilder, RawRequest};
use crate::message;
use crate::queue::{
    Answer, Capabilities, Credit, DeadLetter, Engine, EngineFuture, EngineWorker, JobId, JobNumber,
    JobState, LeasedJob, NewJob, Pushed, QueueCounters, QueueError, Stale, Token,
};
use crate::queue_capnp::{self as wire, job_queue};
use crate::wire::{Code, Status, Work};

/// Pushes that wait for the one before.
const PUSHES_MAX: usize = 4096;
/// Besides the time that a call waits for a reason.
const TRAVEL: Duration = Duration::from_secs(2);

/// A queue in another process, reached through its [`QueueService`](super::QueueService).
///
/// Pushes of one `Remote` go one after another, many in one call where many wait: so they keep their order, and
/// are sent again, as the same pushes, when the connection was lost in between.
#[derive(Clone, Debug)]
pub struct Remote {
    connection: Connection,
    endpoint: String,
    builder: ClientBuilder,
    capabilities: Capabilities,
    pushes: mpsc::Sender<Pushing>,
    _pusher: std::sync::Arc<Pusher>,
}

/// Settings of a [`Remote`].
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is connected yet"]
pub struct RemoteBuilder {
    client: ClientBuilder,
}

impl RemoteBuilder {
    /// Settings of its connections: one to push, and one for each worker.
    pub fn client(mut self, client: ClientBuilder) -> Self {
        self.client = client;
        self
    }

    /// Connects to the queue of this name.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] where there is no such queue, or nobody answers for 10 s.
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub async fn connect(
        self,
        endpoint: impl Into<String>,
        queue: impl Into<String>,
    ) -> Result<Remote, QueueError> {
        let endpoint = endpoint.into();
        let connection = Connection::open(&self.client, &endpoint, queue.into()).await?;
        let (_, mut capabilities) = connection.describe("").await?;
        capabilities.job_bytes_max = capabilities.job_bytes_max.min(JOB_BYTES_MAX);
        let (pushes, waiting) = mpsc::channel(PUSHES_MAX);
        let task = tokio::spawn(push_all(connection.clone(), waiting));
        Ok(Remote {
            connection,
            endpoint,
            builder: self.client,
            capabilities,
            pushes,
            _pusher: std::sync::Arc::new(Pusher(task.abort_handle())),
        })
    }
}

impl Remote {
    /// Refuses what is too large for a message, and pushes the others.
    async fn push_those_that_fit(
        &self,
        jobs: Vec<NewJob>,
        deadline: Instant,
    ) -> Result<Vec<Result<Pushed, QueueError>>, QueueError> {
        let max = self.capabilities.job_bytes_max;
        let sizes: Vec<usize> = jobs.iter().map(NewJob::bytes).collect();
        let fitting = jobs.into_iter().filter(|job| job.bytes() <= max).collect();
        let mut pushed = Engine::push(self, fitting, deadline).await?.into_iter();
        let results = sizes.into_iter().map(|bytes| match bytes > max {
            true => Err(QueueError::TooLarge { bytes, max }),
            false => pushed.next().unwrap_or(Err(QueueError::Closed)),
        });
        Ok(results.collect())
    }

    /// To set more than the endpoint and the name.
    pub fn builder() -> RemoteBuilder {
        RemoteBuilder::default()
    }
}

/// Ends the task that pushes, with the last clone.
#[derive(Debug)]
struct Pusher(AbortHandle);

impl Drop for Pusher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection to one queue of a server.
#[derive(Clone, Debug)]
struct Connection {
    client: Client,
    queue: String,
}

impl Connection {
    async fn open(
        builder: &ClientBuilder,
        endpoint: &str,
        queue: String,
    ) -> Result<Self, QueueError> {
        let client = builder.clone().connect(endpoint).await;
        let client = client.map_err(|error| QueueError::unavailable(error, Work::NotDone))?;
        Ok(Self { client, queue })
    }

    async fn call(&self, method: u16, body: Bytes, deadline: Instant) -> Result<Bytes, Status> {
        let mut request = RawRequest::new(&METHODS[usize::from(method)], body);
        request.deadline = Some(deadline);
        request.wait_for_ready = true;
        let mut client = self.client.clone();
        std::future::poll_fn(|cx| client.poll_ready(cx)).await?;
        Ok(client.call(request).await?.body)
    }

    async fn describe(&self, group: &str) -> Result<(Duration, Capabilities), QueueError> {
        let body = codec::build::<job_queue::describe_params::Owned>(|mut to| {
            to.set_queue(&self.queue[..]);
            to.set_group(group);
        });
        let reply = self.call(DESCRIBE, body, Instant::now() + CALL).await;
        let reply = reply.map_err(|status| no_such(status, group))?;
        let reply = open(reply)?;
        let root = reply.get_root::<wire::description::Reader<'_>>();
        Ok(codec::read_description(root.map_err(unreadable)?))
    }

    async fn push(
        &self,
        jobs: &[NewJob],
        deadline: Instant,
    ) -> Result<Vec<Result<Pushed, QueueError>>, QueueError> {
        let wait = deadline.saturating_duration_since(Instant::now());
        let body = codec::build::<job_queue::push_params::Owned>(|mut to| {
            to.set_queue(&self.queue[..]);
            to.set_wait_microseconds(codec::microseconds(wait));
            let mut list = to.init_jobs(jobs.len() as u32);
            for (index, job) in (0..).zip(jobs) {
                codec::write_new_job(list.reborrow().get(index), job);
            }
        });
        // The server says `Full` at its end of the deadline; that has to come back.
        let reply = self.call(PUSH, body, deadline + TRAVEL).await?;
        let reply = open(reply)?;
        let read = || -> capnp::Result<Vec<Result<Pushed, QueueError>>> {
            let root = reply.get_root::<job_queue::push_results::Reader<'_>>()?;
            let results = root.get_results()?.iter().zip(jobs);
            results
                .map(|(pushed, job)| codec::read_pushed(pushed, job))
                .collect()
        };
        read().map_err(unreadable)
    }
}

fn open(
    body: Bytes,
) -> Result<capnp::message::Reader<impl capnp::message::ReaderSegments>, QueueError> {
    Ok(message::open(body, &Default::default())?)
}

/// What was asked may have been done; only its answer is not to be read.
fn unreadable(error: capnp::Error) -> QueueError {
    QueueError::unavailable(error, Work::OutcomeUnknown)
}

fn no_such(status: Status, group: &str) -> QueueError {
    match status.code() {
        Code::NotFound if !group.is_empty() => QueueError::NoSuchGroup(group.to_owned()),
        _ => status.into(),
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

impl Engine for Remote {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn push(
        &self,
        jobs: Vec<NewJob>,
        deadline: Instant,
    ) -> EngineFuture<'_, Vec<Result<Pushed, QueueError>>> {
        Box::pin(async move {
            let max = self.capabilities.job_bytes_max;
            if jobs.iter().any(|job| job.bytes() > max) {
                return self.push_those_that_fit(jobs, deadline).await;
            }
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
        })
    }

    fn worker(&self, group: &str) -> EngineFuture<'_, Box<dyn EngineWorker>> {
        let group = group.to_owned();
        Box::pin(async move {
            let queue = self.connection.queue.clone();
            // Of its own, driven by the runtime that calls this: a keeper's, which nothing starves.
            let connection = Connection::open(&self.builder, &self.endpoint, queue).await?;
            let (lease, _) = connection.describe(&group).await?;
            let worker: Box<dyn EngineWorker> = Box::new(RemoteWorker {
                connection,
                group,
                session: fastrand::u64(1..),
                lease,
            });
            Ok(worker)
        })
    }

    fn dead_letters(
        &self,
        group: &str,
        after: Option<JobNumber>,
        max: usize,
    ) -> EngineFuture<'_, Vec<DeadLetter>> {
        let body = codec::build::<job_queue::dead_letters_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_group(group);
            to.set_has_after(after.is_some());
            to.set_after(after.map_or(0, |after| after.0));
            to.set_max(u32::try_from(max).unwrap_or(u32::MAX));
        });
        Box::pin(async move {
            let deadline = Instant::now() + CALL;
            let reply = open(self.connection.call(DEAD_LETTERS, body, deadline).await?)?;
            let read = || -> capnp::Result<Vec<DeadLetter>> {
                let root = reply.get_root::<job_queue::dead_letters_results::Reader<'_>>()?;
                root.get_letters()?.iter().map(codec::read_dead).collect()
            };
            read().map_err(unreadable)
        })
    }

    fn send_back(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let body = codec::build::<job_queue::send_back_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_group(group);
            let mut list = to.init_numbers(numbers.len() as u32);
            for (index, number) in (0..).zip(&numbers) {
                list.set(index, number.0);
            }
        });
        Box::pin(async move {
            let deadline = Instant::now() + CALL;
            let reply = open(self.connection.call(SEND_BACK, body, deadline).await?)?;
            let root = reply.get_root::<job_queue::send_back_results::Reader<'_>>();
            Ok(root.map_err(unreadable)?.get_count() as usize)
        })
    }

    fn delete(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let body = codec::build::<job_queue::delete_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_group(group);
            let mut list = to.init_numbers(numbers.len() as u32);
            for (index, number) in (0..).zip(&numbers) {
                list.set(index, number.0);
            }
        });
        Box::pin(async move {
            let deadline = Instant::now() + CALL;
            let reply = open(self.connection.call(DELETE, body, deadline).await?)?;
            let root = reply.get_root::<job_queue::delete_results::Reader<'_>>();
            Ok(root.map_err(unreadable)?.get_count() as usize)
        })
    }

    fn find(&self, id: &JobId) -> EngineFuture<'_, Option<(JobNumber, JobState)>> {
        let body = codec::build::<job_queue::find_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_id(id.as_bytes());
        });
        Box::pin(async move {
            let deadline = Instant::now() + CALL;
            let reply = open(self.connection.call(FIND, body, deadline).await?)?;
            let root = reply.get_root::<job_queue::find_results::Reader<'_>>();
            Ok(codec::read_found(root.map_err(unreadable)?))
        })
    }

    fn counters(&self, group: &str) -> EngineFuture<'_, QueueCounters> {
        let body = codec::build::<job_queue::counters_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_group(group);
        });
        let group = group.to_owned();
        Box::pin(async move {
            let deadline = Instant::now() + CALL;
            let reply = self.connection.call(COUNTERS, body, deadline).await;
            let reply = open(reply.map_err(|status| no_such(status, &group))?)?;
            let root = reply.get_root::<wire::counters::Reader<'_>>();
            Ok(codec::read_counters(root.map_err(unreadable)?))
        })
    }

    fn close(&self) -> EngineFuture<'_, ()> {
        // The queue is its owner's to close. What was pushed has been answered for.
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A worker in another process than its queue.
struct RemoteWorker {
    connection: Connection,
    group: String,
    session: u64,
    lease: Duration,
}

impl EngineWorker for RemoteWorker {
    fn lease_time(&self) -> Duration {
        self.lease
    }

    fn lease(&self, credit: Credit, until: Instant) -> EngineFuture<'_, Vec<LeasedJob>> {
        let wait = until.saturating_duration_since(Instant::now());
        let body = codec::build::<job_queue::lease_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_group(&self.group[..]);
            to.set_session(self.session);
            to.set_wait_microseconds(codec::microseconds(wait));
            codec::write_credit(to.init_credit(), credit);
        });
        Box::pin(async move {
            let called = self.connection.call(LEASE, body, until + TRAVEL).await;
            let reply = open(called?)?;
            let read = || -> capnp::Result<Vec<LeasedJob>> {
                let root = reply.get_root::<job_queue::lease_results::Reader<'_>>()?;
                root.get_jobs()?.iter().map(codec::read_leased).collect()
            };
            read().map_err(unreadable)
        })
    }

    fn answer(
        &self,
        answers: Vec<(JobNumber, Token, Answer)>,
    ) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        let body = codec::build::<job_queue::answer_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_group(&self.group[..]);
            to.set_session(self.session);
            let mut list = to.init_answers(answers.len() as u32);
            for (index, answer) in (0..).zip(&answers) {
                codec::write_answer(list.reborrow().get(index), answer);
            }
        });
        Box::pin(async move {
            let called = self
                .connection
                .call(ANSWER, body, Instant::now() + CALL)
                .await;
            let reply = open(called?)?;
            let read = || -> capnp::Result<Vec<Result<(), Stale>>> {
                let root = reply.get_root::<job_queue::answer_results::Reader<'_>>()?;
                Ok(held(root.get_held()?))
            };
            read().map_err(unreadable)
        })
    }

    fn renew(&self, leases: Vec<(JobNumber, Token)>) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        let body = codec::build::<job_queue::renew_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_group(&self.group[..]);
            to.set_session(self.session);
            let mut list = to.init_leases(leases.len() as u32);
            for (index, lease) in (0..).zip(&leases) {
                codec::write_lease(list.reborrow().get(index), *lease);
            }
        });
        Box::pin(async move {
            // No later than another renewal.
            let deadline = Instant::now() + self.lease / 3;
            let reply = open(self.connection.call(RENEW, body, deadline).await?)?;
            let read = || -> capnp::Result<Vec<Result<(), Stale>>> {
                let root = reply.get_root::<job_queue::renew_results::Reader<'_>>()?;
                Ok(held(root.get_held()?))
            };
            read().map_err(unreadable)
        })
    }

    fn leave(&self) -> EngineFuture<'_, ()> {
        let body = codec::build::<job_queue::leave_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_group(&self.group[..]);
            to.set_session(self.session);
        });
        Box::pin(async move {
            let deadline = Instant::now() + TRAVEL;
            self.connection.call(LEAVE, body, deadline).await?;
            Ok(())
        })
    }
}

fn held(list: capnp::primitive_list::Reader<'_, bool>) -> Vec<Result<(), Stale>> {
    let held = list.iter();
    held.map(|held| if held { Ok(()) } else { Err(Stale) })
        .collect()
}
