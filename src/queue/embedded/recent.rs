//! Jobs that were pushed a moment ago, in memory besides: most are sent soon, and need not be read from the log.

use std::collections::VecDeque;

use super::Stored;
use crate::queue::JobNumber;

/// Bytes of jobs that are kept; more only where they are not written yet.
const RECENT_BYTES: usize = 8 << 20;

/// Jobs whose numbers follow each other.
#[derive(Debug, Default)]
pub(super) struct Recent {
    first: u64,
    jobs: VecDeque<Option<Kept>>,
    bytes: usize,
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
        if self.jobs.is_empty() {
            self.first = number.0;
        }
        while self.first + (self.jobs.len() as u64) < number.0 {
            self.jobs.push_back(None);
        }
        let kept = Kept { stored, position };
        self.bytes += kept.bytes();
        self.jobs.push_back(Some(kept));
    }

    pub fn get(&self, number: JobNumber) -> Option<Stored> {
        let kept = self.jobs.get(self.index(number)?)?.as_ref()?;
        Some(kept.stored.clone())
    }

    pub fn forget(&mut self, number: JobNumber) {
        let index = self.index(number);
        let job = index.and_then(|index| self.jobs.get_mut(index));
        if let Some(kept) = job.and_then(Option::take) {
            self.bytes -= kept.bytes();
        }
    }

    /// Lets the oldest go that can be read from the log.
    pub fn let_go(&mut self, written: u64) {
        while let Some(oldest) = self.jobs.front() {
            if let Some(kept) = oldest {
                if self.bytes <= RECENT_BYTES || kept.position > written {
                    break;
                }
                self.bytes -= kept.bytes();
            }
            self.jobs.pop_front();
            self.first += 1;
        }
    }

    fn index(&self, number: JobNumber) -> Option<usize> {
        usize::try_from(number.0.checked_sub(self.first)?).ok()
    }
}
