//! The queue as it would be without any thought of cost: a list of jobs that is searched for
//! everything. `compared` compares the machine with it after each of a few thousand random steps.

mod compared;

use std::collections::HashMap;

use super::*;
use crate::queue::{Attempts, Poison};

const LEASE: u64 = 30;
const ATTEMPT_MAX: u64 = 70;
const BACKOFF: u64 = 5;

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Ready,
    Leased {
        token: Token,
        began: u64,
        ends: u64,
        session: u64,
    },
    Delayed(u64),
    Dead,
    Gone,
}

#[derive(Debug)]
struct PlainJob {
    key: Option<u8>,
    id: Option<u8>,
    sequence: u64,
    priority: Priority,
    expires: Option<u64>,
    attempts: Attempts,
    state: State,
    gone_at: u64,
}

struct Model {
    options: QueueOptions,
    jobs: Vec<PlainJob>,
    /// Which job each key belongs to now.
    holders: HashMap<u8, usize>,
    heard: HashMap<u64, u64>,
    sent: u32,
}

impl Model {
    fn live(&self) -> usize {
        self.count(|state| state != State::Gone)
    }

    fn count(&self, is: impl Fn(State) -> bool) -> usize {
        self.jobs.iter().filter(|job| is(job.state)).count()
    }

    fn set(&mut self, now: u64, number: usize, state: State) {
        self.jobs[number].state = state;
        self.jobs[number].gone_at = now;
        let parks = self.options.poison == Poison::Park;
        let lets_go = state == State::Gone || (state == State::Dead && !parks);
        self.holders
            .retain(|_, holder| !(lets_go && *holder == number));
        // Of those that are ready, the first of each key that belongs to nobody gets it.
        for (number, job) in self.jobs.iter().enumerate() {
            if let (Some(key), State::Ready) = (job.key, job.state) {
                self.holders.entry(key).or_insert(number);
            }
        }
    }

    fn push(&mut self, now: u64, op: &PushOp, sequence: u64) -> Admission {
        let id_kept = |job: &PlainJob| {
            let kept = self.options.id_retention.as_millis() as u64;
            job.state != State::Gone || now < job.gone_at + kept
        };
        let same_id = |job: &PlainJob| op.id.is_some() && job.id == op.id && id_kept(job);
        if let Some(number) = self.jobs.iter().rposition(same_id) {
            return Admission::Duplicate(Some(JobNumber(number as u64)));
        }
        if self.jobs.iter().any(|job| job.sequence == sequence) {
            return Admission::Duplicate(None);
        }
        if self.live() >= self.options.jobs_max {
            return Admission::Full;
        }
        self.jobs.push(PlainJob {
            key: op.key,
            id: op.id,
            sequence,
            priority: op.priority,
            expires: op.expires.map(|after| now + after),
            attempts: Attempts::default(),
            state: State::Gone,
            gone_at: now,
        });
        let number = self.jobs.len() - 1;
        let state = match op.delay {
            0 => State::Ready,
            delay => State::Delayed(now + delay),
        };
        self.set(now, number, state);
        Admission::Accepted(JobNumber(number as u64))
    }

    fn next(&self) -> Option<usize> {
        use Priority::{High, Low, Normal};
        let order = match self.sent % 21 {
            0..16 => [High, Normal, Low],
            16..20 => [Normal, High, Low],
            _ => [Low, High, Normal],
        };
        let may_be_sent = |number: &usize| {
            let job = &self.jobs[*number];
            job.state == State::Ready && job.key.is_none_or(|key| self.holders[&key] == *number)
        };
        order.iter().find_map(|class| {
            let of_class = |number: &usize| self.jobs[*number].priority == *class;
            (0..self.jobs.len()).filter(of_class).find(may_be_sent)
        })
    }

    fn lease(&mut self, now: u64, session: u64, max: usize) -> Vec<usize> {
        self.heard.insert(session, now);
        let mut sent = Vec::new();
        while sent.len() < max && self.count(|state| state == State::Dead) < self.options.dead_max {
            let Some(number) = self.next() else { break };
            if self.jobs[number].expires.is_some_and(|at| at <= now) {
                self.set(now, number, State::Gone);
                continue;
            }
            self.sent += 1;
            let ends = now + LEASE;
            // The machine says which token; see the comparison.
            let token = Token(0);
            self.jobs[number].state = State::Leased {
                token,
                began: now,
                ends,
                session,
            };
            sent.push(number);
        }
        sent
    }

    fn fail(&mut self, now: u64, number: usize, kind: FailureKind) {
        let job = &mut self.jobs[number];
        job.attempts.count(kind);
        let is_over = job.attempts.used() >= self.options.attempts_max
            || job.attempts.lost >= self.options.lost_max;
        let blocks = self.options.poison == Poison::Block && job.key.is_some();
        if is_over && !blocks {
            return self.set(now, number, State::Dead);
        }
        self.back(now, number, now + BACKOFF);
    }

    fn back(&mut self, now: u64, number: usize, due: u64) {
        let has_expired = self.jobs[number].expires.is_some_and(|at| at <= now);
        let state = match (has_expired, due > now) {
            (true, _) => State::Gone,
            (_, true) => State::Delayed(due),
            _ => State::Ready,
        };
        self.set(now, number, state);
    }

    /// Cancels the job of an ID, or makes it due after so long.
    fn change(
        &mut self,
        now: u64,
        id: u8,
        delay: Option<u64>,
    ) -> Option<(JobNumber, Option<JobState>)> {
        let kept = self.options.id_retention.as_millis() as u64;
        let is_known = |job: &PlainJob| {
            job.id == Some(id) && (job.state != State::Gone || now < job.gone_at + kept)
        };
        let at = self.jobs.iter().rposition(is_known)?;
        let number = JobNumber(at as u64);
        let too_late = match self.jobs[at].state {
            State::Ready | State::Delayed(_) => None,
            State::Leased { .. } => Some(JobState::Leased),
            State::Dead => Some(JobState::Dead),
            State::Gone => Some(JobState::Finished),
        };
        if too_late.is_none() {
            // It leaves the line of its key.
            self.holders.retain(|_, holder| *holder != at);
            let state = match delay {
                None => State::Gone,
                Some(0) => State::Ready,
                Some(delay) => State::Delayed(now + delay),
            };
            // Others of its key come first.
            self.set(now, at, State::Gone);
            self.set(now, at, state);
        }
        Some((number, too_late))
    }

    /// Leases begin anew after a time in which nothing ran.
    fn give_back(&mut self, now: u64, gap: u64) {
        self.heard.values_mut().for_each(|heard| *heard = now);
        for job in &mut self.jobs {
            if let State::Leased { began, ends, .. } = &mut job.state {
                *began += gap;
                *ends = (now + LEASE).min(*began + ATTEMPT_MAX);
            }
        }
    }

    fn tick(&mut self, now: u64) {
        loop {
            let due = self
                .jobs
                .iter()
                .enumerate()
                .filter_map(|(number, job)| match job.state {
                    State::Delayed(due) if due <= now => Some((due, number)),
                    _ => None,
                });
            let Some((_, number)) = due.min() else { break };
            self.set(now, number, State::Ready);
        }
        loop {
            let ended = self
                .jobs
                .iter()
                .enumerate()
                .filter_map(|(number, job)| match job.state {
                    State::Leased {
                        ends,
                        began,
                        session,
                        ..
                    } if ends <= now => Some((ends, number, began, session)),
                    _ => None,
                });
            let Some((_, number, began, session)) = ended.min() else {
                break;
            };
            let heard = now - self.heard[&session] < LEASE / 2;
            let kind = match heard || now >= began + ATTEMPT_MAX {
                true => FailureKind::Expired,
                false => FailureKind::Lost,
            };
            self.fail(now, number, kind);
        }
        for number in 0..self.jobs.len() {
            let job = &self.jobs[number];
            let waits = matches!(job.state, State::Ready | State::Delayed(_));
            if waits && job.expires.is_some_and(|at| at <= now) {
                self.set(now, number, State::Gone);
            }
        }
    }
}

#[derive(Clone, Debug)]
struct PushOp {
    key: Option<u8>,
    id: Option<u8>,
    priority: Priority,
    delay: u64,
    expires: Option<u64>,
    is_resent: bool,
}
