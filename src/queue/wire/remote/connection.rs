//! A connection to one queue of a server, and its calls that more than one has use for.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tower_service::Service;

use super::super::codec;
use super::super::{BATCH_JOBS_MAX, CALL, DESCRIBE, METHODS, PUSH};
use super::PUSH_GRACE;
use crate::call::{Client, ClientBuilder, RawRequest};
use crate::message;
use crate::queue::{Capabilities, JobNumber, NewJob, Pushed, QueueError, QueueType};
use crate::queue_capnp::{self as wire, job_queue};
use crate::wire::{Code, Reason, Status, Work};

/// The longest that an answer to a push is given to travel, of the time that its caller has.
const TRAVEL_MAX: Duration = Duration::from_millis(20);

/// A connection to one queue of a server.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    client: Client,
    pub queue: String,
}

impl Connection {
    pub async fn open(
        builder: &ClientBuilder,
        endpoint: &str,
        queue: String,
    ) -> Result<Self, QueueError> {
        let client = builder.clone().connect(endpoint).await;
        let client = client.map_err(|error| QueueError::unavailable(error, Work::NotDone))?;
        Ok(Self { client, queue })
    }

    pub async fn call(&self, method: u16, body: Bytes, deadline: Instant) -> Result<Bytes, Status> {
        let mut request = RawRequest::new(&METHODS[usize::from(method)], body);
        request.deadline = Some(deadline);
        request.wait_for_ready = true;
        let mut client = self.client.clone();
        std::future::poll_fn(|cx| client.poll_ready(cx)).await?;
        Ok(client.call(request).await?.body)
    }

    pub async fn describe(&self, group: &str) -> Result<Description, QueueError> {
        let body = codec::build::<job_queue::describe_params::Owned>(|mut to| {
            to.set_queue(&self.queue[..]);
            to.set_group(group);
        });
        let reply = self.call(DESCRIBE, body, Instant::now() + CALL).await;
        let reply = reply.map_err(|status| no_such(status, group))?;
        let reply = open(reply)?;
        let root = reply.get_root::<wire::description::Reader<'_>>();
        let root = root.map_err(unreadable)?;
        let (lease, capabilities) = codec::read_description(root.reborrow());
        let of = codec::read_type(root).map_err(unreadable)?;
        let of = of.map(|(type_id, type_name)| QueueType {
            name: self.queue.clone(),
            type_name,
            type_id,
        });
        Ok(Description {
            lease,
            capabilities,
            of,
        })
    }

    /// Calls with lists of at most as many as a message may have, and sums up what was counted.
    pub async fn call_in_parts(
        &self,
        method: u16,
        numbers: &[JobNumber],
        build: impl Fn(&[JobNumber]) -> Bytes,
        read: impl Fn(Bytes) -> Result<usize, QueueError>,
    ) -> Result<usize, QueueError> {
        let mut count = 0;
        for numbers in numbers.chunks(BATCH_JOBS_MAX) {
            let deadline = Instant::now() + CALL;
            let reply = self.call(method, build(numbers), deadline).await?;
            count += read(reply)?;
        }
        Ok(count)
    }

    pub async fn push(
        &self,
        jobs: &[NewJob],
        deadline: Instant,
    ) -> Result<Vec<Result<Pushed, QueueError>>, PushFailed> {
        let wait = deadline.saturating_duration_since(Instant::now());
        // Of the time, a part is for its answer to travel.
        let wait = wait - (wait / 4).min(TRAVEL_MAX);
        let body = codec::build::<job_queue::push_params::Owned>(|mut to| {
            to.set_queue(&self.queue[..]);
            to.set_wait_microseconds(codec::microseconds(wait));
            let mut list = to.init_jobs(jobs.len() as u32);
            for (index, job) in (0..).zip(jobs) {
                codec::write_new_job(list.reborrow().get(index), job);
            }
        });
        let reply = self.call(PUSH, body, deadline + PUSH_GRACE).await;
        let reply = reply.map_err(PushFailed::from)?;
        let reply = open(reply).map_err(PushFailed::Final)?;
        let read = || -> capnp::Result<Vec<Result<Pushed, QueueError>>> {
            let root = reply.get_root::<job_queue::push_results::Reader<'_>>()?;
            let results = root.get_results()?.iter().zip(jobs);
            results
                .map(|(pushed, job)| codec::read_pushed(pushed, job))
                .collect()
        };
        read().map_err(|error| PushFailed::Final(unreadable(error)))
    }
}

/// What a server says of a queue.
pub(super) struct Description {
    pub lease: Duration,
    pub capabilities: Capabilities,
    pub of: Option<QueueType>,
}

/// A push failed as a whole.
pub(super) enum PushFailed {
    /// As long as there is time, it is made again: it is known by its identity.
    Passing(QueueError),
    Final(QueueError),
}

impl From<Status> for PushFailed {
    fn from(status: Status) -> Self {
        let is_over = matches!(
            status.reason(),
            Some(Reason::ClientClosed | Reason::RuntimeShutDown | Reason::TooLarge)
        );
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted if !is_over => {
                Self::Passing(status.into())
            }
            _ => Self::Final(status.into()),
        }
    }
}

/// Opens a reply.
pub(super) fn open(
    body: Bytes,
) -> Result<capnp::message::Reader<impl capnp::message::ReaderSegments>, QueueError> {
    Ok(message::open(body, &Default::default())?)
}

/// What was asked may have been done; only its answer is not to be read.
pub(super) fn unreadable(error: capnp::Error) -> QueueError {
    QueueError::unavailable(error, Work::OutcomeUnknown)
}

pub(super) fn no_such(status: Status, group: &str) -> QueueError {
    match status.code() {
        Code::NotFound if !group.is_empty() => QueueError::NoSuchGroup(group.to_owned()),
        _ => status.into(),
    }
}
