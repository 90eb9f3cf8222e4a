//! Queues on RabbitMQ, under the suite of all engines. Run by `tests/queues/servers`.

use std::sync::Arc;
use std::time::Duration;

use bowline::queue::engines::RabbitMq;
use bowline::queue::{Answer, Credit, Engine, NewJob, Producer, QueueError, QueueOptions, Stale};
use bowline_test_queues::conformance;
use bowline_test_queues::suite::{Setup, refusals};
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

/// Forwards connections to the broker, and cuts all that there are when it is told to.
async fn proxy(broker: String) -> (u16, broadcast::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let (cut, _) = broadcast::channel(1);
    let cuts = cut.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
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
    (port, cut)
}

/// lapin 4.12 forgets what it is asked for while it ends a connection: whoever waited for that waited for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_while_the_connection_ends_is_told_in_time_and_its_worker_comes_back() {
    let uri = std::env::var("BOWLINE_RABBITMQ").expect("run this by tests/queues/servers");
    let (_, rest) = uri.split_once('@').expect("a user");
    let (broker, _) = rest.split_once('/').expect("a virtual host");
    let (port, cut) = proxy(broker.to_owned()).await;
    let uri = uri.replace(broker, &format!("127.0.0.1:{port}"));
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
