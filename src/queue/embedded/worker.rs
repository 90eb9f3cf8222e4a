//! A worker in the same process as its queue: waits for jobs, and answers for them. Renewing leases by itself is the
//! keeper's.

use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::{Embedded, Shelf};
use crate::queue::machine::GroupIndex;
use crate::queue::{
    Answer, Credit, EngineFuture, EngineWorker, FailureKind, JobNumber, LeasedJob, QueueError,
    Stale, Token,
};
use crate::wire::Work;

/// A worker in the same process as its queue.
pub(super) struct Worker<S: Shelf> {
    pub engine: Embedded<S>,
    pub group: GroupIndex,
    pub session: u64,
}

impl<S: Shelf> Worker<S> {
    async fn lease(&self, credit: Credit, until: Instant) -> Result<Vec<LeasedJob>, QueueError> {
        let inner = &self.engine.0;
        loop {
            let arrived = inner.arrived[self.group].notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let ((leased, next, has_more, has_leases), after) =
                inner.step_while_open(|state, now| {
                    let leased = state.lease(now, self.group, self.session, credit);
                    let next = state.machine.next_tick();
                    let has_more = state.machine.has_ready(self.group);
                    let has_leases = state.machine.has_leases();
                    (
                        leased,
                        next.map(|next| next.since(now)),
                        has_more,
                        has_leases,
                    )
                })?;
            let (jobs, is_cut) = match leased {
                Ok(leased) => leased,
                Err(error) => {
                    // What came of it is written first: who asks again at once asks no faster than that.
                    let _ = after.safe().await;
                    return Err(QueueError::unavailable(error, Work::NotDone));
                }
            };
            if has_leases {
                self.engine.watch_leases();
            }
            if jobs.is_empty() && is_cut {
                after.safe().await?;
                yield_now().await;
                continue;
            }
            if !jobs.is_empty() || has_more {
                // What is not safe yet must not be seen: its push may still fail.
                let given = Given { worker: self, jobs };
                after.safe().await?;
                return Ok(given.keep());
            }
            let now = Instant::now();
            let next = next.map_or(until, |next| now + inner.clock.real(next));
            tokio::select! {
                () = &mut arrived => {}
                () = sleep_until(next.min(until)) => {}
            }
            if Instant::now() >= until {
                // Another may have to look at the time now.
                inner.arrived[self.group].notify_one();
                return Ok(Vec::new());
            }
        }
    }
}

impl<S: Shelf> Drop for Worker<S> {
    fn drop(&mut self) {
        // What it has comes back when its leases end.
        let mut locked = self.engine.0.lock();
        if let Some(state) = &mut locked.state {
            state.machine.forget_session(self.session);
        }
    }
}

/// Jobs on their way to a worker, who may stop waiting for them.
struct Given<'a, S: Shelf> {
    worker: &'a Worker<S>,
    jobs: Vec<LeasedJob>,
}

impl<S: Shelf> Given<'_, S> {
    fn keep(mut self) -> Vec<LeasedJob> {
        std::mem::take(&mut self.jobs)
    }
}

impl<S: Shelf> Drop for Given<'_, S> {
    fn drop(&mut self) {
        let group = self.worker.group;
        let jobs = std::mem::take(&mut self.jobs);
        if jobs.is_empty() {
            return;
        }
        // A queue that is closed or broken by now has given them back already, or will.
        let _ = self.worker.engine.0.step(|state, now| {
            for job in jobs {
                let released = Answer::Release;
                let _ = state
                    .machine
                    .answer(now, group, job.number, job.token, released, 0);
            }
        });
    }
}

impl<S: Shelf> EngineWorker for Worker<S> {
    fn lease_time(&self) -> Duration {
        self.engine.0.lease
    }

    fn lease(&self, credit: Credit, until: Instant) -> EngineFuture<'_, Vec<LeasedJob>> {
        Box::pin(self.lease(credit, until))
    }

    fn answer(
        &self,
        answers: Vec<(JobNumber, Token, Answer)>,
    ) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        Box::pin(async move {
            let random = fastrand::u64(..);
            let clock = &self.engine.0.clock;
            let (results, after) = self.engine.0.step(|state, now| {
                let answer = |(number, token, answer)| {
                    let answer = match answer {
                        Answer::RetryAfter(time, why) => Answer::RetryAfter(clock.wait(time), why),
                        other => other,
                    };
                    state
                        .machine
                        .answer(now, self.group, number, token, answer, random)
                };
                answers.into_iter().map(answer).collect()
            })?;
            after.safe().await?;
            Ok(results)
        })
    }

    fn renew(&self, leases: Vec<(JobNumber, Token)>) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        Box::pin(async move {
            let (results, _) = self.engine.0.step(|state, now| {
                let renew = |(number, token)| state.machine.renew(now, self.group, number, token);
                leases.into_iter().map(renew).collect()
            })?;
            Ok(results)
        })
    }

    fn leave(&self) -> EngineFuture<'_, ()> {
        Box::pin(async move {
            let ((), after) = self.engine.0.step(|state, now| {
                let kind = FailureKind::Released;
                state.machine.end_session(now, self.session, kind, 0);
            })?;
            after.safe().await
        })
    }
}
