//! Which pushes have been here before: by the caller's job ID, and by the producer's own count.

use std::collections::{BTreeMap, HashMap, VecDeque};

use uuid::Uuid;

use super::fact::{Digest, Moment};
use crate::queue::{Identity, JobNumber, QueueOptions};

#[derive(Debug, Default)]
pub(super) struct Intake {
    ids: HashMap<Digest, JobNumber>,
    /// IDs of finished jobs, in the order in which they are forgotten.
    finished: VecDeque<(Moment, Digest)>,
    producers: BTreeMap<(Uuid, u64), Producer>,
}

/// What one epoch of a producer has pushed.
#[derive(Debug, Default)]
struct Producer {
    heard: Moment,
    /// First to the one after the last of each run of sequence numbers that were pushed.
    runs: BTreeMap<u64, u64>,
}

/// Where a job was seen before.
#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    /// Under its ID, as this job.
    Id(JobNumber),
    /// From its producer, which sends it again.
    Push,
}

impl Intake {
    pub fn seen(&self, identity: Identity, id: Option<Digest>) -> Option<Seen> {
        if let Some(number) = id.and_then(|id| self.ids.get(&id)) {
            return Some(Seen::Id(*number));
        }
        let producer = self.producers.get(&(identity.producer, identity.epoch))?;
        let (_, end) = producer.runs.range(..=identity.sequence).next_back()?;
        (identity.sequence < *end).then_some(Seen::Push)
    }

    pub fn find(&self, id: Digest) -> Option<JobNumber> {
        self.ids.get(&id).copied()
    }

    pub fn note(&mut self, now: Moment, number: JobNumber, identity: Identity, id: Option<Digest>) {
        if let Some(id) = id {
            self.ids.insert(id, number);
        }
        let producer = self
            .producers
            .entry((identity.producer, identity.epoch))
            .or_default();
        producer.heard = producer.heard.max(now);
        producer.note(identity.sequence);
    }

    /// The job of this ID is finished: it is forgotten in time.
    pub fn finish(&mut self, now: Moment, id: Digest) {
        self.finished.push_back((now, id));
    }

    pub fn forget(&mut self, now: Moment, options: &QueueOptions) {
        while let Some((finished, id)) = self.finished.front() {
            let is_kept = now.since(*finished) < options.id_retention;
            if is_kept && self.finished.len() <= options.ids_max {
                break;
            }
            self.ids.remove(id);
            self.finished.pop_front();
        }
        self.producers
            .retain(|_, producer| now.since(producer.heard) < options.producer_retention);
    }

    /// When there may be something to forget.
    pub fn next(&self, options: &QueueOptions) -> Option<Moment> {
        let (finished, _) = self.finished.front()?;
        Some(*finished + options.id_retention)
    }
}

impl Producer {
    fn note(&mut self, sequence: u64) {
        let (mut start, mut end) = (sequence, sequence.saturating_add(1));
        if let Some((before, until)) = self.runs.range(..=sequence).next_back() {
            if sequence < *until {
                return;
            }
            if *until == sequence {
                start = *before;
            }
        }
        if let Some(until) = self.runs.remove(&end) {
            end = until;
        }
        self.runs.insert(start, end);
    }
}
