//! The topics of a queue: made where they are not there, looked at where they are.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{FutureProducer, Producer};
use rdkafka::types::RDKafkaRespErr;
use tokio::runtime::Handle;

use crate::queue::QueueError;
use crate::wire::Work;

use super::super::unavailable;
use super::{Context, KafkaBuilder, failed};

/// How long to wait before looking again whether a new topic has its leaders.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How the topics are.
pub(super) struct Found {
    pub partitions: i32,
    /// Of the partition that has the fewest.
    pub replicas: i32,
}

struct Topic {
    name: String,
    /// None for dead letters: one.
    partitions: Option<i32>,
}

pub(super) fn check_names(queue: &str, groups: &[String]) -> Result<(), QueueError> {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_name = |name: &str| !name.is_empty() && name.chars().all(is_letter);
    // `.again` is the longest that is added.
    let is_short = |group: &String| queue.len() + group.len() + ".again".len() < 249;
    let names = groups.iter().map(String::as_str).chain([queue]);
    match names.into_iter().find(|name| !is_name(name)) {
        Some(wrong) => {
            let reason = format!("{wrong:?} is no name of letters, digits, - and _");
            Err(unavailable(reason, Work::NotDone))
        }
        None if !groups.iter().all(is_short) => Err(unavailable(
            "the names are too long for Kafka",
            Work::NotDone,
        )),
        None => Ok(()),
    }
}

/// Makes those that are not there. Blocks.
pub(super) fn make(
    builder: &KafkaBuilder,
    producer: &FutureProducer<Context>,
    runtime: &Handle,
) -> Result<Found, QueueError> {
    let answer_max = builder.limits.answer_max;
    let mut topics = vec![Topic {
        name: builder.name.clone(),
        partitions: Some(builder.partitions),
    }];
    for group in builder.options.groups.names() {
        let name = format!("{}.{group}", builder.name);
        topics.push(Topic {
            name: format!("{name}.again"),
            partitions: Some(builder.partitions),
        });
        topics.push(Topic {
            name: format!("{name}.dead"),
            partitions: None,
        });
    }
    let mut found = Found {
        partitions: 0,
        replicas: i32::MAX,
    };
    for topic in &topics {
        let (partitions, replicas) = match look(producer, &topic.name, answer_max)? {
            Some(known) => known,
            None => {
                runtime.block_on(create(builder, topic))?;
                wait_for(producer, &topic.name, answer_max)?
            }
        };
        let wanted = match (topic.partitions, found.partitions) {
            (None, _) => 1,
            // As many as the first has, which may have been there.
            (Some(_), 0) => partitions,
            (Some(_), first) => first,
        };
        if partitions != wanted {
            let name = &topic.name;
            let reason =
                format!("topic {name} has {partitions} partitions, and has to have {wanted}");
            return Err(unavailable(reason, Work::NotDone));
        }
        if topic.partitions.is_some() {
            found.partitions = partitions;
        }
        found.replicas = found.replicas.min(replicas);
    }
    Ok(found)
}

/// Its partitions, and the replicas of the one that has the fewest. None where it is not there.
fn look(
    producer: &FutureProducer<Context>,
    topic: &str,
    answer_max: Duration,
) -> Result<Option<(i32, i32)>, QueueError> {
    let metadata = producer.client().fetch_metadata(Some(topic), answer_max);
    let metadata = metadata.map_err(failed)?;
    let Some(found) = metadata.topics().first() else {
        return Ok(None);
    };
    match found.error() {
        None => {}
        Some(
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        ) => return Ok(None),
        Some(error) => {
            let error = RDKafkaErrorCode::from(error);
            return Err(unavailable(
                format!("topic {topic}: {error}"),
                Work::NotDone,
            ));
        }
    }
    let replicas = found.partitions().iter().map(|p| p.replicas().len()).min();
    let counts = (
        i32::try_from(found.partitions().len()),
        i32::try_from(replicas.unwrap_or(0)),
    );
    match counts {
        (Ok(partitions), Ok(replicas)) if partitions > 0 => Ok(Some((partitions, replicas))),
        _ => Ok(None),
    }
}

fn wait_for(
    producer: &FutureProducer<Context>,
    topic: &str,
    answer_max: Duration,
) -> Result<(i32, i32), QueueError> {
    let until = Instant::now() + answer_max;
    loop {
        if let Some(found) = look(producer, topic, answer_max)? {
            return Ok(found);
        }
        if Instant::now() >= until {
            let reason = format!("topic {topic} was made, and is not there");
            return Err(unavailable(reason, Work::NotDone));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

async fn create(builder: &KafkaBuilder, topic: &Topic) -> Result<(), QueueError> {
    let admin: AdminClient<Context> = builder
        .config
        .create_with_context(Context)
        .map_err(failed)?;
    let in_sync = builder.in_sync_min.to_string();
    let largest = builder.record_max().to_string();
    let new = NewTopic::new(
        &topic.name,
        topic.partitions.unwrap_or(1),
        TopicReplication::Fixed(builder.replicas),
    );
    let new = new
        .set("min.insync.replicas", &in_sync)
        .set("max.message.bytes", &largest);
    let new = match topic.partitions {
        // Jobs are not to go before somebody has done them, however late.
        Some(_) => new.set("retention.ms", "-1").set("retention.bytes", "-1"),
        // The last record of a number says what has become of it.
        None => new.set("cleanup.policy", "compact"),
    };
    let options = AdminOptions::new().request_timeout(Some(builder.limits.answer_max));
    let made = admin
        .create_topics([&new], &options)
        .await
        .map_err(failed)?;
    match made.into_iter().next() {
        // Another has just made it.
        None | Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((name, error))) => {
            Err(unavailable(format!("topic {name}: {error}"), Work::NotDone))
        }
    }
}
