//! One group of workers: which jobs are ready for it, which it has, and which it could not do.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::fact::{Digest, Moment, Restored, Standing};
use super::numbers::Numbers;
use crate::queue::{Attempts, FailureKind, JobState, Priority, QueueOptions, Token};

/// Of so many jobs …
const TURNS: u32 = 21;
/// … so many are sent from the high class first …
const TURNS_HIGH: u32 = 16;
/// … and so many from the high or the normal.
const TURNS_NORMAL: u32 = 20;

#[derive(Debug, Default)]
pub(super) struct Group {
    ready: [Numbers; Priority::ALL.len()],
    turn: u32,
    leases: HashMap<u64, Lease>,
    lease_ends: BTreeSet<(Moment, u64)>,
    delays: HashMap<u64, Moment>,
    due: BTreeSet<(Moment, u64)>,
    lines: HashMap<Digest, Line>,
    /// Jobs that wait in a line behind its head.
    in_line: usize,
    histories: HashMap<u64, History>,
    dead: BTreeSet<u64>,
    pub done: u64,
    pub expired: u64,
    pub deleted: u64,
    pub damaged: u64,
    pub cancelled: u64,
}

/// That a worker has a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub token: Token,
    pub session: u64,
    pub began: Moment,
    ends: Moment,
}

impl Lease {
    pub fn has_ended(&self, now: Moment) -> bool {
        self.ends <= now
    }
}

/// The jobs of one key.
#[derive(Debug)]
struct Line {
    /// The only one that may be sent; or, where it is dead, the one that the key stands still for.
    head: u64,
    waiting: Numbers,
}

/// How the attempts at a job ended.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    pub attempts: Attempts,
    pub failures: Vec<(FailureKind, String, Moment)>,
}

/// What a group has to know of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    pub number: u64,
    pub priority: Priority,
    pub key: Option<Digest>,
}

/// How many jobs are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub ready: usize,
    pub leased: usize,
    pub delayed: usize,
    pub dead: usize,
}

impl Group {
    /// A job comes in, or comes back.
    pub fn admit(&mut self, job: Traits, now: Moment, due: Moment) {
        if now < due {
            self.delays.insert(job.number, due);
            self.due.insert((due, job.number));
        } else {
            self.line_up(job);
        }
    }

    pub fn line_up(&mut self, job: Traits) {
        let Some(key) = job.key else {
            self.ready[job.priority as usize].insert(job.number);
            return;
        };
        let line = self.lines.entry(key).or_insert_with(|| Line {
            head: job.number,
            waiting: Numbers::default(),
        });
        if line.head == job.number {
            self.ready[job.priority as usize].insert(job.number);
        } else if line.waiting.insert(job.number) {
            self.in_line += 1;
        }
    }

    /// The jobs whose delay is over.
    pub fn pop_due(&mut self, now: Moment) -> Option<u64> {
        let (due, number) = *self.due.first()?;
        if now < due {
            return None;
        }
        self.due.pop_first();
        self.delays.remove(&number);
        Some(number)
    }

    /// The next job that may be sent.
    pub fn peek_ready(&self) -> Option<u64> {
        let order = match self.turn % TURNS {
            ..TURNS_HIGH => [0, 1, 2],
            TURNS_HIGH..TURNS_NORMAL => [1, 0, 2],
            _ => [2, 0, 1],
        };
        order
            .iter()
            .find_map(|class: &usize| self.ready[*class].first())
    }

    pub fn lease(&mut self, job: Traits, now: Moment, token: Token, session: u64, ends: Moment) {
        self.take_out(job);
        self.turn = self.turn.wrapping_add(1);
        let lease = Lease {
            token,
            session,
            began: now,
            ends,
        };
        self.leases.insert(job.number, lease);
        self.lease_ends.insert((ends, job.number));
    }

    pub fn lease_of(&self, number: u64) -> Option<&Lease> {
        self.leases.get(&number)
    }

    pub fn renew(&mut self, number: u64, ends: Moment) {
        if let Some(lease) = self.leases.get_mut(&number) {
            self.lease_ends.remove(&(lease.ends, number));
            lease.ends = ends;
            self.lease_ends.insert((ends, number));
        }
    }

    pub fn first_lease_ended(&self, now: Moment) -> Option<(u64, Lease)> {
        let (ends, number) = *self.lease_ends.first()?;
        if now < ends {
            return None;
        }
        Some((number, *self.leases.get(&number)?))
    }

    pub fn leases_of(&self, session: u64) -> Vec<u64> {
        let leases = self.leases.iter();
        let of_session = leases.filter(|(_, lease)| lease.session == session);
        let mut numbers: Vec<u64> = of_session.map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Of the failures, the last `failures_max` are kept, and one at least.
    pub fn record(
        &mut self,
        number: u64,
        kind: FailureKind,
        cause: String,
        now: Moment,
        failures_max: usize,
    ) {
        if kind == FailureKind::Released {
            return;
        }
        let history = self.histories.entry(number).or_default();
        history.attempts.count(kind);
        history.failures.push((kind, cause, now));
        let over = history.failures.len().saturating_sub(failures_max.max(1));
        history.failures.drain(..over);
    }

    pub fn history(&self, number: u64) -> Option<&History> {
        self.histories.get(&number)
    }

    /// It waits for its next attempt. It keeps its place at the head of its key.
    pub fn put_back(&mut self, job: Traits, now: Moment, due: Moment) {
        self.take_out(job);
        self.admit(job, now, due);
    }

    pub fn bury(&mut self, job: Traits) {
        self.take_out(job);
        self.dead.insert(job.number);
    }

    /// Stands as it did when this was written down.
    pub fn restore(&mut self, job: Traits, now: Moment, restored: &Restored, lease: Duration) {
        self.take_out(job);
        self.dead.remove(&job.number);
        if restored.attempts != Attempts::default() || !restored.failures.is_empty() {
            let history = History {
                attempts: restored.attempts,
                failures: restored.failures.clone(),
            };
            self.histories.insert(job.number, history);
        }
        match restored.standing {
            Standing::Ready => self.line_up(job),
            Standing::Delayed(due) => self.admit(job, now, due),
            Standing::Leased(token, session) => self.lease(job, now, token, session, now + lease),
            Standing::Dead => self.bury(job),
        }
    }

    /// Its key is this job's: who had it goes back into the line.
    pub fn claim(&mut self, job: Traits, holder: Option<Traits>) {
        let Some(line) = job.key.and_then(|key| self.lines.get_mut(&key)) else {
            if let Some(key) = job.key {
                let line = Line {
                    head: job.number,
                    waiting: Numbers::default(),
                };
                self.lines.insert(key, line);
            }
            return;
        };
        if line.head == job.number {
            return;
        }
        if line.waiting.remove(job.number) {
            self.in_line -= 1;
        }
        line.head = job.number;
        if let Some(holder) = holder
            && line.waiting.insert(holder.number)
        {
            self.in_line += 1;
            self.ready[holder.priority as usize].remove(holder.number);
        }
    }

    pub fn head(&self, key: Digest) -> Option<u64> {
        self.lines.get(&key).map(|line| line.head)
    }

    /// How a job stands, to be restored from.
    pub fn standing(&self, job: Traits) -> Restored {
        let number = job.number;
        let standing = if let Some(lease) = self.leases.get(&number) {
            Standing::Leased(lease.token, lease.session)
        } else if let Some(due) = self.delays.get(&number) {
            Standing::Delayed(*due)
        } else if self.is_dead(number) {
            Standing::Dead
        } else {
            Standing::Ready
        };
        let History { attempts, failures } =
            self.histories.get(&number).cloned().unwrap_or_default();
        Restored {
            standing,
            is_head: job.key.and_then(|key| self.head(key)) == Some(number),
            attempts,
            failures,
        }
    }

    /// Goes on after a restart that took so long: leases begin anew, and no next attempt comes early for it.
    pub fn resume(&mut self, now: Moment, down: Duration, lease: Duration) {
        self.lease_ends.clear();
        for (number, of) in &mut self.leases {
            of.began = now;
            of.ends = now + lease;
            self.lease_ends.insert((of.ends, *number));
        }
        for (number, due) in &mut self.delays {
            if self.histories.contains_key(number) {
                self.due.remove(&(*due, *number));
                *due = *due + down;
                self.due.insert((*due, *number));
            }
        }
        (self.done, self.expired, self.deleted, self.damaged) = (0, 0, 0, 0);
        self.cancelled = 0;
    }

    /// Begins all leases anew, with the time that each has already taken.
    pub fn begin_leases_anew(
        &mut self,
        now: Moment,
        gap: Duration,
        lease: Duration,
        attempt_max: Duration,
    ) {
        self.lease_ends.clear();
        for (number, of) in &mut self.leases {
            of.began = of.began + gap;
            of.ends = (now + lease).min(of.began + attempt_max);
            self.lease_ends.insert((of.ends, *number));
        }
    }

    pub fn has_leases(&self) -> bool {
        !self.leases.is_empty()
    }

    pub fn revive(&mut self, job: Traits) {
        if self.dead.remove(&job.number) {
            self.histories.remove(&job.number);
            self.line_up(job);
        }
    }

    /// It is over: forgets it. The next of its key is to [`advance`](Self::advance).
    pub fn remove(&mut self, job: Traits) {
        self.take_out(job);
        self.dead.remove(&job.number);
        self.histories.remove(&job.number);
        self.step_aside(job);
    }

    /// Takes a job out of wherever it waits, but for its line.
    fn take_out(&mut self, job: Traits) {
        self.ready[job.priority as usize].remove(job.number);
        if let Some(lease) = self.leases.remove(&job.number) {
            self.lease_ends.remove(&(lease.ends, job.number));
        }
        if let Some(due) = self.delays.remove(&job.number) {
            self.due.remove(&(due, job.number));
        }
    }

    /// Takes a job that waits out of where it is, its line too. If it was at its head, the next is to
    /// [`advance`](Self::advance).
    pub fn leave_line(&mut self, job: Traits) {
        self.take_out(job);
        self.step_aside(job);
    }

    fn step_aside(&mut self, job: Traits) {
        let Some(line) = job.key.and_then(|key| self.lines.get_mut(&key)) else {
            return;
        };
        if line.head != job.number && line.waiting.remove(job.number) {
            self.in_line -= 1;
        }
    }

    /// Brings the next of a key forward, where its head has gone.
    pub fn advance(&mut self, key: Digest, gone: u64) -> Option<u64> {
        let line = self.lines.get_mut(&key)?;
        if line.head != gone {
            return None;
        }
        match line.waiting.pop_first() {
            Some(next) => {
                line.head = next;
                self.in_line -= 1;
                Some(next)
            }
            None => {
                self.lines.remove(&key);
                None
            }
        }
    }

    /// Whether its jobs are held back until somebody has looked at its dead letters.
    pub fn is_blocked(&self, options: &QueueOptions) -> bool {
        self.dead.len() >= options.dead_max
    }

    pub fn is_dead(&self, number: u64) -> bool {
        self.dead.contains(&number)
    }

    pub fn dead_after(&self, after: Option<u64>) -> impl Iterator<Item = u64> + '_ {
        let from = after.map_or(0, |after| after.saturating_add(1));
        self.dead.range(from..).copied()
    }

    pub fn state(&self, number: u64) -> JobState {
        if self.leases.contains_key(&number) {
            JobState::Leased
        } else if self.delays.contains_key(&number) {
            JobState::Delayed
        } else if self.is_dead(number) {
            JobState::Dead
        } else {
            JobState::Ready
        }
    }

    pub fn counts(&self) -> Counts {
        Counts {
            ready: self.ready.iter().map(Numbers::len).sum::<usize>() + self.in_line,
            leased: self.leases.len(),
            delayed: self.delays.len(),
            dead: self.dead.len(),
        }
    }

    pub fn has_ready(&self) -> bool {
        self.ready.iter().any(|class| !class.is_empty())
    }

    pub fn next(&self) -> Option<Moment> {
        let first = |set: &BTreeSet<(Moment, u64)>| set.first().map(|(moment, _)| *moment);
        first(&self.due)
            .into_iter()
            .chain(first(&self.lease_ends))
            .min()
    }
}
