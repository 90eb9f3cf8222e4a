//! One caller at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use bowline::once::{
    Age, Bounds, Change, Claim, Clock, Key, Recorded, Resolution, Store, Verdict, WhenFull,
};
use bowline::{Metadata, RequestKey, call::Outcome};
use bytes::Bytes;

use crate::subjects::*;

over_all_stores! {
    a_reply_comes_back_byte_for_byte
    asking_again_with_the_same_epoch_is_safe
    a_superseded_attempt_changes_nothing
    what_is_over_is_forgotten
    what_is_abandoned_is_forgotten_in_the_end
    a_key_that_is_too_old_or_not_yet_possible_is_refused
    what_is_in_doubt_is_listed_until_it_is_resolved
    a_full_store_refuses_new_keys_and_forgets_none
    a_full_store_forgets_the_oldest_outcome
    what_was_forgotten_early_is_not_run_again
    one_principal_does_not_fill_the_store_for_others
    leases_are_renewed_many_at_once
    a_change_whose_future_is_dropped_can_be_asked_again
    times_of_the_stores_own_clock_are_about_now
}

async fn store<R: Records>(bounds: Bounds, clock: Clock) -> (R, R::Store) {
    let records = R::new(bounds, clock).await;
    let store = records.store().await;
    (records, store)
}

fn refusing() -> Bounds {
    Bounds::default().with_when_full(WhenFull::Refuse)
}

async fn a_reply_comes_back_byte_for_byte<R: Records>() {
    let (_records, store) = store::<R>(Bounds::default(), Clock::System).await;
    let mut metadata = Metadata::new();
    metadata
        .insert("colour", Bytes::from_static(b"\x00\xff"))
        .expect("short");
    let with_metadata = Recorded::Reply {
        outcome: Outcome::ApplicationError,
        metadata,
        body: Bytes::from((0..=255).collect::<Vec<u8>>()),
    };
    let outcomes = [
        with_metadata,
        reply(""),
        Recorded::new(&large(1 << 20), 1 << 20),
        Recorded::new(&large((1 << 20) + 1), 1 << 20),
    ];
    for (number, outcome) in outcomes.into_iter().enumerate() {
        let name = number.to_string();
        assert_eq!(
            apply(&store, &name, Change::Begin(claim(1))).await,
            Verdict::Run
        );
        let done = Change::Complete {
            epoch: epoch(1),
            outcome: outcome.clone(),
            retention: DAY,
        };
        assert_eq!(apply(&store, &name, done).await, Verdict::Applied);
        let replayed = apply(&store, &name, Change::Begin(claim(2))).await;
        assert_eq!(replayed, Verdict::Done(outcome.clone()));
        let looked = apply(&store, &name, Change::Look(age())).await;
        assert_eq!(looked, Verdict::Done(outcome));
    }
}

async fn asking_again_with_the_same_epoch_is_safe<R: Records>() {
    let (_records, store) = store::<R>(Bounds::default(), Clock::System).await;
    for _ in 0..3 {
        assert_eq!(
            apply(&store, "a", Change::Begin(claim(1))).await,
            Verdict::Run
        );
    }
    for _ in 0..3 {
        assert_eq!(
            apply(&store, "a", complete(1, "one")).await,
            Verdict::Applied
        );
    }
    let looked = apply(&store, "a", Change::Look(age())).await;
    assert_eq!(looked, Verdict::Done(reply("one")));
    for (expected, change) in [
        (Verdict::Run, Change::Begin(claim(2))),
        (Verdict::Applied, Change::Release { epoch: epoch(2) }),
        (Verdict::Superseded, Change::Release { epoch: epoch(2) }),
    ] {
        assert_eq!(apply(&store, "b", change).await, expected);
    }
}

async fn a_superseded_attempt_changes_nothing<R: Records>() {
    let hands = Hands::new();
    let (_records, store) = store::<R>(Bounds::default(), hands.clock()).await;
    assert_eq!(
        apply(&store, "a", Change::Begin(rerun(1))).await,
        Verdict::Run
    );
    hands.forward(LEASE);
    assert_eq!(
        apply(&store, "a", Change::Begin(rerun(2))).await,
        Verdict::Run
    );
    for change in [
        complete(1, "late"),
        Change::Release { epoch: epoch(1) },
        Change::Doubt { epoch: epoch(1) },
        Change::Renew {
            epoch: epoch(1),
            lease: LEASE,
        },
    ] {
        assert_eq!(apply(&store, "a", change).await, Verdict::Superseded);
    }
    assert_eq!(
        apply(&store, "a", complete(2, "in time")).await,
        Verdict::Applied
    );
    let looked = apply(&store, "a", Change::Look(age())).await;
    assert_eq!(looked, Verdict::Done(reply("in time")));
}

async fn what_is_over_is_forgotten<R: Records>() {
    let hands = Hands::new();
    let bounds = refusing().with_records_max(5);
    let (_records, store) = store::<R>(bounds, hands.clock()).await;
    for number in 0..5 {
        let name = number.to_string();
        assert_eq!(
            apply(&store, &name, Change::Begin(claim(1))).await,
            Verdict::Run
        );
        assert_eq!(
            apply(&store, &name, complete(1, "one")).await,
            Verdict::Applied
        );
    }
    hands.forward(DAY - Duration::from_secs(1));
    assert_eq!(store.expire(100).await.expect("there"), 0);
    let kept = apply(&store, "0", Change::Look(age())).await;
    assert_eq!(kept, Verdict::Done(reply("one")));
    hands.forward(Duration::from_secs(1));
    let over = apply(&store, "0", Change::Look(age())).await;
    assert_eq!(over, Verdict::Unknown, "whether or not it is forgotten yet");
    store.expire(2).await.expect("there");
    while store.expire(100).await.expect("there") > 0 {}
    // There is room again for as many, and a key is as if it had never been used.
    for number in 0..5 {
        let other = Claim {
            fingerprint: bowline::once::Fingerprint::of_bytes(b"other parameters"),
            ..claim(2)
        };
        let begun = apply(&store, &number.to_string(), Change::Begin(other)).await;
        assert_eq!(begun, Verdict::Run);
    }
}

async fn what_is_abandoned_is_forgotten_in_the_end<R: Records>() {
    let hands = Hands::new();
    let bounds = refusing().with_records_max(2);
    let (_records, store) = store::<R>(bounds, hands.clock()).await;
    assert_eq!(
        apply(&store, "rerun", Change::Begin(rerun(1))).await,
        Verdict::Run
    );
    assert_eq!(
        apply(&store, "in doubt", Change::Begin(claim(1))).await,
        Verdict::Run
    );
    hands.forward(LEASE + DAY);
    while store.expire(100).await.expect("there") > 0 {}
    assert_eq!(
        apply(&store, "third", Change::Begin(claim(3))).await,
        Verdict::Run
    );
    let doubted = apply(&store, "in doubt", Change::Begin(claim(2))).await;
    assert_eq!(doubted, Verdict::InDoubt { epoch: epoch(1) });
    let superseded = apply(&store, "rerun", complete(1, "late")).await;
    assert_eq!(superseded, Verdict::Superseded);
}

async fn a_key_that_is_too_old_or_not_yet_possible_is_refused<R: Records>() {
    let hands = Hands::new();
    let (_records, store) = store::<R>(Bounds::default(), hands.clock()).await;
    let skew = age().clock_skew_max;
    hands.forward(DAY);
    let from = |created| Claim {
        age: Age {
            created: Some(created),
            ..age()
        },
        ..claim(1)
    };
    let now = hands.now().milliseconds();
    let at = |offset: i64| {
        bowline::once::Timestamp::from_milliseconds(now.saturating_add_signed(offset))
    };
    let (day, skew) = (DAY.as_millis() as i64, skew.as_millis() as i64);
    for (name, created, expected) in [
        ("old", -day, Verdict::KeyExpired),
        (
            "as old as the skew leaves",
            -day + skew,
            Verdict::KeyExpired,
        ),
        ("just young enough", -day + skew + 1, Verdict::Run),
        ("ahead", skew, Verdict::Run),
        ("too far ahead", skew + 1, Verdict::KeyFromFuture),
    ] {
        let begun = apply(&store, name, Change::Begin(from(at(created)))).await;
        assert_eq!(begun, expected, "{name}");
    }
}

async fn what_is_in_doubt_is_listed_until_it_is_resolved<R: Records>() {
    let hands = Hands::new();
    let (_records, store) = store::<R>(Bounds::default(), hands.clock()).await;
    let names = ["doubted", "dead", "running", "rerun", "done"];
    for name in names {
        let claim = if name == "rerun" { rerun(1) } else { claim(1) };
        assert_eq!(
            apply(&store, name, Change::Begin(claim)).await,
            Verdict::Run
        );
    }
    let doubt = Change::Doubt { epoch: epoch(1) };
    assert_eq!(apply(&store, "doubted", doubt).await, Verdict::Applied);
    assert_eq!(
        apply(&store, "done", complete(1, "x")).await,
        Verdict::Applied
    );
    hands.forward(LEASE - Duration::from_secs(1));
    let renew = Change::Renew {
        epoch: epoch(1),
        lease: LEASE,
    };
    assert_eq!(apply(&store, "running", renew).await, Verdict::Applied);
    hands.forward(Duration::from_secs(1));
    let in_doubt = async |max| -> BTreeSet<_> {
        store
            .in_doubt(max)
            .await
            .expect("there")
            .into_iter()
            .collect()
    };
    let both = BTreeSet::from([key("doubted"), key("dead")]);
    assert_eq!(in_doubt(10).await, both);
    assert_eq!(in_doubt(1).await.len(), 1);

    let found = |attempt| Change::Resolve {
        epoch: Some(epoch(attempt)),
        resolution: Resolution::Done {
            outcome: reply("as found in the ledger"),
            retention: HOUR,
        },
    };
    assert_eq!(
        apply(&store, "dead", found(7)).await,
        Verdict::Superseded,
        "it was looked into for another attempt"
    );
    assert_eq!(apply(&store, "dead", found(1)).await, Verdict::Applied);
    let not_done = Change::Resolve {
        epoch: None,
        resolution: Resolution::NotDone,
    };
    assert_eq!(
        apply(&store, "doubted", not_done.clone()).await,
        Verdict::Applied
    );
    assert_eq!(in_doubt(10).await, BTreeSet::new());
    let replayed = apply(&store, "dead", Change::Begin(claim(2))).await;
    assert_eq!(replayed, Verdict::Done(reply("as found in the ledger")));
    assert_eq!(
        apply(&store, "doubted", Change::Begin(claim(2))).await,
        Verdict::Run
    );
    let running = apply(&store, "running", not_done).await;
    assert!(matches!(running, Verdict::InFlight { .. }), "{running:?}");
}

async fn a_full_store_refuses_new_keys_and_forgets_none<R: Records>() {
    for bounds in [
        refusing().with_records_max(2),
        refusing().with_reply_bytes_max(6),
    ] {
        let (_records, store) = store::<R>(bounds, Clock::System).await;
        for name in ["a", "b"] {
            assert_eq!(
                apply(&store, name, Change::Begin(claim(1))).await,
                Verdict::Run
            );
            assert_eq!(
                apply(&store, name, complete(1, "one")).await,
                Verdict::Applied
            );
        }
        assert_eq!(
            apply(&store, "c", Change::Begin(claim(1))).await,
            Verdict::Full
        );
        for name in ["a", "b"] {
            let kept = apply(&store, name, Change::Begin(claim(2))).await;
            assert_eq!(kept, Verdict::Done(reply("one")));
        }
    }
}

async fn a_full_store_forgets_the_oldest_outcome<R: Records>() {
    let hands = Hands::new();
    let bounds = Bounds::default().with_records_max(140);
    let (_records, store) = store::<R>(bounds, hands.clock()).await;
    // What may be run again stands first of all that may be forgotten in time, and runs.
    for number in 0..100 {
        let name = format!("runs {number}");
        assert_eq!(
            apply(&store, &name, Change::Begin(rerun(1))).await,
            Verdict::Run
        );
    }
    for number in 0..200 {
        hands.forward(Duration::from_millis(10));
        let name = number.to_string();
        assert_eq!(
            apply(&store, &name, Change::Begin(claim(1))).await,
            Verdict::Run
        );
        assert_eq!(
            apply(&store, &name, complete(1, "x")).await,
            Verdict::Applied
        );
    }
    for number in 0..200 {
        let look = apply(&store, &number.to_string(), Change::Look(age())).await;
        let is_kept = matches!(look, Verdict::Done(_));
        assert_eq!(is_kept, number >= 160, "{number}");
    }
    for number in 0..100 {
        let look = apply(&store, &format!("runs {number}"), Change::Look(age())).await;
        assert!(matches!(look, Verdict::InFlight { .. }), "{look:?}");
    }
    let usage = store.usage();
    assert_eq!(usage.forgotten_early, 160);
    let retained = usage.retained.expect("some were forgotten");
    assert!(
        retained.abs_diff(Duration::from_millis(400)) <= Duration::from_millis(20),
        "{retained:?}"
    );
    assert_eq!(usage.principals[0].principal.as_deref(), Some("stores"));
    assert_eq!(usage.principals[0].forgotten_early, 160);
}

async fn what_was_forgotten_early_is_not_run_again<R: Records>() {
    let hands = Hands::new();
    let bounds = Bounds::default().with_records_max(20);
    let (_records, store) = store::<R>(bounds, hands.clock()).await;
    let call = |number: u64| {
        let now = hands.now();
        let mut random = [0; 10];
        random[..8].copy_from_slice(&number.to_be_bytes());
        let id = uuid::Builder::from_unix_timestamp_millis(now.milliseconds(), &random);
        let age = Age {
            created: Some(now),
            ..age()
        };
        (Key::of_call("ann", 7, 1, &id.into_uuid().into()), age)
    };
    let begin = |age, attempt| {
        Change::Begin(Claim {
            age,
            ..claim(attempt)
        })
    };
    let mut calls = Vec::new();
    for number in 0..100 {
        hands.forward(Duration::from_secs(1));
        let (key, age) = call(number);
        let begun = store.apply(&key, begin(age, 1)).await.expect("there");
        assert_eq!(begun, Verdict::Run, "{number}");
        let done = store.apply(&key, complete(1, "x")).await.expect("there");
        assert_eq!(done, Verdict::Applied);
        calls.push((key, age));
    }
    for (number, (key, age)) in calls.into_iter().enumerate() {
        for change in [begin(age, 2), Change::Look(age)] {
            let verdict = store.apply(&key, change).await.expect("there");
            match number < 80 {
                true => assert_eq!(verdict, Verdict::KeyExpired, "{number}"),
                false => assert_eq!(verdict, Verdict::Done(reply("x")), "{number}"),
            }
        }
    }
    // Another principal has forgotten nothing: an old key of its own is as good as ever.
    let age = Age {
        created: Some(bowline::once::Timestamp::from_milliseconds(
            hands.now().milliseconds() - 90_000,
        )),
        ..age()
    };
    let id = uuid::Builder::from_unix_timestamp_millis(
        age.created.expect("set").milliseconds(),
        &[7; 10],
    );
    let other = Key::of_call("bob", 7, 1, &id.into_uuid().into());
    let begun = store.apply(&other, begin(age, 1)).await.expect("there");
    assert_eq!(begun, Verdict::Run);
}

async fn one_principal_does_not_fill_the_store_for_others<R: Records>() {
    let hands = Hands::new();
    let bounds = Bounds::default().with_records_max(100);
    let (_records, store) = store::<R>(bounds, hands.clock()).await;
    let own = |principal: &str, number: u64| {
        let id = RequestKey::new(number.to_string()).expect("short");
        Key::of_call(principal, 7, 1, &id.into())
    };
    let call = async |key: &Key| {
        hands.forward(Duration::from_millis(1));
        let begun = store
            .apply(key, Change::Begin(claim(1)))
            .await
            .expect("there");
        assert_eq!(begun, Verdict::Run);
        let done = store.apply(key, complete(1, "x")).await.expect("there");
        assert_eq!(done, Verdict::Applied);
    };
    for number in 0..20 {
        call(&own("good", number)).await;
    }
    for number in 0..300 {
        call(&own("flood", number)).await;
    }
    for number in 0..20 {
        let look = store.apply(&own("good", number), Change::Look(age())).await;
        assert_eq!(look.expect("there"), Verdict::Done(reply("x")), "{number}");
    }
    let usage = store.usage();
    let names: Vec<_> = usage
        .principals
        .iter()
        .map(|of| of.principal.as_deref())
        .collect();
    assert_eq!(names, [Some("flood")]);
}

async fn leases_are_renewed_many_at_once<R: Records>() {
    let hands = Hands::new();
    let (_records, store) = store::<R>(Bounds::default(), hands.clock()).await;
    let mut attempts = Vec::new();
    for number in 0..50 {
        let name = number.to_string();
        let begun = apply(&store, &name, Change::Begin(claim(number))).await;
        assert_eq!(begun, Verdict::Run);
        attempts.push((key(&name), epoch(number)));
    }
    attempts.push((key("nothing"), epoch(98)));
    attempts.push((key("0"), epoch(99)));
    hands.forward(LEASE - Duration::from_secs(1));
    let verdicts = store.renew(&attempts, LEASE).await;
    for (number, verdict) in verdicts.into_iter().enumerate() {
        let expected = match number < 50 {
            true => Verdict::Applied,
            false => Verdict::Superseded,
        };
        assert_eq!(verdict.expect("there"), expected, "{number}");
    }
    hands.forward(LEASE - Duration::from_secs(1));
    assert_eq!(store.in_doubt(100).await.expect("there"), []);
}

async fn a_change_whose_future_is_dropped_can_be_asked_again<R: Records>() {
    let (_records, store) = store::<R>(Bounds::default(), Clock::System).await;
    for number in 0..40u32 {
        let name = number.to_string();
        let key = key(&name);
        let patience = Duration::from_micros(u64::from(number) * 50);
        let _ = tokio::time::timeout(patience, store.apply(&key, Change::Begin(claim(1)))).await;
        assert_eq!(
            apply(&store, &name, Change::Begin(claim(1))).await,
            Verdict::Run
        );
        let done = store.apply(&key, complete(1, "one"));
        let _ = tokio::time::timeout(patience, done).await;
        assert_eq!(
            apply(&store, &name, complete(1, "one")).await,
            Verdict::Applied
        );
        let looked = apply(&store, &name, Change::Look(age())).await;
        assert_eq!(looked, Verdict::Done(reply("one")));
    }
}

async fn times_of_the_stores_own_clock_are_about_now<R: Records>() {
    let (_records, store) = store::<R>(Bounds::default(), Clock::System).await;
    let before = bowline::once::Timestamp::now();
    assert_eq!(
        apply(&store, "a", Change::Begin(claim(1))).await,
        Verdict::Run
    );
    let Verdict::InFlight { until } = apply(&store, "a", Change::Begin(claim(2))).await else {
        panic!("it is in flight");
    };
    let lease = until.since(before);
    assert!(
        lease >= LEASE - Duration::from_millis(2) && lease < LEASE * 2,
        "{lease:?}"
    );
    assert_eq!(
        apply(
            &store,
            "short",
            Change::Begin(Claim {
                lease: Duration::from_millis(20),
                ..rerun(1)
            })
        )
        .await,
        Verdict::Run
    );
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(
        apply(&store, "short", Change::Begin(rerun(2))).await,
        Verdict::Run
    );
}
