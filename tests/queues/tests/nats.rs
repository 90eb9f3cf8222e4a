//! Queues on NATS JetStream, under the suite of all engines. Run by `tests/queues/servers`.

use std::sync::Arc;
use std::time::Duration;

use bowline::Work;
use bowline::queue::engines::Nats;
use bowline::queue::{Answer, Credit, Engine, NewJob, Producer, QueueError, QueueOptions};
use bowline_test_queues::suite::{Setup, refusals};
use bowline_test_queues::{conformance, silent};
use bytes::Bytes;
use tokio::time::Instant;

/// Longer than anything that happens here takes, on a machine that does other things too.
const LONG: Duration = Duration::from_secs(60);

struct OnNats;

impl Setup for OnNats {
    async fn engine(&self, options: QueueOptions) -> Arc<dyn Engine> {
        let servers = std::env::var("BOWLINE_NATS").expect("run this by tests/queues/servers");
        let name = format!("test-{}", Producer::ephemeral().identity().producer);
        // The server sets aside what a queue may have.
        let options = options.with_bytes_max(8 << 20);
        let queue = Nats::queue(name).options(options).open(servers).await;
        Arc::new(queue.expect("NATS takes a queue"))
    }
}

conformance!(OnNats);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_is_unavailable_after_as_long_as_it_may_take() {
    let (_silent, address) = silent();
    let time = Duration::from_millis(300);
    let builder = Nats::queue("any").answer_max(time);
    let began = Instant::now();
    let opened = builder.open(address.to_string()).await;
    let is_told = matches!(
        opened,
        Err(QueueError::Unavailable {
            work: Work::NotDone,
            ..
        })
    );
    assert!(is_told, "{opened:?}");
    assert!(began.elapsed() >= time && began.elapsed() < LONG);
}

/// What a job may have beside its body has to fit into one message of the server's, with what comes later: its causes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_leaves_no_room_for_its_causes_is_too_large_and_one_that_does_is_done() {
    let options = QueueOptions::default()
        .with_job_bytes_max(2 << 20)
        .with_attempts_max(3)
        .with_backoff_min(Duration::from_millis(10))
        .with_backoff_max(Duration::from_millis(20));
    let queue = OnNats.engine(options).await;
    let producer = Producer::ephemeral();
    let push = async |bytes: usize| {
        let body = Bytes::from(vec![7; bytes]);
        let job = NewJob::new(producer.identity(), body);
        let pushed = queue.push(vec![job], Instant::now() + LONG).await;
        pushed.expect("an answer").pop().expect("one result")
    };
    let Err(QueueError::TooLarge { max, .. }) = push(2 << 20).await else {
        panic!("its server takes a mebibyte");
    };
    // Around the edge: the largest that it takes, and the smallest that it does not.
    let (mut fits, mut over) = (max - 1000, max);
    while over - fits > 1 {
        let bytes = fits + (over - fits) / 2;
        match push(bytes).await {
            Ok(_) => fits = bytes,
            Err(QueueError::TooLarge { .. }) => over = bytes,
            Err(other) => panic!("{other:?}"),
        }
    }
    let worker = queue.worker("workers").await.expect("the group");
    let credit = Credit {
        jobs: 8,
        bytes: 64 << 20,
        takes_any_first: true,
    };
    // Done, so that there is room for what comes now.
    while queue.counters("workers").await.expect("counters").jobs > 0 {
        let soon = Instant::now() + Duration::from_millis(200);
        let leased = worker.lease(credit, soon).await.expect("an answer");
        let answers = leased
            .iter()
            .map(|job| (job.number, job.token, Answer::Done));
        let told = worker.answer(answers.collect()).await;
        told.expect("an answer");
    }
    // Less than before, as the number of the push may have got another digit.
    let fits = fits - 8;
    push(fits).await.expect("it fitted before");
    let until = Instant::now() + LONG;
    while queue.counters("workers").await.expect("counters").dead == 0 {
        assert!(Instant::now() < until, "it does not come to an end");
        let soon = Instant::now() + Duration::from_millis(200);
        let leased = worker.lease(credit, soon).await.expect("an answer");
        let answers = leased.iter().map(|job| {
            let answer = Answer::Refuse("a long story ".repeat(100));
            (job.number, job.token, answer)
        });
        let told = worker.answer(answers.collect()).await.expect("an answer");
        assert!(told.iter().all(Result::is_ok));
    }
    let letters = queue.dead_letters("workers", None, 100).await;
    let letters = letters.expect("a list");
    assert_eq!(
        (letters[0].body.len(), letters[0].attempts.refused),
        (fits, 3)
    );
}

/// What a server is set to cannot be asked; whoever opens the queue says it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_is_durable_where_its_server_is_said_to_sync_always() {
    let servers = std::env::var("BOWLINE_NATS").expect("run this by tests/queues/servers");
    assert!(
        !OnNats
            .engine(QueueOptions::default())
            .await
            .capabilities()
            .is_durable
    );
    let name = format!("test-{}", Producer::ephemeral().identity().producer);
    let builder = Nats::queue(name).options(QueueOptions::default().with_bytes_max(8 << 20));
    let queue = builder.server_syncs_always().open(servers).await;
    assert!(queue.expect("NATS takes a queue").capabilities().is_durable);
}

/// The table of docs/queue-engines.md says the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nats_cannot_keep_is_refused_and_all_else_is_not() {
    let engine = OnNats.engine(QueueOptions::default()).await;
    let refused = ["order per key", "priorities", "finding a job by its ID"];
    assert_eq!(refusals(engine).await, refused);
}

fn servers() -> String {
    std::env::var("BOWLINE_NATS").expect("run this by tests/queues/servers")
}

async fn open(name: &str, options: &QueueOptions) -> Arc<dyn Engine> {
    let options = options.clone().with_bytes_max(8 << 20);
    let queue = Nats::queue(name).options(options).open(servers()).await;
    Arc::new(queue.expect("NATS takes a queue"))
}

fn fresh_name() -> String {
    format!("test-{}", Producer::ephemeral().identity().producer)
}

const CREDIT: Credit = Credit {
    jobs: 8,
    bytes: 1 << 20,
    takes_any_first: true,
};

fn within(time: Duration) -> Instant {
    Instant::now() + time
}

/// Asks the server's own API, and returns its answer as text.
fn ask(subject: &str, body: &str) -> String {
    use std::io::{BufRead, BufReader, Read, Write};
    let mut to = std::net::TcpStream::connect(servers()).expect("the server");
    to.set_read_timeout(Some(LONG)).expect("a socket");
    let mut from = BufReader::new(to.try_clone().expect("a socket"));
    let bytes = body.len();
    write!(
        to,
        "CONNECT {{\"verbose\":false}}\r\nSUB answer.{bytes}.x 1\r\nPUB {subject} answer.{bytes}.x {bytes}\r\n{body}\r\n"
    )
    .expect("it takes it");
    loop {
        let mut line = String::new();
        from.read_line(&mut line).expect("an answer");
        if let Some(message) = line.strip_prefix("MSG ") {
            let bytes = message.trim().rsplit(' ').next().expect("a length");
            let mut answer = vec![0; bytes.parse().expect("a number")];
            from.read_exact(&mut answer).expect("the answer");
            return String::from_utf8(answer).expect("JSON");
        }
    }
}

/// A consumer that is made anew counts its deliveries from 1 again: what was refused before must not be taken for what is
/// refused now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_jobs_are_kept_when_the_consumer_is_made_anew() {
    let options = QueueOptions::default()
        .with_backoff_min(Duration::from_millis(10))
        .with_backoff_max(Duration::from_millis(20));
    let (name, producer) = (fresh_name(), Producer::ephemeral());
    for round in ["old", "new"] {
        let queue = open(&name, &options).await;
        let job = |n| NewJob::new(producer.identity(), Bytes::from(format!("{round} {n}")));
        let pushed = queue.push((0..3).map(job).collect(), within(LONG)).await;
        assert!(pushed.expect("an answer").iter().all(Result::is_ok));
        let worker = queue.worker("workers").await.expect("the group");
        let (mut refused, mut done) = (0, 0);
        let until = within(LONG);
        while done < 3 {
            assert!(
                Instant::now() < until,
                "{round}: {refused} refused, {done} of 3 done"
            );
            let soon = within(Duration::from_millis(200));
            for job in worker.lease(CREDIT, soon).await.expect("an answer") {
                let answer = match job.earlier.used() {
                    0 => Answer::Refuse("once".into()),
                    _ => Answer::Done,
                };
                match answer {
                    Answer::Done => done += 1,
                    _ => refused += 1,
                }
                let told = worker.answer(vec![(job.number, job.token, answer)]).await;
                assert_eq!(told.expect("an answer"), [Ok(())]);
            }
        }
        assert_eq!((refused, done), (3, 3), "{round}");
        worker.leave().await.expect("an answer");
        drop((worker, queue));
        let deleted = ask(
            &format!("$JS.API.CONSUMER.DELETE.{name}_workers_jobs.workers"),
            "",
        );
        assert!(deleted.contains("\"success\":true"), "{deleted}");
    }
}

/// The server goes by the lease of its consumer: a worker that renews by a longer one has its jobs taken away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_has_the_lease_of_the_consumer() {
    let name = fresh_name();
    let lease = |seconds| QueueOptions::default().with_lease(Duration::from_secs(seconds));
    drop(open(&name, &lease(1)).await);
    let worker = open(&name, &lease(30)).await.worker("workers").await;
    let worker = worker.expect("the group");
    assert_eq!(worker.lease_time(), Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_would_drop_jobs_is_refused() {
    let name = fresh_name();
    let stream = format!("{name}_workers_jobs");
    let config = format!(
        r#"{{"name":"{stream}","subjects":["{name}.workers.jobs.>"],"retention":"workqueue","discard":"old","max_msgs":10}}"#
    );
    let made = ask(&format!("$JS.API.STREAM.CREATE.{stream}"), &config);
    assert!(!made.contains("\"error\""), "{made}");
    let options = QueueOptions::default().with_bytes_max(8 << 20);
    let opened = Nats::queue(name).options(options).open(servers()).await;
    let Err(QueueError::Unavailable { reason, work }) = opened else {
        panic!("a stream that discards old jobs is taken");
    };
    assert_eq!(work, Work::NotDone);
    assert!(reason.contains("discards Old"), "{reason}");
}

/// The server counts a delay in nanoseconds, in 64 bits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_delayed_by_centuries_is_delivered_a_few_times_at_most() {
    let (name, producer) = (fresh_name(), Producer::ephemeral());
    let queue = open(&name, &QueueOptions::default()).await;
    let push = async |delay| {
        let mut job = NewJob::new(producer.identity(), Bytes::from_static(b"later"));
        job.delay = delay;
        let pushed = queue.push(vec![job], within(LONG)).await;
        assert!(pushed.expect("an answer").iter().all(Result::is_ok));
    };
    push(Duration::from_secs(600 * 365 * 24 * 60 * 60)).await;
    // Another one passes through the same consumer meanwhile.
    push(Duration::from_millis(500)).await;
    let until = within(LONG);
    while queue.counters("workers").await.expect("counters").ready == 0 {
        assert!(Instant::now() < until, "the second does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let info = ask(
        &format!("$JS.API.CONSUMER.INFO.{name}_workers_waiting.workers"),
        "",
    );
    let (_, delivered) = info.split_once("\"consumer_seq\":").expect("a count");
    let digits = delivered.split(|c: char| !c.is_ascii_digit()).next();
    let delivered: u64 = digits.expect("a number").parse().expect("a number");
    assert!(delivered < 20, "{delivered} deliveries of two jobs");
}
