//! Moves jobs that have waited their time to where workers pull from.
//!
//! Every open queue does this; the server gives each job to one of them. A job that is not due is given back with the
//! time that it has still to wait. The times are those of the machines' clocks.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use futures_util::StreamExt;
use tokio::time::sleep;

use crate::queue::{JobNumber, QueueError};
use crate::wire::Work;

use super::super::envelope::{DUE, Envelope, now_ms};
use super::super::unavailable;
use super::streams::Place;
use super::{NatsServer, PUSHED_DELAYED, message_id, push_id};

/// How long one request to the server stands: after a restart of it, it is made anew at the latest then.
const REQUEST: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(200);
/// Longest delay asked of the server at once. It counts nanoseconds in 64 bits, and sends a job whose delay overflows them
/// again at once; a job that is still not due after this time is given back again.
const NAK_DELAY_MAX: Duration = Duration::from_secs(60 * 60);

/// Runs until the queue is dropped.
pub(super) async fn move_on(shared: Arc<NatsServer>, group: usize) {
    loop {
        let pull = &shared.groups[group].pull_waiting;
        let batch = pull
            .batch()
            .max_messages(shared.terms.limits.unconfirmed_max)
            .expires(REQUEST)
            .messages()
            .await;
        let Ok(mut batch) = batch else {
            sleep(RETRY).await;
            continue;
        };
        while let Some(message) = batch.next().await {
            let Ok(message) = message else {
                sleep(RETRY).await;
                break;
            };
            // One that could not be moved comes again by itself.
            if let Err(error) = move_one(&shared, group, message).await {
                tracing::debug!(%error, "a waiting job was not moved");
            }
        }
    }
}

async fn move_one(shared: &NatsServer, group: usize, message: Message) -> Result<(), QueueError> {
    let header = |name: &str| {
        let headers = message.headers.as_ref()?;
        headers.get(name).map(|value| value.as_str().to_owned())
    };
    let due: u64 = header(DUE).and_then(|text| text.parse().ok()).unwrap_or(0);
    let acknowledge = async |kind| {
        let told = message.ack_with(kind).await;
        told.map_err(|error| unavailable(error, Work::OutcomeUnknown))
    };
    let now = now_ms();
    if due > now {
        let rest = Duration::from_millis(due - now).min(NAK_DELAY_MAX);
        return acknowledge(AckKind::Nak(Some(rest))).await;
    }
    let info = message
        .info()
        .map_err(|error| unavailable(error, Work::NotDone))?;
    let mut envelope = Envelope::read(header, message.payload.clone());
    envelope.delay = Duration::ZERO;
    let move_id = message_id("move", info.stream_sequence, info.published);
    let push_id = envelope.number.is_none().then(|| push_id(&envelope));
    let number = JobNumber(info.stream_sequence | PUSHED_DELAYED);
    let number = *envelope.number.get_or_insert(number);
    let group = &shared.groups[group];
    let subject = group.subject(Place::Jobs, Some(number));
    let until = shared.terms.answered_by();
    match push_id {
        // The same job may have been pushed again, without a delay: that one is it.
        Some(push_id) => {
            shared.publish(subject, &envelope, &push_id, until).await?;
        }
        None => {
            let jobs = &group.jobs;
            shared
                .move_job(jobs, subject, &envelope, &move_id, until)
                .await?;
        }
    }
    acknowledge(AckKind::Ack).await
}
