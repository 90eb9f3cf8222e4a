//! Queues on RabbitMQ quorum queues.
//!
//! A push goes to a fanout exchange, and from it into a queue for each group of workers. Beside that queue a group has
//! one of dead letters, and those of the [`ladder`], in which delayed jobs and those between two attempts
//! wait. A job moves by being published where it goes, and acknowledged where it was only then: a crash in between
//! makes two of one, never none.

mod dead;
mod ladder;
mod link;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{ExchangeKind, PublisherConfirm};
use tokio::time::{Instant, sleep_until};

use crate::queue::{
    Capabilities, DeadLetter, JobNumber, NewJob, Pushed, QueueCounters, QueueError, QueueOptions,
};
use crate::wire::Work;

use super::envelope::{Envelope, now_ms};
use super::room::{DeadRoom, Room};
use super::server::{FULL_RETRY, OnServer, Server};
use super::terms::{Limits, Terms, limit_setters};
use super::thread::EngineThread;
use link::{Link, confirm, number, quorum};
use worker::RabbitMqWorker;

/// A queue on RabbitMQ, made by [`RabbitMq::queue`].
///
/// It knows no push again, has no order per key and no priority classes; and it has no lease: a job comes back
/// when its worker's connection has gone. See `docs/queue-engines.md`.
pub type RabbitMq = OnServer<RabbitMqBroker>;

/// The link to a RabbitMQ broker, and the queues of a queue there.
#[derive(Debug)]
pub struct RabbitMqBroker {
    link: Link,
    exchange: String,
    groups: Vec<Group>,
    terms: Terms,
    /// The last number that a job was given.
    numbered: AtomicU64,
    room: Room,
}

/// A group of workers, and the names of its queues.
#[derive(Debug)]
pub struct Group {
    jobs: String,
    dead: String,
    looking: tokio::sync::Mutex<()>,
    dead_room: DeadRoom,
    /// Jobs that workers of this process have.
    leased: AtomicUsize,
    done: AtomicU64,
    expired: AtomicU64,
    deleted: AtomicU64,
}

/// Settings of a queue on RabbitMQ.
#[derive(Debug)]
#[must_use = "nothing is opened before `open`"]
pub struct RabbitMqBuilder {
    name: String,
    options: QueueOptions,
    carries_unkept: bool,
    limits: Limits,
}

impl RabbitMq {
    /// A queue of this name, which is the name of its exchange too; its queues' names begin with it.
    pub fn queue(name: impl Into<String>) -> RabbitMqBuilder {
        RabbitMqBuilder {
            name: name.into(),
            options: QueueOptions::default(),
            carries_unkept: false,
            limits: Limits::default(),
        }
    }
}

impl RabbitMqBuilder {
    /// Limits and groups. A queue that is there with other limits is not changed, and cannot be opened: RabbitMQ
    /// refuses it. Policies change them.
    pub fn options(mut self, options: QueueOptions) -> Self {
        self.options = options;
        self
    }

    /// Takes jobs that ask for what this engine does not keep (job IDs, order per key, priorities), and brings
    /// those along without keeping them. Default: such a job is refused.
    pub fn carry_unkept(mut self) -> Self {
        self.carries_unkept = true;
        self
    }

    limit_setters!();

    /// Connects (`"amqp://user:password@127.0.0.1:5672/%2f"`), and makes the exchange and queues that are not there.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`], where the broker cannot be reached, or refuses.
    pub async fn open(self, uri: impl Into<String>) -> Result<RabbitMq, QueueError> {
        let thread = EngineThread::start("bowline-rabbitmq")?;
        let groups = self.options.groups.names();
        let mut capabilities = Capabilities::ALL;
        capabilities.leases = false;
        capabilities.deduplicates = false;
        capabilities.recognises_pushes = false;
        capabilities.orders_keys = false;
        capabilities.priorities = false;
        capabilities.finds = false;
        capabilities.cancels = false;
        let answer_max = self.limits.answer_max;
        let broker = RabbitMqBroker {
            link: Link::new(uri.into(), thread.handle().clone(), answer_max),
            groups: groups
                .iter()
                .map(|group| Group::new(&self.name, group))
                .collect(),
            exchange: self.name,
            terms: Terms::new(self.options, capabilities, self.limits, self.carries_unkept),
            numbered: AtomicU64::new(0),
            room: Room::default(),
        };
        broker.make().await?;
        Ok(OnServer::new(Arc::new(broker), thread))
    }
}

impl Group {
    fn new(queue: &str, name: &str) -> Self {
        Self {
            jobs: format!("{queue}.{name}"),
            dead: format!("{queue}.{name}.dead"),
            looking: tokio::sync::Mutex::default(),
            dead_room: DeadRoom::default(),
            leased: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            deleted: AtomicU64::new(0),
        }
    }

    fn rungs(&self) -> String {
        format!("{}.wait.", self.jobs)
    }
}

impl RabbitMqBroker {
    /// Makes the exchange, and the queues of every group.
    async fn make(&self) -> Result<(), QueueError> {
        let channel = self.link.channel().await?;
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let (exchange, arguments) = (self.exchange.as_str().into(), FieldTable::default());
        let made = channel.exchange_declare(exchange, ExchangeKind::Fanout, options, arguments);
        self.link.in_time(made, Work::NotDone).await?;
        let bytes_max = ("x-max-length-bytes", number(self.terms.options.bytes_max));
        for group in &self.groups {
            let jobs = quorum(
                self.terms.options.jobs_max,
                std::slice::from_ref(&bytes_max),
            );
            self.link.declare(&group.jobs, jobs).await?;
            self.link
                .declare(&group.dead, quorum(self.terms.options.dead_max, &[]))
                .await?;
            let (queue, exchange) = (group.jobs.as_str().into(), self.exchange.as_str().into());
            let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
            let bound = channel.queue_bind(queue, exchange, "".into(), options, arguments);
            self.link.in_time(bound, Work::NotDone).await?;
        }
        self.link
            .in_time(channel.close(200, "done".into()), Work::NotDone)
            .await
    }

    /// Greater than all before it of this process, and by the clock than those of others.
    fn next_number(&self) -> JobNumber {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = since.map_or(0, |since| since.as_micros() as u64);
        let fresh = micros << 10 | fastrand::u64(..1 << 10);
        let last = self.numbered.fetch_max(fresh, Ordering::Relaxed);
        match last < fresh {
            true => JobNumber(fresh),
            false => JobNumber(self.numbered.fetch_add(1, Ordering::Relaxed) + 1),
        }
    }

    /// Where a job of a group waits next; made, if it is not there. The envelope carries what is left after that.
    async fn rung(&self, group: &Group, envelope: &mut Envelope) -> Result<String, QueueError> {
        let (wait_ms, rest) = ladder::next_rung(envelope.delay);
        envelope.delay = rest;
        let name = format!("{}{wait_ms}", group.rungs());
        let text = |text: &str| AMQPValue::LongString(text.into());
        let arguments = quorum(
            self.terms.options.jobs_max,
            &[
                ("x-message-ttl", number(wait_ms)),
                ("x-dead-letter-exchange", text("")),
                ("x-dead-letter-routing-key", text(&group.jobs)),
                // Not lost on the way from one to the other.
                ("x-dead-letter-strategy", text("at-least-once")),
            ],
        );
        self.link.declare(&name, arguments).await?;
        Ok(name)
    }

    /// Publishes a job of one group to where it goes next.
    async fn send_again(&self, group: &Group, mut envelope: Envelope) -> Result<(), QueueError> {
        let until = self.terms.answered_by();
        if envelope.delay.is_zero() {
            return self.link.publish("", &group.jobs, &envelope, until).await;
        }
        let rung = self.rung(group, &mut envelope).await?;
        self.link.publish("", &rung, &envelope, until).await
    }

    /// Whether there are so many dead letters that no more jobs are to be sent.
    async fn is_blocked(&self, group: &Group) -> Result<bool, QueueError> {
        let count = self.link.messages(std::slice::from_ref(&group.dead));
        let dead_max = self.terms.options.dead_max;
        Ok(!group.dead_room.is_left(dead_max, count).await?)
    }
}

/// A new job's number, and each message that was sent for it.
pub type NewlySent = (JobNumber, Vec<(String, String, Envelope, PublisherConfirm)>);

impl Server for RabbitMqBroker {
    type Group = Group;
    type Sent = NewlySent;
    type Worker = RabbitMqWorker;

    fn terms(&self) -> &Terms {
        &self.terms
    }

    fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Where there seems to be less, the queues are asked: they refuse what is over their limit, but a few late, and
    /// take nothing again before they are at four fifths.
    async fn take_room(&self, wanted: usize, _: Instant) -> Result<usize, QueueError> {
        if self.room.take(wanted) {
            return Ok(wanted);
        }
        let mut waiting = 0;
        for group in &self.groups {
            let of_group = self
                .link
                .messages(std::slice::from_ref(&group.jobs))
                .await?;
            waiting = waiting.max(of_group);
        }
        let left = self.terms.options.jobs_max.saturating_sub(waiting);
        Ok(self.room.learn(left, wanted))
    }

    async fn send_new(&self, job: NewJob, _: Instant) -> Result<NewlySent, QueueError> {
        let mut envelope = Envelope::new(job, now_ms());
        let number = self.next_number();
        envelope.number = Some(number);
        let mut sent = Vec::new();
        if envelope.delay.is_zero() {
            sent.push((self.exchange.clone(), String::new(), envelope));
        } else {
            for group in &self.groups {
                let mut envelope = envelope.clone();
                let rung = self.rung(group, &mut envelope).await?;
                sent.push((String::new(), rung, envelope));
            }
        }
        let mut confirms = Vec::with_capacity(sent.len());
        for (exchange, routing_key, envelope) in sent {
            let confirm = self.link.send(&exchange, &routing_key, &envelope).await?;
            confirms.push((exchange, routing_key, envelope, confirm));
        }
        Ok((number, confirms))
    }

    async fn confirm_new(
        &self,
        (number, sent): NewlySent,
        deadline: Instant,
    ) -> Result<Pushed, QueueError> {
        for (exchange, routing_key, envelope, sent) in sent {
            let until = || self.terms.confirmed_by(deadline);
            let mut confirmed = confirm(sent, until()).await;
            while matches!(confirmed, Err(QueueError::Full)) && Instant::now() < deadline {
                sleep_until(deadline.min(Instant::now() + FULL_RETRY)).await;
                let link = &self.link;
                confirmed = link
                    .publish(&exchange, &routing_key, &envelope, until())
                    .await;
            }
            confirmed?;
        }
        Ok(Pushed::Accepted(number))
    }

    async fn worker(self: Arc<Self>, group: usize) -> Result<RabbitMqWorker, QueueError> {
        Ok(RabbitMqWorker::new(self, group))
    }

    async fn dead_letters(
        &self,
        group: &Group,
        after: Option<JobNumber>,
        max: usize,
    ) -> Result<Vec<DeadLetter>, QueueError> {
        dead::list(self, group, after, max).await
    }

    async fn send_back(&self, group: &Group, numbers: Vec<JobNumber>) -> Result<usize, QueueError> {
        dead::send_back(self, group, numbers).await
    }

    async fn delete(&self, group: &Group, numbers: Vec<JobNumber>) -> Result<usize, QueueError> {
        let deleted = dead::delete(self, group, numbers).await?;
        group.deleted.fetch_add(deleted as u64, Ordering::Relaxed);
        Ok(deleted)
    }

    async fn counters(&self, group: &Group) -> Result<QueueCounters, QueueError> {
        let rungs = self.link.declared_under(&group.rungs());
        let ready = self
            .link
            .messages(std::slice::from_ref(&group.jobs))
            .await?;
        let delayed = self.link.messages(&rungs).await?;
        let dead = self
            .link
            .messages(std::slice::from_ref(&group.dead))
            .await?;
        let leased = group.leased.load(Ordering::Relaxed);
        Ok(QueueCounters {
            ready,
            leased,
            delayed,
            dead,
            is_blocked: dead >= self.terms.options.dead_max,
            done: group.done.load(Ordering::Relaxed),
            expired: group.expired.load(Ordering::Relaxed),
            deleted: group.deleted.load(Ordering::Relaxed),
            jobs: ready + leased + delayed + dead,
            ..QueueCounters::default()
        })
    }
}
