//! Records against what was promised of them, and what makes two requests the same.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[tokio::test]
async fn a_key_is_the_same_for_parameters_that_mean_the_same() {
    use crate::message::{Limits, Link, Plain};
    let limits = Limits::default();
    let link = Link::<String>::default();
    let plain = Fingerprint::of_parameters(&link.to_bytes().expect("encoded"), &limits);
    // The same, from a program whose schema has a word and a pointer more, which nobody set.
    let mut longer = vec![0u8; 8 * 9];
    longer[4] = 8;
    longer[8..16].copy_from_slice(&[0, 0, 0, 0, 3, 0, 4, 0]);
    let newer = Fingerprint::of_parameters(&Bytes::from(longer), &limits);
    assert_eq!(plain.expect("a message"), newer.expect("a message"));
}

proptest! {
    #[test]
    fn any_bytes_have_a_fingerprint_or_are_refused(
        bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..200), words in 0..24u32
    ) {
        let mut framed = [0, 0, 0, 0].to_vec();
        framed.extend(words.to_le_bytes());
        framed.extend(bytes);
        let _ = Fingerprint::of_parameters(&Bytes::from(framed), &crate::message::Limits::default());
    }
}

#[derive(Clone, Debug)]
enum Do {
    Begin { attempt: u8, body: u8, recovery: u8 },
    Renew { attempt: u8 },
    Complete { attempt: u8, outcome: u8 },
    Release { attempt: u8 },
    Doubt { attempt: u8 },
    Resolve { attempt: u8, outcome: Option<u8> },
    Look,
    Wait { seconds: u8 },
}

fn do_() -> impl Strategy<Value = Do> {
    let attempt = || 0..4u8;
    prop_oneof![
        4 => (attempt(), 0..2u8, 0..3u8).prop_map(|(attempt, body, recovery)| Do::Begin { attempt, body, recovery }),
        1 => attempt().prop_map(|attempt| Do::Renew { attempt }),
        3 => (attempt(), any::<u8>()).prop_map(|(attempt, outcome)| Do::Complete { attempt, outcome }),
        1 => attempt().prop_map(|attempt| Do::Release { attempt }),
        1 => attempt().prop_map(|attempt| Do::Doubt { attempt }),
        1 => (attempt(), any::<Option<u8>>()).prop_map(|(attempt, outcome)| Do::Resolve { attempt, outcome }),
        2 => Just(Do::Look),
        2 => (0..40u8).prop_map(|seconds| Do::Wait { seconds }),
    ]
}

fn outcome(byte: u8) -> Recorded {
    Recorded::Reply {
        outcome: Outcome::Success,
        metadata: Metadata::new(),
        body: Bytes::from(vec![byte]),
    }
}

proptest! {
    /// What was promised, checked from outside over any history of one key.
    #[test]
    fn a_record_keeps_its_promises(steps in prop::collection::vec(do_(), 1..60)) {
        const LEASE: Duration = Duration::from_secs(30);
        let mut now = Timestamp::from_milliseconds(1);
        let mut record: Option<Record> = None;
        let mut told: Option<Recorded> = None;
        let mut running: HashMap<u8, (Timestamp, Recovery)> = HashMap::new();
        let recoveries = [Recovery::InDoubt, Recovery::Rerun, Recovery::Atomic];
        let epoch = |attempt| Epoch { owner: 1, number: u64::from(attempt) };
        for step_ in steps {
            let change = match step_.clone() {
                Do::Wait { seconds } => { now = now + Duration::from_secs(seconds.into()); continue }
                Do::Begin { attempt, body, recovery } => Change::Begin(Claim {
                    epoch: epoch(attempt),
                    fingerprint: Fingerprint::of_bytes(&[body]),
                    recovery: recoveries[usize::from(recovery)],
                    lease: LEASE,
                    age: Age { created: None, retention: 24 * HOUR, clock_skew_max: Duration::ZERO },
                }),
                Do::Renew { attempt } => Change::Renew { epoch: epoch(attempt), lease: LEASE },
                Do::Complete { attempt, outcome: byte } => Change::Complete { epoch: epoch(attempt), outcome: outcome(byte), retention: 24 * HOUR },
                Do::Release { attempt } => Change::Release { epoch: epoch(attempt) },
                Do::Doubt { attempt } => Change::Doubt { epoch: epoch(attempt) },
                Do::Resolve { attempt, outcome: byte } => Change::Resolve {
                    // The last of them is whoever has it.
                    epoch: (attempt != 3).then(|| epoch(attempt)),
                    resolution: match byte {
                        Some(byte) => Resolution::Done { outcome: outcome(byte), retention: 24 * HOUR },
                        None => Resolution::NotDone,
                    },
                },
                Do::Look => Change::Look(Age { created: None, retention: 24 * HOUR, clock_skew_max: Duration::ZERO }),
            };
            let before = record.clone();
            let (verdict, write) = step(record.as_ref(), now, change);
            match write {
                Write::Nothing => {}
                Write::Put(put) => record = Some(put),
                Write::Remove => record = None,
            }
            match (&step_, &verdict) {
                (Do::Begin { attempt, .. }, Verdict::Run) => {
                    for (other, (until, recovery)) in &running {
                        prop_assert!(other == attempt || *until <= now, "two run at once");
                        prop_assert!(other == attempt || *recovery != Recovery::InDoubt, "silently run again");
                    }
                    prop_assert!(told.is_none(), "run again after it was done");
                    let recovery = record.as_ref().map(|record| record.recovery).unwrap_or_default();
                    running = HashMap::from([(*attempt, (now + LEASE, recovery))]);
                }
                (Do::Renew { attempt }, Verdict::Applied) => {
                    running.get_mut(attempt).expect("only who runs renews").0 = now + LEASE;
                }
                (Do::Complete { attempt, outcome: byte }, Verdict::Applied) => {
                    let late = told.is_some();
                    prop_assert!(
                        matches!(&record, Some(Record { state: State::Done { outcome: recorded, .. }, .. }) if *recorded == outcome(*byte)),
                        "it may tell what is not recorded"
                    );
                    prop_assert!(late || running.contains_key(attempt), "fencing");
                    if let (None, Some(Record { state: State::Done { outcome, .. }, .. })) = (&told, &record) {
                        told = Some(outcome.clone());
                    }
                    running.clear();
                }
                (Do::Resolve { attempt, .. }, Verdict::Applied) => {
                    let of = before.map(|before| before.epoch);
                    prop_assert!(*attempt == 3 || of == Some(epoch(*attempt)), "a doubt that nobody looked into");
                    prop_assert!(running.values().all(|(until, _)| *until <= now), "it was running");
                    running.clear();
                    if let Some(Record { state: State::Done { outcome, .. }, .. }) = &record {
                        told = Some(outcome.clone());
                    }
                }
                (Do::Release { attempt }, Verdict::Applied) => { running.remove(attempt); }
                // It has ended, and can still say the truth. Where it is released, an earlier one was begun.
                (Do::Doubt { attempt }, Verdict::Applied)
                | (Do::Release { attempt }, Verdict::InDoubt { .. }) => {
                    running.get_mut(attempt).expect("only who ran doubts").0 = now;
                }
                (_, Verdict::Done(outcome)) => {
                    prop_assert_eq!(Some(outcome), told.as_ref(), "everyone is told the same");
                }
                (Do::Begin { body, .. }, Verdict::KeyReused) => {
                    let before = before.expect("there is one to clash with");
                    prop_assert_ne!(before.fingerprint, Fingerprint::of_bytes(&[*body]));
                }
                _ => {}
            }
        }
    }
}
