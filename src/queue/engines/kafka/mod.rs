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

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::producer::FutureProducer;
use rdkafka::{ClientConfig, ClientContext};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::queue::{
    Capabilities, DeadLetter, Engine, EngineFuture, EngineWorker, JobId, JobNumber, JobState,
    NewJob, Poison, Pushed, QueueCounters, QueueError, QueueOptions,
};
use crate::wire::Work;

use super::room::Room;
use super::thread::EngineThread;
use super::unavailable;
use elsewhere::Elsewhere;
use reader::Reader;
use worker::KafkaWorker;

/// A broker has at least so long to answer, however soon a push wants to know.
const ANSWER_MIN: Duration = Duration::from_secs(2);
/// How long a broker has to answer anything.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Records that are on their way at once.
const BATCH_MAX: usize = 256;
/// How long to wait before trying again where there is no room.
const FULL_RETRY: Duration = Duration::from_millis(20);
/// What a record may have beside a job's body, ID and key.
const HEADERS_BYTES_MAX: usize = 64 << 10;
/// Records that librdkafka keeps before brokers have taken them; beyond, a push waits. `queue.buffering.max.messages`.
const UNSENT_MAX: usize = 10_000;
/// Their bytes, in KiB. `queue.buffering.max.kbytes`.
const UNSENT_KIB_MAX: usize = 64 << 10;
/// The shortest session that brokers grant.
const SESSION_MIN: Duration = Duration::from_secs(6);
/// The longest that is of use.
const SESSION_MAX: Duration = Duration::from_secs(5 * 60);

/// A queue on Kafka, made by [`Kafka::queue`].
///
/// It knows no push and no job ID again, has no priority classes, and no lease of a single job: a worker has partitions,
/// and what is not done of them comes back when it is gone. See `docs/queue-engines.md`.
#[derive(Debug)]
pub struct Kafka {
    shared: Arc<Shared>,
    /// The tasks' of its workers: they end with it.
    _thread: EngineThread,
}

struct Shared {
    config: ClientConfig,
    producer: Elsewhere<FutureProducer<Context>>,
    topic: String,
    groups: Vec<Group>,
    partitions: i32,
    options: QueueOptions,
    capabilities: Capabilities,
    carries_unkept: bool,
    is_closed: AtomicBool,
    room: Room,
    runtime: Handle,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("topic", &self.topic)
            .finish()
    }
}

/// A group of workers, and the names of its topics.
struct Group {
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
        if self.config.get("socket.timeout.ms").is_none() {
            let answer = ANSWER_MAX.as_millis().to_string();
            self.config.set("socket.timeout.ms", answer);
        }
        let thread = EngineThread::start("bowline-kafka")?;
        let runtime = thread.handle().clone();
        let shared = thread.run(async move {
            let made = runtime.clone().spawn_blocking(move || self.make(runtime));
            made.await
                .unwrap_or_else(|error| Err(unavailable(error, Work::NotDone)))
        });
        Ok(Kafka {
            shared: Arc::new(shared.await?),
            _thread: thread,
        })
    }

    /// Blocks.
    fn make(self, runtime: Handle) -> Result<Shared, QueueError> {
        let producer = self.producer_config().create_with_context(Context);
        let producer: FutureProducer<Context> = producer.map_err(failed)?;
        let found = topics::make(&self, &producer, &runtime)?;
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
        Ok(Shared {
            config: self.config,
            producer: Elsewhere::new(producer),
            topic: self.name,
            groups,
            partitions: found.partitions,
            options: self.options,
            capabilities,
            carries_unkept: self.carries_unkept,
            is_closed: AtomicBool::new(false),
            room: Room::default(),
            runtime,
        })
    }

    fn producer_config(&self) -> ClientConfig {
        let mut config = self.config.clone();
        let largest = self.options.job_bytes_max.saturating_add(HEADERS_BYTES_MAX);
        for (name, max) in [
            ("queue.buffering.max.messages", UNSENT_MAX),
            ("queue.buffering.max.kbytes", UNSENT_KIB_MAX),
        ] {
            if config.get(name).is_none() {
                config.set(name, max.to_string());
            }
        }
        config
            .set("message.max.bytes", largest.min(1_000_000_000).to_string())
            .set("linger.ms", "1")
            // As clients in Java choose a key's partition.
            .set("partitioner", "murmur2_random")
            // Confirmed by all replicas that are in sync, in order, none twice where a request is made again.
            .set("acks", "all")
            .set("enable.idempotence", "true");
        config
    }
}

impl Group {
    fn open(builder: &KafkaBuilder, name: &str) -> Result<Self, QueueError> {
        let id = format!("{}.{name}", builder.name);
        let dead = format!("{id}.dead");
        let reader = Reader::open(&builder.config, &id, &dead)?;
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

impl Shared {
    fn group(&self, name: &str) -> Result<(usize, &Group), QueueError> {
        let found = self
            .groups
            .iter()
            .enumerate()
            .find(|(_, group)| group.name == name);
        found.ok_or_else(|| QueueError::NoSuchGroup(name.to_owned()))
    }

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

    /// Room for at most so many jobs, which is then taken.
    async fn take_room(&self, wanted: usize) -> Result<usize, QueueError> {
        if self.options.jobs_max == usize::MAX || self.room.take(wanted) {
            return Ok(wanted);
        }
        let mut most = 0;
        for group in &self.groups {
            let (all, again) = self.behind(group).await?;
            most = most.max(all + again);
        }
        let left = self.options.jobs_max.saturating_sub(most);
        Ok(self.room.learn(left, wanted))
    }

    /// Records of the topic of all groups, and of this group's own, that it has not done, or has not told so.
    async fn behind(&self, group: &Group) -> Result<(usize, usize), QueueError> {
        let (all, again, partitions) = (self.topic.clone(), group.again.clone(), self.partitions);
        self.read(group, move |reader| reader.behind(&all, &again, partitions))
            .await
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
            is_blocked: dead >= self.options.dead_max,
            done: group.done.load(Ordering::Relaxed),
            expired: group.expired.load(Ordering::Relaxed),
            deleted: group.deleted.load(Ordering::Relaxed),
            jobs: all + again + dead,
            ..QueueCounters::default()
        })
    }

    fn parks(&self) -> bool {
        self.options.poison == Poison::Park
    }

    fn session(&self) -> Duration {
        self.options.lease.clamp(SESSION_MIN, SESSION_MAX)
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

impl Engine for Kafka {
    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities
    }

    fn push(
        &self,
        jobs: Vec<NewJob>,
        deadline: Instant,
    ) -> EngineFuture<'_, Vec<Result<Pushed, QueueError>>> {
        Box::pin(async move {
            let shared = &*self.shared;
            if shared.is_closed.load(Ordering::Acquire) {
                return Err(QueueError::Closed);
            }
            let mut results = Vec::with_capacity(jobs.len());
            let mut jobs = jobs.into_iter();
            while jobs.len() > 0 {
                let room = shared.take_room(jobs.len().min(BATCH_MAX));
                let until = deadline.max(Instant::now() + ANSWER_MIN);
                let room = timeout_at(until, room).await;
                let room = room.map_err(|_| unavailable("no broker answers", Work::NotDone))??;
                if room == 0 {
                    if Instant::now() >= deadline {
                        results.extend(jobs.map(|_| Err(QueueError::Full)));
                        break;
                    }
                    sleep_until(deadline.min(Instant::now() + FULL_RETRY)).await;
                    continue;
                }
                let mut batch = Vec::with_capacity(room);
                for job in jobs.by_ref().take(room) {
                    let sent = shared.send_new(job, deadline).await;
                    batch.push(async move { sent?.confirm(deadline).await });
                }
                results.extend(join_all(batch).await);
            }
            Ok(results)
        })
    }

    fn worker(&self, group: &str) -> EngineFuture<'_, Box<dyn EngineWorker>> {
        let group = self.shared.group(group).map(|(index, _)| index);
        Box::pin(async move {
            let worker = KafkaWorker::join(Arc::clone(&self.shared), group?).await?;
            Ok(Box::new(worker) as Box<dyn EngineWorker>)
        })
    }

    fn dead_letters(
        &self,
        group: &str,
        after: Option<JobNumber>,
        max: usize,
    ) -> EngineFuture<'_, Vec<DeadLetter>> {
        let group = self.shared.group(group);
        Box::pin(async move { dead::list(&self.shared, group?.1, after, max).await })
    }

    fn send_back(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let group = self.shared.group(group);
        Box::pin(async move { dead::send_back(&self.shared, group?.1, numbers).await })
    }

    fn delete(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let group = self.shared.group(group);
        Box::pin(async move {
            let (_, group) = group?;
            let deleted = dead::delete(&self.shared, group, numbers).await?;
            group.deleted.fetch_add(deleted as u64, Ordering::Relaxed);
            Ok(deleted)
        })
    }

    fn find(&self, _: &JobId) -> EngineFuture<'_, Option<(JobNumber, JobState)>> {
        Box::pin(async { Err(QueueError::Unsupported("finding a job by its ID")) })
    }

    fn counters(&self, group: &str) -> EngineFuture<'_, QueueCounters> {
        let group = self.shared.group(group);
        Box::pin(async move { self.shared.counters(group?.1).await })
    }

    fn close(&self) -> EngineFuture<'_, ()> {
        // Each push waits for its own confirmation: nothing is left to be made safe.
        self.shared.is_closed.store(true, Ordering::Release);
        Box::pin(async { Ok(()) })
    }
}
