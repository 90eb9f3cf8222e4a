//! The server goes away and comes back.

use std::time::{Duration, Instant};

use bowline::once::{Bounds, Change, Clock, Store, Verdict};
use bowline::{Reason, Work};
use tokio::time::sleep;

use crate::service::Service;
use crate::subjects::*;

/// Beyond the time that an operation may take, on a machine that is busy.
const SLACK: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the store is back. An attempt is the same one however often it asks.
async fn in_the_end<S: Store>(store: &S, name: &str, change: Change) -> Verdict {
    let begun = Instant::now();
    loop {
        match store.apply(&key(name), change.clone()).await {
            Ok(verdict) => return verdict,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn a_server_that_hangs_is_an_error_in_bounded_time_and_nothing_is_begun<R: OnServer>() {
    let records = R::new(Bounds::default(), Clock::System).await;
    let store = records.store().await;
    assert_eq!(
        apply(&store, "a", Change::Begin(claim(1))).await,
        Verdict::Run
    );
    // So that what is asked next goes over a connection that there is already, into the server's queue.
    for _ in 0..20 {
        apply(&store, "a", Change::Look(age())).await;
    }
    do_to(R::SERVER, "freeze").await;
    for (name, change) in [
        ("b", Change::Begin(claim(2))),
        ("a", complete(1, "one")),
        ("c", Change::Look(age())),
    ] {
        let begun = Instant::now();
        let error = store.apply(&key(name), change).await;
        error.expect_err("it does not answer");
        assert!(
            begun.elapsed() < R::OPERATION_TIMEOUT + SLACK,
            "{:?}",
            begun.elapsed()
        );
    }
    let begun = Instant::now();
    let _ = store.watch(&key("a")).await;
    store.expire(10).await.expect_err("it does not answer");
    store.in_doubt(10).await.expect_err("it does not answer");
    assert!(begun.elapsed() < (R::OPERATION_TIMEOUT + SLACK) * 3);
    // So long that what it finds in its queue is asked by nobody any more.
    sleep(R::OPERATION_TIMEOUT).await;
    do_to(R::SERVER, "thaw").await;
    assert_eq!(
        in_the_end(&store, "a", complete(1, "one")).await,
        Verdict::Applied
    );
    let looked = in_the_end(&store, "a", Change::Look(age())).await;
    assert_eq!(looked, Verdict::Done(reply("one")));
    let late = in_the_end(&store, "b", Change::Look(age())).await;
    assert_eq!(
        late,
        Verdict::Unknown,
        "it was not begun, and is not begun late"
    );
    assert_eq!(
        in_the_end(&store, "b", Change::Begin(claim(3))).await,
        Verdict::Run
    );
}

async fn what_was_confirmed_survives_the_servers_death<R: OnServer>() {
    let records = R::new(Bounds::default(), Clock::System).await;
    let (store, other) = (records.store().await, records.store().await);
    for number in 0..20 {
        let name = number.to_string();
        assert_eq!(
            apply(&store, &name, Change::Begin(claim(1))).await,
            Verdict::Run
        );
        if number % 2 == 0 {
            assert_eq!(
                apply(&store, &name, complete(1, &name)).await,
                Verdict::Applied
            );
        }
    }
    // While others ask, so that it dies in the middle of something.
    let asking = tokio::spawn(async move {
        let mut run = Vec::new();
        for number in 100..400 {
            let name = number.to_string();
            if let Ok(Verdict::Run) = other.apply(&key(&name), Change::Begin(claim(1))).await {
                run.push(name);
            }
        }
        (other, run)
    });
    sleep(Duration::from_millis(30)).await;
    do_to(R::SERVER, "crash").await;
    for number in 0..20 {
        let name = number.to_string();
        let verdict = in_the_end(&store, &name, Change::Begin(claim(2))).await;
        match verdict {
            Verdict::Done(outcome) if number % 2 == 0 => assert_eq!(outcome, reply(&name)),
            Verdict::InFlight { .. } if number % 2 == 1 => {}
            other => panic!("{number}: {other:?}"),
        }
    }
    let (other, run) = asking.await.expect("no panic");
    for name in run {
        let verdict = in_the_end(&other, &name, Change::Begin(claim(2))).await;
        assert!(
            matches!(verdict, Verdict::InFlight { .. }),
            "{name}: {verdict:?}"
        );
    }
    // Whoever watches hears of outcomes again.
    assert_eq!(
        in_the_end(&store, "1", complete(1, "late")).await,
        Verdict::Applied
    );
    let looked = in_the_end(&other, "1", Change::Begin(claim(2))).await;
    assert_eq!(looked, Verdict::Done(reply("late")));
}

async fn a_service_whose_store_is_away_begins_nothing_and_goes_on_with_the_rest<R: OnServer>() {
    let records = R::new(Bounds::default(), Clock::System).await;
    let service = Service::start(records.store().await).await;
    assert_eq!(service.add("before").await.expect("it is there"), 1);
    do_to(R::SERVER, "freeze").await;
    let refused = service.add("away").await.expect_err("it does not answer");
    let rest = service.total().await;
    // So long that what it finds in its queue is asked by nobody any more.
    sleep(R::OPERATION_TIMEOUT).await;
    do_to(R::SERVER, "thaw").await;
    assert_eq!(
        (refused.reason(), refused.work()),
        (Some(Reason::StoreUnavailable), Work::NotDone)
    );
    assert_eq!(rest.expect("that keeps nothing"), 1, "nothing was begun");
    let begun = Instant::now();
    while let Err(status) = service.add("away").await {
        assert_eq!(status.reason(), Some(Reason::StoreUnavailable), "{status}");
        assert!(begun.elapsed() < PATIENCE, "{status}");
    }
    assert_eq!(service.total().await.expect("as before"), 2);
}

/// 24 callers, for longer than an operation may take, while the server hangs or is not there at all.
async fn every_caller_of_a_store_that_is_away_is_told_so_and_nothing_was_done<R: OnServer>() {
    let records = R::new(Bounds::default(), Clock::System).await;
    let service = std::sync::Arc::new(Service::start(records.store().await).await);
    assert_eq!(service.add("before").await.expect("it is there"), 1);
    let mut asked = 0;
    for (away, back) in [("freeze", "thaw"), ("kill", "start")] {
        do_to(R::SERVER, away).await;
        let begun = Instant::now();
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..24 {
            let service = std::sync::Arc::clone(&service);
            callers.spawn(async move {
                let mut keys = Vec::new();
                while begun.elapsed() < R::OPERATION_TIMEOUT * 2 {
                    let key = format!("{away} {caller}/{}", keys.len());
                    let status = service.add(&key).await.expect_err("it is away");
                    assert_eq!(
                        (status.reason(), status.work()),
                        (Some(Reason::StoreUnavailable), Work::NotDone),
                        "{status}"
                    );
                    keys.push(key);
                    sleep(Duration::from_millis(20)).await;
                }
                keys
            });
        }
        let keys: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
        do_to(R::SERVER, back).await;
        // What may have been begun unheard was given back: nothing is in doubt.
        for key in keys.iter().rev().take(50) {
            asked += 1;
            let begun = Instant::now();
            while let Err(status) = service.add(key).await {
                assert_eq!(status.reason(), Some(Reason::StoreUnavailable), "{status}");
                assert!(begun.elapsed() < PATIENCE, "{status}");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    assert_eq!(service.total().await.expect("as before"), 1 + asked);
}

/// A standby that commits wait for, and that is not there for longer than an operation may take.
#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_commit_waits_is_given_back_in_the_end() {
    use bowline::RequestKey;
    use bowline::once::Once;
    let _alone = alone().await;
    let records = Postgres::new(Bounds::default(), Clock::System).await;
    let builder = records.builder().operation_timeout(Duration::from_secs(1));
    let store = builder
        .connect(&url("BOWLINE_POSTGRES"))
        .await
        .expect("connected");
    let lease = Duration::from_secs(4);
    let once = Once::builder()
        .lease(lease)
        .build(store)
        .expect("good terms");
    let connected = tokio_postgres::connect(&url("BOWLINE_POSTGRES"), tokio_postgres::NoTls).await;
    let (admin, driver) = connected.expect("connected");
    tokio::spawn(driver);
    let wait_for = async |standby: &str| {
        let set = format!("alter system set synchronous_standby_names = '{standby}'");
        admin.batch_execute(&set).await.expect("set");
        let reload = "select pg_reload_conf()";
        admin.batch_execute(reload).await.expect("reloaded");
        sleep(Duration::from_millis(500)).await;
    };
    let run = |number: u32| {
        let once = once.clone();
        async move {
            let key = RequestKey::new(number.to_string()).expect("short");
            once.run::<String, _, _>(("pay", key), || async { Ok("paid".into()) })
                .await
        }
    };
    run(0).await.expect("it is there");
    wait_for("away").await;
    let mut callers = tokio::task::JoinSet::new();
    for number in 1..=20 {
        callers.spawn(run(number));
    }
    let ended = callers.join_all().await;
    sleep(Duration::from_secs(1)).await;
    wait_for("").await;
    for status in ended.into_iter().filter_map(Result::err) {
        assert_eq!(status.reason(), Some(Reason::StoreUnavailable), "{status}");
    }
    for number in 1..=20 {
        let begun = Instant::now();
        while let Err(status) = run(number).await {
            assert_eq!(status.reason(), Some(Reason::StoreUnavailable), "{status}");
            assert!(begun.elapsed() < PATIENCE, "{status}");
            sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(once.in_doubt(100).await.expect("there"), []);
}

macro_rules! over_servers {
    ($store:ident $records:ident: $($test:ident)*) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    let _alone = crate::subjects::alone().await;
                    super::$test::<crate::subjects::$records>().await;
                }
            )*
        }
    };
}

#[cfg(feature = "postgres")]
over_servers! { postgres Postgres:
    a_server_that_hangs_is_an_error_in_bounded_time_and_nothing_is_begun
    a_service_whose_store_is_away_begins_nothing_and_goes_on_with_the_rest
    every_caller_of_a_store_that_is_away_is_told_so_and_nothing_was_done
    what_was_confirmed_survives_the_servers_death
}

#[cfg(feature = "redis")]
over_servers! { redis Redis:
    a_server_that_hangs_is_an_error_in_bounded_time_and_nothing_is_begun
    a_service_whose_store_is_away_begins_nothing_and_goes_on_with_the_rest
    every_caller_of_a_store_that_is_away_is_told_so_and_nothing_was_done
    what_was_confirmed_survives_the_servers_death
}
