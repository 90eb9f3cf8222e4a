//! The queue as a state machine: what it does with a push, a lease, an answer, and the time.
//!
//! No clock, no disk, no socket, no randomness: every step is told the time and, where it needs
//! one, a random number, and says what it decided. It knows a job by its number and never sees its
//! body. What it changes, it changes by applying [`Fact`]s, which a queue on disk writes down.
//!
//! A job that is ready, without ID, key or expiry, costs eight bytes and a share of a range.

mod fact;
mod group;
mod intake;
#[cfg(test)]
mod model;
mod numbers;
mod table;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

pub(crate) use fact::{Arrival, Digest, Fact, Finish, GroupIndex, Moment};
#[cfg(feature = "durable")]
pub(crate) use fact::{Restored, Standing};
#[cfg(feature = "durable")]
pub(crate) use intake::KnownProducer;
pub(crate) use table::Table;

use super::{
    Attempts, FailureKind, Groups, Identity, JobNumber, JobState, Poison, Priority, QueueOptions,
    Token,
};
use group::{Group, History, Traits};
use intake::{Intake, Seen};

/// Low bits of a token, counted within one opening of the queue; the others are the opening's own.
const TOKEN_COUNT_BITS: u32 = 40;

#[derive(Debug)]
pub(crate) struct Machine {
    options: QueueOptions,
    next: u64,
    tokens: u64,
    jobs: Table<Job>,
    /// Of the jobs that have any of it.
    extras: HashMap<u64, Extra>,
    bytes: u64,
    intake: Intake,
    groups: Vec<Group>,
    expiries: BTreeSet<(Moment, u64)>,
    /// When each session was last heard of.
    sessions: HashMap<u64, Moment>,
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

/// A job that is asked to be let in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Push {
    pub identity: Identity,
    pub id: Option<Digest>,
    pub key: Option<Digest>,
    pub priority: Priority,
    pub delay: Duration,
    pub expires_after: Option<Duration>,
    pub bytes: usize,
}

/// What a push is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Accepted(JobNumber),
    /// It was there before; which job it was is known of those with a job ID.
    Duplicate(Option<JobNumber>),
    /// There is no room now.
    Full,
    /// There never is.
    TooLarge,
}

/// What a worker has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Jobs.
    pub jobs: usize,
    /// Bytes of their bodies, IDs and keys.
    pub bytes: usize,
    /// The first job may be larger than that: the worker has no other.
    pub takes_any_first: bool,
}

/// A job that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub number: JobNumber,
    pub token: Token,
    pub earlier: Attempts,
}

/// A worker's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// It could not be done: it is sent again later, or goes to the dead letters.
    Refuse(String),
    /// It can never be done: it goes to the dead letters.
    Bury(String),
    /// It is to be sent again after this time. Uses up no attempt.
    RetryAfter(Duration, String),
    /// The worker dropped it. Counts as lost.
    Abandon(String),
    /// It was not begun.
    Release,
}

/// The lease that the answer is for is over, or never was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease of this job is over")]
pub struct Stale;

/// How many jobs are where, in one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueCounters {
    /// Jobs that wait for a worker, or for the job of their key before them.
    pub ready: usize,
    /// Jobs that a worker has.
    pub leased: usize,
    /// Jobs that wait for their time, or for their next attempt.
    pub delayed: usize,
    /// Dead letters.
    pub dead: usize,
    /// Whether the dead letters are full, so that no more jobs are sent.
    pub is_blocked: bool,
    /// Jobs done since the queue was opened.
    pub done: u64,
    /// Jobs that expired since then.
    pub expired: u64,
    /// Jobs deleted from the dead letters since then.
    pub deleted: u64,
    /// Jobs whose stored bytes were found damaged since then, and set aside.
    pub damaged: u64,
    /// Jobs that some group has not finished.
    pub jobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Machine {
    /// `opening` differs from every other opening of the same queue: it makes tokens differ.
    pub fn new(options: QueueOptions, opening: u32) -> Self {
        let groups = options
            .groups
            .names()
            .iter()
            .map(|_| Group::default())
            .collect();
        Self {
            options,
            next: 0,
            tokens: u64::from(opening) << TOKEN_COUNT_BITS,
            jobs: Table::default(),
            extras: HashMap::new(),
            bytes: 0,
            intake: Intake::default(),
            groups,
            expiries: BTreeSet::new(),
            sessions: HashMap::new(),
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

    // ---- what it is asked ----

    pub fn push(&mut self, now: Moment, push: Push) -> Admission {
        match self.intake.seen(push.identity, push.id) {
            Some(Seen::Id(number)) => return Admission::Duplicate(Some(number)),
            Some(Seen::Push) => return Admission::Duplicate(None),
            None => {}
        }
        if push.bytes > self.options.job_bytes_max {
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

    /// Jobs for a worker, within its credit.
    pub fn lease(
        &mut self,
        now: Moment,
        group: GroupIndex,
        session: u64,
        credit: Credit,
    ) -> Vec<Sent> {
        self.sessions.insert(session, now);
        let (mut sent, mut bytes) = (Vec::new(), 0);
        while sent.len() < credit.jobs && !self.groups[group].is_blocked(&self.options) {
            let Some(number) = self.groups[group].peek_ready() else {
                break;
            };
            if self.has_expired(now, number) {
                self.finish(now, group, number, Finish::Expired);
                continue;
            }
            bytes += self.jobs.get(number).map_or(0, |job| job.bytes as usize);
            if bytes > credit.bytes && !(sent.is_empty() && credit.takes_any_first) {
                break;
            }
            self.tokens += 1;
            let (number, token) = (JobNumber(number), Token(self.tokens));
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
        sent
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
        self.sessions.insert(session, now);
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
        self.sessions.insert(session, now);
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
        self.sessions.remove(&session);
        for group in 0..self.groups.len() {
            for number in self.groups[group].leases_of(session) {
                let cause = "the worker is gone".to_owned();
                self.fail(now, group, JobNumber(number), kind, cause, random);
            }
        }
    }

    /// Brings what is due: delays, ends of leases, expiries, and what is to be forgotten.
    pub fn tick(&mut self, now: Moment, random: u64) {
        for group in 0..self.groups.len() {
            while let Some(number) = self.groups[group].pop_due(now) {
                if let Some(job) = self.traits(number) {
                    self.groups[group].line_up(job);
                }
            }
            while let Some((number, lease)) = self.groups[group].first_lease_ended(now) {
                // A worker that is there renews what it has three times in each lease.
                let heard = self.sessions.get(&lease.session);
                let was_heard =
                    heard.is_some_and(|heard| now.since(*heard) < self.options.lease / 2);
                let at_its_end = now >= lease.began + self.options.attempt_max;
                let (kind, cause) = if was_heard || at_its_end {
                    (FailureKind::Expired, "the lease ended")
                } else {
                    (FailureKind::Lost, "nothing was heard of the worker")
                };
                self.fail(now, group, JobNumber(number), kind, cause.into(), random);
            }
        }
        while let Some((expires, number)) = self.expiries.first().copied() {
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
        self.intake.forget(now, &self.options);
        let forget_after = self.options.attempt_max + self.options.lease;
        self.sessions
            .retain(|_, heard| now.since(*heard) <= forget_after);
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

    /// What is stored of a job cannot be read: it is over for every group.
    pub fn damaged(&mut self, now: Moment, number: JobNumber) {
        for group in 0..self.groups.len() {
            if self.is_open(group, number.0) {
                self.finish(now, group, number.0, Finish::Damaged);
            }
        }
    }

    // ---- what can be looked at ----

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

    /// Whether any group still has to do with it.
    pub fn is_live(&self, number: JobNumber) -> bool {
        self.jobs.get(number.0).is_some()
    }

    // ---- deciding ----

    fn decide(&mut self, now: Moment, fact: Fact) {
        self.apply(now, &fact);
        self.facts.push(fact);
    }

    fn finish(&mut self, now: Moment, group: GroupIndex, number: u64, how: Finish) {
        let number = JobNumber(number);
        self.decide(now, Fact::Finished { group, number, how });
    }

    /// An attempt has failed: the job is tried again later, or never.
    fn fail(
        &mut self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
        kind: FailureKind,
        cause: String,
        random: u64,
    ) {
        let mut attempts = self.groups[group]
            .history(number.0)
            .map(|history| history.attempts)
            .unwrap_or_default();
        attempts.count(kind);
        let is_over =
            attempts.used() >= self.options.attempts_max || attempts.lost >= self.options.lost_max;
        if is_over && !self.blocks_its_key(number.0) {
            return self.bury(now, group, number, kind, cause);
        }
        let due = match kind {
            FailureKind::Released => now,
            _ => {
                let failed = attempts.used() + attempts.lost;
                now + self.backoff(failed, mix(random, number.0))
            }
        };
        self.put_back(now, group, number, due, kind, cause);
    }

    fn blocks_its_key(&self, number: u64) -> bool {
        let has_key = || self.extras.get(&number).is_some_and(|e| e.key.is_some());
        self.options.poison == Poison::Block && has_key()
    }

    /// Full jitter: anything from the shortest wait to twice as long after each failure, up to the longest.
    fn backoff(&self, failed: u32, random: u64) -> Duration {
        let (min, max) = (self.options.backoff_min, self.options.backoff_max);
        let doubled = min.saturating_mul(1 << failed.min(30)).min(max.max(min));
        let part = (random >> 11) as f64 / (1u64 << 53) as f64;
        min + (doubled - min).mul_f64(part)
    }

    fn put_back(
        &mut self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
        due: Moment,
        kind: FailureKind,
        cause: String,
    ) {
        let cause = shortened(cause, self.options.cause_bytes_max);
        let fact = Fact::Returned {
            group,
            number,
            due,
            kind,
            cause,
        };
        self.decide(now, fact);
        if self.has_expired(now, number.0) {
            self.finish(now, group, number.0, Finish::Expired);
        }
    }

    fn bury(
        &mut self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
        kind: FailureKind,
        cause: String,
    ) {
        let cause = shortened(cause, self.options.cause_bytes_max);
        let fact = Fact::Buried {
            group,
            number,
            kind,
            cause,
        };
        self.decide(now, fact);
    }

    /// The session that has the lease, if the token is that of the lease and it has not ended.
    fn valid(
        &self,
        now: Moment,
        group: GroupIndex,
        number: JobNumber,
        token: Token,
    ) -> Result<u64, Stale> {
        let lease = self.groups[group].lease_of(number.0).ok_or(Stale)?;
        (lease.token == token && !lease.has_ended(now))
            .then_some(lease.session)
            .ok_or(Stale)
    }

    fn is_open(&self, group: GroupIndex, number: u64) -> bool {
        let job = self.jobs.get(number);
        job.is_some_and(|job| job.open & 1 << group != 0)
    }

    fn has_expired(&self, now: Moment, number: u64) -> bool {
        let expires = self.extras.get(&number).and_then(|extra| extra.expires);
        expires.is_some_and(|expires| expires <= now)
    }

    fn traits(&self, number: u64) -> Option<Traits> {
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

    // ---- applying ----

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
                    let group = &mut self.groups[*group];
                    group.record(number.0, *kind, cause.clone(), now);
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
                    self.groups[*group].record(number.0, *kind, cause.clone(), now);
                    self.groups[*group].bury(job);
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

    fn open(&self, group: GroupIndex, number: JobNumber) -> Option<Traits> {
        let is_open = group < self.groups.len() && self.is_open(group, number.0);
        is_open.then(|| self.traits(number.0)).flatten()
    }

    fn apply_push(&mut self, now: Moment, number: JobNumber, arrival: &Arrival, open: u16) {
        let number = number.0;
        if self.is_live(JobNumber(number)) {
            return;
        }
        self.next = self.next.max(number + 1);
        self.intake
            .note(now, JobNumber(number), arrival.identity, arrival.id);
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

    fn apply_finish(&mut self, now: Moment, group: GroupIndex, job: Traits, how: Finish) {
        let of = &mut self.groups[group];
        of.remove(job);
        let count = match how {
            Finish::Done => &mut of.done,
            Finish::Expired => &mut of.expired,
            Finish::Deleted => &mut of.deleted,
            Finish::Damaged => &mut of.damaged,
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
    fn claim(&mut self, group: GroupIndex, job: Traits) {
        let Some(key) = job.key else { return };
        let holder = self.groups[group].head(key);
        let holder = holder.and_then(|holder| self.traits(holder));
        self.groups[group].claim(job, holder);
    }

    /// The key of a job that is out of the way goes on.
    fn advance(&mut self, group: GroupIndex, gone: Traits) {
        let Some(key) = gone.key else { return };
        if let Some(next) = self.groups[group].advance(key, gone.number)
            && let Some(next) = self.traits(next)
        {
            self.groups[group].line_up(next);
        }
    }
}

/// What a log needs, to be thrown away in part and read back.
#[cfg(feature = "durable")]
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
    }

    /// Goes on after a restart that took so long, as the opening of this number.
    pub fn resume(&mut self, now: Moment, down: Duration, opening: u32) {
        self.tokens = u64::from(opening) << TOKEN_COUNT_BITS;
        let lease = self.options.lease.min(self.options.attempt_max);
        for group in &mut self.groups {
            group.resume(now, down, lease);
        }
    }
}

/// A random number for each job, of one for all.
fn mix(random: u64, number: u64) -> u64 {
    // The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
    let mut mixed = random.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn shortened(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = text.floor_char_boundary(bytes_max);
        text.truncate(end);
    }
    text
}
