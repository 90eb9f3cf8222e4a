//! The primary dies for good, and its standby takes its place.
//!
//! `BOWLINE_FAILOVERS=20 tests/once/servers cargo test --release -p bowline-test-once --features postgres,redis \
//! --test stores -- --nocapture failover` is the long form.

use std::time::Duration;

use bowline::once::{Bounds, Change, Clock, Store, Verdict};

use crate::subjects::*;

/// Has `tests/once/servers` start a primary and its standby. Returns their ports.
async fn pair(kind: &str) -> [u16; 2] {
    let said = have(&["pair", kind]).await;
    let mut ports = said.split_whitespace().map(|port| port.parse());
    [(); 2].map(|()| ports.next().expect("two ports").expect("a port"))
}

/// What `store` says of two outcomes: one that the standby had, and one that the primary has confirmed while
/// the standby was away.
async fn has_one_and_not_the_other<S: Store>(store: &S) {
    let had = apply(store, "had", Change::Begin(claim(2))).await;
    assert_eq!(had, Verdict::Done(reply("had")));
    // This is the loss that docs/stores.md speaks of: a retry of it runs again.
    let confirmed = apply(store, "confirmed", Change::Begin(claim(2))).await;
    assert_eq!(confirmed, Verdict::Run);
}

async fn record<S: Store>(store: &S, name: &str) {
    let begun = apply(store, name, Change::Begin(claim(1))).await;
    assert_eq!(begun, Verdict::Run);
    let recorded = apply(store, name, complete(1, name)).await;
    assert_eq!(recorded, Verdict::Applied);
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread")]
async fn what_a_redis_replica_had_not_received_runs_again_after_its_promotion() {
    let _alone = alone().await;
    let ports = pair("redis").await;
    let connect = async |port| {
        let records = Redis::new(Bounds::default(), Clock::System).await;
        let builder = records.builder().prefix("failover");
        let durability = bowline::once::Durability::RequireFsync;
        let url = format!("redis://127.0.0.1:{port}/");
        let store = builder.connect(&url, durability).await;
        store.expect("connected")
    };
    let store = connect(ports[0]).await;
    record(&store, "had").await;
    let client = redis::Client::open(("127.0.0.1", ports[0])).expect("an address");
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let connection = client.get_multiplexed_async_connection_with_config(&patient);
    let mut connection = connection.await.expect("there");
    // It waits for what its own connection has written, and so for all that was written before.
    let mark = redis::cmd("SET").arg("failover:mark").arg(1).to_owned();
    mark.query_async::<()>(&mut connection).await.expect("set");
    let received: u64 = redis::cmd("WAIT")
        .arg(1)
        .arg(60_000)
        .query_async(&mut connection)
        .await
        .expect("counted");
    assert_eq!(received, 1);
    have(&["kill", "redis-2"]).await;
    record(&store, "confirmed").await;
    have(&["kill", "redis-1"]).await;
    have(&["start", "redis-2"]).await;
    have(&["promote", "redis-2"]).await;
    has_one_and_not_the_other(&connect(ports[1]).await).await;
    have(&["kill", "redis-2"]).await;
}

#[cfg(feature = "postgres")]
mod postgres {
    use std::collections::HashMap;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use bowline::call::RawRequest;
    use bowline::message::Plain;
    use bowline::once::{Once, PostgresStore};
    use bowline::{Client, Msg, Reason, RequestKey, Server, Status};
    use bowline_test_once::counter::{
        AddParams, AddResults, COUNTER_SERVICE, CounterServer, LEDGER_SERVICE, LedgerServer,
    };
    use bowline_test_once::{Counts, Stop, count_lines};
    use bytes::Bytes;
    use tokio::net::TcpSocket;
    use tokio::task::JoinSet;
    use tokio::time::{sleep, timeout};
    use tower::ServiceExt;

    use super::*;

    const LEASE: Duration = Duration::from_secs(3);
    const PATIENCE: Duration = Duration::from_secs(120);
    const CALLERS: usize = 16;
    /// Outcomes that callers were told before each failover, and again after it.
    const TOLD: usize = 100;

    fn url(ports: &[u16]) -> String {
        let hosts: Vec<_> = ports.iter().map(|it| format!("127.0.0.1:{it}")).collect();
        let hosts = hosts.join(",");
        format!("postgres://bowline@{hosts}/postgres?target_session_attrs=read-write")
    }

    async fn client(url: &str) -> tokio_postgres::Client {
        let connected = tokio_postgres::connect(url, tokio_postgres::NoTls).await;
        let (client, connection) = connected.expect("there");
        tokio::spawn(connection);
        client
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_host_that_says_nothing_does_not_hide_the_one_behind_it() {
        let _undisturbed = undisturbed().await;
        // Whoever connects after those that fill its queue gets no answer, as from a machine without power.
        let silent = TcpSocket::new_v4().expect("a socket");
        silent.bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let silent = silent.listen(0).expect("a queue");
        let address = silent.local_addr().expect("an address");
        let mut queue = Vec::new();
        for _ in 0..4 {
            let connect = tokio::net::TcpStream::connect(address);
            queue.push(timeout(Duration::from_millis(300), connect).await);
        }
        assert!(queue.last().is_some_and(Result::is_err), "it is silent");
        let there: tokio_postgres::Config = crate::subjects::url("BOWLINE_POSTGRES")
            .parse()
            .expect("a URL");
        let url = url(&[address.port(), there.get_ports()[0]]);
        let store = PostgresStore::builder().table(fresh_name()).connect(&url);
        record(&store.await.expect("the second one answers"), "a").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_an_asynchronous_standby_had_not_received_runs_again_after_its_promotion() {
        let _alone = alone().await;
        let ports = pair("postgres").await;
        let store = PostgresStore::connect(&url(&ports)).await;
        let store = store.expect("connected");
        // So far, the standby is one that commits wait for.
        record(&store, "had").await;
        let primary = client(&url(&ports[..1])).await;
        for set in [
            "alter system reset synchronous_standby_names",
            "select pg_reload_conf()",
        ] {
            primary.batch_execute(set).await.expect("set");
        }
        have(&["kill", "postgres-2"]).await;
        record(&store, "confirmed").await;
        have(&["kill", "postgres-1"]).await;
        have(&["start", "postgres-2"]).await;
        have(&["promote", "postgres-2"]).await;
        let store = PostgresStore::connect(&url(&ports)).await;
        has_one_and_not_the_other(&store.expect("connected")).await;
        have(&["kill", "postgres-2"]).await;
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Method {
        InDoubt,
        Atomic,
    }

    /// What a caller was told at last: its reply, or that nobody knows.
    type Told = Option<Bytes>;

    /// Callers that go on to ask until they are told an outcome, over and over.
    struct Callers {
        replicas: Vec<Client>,
        told: Mutex<HashMap<String, (Method, Told)>>,
        is_over: AtomicBool,
    }

    impl Callers {
        /// Each call counts in an account of its own.
        async fn go_on(self: Arc<Self>, caller: usize) {
            for number in 0.. {
                if self.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let method = [Method::InDoubt, Method::Atomic][number % 2];
                let account = format!("{caller}/{number}");
                let told = self.ask(method, &account, caller).await;
                let told = told.map(|(reply, _)| reply);
                let before = self.told().insert(account, (method, told));
                assert!(before.is_none());
            }
        }

        /// Asks one replica after the other, until one says what became of it.
        async fn ask(&self, method: Method, account: &str, first: usize) -> Option<(Bytes, bool)> {
            let begun = Instant::now();
            for attempt in first.. {
                let replica = &self.replicas[attempt % self.replicas.len()];
                match add(replica, method, account).await {
                    Ok(given) => return Some(given),
                    Err(status) if status.reason() == Some(Reason::InDoubt) => {
                        assert_eq!(method, Method::InDoubt, "{account}");
                        return None;
                    }
                    Err(status) => {
                        assert!(begun.elapsed() < PATIENCE, "{account}: {status}");
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            unreachable!("there are many numbers")
        }

        async fn wait_for_more(&self) {
            let (begun, before) = (Instant::now(), self.told().len());
            while self.told().len() < before + TOLD {
                assert!(begun.elapsed() < PATIENCE, "nobody is told anything");
                sleep(Duration::from_millis(10)).await;
            }
        }

        fn told(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Method, Told)>> {
            self.told.lock().expect("no panic")
        }
    }

    /// The reply, and whether it is a stored one.
    async fn add(client: &Client, method: Method, account: &str) -> Result<(Bytes, bool), Status> {
        let key = RequestKey::new(account.to_owned()).expect("short");
        let account = account.to_owned();
        // Both have the same parameters and results, under names of their own.
        let body = AddParams { account, by: 1 }.to_bytes()?;
        let info = match method {
            Method::InDoubt => &COUNTER_SERVICE.methods[0],
            Method::Atomic => &LEDGER_SERVICE.methods[0],
        };
        let mut request = RawRequest::new(info, body);
        request.id = key.into();
        let reply = client.clone().oneshot(request).await?;
        let results = Msg::<AddResults>::open(reply.body.clone(), &reply.limits)?;
        assert_eq!(results.plain()?.total, 1, "it was not done twice");
        Ok((reply.body, reply.replayed))
    }

    /// A server that counts, on the store of both.
    async fn replica(url: &str, file: PathBuf) -> Client {
        let store = PostgresStore::builder()
            .table("failover")
            .operation_timeout(Duration::from_secs(3))
            .connect(url);
        let once = Once::builder().lease(LEASE);
        let once = once.build(store.await.expect("connected"));
        let counts = Counts {
            file,
            table: "failover_totals".to_owned(),
            stop: Stop(None),
        };
        let server = Server::builder()
            .service(CounterServer::new(counts.clone()))
            .service(LedgerServer::new(counts))
            .once(once.expect("good terms"))
            .bind("tcp://127.0.0.1:0");
        let server = server.await.expect("a port");
        let client = Client::connect(server.endpoint().to_string()).await;
        tokio::spawn(server.run());
        client.expect("an endpoint")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_outcome_is_lost_when_a_synchronous_standby_takes_over() {
        let _alone = alone().await;
        let failovers = std::env::var("BOWLINE_FAILOVERS");
        let failovers = failovers.map_or(1, |it| it.parse().expect("a number"));
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("counts");
        let url = url(&pair("postgres").await);
        drop(bowline_test_once::postgres::connect(&url, "failover_totals").await);
        let callers = Arc::new(Callers {
            replicas: vec![
                replica(&url, file.clone()).await,
                replica(&url, file.clone()).await,
            ],
            told: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let mut asking = JoinSet::new();
        for caller in 0..CALLERS {
            asking.spawn(Arc::clone(&callers).go_on(caller));
        }
        let mut names = ["postgres-1", "postgres-2"];
        for failover in 0..failovers {
            if failover > 0 {
                have(&["rejoin", names[1], names[0]]).await;
            }
            callers.wait_for_more().await;
            have(&["kill", names[0]]).await;
            have(&["promote", names[1]]).await;
            callers.wait_for_more().await;
            names.reverse();
        }
        callers.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = asking.join_next().await {
            ended.expect("no panic");
        }

        let told = std::mem::take(&mut *callers.told());
        let database = client(&url).await;
        let mut in_doubt = 0;
        for (account, (method, told)) in &told {
            let again = callers.ask(*method, account, 0).await;
            let effects = match method {
                Method::InDoubt => count_lines(&file, account).expect("readable"),
                Method::Atomic => {
                    let total =
                        bowline_test_once::postgres::total(&database, "failover_totals", account);
                    total.await.expect("readable")
                }
            };
            match told {
                Some(reply) => {
                    assert_eq!(again, Some((reply.clone(), true)), "{account}: kept");
                    assert_eq!(effects, 1, "{account}: one effect");
                }
                None => {
                    in_doubt += 1;
                    assert_eq!(again, None, "{account}: as before");
                    assert!(effects <= 1, "{account}: {effects} effects");
                }
            }
        }
        println!(
            "{failovers} failovers: {} outcomes, {in_doubt} in doubt",
            told.len()
        );
        have(&["kill", names[0]]).await;
    }
}
