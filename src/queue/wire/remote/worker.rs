//! A worker in another process than its queue: each call of its engine is one of the wire.

use std::time::Duration;

use tokio::time::Instant;

use super::super::codec;
use super::super::{ANSWER, CALL, LEASE, LEAVE, RENEW};
use super::TRAVEL;
use super::connection::{Connection, open, unreadable};
use crate::queue::{
    Answer, Credit, EngineFuture, EngineWorker, JobNumber, LeasedJob, Stale, Token,
};
use crate::queue_capnp::job_queue;

/// A worker in another process than its queue.
pub(super) struct RemoteWorker {
    pub connection: Connection,
    pub group: String,
    pub session: u64,
    pub lease: Duration,
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
