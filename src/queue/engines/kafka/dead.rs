//! The dead letters of a group: a topic in which the last record with a job's number says what it is, or, where it has no
//! body, that it is there no more. Kafka removes what is older by itself (`cleanup.policy=compact`).

use rdkafka::producer::FutureRecord;

use crate::queue::{DeadLetter, JobNumber, QueueError};
use crate::wire::Work;

use super::super::envelope::Envelope;
use super::super::unavailable;
use super::publish::To;
use super::{Group, KafkaBrokers};

/// Puts a job there.
pub(super) async fn bury(
    shared: &KafkaBrokers,
    group: &Group,
    number: JobNumber,
    mut envelope: Envelope,
) -> Result<(), QueueError> {
    envelope.number = Some(number);
    let number = number.to_string();
    let to = To {
        topic: &group.dead,
        key: Some(number.as_bytes()),
        due: 0,
        only_for: None,
    };
    let until = shared.terms.answered_by();
    shared.publish(&envelope, to, until).await.map(drop)
}

pub(super) async fn list(
    shared: &KafkaBrokers,
    group: &Group,
    after: Option<JobNumber>,
    max: usize,
) -> Result<Vec<DeadLetter>, QueueError> {
    let read = shared.read(group, move |reader| reader.dead_after(after, max));
    let letters = read.await?.into_iter();
    Ok(letters
        .map(|(number, envelope)| envelope.dead_letter(number))
        .collect())
}

pub(super) async fn send_back(
    shared: &KafkaBrokers,
    group: &Group,
    numbers: Vec<JobNumber>,
) -> Result<usize, QueueError> {
    let letters = shared
        .read(group, move |reader| reader.dead_of(numbers))
        .await?;
    let count = letters.len();
    for (number, envelope) in letters {
        let mut envelope = envelope.revived();
        envelope.number = Some(number);
        shared.send_again(group, &envelope, 0).await?;
        remove(shared, group, number).await?;
    }
    Ok(count)
}

pub(super) async fn delete(
    shared: &KafkaBrokers,
    group: &Group,
    numbers: Vec<JobNumber>,
) -> Result<usize, QueueError> {
    let letters = shared
        .read(group, move |reader| reader.dead_of(numbers))
        .await?;
    for (number, _) in &letters {
        remove(shared, group, *number).await?;
    }
    Ok(letters.len())
}

async fn remove(shared: &KafkaBrokers, group: &Group, number: JobNumber) -> Result<(), QueueError> {
    let key = number.to_string();
    let record = FutureRecord::<str, [u8]>::to(&group.dead).key(&key);
    let sent = shared
        .producer
        .send(record, shared.terms.limits.answer_max)
        .await;
    sent.map(drop)
        .map_err(|(error, _)| unavailable(error, Work::OutcomeUnknown))
}
