//! An engine whose queue is in another process.
//!
//! `pusher` is the task that pushes, `worker` a worker's side, `connection` what both of them are on.

mod connection;
mod pusher;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::codec;
use super::{
    CALL, CANCEL, COUNTERS, DEAD_LETTERS, DELETE, FIND, JOB_BYTES_MAX, RESCHEDULE, SEND_BACK,
};
use crate::call::ClientBuilder;
use crate::queue::{
    Capabilities, DeadLetter, Engine, EngineFuture, EngineWorker, JobChange, JobId, JobNumber,
    JobState, NewJob, Page, Pushed, QueueCounters, QueueError, QueueType,
};
use crate::queue_capnp::{self as wire, job_queue};

use connection::{Connection, Description, no_such, open, unreadable};
use pusher::Pusher;
use worker::RemoteWorker;

/// Besides the time that a call waits for a reason.
const TRAVEL: Duration = Duration::from_secs(2);
/// How long after its deadline the answer to a push may come: `Full`, said at the last moment.
const PUSH_GRACE: Duration = Duration::from_millis(25);

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
    /// Which queue the server says that it is.
    of: Option<QueueType>,
    pusher: Arc<Pusher>,
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
        let Description {
            mut capabilities,
            of,
            ..
        } = connection.describe("").await?;
        capabilities.job_bytes_max = capabilities.job_bytes_max.min(JOB_BYTES_MAX);
        Ok(Remote {
            pusher: Arc::new(Pusher::start(connection.clone())),
            connection,
            endpoint,
            builder: self.client,
            capabilities,
            of,
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

    async fn change(&self, method: u16, body: bytes::Bytes) -> Result<JobChange, QueueError> {
        if !self.capabilities.cancels {
            return Err(QueueError::Unsupported("change of a job by its ID"));
        }
        let deadline = Instant::now() + CALL;
        let reply = open(self.connection.call(method, body, deadline).await?)?;
        let root = reply.get_root::<wire::job_change::Reader<'_>>();
        root.and_then(codec::read_change).map_err(unreadable)
    }

    /// To set more than the endpoint and the name.
    pub fn builder() -> RemoteBuilder {
        RemoteBuilder::default()
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
            self.pusher.push(jobs, deadline).await
        })
    }

    fn worker(&self, group: &str) -> EngineFuture<'_, Box<dyn EngineWorker>> {
        let group = group.to_owned();
        Box::pin(async move {
            let queue = self.connection.queue.clone();
            // Of its own, driven by the runtime that calls this: a keeper's, which nothing starves.
            let connection = Connection::open(&self.builder, &self.endpoint, queue).await?;
            let lease = connection.describe(&group).await?.lease;
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
        let page = self.dead_letters_page(group, after, max);
        Box::pin(async move { Ok(page.await?.items) })
    }

    fn dead_letters_page(
        &self,
        group: &str,
        after: Option<JobNumber>,
        max: usize,
    ) -> EngineFuture<'_, Page<DeadLetter>> {
        let body = codec::build::<job_queue::dead_letters_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_group(group);
            to.set_has_after(after.is_some());
            to.set_after(after.map_or(0, |after| after.0));
            to.set_max(u32::try_from(max).unwrap_or(u32::MAX));
        });
        let group = group.to_owned();
        Box::pin(async move {
            let deadline = Instant::now() + CALL;
            let reply = self.connection.call(DEAD_LETTERS, body, deadline).await;
            let reply = open(reply.map_err(|status| no_such(status, &group))?)?;
            let read = || -> capnp::Result<Page<DeadLetter>> {
                let root = reply.get_root::<job_queue::dead_letters_results::Reader<'_>>()?;
                let items: Vec<DeadLetter> = root
                    .get_letters()?
                    .iter()
                    .map(codec::read_dead)
                    .collect::<capnp::Result<_>>()?;
                let next = match root.get_more() {
                    Ok(wire::More::None) => None,
                    Ok(wire::More::Some) => Some(JobNumber(root.get_next())),
                    // An older server: there may be more behind any letter.
                    _ => items.last().map(|letter| letter.number),
                };
                Ok(Page { items, next })
            };
            read().map_err(unreadable)
        })
    }

    fn send_back(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let group = group.to_owned();
        Box::pin(async move {
            let build = |numbers: &[JobNumber]| {
                codec::build::<job_queue::send_back_params::Owned>(|mut to| {
                    to.set_queue(&self.connection.queue[..]);
                    to.set_group(&group[..]);
                    let mut list = to.init_numbers(numbers.len() as u32);
                    for (index, number) in (0..).zip(numbers) {
                        list.set(index, number.0);
                    }
                })
            };
            let read = |reply| {
                let reply = open(reply)?;
                let root = reply.get_root::<job_queue::send_back_results::Reader<'_>>();
                Ok(root.map_err(unreadable)?.get_count() as usize)
            };
            let connection = &self.connection;
            connection
                .call_in_parts(SEND_BACK, &numbers, build, read)
                .await
        })
    }

    fn delete(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let group = group.to_owned();
        Box::pin(async move {
            let build = |numbers: &[JobNumber]| {
                codec::build::<job_queue::delete_params::Owned>(|mut to| {
                    to.set_queue(&self.connection.queue[..]);
                    to.set_group(&group[..]);
                    let mut list = to.init_numbers(numbers.len() as u32);
                    for (index, number) in (0..).zip(numbers) {
                        list.set(index, number.0);
                    }
                })
            };
            let read = |reply| {
                let reply = open(reply)?;
                let root = reply.get_root::<job_queue::delete_results::Reader<'_>>();
                Ok(root.map_err(unreadable)?.get_count() as usize)
            };
            let connection = &self.connection;
            connection
                .call_in_parts(DELETE, &numbers, build, read)
                .await
        })
    }

    fn cancel(&self, id: &JobId) -> EngineFuture<'_, JobChange> {
        let body = codec::build::<job_queue::cancel_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_id(id.as_bytes());
        });
        Box::pin(self.change(CANCEL, body))
    }

    fn reschedule(&self, id: &JobId, delay: Duration) -> EngineFuture<'_, JobChange> {
        let body = codec::build::<job_queue::reschedule_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_id(id.as_bytes());
            to.set_delay_microseconds(codec::microseconds(delay));
        });
        Box::pin(self.change(RESCHEDULE, body))
    }

    fn claim(&self, queue: &QueueType) -> Result<(), QueueError> {
        match &self.of {
            Some(holds) if holds.type_id != queue.type_id => Err(QueueError::WrongQueue {
                holds: Box::new(holds.clone()),
                asked: Box::new(queue.clone()),
            }),
            _ => Ok(()),
        }
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
