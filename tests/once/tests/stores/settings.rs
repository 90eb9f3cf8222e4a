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

/// As docs/stores.md lists them.
const COMMANDS: &str = "+hello +eval +evalsha +script|load +time +config|get \
    +hget +hmget +hset +hincrby +del +pexpire +pttl +get +set \
    +zadd +zrem +zincrby +zrange +zrevrange +zrangebyscore +zscore +publish +subscribe";

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_the_listed_permissions_is_enough() {
    let _undisturbed = undisturbed().await;
    let hands = Hands::new();
    let bounds = Bounds::default().with_records_max(2);
    let records = Redis::new(bounds, hands.clock()).await;
    let (prefix, user) = (&records.prefix, fresh_name());
    let mut set = redis::cmd("ACL");
    set.arg("SETUSER")
        .arg(&user)
        .arg("on")
        .arg(">secret")
        .arg("-@all");
    set.arg(format!("~{prefix}:*"))
        .arg(format!("&{prefix}:changed"));
    for command in COMMANDS.split_whitespace() {
        set.arg(command);
    }
    let mut connection = connection().await;
    let _: () = set.query_async(&mut connection).await.expect("set");
    let url = url("BOWLINE_REDIS").replace("redis://", &format!("redis://{user}:secret@"));
    let store = records
        .builder()
        .connect(&url, Durability::RequireFsync)
        .await;
    let store = store.expect("connected");
    for name in ["a", "b", "c"] {
        assert_eq!(
            apply(&store, name, Change::Begin(claim(1))).await,
            Verdict::Run
        );
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { store.watch(&key(name)).await }
        });
        assert_eq!(
            apply(&store, name, complete(1, "x")).await,
            Verdict::Applied
        );
        waiting.await.expect("no panic").expect("there");
        hands.forward(std::time::Duration::from_secs(1));
    }
    assert_eq!(
        store.usage().forgotten_early,
        1,
        "what makes room is permitted too"
    );
    store.in_doubt(10).await.expect("there");
    store.expire(10).await.expect("there");
}
