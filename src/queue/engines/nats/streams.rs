//! The three streams of a group of workers: how they are made, named and counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::queue::{JobNumber, JobState, QueueCounters, QueueError, QueueOptions};
use crate::wire::Work;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, RawMessageErrorKind, RetentionPolicy, StorageType, Stream,
};

use super::super::room::DeadRoom;
use super::super::unavailable;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Jobs,
    Waiting,
    Dead,
}

#[derive(Debug)]
pub struct Group {
    prefix: String,
    pub jobs: Stream,
    pub pull: Consumer<pull::Config>,
    pub waiting: Stream,
    pub pull_waiting: Consumer<pull::Config>,
    pub dead: Stream,
    pub dead_room: DeadRoom,
    pub done: AtomicU64,
    pub expired: AtomicU64,
}

impl Group {
    pub async fn open(
        context: &Context,
        queue: &str,
        name: &str,
        options: &QueueOptions,
        replicas: usize,
    ) -> Result<Self, QueueError> {
        let stream = |place: &str, retention, max_messages: usize, max_bytes, window| Config {
            name: format!("{queue}_{name}_{place}"),
            subjects: vec![format!("{queue}.{name}.{place}.>")],
            retention,
            max_messages: i64::try_from(max_messages).unwrap_or(i64::MAX),
            max_bytes,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            num_replicas: replicas,
            duplicate_window: window,
            ..Config::default()
        };
        let jobs_max = options.jobs_max;
        // The server sets so much aside, and refuses a stream for which it has not.
        let bytes_max = i64::try_from(options.bytes_max).unwrap_or(i64::MAX);
        let window = options.id_retention.max(Duration::from_millis(100));
        let dead_window = Duration::from_secs(120);
        let work = RetentionPolicy::WorkQueue;
        let make = async |config| {
            let asked = Config::clone(&config);
            let made = context.get_or_create_stream(config).await;
            let made: Stream = made.map_err(|error| unavailable(error, Work::NotDone))?;
            let Config {
                name,
                retention,
                discard,
                ..
            } = &made.cached_info().config;
            if (*retention, *discard) != (asked.retention, asked.discard) {
                let reason = format!(
                    "stream {name:?} has retention {retention:?} and discards {discard:?} where a queue needs {:?} and {:?}: \
                     change it with NATS's tools, or open a queue of another name",
                    asked.retention, asked.discard
                );
                return Err(unavailable(reason, Work::NotDone));
            }
            Ok(made)
        };
        let jobs = make(stream("jobs", work, jobs_max, bytes_max, window)).await?;
        let waiting = make(stream("waiting", work, jobs_max, bytes_max, window)).await?;
        let limits = RetentionPolicy::Limits;
        let dead = stream("dead", limits, options.dead_max, -1, dead_window);
        let dead = make(dead).await?;
        let consumer = |ack_wait| pull::Config {
            durable_name: Some("workers".into()),
            ack_policy: AckPolicy::Explicit,
            ack_wait,
            // We count attempts ourselves, in headers.
            max_deliver: -1,
            max_ack_pending: -1,
            ..pull::Config::default()
        };
        let make = async |stream: &Stream, config| {
            let made = stream.get_or_create_consumer("workers", config).await;
            let made: Consumer<pull::Config> =
                made.map_err(|error| unavailable(error, Work::NotDone))?;
            let info = made.cached_info();
            let (policy, max_deliver) = (info.config.ack_policy, info.config.max_deliver);
            if policy != AckPolicy::Explicit || max_deliver > 0 {
                let reason = format!(
                    "consumer {:?} of stream {:?} has ack policy {policy:?} and {max_deliver} deliveries at most where a queue \
                     needs explicit ones without a limit: change it with NATS's tools",
                    info.name, info.stream_name
                );
                return Err(unavailable(reason, Work::NotDone));
            }
            Ok(made)
        };
        Ok(Self {
            prefix: format!("{queue}.{name}"),
            pull: make(&jobs, consumer(options.lease)).await?,
            pull_waiting: make(&waiting, consumer(Duration::from_secs(10))).await?,
            jobs,
            waiting,
            dead,
            dead_room: DeadRoom::default(),
            done: AtomicU64::new(0),
            expired: AtomicU64::new(0),
        })
    }

    /// Returns the time after which the server takes a job for lost: that of its consumer, whatever was asked for.
    pub async fn lease(&self, options: &QueueOptions) -> Result<Duration, QueueError> {
        let info = self.pull.get_info().await;
        let info = info.map_err(|error| unavailable(error, Work::NotDone))?;
        let (lease, asked) = (info.config.ack_wait, options.lease);
        if lease != asked {
            tracing::warn!(stream = %info.stream_name, ?lease, ?asked, "consumer has another lease than asked for");
        }
        Ok(lease)
    }

    /// Where a job is published to; without its number, for one that is new.
    pub fn subject(&self, place: Place, number: Option<JobNumber>) -> String {
        let place = match place {
            Place::Jobs => "jobs",
            Place::Waiting => "waiting",
            Place::Dead => "dead",
        };
        match number {
            Some(number) => format!("{}.{place}.{number}", self.prefix),
            None => format!("{}.{place}.new", self.prefix),
        }
    }

    /// Where a job is that was pushed before. `sequence` is that of its first message.
    pub async fn state(&self, number: JobNumber, sequence: u64) -> Result<JobState, QueueError> {
        let is_delayed = number.0 != sequence;
        let first = if is_delayed {
            &self.waiting
        } else {
            &self.jobs
        };
        if is_there(first.get_raw_message(sequence).await)? {
            if is_delayed {
                return Ok(JobState::Delayed);
            }
            let info = self.pull.get_info().await;
            let info = info.map_err(|error| unavailable(error, Work::NotDone))?;
            let was_sent = sequence <= info.delivered.stream_sequence;
            return Ok(if was_sent {
                JobState::Leased
            } else {
                JobState::Ready
            });
        }
        for (stream, place, state) in [
            (&self.jobs, Place::Jobs, JobState::Ready),
            (&self.waiting, Place::Waiting, JobState::Delayed),
            (&self.dead, Place::Dead, JobState::Dead),
        ] {
            let subject = self.subject(place, Some(number));
            if is_there(stream.get_last_raw_message_by_subject(&subject).await)? {
                return Ok(state);
            }
        }
        Ok(JobState::Finished)
    }

    /// Whether there are so many dead letters that no more jobs are to be sent.
    pub async fn is_blocked(&self, options: &QueueOptions) -> Result<bool, QueueError> {
        let count = async { Ok(messages(&self.dead).await?.0 as usize) };
        let is_left = self.dead_room.is_left(options.dead_max, count).await?;
        Ok(!is_left)
    }

    pub async fn counters(&self, options: &QueueOptions) -> Result<QueueCounters, QueueError> {
        let info = self.pull.get_info().await;
        let info = info.map_err(|error| unavailable(error, Work::NotDone))?;
        let (_, jobs_bytes) = messages(&self.jobs).await?;
        let (waiting, waiting_bytes) = messages(&self.waiting).await?;
        let (dead, dead_bytes) = messages(&self.dead).await?;
        let mut counters = QueueCounters::default();
        counters.ready = info.num_pending as usize;
        counters.leased = info.num_ack_pending;
        counters.delayed = waiting as usize;
        counters.dead = dead as usize;
        counters.is_blocked = counters.dead >= options.dead_max;
        counters.done = self.done.load(Ordering::Relaxed);
        counters.expired = self.expired.load(Ordering::Relaxed);
        counters.jobs = counters.ready + counters.leased + counters.delayed + counters.dead;
        counters.bytes = jobs_bytes + waiting_bytes + dead_bytes;
        Ok(counters)
    }
}

/// How many messages a stream has, and their bytes.
async fn messages(stream: &Stream) -> Result<(u64, u64), QueueError> {
    let info = stream.get_info().await;
    let info = info.map_err(|error| unavailable(error, Work::NotDone))?;
    Ok((info.state.messages, info.state.bytes))
}

fn is_there<T>(
    got: Result<T, async_nats::error::Error<RawMessageErrorKind>>,
) -> Result<bool, QueueError> {
    match got {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(unavailable(error, Work::NotDone)),
    }
}
