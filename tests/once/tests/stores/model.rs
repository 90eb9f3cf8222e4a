//! Each store against a map and [`step`]: the same verdicts, whatever is asked in whatever order.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bowline::once::{Bounds, Change, Claim, Fingerprint, Record, Resolution, State, Write, step};
use bowline::schema::Recovery;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::subjects::*;

#[derive(Clone, Debug)]
enum Do {
    Begin {
        attempt: u64,
        body: u8,
        recovery: Recovery,
        lease: Duration,
    },
    Renew(u64),
    Complete(u64, u8),
    Release(u64),
    Doubt(u64),
    Resolve(Option<u8>),
    Look,
    Wait(Duration),
}

fn do_() -> impl Strategy<Value = Do> {
    let attempt = || 0..4u64;
    let recovery = prop_oneof![
        Just(Recovery::InDoubt),
        Just(Recovery::Rerun),
        Just(Recovery::Atomic)
    ];
    let lease = prop_oneof![9 => Just(LEASE), 1 => Just(Duration::ZERO), 1 => Just(Duration::MAX)];
    prop_oneof![
        4 => (attempt(), 0..2u8, recovery, lease).prop_map(|(attempt, body, recovery, lease)| {
            Do::Begin { attempt, body, recovery, lease }
        }),
        1 => attempt().prop_map(Do::Renew),
        3 => (attempt(), any::<u8>()).prop_map(|(attempt, body)| Do::Complete(attempt, body)),
        1 => attempt().prop_map(Do::Release),
        1 => attempt().prop_map(Do::Doubt),
        1 => any::<Option<u8>>().prop_map(Do::Resolve),
        2 => Just(Do::Look),
        2 => (0..40u64).prop_map(|seconds| Do::Wait(Duration::from_secs(seconds))),
    ]
}

fn change(do_: &Do) -> Option<Change> {
    Some(match do_.clone() {
        Do::Wait(_) => return None,
        Do::Begin {
            attempt,
            body,
            recovery,
            lease,
        } => Change::Begin(Claim {
            fingerprint: Fingerprint::of_bytes(&[body]),
            recovery,
            lease,
            ..claim(attempt)
        }),
        Do::Renew(attempt) => Change::Renew {
            epoch: epoch(attempt),
            lease: LEASE,
        },
        Do::Complete(attempt, body) => complete(attempt, &format!("{body}")),
        Do::Release(attempt) => Change::Release {
            epoch: epoch(attempt),
        },
        Do::Doubt(attempt) => Change::Doubt {
            epoch: epoch(attempt),
        },
        Do::Resolve(None) => Change::Resolve {
            epoch: None,
            resolution: Resolution::NotDone,
        },
        Do::Resolve(Some(body)) => Change::Resolve {
            // Some are of one attempt, some of whoever has it.
            epoch: (body % 2 == 0).then(|| epoch(u64::from(body / 2 % 4))),
            resolution: Resolution::Done {
                outcome: reply(&format!("{body}")),
                retention: DAY,
            },
        },
        Do::Look => Change::Look(age()),
    })
}

fn is_in_doubt(record: &Record, hands: &Hands) -> bool {
    match record.state {
        State::InDoubt => true,
        State::InFlight { until } => until <= hands.now() && record.recovery == Recovery::InDoubt,
        State::Done { .. } => false,
    }
}

/// A lease that never ends is as long as a store can say, which is not the same for all.
fn alike(verdict: bowline::once::Verdict) -> bowline::once::Verdict {
    use bowline::once::{Timestamp, Verdict};
    let beyond = Timestamp::EPOCH + DAY * 365 * 1000;
    match verdict {
        Verdict::InFlight { until } if until > beyond => Verdict::InFlight { until: beyond },
        other => other,
    }
}

fn the_store_does_what_the_model_does<R: Records>(histories: u32) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hands = Hands::new();
    let store = runtime.block_on(async {
        let records = R::new(Bounds::default(), hands.clock()).await;
        let store = records.store().await;
        (store, records)
    });
    let (store, _records) = store;
    let history = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: histories,
        failure_persistence: None,
        ..Config::default()
    });
    let keys = 0..3usize;
    let steps = prop::collection::vec((keys, do_()), 1..60);
    let checked = runner.run(&steps, |steps| {
        history.set(history.get() + 1);
        let name = |index: usize| format!("{}/{index}", history.get());
        let mut model: HashMap<usize, Record> = HashMap::new();
        runtime.block_on(async {
            for (index, do_) in steps {
                let Some(change) = change(&do_) else {
                    if let Do::Wait(time) = do_ {
                        hands.forward(time);
                    }
                    continue;
                };
                let (expected, write) = step(model.get(&index), hands.now(), change.clone());
                let verdict = apply(&store, &name(index), change).await;
                prop_assert_eq!(alike(verdict), alike(expected), "{:?}", do_);
                match write {
                    Write::Nothing => {}
                    Write::Put(record) => {
                        model.insert(index, record);
                    }
                    Write::Remove => {
                        model.remove(&index);
                    }
                }
            }
            let in_doubt = bowline::once::Store::in_doubt(&store, 1_000_000).await;
            let in_doubt: HashSet<_> = in_doubt.expect("it is there").into_iter().collect();
            for index in 0..3 {
                let expected = model
                    .get(&index)
                    .is_some_and(|record| is_in_doubt(record, &hands));
                prop_assert_eq!(in_doubt.contains(&key(&name(index))), expected);
            }
            Ok(())
        })
    });
    checked.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn memory_does_what_the_model_does() {
    the_store_does_what_the_model_does::<Memory>(256);
}

#[test]
fn redb_does_what_the_model_does() {
    the_store_does_what_the_model_does::<Redb>(16);
}

#[cfg(feature = "postgres")]
#[test]
fn postgres_does_what_the_model_does() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _undisturbed = runtime.block_on(undisturbed());
    the_store_does_what_the_model_does::<Postgres>(48);
}

#[cfg(feature = "redis")]
#[test]
fn redis_does_what_the_model_does() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _undisturbed = runtime.block_on(undisturbed());
    the_store_does_what_the_model_does::<Redis>(48);
}
