//! A connection to one queue of a server, and its calls that more than one has use for.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tower_service::Service;

use super::super::codec;
use super::super::{CALL, DESCRIBE, METHODS, PUSH};
use super::TRAVEL;
use crate::call::{Client, ClientBuilder, RawRequest};
use crate::message;
use crate::queue::{Capabilities, NewJob, Pushed, QueueError};
use crate::queue_capnp::{self as wire, job_queue};
use crate::wire::{Code, Status, Work};

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

    pub async fn describe(&self, group: &str) -> Result<(Duration, Capabilities), QueueError> {
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

    pub async fn push(
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
