//! What an engine has acknowledged is there after its server was killed in mid-work and started again. Run by
//! `tests/queues/servers`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bowline::queue::{Engine, Producer, Queue, QueueOptions};
use bowline_test_queues::jobs::Note;
use tokio::time::{Instant, sleep, timeout};

const JOBS: u64 = 2_000;
/// Longer than a server takes to start, and a lease to end, on a machine that does other things too.
const LONG: Duration = Duration::from_secs(120);

/// A server that the test may kill.
struct Server(PathBuf);

impl Server {
    fn of(variable: &str) -> Self {
        let directory = std::env::var(variable).expect("run this by tests/queues/servers");
        Self(directory.into())
    }

    async fn kill_and_start(&self) {
        let pid = std::fs::read_to_string(self.0.join("pid")).expect("it runs");
        let pid = pid.trim();
        let killed = Command::new("kill").args(["-9", pid]).status();
        assert!(killed.expect("kill is there").success(), "no process {pid}");
        let until = Instant::now() + LONG;
        // Gone, or dead and not yet waited for by whoever started it.
        let is_dead = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
            status.map_or(true, |status| status.contains("State:\tZ"))
        };
        while !is_dead() {
            assert!(Instant::now() < until, "it does not die");
            sleep(Duration::from_millis(20)).await;
        }
        // By a shell that goes at once: the server is ended by whoever started the first.
        let mut start = Command::new("sh");
        let start = start
            .args(["-c", "\"$0\" < /dev/null &"])
            .arg(self.0.join("start"));
        assert!(start.status().expect("there is a shell").success());
        let now = || std::fs::read_to_string(self.0.join("pid")).unwrap_or_default();
        while now().trim().is_empty() || now().trim() == pid {
            assert!(Instant::now() < until, "it does not start");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn acknowledged_pushes_are_done_after_the_server_was_killed(
    engine: Arc<dyn Engine>,
    server: Server,
) {
    let queue = Queue::<Note>::shared(engine);
    let done: Arc<Mutex<BTreeSet<u64>>> = Arc::default();
    let handler = {
        let done = Arc::clone(&done);
        move |job: Arc<bowline::queue::Job<Note>>| {
            let done = Arc::clone(&done);
            async move {
                let number = job.plain()?.number;
                done.lock().expect("no test panics with it").insert(number);
                Ok(())
            }
        }
    };
    let worker = queue.worker(8, handler).start().await.expect("the group");
    let pushing = {
        let queue = queue.clone();
        tokio::spawn(async move {
            let mut accepted = BTreeSet::new();
            for first in (0..JOBS).step_by(20) {
                let numbers = first..first + 20;
                let notes: Vec<Note> = numbers
                    .clone()
                    .map(|number| Note {
                        number,
                        text: String::new(),
                    })
                    .collect();
                match queue.push_all(&notes).await {
                    Ok(results) => {
                        let results = numbers.zip(results);
                        let were_accepted = results.filter(|(_, result)| result.is_ok());
                        accepted.extend(were_accepted.map(|(number, _)| number));
                    }
                    // Not acknowledged: it may be there or not.
                    Err(_) => sleep(Duration::from_millis(200)).await,
                }
            }
            accepted
        })
    };
    for _ in 0..2 {
        sleep(Duration::from_millis(400)).await;
        server.kill_and_start().await;
    }
    let accepted = timeout(LONG, pushing)
        .await
        .expect("it ends")
        .expect("no panic");
    assert!(accepted.len() > 100, "{} were accepted", accepted.len());
    let until = Instant::now() + LONG;
    loop {
        let missing: Vec<u64> = {
            let done = done.lock().expect("no test panics with it");
            accepted.difference(&done).copied().collect()
        };
        if missing.is_empty() {
            break;
        }
        assert!(
            Instant::now() < until,
            "{} were lost: {missing:?}",
            missing.len()
        );
        sleep(Duration::from_millis(100)).await;
    }
    // And it takes jobs again.
    queue
        .push(&Note {
            number: JOBS,
            text: String::new(),
        })
        .await
        .expect("it is back");
    while !done.lock().expect("no test panics with it").contains(&JOBS) {
        assert!(Instant::now() < until, "it does no more jobs");
        sleep(Duration::from_millis(20)).await;
    }
    worker.drain(LONG).await;
}

fn name() -> String {
    format!("test-{}", Producer::ephemeral().identity().producer)
}

fn options() -> QueueOptions {
    QueueOptions::default()
        .with_bytes_max(64 << 20)
        .with_lease(Duration::from_secs(2))
}

#[cfg(feature = "nats")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_keeps_what_it_acknowledged() {
    let servers = std::env::var("BOWLINE_NATS").expect("run this by tests/queues/servers");
    let queue = bowline::queue::engines::Nats::queue(name()).options(options());
    let queue = queue.open(servers).await.expect("NATS takes a queue");
    let server = Server::of("BOWLINE_NATS_DIR");
    acknowledged_pushes_are_done_after_the_server_was_killed(Arc::new(queue), server).await;
}

#[cfg(feature = "rabbitmq")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_keeps_what_it_acknowledged() {
    let uri = std::env::var("BOWLINE_RABBITMQ").expect("run this by tests/queues/servers");
    let queue = bowline::queue::engines::RabbitMq::queue(name()).options(options());
    let queue = queue.open(uri).await.expect("RabbitMQ takes a queue");
    let server = Server::of("BOWLINE_RABBITMQ_DIR");
    acknowledged_pushes_are_done_after_the_server_was_killed(Arc::new(queue), server).await;
}
