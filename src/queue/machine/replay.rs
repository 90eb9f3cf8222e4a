//! What a log needs of the machine, to be thrown away in part and read back.

use std::time::Duration;

use super::Machine;
use super::fact::{Arrival, Digest, Fact, Moment};
use super::intake::KnownProducer;
use crate::queue::JobNumber;

impl Machine {
    pub fn next_number(&self) -> u64 {
        self.next
    }

    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Every producer that is known, its epoch, when it was heard of, and what it pushed.
    pub fn producers(&self) -> Vec<KnownProducer> {
        self.intake.producers()
    }

    /// The job of an ID, and when it was finished, if it was.
    pub fn finished(&self, id: Digest) -> Option<(JobNumber, Moment)> {
        self.intake.finished(id)
    }

    /// How a job stands with each group that has not finished it.
    pub fn standing(&self, number: JobNumber) -> Option<(u16, Vec<Fact>)> {
        let open = self.jobs.get(number.0)?.open;
        let job = self.traits(number.0)?;
        let groups = (0..self.groups.len()).filter(|group| open & 1 << group != 0);
        let facts = groups.map(|group| Fact::Restored {
            group,
            number,
            restored: Box::new(self.groups[group].standing(job)),
        });
        Some((open, facts.collect()))
    }

    /// Numbers go on from here.
    pub fn begin_at(&mut self, next: u64) {
        self.next = self.next.max(next);
    }

    /// A push, as it was written down: of the groups, those may have it that had not finished it.
    pub fn arrive(&mut self, now: Moment, number: JobNumber, arrival: &Arrival, open: u16) {
        let open = open & self.all_groups();
        if open != 0 {
            self.apply_push(now, number, arrival, open);
        }
    }

    pub fn remember_id(&mut self, id: Digest, number: JobNumber, finished: Moment) {
        self.intake.remember_id(id, number, finished);
    }

    pub fn remember_producer(&mut self, producer: &KnownProducer) {
        self.intake.remember_producer(producer);
        self.intake.bound(&self.options);
    }

    /// Goes on after a restart that took so long, as the opening of this number.
    pub fn resume(&mut self, now: Moment, down: Duration, opening: u32) {
        self.tokens.begin(opening);
        let lease = self.options.lease.min(self.options.attempt_max);
        for group in &mut self.groups {
            group.resume(now, down, lease);
        }
    }
}
