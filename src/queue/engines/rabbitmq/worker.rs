//! A worker: a consumer whose prefetch is its credit, on a channel of its own.
//!
//! There is no lease: the broker gives a job to another worker when this one's channel has gone, and not before. An
//! answer for a job of a channel that has gone is stale, and is not sent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Consumer};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::queue::{
    Answer, Credit, EngineFuture, EngineWorker, JobNumber, LeasedJob, QueueError, Stale, Token,
};
use crate::wire::Work;

use super::super::envelope::{Envelope, Next, now_ms};
use super::super::held::{self, Held};
use super::super::unavailable;
use super::link::header;
use super::{Group, RabbitMqBroker};

/// How long to wait before looking again whether dead letters were taken away, or credit came.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub struct RabbitMqWorker {
    shared: Arc<RabbitMqBroker>,
    group: usize,
    consuming: tokio::sync::Mutex<Option<Consuming>>,
    held: Mutex<Held<Acker>>,
    /// The channel on which what is held came, and its prefetch.
    channel: Mutex<Option<(Channel, u16)>>,
    tokens: AtomicU64,
}

struct Consuming {
    channel: Channel,
    /// None while nothing is to come.
    consumer: Option<Consumer>,
}

type Lease = held::Lease<Acker>;

impl RabbitMqWorker {
    pub fn new(shared: Arc<RabbitMqBroker>, group: usize) -> Self {
        Self {
            shared,
            group,
            consuming: tokio::sync::Mutex::default(),
            held: Mutex::default(),
            channel: Mutex::default(),
            tokens: AtomicU64::new(fastrand::u64(..)),
        }
    }

    fn group(&self) -> &Group {
        &self.shared.groups[self.group]
    }

    fn held(&self) -> MutexGuard<'_, Held<Acker>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what it has: it has gone back with the channel.
    fn forget_all(&self) {
        let held = std::mem::take(&mut *self.held());
        let leased = &self.group().leased;
        leased.fetch_sub(held.messages().count(), Ordering::Relaxed);
        *self.channel() = None;
    }

    fn channel(&self) -> MutexGuard<'_, Option<(Channel, u16)>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, number: JobNumber, token: Token) -> Option<Lease> {
        let lease = self.held().remove(number, token)?;
        self.group().leased.fetch_sub(1, Ordering::Relaxed);
        Some(lease)
    }

    /// Opens a channel, whose prefetch is all of the credit: the first call of `lease` has it.
    async fn open(&self, jobs: usize) -> Result<Consuming, QueueError> {
        self.forget_all();
        let channel = self.shared.link.channel().await?;
        let prefetch = u16::try_from(jobs).unwrap_or(u16::MAX).max(1);
        let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
        self.shared.link.in_time(qos, Work::NotDone).await?;
        *self.channel() = Some((channel.clone(), prefetch));
        let consumer = None;
        Ok(Consuming { channel, consumer })
    }

    /// Has no more jobs sent, and notes those that have come. What is released after that does not come here again.
    async fn stop_consuming(&self) -> Result<(), QueueError> {
        let mut consuming = self.consuming.lock().await;
        let Some(Consuming { channel, consumer }) = &mut *consuming else {
            return Ok(());
        };
        let Some(mut consumer) = consumer.take() else {
            return Ok(());
        };
        let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        self.shared
            .link
            .in_time(cancelled, Work::OutcomeUnknown)
            .await?;
        // What was on its way has come before the broker's answer.
        while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
            self.note(delivery).await?;
        }
        Ok(())
    }

    /// Waits for what the broker sends, and takes all of it that has come.
    async fn receive(&self, jobs: usize, until: Instant) -> Result<(), QueueError> {
        let mut consuming = self.consuming.lock().await;
        let is_open = |consuming: &Consuming| consuming.channel.status().connected();
        if !consuming.as_ref().is_some_and(is_open) {
            *consuming = Some(self.open(jobs).await?);
        }
        let Some(Consuming { channel, consumer }) = &mut *consuming else {
            return Ok(());
        };
        let consumer = match consumer {
            Some(consumer) => consumer,
            None => {
                let queue = self.group().jobs.as_str().into();
                let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
                let begun = channel.basic_consume(queue, "".into(), options, arguments);
                consumer.insert(self.shared.link.in_time(begun, Work::NotDone).await?)
            }
        };
        let Ok(first) = timeout_at(until, consumer.next()).await else {
            return Ok(());
        };
        let mut next = first;
        loop {
            match next {
                Some(Ok(delivery)) => self.note(delivery).await?,
                Some(Err(error)) => {
                    *consuming = None;
                    return Err(unavailable(error, Work::NotDone));
                }
                None => {
                    *consuming = None;
                    return Err(unavailable("the broker ended the consumer", Work::NotDone));
                }
            }
            match consumer.next().now_or_never() {
                Some(another) => next = another,
                None => return Ok(()),
            }
        }
    }

    /// Notes a job that came; one that has still to wait, has expired, or has killed too many workers, is
    /// not for this one.
    async fn note(&self, delivery: Delivery) -> Result<(), QueueError> {
        let Delivery {
            properties,
            data,
            acker,
            ..
        } = delivery;
        let mut envelope = Envelope::read(|name| header(&properties, name), Bytes::from(data));
        let number = *envelope
            .number
            .get_or_insert_with(|| self.shared.next_number());
        let lost = header(&properties, "x-delivery-count").and_then(|count| count.parse().ok());
        let are_too_many = envelope.lose(lost.unwrap_or(0), &self.shared.terms.options, now_ms());
        let next = if envelope.has_expired(now_ms()) {
            self.group().expired.fetch_add(1, Ordering::Relaxed);
            Next::Finish
        } else if !envelope.delay.is_zero() {
            Next::Again(envelope)
        } else if are_too_many {
            Next::Bury(envelope)
        } else {
            let token = Token(self.tokens.fetch_add(1, Ordering::Relaxed));
            let lease = Lease {
                token,
                envelope,
                message: acker,
            };
            self.group().leased.fetch_add(1, Ordering::Relaxed);
            self.held().note(number, lease);
            return Ok(());
        };
        self.carry_out(next, &acker).await.map(drop)
    }

    /// Publishes a job to where it goes, and acknowledges it where it was. The broker may not have heard of
    /// the latter yet.
    async fn carry_out(&self, next: Next, acker: &Acker) -> Result<Result<(), Stale>, QueueError> {
        if !acker.usable() {
            return Ok(Err(Stale));
        }
        match next {
            Next::Finish => {}
            Next::Again(envelope) => self.shared.send_again(self.group(), envelope).await?,
            Next::Bury(envelope) => {
                let (dead, until) = (&self.group().dead, self.shared.terms.answered_by());
                self.shared.link.publish("", dead, &envelope, until).await?;
                self.group().dead_room.forget();
            }
        }
        match self.shared.link.acknowledge(acker).await? {
            true => Ok(Ok(())),
            false => Ok(Err(Stale)),
        }
    }

    async fn answer_one(
        &self,
        lease: Lease,
        answer: Answer,
    ) -> Result<Result<(), Stale>, QueueError> {
        let is_done = matches!(answer, Answer::Done);
        let (options, random) = (&self.shared.terms.options, fastrand::f64());
        let next = lease.envelope.answered(answer, options, now_ms(), random);
        let answered = self.carry_out(next, &lease.message).await?;
        if is_done && answered.is_ok() {
            self.group().done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(answered)
    }

    /// Returns when the broker has all that was sent to it on the channel before. Acknowledgements are not confirmed: so
    /// it is asked something that it answers after them.
    async fn reach_broker(&self) -> Result<(), QueueError> {
        let Some((channel, prefetch)) = self.channel().clone() else {
            return Ok(());
        };
        let asked = channel.basic_qos(prefetch, BasicQosOptions::default());
        self.shared.link.in_time(asked, Work::OutcomeUnknown).await
    }
}

impl EngineWorker for RabbitMqWorker {
    fn lease_time(&self) -> Duration {
        self.shared.terms.options.lease
    }

    fn lease(&self, credit: Credit, until: Instant) -> EngineFuture<'_, Vec<LeasedJob>> {
        Box::pin(async move {
            loop {
                self.shared.terms.check_open()?;
                let look_again = until.min(Instant::now() + LOOK_AGAIN);
                if self.shared.is_blocked(self.group()).await? {
                    sleep_until(look_again).await;
                    if Instant::now() >= until {
                        return Ok(Vec::new());
                    }
                    continue;
                }
                let (leased, has_waiting) = {
                    let mut held = self.held();
                    (held.take(credit, |_| false), held.has_waiting())
                };
                if !leased.is_empty() || Instant::now() >= until {
                    return Ok(leased);
                }
                if has_waiting {
                    // What is here does not fit; the caller may soon have more room.
                    sleep_until(look_again).await;
                    return Ok(Vec::new());
                }
                self.receive(credit.jobs, until).await?;
            }
        })
    }

    fn answer(
        &self,
        answers: Vec<(JobNumber, Token, Answer)>,
    ) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        Box::pin(async move {
            if answers
                .iter()
                .any(|(_, _, answer)| *answer == Answer::Release)
            {
                self.stop_consuming().await?;
            }
            let answered: Vec<_> = answers
                .into_iter()
                .map(|(number, token, answer)| (self.remove(number, token), answer))
                .map(|(lease, answer)| async move {
                    match lease {
                        Some(lease) => self.answer_one(lease, answer).await,
                        None => Ok(Err(Stale)),
                    }
                })
                .collect();
            let answered: Result<Vec<_>, _> = futures_util::future::join_all(answered)
                .await
                .into_iter()
                .collect();
            let answered = answered?;
            if answered.iter().any(Result::is_ok) {
                self.reach_broker().await?;
            }
            Ok(answered)
        })
    }

    fn renew(&self, leases: Vec<(JobNumber, Token)>) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        let mut held = self.held();
        let renew = |(number, token)| {
            let lease = held.get_mut(number, token);
            let lease = lease.filter(|lease| lease.message.usable());
            lease.map(drop).ok_or(Stale)
        };
        let renewed = leases.into_iter().map(renew).collect();
        Box::pin(async move { Ok(renewed) })
    }

    fn leave(&self) -> EngineFuture<'_, ()> {
        Box::pin(async move {
            self.stop_consuming().await?;
            let unbegun = self.held().remove_waiting();
            let leased = &self.group().leased;
            leased.fetch_sub(unbegun.len(), Ordering::Relaxed);
            for lease in unbegun {
                let _ = self.answer_one(lease, Answer::Release).await?;
            }
            self.reach_broker().await?;
            self.forget_all();
            match self.consuming.lock().await.take() {
                Some(Consuming { channel, .. }) => {
                    let closed = channel.close(200, "done".into());
                    self.shared.link.in_time(closed, Work::OutcomeUnknown).await
                }
                None => Ok(()),
            }
        })
    }
}

impl Drop for RabbitMqWorker {
    fn drop(&mut self) {
        self.forget_all();
    }
}
