//! A server on a redb store is killed with kill -9 at each point of a request's way, and started
//! again: the retry gets the reply that was given or would have been, or is told that nobody knows.
//!
//! `BOWLINE_KILLS=50 cargo test --release -p bowline-test-once --test killed` is the long form.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bowline::call::{Outcome, RawRequest};
use bowline::message::Plain;
use bowline::{Client, Code, Msg, Reason, RequestKey, Status, Work};
use bowline_test_once::counter::{AddParams, AddResults, COUNTER_SERVICE};
use bowline_test_once::{Point, count_lines, total};
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use tower::ServiceExt;

const PATIENCE: Duration = Duration::from_secs(30);

struct Victim {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    client: Client,
}

impl Victim {
    async fn start(folder: &Path, stop: Option<Point>) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_victim"))
            .arg(folder)
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
    let info = &COUNTER_SERVICE.methods[match method {
        Method::InDoubt => 0,
        Method::Rerun => 1,
        Method::Atomic => 2,
    }];
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
    let kills: usize =
        std::env::var("BOWLINE_KILLS").map_or(2, |kills| kills.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let mut killed = 0;
    for method in [Method::InDoubt, Method::Rerun, Method::Atomic] {
        for point in Point::ALL {
            for round in 0..kills {
                let account = format!("{method:?} {point:?} {round}");
                let given = kill_at(folder.path(), method, point, &account).await;
                killed += 1;
                let retried = retry(folder.path(), method, &account).await;
                check(method, point, given, &retried, folder.path(), &account);
            }
        }
    }
    println!("{killed} kills");
    assert_eq!(killed, 3 * 6 * kills);
}

/// Calls, kills the server at the point, and returns what the caller was told.
async fn kill_at(
    folder: &Path,
    method: Method,
    point: Point,
    account: &str,
) -> Result<Given, Status> {
    let mut victim = Victim::start(folder, Some(point)).await;
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

async fn retry(folder: &Path, method: Method, account: &str) -> Result<Given, Status> {
    let victim = Victim::start(folder, None).await;
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

fn check(
    method: Method,
    point: Point,
    given: Result<Given, Status>,
    retried: &Result<Given, Status>,
    folder: &Path,
    account: &str,
) {
    let effects = match method {
        Method::Atomic => {
            let database = redb::Database::open(folder.join("outcomes.redb")).expect("closed");
            total(&database, account).expect("readable")
        }
        Method::InDoubt | Method::Rerun => {
            count_lines(&folder.join("counts"), account).expect("readable")
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
