//! Jobs that were pushed a moment ago, in memory besides: most are sent soon, and need not be read from the log. And jobs
//! that were moved to its end, until they are there.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::Stored;
use crate::queue::JobNumber;

/// Bytes of pushed jobs that are kept; more only where they are not written yet. And of moved jobs, beyond which no more
/// are to be moved.
const RECENT_BYTES: usize = 8 << 20;

/// What is in memory of the jobs.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// Pushed jobs, the oldest first.
    jobs: BTreeMap<JobNumber, Kept>,
    bytes: usize,
    moved: HashMap<JobNumber, Kept>,
    moved_bytes: usize,
    /// In the order of their new places.
    moves: VecDeque<JobNumber>,
}

#[derive(Debug)]
struct Kept {
    stored: Stored,
    /// Where its record ends.
    position: u64,
}

impl Kept {
    fn bytes(&self) -> usize {
        self.stored.job.bytes() + size_of::<Self>()
    }
}

impl Recent {
    /// A job with a higher number than all before.
    pub fn keep(&mut self, number: JobNumber, stored: Stored, position: u64) {
        let kept = Kept { stored, position };
        self.bytes += kept.bytes();
        self.jobs.insert(number, kept);
    }

    /// Whether any more may be moved, before those that were are written.
    pub fn has_room_for_moved(&self) -> bool {
        self.moved_bytes <= RECENT_BYTES
    }

    /// A job that is to be read from a place where it is not yet.
    pub fn keep_moved(&mut self, number: JobNumber, stored: Stored, position: u64) {
        let kept = Kept { stored, position };
        self.moved_bytes += kept.bytes();
        if let Some(before) = self.moved.insert(number, kept) {
            self.moved_bytes -= before.bytes();
        }
        self.moves.push_back(number);
    }

    pub fn get(&self, number: JobNumber) -> Option<Stored> {
        if let Some(kept) = self.moved.get(&number) {
            return Some(kept.stored.clone());
        }
        Some(self.jobs.get(&number)?.stored.clone())
    }

    pub fn forget(&mut self, number: JobNumber) {
        if let Some(kept) = self.moved.remove(&number) {
            self.moved_bytes -= kept.bytes();
        }
        if let Some(kept) = self.jobs.remove(&number) {
            self.bytes -= kept.bytes();
        }
    }

    /// Lets the oldest go that can be read from the log.
    pub fn let_go(&mut self, written: u64) {
        while let Some(number) = self.moves.front() {
            // It may have been finished; or moved once more, and is further behind too.
            if let Some(kept) = self.moved.get(number) {
                if kept.position > written {
                    break;
                }
                self.moved_bytes -= kept.bytes();
                self.moved.remove(number);
            }
            self.moves.pop_front();
        }
        while let Some(oldest) = self.jobs.first_entry() {
            let kept = oldest.get();
            if self.bytes <= RECENT_BYTES || kept.position > written {
                break;
            }
            self.bytes -= kept.bytes();
            oldest.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::queue::machine::Moment;
    use crate::queue::{Identity, NewJob};

    #[test]
    fn a_job_that_stays_keeps_nothing_of_those_that_went() {
        let identity = Identity {
            producer: Uuid::nil(),
            epoch: 0,
            sequence: 0,
        };
        let stored = Stored {
            job: NewJob::new(identity, Bytes::from_static(b"body")),
            pushed: Moment(0),
        };
        let mut recent = Recent::default();
        for number in 0..10_000 {
            recent.keep(JobNumber(number), stored.clone(), number);
            if number > 0 {
                recent.forget(JobNumber(number));
            }
            recent.let_go(number);
        }
        assert_eq!(recent.jobs.len(), 1);
        assert!(recent.get(JobNumber(0)).is_some());
    }
}
