//! A server on a redb store is killed with kill -9 at each point of a request's way, and started
//! again: the retry gets the reply that was given or would have been, or is told that nobody knows.
//!
//! `BOWLINE_KILLS=50 cargo test --release -p bowline-test-once --test killed` is the long form.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bowline::{Client, Code, Reason, RequestKey, Status, Work};
use bowline_test_once::counter::CounterClient;
use bowline_test_once::{Point, count_lines, total};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

struct Victim {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    client: CounterClient,
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
            client: CounterClient::new(client),
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

async fn add(
    client: &CounterClient,
    method: Method,
    account: &str,
    key: &str,
) -> Result<(i64, bool), Status> {
    let id = RequestKey::new(key.to_owned()).expect("short");
    macro_rules! call {
        ($method:ident) => {
            client
                .$method(|mut params| {
                    params.set_account(account);
                    params.set_by(1);
                })
                .request_id(id)
                .timeout(PATIENCE)
                .await
        };
    }
    Ok(match method {
        Method::InDoubt => {
            let response = call!(add).map_err(|failure| match failure {
                bowline::Failure::Status(status) => status,
                application => panic!("{application}"),
            })?;
            (response.get()?.get_total(), response.is_replayed())
        }
        Method::Rerun => {
            let response = call!(add_again)?;
            (response.get()?.get_total(), response.is_replayed())
        }
        Method::Atomic => {
            let response = call!(add_together)?;
            (response.get()?.get_total(), response.is_replayed())
        }
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
) -> Result<(i64, bool), Status> {
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

async fn retry(folder: &Path, method: Method, account: &str) -> Result<(i64, bool), Status> {
    let victim = Victim::start(folder, None).await;
    let first = add(&victim.client, method, account, account).await;
    let second = add(&victim.client, method, account, account).await;
    match (&first, &second) {
        (Ok((first, _)), Ok((second, replayed))) => assert_eq!((first, true), (second, *replayed)),
        (Err(first), Err(second)) => assert_eq!(first, second),
        different => panic!("{different:?}"),
    }
    victim.kill().await;
    first
}

fn check(
    method: Method,
    point: Point,
    given: Result<(i64, bool), Status>,
    retried: &Result<(i64, bool), Status>,
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
        Ok((1, replayed)) => Some(*replayed),
        // Run again, as it may be, and so counted again.
        Ok((2, false)) if (method, point) == (Method::Rerun, Point::Running) => Some(false),
        Ok(other) => panic!("{account}: {other:?}"),
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
            assert_eq!(given, (1, false), "{account}");
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
