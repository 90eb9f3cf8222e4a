//! The queue as it would be without any thought of cost: a list of jobs that is searched for
//! everything. The machine is compared with it after each of a few thousand random steps.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::queue::{Attempts, Identity, Poison};

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

#[derive(Clone, Debug)]
enum Op {
    Push(PushOp),
    Lease {
        session: u64,
        max: usize,
    },
    Answer {
        which: usize,
        answer: u8,
        is_late: bool,
    },
    Renew {
        which: usize,
    },
    Unreadable {
        which: usize,
        wait: u64,
    },
    Gone {
        session: u64,
        kind: FailureKind,
    },
    Revive {
        which: usize,
    },
    Delete {
        which: usize,
    },
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let priority = prop::sample::select(Priority::ALL.to_vec());
    let delay = prop_oneof![3 => Just(0), 1 => 1..20u64];
    let expires = prop::option::weighted(0.2, 1..60u64);
    let push = (
        prop::option::of(0..3u8),
        prop::option::weighted(0.3, 0..6u8),
        priority,
        delay,
        expires,
        prop::bool::weighted(0.1),
    )
        .prop_map(|(key, id, priority, delay, expires, is_resent)| {
            Op::Push(PushOp {
                key,
                id,
                priority,
                delay,
                expires,
                is_resent,
            })
        });
    let kind = prop::sample::select(vec![FailureKind::Lost, FailureKind::Released]);
    prop_oneof![
        6 => push,
        5 => (0..3u64, 1..4usize).prop_map(|(session, max)| Op::Lease { session, max }),
        6 => (0..64usize, 0..5u8, prop::bool::weighted(0.1))
            .prop_map(|(which, answer, is_late)| Op::Answer { which, answer, is_late }),
        2 => (0..64usize).prop_map(|which| Op::Renew { which }),
        1 => (0..64usize, 0..15u64).prop_map(|(which, wait)| Op::Unreadable { which, wait }),
        1 => (0..3u64, kind).prop_map(|(session, kind)| Op::Gone { session, kind }),
        1 => (0..64usize).prop_map(|which| Op::Revive { which }),
        1 => (0..64usize).prop_map(|which| Op::Delete { which }),
        4 => (1..25u64).prop_map(Op::Wait),
    ]
}

fn options(poison: Poison) -> QueueOptions {
    let milliseconds = Duration::from_millis;
    QueueOptions::default()
        .with_jobs_max(12)
        .with_lease(milliseconds(LEASE))
        .with_attempt_max(milliseconds(ATTEMPT_MAX))
        .with_attempts_max(3)
        .with_lost_max(4)
        .with_backoff_min(milliseconds(BACKOFF))
        .with_backoff_max(milliseconds(BACKOFF))
        .with_dead_max(3)
        .with_id_retention(milliseconds(40))
        .with_poison(poison)
}

fn push_of(op: &PushOp, sequence: u64) -> Push {
    let digest = |byte: u8| Digest(u128::from(byte));
    Push {
        identity: Identity {
            producer: Uuid::nil(),
            epoch: 0,
            sequence,
        },
        id: op.id.map(digest),
        key: op.key.map(digest),
        priority: op.priority,
        delay: Duration::from_millis(op.delay),
        expires_after: op.expires.map(Duration::from_millis),
        bytes: 10,
    }
}

fn check(poison: Poison, ops: &[Op]) -> Result<(), TestCaseError> {
    let options = options(poison);
    let mut machine = Machine::new(options.clone(), 1);
    // Built of nothing but the facts of the first, as after a crash.
    let mut follower = Machine::new(options.clone(), 1);
    let mut model = Model {
        options,
        jobs: Vec::new(),
        holders: HashMap::new(),
        heard: HashMap::new(),
        sent: 0,
    };
    let (mut now, mut sequence) = (0, 0);
    for op in ops {
        let at = Moment(now);
        machine.tick(at, 0);
        model.tick(now);
        let leased: Vec<(usize, Token)> = model
            .jobs
            .iter()
            .enumerate()
            .filter_map(|(number, job)| match job.state {
                State::Leased { token, .. } => Some((number, token)),
                _ => None,
            })
            .collect();
        let chosen = |which: usize| (!leased.is_empty()).then(|| leased[which % leased.len()]);
        let dead = |model: &Model, which: usize| {
            let is_dead = |number: &usize| model.jobs[*number].state == State::Dead;
            let dead: Vec<usize> = (0..model.jobs.len()).filter(is_dead).collect();
            (!dead.is_empty()).then(|| dead[which % dead.len()])
        };
        match op {
            Op::Push(push) => {
                if !push.is_resent {
                    sequence += 1;
                }
                let told = machine.push(at, push_of(push, sequence));
                prop_assert_eq!(told, model.push(now, push, sequence));
            }
            Op::Lease { session, max } => {
                let credit = Credit {
                    jobs: *max,
                    bytes: usize::MAX,
                    takes_any_first: false,
                };
                let sent = machine.lease(at, 0, *session, credit);
                let numbers: Vec<usize> = sent.iter().map(|job| job.number.0 as usize).collect();
                prop_assert_eq!(&numbers, &model.lease(now, *session, *max));
                for job in sent {
                    let plain = &mut model.jobs[job.number.0 as usize];
                    prop_assert_eq!(job.earlier, plain.attempts);
                    if let State::Leased { token, .. } = &mut plain.state {
                        *token = job.token;
                    }
                }
            }
            Op::Answer {
                which,
                answer,
                is_late,
            } => {
                let Some((number, token)) = chosen(*which) else {
                    continue;
                };
                let of = JobNumber(number as u64);
                if *is_late {
                    let late = Token(token.0 - 1);
                    let told = machine.answer(at, 0, of, late, Answer::Done, 0);
                    prop_assert_eq!(told, Err(Stale));
                    continue;
                }
                let State::Leased { session, .. } = model.jobs[number].state else {
                    continue;
                };
                model.heard.insert(session, now);
                let cause = String::new();
                let answer = match answer {
                    0 | 1 => {
                        model.set(now, number, State::Gone);
                        Answer::Done
                    }
                    2 => {
                        model.fail(now, number, FailureKind::Refused);
                        Answer::Refuse(cause)
                    }
                    3 => {
                        model.jobs[number].attempts.postponed += 1;
                        model.back(now, number, now + 7);
                        Answer::RetryAfter(Duration::from_millis(7), cause)
                    }
                    _ => {
                        model.back(now, number, now);
                        Answer::Release
                    }
                };
                prop_assert_eq!(machine.answer(at, 0, of, token, answer, 0), Ok(()));
            }
            Op::Renew { which } => {
                let Some((number, token)) = chosen(*which) else {
                    continue;
                };
                if let State::Leased {
                    ends,
                    began,
                    session,
                    ..
                } = &mut model.jobs[number].state
                {
                    *ends = (now + LEASE).min(*began + ATTEMPT_MAX);
                    model.heard.insert(*session, now);
                }
                let renewed = machine.renew(at, 0, JobNumber(number as u64), token);
                prop_assert_eq!(renewed, Ok(()));
            }
            Op::Unreadable { which, wait } => {
                let Some((number, _)) = chosen(*which) else {
                    continue;
                };
                model.back(now, number, now + wait);
                let wait = Duration::from_millis(*wait);
                machine.unreadable(at, 0, JobNumber(number as u64), wait);
            }
            Op::Gone { session, kind } => {
                for (number, _) in leased {
                    let State::Leased { session: of, .. } = model.jobs[number].state else {
                        continue;
                    };
                    match kind {
                        _ if of != *session => {}
                        FailureKind::Lost => model.fail(now, number, FailureKind::Lost),
                        _ => model.back(now, number, now),
                    }
                }
                machine.end_session(at, *session, *kind, 0);
            }
            Op::Revive { which } => {
                let Some(number) = dead(&model, *which) else {
                    continue;
                };
                model.jobs[number].attempts = Attempts::default();
                model.set(now, number, State::Ready);
                prop_assert!(machine.revive(at, 0, JobNumber(number as u64)));
            }
            Op::Delete { which } => {
                let Some(number) = dead(&model, *which) else {
                    continue;
                };
                model.set(now, number, State::Gone);
                prop_assert!(machine.delete(at, 0, JobNumber(number as u64)));
            }
            Op::Wait(milliseconds) => now += milliseconds,
        }
        let mut facts = Vec::new();
        machine.take_facts(&mut facts);
        for fact in &facts {
            follower.apply(at, fact);
        }
        let counters = machine.counters(0);
        prop_assert_eq!(counters.ready, model.count(|state| state == State::Ready));
        prop_assert_eq!(
            counters.leased,
            model.count(|state| matches!(state, State::Leased { .. }))
        );
        prop_assert_eq!(
            counters.delayed,
            model.count(|state| matches!(state, State::Delayed(_)))
        );
        prop_assert_eq!(counters.dead, model.count(|state| state == State::Dead));
        prop_assert_eq!(counters.jobs, model.live());
        prop_assert_eq!(counters.bytes, model.live() as u64 * 10);
        for (number, job) in model.jobs.iter().enumerate() {
            let followed = follower.state(JobNumber(number as u64));
            // What is due is brought by the clock, of which a follower hears nothing.
            let is_due = followed == JobState::Delayed && job.state == State::Ready;
            prop_assert!(is_due || followed == machine.state(JobNumber(number as u64)));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn it_does_what_a_list_would(
        poison in prop::sample::select(vec![Poison::Skip, Poison::Park, Poison::Block]),
        ops in prop::collection::vec(op(), 1..250),
    ) {
        check(poison, &ops)?;
    }
}

#[test]
fn the_wait_for_another_attempt_is_from_a_second_to_five_minutes() {
    let machine = Machine::new(QueueOptions::default(), 0);
    for failed in 1..64 {
        let longest = Duration::from_secs((1u64 << failed.min(20)).min(300));
        assert_eq!(machine.backoff(failed, 0), Duration::from_secs(1));
        assert!(machine.backoff(failed, u64::MAX) <= longest);
        assert!(machine.backoff(failed, u64::MAX) > longest.mul_f64(0.99));
    }
}

#[test]
fn a_delayed_job_that_was_leased_has_its_key_after_a_crash_too() {
    let options = options(Poison::Skip);
    let (mut machine, mut follower) = (Machine::new(options.clone(), 1), Machine::new(options, 1));
    let push = |sequence, delay| {
        let op = PushOp {
            key: Some(0),
            id: None,
            priority: Priority::Normal,
            delay,
            expires: None,
            is_resent: false,
        };
        push_of(&op, sequence)
    };
    let credit = Credit {
        jobs: 5,
        bytes: usize::MAX,
        takes_any_first: false,
    };
    machine.push(Moment(0), push(0, 10));
    machine.tick(Moment(10), 0);
    assert_eq!(machine.lease(Moment(10), 0, 1, credit).len(), 1);
    machine.push(Moment(10), push(1, 0));
    assert!(machine.lease(Moment(10), 0, 1, credit).is_empty());
    let mut facts = Vec::new();
    machine.take_facts(&mut facts);
    for fact in &facts {
        follower.apply(Moment(10), fact);
    }
    follower.tick(Moment(10), 0);
    assert!(follower.lease(Moment(10), 0, 1, credit).is_empty());
}
