//! Queues on Kafka.
//!
//! All groups of workers read the topic of the queue. Beside it, each has a topic of jobs that are to be tried `again` or have
//! to wait, and one of `dead` letters. Kafka keeps one number for a partition and a group, the offset before which all
//! is done; [`window`] is what we know above it. A job that goes to another topic is published there, and is
//! done here only then: a crash in between makes two of one, never none.
//!
//! librdkafka has threads of its own. What blocks a thread is done on those that are there to be blocked.

mod board;
mod dead;
mod elsewhere;
mod member;
mod publish;
mod reader;
mod record;
mod topics;
mod window;
mod worker;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::producer::FutureProducer;
use rdkafka::{ClientConfig, ClientContext};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use crate::queue::{
    Capabilities, DeadLetter, JobNumber, NewJob, Poison, Pushed, QueueCounters, QueueError,
    QueueOptions,
};
use crate::wire::Work;

use super::room::Room;
use super::server::{OnServer, Server};
use super::terms::{Limits, Terms, limit_setters};
use super::thread::EngineThread;
use super::unavailable;
use elsewhere::Elsewhere;
use publish::SentJob;
use reader::Reader;
use worker::KafkaWorker;

/// What a record has beside a job's body, ID and key, and the causes of its failures: their names, counts and times.
const HEADERS_BYTES: usize = 8 << 10;
/// The most that librdkafka takes.
const RECORD_BYTES_MAX: usize = 1_000_000_000;
/// Records that librdkafka keeps before brokers have taken them; beyond, a push waits. `queue.buffering.max.messages`.
const UNSENT_MAX: usize = 10_000;
/// Their bytes, in KiB. `queue.buffering.max.kbytes`.
const UNSENT_KIB_MAX: usize = 64 << 10;
/// KiB of records that librdkafka fetches ahead of those that are read.
const FETCHED_KIB: (&str, usize) = ("queued.max.messages.kbytes", 16 << 10);
/// The shortest session that brokers grant.
const SESSION_MIN: Duration = Duration::from_secs(6);
/// The longest that is of use.
const SESSION_MAX: Duration = Duration::from_secs(5 * 60);

/// A queue on Kafka, made by [`Kafka::queue`].
///
/// It knows no push and no job ID again, has no priority classes, and no lease of a single job: a worker has partitions,
/// and what is not done of them comes back when it is gone. See `docs/queue-engines.md`.
pub type Kafka = OnServer<KafkaBrokers>;

/// The clients of Kafka's brokers that a queue has, and its topics there.
pub struct KafkaBrokers {
    config: ClientConfig,
    producer: Elsewhere<FutureProducer<Context>>,
    topic: String,
    groups: Vec<Group>,
    partitions: i32,
    /// Bytes of the largest record.
    record_max: usize,
    terms: Terms,
    window: WindowLimits,
    room: Room,
    runtime: Handle,
}

/// How far a worker reads ahead of the first job of a partition that is not done.
#[derive(Clone, Copy, Debug)]
struct WindowLimits {
    /// Jobs of one partition that are known and not done. Beyond, no more are fetched.
    jobs_max: usize,
    /// Their bytes; a single job may have more.
    bytes_max: usize,
    /// How long a job that waits for its time may hold back what Kafka is told. It is then published anew, behind the others.
    hold_max: Duration,
}

impl Default for WindowLimits {
    fn default() -> Self {
        Self {
            jobs_max: 10_000,
            bytes_max: 16 << 20,
            hold_max: Duration::from_secs(60),
        }
    }
}

impl std::fmt::Debug for KafkaBrokers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaBrokers")
            .field("topic", &self.topic)
            .finish()
    }
}

/// A group of workers, and the names of its topics.
pub struct Group {
    name: String,
    /// Its name as a group of Kafka's.
    id: String,
    again: String,
    dead: String,
    reader: Elsewhere<Arc<Mutex<Reader>>>,
    /// Of the workers of this process: jobs that they have, and those of them from the topic `again`.
    leased: AtomicUsize,
    leased_again: AtomicUsize,
    /// Of the workers of this process: jobs of keys that are tried again later.
    postponed: AtomicUsize,
    done: AtomicU64,
    expired: AtomicU64,
    deleted: AtomicU64,
}

/// Settings of a queue on Kafka.
#[derive(Debug)]
#[must_use = "nothing is opened before `open`"]
pub struct KafkaBuilder {
    name: String,
    options: QueueOptions,
    partitions: i32,
    replicas: i32,
    in_sync_min: i32,
    config: ClientConfig,
    carries_unkept: bool,
    limits: Limits,
    window: WindowLimits,
}

impl Kafka {
    /// A queue of this name, which is the name of its topic too: letters, digits, `-` and `_`.
    pub fn queue(name: impl Into<String>) -> KafkaBuilder {
        KafkaBuilder {
            name: name.into(),
            options: QueueOptions::default(),
            partitions: 8,
            replicas: 1,
            in_sync_min: 1,
            config: ClientConfig::new(),
            carries_unkept: false,
            limits: Limits::default(),
            window: WindowLimits::default(),
        }
    }
}

impl KafkaBuilder {
    /// Limits and groups. `lease` is how long nothing may be heard of a worker's process before its jobs go to others,
    /// at least 6 s.
    pub fn options(mut self, options: QueueOptions) -> Self {
        self.options = options;
        self
    }

    /// Partitions of topics that are not there: so many workers of a group can work at once, and a key has its
    /// place in one of them. Default: 8.
    pub fn partitions(mut self, partitions: u16) -> Self {
        self.partitions = i32::from(partitions.max(1));
        self
    }

    /// Brokers that keep each partition of topics that are not there. Default: 1.
    pub fn replicas(mut self, replicas: u16) -> Self {
        self.replicas = i32::from(replicas.max(1));
        self
    }

    /// Of how many brokers a push waits for at the least: `min.insync.replicas` of topics that are not there, and what you say
    /// of those that are. From 2 on, with so many replicas, [`Capabilities::is_durable`] is claimed. Default: 1.
    pub fn min_insync_replicas(mut self, brokers: u16) -> Self {
        self.in_sync_min = i32::from(brokers.max(1));
        self
    }

    /// A setting of librdkafka's, such as `security.protocol`. Those that the queue's promises rest on are not taken.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.config.set(name, value);
        self
    }

    /// Takes jobs that ask for what this engine does not keep (job IDs, priorities), and brings those along without
    /// keeping them. Default: such a job is refused.
    pub fn carry_unkept(mut self) -> Self {
        self.carries_unkept = true;
        self
    }

    limit_setters!();

    /// Jobs of one partition that a worker knows and has not done, at least 1. Beyond, it fetches no more: what is done
    /// again, at the most, where it dies. Default: 10,000.
    pub fn window_jobs_max(mut self, jobs: usize) -> Self {
        self.window.jobs_max = jobs.max(1);
        self
    }

    /// Their bytes; a single job may have more. Default: 16 MiB.
    pub fn window_bytes_max(mut self, bytes: usize) -> Self {
        self.window.bytes_max = bytes;
        self
    }

    /// How long a job that waits for its time may hold back the jobs behind it from being told to be done. Then it is
    /// published anew, behind them. One that is due within a twelfth of this is left where it is. Default: 60 s.
    pub fn hold_max(mut self, time: Duration) -> Self {
        self.window.hold_max = time;
        self
    }

    /// Connects to these brokers (`"127.0.0.1:9092"`, or several with commas between), and makes the topics that are
    /// not there.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`], where no broker can be reached, one refuses to make a topic, or topics
    /// have different numbers of partitions.
    pub async fn open(mut self, brokers: impl Into<String>) -> Result<Kafka, QueueError> {
        topics::check_names(&self.name, self.options.groups.names())?;
        self.config.set("bootstrap.servers", brokers);
        self.config.set_log_level(RDKafkaLogLevel::Warning);
        let answer = self.limits.answer_max.as_millis();
        set_unless(&mut self.config, "socket.timeout.ms", answer);
        let thread = EngineThread::start("bowline-kafka")?;
        let runtime = thread.handle().clone();
        let brokers = thread.run(async move {
            let made = runtime.clone().spawn_blocking(move || self.make(runtime));
            made.await
                .unwrap_or_else(|error| Err(unavailable(error, Work::NotDone)))
        });
        Ok(OnServer::new(Arc::new(brokers.await?), thread))
    }

    /// Blocks.
    fn make(self, runtime: Handle) -> Result<KafkaBrokers, QueueError> {
        let producer = self.producer_config().create_with_context(Context);
        let producer: FutureProducer<Context> = producer.map_err(failed)?;
        let found = topics::make(&self, &producer, &runtime)?;
        let record_max = self.record_max();
        let mut groups = Vec::new();
        for name in self.options.groups.names() {
            groups.push(Group::open(&self, name)?);
        }
        let mut capabilities = Capabilities::ALL;
        capabilities.is_durable = self.in_sync_min > 1 && found.replicas >= self.in_sync_min;
        capabilities.leases = false;
        capabilities.deduplicates = false;
        capabilities.recognises_pushes = false;
        capabilities.priorities = false;
        capabilities.finds = false;
        capabilities.cancels = false;
        Ok(KafkaBrokers {
            config: self.config,
            producer: Elsewhere::new(producer),
            topic: self.name,
            groups,
            partitions: found.partitions,
            record_max,
            terms: Terms::new(self.options, capabilities, self.limits, self.carries_unkept),
            window: self.window,
            room: Room::default(),
            runtime,
        })
    }

    /// Bytes of the largest record: a job, its ID and key a second time, as text, and all that is kept of its failures.
    fn record_max(&self) -> usize {
        let QueueOptions {
            job_bytes_max,
            failures_max,
            cause_bytes_max,
            ..
        } = self.options;
        // As text, a byte takes up to three.
        let failures = failures_max.saturating_mul(cause_bytes_max.saturating_add(32) * 3);
        let record = job_bytes_max.saturating_add(failures);
        record.saturating_add(HEADERS_BYTES).min(RECORD_BYTES_MAX)
    }

    fn producer_config(&self) -> ClientConfig {
        let mut config = self.config.clone();
        set_unless(&mut config, "queue.buffering.max.messages", UNSENT_MAX);
        set_unless(&mut config, "queue.buffering.max.kbytes", UNSENT_KIB_MAX);
        config
            .set("message.max.bytes", self.record_max().to_string())
            .set("linger.ms", "1")
            // As clients in Java choose a key's partition.
            .set("partitioner", "murmur2_random")
            // Confirmed by all replicas that are in sync, in order, none twice where a request is made again.
            .set("acks", "all")
            .set("enable.idempotence", "true");
        config
    }
}

/// Sets what the user has not.
fn set_unless(config: &mut ClientConfig, name: &str, value: impl ToString) {
    if config.get(name).is_none() {
        config.set(name, value.to_string());
    }
}

impl Group {
    fn open(builder: &KafkaBuilder, name: &str) -> Result<Self, QueueError> {
        let id = format!("{}.{name}", builder.name);
        let dead = format!("{id}.dead");
        let reader = Reader::open(&builder.config, &id, &dead, builder.limits.answer_max)?;
        Ok(Self {
            name: name.to_owned(),
            again: format!("{id}.again"),
            dead,
            id,
            reader: Elsewhere::new(Arc::new(Mutex::new(reader))),
            leased: AtomicUsize::new(0),
            leased_again: AtomicUsize::new(0),
            postponed: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            deleted: AtomicU64::new(0),
        })
    }
}

impl KafkaBrokers {
    /// Does this where a thread may be blocked.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, QueueError> + Send + 'static,
    ) -> Result<T, QueueError> {
        let done = self.runtime.spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(unavailable(error, Work::OutcomeUnknown)))
    }

    /// Asks a group's reader something, where a thread may be blocked.
    async fn read<T: Send + 'static>(
        &self,
        group: &Group,
        ask: impl FnOnce(&mut Reader) -> Result<T, QueueError> + Send + 'static,
    ) -> Result<T, QueueError> {
        let reader = group.reader.clone();
        self.blocking(move || ask(&mut reader::lock(&reader))).await
    }

    /// Records of the topic of all groups, and of this group's own, that it has not done, or has not told so.
    async fn behind(&self, group: &Group) -> Result<(usize, usize), QueueError> {
        let (all, again, partitions) = (self.topic.clone(), group.again.clone(), self.partitions);
        self.read(group, move |reader| reader.behind(&all, &again, partitions))
            .await
    }

    fn parks(&self) -> bool {
        self.terms.options.poison == Poison::Park
    }

    fn session(&self) -> Duration {
        self.terms.options.lease.clamp(SESSION_MIN, SESSION_MAX)
    }
}

fn failed(error: KafkaError) -> QueueError {
    unavailable(error, Work::NotDone)
}

/// What librdkafka says, in our log.
#[derive(Clone, Debug)]
struct Context;

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "librdkafka");
    }
}

impl Server for KafkaBrokers {
    type Group = Group;
    type Sent = SentJob;
    type Worker = KafkaWorker;

    fn terms(&self) -> &Terms {
        &self.terms
    }

    fn groups(&self) -> &[Group] {
        &self.groups
    }

    async fn take_room(&self, wanted: usize, deadline: Instant) -> Result<usize, QueueError> {
        if self.terms.options.jobs_max == usize::MAX || self.room.take(wanted) {
            return Ok(wanted);
        }
        let until = self.terms.confirmed_by(deadline);
        let mut most = 0;
        for group in &self.groups {
            let behind = timeout_at(until, self.behind(group)).await;
            let behind = behind.map_err(|_| unavailable("no broker answers", Work::NotDone))?;
            let (all, again) = behind?;
            most = most.max(all + again);
        }
        let left = self.terms.options.jobs_max.saturating_sub(most);
        Ok(self.room.learn(left, wanted))
    }

    async fn send_new(&self, job: NewJob, deadline: Instant) -> Result<SentJob, QueueError> {
        publish::send_new(self, job, deadline).await
    }

    async fn confirm_new(&self, sent: SentJob, deadline: Instant) -> Result<Pushed, QueueError> {
        sent.confirm(self.terms.confirmed_by(deadline)).await
    }

    async fn worker(self: Arc<Self>, group: usize) -> Result<KafkaWorker, QueueError> {
        KafkaWorker::join(self, group).await
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
        let (all, again) = self.behind(group).await?;
        let dead = self.read(group, Reader::count_dead).await?;
        let leased = group.leased.load(Ordering::Relaxed);
        let leased_again = group.leased_again.load(Ordering::Relaxed);
        let postponed = group.postponed.load(Ordering::Relaxed);
        Ok(QueueCounters {
            ready: all.saturating_sub(leased.saturating_sub(leased_again) + postponed),
            leased,
            delayed: again.saturating_sub(leased_again) + postponed,
            dead,
            is_blocked: dead >= self.terms.options.dead_max,
            done: group.done.load(Ordering::Relaxed),
            expired: group.expired.load(Ordering::Relaxed),
            deleted: group.deleted.load(Ordering::Relaxed),
            jobs: all + again + dead,
            ..QueueCounters::default()
        })
    }
}
