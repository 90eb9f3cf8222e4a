//! Applying facts: the only place where the state of a job changes. A queue that is opened again comes through here
//! with what its log says, so nothing here decides anything, and nothing fails.

use super::fact::{Arrival, Fact, Finish, GroupIndex, Moment};
use super::group::Traits;
use super::{Extra, Job, Machine};
use crate::queue::{JobNumber, Poison};

impl Machine {
    /// Makes it so. The time is that of the fact: when it was decided, not when it is read again.
    pub fn apply(&mut self, now: Moment, fact: &Fact) {
        match fact {
            Fact::Pushed { number, arrival } => {
                self.apply_push(now, *number, arrival, self.all_groups());
            }
            Fact::Leased {
                group,
                number,
                token,
                session,
            } => {
                if let Some(job) = self.open(*group, *number) {
                    // Where the clock brought it forward, a log does not say that its key is its.
                    self.claim(*group, job);
                    let ends = now + self.options.lease.min(self.options.attempt_max);
                    self.groups[*group].lease(job, now, *token, *session, ends);
                }
            }
            Fact::Finished { group, number, how } => {
                if let Some(job) = self.open(*group, *number) {
                    self.apply_finish(now, *group, job, *how);
                }
            }
            Fact::Returned {
                group,
                number,
                due,
                kind,
                cause,
            } => {
                if let Some(job) = self.open(*group, *number) {
                    let failures_max = self.options.failures_max;
                    let group = &mut self.groups[*group];
                    group.record(number.0, *kind, cause.clone(), now, failures_max);
                    group.put_back(job, now, *due);
                }
            }
            Fact::Buried {
                group,
                number,
                kind,
                cause,
            } => {
                if let Some(job) = self.open(*group, *number) {
                    let failures_max = self.options.failures_max;
                    let of = &mut self.groups[*group];
                    of.record(number.0, *kind, cause.clone(), now, failures_max);
                    of.bury(job);
                    if self.options.poison != Poison::Park {
                        self.advance(*group, job);
                    }
                }
            }
            Fact::Revived { group, number } => {
                if let Some(job) = self.open(*group, *number) {
                    self.groups[*group].revive(job);
                }
            }
            Fact::Rescheduled { group, number, due } => {
                if let Some(job) = self.open(*group, *number) {
                    self.groups[*group].leave_line(job);
                    self.advance(*group, job);
                    self.groups[*group].put_back(job, now, *due);
                }
            }
            Fact::Restored {
                group,
                number,
                restored,
            } => {
                if let Some(job) = self.open(*group, *number) {
                    if restored.is_head {
                        self.claim(*group, job);
                    }
                    self.groups[*group].restore(job, now, restored, self.options.lease);
                }
            }
        }
    }

    pub(super) fn open(&self, group: GroupIndex, number: JobNumber) -> Option<Traits> {
        let is_open = group < self.groups.len() && self.is_open(group, number.0);
        is_open.then(|| self.traits(number.0)).flatten()
    }

    pub(super) fn apply_push(
        &mut self,
        now: Moment,
        number: JobNumber,
        arrival: &Arrival,
        open: u16,
    ) {
        let number = number.0;
        if self.is_live(JobNumber(number)) {
            return;
        }
        self.next = self.next.max(number + 1);
        self.intake
            .note(now, JobNumber(number), arrival.identity, arrival.id);
        self.intake.bound(&self.options);
        let extra = Extra {
            id: arrival.id,
            key: arrival.key,
            expires: arrival.expires,
        };
        let has_extra = extra.id.is_some() || extra.key.is_some() || extra.expires.is_some();
        let job = Job {
            bytes: arrival.bytes,
            open,
            priority: arrival.priority,
            has_extra,
        };
        self.jobs.insert(number, job);
        self.bytes += u64::from(arrival.bytes);
        if has_extra {
            self.extras.insert(number, extra);
        }
        if let Some(expires) = arrival.expires {
            self.expiries.insert((expires, number));
        }
        let job = Traits {
            number,
            priority: arrival.priority,
            key: arrival.key,
        };
        for (index, group) in self.groups.iter_mut().enumerate() {
            if open & 1 << index != 0 {
                group.admit(job, now, arrival.due);
            }
        }
    }

    pub(super) fn apply_finish(
        &mut self,
        now: Moment,
        group: GroupIndex,
        job: Traits,
        how: Finish,
    ) {
        let of = &mut self.groups[group];
        of.remove(job);
        let count = match how {
            Finish::Done => &mut of.done,
            Finish::Expired => &mut of.expired,
            Finish::Deleted => &mut of.deleted,
            Finish::Damaged => &mut of.damaged,
            Finish::Cancelled => &mut of.cancelled,
        };
        *count += 1;
        self.advance(group, job);
        let Some(live) = self.jobs.get_mut(job.number) else {
            return;
        };
        live.open &= !(1 << group);
        if live.open != 0 {
            return;
        }
        let (bytes, has_extra) = (live.bytes, live.has_extra);
        self.jobs.remove(job.number);
        self.bytes -= u64::from(bytes);
        if !has_extra {
            return;
        }
        if let Some(extra) = self.extras.remove(&job.number) {
            if let Some(expires) = extra.expires {
                self.expiries.remove(&(expires, job.number));
            }
            if let Some(id) = extra.id {
                self.intake.finish(now, id);
            }
        }
    }

    /// The key of a job is the job's.
    pub(super) fn claim(&mut self, group: GroupIndex, job: Traits) {
        let Some(key) = job.key else { return };
        let holder = self.groups[group].head(key);
        let holder = holder.and_then(|holder| self.traits(holder));
        self.groups[group].claim(job, holder);
    }

    /// The key of a job that is out of the way goes on.
    pub(super) fn advance(&mut self, group: GroupIndex, gone: Traits) {
        let Some(key) = gone.key else { return };
        if let Some(next) = self.groups[group].advance(key, gone.number)
            && let Some(next) = self.traits(next)
        {
            self.groups[group].line_up(next);
        }
    }
}
