//! The dead letters of a group: a queue of their own.
//!
//! RabbitMQ has no way to look at a message but to take it. So they are all taken, and those that stay are given
//! back: while somebody looks, others see fewer.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use lapin::options::{BasicGetOptions, BasicNackOptions};
use lapin::{Acker, Channel};
use tokio::time::{Instant, sleep};

use crate::queue::{DeadLetter, JobNumber, QueueError};
use crate::wire::Work;

use super::super::envelope::Envelope;
use super::super::unavailable;
use super::link::header;
use super::{Group, RabbitMqBroker};

/// How long those that were given back may take to be there again.
const BACK_MAX: Duration = Duration::from_secs(2);

pub(super) async fn list(
    shared: &RabbitMqBroker,
    group: &Group,
    after: Option<JobNumber>,
    max: usize,
) -> Result<Vec<DeadLetter>, QueueError> {
    let _one_at_a_time = group.looking.lock().await;
    let mut taken = Taken::start(shared, group).await?;
    let mut letters = BTreeMap::new();
    while let Some((number, envelope, _)) = taken.next().await? {
        if after.is_none_or(|after| number > after) {
            letters.insert(number, envelope.dead_letter(number));
            if letters.len() > max {
                letters.pop_last();
            }
        }
    }
    taken.give_back().await?;
    Ok(letters.into_values().collect())
}

pub(super) async fn send_back(
    shared: &RabbitMqBroker,
    group: &Group,
    numbers: Vec<JobNumber>,
) -> Result<usize, QueueError> {
    let _one_at_a_time = group.looking.lock().await;
    let mut taken = Taken::start(shared, group).await?;
    while let Some((number, envelope, acker)) = taken.next().await? {
        if numbers.contains(&number) {
            let (envelope, until) = (envelope.revived(), shared.terms.answered_by());
            shared
                .link
                .publish("", &group.jobs, &envelope, until)
                .await?;
            taken.remove(acker).await?;
        }
    }
    taken.give_back().await
}

pub(super) async fn delete(
    shared: &RabbitMqBroker,
    group: &Group,
    numbers: Vec<JobNumber>,
) -> Result<usize, QueueError> {
    let _one_at_a_time = group.looking.lock().await;
    let mut taken = Taken::start(shared, group).await?;
    while let Some((number, _, acker)) = taken.next().await? {
        if numbers.contains(&number) {
            taken.remove(acker).await?;
        }
    }
    taken.give_back().await
}

/// The dead letters of a group, taken one after another on a channel of their own: what goes wrong closes it,
/// and gives them back.
struct Taken<'a> {
    shared: &'a RabbitMqBroker,
    group: &'a Group,
    channel: Channel,
    /// How many there were.
    there: usize,
    taken: usize,
    removed: usize,
}

impl<'a> Taken<'a> {
    async fn start(shared: &'a RabbitMqBroker, group: &'a Group) -> Result<Self, QueueError> {
        let channel = shared.link.channel().await?;
        let there = shared
            .link
            .messages(std::slice::from_ref(&group.dead))
            .await?;
        Ok(Self {
            shared,
            group,
            channel,
            there,
            taken: 0,
            removed: 0,
        })
    }

    async fn next(&mut self) -> Result<Option<(JobNumber, Envelope, Acker)>, QueueError> {
        if self.taken == self.there {
            return Ok(None);
        }
        let dead = self.group.dead.as_str().into();
        let got = self.channel.basic_get(dead, BasicGetOptions::default());
        let Some(message) = self.shared.link.in_time(got, Work::NotDone).await? else {
            return Ok(None);
        };
        self.taken += 1;
        let delivery = message.delivery;
        let header = |name: &str| header(&delivery.properties, name);
        let envelope = Envelope::read(header, Bytes::from(delivery.data));
        let number = envelope.number.unwrap_or(JobNumber(0));
        Ok(Some((number, envelope, delivery.acker)))
    }

    /// One of them is gone for good.
    async fn remove(&mut self, acker: Acker) -> Result<(), QueueError> {
        if !self.shared.link.acknowledge(&acker).await? {
            let reason = "the connection to the broker has gone";
            return Err(unavailable(reason, Work::OutcomeUnknown));
        }
        self.removed += 1;
        Ok(())
    }

    /// Gives the others back, and returns when they are there again: how many are gone for good.
    async fn give_back(self) -> Result<usize, QueueError> {
        let (shared, group, channel) = (self.shared, self.group, self.channel);
        if self.taken > self.removed {
            let options = BasicNackOptions {
                multiple: true,
                requeue: true,
            };
            shared
                .link
                .in_time(channel.basic_nack(0, options), Work::OutcomeUnknown)
                .await?;
        }
        shared
            .link
            .in_time(channel.close(200, "done".into()), Work::OutcomeUnknown)
            .await?;
        let until = Instant::now() + BACK_MAX;
        let stay = self.taken - self.removed;
        while shared
            .link
            .messages(std::slice::from_ref(&group.dead))
            .await?
            < stay
        {
            if Instant::now() >= until {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
        group.dead_room.forget();
        Ok(self.removed)
    }
}
