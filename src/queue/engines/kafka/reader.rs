//! What is asked of brokers from outside of a group's workers: how far the group is, and what its dead letters are.
//!
//! All of it blocks its thread.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::queue::{JobNumber, QueueError};
use crate::wire::Work;

use super::super::envelope::Envelope;
use super::super::unavailable;
use super::{Context, FETCHED_KIB, failed, record, set_unless};

impl ConsumerContext for Context {}

pub(super) struct Reader {
    answer_max: Duration,
    consumer: BaseConsumer<Context>,
    topic: String,
    /// The offset of the next record of dead letters.
    next: i64,
    /// Those that are there: where, and of which key.
    letters: BTreeMap<JobNumber, Letter>,
}

pub(super) struct Letter {
    offset: i64,
    key: Option<Bytes>,
}

pub(super) fn lock(reader: &Mutex<Reader>) -> MutexGuard<'_, Reader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader {
    /// Of the dead letters in this topic, and of how far this group is, which it does not join.
    pub fn open(
        config: &ClientConfig,
        group: &str,
        dead: &str,
        answer_max: Duration,
    ) -> Result<Self, QueueError> {
        let mut config = config.clone();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest");
        set_unless(&mut config, FETCHED_KIB.0, FETCHED_KIB.1);
        let consumer: BaseConsumer<Context> =
            config.create_with_context(Context).map_err(failed)?;
        Ok(Self {
            answer_max,
            consumer,
            topic: dead.to_owned(),
            next: 0,
            letters: BTreeMap::new(),
        })
    }

    /// Records of the two topics that the group has not told to have done.
    pub fn behind(
        &mut self,
        all: &str,
        again: &str,
        partitions: i32,
    ) -> Result<(usize, usize), QueueError> {
        let mut list = TopicPartitionList::new();
        for topic in [all, again] {
            list.add_partition_range(topic, 0, partitions - 1);
        }
        let at = |offset| {
            let mut list = list.clone();
            list.set_all_offsets(offset).map_err(failed)?;
            self.consumer
                .offsets_for_times(list, self.answer_max)
                .map_err(failed)
        };
        // What was done first: what is pushed meanwhile is counted, what is done meanwhile too.
        let done = self
            .consumer
            .committed_offsets(list.clone(), self.answer_max);
        let (done, first) = (done.map_err(failed)?, at(Offset::Beginning)?);
        let last = at(Offset::End)?;
        let mut behind = (0, 0);
        for end in last.elements() {
            let (topic, partition) = (end.topic(), end.partition());
            let of = |list: &TopicPartitionList| {
                let found = list.find_partition(topic, partition)?;
                match found.offset() {
                    Offset::Offset(offset) => Some(offset),
                    _ => None,
                }
            };
            end.error().map_err(failed)?;
            let first = of(&first).unwrap_or(0);
            let done = of(&done).unwrap_or(first).max(first);
            let count = of(&last).unwrap_or(done).saturating_sub(done);
            let count = usize::try_from(count).unwrap_or(0);
            match topic == all {
                true => behind.0 += count,
                false => behind.1 += count,
            }
        }
        Ok(behind)
    }

    /// How many dead letters there are now.
    pub fn count_dead(&mut self) -> Result<usize, QueueError> {
        self.catch_up()?;
        Ok(self.letters.len())
    }

    /// The keys of those that were there at the last look.
    pub fn dead_keys(&self) -> impl Iterator<Item = Bytes> {
        self.letters
            .values()
            .filter_map(|letter| letter.key.clone())
    }

    /// Those after this number, at most so many.
    pub fn dead_after(
        &mut self,
        after: Option<JobNumber>,
        max: usize,
    ) -> Result<Vec<(JobNumber, Envelope)>, QueueError> {
        self.catch_up()?;
        let is_after = |number: &&JobNumber| after.is_none_or(|after| **number > after);
        let numbers = self.letters.keys().filter(is_after).take(max);
        let numbers = numbers.copied().collect();
        self.fetch(numbers)
    }

    /// Those of these numbers that are there.
    pub fn dead_of(
        &mut self,
        numbers: Vec<JobNumber>,
    ) -> Result<Vec<(JobNumber, Envelope)>, QueueError> {
        self.catch_up()?;
        self.fetch(numbers)
    }

    /// Reads all that is in the topic now.
    fn catch_up(&mut self) -> Result<(), QueueError> {
        let watermarks = self
            .consumer
            .fetch_watermarks(&self.topic, 0, self.answer_max);
        let (first, end) = watermarks.map_err(failed)?;
        self.next = self.next.max(first);
        if self.next >= end {
            return Ok(());
        }
        let (mut next, mut letters) = (self.next, std::mem::take(&mut self.letters));
        let read = self.read_from(self.next, end, |offset, message| {
            next = offset + 1;
            let Some(number) = number_of(message) else {
                return;
            };
            if message.payload().is_none() {
                letters.remove(&number);
                return;
            }
            let key = record::read_letter(message).envelope.key;
            letters.insert(number, Letter { offset, key });
        });
        (self.next, self.letters) = (next, letters);
        read?;
        // The end may be no record.
        self.next = end;
        Ok(())
    }

    /// Reads those letters anew.
    fn fetch(
        &mut self,
        mut numbers: Vec<JobNumber>,
    ) -> Result<Vec<(JobNumber, Envelope)>, QueueError> {
        numbers.sort_unstable();
        numbers.dedup();
        let known = |number: &JobNumber| Some((self.letters.get(number)?.offset, *number));
        let wanted: BTreeMap<i64, JobNumber> = numbers.iter().filter_map(known).collect();
        let (Some(first), Some(last)) = (wanted.keys().next(), wanted.keys().last()) else {
            return Ok(Vec::new());
        };
        let mut found = BTreeMap::new();
        self.read_from(*first, last + 1, |offset, message| {
            if let Some(number) = wanted.get(&offset) {
                found.insert(*number, record::read_letter(message).envelope);
            }
        })?;
        Ok(found.into_iter().collect())
    }

    /// Reads the records from `first` to before `end`, of which some may be there no more.
    fn read_from(
        &self,
        first: i64,
        end: i64,
        mut see: impl FnMut(i64, &BorrowedMessage<'_>),
    ) -> Result<(), QueueError> {
        let mut list = TopicPartitionList::new();
        let from = Offset::Offset(first);
        list.add_partition_offset(&self.topic, 0, from)
            .map_err(failed)?;
        // Anew each time: an end that was seen before is no end any more.
        self.consumer.assign(&list).map_err(failed)?;
        let until = Instant::now() + self.answer_max;
        let read = loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err(unavailable("no broker answers", Work::NotDone));
            }
            match self.consumer.poll(left) {
                Some(Ok(message)) => {
                    if message.offset() < end {
                        see(message.offset(), &message);
                    }
                    if message.offset() + 1 >= end {
                        break Ok(());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break Ok(()),
                // librdkafka tries again by itself.
                Some(Err(error)) => tracing::debug!(%error, "dead letters are not read yet"),
                None => {}
            }
        };
        self.consumer.unassign().map_err(failed)?;
        read
    }
}

/// The number of the job that a record of the dead letters is about.
fn number_of(message: &BorrowedMessage<'_>) -> Option<JobNumber> {
    let text = std::str::from_utf8(message.key()?).ok()?;
    text.parse().ok().map(JobNumber)
}
