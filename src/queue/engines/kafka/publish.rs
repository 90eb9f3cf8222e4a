//! Jobs on their way to brokers: a push, and a job that goes to another topic. Each waits for the brokers' confirmation.

use std::time::Duration;

use bytes::Bytes;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{DeliveryFuture, FutureRecord};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::queue::{NewJob, Pushed, QueueError};
use crate::wire::Work;

use super::super::envelope::{Envelope, now_ms};
use super::super::server::FULL_RETRY;
use super::super::unavailable;
use super::record::{self, Partition};
use super::window::Milliseconds;
use super::{Group, KafkaBrokers};

/// What is in a record beside its body, its key and our headers, for other groups and times, or less.
const RECORD_BYTES: usize = 512;

/// Where a record goes: to a partition that Kafka chooses, by the key where there is one.
pub(super) struct To<'a> {
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    pub due: Milliseconds,
    pub only_for: Option<&'a str>,
}

impl KafkaBrokers {
    /// How many bytes of headers a record of this job has room for. Its key stands beside them once more.
    fn headers_max(&self, envelope: &Envelope) -> usize {
        let key = envelope.key.as_ref().map_or(0, Bytes::len);
        let rest = envelope.body.len() + key + RECORD_BYTES;
        self.record_max.saturating_sub(rest)
    }

    /// Publishes. Records of one caller arrive in the order in which this returns. Waits until `deadline` where
    /// librdkafka has as many as it keeps.
    ///
    /// # Errors
    /// [`QueueError::TooLarge`] for a new job that has no room in a record with all that may be added to it later.
    async fn send(
        &self,
        envelope: &Envelope,
        to: To<'_>,
        deadline: Instant,
    ) -> Result<DeliveryFuture, QueueError> {
        let envelope = &*envelope.fitted(self.headers_max(envelope))?;
        loop {
            let headers = record::headers(envelope, to.due, to.only_for);
            let mut record = FutureRecord::to(to.topic)
                .payload(&*envelope.body)
                .headers(headers);
            if let Some(key) = to.key {
                record = record.key(key);
            }
            match self.producer.send_result(record) {
                Ok(sent) => return Ok(sent),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    if Instant::now() >= deadline {
                        return Err(QueueError::Full);
                    }
                    sleep_until(deadline.min(Instant::now() + FULL_RETRY)).await;
                }
                Err((error, _)) => return Err(push_error(&error, envelope, Work::NotDone)),
            }
        }
    }

    /// Publishes, and returns when the brokers have confirmed it.
    pub(super) async fn publish(
        &self,
        envelope: &Envelope,
        to: To<'_>,
        deadline: Instant,
    ) -> Result<Delivery, QueueError> {
        let sent = self.send(envelope, to, deadline).await?;
        confirm(sent, envelope, deadline).await
    }

    /// Publishes a job of one group to where it waits for its turn or its time. One with a key goes to the topic of all groups,
    /// where the partition of its key is, but for this group alone.
    pub(super) async fn send_again(
        &self,
        group: &Group,
        envelope: &Envelope,
        due: Milliseconds,
    ) -> Result<(), QueueError> {
        let to = match &envelope.key {
            None => To {
                topic: &group.again,
                key: None,
                due,
                only_for: None,
            },
            Some(key) => To {
                topic: &self.topic,
                key: Some(key),
                due,
                only_for: Some(&group.name),
            },
        };
        let until = self.terms.answered_by();
        self.publish(envelope, to, until).await.map(drop)
    }
}

/// Sends a new job to where every group reads it.
pub(super) async fn send_new(
    brokers: &KafkaBrokers,
    job: NewJob,
    deadline: Instant,
) -> Result<SentJob, QueueError> {
    let mut envelope = Envelope::new(job, now_ms());
    let due = match envelope.delay.is_zero() {
        true => 0,
        false => envelope.due_ms(),
    };
    envelope.delay = Duration::ZERO;
    let key = envelope.key.clone();
    // One that waits must not hold back what does not, unless its key says where it has to be.
    let waits_apart = due > 0 && key.is_none();
    let topics: Vec<&str> = match waits_apart {
        true => brokers.groups.iter().map(|group| &*group.again).collect(),
        false => vec![&brokers.topic],
    };
    let mut sent = Vec::with_capacity(topics.len());
    for topic in topics {
        let (key, only_for) = (key.as_deref(), None);
        let to = To {
            topic,
            key,
            due,
            only_for,
        };
        sent.push(brokers.send(&envelope, to, deadline).await?);
    }
    Ok(SentJob {
        envelope,
        waits_apart,
        sent,
    })
}

/// A new job on its way to every group.
pub struct SentJob {
    envelope: Envelope,
    waits_apart: bool,
    sent: Vec<DeliveryFuture>,
}

impl SentJob {
    /// Returns when the brokers have it for every group.
    pub(super) async fn confirm(self, until: Instant) -> Result<Pushed, QueueError> {
        let mut number = None;
        for sent in self.sent {
            let delivery = confirm(sent, &self.envelope, until).await?;
            let partition = Partition {
                is_of_group: self.waits_apart,
                index: delivery.partition,
            };
            number.get_or_insert(partition.number(delivery.offset));
        }
        number.map(Pushed::Accepted).ok_or(QueueError::Closed)
    }
}

async fn confirm(
    sent: DeliveryFuture,
    envelope: &Envelope,
    until: Instant,
) -> Result<Delivery, QueueError> {
    let unknown = |reason: &str| unavailable(reason, Work::OutcomeUnknown);
    match timeout_at(until, sent).await {
        Ok(Ok(Ok(delivery))) => Ok(delivery),
        Ok(Ok(Err((error, _)))) => Err(push_error(&error, envelope, Work::OutcomeUnknown)),
        Ok(Err(_)) => Err(unknown("the queue was dropped")),
        Err(_) => Err(unknown("the brokers did not confirm")),
    }
}

fn push_error(error: &KafkaError, envelope: &Envelope, work: Work) -> QueueError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => QueueError::TooLarge {
            bytes: envelope.bytes(),
            // What the brokers' limit is, their error does not say.
            max: envelope.bytes().saturating_sub(1),
        },
        Some(
            RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::NotEnoughReplicas,
        ) => unavailable(error, Work::NotDone),
        _ => unavailable(error, work),
    }
}
