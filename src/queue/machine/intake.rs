//! Which pushes have been here before: by the caller's job ID, and by the producer's own count.

use std::collections::{BTreeMap, HashMap, VecDeque};

use uuid::Uuid;

use super::fact::{Digest, Moment};
use crate::queue::{Identity, JobNumber, QueueOptions};

#[derive(Debug, Default)]
pub(super) struct Intake {
    ids: HashMap<Digest, Known>,
    /// IDs of finished jobs, in the order in which they are forgotten.
    finished: VecDeque<(Moment, Digest)>,
    producers: BTreeMap<(Uuid, u64), Producer>,
    /// No producer was heard of before this: until it is long ago, none is looked for.
    oldest: Option<Moment>,
    /// Runs of all producers together.
    runs: usize,
    /// Producers that were forgotten before their time, to make room for others.
    pub forgotten: u64,
}

/// Runs that are kept of one producer. A producer without failed pushes has one.
const RUNS_MAX: usize = 1024;
/// Runs that are kept of all producers together, for each producer that may be known.
const RUNS_PER_PRODUCER: usize = 16;

/// The job of an ID.
#[derive(Clone, Copy, Debug)]
struct Known {
    number: JobNumber,
    finished: Option<Moment>,
}

/// What one epoch of a producer has pushed.
#[derive(Debug, Default)]
struct Producer {
    heard: Moment,
    /// First to the one after the last of each run of sequence numbers that were pushed.
    runs: BTreeMap<u64, u64>,
}

/// What a log writes down of one epoch of a producer.
#[cfg(feature = "durable")]
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KnownProducer {
    pub id: Uuid,
    pub epoch: u64,
    pub heard: Moment,
    /// First to the one after the last of each run of sequence numbers.
    pub runs: Vec<(u64, u64)>,
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
        if let Some(known) = id.and_then(|id| self.ids.get(&id)) {
            return Some(Seen::Id(known.number));
        }
        let producer = self.producers.get(&(identity.producer, identity.epoch))?;
        let (_, end) = producer.runs.range(..=identity.sequence).next_back()?;
        (identity.sequence < *end).then_some(Seen::Push)
    }

    pub fn find(&self, id: Digest) -> Option<JobNumber> {
        self.ids.get(&id).map(|known| known.number)
    }

    pub fn note(&mut self, now: Moment, number: JobNumber, identity: Identity, id: Option<Digest>) {
        if let Some(id) = id {
            let known = Known {
                number,
                finished: None,
            };
            self.ids.insert(id, known);
        }
        let producer = self
            .producers
            .entry((identity.producer, identity.epoch))
            .or_default();
        producer.heard = producer.heard.max(now);
        let before = producer.runs.len();
        producer.note(identity.sequence, identity.sequence.saturating_add(1));
        self.runs = self.runs + producer.runs.len() - before;
        self.oldest.get_or_insert(now);
    }

    /// Forgets those producers that were not heard of for the longest time, where there are too many.
    pub fn bound(&mut self, options: &QueueOptions) {
        let max = options.producers_max.max(1);
        let runs_max = max.saturating_mul(RUNS_PER_PRODUCER).max(RUNS_MAX);
        if self.producers.len() <= max && self.runs <= runs_max {
            return;
        }
        // An eighth at a time, so that looking through them is rare; never the last one.
        let mut heard: Vec<Moment> = self.producers.values().map(|of| of.heard).collect();
        let gone = (heard.len() / 8)
            .max(heard.len().saturating_sub(max))
            .max(1);
        if gone >= heard.len() {
            return;
        }
        let (_, last, _) = heard.select_nth_unstable(gone - 1);
        let (last, mut left) = (*last, gone);
        let runs = &mut self.runs;
        self.producers.retain(|_, producer| {
            let goes = left > 0 && producer.heard <= last;
            if goes {
                left -= 1;
                *runs -= producer.runs.len();
            }
            !goes
        });
        let before = self.forgotten;
        self.forgotten += gone as u64;
        if before == 0 {
            tracing::warn!(
                producers_max = max,
                "a queue forgets producers before their time: a push that one of them makes again is a second job"
            );
        }
    }

    /// The job of this ID is finished: it is forgotten in time.
    pub fn finish(&mut self, now: Moment, id: Digest) {
        if let Some(known) = self.ids.get_mut(&id) {
            known.finished = Some(now);
            self.finished.push_back((now, id));
        }
    }

    /// Forgets what is due, at most `max` job IDs at a time.
    pub fn forget(&mut self, now: Moment, options: &QueueOptions, max: usize) {
        for _ in 0..max {
            let Some((finished, id)) = self.finished.front() else {
                break;
            };
            let is_kept = now.since(*finished) < options.id_retention;
            if is_kept && self.finished.len() <= options.ids_max {
                break;
            }
            // Unless a later job has the ID by now.
            let known = self.ids.get(id);
            if known.is_some_and(|known| known.finished == Some(*finished)) {
                self.ids.remove(id);
            }
            self.finished.pop_front();
        }
        let retention = options.producer_retention;
        if self
            .oldest
            .is_some_and(|oldest| now.since(oldest) >= retention)
        {
            let runs = &mut self.runs;
            self.producers.retain(|_, producer| {
                let stays = now.since(producer.heard) < retention;
                if !stays {
                    *runs -= producer.runs.len();
                }
                stays
            });
            let heard = self.producers.values().map(|producer| producer.heard);
            self.oldest = heard.min();
        }
    }

    /// The job of an ID, and when it was finished, if it was.
    #[cfg(feature = "durable")]
    pub fn finished(&self, id: Digest) -> Option<(JobNumber, Moment)> {
        let known = self.ids.get(&id)?;
        Some((known.number, known.finished?))
    }

    /// As an older part of a log says.
    #[cfg(feature = "durable")]
    pub fn remember_id(&mut self, id: Digest, number: JobNumber, finished: Moment) {
        self.ids.entry(id).or_insert_with(|| {
            self.finished.push_back((finished, id));
            Known {
                number,
                finished: Some(finished),
            }
        });
    }

    /// As an older part of a log says.
    #[cfg(feature = "durable")]
    pub fn remember_producer(&mut self, producer: &KnownProducer) {
        let key = (producer.id, producer.epoch);
        let known = self.producers.entry(key).or_default();
        known.heard = known.heard.max(producer.heard);
        let oldest = self
            .oldest
            .map_or(known.heard, |oldest| oldest.min(known.heard));
        self.oldest = Some(oldest);
        let before = known.runs.len();
        for (start, end) in &producer.runs {
            known.note(*start, *end);
        }
        self.runs = self.runs + known.runs.len() - before;
    }

    /// Every producer, its epoch, when it was last heard, and the runs of its sequence.
    #[cfg(feature = "durable")]
    pub fn producers(&self) -> Vec<KnownProducer> {
        let producers = self.producers.iter();
        producers
            .map(|((id, epoch), producer)| {
                let runs = producer.runs.iter().map(|(start, end)| (*start, *end));
                KnownProducer {
                    id: *id,
                    epoch: *epoch,
                    heard: producer.heard,
                    runs: runs.collect(),
                }
            })
            .collect()
    }

    /// When there may be something to forget.
    pub fn next(&self, options: &QueueOptions) -> Option<Moment> {
        let (finished, _) = self.finished.front()?;
        Some(*finished + options.id_retention)
    }
}

#[cfg(feature = "durable")]
impl KnownProducer {
    /// As if this push had not come.
    pub fn forget(&mut self, push: &Identity) {
        if (self.id, self.epoch) != (push.producer, push.epoch) {
            return;
        }
        let gone = push.sequence;
        let runs = std::mem::take(&mut self.runs).into_iter();
        let cut = |(start, end): (u64, u64)| match start <= gone && gone < end {
            true => [(start, gone), (gone + 1, end)],
            false => [(start, end), (end, end)],
        };
        self.runs = runs.flat_map(cut).filter(|(from, to)| from < to).collect();
    }
}

impl Producer {
    /// Those from `start` to before `end` were pushed.
    fn note(&mut self, mut start: u64, mut end: u64) {
        // Nearly always the one after the last.
        if let Some(mut last) = self.runs.last_entry()
            && *last.get() == start
        {
            last.insert(end);
            return;
        }
        while let Some((from, until)) = self.runs.range(..=end).next_back() {
            if *until < start {
                break;
            }
            let from = *from;
            (start, end) = (start.min(from), end.max(*until));
            self.runs.remove(&from);
        }
        self.runs.insert(start, end);
        // What is forgotten would be a second job if it came again; what is taken for pushed would be lost.
        while self.runs.len() > RUNS_MAX {
            self.runs.pop_first();
        }
    }
}

#[cfg(all(test, feature = "durable"))]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_forgotten_wherever_it_is_in_a_run() {
        let of = |epoch, sequence| Identity {
            producer: Uuid::nil(),
            epoch,
            sequence,
        };
        let after = |push: Identity| {
            let mut known = KnownProducer {
                id: Uuid::nil(),
                epoch: 1,
                heard: Moment(0),
                runs: vec![(0, 4), (6, 7)],
            };
            known.forget(&push);
            known.runs
        };
        assert_eq!(after(of(1, 0)), [(1, 4), (6, 7)]);
        assert_eq!(after(of(1, 2)), [(0, 2), (3, 4), (6, 7)]);
        assert_eq!(after(of(1, 3)), [(0, 3), (6, 7)]);
        assert_eq!(after(of(1, 6)), [(0, 4)]);
        for other in [of(1, 5), of(2, 2)] {
            assert_eq!(after(other), [(0, 4), (6, 7)]);
        }
    }
}
