//! A worker in another process than its queue: each call of its engine is one of the wire.

use std::time::Duration;

use tokio::time::Instant;

use super::super::codec;
use super::super::{
    ANSWER, BATCH_BYTES_MAX, BATCH_JOBS_MAX, CALL, CAUSE_BYTES_MAX, LEASE, LEAVE, RENEW,
};
use super::TRAVEL;
use super::connection::{Connection, open, unreadable};
use crate::queue::{
    Answer, Credit, EngineFuture, EngineWorker, JobNumber, LeasedJob, QueueError, Stale, Token,
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
        Box::pin(async move {
            let mut results = Vec::with_capacity(answers.len());
            let mut rest = &answers[..];
            while !rest.is_empty() {
                let (part, behind) = rest.split_at(fitting(rest));
                rest = behind;
                results.extend(self.answer_some(part).await?);
            }
            Ok(results)
        })
    }

    fn renew(&self, leases: Vec<(JobNumber, Token)>) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        Box::pin(async move {
            // No later than another renewal.
            let deadline = Instant::now() + self.lease / 3;
            let mut results = Vec::with_capacity(leases.len());
            for part in leases.chunks(BATCH_JOBS_MAX) {
                results.extend(self.renew_some(part, deadline).await?);
            }
            Ok(results)
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

impl RemoteWorker {
    async fn answer_some(
        &self,
        answers: &[(JobNumber, Token, Answer)],
    ) -> Result<Vec<Result<(), Stale>>, QueueError> {
        let body = codec::build::<job_queue::answer_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_group(&self.group[..]);
            to.set_session(self.session);
            let mut list = to.init_answers(answers.len() as u32);
            for (index, answer) in (0..).zip(answers) {
                codec::write_answer(list.reborrow().get(index), answer);
            }
        });
        let deadline = Instant::now() + CALL;
        let reply = open(self.connection.call(ANSWER, body, deadline).await?)?;
        let read = || -> capnp::Result<Vec<Result<(), Stale>>> {
            let root = reply.get_root::<job_queue::answer_results::Reader<'_>>()?;
            Ok(held(root.get_held()?))
        };
        read().map_err(unreadable)
    }

    async fn renew_some(
        &self,
        leases: &[(JobNumber, Token)],
        deadline: Instant,
    ) -> Result<Vec<Result<(), Stale>>, QueueError> {
        let body = codec::build::<job_queue::renew_params::Owned>(|mut to| {
            to.set_queue(&self.connection.queue[..]);
            to.set_group(&self.group[..]);
            to.set_session(self.session);
            let mut list = to.init_leases(leases.len() as u32);
            for (index, lease) in (0..).zip(leases) {
                codec::write_lease(list.reborrow().get(index), *lease);
            }
        });
        let reply = open(self.connection.call(RENEW, body, deadline).await?)?;
        let read = || -> capnp::Result<Vec<Result<(), Stale>>> {
            let root = reply.get_root::<job_queue::renew_results::Reader<'_>>()?;
            Ok(held(root.get_held()?))
        };
        read().map_err(unreadable)
    }
}

/// How many of these answers one message has room for.
fn fitting(answers: &[(JobNumber, Token, Answer)]) -> usize {
    let mut bytes = 0;
    let fitting = answers.iter().take(BATCH_JOBS_MAX).take_while(|answer| {
        bytes += match &answer.2 {
            Answer::Done | Answer::Release => 0,
            Answer::Refuse(cause)
            | Answer::Bury(cause)
            | Answer::Abandon(cause)
            | Answer::RetryAfter(_, cause) => cause.len().min(CAUSE_BYTES_MAX),
        };
        bytes <= BATCH_BYTES_MAX
    });
    fitting.count().max(1)
}

fn held(list: capnp::primitive_list::Reader<'_, bool>) -> Vec<Result<(), Stale>> {
    let held = list.iter();
    held.map(|held| if held { Ok(()) } else { Err(Stale) })
        .collect()
}
