//! What can be seen of a queue. Nothing here changes anything.

use super::fact::{Arrival, Digest, Fact, GroupIndex, Moment};
use super::group::{History, Traits};
use super::{Machine, QueueCounters};
use crate::queue::{Attempts, FailureKind, Groups, JobNumber, JobState};

impl Machine {
    pub fn state(&self, number: JobNumber) -> JobState {
        let open = (0..self.groups.len()).find(|group| self.is_open(*group, number.0));
        match open {
            Some(group) => self.groups[group].state(number.0),
            None => JobState::Finished,
        }
    }

    /// The job of an ID, as long as it is known.
    pub fn find(&self, id: Digest) -> Option<JobNumber> {
        self.intake.find(id)
    }

    /// The job that a key belongs to.
    #[cfg(test)]
    pub fn head_of(&self, group: GroupIndex, key: Digest) -> Option<u64> {
        self.groups[group].head(key)
    }

    pub fn dead_after(
        &self,
        group: GroupIndex,
        after: Option<JobNumber>,
    ) -> impl Iterator<Item = JobNumber> + '_ {
        let after = after.map(|number| number.0);
        self.groups[group].dead_after(after).map(JobNumber)
    }

    pub fn failures(
        &self,
        group: GroupIndex,
        number: JobNumber,
    ) -> (Attempts, Vec<(FailureKind, String, Moment)>) {
        let history = self.groups[group].history(number.0).cloned();
        let History { attempts, failures } = history.unwrap_or_default();
        (attempts, failures)
    }

    pub fn counters(&self, group: GroupIndex) -> QueueCounters {
        let of = &self.groups[group];
        let counts = of.counts();
        QueueCounters {
            ready: counts.ready,
            leased: counts.leased,
            delayed: counts.delayed,
            dead: counts.dead,
            is_blocked: of.is_blocked(&self.options),
            done: of.done,
            expired: of.expired,
            deleted: of.deleted,
            damaged: of.damaged,
            cancelled: of.cancelled,
            producers_forgotten: self.intake.forgotten,
            jobs: self.jobs.len(),
            bytes: self.bytes,
        }
    }

    pub fn has_ready(&self, group: GroupIndex) -> bool {
        let group = &self.groups[group];
        group.has_ready() && !group.is_blocked(&self.options)
    }

    /// A bit for each group.
    pub fn all_groups(&self) -> u16 {
        u16::MAX >> (Groups::MAX - self.groups.len())
    }

    /// Of the push that was accepted just now.
    pub fn arrival(&self) -> Option<&Arrival> {
        match self.facts.last()? {
            Fact::Pushed { arrival, .. } => Some(arrival),
            _ => None,
        }
    }

    /// How large a job is: its body, ID and key.
    pub fn bytes_of(&self, number: JobNumber) -> usize {
        self.jobs.get(number.0).map_or(0, |job| job.bytes as usize)
    }

    /// Whether any group still has to do with it.
    pub fn is_live(&self, number: JobNumber) -> bool {
        self.jobs.get(number.0).is_some()
    }

    pub(super) fn is_open(&self, group: GroupIndex, number: u64) -> bool {
        let job = self.jobs.get(number);
        job.is_some_and(|job| job.open & 1 << group != 0)
    }

    pub(super) fn has_expired(&self, now: Moment, number: u64) -> bool {
        let expires = self.extras.get(&number).and_then(|extra| extra.expires);
        expires.is_some_and(|expires| expires <= now)
    }

    pub(super) fn traits(&self, number: u64) -> Option<Traits> {
        let job = self.jobs.get(number)?;
        let key = match job.has_extra {
            true => self.extras.get(&number).and_then(|extra| extra.key),
            false => None,
        };
        Some(Traits {
            number,
            priority: job.priority,
            key,
        })
    }
}
