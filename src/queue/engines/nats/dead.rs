//! The dead letters of a group: one message each, under a subject with the job's number.

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::RawMessageErrorKind;
use futures_util::StreamExt;

use crate::queue::{DeadLetter, JobNumber, QueueError};
use crate::wire::Work;

use super::super::envelope::Envelope;
use super::super::unavailable;
use super::streams::{Group, Place};
use super::{NatsServer, header, message_id};

pub(super) async fn list(
    group: &Group,
    after: Option<JobNumber>,
    max: usize,
) -> Result<Vec<DeadLetter>, QueueError> {
    let failed = |error| unavailable(error, Work::NotDone);
    let mut subjects = group.dead.info_with_subjects(">").await.map_err(failed)?;
    let mut numbers = Vec::new();
    while let Some(subject) = subjects.next().await {
        let (subject, _) = subject.map_err(failed)?;
        let number = subject
            .rsplit('.')
            .next()
            .and_then(|number| number.parse().ok());
        numbers.extend(number.map(JobNumber));
    }
    numbers.retain(|number| after.is_none_or(|after| *number > after));
    numbers.sort_unstable();
    let mut letters = Vec::new();
    for number in numbers.into_iter().take(max) {
        if let Some(message) = get(group, number).await? {
            letters.push(read(&message).dead_letter(number));
        }
    }
    Ok(letters)
}

pub(super) async fn send_back(
    shared: &NatsServer,
    group: &Group,
    numbers: Vec<JobNumber>,
) -> Result<usize, QueueError> {
    let mut sent = 0;
    for number in numbers {
        let Some(message) = get(group, number).await? else {
            continue;
        };
        let mut envelope = read(&message).revived();
        envelope.number = Some(number);
        let message_id = message_id("back", message.sequence, message.time);
        let subject = group.subject(Place::Jobs, Some(number));
        let until = shared.terms.answered_by();
        shared
            .move_job(&group.jobs, subject, &envelope, &message_id, until)
            .await?;
        sent += usize::from(remove(group, message.sequence).await?);
    }
    group.dead_room.forget();
    Ok(sent)
}

pub(super) async fn delete(group: &Group, numbers: Vec<JobNumber>) -> Result<usize, QueueError> {
    let mut deleted = 0;
    for number in numbers {
        if let Some(message) = get(group, number).await? {
            deleted += usize::from(remove(group, message.sequence).await?);
        }
    }
    group.dead_room.forget();
    Ok(deleted)
}

async fn get(group: &Group, number: JobNumber) -> Result<Option<StreamMessage>, QueueError> {
    let subject = group.subject(Place::Dead, Some(number));
    match group.dead.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(unavailable(error, Work::NotDone)),
    }
}

async fn remove(group: &Group, sequence: u64) -> Result<bool, QueueError> {
    let removed = group.dead.delete_message(sequence).await;
    removed.map_err(|error| unavailable(error, Work::OutcomeUnknown))
}

fn read(message: &StreamMessage) -> Envelope {
    Envelope::read(header(&message.headers), message.payload.clone())
}
