//! The queue as a state machine: what it does with a push, a lease, an answer, and the time.
//!
//! No clock, no disk, no socket, no randomness: every step is told the time and, where it needs
//! one, a random number, and says what it decided. It knows a job by its number and never sees its
//! body. What it changes, it changes by applying [`Fact`]s, which a queue on disk writes down.
//!
//! A job that is ready, without ID, key or expiry, costs eight bytes and a share of a range.
//!
//! `terms` is what it is asked and what it answers, `decide` what becomes of a failed attempt, `apply` what a fact
//! changes, `look` what can be seen of it, `replay` what a log needs. `group` is one group of workers, `intake`
//! which pushes have been here before.

mod apply;
mod decide;
mod fact;
mod group;
mod intake;
mod look;
#[cfg(test)]
mod model;
mod numbers;
#[cfg(feature = "durable")]
mod replay;
mod sessions;
mod table;
mod terms;
mod tokens;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

pub(crate) use fact::{Arrival, Digest, Fact, Finish, GroupIndex, Moment};
#[cfg(feature = "durable")]
pub(crate) use fact::{Restored, Standing};
#[cfg(feature = "durable")]
pub(crate) use intake::KnownProducer;
pub(crate) use table::Table;
pub(crate) use terms::{Admission, Push, Sent};
pub use terms::{Answer, Credit, QueueCounters, Stale};

use super::{FailureKind, JobNumber, JobState, Priority, QueueOptions, Token};
use group::Group;
use intake::{Intake, Seen};
use sessions::Sessions;
use tokens::Tokens;

/// Jobs of each kind that one step looks at without being asked for them: what is due beyond that is brought by
/// the next step.
const STEP_JOBS_MAX: usize = 1024;
/// Bytes of jobs that one step sends, however much credit there is.
const STEP_BYTES_MAX: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct Machine {
    options: QueueOptions,
    next: u64,
    tokens: Tokens,
    jobs: Table<Job>,
    /// Of the jobs that have any of it.
    extras: HashMap<u64, Extra>,
    bytes: u64,
    intake: Intake,
    groups: Vec<Group>,
    expiries: BTreeSet<(Moment, u64)>,
    sessions: Sessions,
    /// Decided and applied, and not yet taken.
    facts: Vec<Fact>,
}

/// A job that some group has not finished.
#[derive(Debug)]
struct Job {
    bytes: u32,
    /// A bit for each group that has not.
    open: u16,
    priority: Priority,
    has_extra: bool,
}

const _: () = assert!(size_of::<Option<Job>>() == 8);

#[derive(Clone, Copy, Debug)]
struct Extra {
    id: Option<Digest>,
    key: Option<Digest>,
    expires: Option<Moment>,
}

impl Machine {
    /// `opening` differs from every other opening of the same queue, and `secret` cannot be guessed: they make
    /// tokens differ.
    pub fn new(options: QueueOptions, opening: u32, secret: u64) -> Self {
        let groups = options
            .groups
            .names()
            .iter()
            .map(|_| Group::default())
            .collect();
        Self {
            options,
            next: 0,
            tokens: Tokens::new(opening, secret),
            jobs: Table::default(),
            extras: HashMap::new(),
            bytes: 0,
            intake: Intake::default(),
            groups,
            expiries: BTreeSet::new(),
            sessions: Sessions::default(),
            facts: Vec::new(),
        }
    }

    pub fn options(&self) -> &QueueOptions {
        &self.options
    }

    /// What was decided since the last time.
    pub fn take_facts(&mut self, into: &mut Vec<Fact>) {
        into.append(&mut self.facts);
    }

    /// Takes a job of at most so many bytes in.
    pub fn push(&mut self, now: Moment, push: Push, bytes_max: usize) -> Admission {
        match self.intake.seen(push.identity, push.id) {
            Some(Seen::Id(number)) => return Admission::Duplicate(Some(number)),
            Some(Seen::Push) => return Admission::Duplicate(None),
            None => {}
        }
        if push.bytes > bytes_max {
            return Admission::TooLarge;
        }
        let bytes = self.bytes + push.bytes as u64;
        if self.jobs.len() >= self.options.jobs_max || bytes > self.options.bytes_max {
            return Admission::Full;
        }
        let number = JobNumber(self.next);
        let arrival = Arrival {
            identity: push.identity,
            id: push.id,
            key: push.key,
            priority: push.priority,
            due: now + push.delay,
            expires: push.expires_after.map(|after| now + after),
            bytes: push.bytes as u32,
        };
        self.decide(now, Fact::Pushed { number, arrival });
        Admission::Accepted(number)
    }

    /// Jobs for a worker, within its credit, and no more than one step sends. Says besides whether it was the step
    /// that ended it, perhaps without a job: it dropped what has expired.
    pub fn lease(
        &mut self,
        now: Moment,
        group: GroupIndex,
        session: u64,
        credit: Credit,
    ) -> (Vec<Sent>, bool) {
        self.sessions.heard(session, now);
        let (mut sent, mut bytes) = (Vec::new(), 0);
        for _ in 0..STEP_JOBS_MAX {
            if sent.len() >= credit.jobs || self.groups[group].is_blocked(&self.options) {
                return (sent, false);
            }
            let Some(number) = self.groups[group].peek_ready() else {
                return (sent, false);
            };
            if self.has_expired(now, number) {
                self.finish(now, group, number, Finish::Expired);
                continue;
            }
            bytes += self.bytes_of(JobNumber(number));
            let is_over = bytes > credit.bytes && !(sent.is_empty() && credit.takes_any_first);
            if is_over || (bytes > STEP_BYTES_MAX && !sent.is_empty()) {
                return (sent, false);
            }
            let (number, token) = (JobNumber(number), self.tokens.draw());
            self.decide(
                now,
                Fact::Leased {
                    group,
                    number,
                    token,
                    session,
                },
            );
            let history = self.groups[group].history(number.0);
            sent.push(Sent {
                number,
                token,
                earlier: history.map(|history| history.attempts).unwrap_or_default(),
            });
        }
        (sent, true)
    }

    pub fn answer(
        &mut self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
        token: Token,
        answer: Answer,
        random: u64,
    ) -> Result<(), Stale> {
        let session = self.valid(now, group, number, token)?;
        self.sessions.heard(session, now);
        match answer {
            Answer::Done => self.finish(now, group, number.0, Finish::Done),
            Answer::Refuse(cause) => {
                self.fail(now, group, number, FailureKind::Refused, cause, random);
            }
            Answer::Abandon(cause) => {
                self.fail(now, group, number, FailureKind::Lost, cause, random);
            }
            Answer::Bury(cause) => {
                let kind = FailureKind::Refused;
                self.bury(now, group, number, kind, cause);
            }
            Answer::RetryAfter(after, cause) => {
                let kind = FailureKind::Postponed;
                self.put_back(now, group, number, now + after, kind, cause);
            }
            Answer::Release => {
                let kind = FailureKind::Released;
                self.put_back(now, group, number, now, kind, String::new());
            }
        }
        Ok(())
    }

    /// The worker still has it: the lease begins anew, but for the end of its attempt.
    pub fn renew(
        &mut self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
        token: Token,
    ) -> Result<(), Stale> {
        let session = self.valid(now, group, number, token)?;
        self.sessions.heard(session, now);
        let began = self.groups[group]
            .lease_of(number.0)
            .map(|lease| lease.began);
        let ends = now + self.options.lease;
        let last = began.ok_or(Stale)? + self.options.attempt_max;
        self.groups[group].renew(number.0, ends.min(last));
        Ok(())
    }

    /// A worker is gone. What it had goes to others.
    pub fn end_session(&mut self, now: Moment, session: u64, kind: FailureKind, random: u64) {
        self.sessions.end(session);
        for group in 0..self.groups.len() {
            for number in self.groups[group].leases_of(session) {
                let cause = "the worker is gone".to_owned();
                self.fail(now, group, JobNumber(number), kind, cause, random);
            }
        }
    }

    /// Nothing more will be heard of a worker. What it has comes back when its leases end.
    pub fn forget_session(&mut self, session: u64) {
        self.sessions.end(session);
    }

    /// Brings what is due: delays, ends of leases, expiries, and what is to be forgotten.
    pub fn tick(&mut self, now: Moment, random: u64) {
        self.bring_due(now, STEP_JOBS_MAX);
        for group in 0..self.groups.len() {
            for _ in 0..STEP_JOBS_MAX {
                let Some((number, lease)) = self.groups[group].first_lease_ended(now) else {
                    break;
                };
                // A worker that is there renews what it has three times in each lease.
                let heard = self.sessions.last_heard(lease.session);
                let was_heard =
                    heard.is_some_and(|heard| now.since(heard) < self.options.lease / 2);
                let at_its_end = now >= lease.began + self.options.attempt_max;
                let (kind, cause) = if was_heard || at_its_end {
                    (FailureKind::Expired, "the lease ended")
                } else {
                    (FailureKind::Lost, "nothing was heard of the worker")
                };
                self.fail(now, group, JobNumber(number), kind, cause.into(), random);
            }
        }
        for _ in 0..STEP_JOBS_MAX {
            let Some((expires, number)) = self.expiries.first().copied() else {
                break;
            };
            if now < expires {
                break;
            }
            self.expiries.pop_first();
            for group in 0..self.groups.len() {
                // What a worker has is looked at again when it comes back.
                if self.is_open(group, number)
                    && !matches!(
                        self.groups[group].state(number),
                        JobState::Leased | JobState::Dead
                    )
                {
                    self.finish(now, group, number, Finish::Expired);
                }
            }
        }
        self.intake.forget(now, &self.options, STEP_JOBS_MAX);
        let forget_after = self.options.attempt_max + self.options.lease;
        self.sessions.forget(now, forget_after);
    }

    /// Brings the jobs whose delay is over, in the order of their times: at most so many of each group.
    pub fn bring_due(&mut self, now: Moment, max: usize) {
        for group in 0..self.groups.len() {
            for _ in 0..max {
                let Some(number) = self.groups[group].pop_due(now) else {
                    break;
                };
                if let Some(job) = self.traits(number) {
                    self.groups[group].line_up(job);
                }
            }
        }
    }

    /// Gives back to every lease a time in which this process did not run: nobody could have renewed it.
    pub fn give_back(&mut self, now: Moment, gap: Duration) {
        self.sessions.hear_all(now);
        let lease = self.options.lease.min(self.options.attempt_max);
        for group in &mut self.groups {
            group.begin_leases_anew(now, gap, lease, self.options.attempt_max);
        }
    }

    pub fn has_leases(&self) -> bool {
        self.groups.iter().any(Group::has_leases)
    }

    /// When there is next something to do without being asked.
    pub fn next_tick(&self) -> Option<Moment> {
        let groups = self.groups.iter().filter_map(Group::next);
        let expiry = self.expiries.first().map(|(expires, _)| *expires);
        groups
            .chain(expiry)
            .chain(self.intake.next(&self.options))
            .min()
    }

    /// Sends a dead letter back to be tried again, as if for the first time. Says whether it was there.
    pub fn revive(&mut self, now: Moment, group: GroupIndex, number: JobNumber) -> bool {
        let is_dead = self.groups[group].is_dead(number.0);
        if is_dead {
            self.decide(now, Fact::Revived { group, number });
        }
        is_dead
    }

    /// Deletes a dead letter. Says whether it was there.
    pub fn delete(&mut self, now: Moment, group: GroupIndex, number: JobNumber) -> bool {
        let is_dead = self.groups[group].is_dead(number.0);
        if is_dead {
            self.finish(now, group, number.0, Finish::Deleted);
        }
        is_dead
    }

    /// Cancels a job that waits, or is delayed, in every group that has not finished it.
    pub fn cancel(&mut self, now: Moment, id: Digest) -> Option<(JobNumber, Option<JobState>)> {
        self.change(id, |machine, group, number| {
            machine.finish(now, group, number.0, Finish::Cancelled);
        })
    }

    /// Makes a job that waits, or is delayed, due at another time, in every group that has not finished it.
    pub fn reschedule(
        &mut self,
        now: Moment,
        id: Digest,
        delay: Duration,
    ) -> Option<(JobNumber, Option<JobState>)> {
        let due = now + delay;
        self.change(id, |machine, group, number| {
            machine.decide(now, Fact::Rescheduled { group, number, due });
        })
    }

    /// Changes the job of an ID in every group that has not finished it; in none where it does not wait in one of
    /// them: then says how it stands there.
    fn change(
        &mut self,
        id: Digest,
        change: impl Fn(&mut Self, GroupIndex, JobNumber),
    ) -> Option<(JobNumber, Option<JobState>)> {
        let number = self.find(id)?;
        let groups: Vec<GroupIndex> = (0..self.groups.len())
            .filter(|group| self.is_open(*group, number.0))
            .collect();
        if groups.is_empty() {
            return Some((number, Some(JobState::Finished)));
        }
        let waits = |state: &JobState| matches!(state, JobState::Ready | JobState::Delayed);
        let mut states = groups
            .iter()
            .map(|group| self.groups[*group].state(number.0));
        if let Some(state) = states.find(|state| !waits(state)) {
            return Some((number, Some(state)));
        }
        for group in groups {
            change(self, group, number);
        }
        Some((number, None))
    }

    /// What is stored of a job that this step has sent cannot be read at present: it was not sent, uses up no attempt, and
    /// waits so long before it is sent.
    pub fn unreadable(
        &mut self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
        wait: Duration,
    ) {
        let kind = FailureKind::Released;
        self.put_back(now, group, number, now + wait, kind, String::new());
    }

    /// What is stored of a job is damaged: it is over for every group.
    pub fn damaged(&mut self, now: Moment, number: JobNumber) {
        for group in 0..self.groups.len() {
            if self.is_open(group, number.0) {
                self.finish(now, group, number.0, Finish::Damaged);
            }
        }
    }
}
