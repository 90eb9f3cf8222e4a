//! Queues on RabbitMQ, under the suite of all engines. Run by `tests/queues/servers`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bowline::Work;
use bowline::queue::engines::RabbitMq;
use bowline::queue::{Answer, Credit, Engine, NewJob, Producer, QueueError, QueueOptions, Stale};
use bowline_test_queues::suite::{Setup, refusals};
use bowline_test_queues::{conformance, silent};
use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout};

struct OnRabbitMq;

impl Setup for OnRabbitMq {
    async fn engine(&self, options: QueueOptions) -> Arc<dyn Engine> {
        let uri = std::env::var("BOWLINE_RABBITMQ").expect("run this by tests/queues/servers");
        let name = format!("test-{}", Producer::ephemeral().identity().producer);
        let queue = RabbitMq::queue(name).options(options).open(uri).await;
        Arc::new(queue.expect("RabbitMQ takes a queue"))
    }
}

conformance!(OnRabbitMq);

/// The table of docs/queue-engines.md says the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rabbitmq_cannot_keep_is_refused_and_all_else_is_not() {
    let engine = OnRabbitMq.engine(QueueOptions::default()).await;
    let refused = [
        "order per key",
        "job IDs",
        "priorities",
        "finding a job by its ID",
    ];
    assert_eq!(refusals(engine).await, refused);
}

/// Longer than anything that happens here takes, on a machine that does other things too.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_says_nothing_is_unavailable_after_as_long_as_it_may_take() {
    let (_silent, address) = silent();
    let time = Duration::from_millis(300);
    let builder = RabbitMq::queue("any").answer_max(time);
    let began = Instant::now();
    let opened = builder.open(format!("amqp://{address}/%2f")).await;
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

/// Forwards connections to the broker, cuts all that there are when it is told to, and counts them.
async fn proxy(broker: String) -> (u16, broadcast::Sender<()>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let (cut, _) = broadcast::channel(1);
    let (cuts, connections) = (cut.clone(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let (mut cut, broker) = (cuts.subscribe(), broker.clone());
            tokio::spawn(async move {
                let Ok(mut broker) = TcpStream::connect(broker).await else {
                    return;
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut broker) => {}
                    _ = cut.recv() => {}
                }
            });
        }
    });
    (port, cut, connections)
}

/// A job's headers have to be in one frame: what the broker tells is too large is not sent, and a job that fitted once
/// fits for ever, with as much of its causes as there is room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_over_a_frame_are_too_large_and_those_just_within_it_are_done() {
    const FRAME: usize = 128 << 10;
    let uri = std::env::var("BOWLINE_RABBITMQ").expect("run this by tests/queues/servers");
    let (broker, forwarded) = proxied(&uri);
    let (port, _, connections) = proxy(broker).await;
    let producer = Producer::ephemeral();
    let name = format!("test-{}", producer.identity().producer);
    let options = QueueOptions::default()
        .with_attempts_max(4)
        .with_cause_bytes_max(FRAME)
        .with_backoff_min(Duration::from_millis(10))
        .with_backoff_max(Duration::from_millis(20));
    let builder = RabbitMq::queue(name).options(options).carry_unkept();
    let queue = builder.open(forwarded(port)).await.expect("a queue");
    let job = |key: usize| {
        let mut job = NewJob::new(producer.identity(), Bytes::from_static(b"a job"));
        job.key = Some(Bytes::from(vec![b'k'; key]));
        job
    };
    let push = async |jobs| {
        let pushed = queue.push(jobs, Instant::now() + LONG).await;
        pushed.expect("an answer")
    };
    let pushed = push(vec![job(1), job(FRAME), job(2)]).await;
    assert!(pushed[0].is_ok() && pushed[2].is_ok(), "{pushed:?}");
    let Err(QueueError::TooLarge { bytes, max }) = pushed[1] else {
        panic!("{pushed:?}");
    };
    let largest = FRAME - (bytes - max);
    let pushed = push(vec![job(largest + 1), job(largest)]).await;
    let is_over =
        matches!(&pushed[0], Err(QueueError::TooLarge { bytes, max }) if *bytes == max + 1);
    assert!(is_over && pushed[1].is_ok(), "{pushed:?}");

    let worker = queue.worker("workers").await.expect("the group");
    let credit = Credit {
        jobs: 8,
        bytes: 1 << 20,
        takes_any_first: true,
    };
    let cause = "a long story ".repeat(FRAME / 13);
    let (until, mut refused) = (Instant::now() + LONG, 0);
    while refused < 3 * 4 {
        assert!(Instant::now() < until, "{refused} came");
        let leased = worker.lease(credit, Instant::now() + LONG).await;
        let leased = leased.expect("the connection is there");
        refused += leased.len();
        let answer = |job: &bowline::queue::LeasedJob| {
            let answer = Answer::Refuse(cause.clone());
            (job.number, job.token, answer)
        };
        let answers = leased.iter().map(answer).collect();
        let told = worker
            .answer(answers)
            .await
            .expect("the connection is there");
        assert!(told.iter().all(Result::is_ok));
    }
    let letters = queue.dead_letters("workers", None, 10).await;
    let letters = letters.expect("the connection is there");
    let keys: Vec<usize> = letters
        .iter()
        .flat_map(|l| &l.key)
        .map(Bytes::len)
        .collect();
    assert_eq!(keys, [1, 2, largest]);
    for letter in &letters {
        assert_eq!(
            (letter.attempts.refused, &letter.body[..]),
            (4, &b"a job"[..])
        );
        let last = letter.failures.last().expect("why it is dead");
        assert!(cause.starts_with(&last.cause));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "the first stays");
    let most = &letters[0].failures.last().expect("why it is dead").cause;
    assert!(most.len() > FRAME / 4, "{} bytes of its cause", most.len());
}

/// Where the broker of this URI is, and the URI of one at another port.
fn proxied(uri: &str) -> (String, impl Fn(u16) -> String) {
    let (_, rest) = uri.split_once('@').expect("a user");
    let (broker, _) = rest.split_once('/').expect("a virtual host");
    let (uri, broker) = (uri.to_owned(), broker.to_owned());
    let of = broker.clone();
    (broker, move |port| {
        uri.replace(&of, &format!("127.0.0.1:{port}"))
    })
}

/// lapin 4.12 forgets what it is asked for while it ends a connection: whoever waited for that waited for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_while_the_connection_ends_is_told_in_time_and_its_worker_comes_back() {
    let uri = std::env::var("BOWLINE_RABBITMQ").expect("run this by tests/queues/servers");
    let (broker, forwarded) = proxied(&uri);
    let (port, cut, _) = proxy(broker).await;
    let uri = forwarded(port);
    let producer = Producer::ephemeral();
    let name = format!("test-{}", producer.identity().producer);
    let queue = RabbitMq::queue(name).open(uri).await.expect("a queue");
    let queue: Arc<dyn Engine> = Arc::new(queue);
    let worker = queue.worker("workers").await.expect("the group");
    let credit = Credit {
        jobs: 32,
        bytes: 1 << 20,
        takes_any_first: true,
    };
    for round in 0..100_u64 {
        let until = Instant::now() + LONG;
        let leased = loop {
            assert!(Instant::now() < until, "no job comes in round {round}");
            let job = || NewJob::new(producer.identity(), Bytes::from_static(b"a job"));
            // The connection may still be ending: then neither is done.
            let pushed = queue.push((0..16).map(|_| job()).collect(), Instant::now() + LONG);
            if !pushed
                .await
                .is_ok_and(|results| results.iter().all(Result::is_ok))
            {
                continue;
            }
            match worker.lease(credit, Instant::now() + LONG).await {
                Ok(leased) if !leased.is_empty() => break leased,
                _ => continue,
            }
        };
        let answer = |job: &bowline::queue::LeasedJob| (job.number, job.token, Answer::Done);
        let answers: Vec<_> = leased.iter().map(answer).collect();
        cut.send(()).expect("there is a connection");
        // At every time of what happens then.
        sleep(Duration::from_micros(20 * round)).await;
        let told = timeout(LONG, worker.answer(answers)).await;
        match told.expect("it is told in time") {
            Ok(results) => assert!(
                results
                    .iter()
                    .all(|told| matches!(told, Ok(()) | Err(Stale)))
            ),
            Err(QueueError::Unavailable { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}
