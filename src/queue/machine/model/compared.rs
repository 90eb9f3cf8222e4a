//! Random steps of the machine and of its model, side by side; and of one more machine, which is built of nothing but the
//! facts of the first.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::super::*;
use super::*;
use crate::queue::{Identity, Poison};

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
    Cancel {
        id: u8,
    },
    Reschedule {
        id: u8,
        delay: u64,
    },
    /// The process does not run for so long.
    Stop(u64),
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
        1 => (0..6u8).prop_map(|id| Op::Cancel { id }),
        1 => (0..6u8, 0..20u64).prop_map(|(id, delay)| Op::Reschedule { id, delay }),
        1 => (1..100u64).prop_map(Op::Stop),
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
    let mut machine = Machine::new(options.clone(), 1, 7);
    // Built of nothing but the facts of the first, as after a crash.
    let mut follower = Machine::new(options.clone(), 1, 7);
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
                let told = machine.push(at, push_of(push, sequence), usize::MAX);
                prop_assert_eq!(told, model.push(now, push, sequence));
            }
            Op::Lease { session, max } => {
                let credit = Credit {
                    jobs: *max,
                    bytes: usize::MAX,
                    takes_any_first: false,
                };
                let (sent, _) = machine.lease(at, 0, *session, credit);
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
            Op::Cancel { id } => {
                let told = machine.cancel(at, Digest(u128::from(*id)));
                prop_assert_eq!(told, model.change(now, *id, None));
            }
            Op::Reschedule { id, delay } => {
                let wait = Duration::from_millis(*delay);
                let told = machine.reschedule(at, Digest(u128::from(*id)), wait);
                prop_assert_eq!(told, model.change(now, *id, Some(*delay)));
            }
            Op::Stop(milliseconds) => {
                now += milliseconds;
                let gap = Duration::from_millis(*milliseconds);
                machine.give_back(Moment(now), gap);
                model.give_back(now, *milliseconds);
            }
            Op::Wait(milliseconds) => now += milliseconds,
        }
        let mut facts = Vec::new();
        machine.take_facts(&mut facts);
        // As a log that is read back brings what was due before each fact.
        follower.bring_due(at, usize::MAX);
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
            let number = JobNumber(number as u64);
            prop_assert_eq!(follower.state(number), machine.state(number));
            if let (Some(key), State::Ready) = (job.key, job.state) {
                let key = Digest(u128::from(key));
                prop_assert_eq!(follower.head_of(0, key), machine.head_of(0, key));
            }
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
    let machine = Machine::new(QueueOptions::default(), 0, 7);
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
    let (mut machine, mut follower) = (
        Machine::new(options.clone(), 1, 7),
        Machine::new(options, 1, 7),
    );
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
    machine.push(Moment(0), push(0, 10), usize::MAX);
    machine.tick(Moment(10), 0);
    assert_eq!(machine.lease(Moment(10), 0, 1, credit).0.len(), 1);
    machine.push(Moment(10), push(1, 0), usize::MAX);
    assert!(machine.lease(Moment(10), 0, 1, credit).0.is_empty());
    let mut facts = Vec::new();
    machine.take_facts(&mut facts);
    for fact in &facts {
        follower.apply(Moment(10), fact);
    }
    follower.tick(Moment(10), 0);
    assert!(follower.lease(Moment(10), 0, 1, credit).0.is_empty());
}
