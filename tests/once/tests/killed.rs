//! A server is killed with kill -9 at each point of a request's way, and started
//! again: the retry gets the reply that was given or would have been, or is told that nobody knows.
//!
//! `BOWLINE_KILLS=50 cargo test --release -p bowline-test-once --test killed` is the long form.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bowline::call::{Outcome, RawRequest};
use bowline::message::Plain;
use bowline::{Client, Code, Msg, Reason, RequestKey, Status, Work};
use bowline_test_once::counter::{AddParams, AddResults, COUNTER_SERVICE, LEDGER_SERVICE};
use bowline_test_once::{Point, count_lines, total};
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use tower::ServiceExt;

const PATIENCE: Duration = Duration::from_secs(30);

/// Where the outcomes and the counts of victims are.
struct Place {
    /// As a victim is told.
    store: String,
    folder: PathBuf,
}

impl Place {
    /// How often `addTogether` was done.
    async fn total(&self, account: &str) -> i64 {
        match self.store.split_once(':') {
            #[cfg(feature = "postgres")]
            Some(("postgres", name)) => {
                use bowline_test_once::postgres::{connect, total};
                let table = format!("{name}_totals");
                let client = connect(&url("BOWLINE_POSTGRES"), &table).await;
                let client = client.expect("there");
                total(&client, &table, account).await.expect("readable")
            }
            Some((other, _)) => panic!("{other} has no transactions"),
            None => {
                let file = self.folder.join("outcomes.redb");
                let database = redb::Database::open(file).expect("closed");
                total(&database, account).expect("readable")
            }
        }
    }
}

struct Victim {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    client: Client,
}

impl Victim {
    async fn start(place: &Place, stop: Option<Point>) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_victim"))
            .arg(&place.store)
            .arg(&place.folder)
            .args(stop.map(|point| format!("{point:?}")))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let stdout = process.stdout.take().expect("piped");
        let mut lines = BufReader::new(stdout).lines();
        let said = next_line(&mut lines).await;
        let endpoint = said.strip_prefix("LISTENING ").expect("it says where");
        let client = Client::connect(endpoint).await.expect("an endpoint");
        Self {
            process,
            lines,
            client,
        }
    }

    /// Returns once it is dead.
    async fn kill(mut self) {
        self.process.kill().await.expect("it was alive");
    }
}

async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    let line = timeout(PATIENCE, lines.next_line()).await;
    line.expect("in time").expect("readable").expect("a line")
}

/// Which of the three counting methods.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Method {
    InDoubt,
    Rerun,
    Atomic,
}

/// What a caller was told of a success.
#[derive(Clone, Debug, PartialEq)]
struct Given {
    /// Byte for byte.
    reply: Bytes,
    total: i64,
    is_replayed: bool,
}

async fn add(client: &Client, method: Method, account: &str, key: &str) -> Result<Given, Status> {
    let account = account.to_owned();
    // The three have the same parameters and results, under names of their own.
    let body = AddParams { account, by: 1 }.to_bytes()?;
    let info = match method {
        Method::InDoubt => &COUNTER_SERVICE.methods[0],
        Method::Rerun => &COUNTER_SERVICE.methods[1],
        Method::Atomic => &LEDGER_SERVICE.methods[0],
    };
    let mut request = RawRequest::new(info, body);
    request.id = RequestKey::new(key.to_owned()).expect("short").into();
    request.deadline = Some(tokio::time::Instant::now() + PATIENCE);
    let reply = client.clone().oneshot(request).await?;
    assert_eq!(reply.outcome, Outcome::Success);
    let results = Msg::<AddResults>::open(reply.body.clone(), &reply.limits)?;
    Ok(Given {
        total: results.plain()?.total,
        reply: reply.body,
        is_replayed: reply.replayed,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_kill_9_gets_its_outcome_or_is_told_that_nobody_knows() {
    let methods = [Method::InDoubt, Method::Rerun, Method::Atomic];
    kill_at_all_points("redb".to_owned(), &methods, 2).await;
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn the_same_with_outcomes_in_postgres() {
    url("BOWLINE_POSTGRES");
    let methods = [Method::InDoubt, Method::Rerun, Method::Atomic];
    let store = format!("postgres:killed_{}", std::process::id());
    kill_at_all_points(store, &methods, 1).await;
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread")]
async fn the_same_with_outcomes_in_redis() {
    url("BOWLINE_REDIS");
    let methods = [Method::InDoubt, Method::Rerun];
    let store = format!("redis:killed_{}", std::process::id());
    kill_at_all_points(store, &methods, 1).await;
}

#[cfg(any(feature = "postgres", feature = "redis"))]
fn url(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run this beneath tests/once/servers"))
}

async fn kill_at_all_points(store: String, methods: &[Method], kills: usize) {
    let kills = std::env::var("BOWLINE_KILLS").map_or(kills, |it| it.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let place = Place {
        store,
        folder: folder.path().to_owned(),
    };
    let mut killed = 0;
    for &method in methods {
        for point in Point::ALL {
            for round in 0..kills {
                let account = format!("{method:?} {point:?} {round}");
                let given = kill_at(&place, method, point, &account).await;
                killed += 1;
                let retried = retry(&place, method, &account).await;
                check(method, point, given, &retried, &place, &account).await;
            }
        }
    }
    println!("{killed} kills");
    assert_eq!(killed, methods.len() * 6 * kills);
}

/// Calls, kills the server at the point, and returns what the caller was told.
async fn kill_at(
    place: &Place,
    method: Method,
    point: Point,
    account: &str,
) -> Result<Given, Status> {
    let mut victim = Victim::start(place, Some(point)).await;
    let client = victim.client.clone();
    let name = account.to_owned();
    let call = tokio::spawn(async move { add(&client, method, &name, &name).await });
    if point == Point::AfterReply {
        let given = timeout(PATIENCE, call)
            .await
            .expect("in time")
            .expect("no panic");
        victim.kill().await;
        return given;
    }
    assert_eq!(next_line(&mut victim.lines).await, format!("AT {point:?}"));
    victim.kill().await;
    timeout(PATIENCE, call)
        .await
        .expect("in time")
        .expect("no panic")
}

async fn retry(place: &Place, method: Method, account: &str) -> Result<Given, Status> {
    let victim = Victim::start(place, None).await;
    let first = add(&victim.client, method, account, account).await;
    let second = add(&victim.client, method, account, account).await;
    match (&first, &second) {
        (Ok(first), Ok(second)) => {
            assert_eq!((&first.reply, true), (&second.reply, second.is_replayed));
        }
        (Err(first), Err(second)) => assert_eq!(first, second),
        different => panic!("{different:?}"),
    }
    victim.kill().await;
    first
}

async fn check(
    method: Method,
    point: Point,
    given: Result<Given, Status>,
    retried: &Result<Given, Status>,
    place: &Place,
    account: &str,
) {
    let effects = match method {
        Method::Atomic => place.total(account).await,
        Method::InDoubt | Method::Rerun => {
            count_lines(&place.folder.join("counts"), account).expect("readable")
        }
    };
    let is_replayed = match retried {
        Ok(given) => {
            // Run again, as it may be, and so counted again.
            let is_rerun = (method, point) == (Method::Rerun, Point::Running);
            assert_eq!(given.total, if is_rerun { 2 } else { 1 }, "{account}");
            Some(given.is_replayed)
        }
        Err(status) => {
            assert_eq!(
                status.reason(),
                Some(Reason::InDoubt),
                "{account}: {status}"
            );
            assert_eq!(status.work(), Work::OutcomeUnknown);
            None
        }
    };
    match given {
        Ok(given) => {
            assert_eq!(point, Point::AfterReply);
            assert_eq!((given.total, given.is_replayed), (1, false), "{account}");
            let retried = retried.as_ref().expect("it was recorded");
            assert_eq!(given.reply, retried.reply, "byte for byte: {account}");
        }
        Err(status) => {
            assert_ne!(point, Point::AfterReply, "{account}: {status}");
            assert_eq!(status.code(), Code::Unavailable, "{account}: {status}");
            assert_eq!(status.work(), Work::OutcomeUnknown, "{account}: {status}");
        }
    }
    let expected = match (method, point) {
        (_, Point::Received) => (Some(false), 1),
        (Method::InDoubt, Point::Claimed) => (None, 0),
        (Method::InDoubt, Point::Running) => (None, 1),
        (Method::Rerun, Point::Running) => (Some(false), 2),
        (Method::Rerun | Method::Atomic, Point::Claimed | Point::Running) => (Some(false), 1),
        (_, Point::Recorded | Point::BeforeReply | Point::AfterReply) => (Some(true), 1),
    };
    assert_eq!((is_replayed, effects), expected, "{account}");
}
