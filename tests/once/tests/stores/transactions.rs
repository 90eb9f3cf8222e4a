//! A handler's own writes and its outcome in PostgreSQL: both, or neither.

use std::time::Duration;

use bowline::once::{
    Bounds, Change, Claim, Claimed, Clock, Durability, PostgresTransaction, PostgresWrites, Store,
    Verdict,
};
use bowline::schema::Recovery;
use bowline::{Reason, Reply, Status, Work};

use crate::subjects::*;

struct Totals {
    client: tokio_postgres::Client,
    table: String,
}

impl Totals {
    async fn new() -> Self {
        let url = url("BOWLINE_POSTGRES");
        let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
        let (client, connection) = connected.expect("there");
        tokio::spawn(connection);
        let table = fresh_name();
        let create =
            format!("create table {table} (account text primary key, total bigint not null)");
        client.batch_execute(&create).await.expect("created");
        Self { client, table }
    }

    async fn total(&self, account: &str) -> i64 {
        let select = format!("select total from {} where account = $1", self.table);
        let row = self.client.query_opt(&select, &[&account]).await;
        row.expect("there").map_or(0, |row| row.get(0))
    }

    async fn add(&self, writes: &PostgresWrites, account: &str) -> Result<String, Status> {
        let table = &self.table;
        let add = format!(
            "insert into {table} values ($1, 1)
             on conflict (account) do update set total = {table}.total + 1 returning total"
        );
        let row = writes.query_one(&add, &[&account]).await;
        let total: i64 = row.map_err(Status::from_store)?.get(0);
        Ok(format!("{total}"))
    }
}

fn atomic(attempt: u64) -> Claim {
    Claim {
        recovery: Recovery::Atomic,
        ..claim(attempt)
    }
}

fn transaction<S: Store>(store: &S, name: &str, attempt: u64) -> S::Transaction {
    let claimed = Claimed {
        key: key(name),
        epoch: epoch(attempt),
        retention: DAY,
        reply_bytes_max: 1 << 20,
    };
    store.transaction(claimed).expect("it has transactions")
}

async fn commit(
    transaction: &PostgresTransaction,
    totals: &Totals,
    account: &str,
) -> Result<Reply<String>, Status> {
    let work = async |writes: PostgresWrites| totals.add(&writes, account).await;
    transaction.commit(work).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writes_and_the_outcome_commit_together_and_once() {
    let _undisturbed = undisturbed().await;
    let totals = Totals::new().await;
    let records = Postgres::new(Bounds::default(), Clock::System).await;
    let store = records.store().await;
    assert_eq!(
        apply(&store, "a", Change::Begin(atomic(1))).await,
        Verdict::Run
    );
    let first = transaction(&store, "a", 1);
    commit(&first, &totals, "a").await.expect("committed");
    let reply = bowline::once::PostgresStore::committed(&first).expect("committed");
    assert_eq!(totals.total("a").await, 1);
    let Verdict::Done(kept) = apply(&store, "a", Change::Begin(atomic(2))).await else {
        panic!("it is done");
    };
    assert_eq!(kept, bowline::once::Recorded::new(&reply, 1 << 20));

    let again = commit(&first, &totals, "a").await.expect_err("it is done");
    assert_eq!(
        (again.reason(), again.work()),
        (Some(Reason::Superseded), Work::NotDone)
    );
    assert_eq!(totals.total("a").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_or_a_drop_keeps_neither() {
    let _undisturbed = undisturbed().await;
    let totals = Totals::new().await;
    let records = Postgres::new(Bounds::default(), Clock::System).await;
    let store = records.builder().transactions_max(1);
    let store = store
        .connect(&url("BOWLINE_POSTGRES"))
        .await
        .expect("connected");
    assert_eq!(
        apply(&store, "a", Change::Begin(atomic(1))).await,
        Verdict::Run
    );
    let first = transaction(&store, "a", 1);
    let fails = async |writes: PostgresWrites| -> Result<String, Status> {
        totals.add(&writes, "a").await?;
        Err(Status::invalid_argument("on second thoughts"))
    };
    let failed = first.commit(fails).await.expect_err("its own error");
    assert_eq!(failed.code(), bowline::Code::InvalidArgument);

    let swallows = async |writes: PostgresWrites| -> Result<String, Status> {
        totals.add(&writes, "a").await?;
        let _ = writes.batch_execute("select 1 / 0").await;
        Ok("all is well".to_owned())
    };
    let failed = first.commit(swallows).await.expect_err("it is rolled back");
    assert_eq!(failed.work(), Work::NotDone);

    let hangs = async |writes: PostgresWrites| -> Result<String, Status> {
        totals.add(&writes, "a").await?;
        std::future::pending().await
    };
    let dropped = tokio::time::timeout(Duration::from_millis(300), first.commit(hangs));
    dropped.await.expect_err("it hangs");

    let keeps = std::sync::Mutex::new(None);
    let keeps_writes = async |writes: PostgresWrites| -> Result<String, Status> {
        let total = totals.add(&writes, "b").await?;
        *keeps.lock().expect("nobody panics") = Some(writes);
        Ok(total)
    };
    // There is one connection for transactions, and each of these has left it as it found it.
    first.commit(keeps_writes).await.expect("committed");
    assert_eq!(totals.total("a").await, 0);
    assert_eq!(totals.total("b").await, 1);
    assert_eq!(
        apply(&store, "c", Change::Begin(atomic(1))).await,
        Verdict::Run
    );
    commit(&transaction(&store, "c", 1), &totals, "c")
        .await
        .expect("committed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_attempt_commits_nothing() {
    let _undisturbed = undisturbed().await;
    let (totals, hands) = (Totals::new().await, Hands::new());
    let records = Postgres::new(Bounds::default(), hands.clock()).await;
    let (store, other) = (records.store().await, records.store().await);
    assert_eq!(
        apply(&store, "a", Change::Begin(atomic(1))).await,
        Verdict::Run
    );
    let first = transaction(&store, "a", 1);
    for is_done in [false, true] {
        let slow = async |writes: PostgresWrites| {
            let total = totals.add(&writes, "first").await?;
            // Its lease runs out, and another takes over, and is done the second time.
            hands.forward(LEASE);
            if is_done {
                commit(&transaction(&other, "a", 2), &totals, "second").await?;
            } else {
                let begun = apply(&other, "a", Change::Begin(atomic(2))).await;
                assert_eq!(begun, Verdict::Run);
            }
            Ok::<_, Status>(total)
        };
        let late = first.commit(slow).await.expect_err("it is late");
        assert_eq!(
            (late.reason(), late.work()),
            (Some(Reason::Superseded), Work::NotDone)
        );
    }
    assert_eq!(totals.total("first").await, 0);
    assert_eq!(totals.total("second").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_while_its_transaction_is_open() {
    let _undisturbed = undisturbed().await;
    let totals = Totals::new().await;
    let records = Postgres::new(Bounds::default(), Clock::System).await;
    let store = records.store().await;
    assert_eq!(
        apply(&store, "a", Change::Begin(atomic(1))).await,
        Verdict::Run
    );
    let renews = async |writes: PostgresWrites| {
        let total = totals.add(&writes, "a").await?;
        let renew = Change::Renew {
            epoch: epoch(1),
            lease: LEASE,
        };
        assert_eq!(apply(&store, "a", renew).await, Verdict::Applied);
        Ok::<_, Status>(total)
    };
    transaction(&store, "a", 1)
        .commit(renews)
        .await
        .expect("committed");
    assert_eq!(totals.total("a").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_forget_is_refused_unless_that_is_accepted() {
    let _alone = alone().await;
    let totals = Totals::new().await;
    let set_fsync = async |to: &str| {
        let set = format!("alter system set fsync = {to}");
        totals.client.batch_execute(&set).await.expect("set");
        totals
            .client
            .batch_execute("select pg_reload_conf()")
            .await
            .expect("reloaded");
        let is_set = async || {
            let row = totals
                .client
                .query_one("show fsync", &[])
                .await
                .expect("there");
            row.get::<_, &str>(0) == to
        };
        while !is_set().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let records = Postgres::new(Bounds::default(), Clock::System).await;
    set_fsync("off").await;
    let refused = records.builder().connect(&url("BOWLINE_POSTGRES")).await;
    let accepting = records.builder().durability(Durability::AcceptLoss);
    let accepted = accepting.connect(&url("BOWLINE_POSTGRES")).await;
    set_fsync("on").await;
    let error = refused.map(|_| ()).expect_err("it may forget");
    assert!(error.reason.contains("fsync"), "{error}");
    accepted.expect("that was accepted");
    records.store().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_version_is_refused() {
    let _undisturbed = undisturbed().await;
    let totals = Totals::new().await;
    let other = bowline::once::PostgresStore::builder().table(&totals.table);
    let refused = other.connect(&url("BOWLINE_POSTGRES")).await;
    refused.map(|_| ()).expect_err("it is no table of outcomes");
    for name in ["", "Upper", "a;drop table b", "1st", "a-b"] {
        let builder = bowline::once::PostgresStore::builder().table(name);
        let refused = builder.connect(&url("BOWLINE_POSTGRES")).await;
        refused.map(|_| ()).expect_err(name);
    }
}

/// As docs/stores.md lists them.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_the_listed_grants_is_enough() {
    let _undisturbed = undisturbed().await;
    let hands = Hands::new();
    let bounds = Bounds::default().with_records_max(2);
    let records = Postgres::new(bounds, hands.clock()).await;
    let (role, table) = (fresh_name(), &records.table);
    let schema = bowline::once::PostgresStore::schema(table).expect("a name");
    let (admin, driver) = tokio_postgres::connect(&url("BOWLINE_POSTGRES"), tokio_postgres::NoTls)
        .await
        .expect("connected");
    tokio::spawn(driver);
    let grant = format!(
        "{schema} create role {role} login;
         grant select, insert, update, delete on {table} to {role};"
    );
    admin.batch_execute(&grant).await.expect("granted");
    let url = url("BOWLINE_POSTGRES").replace("bowline@", &format!("{role}@"));
    let store = records.builder().connect(&url).await.expect("connected");
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
    // What docs/stores.md says of vacuum: no update of a record is a heap-only one.
    let updates = format!(
        "select pg_stat_force_next_flush();
         select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = '{table}'"
    );
    let messages = admin.simple_query(&updates).await.expect("there");
    for message in messages {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message
            && let Some(hot) = row.try_get("n_tup_hot_upd").ok().flatten()
        {
            println!("updates {:?}, heap-only {hot}", row.get("n_tup_upd"));
        }
    }
}
