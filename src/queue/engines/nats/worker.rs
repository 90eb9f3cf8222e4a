//! A worker: pulls jobs, and tells the server what became of them.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::datetime::DateTime;
use async_nats::jetstream::consumer::pull::Batch;
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{AckKind, Message};
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::queue::{
    Answer, Credit, EngineFuture, EngineWorker, JobNumber, LeasedJob, QueueError, Stale, Token,
};
use crate::wire::Work;

use super::super::envelope::{Envelope, Next, now_ms};
use super::super::held::{self, Held};
use super::super::unavailable;
use super::NatsServer;
use super::streams::{Group, Place};

/// How long to wait before looking again whether dead letters were taken away, or credit came.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a job that is on its way may take to come after the worker has stopped waiting.
const STOP_GRACE: Duration = Duration::from_millis(50);

pub struct NatsWorker(Arc<Worker>);

struct Worker {
    shared: Arc<NatsServer>,
    group: usize,
    /// That of the server's consumer: it is what the server goes by.
    lease: Duration,
    held: Mutex<Held<Sent>>,
    /// Held while jobs may come from the server.
    pulling: tokio::sync::Mutex<()>,
    /// Nobody waits for jobs any more.
    stop: Notify,
}

type Lease = held::Lease<Sent>;

/// A job's message, and until when it is this worker's.
struct Sent {
    acker: Arc<Acker>,
    stream_sequence: u64,
    published: DateTime,
    began: Instant,
    renewed: Instant,
}

impl NatsWorker {
    pub fn new(shared: Arc<NatsServer>, group: usize, lease: Duration) -> Self {
        Self(Arc::new(Worker {
            shared,
            group,
            lease,
            held: Mutex::default(),
            pulling: tokio::sync::Mutex::default(),
            stop: Notify::new(),
        }))
    }

    /// Pulls jobs into what is held, to the end even where the caller goes away: what the server has sent
    /// is then given back by `leave`, and does not wait for its lease to end.
    async fn pull(&self, jobs: usize, until: Instant) -> Result<(), QueueError> {
        let worker = Arc::clone(&self.0);
        let _stop = StopOnDrop(&self.0.stop);
        let pull = async move {
            let _pulling = worker.pulling.lock().await;
            let mut stop = pin!(worker.stop.notified());
            stop.as_mut().enable();
            if worker.pull(jobs).await? > 0 {
                return Ok(());
            }
            worker.pull_one(until, stop).await
        };
        let pulled = self.0.shared.runtime.spawn(pull).await;
        pulled.unwrap_or(Err(QueueError::Closed))
    }
}

/// Ends the wait of a pull whose caller has gone away.
struct StopOnDrop<'a>(&'a Notify);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

impl Worker {
    fn group(&self) -> &Group {
        &self.shared.groups[self.group]
    }

    fn held(&self) -> MutexGuard<'_, Held<Sent>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server may have given it to another worker, by our own clock.
    fn is_over(&self, message: &Sent) -> bool {
        message.renewed.elapsed() >= self.lease
    }

    /// Pulls what is there, at most so many.
    async fn pull(&self, jobs: usize) -> Result<usize, QueueError> {
        let batch = self
            .group()
            .pull
            .fetch()
            .max_messages(jobs)
            .messages()
            .await;
        let batch = batch.map_err(|error| unavailable(error, Work::NotDone))?;
        let pulled = timeout(self.shared.terms.limits.answer_max, self.note_all(batch)).await;
        pulled.unwrap_or_else(|_| Err(unavailable("the server does not answer", Work::NotDone)))
    }

    /// Waits for one, until it is told to stop. What comes until the server knows that nobody waits is noted too: it
    /// would be nobody's until its lease ends.
    async fn pull_one(
        &self,
        until: Instant,
        stop: impl Future<Output = ()>,
    ) -> Result<(), QueueError> {
        let wait = until.saturating_duration_since(Instant::now());
        let wait = wait.max(Duration::from_millis(1));
        let pull = &self.group().pull;
        let batch = pull.batch().max_messages(1).expires(wait).messages().await;
        let mut batch = batch.map_err(|error| unavailable(error, Work::NotDone))?;
        let message = tokio::select! {
            message = batch.next() => message,
            () = sleep_until(until + self.shared.terms.limits.answer_min) => None,
            () = stop => timeout(STOP_GRACE, batch.next()).await.ok().flatten(),
        };
        if let Some(message) = message {
            let message = message.map_err(|error| unavailable(error, Work::NotDone))?;
            return self.note(message).await.map(drop);
        }
        drop(batch);
        // The end of the subscription is sent by a task of its own.
        tokio::task::yield_now().await;
        let flushed = timeout(
            self.shared.terms.limits.answer_max,
            self.shared.context.client().flush(),
        )
        .await;
        flushed.map_or(Ok(()), |flushed| {
            flushed.map_err(|error| unavailable(error, Work::NotDone))
        })
    }

    async fn note_all(&self, mut batch: Batch) -> Result<usize, QueueError> {
        let mut noted = 0;
        while let Some(message) = batch.next().await {
            let message = message.map_err(|error| unavailable(error, Work::NotDone))?;
            noted += usize::from(self.note(message).await?);
        }
        Ok(noted)
    }

    /// Notes a job that came; one that has expired, or has killed too many workers, is not for this one.
    async fn note(&self, message: Message) -> Result<bool, QueueError> {
        let info = message
            .info()
            .map_err(|error| unavailable(error, Work::NotDone))?;
        let (stream_sequence, delivered) = (info.stream_sequence, info.delivered);
        let (token, published) = (Token(info.consumer_sequence), info.published);
        let (message, acker) = message.split();
        let header = |name: &str| {
            let headers = message.headers.as_ref()?;
            headers.get(name).map(|value| value.as_str().to_owned())
        };
        let mut envelope = Envelope::read(header, message.payload.clone());
        let number = *envelope.number.get_or_insert(JobNumber(stream_sequence));
        if envelope.has_expired(now_ms()) {
            self.acknowledge(&acker).await?;
            self.group().expired.fetch_add(1, Ordering::Relaxed);
            return Ok(false);
        }
        let lost = u32::try_from(delivered.saturating_sub(1)).unwrap_or(0);
        let now = Instant::now();
        let are_too_many = envelope.lose(lost, &self.shared.terms.options, now_ms());
        let lease = Lease {
            token,
            envelope,
            message: Sent {
                acker: Arc::new(acker),
                stream_sequence,
                published,
                began: now,
                renewed: now,
            },
        };
        if are_too_many {
            let (envelope, lease) = (lease.envelope.clone(), lease);
            self.carry_out(Next::Bury(envelope), &lease).await?;
            return Ok(false);
        }
        self.held().note(number, lease);
        Ok(true)
    }

    /// Returns when the server has it.
    async fn acknowledge(&self, acker: &Acker) -> Result<(), QueueError> {
        let unknown = |error: String| unavailable(error, Work::OutcomeUnknown);
        let told = timeout(self.shared.terms.limits.answer_max, acker.double_ack()).await;
        let told = told.map_err(|_| unknown("the server did not confirm".into()))?;
        told.map_err(|error| unknown(error.to_string()))
    }

    async fn answer_one(
        &self,
        lease: Lease,
        answer: Answer,
    ) -> Result<Result<(), Stale>, QueueError> {
        // The server would take it. We do not send it.
        if self.is_over(&lease.message) {
            return Ok(Err(Stale));
        }
        let random = fastrand::f64();
        let envelope = lease.envelope.clone();
        let next = envelope.answered(answer, &self.shared.terms.options, now_ms(), random);
        self.carry_out(next, &lease).await.map(Ok)
    }

    async fn carry_out(&self, next: Next, lease: &Lease) -> Result<(), QueueError> {
        let group = self.group();
        let until = self.shared.terms.answered_by();
        let message = &lease.message;
        let message_id = |kind| super::message_id(kind, message.stream_sequence, message.published);
        match next {
            Next::Finish => {
                self.acknowledge(&lease.message.acker).await?;
                group.done.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Next::Bury(envelope) => {
                let subject = group.subject(Place::Dead, envelope.number);
                self.shared
                    .move_job(&group.dead, subject, &envelope, &message_id("dead"), until)
                    .await?;
                group.dead_room.forget();
            }
            Next::Again(envelope) => {
                let (place, stream) = match envelope.delay.is_zero() {
                    true => (Place::Jobs, &group.jobs),
                    false => (Place::Waiting, &group.waiting),
                };
                let subject = group.subject(place, envelope.number);
                self.shared
                    .move_job(stream, subject, &envelope, &message_id("again"), until)
                    .await?;
            }
        }
        self.acknowledge(&lease.message.acker).await
    }
}

impl EngineWorker for NatsWorker {
    fn lease_time(&self) -> Duration {
        self.0.lease
    }

    fn lease(&self, credit: Credit, until: Instant) -> EngineFuture<'_, Vec<LeasedJob>> {
        Box::pin(async move {
            loop {
                self.0.shared.terms.check_open()?;
                let (leased, has_waiting) = {
                    let mut held = self.0.held();
                    let leased = held.take(credit, |message| self.0.is_over(message));
                    (leased, held.has_waiting())
                };
                if !leased.is_empty() || Instant::now() >= until {
                    return Ok(leased);
                }
                if has_waiting {
                    // What is here does not fit; the caller may soon have more room.
                    sleep_until(until.min(Instant::now() + LOOK_AGAIN)).await;
                    return Ok(Vec::new());
                }
                if self
                    .0
                    .group()
                    .is_blocked(&self.0.shared.terms.options)
                    .await?
                {
                    sleep_until(until.min(Instant::now() + LOOK_AGAIN)).await;
                    continue;
                }
                self.pull(credit.jobs, until).await?;
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
                // What is released is not to come here again.
                self.0.stop.notify_waiters();
                drop(self.0.pulling.lock().await);
            }
            let answered: Vec<_> = answers
                .into_iter()
                .map(|(number, token, answer)| (self.0.held().remove(number, token), answer))
                .map(|(lease, answer)| async move {
                    match lease {
                        Some(lease) => self.0.answer_one(lease, answer).await,
                        None => Ok(Err(Stale)),
                    }
                })
                .collect();
            join_all(answered).await.into_iter().collect()
        })
    }

    fn renew(&self, leases: Vec<(JobNumber, Token)>) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        Box::pin(async move {
            let mut ackers = Vec::new();
            let results = {
                let mut held = self.0.held();
                // Those that nobody has asked for yet, too.
                let waiting: Vec<(JobNumber, Token)> = held.waiting().collect();
                let mut renew = |number, token| {
                    let lease = held.get_mut(number, token).ok_or(Stale)?;
                    let message = &mut lease.message;
                    if self.0.is_over(message)
                        || message.began.elapsed() >= self.0.shared.terms.options.attempt_max
                    {
                        return Err(Stale);
                    }
                    message.renewed = Instant::now();
                    ackers.push(Arc::clone(&message.acker));
                    Ok(())
                };
                for (number, token) in waiting {
                    // One whose lease is over is dropped when its turn comes.
                    let _ = renew(number, token);
                }
                leases
                    .into_iter()
                    .map(|(number, token)| renew(number, token))
                    .collect()
            };
            for acker in ackers {
                let told = acker.ack_with(AckKind::Progress).await;
                told.map_err(|error| unavailable(error, Work::OutcomeUnknown))?;
            }
            Ok(results)
        })
    }

    fn leave(&self) -> EngineFuture<'_, ()> {
        Box::pin(async move {
            let _pulling = self.0.pulling.lock().await;
            let unbegun = self.0.held().remove_waiting();
            let released = unbegun
                .into_iter()
                .map(|lease| self.0.answer_one(lease, Answer::Release));
            for released in join_all(released).await {
                let _ = released?;
            }
            Ok(())
        })
    }
}
