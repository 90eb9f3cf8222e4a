//! A worker's process that is stopped for three leases and goes on then: its answer is late, and refused.
//!
//! `BOWLINE_STOPS=100 cargo test --release -p bowline-test-queues --test stopped` is the long form.

use std::process::Stdio;
use std::time::{Duration, Instant};

use bowline::queue::{Answer, Credit, EngineWorker, LeasedJob, Queue};
use bowline_test_queues::jobs::Note;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{sleep, timeout};

/// Longer than a server takes to miss a worker, on a machine that does other things too.
const LONG: Duration = Duration::from_secs(60);

fn stops(default: u64) -> u64 {
    let value = std::env::var("BOWLINE_STOPS").ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn role(arguments: &[&str]) -> Command {
    let mut role = Command::new(env!("CARGO_BIN_EXE_role"));
    role.args(arguments).kill_on_drop(true);
    role
}

/// A process that takes a job, and acknowledges it when it is told to.
struct Holder {
    process: Child,
    told: ChildStdin,
    says: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    fn start(queue: &[&str]) -> Self {
        let piped = role(&[&["hold"], queue].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = piped.expect("it starts");
        let told = process.stdin.take().expect("it is piped");
        let says = process.stdout.take().expect("it is piped");
        let says = BufReader::new(says).lines();
        Self {
            process,
            told,
            says,
        }
    }

    async fn line(&mut self) -> String {
        let line = timeout(LONG, self.says.next_line()).await;
        let line = line.expect("it says something").expect("it can be read");
        line.expect("it is still there")
    }

    async fn acknowledge(&mut self) -> String {
        self.told.write_all(b"now\n").await.expect("it listens");
        self.line().await
    }

    fn signal(&self, signal: Signal) {
        let pid = self.process.id().expect("it runs");
        let pid = Pid::from_raw(pid as i32).expect("a process");
        kill_process(pid, signal).expect("it is there");
    }
}

const CREDIT: Credit = Credit {
    jobs: 1,
    bytes: 1 << 20,
    takes_any_first: true,
};

async fn lease(worker: &dyn EngineWorker) -> LeasedJob {
    let began = Instant::now();
    loop {
        let until = tokio::time::Instant::now() + Duration::from_secs(5);
        let leased = worker.lease(CREDIT, until).await.expect("an answer");
        if let Some(job) = leased.into_iter().next() {
            return job;
        }
        assert!(began.elapsed() < LONG, "the job does not come again");
    }
}

/// Does the next job, however often that takes: its own lease may be over too, on a slow machine. Leaves then, as
/// an engine may send to a worker what this one would not ask for.
async fn take_over(queue: &Queue<Note>) {
    let worker = queue.engine().worker("workers").await.expect("the group");
    let until = Instant::now() + LONG;
    loop {
        let job = lease(&*worker).await;
        let answer = vec![(job.number, job.token, Answer::Done)];
        let mut told = worker.answer(answer).await.expect("an answer");
        if told.pop().expect("one result").is_ok() {
            return worker.leave().await.expect("an answer");
        }
        assert!(Instant::now() < until, "it cannot be done at all");
    }
}

/// Stops the holder of a job of `queue`, which is `at` for it, so many times for so long, and expects that its answers
/// are told to be late: in one of these words.
async fn late_answers_are_refused(
    at: &[&str],
    queue: Queue<Note>,
    stop: Duration,
    stops: u64,
    words: &[&str],
) {
    let mut holder = Holder::start(at);
    let (mut refused, mut held, mut controls) = (0u64, 0, 0);
    for number in 0..stops + stops.div_ceil(5) {
        // One in six is left alone for as long: renewal works, and a refusal says something.
        let is_stopped = number % 6 != 0;
        let text = String::new();
        queue.push(&Note { number, text }).await.expect("pushed");
        assert_eq!(holder.line().await, format!("has {number}"));
        if is_stopped {
            holder.signal(Signal::STOP);
        }
        sleep(stop).await;
        // Every other time somebody else has done it by then.
        let is_done = is_stopped && number % 2 == 0;
        if is_done {
            take_over(&queue).await;
        }
        if is_stopped {
            holder.signal(Signal::CONT);
        }
        let said = holder.acknowledge().await;
        match is_stopped {
            true => {
                let is_told = words.iter().any(|words| said.starts_with(words));
                // On a busy machine the queue's process may have had no processor either: its leases begin anew then.
                let is_excused = !is_done && said == "held";
                assert!(
                    is_told || is_excused,
                    "{said:?} after it was stopped for {stop:?}"
                );
                refused += u64::from(is_told);
            }
            false => {
                controls += 1;
                held += u64::from(said == "held");
            }
        }
        // Nobody else wants it, so it comes again, as another lease.
        let mut said = said;
        while said != "held" && !is_done {
            assert_eq!(holder.line().await, format!("has {number}"));
            said = holder.acknowledge().await;
        }
    }
    println!("{refused} of {stops} late answers refused; {held} of {controls} in time accepted");
    assert!(held > 0, "no answer was accepted: this shows nothing");
    assert!(5 * refused >= 4 * stops, "most late answers are refused");
    assert_eq!(queue.counters().await.expect("counters").jobs, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_stopped_for_three_leases_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let endpoint = format!("ipc://{}", folder.path().join("socket").display());
    let path = folder.path().display().to_string();
    let serve = role(&["serve", &path, &endpoint, "300"])
        .stdout(Stdio::null())
        .spawn();
    let _serve = serve.expect("it starts");
    let queue = Queue::connect(&endpoint).await.expect("the queue");
    let stop = 3 * Duration::from_millis(300);
    late_answers_are_refused(&[&endpoint], queue, stop, stops(10), &["refused"]).await;
}

/// Here the server would take it: the worker knows by its own clock that it is late.
#[cfg(feature = "nats")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_nats_a_worker_that_was_stopped_for_three_leases_is_refused() {
    use bowline_test_queues::{HELD_LEASE, held_on_nats};
    let server = std::env::var("BOWLINE_NATS").expect("run this by tests/queues/servers");
    let name = name();
    let queue = held_on_nats(&server, &name).await.expect("a queue");
    let queue = Queue::on(queue);
    let (at, stop) = (["nats", &server, &name], 3 * HELD_LEASE);
    late_answers_are_refused(&at, queue, stop, 5, &["refused"]).await;
}

/// There are no leases: the broker misses the worker's heartbeats, one a second, and ends its connection. A worker that
/// answers before it has seen that is told that the broker cannot be reached.
#[cfg(feature = "rabbitmq")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_rabbitmq_a_worker_that_was_stopped_for_six_heartbeats_is_refused() {
    use bowline_test_queues::held_on_rabbitmq;
    let uri = std::env::var("BOWLINE_RABBITMQ").expect("run this by tests/queues/servers");
    let uri = format!("{uri}?heartbeat=1");
    let name = name();
    let queue = held_on_rabbitmq(&uri, &name).await.expect("a queue");
    let stop = Duration::from_secs(6);
    let (at, words) = (
        ["rabbitmq", &uri, &name],
        ["refused", "the queue is unavailable"],
    );
    late_answers_are_refused(&at, Queue::on(queue), stop, 3, &words).await;
}

#[cfg(any(feature = "nats", feature = "rabbitmq"))]
fn name() -> String {
    let identity = bowline::queue::Producer::ephemeral().identity();
    format!("test-{}", identity.producer)
}
