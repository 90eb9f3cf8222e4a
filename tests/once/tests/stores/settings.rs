//! What a Redis has to be set to, and what it has when all is forgotten.

use bowline::once::{Bounds, Change, Clock, Durability, Store, Verdict};

use crate::subjects::*;

async fn connection() -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(url("BOWLINE_REDIS")).expect("a URL");
    let connection = client.get_multiplexed_async_connection().await;
    connection.expect("there")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_forget_is_refused_unless_that_is_accepted() {
    let _alone = alone().await;
    let mut connection = connection().await;
    let mut set = async |setting: &str, to: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg(setting).arg(to);
        let set: () = command.query_async(&mut connection).await.expect("set");
        set
    };
    let records = Redis::new(Bounds::default(), Clock::System).await;
    let connect = async |durability| {
        let url = url("BOWLINE_REDIS");
        records.builder().connect(&url, durability).await
    };
    for (setting, good, bad) in [
        ("appendfsync", "always", "everysec"),
        ("no-appendfsync-on-rewrite", "no", "yes"),
        ("maxmemory-policy", "noeviction", "volatile-lru"),
        ("appendonly", "yes", "no"),
    ] {
        set(setting, bad).await;
        let refused = connect(Durability::RequireFsync).await;
        let accepted = connect(Durability::AcceptLoss).await;
        set(setting, good).await;
        let error = refused.map(|_| ()).expect_err(setting);
        assert!(error.reason.contains(setting), "{error}");
        accepted.expect("that was accepted");
    }
    connect(Durability::RequireFsync)
        .await
        .expect("all is well");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_is_over_nothing_is_left() {
    let _undisturbed = undisturbed().await;
    let hands = Hands::new();
    let records = Redis::new(Bounds::default(), hands.clock()).await;
    let store = records.store().await;
    for number in 0..20 {
        let name = number.to_string();
        assert_eq!(
            apply(&store, &name, Change::Begin(claim(1))).await,
            Verdict::Run
        );
        let end = match number % 4 {
            0 => Change::Release { epoch: epoch(1) },
            _ => complete(1, &name),
        };
        assert_eq!(apply(&store, &name, end).await, Verdict::Applied);
    }
    // One has expired by itself, before anybody has counted it out.
    let mut connection = connection().await;
    let prefix = &records.prefix;
    let mut delete = redis::cmd("DEL");
    let first = [format!("{prefix}:record:").as_bytes(), key("1").as_bytes()].concat();
    let deleted: u64 = delete
        .arg(first)
        .query_async(&mut connection)
        .await
        .expect("there");
    assert_eq!(deleted, 1);
    assert_eq!(
        apply(&store, "1", Change::Begin(rerun(2))).await,
        Verdict::Run
    );
    hands.forward(LEASE + DAY);
    assert_eq!(store.expire(usize::MAX).await.expect("there"), 16);
    let mut keys = redis::cmd("KEYS");
    let left: Vec<String> = keys
        .arg(format!("{prefix}:*"))
        .query_async(&mut connection)
        .await
        .expect("there");
    assert_eq!(left, [format!("{prefix}:totals")]);
    let mut totals = redis::cmd("HVALS");
    let totals: Vec<i64> = totals
        .arg(&left[0])
        .query_async(&mut connection)
        .await
        .expect("there");
    assert_eq!(totals, [0, 0]);
}
