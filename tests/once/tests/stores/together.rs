//! Many callers at once, over several stores that share their records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline::once::{Bounds, Change, Clock, Store, Verdict};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::subjects::*;

over_all_stores! {
    of_64_that_begin_at_once_one_runs
    of_64_that_take_over_at_once_one_runs
    stores_of_one_set_of_records_can_be_opened_at_once
    whoever_watches_is_woken_by_the_outcome
    to_watch_what_is_not_in_flight_is_not_to_wait
}

const STORES: usize = 4;
const CALLERS: usize = 64;

async fn stores<R: Records>(records: &R) -> Vec<R::Store> {
    let mut stores = Vec::new();
    for _ in 0..STORES {
        stores.push(records.store().await);
    }
    stores
}

/// How many of those who ask at once are told to run. The others are told that it is in flight.
async fn run_at_once<S: Store + Clone>(
    stores: &[S],
    name: &str,
    claim: impl Fn(u64) -> bowline::once::Claim,
) -> usize {
    let barrier = Arc::new(Barrier::new(CALLERS));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (store, barrier) = (stores[caller % STORES].clone(), Arc::clone(&barrier));
        let (key, begin) = (key(name), Change::Begin(claim(caller as u64)));
        callers.spawn(async move {
            barrier.wait().await;
            store.apply(&key, begin).await.expect("there")
        });
    }
    let mut run = 0;
    for verdict in callers.join_all().await {
        match verdict {
            Verdict::Run => run += 1,
            Verdict::InFlight { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    run
}

async fn of_64_that_begin_at_once_one_runs<R: Records>() {
    let records = R::new(Bounds::default(), Clock::System).await;
    let stores = stores(&records).await;
    for round in 0..10 {
        assert_eq!(run_at_once(&stores, &round.to_string(), claim).await, 1);
    }
}

async fn of_64_that_take_over_at_once_one_runs<R: Records>() {
    let hands = Hands::new();
    let records = R::new(Bounds::default(), hands.clock()).await;
    let stores = stores(&records).await;
    for round in 0..10 {
        let name = round.to_string();
        let dead = rerun(1_000);
        assert_eq!(
            apply(&stores[0], &name, Change::Begin(dead)).await,
            Verdict::Run
        );
        hands.forward(LEASE);
        assert_eq!(run_at_once(&stores, &name, rerun).await, 1);
    }
}

async fn stores_of_one_set_of_records_can_be_opened_at_once<R: Records>() {
    let records = Arc::new(R::new(Bounds::default(), Clock::System).await);
    let mut opening = JoinSet::new();
    for _ in 0..8 {
        let records = Arc::clone(&records);
        opening.spawn(async move { records.store().await });
    }
    let stores = opening.join_all().await;
    assert_eq!(
        apply(&stores[0], "a", Change::Begin(claim(1))).await,
        Verdict::Run
    );
    for store in &stores[1..] {
        let other = apply(store, "a", Change::Begin(claim(2))).await;
        assert!(matches!(other, Verdict::InFlight { .. }), "{other:?}");
    }
}

async fn whoever_watches_is_woken_by_the_outcome<R: Records>() {
    let records = R::new(Bounds::default(), Clock::System).await;
    let stores = stores(&records).await;
    let mut fastest = Duration::MAX;
    for round in 0..5 {
        let name = round.to_string();
        assert_eq!(
            apply(&stores[0], &name, Change::Begin(claim(1))).await,
            Verdict::Run
        );
        let mut watching = JoinSet::new();
        for store in &stores {
            let (store, key) = (store.clone(), key(&name));
            watching.spawn(async move {
                loop {
                    store.watch(&key).await.expect("there");
                    let look = store.apply(&key, Change::Look(age())).await;
                    if let Verdict::Done(outcome) = look.expect("there") {
                        return (outcome, Instant::now());
                    }
                }
            });
        }
        // One who gives up disturbs nobody.
        let _ = timeout(Duration::from_millis(10), stores[1].watch(&key(&name))).await;
        sleep(Duration::from_millis(150)).await;
        let done = Instant::now();
        assert_eq!(
            apply(&stores[0], &name, complete(1, "one")).await,
            Verdict::Applied
        );
        for (outcome, at) in watching.join_all().await {
            assert_eq!(outcome, reply("one"));
            fastest = fastest.min(at.saturating_duration_since(done));
        }
    }
    // A look once a second would do, too; one of twenty must have been told.
    assert!(fastest < Duration::from_millis(300), "{fastest:?}");
}

async fn to_watch_what_is_not_in_flight_is_not_to_wait<R: Records>() {
    let records = R::new(Bounds::default(), Clock::System).await;
    let store = records.store().await;
    assert_eq!(
        apply(&store, "done", Change::Begin(claim(1))).await,
        Verdict::Run
    );
    assert_eq!(
        apply(&store, "done", complete(1, "x")).await,
        Verdict::Applied
    );
    for name in ["done", "nothing"] {
        let watch = timeout(Duration::from_secs(20), store.watch(&key(name))).await;
        watch.expect("at once").expect("there");
    }
}
