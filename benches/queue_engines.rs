//! Durable queues on one machine beside each other: ours, NATS JetStream, RabbitMQ's quorum queues. The same work on
//! each through the same trait: 100 bytes a job, pushed, worked and acknowledged by this process.
//!
//! `NATS_SERVER=/path/to/nats-server tests/queues/servers cargo bench -p bowline --features durable,nats,rabbitmq
//! --bench queue_engines`. NATS syncs each push only with a server of 2.10 or later (`sync_interval: always`); the first
//! line says whether it does. Figures are of one run: compare within it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bowline::queue::engines::{Nats, RabbitMq};
use bowline::queue::{Answer, Credit, Durable, Engine, NewJob, Producer, QueueOptions};
use bytes::Bytes;

const BODY_BYTES: usize = 100;
const ROUNDS: usize = 3;

fn main() {
    // `cargo test --benches` only wants to know that it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(compare());
}

async fn compare() {
    let variable = |name| std::env::var(name).expect("run this by tests/queues/servers");
    let syncs = std::env::var("BOWLINE_NATS_SYNCS").is_ok();
    println!("NATS syncs each push: {syncs}");
    let options = QueueOptions::default().with_bytes_max(256 << 20);
    let directory = tempfile::tempdir().expect("a directory");
    let name = format!("bench-{}", Producer::ephemeral().identity().producer);
    let durable = Durable::open(directory.path(), options.clone()).expect("a directory of ours");
    let nats = Nats::queue(name.clone()).options(options.clone());
    let nats = nats.open(variable("BOWLINE_NATS")).await.expect("NATS");
    let rabbitmq = RabbitMq::queue(name).options(options);
    let rabbitmq = rabbitmq
        .open(variable("BOWLINE_RABBITMQ"))
        .await
        .expect("RabbitMQ");
    let engines: [(&str, Arc<dyn Engine>); 3] = [
        ("durable, embedded", Arc::new(durable)),
        ("NATS JetStream", Arc::new(nats)),
        ("RabbitMQ quorum queue", Arc::new(rabbitmq)),
    ];
    for (jobs, producers, batch) in [(20_480, 4, 256), (2_048, 32, 1)] {
        println!("{producers} producers, {batch} jobs a push, 2 workers, best of {ROUNDS}:");
        for (name, engine) in &engines {
            let mut best = 0.0_f64;
            for _ in 0..ROUNDS {
                best = best.max(work(engine, jobs, producers, batch).await);
            }
            println!("  {name}: {best:.0} jobs/s pushed, worked and acknowledged");
        }
    }
}

async fn work(engine: &Arc<dyn Engine>, jobs: u64, producers: u64, batch: u64) -> f64 {
    let began = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..producers {
        let engine = Arc::clone(engine);
        tasks.push(tokio::spawn(async move {
            let producer = Producer::ephemeral();
            let body = Bytes::from(vec![7; BODY_BYTES]);
            for _ in 0..jobs / producers / batch {
                let batch = (0..batch).map(|_| NewJob::new(producer.identity(), body.clone()));
                let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
                let pushed = engine.push(batch.collect(), deadline).await;
                assert!(pushed.expect("it answers").iter().all(Result::is_ok));
            }
        }));
    }
    let total = jobs / producers / batch * batch * producers;
    for _ in 0..2 {
        let (engine, done) = (Arc::clone(engine), Arc::clone(&done));
        tasks.push(tokio::spawn(async move {
            let worker = engine.worker("workers").await.expect("the group");
            let credit = Credit {
                jobs: 512,
                bytes: 1 << 20,
                takes_any_first: true,
            };
            while done.load(Ordering::Relaxed) < total {
                let until = tokio::time::Instant::now() + Duration::from_millis(50);
                let leased = worker.lease(credit, until).await.expect("it answers");
                let answers: Vec<_> = leased
                    .iter()
                    .map(|job| (job.number, job.token, Answer::Done))
                    .collect();
                let count = answers.len() as u64;
                if count > 0 {
                    let held = worker.answer(answers).await.expect("it answers");
                    assert!(held.iter().all(Result::is_ok));
                    done.fetch_add(count, Ordering::Relaxed);
                }
            }
            worker.leave().await.expect("it answers");
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    total as f64 / began.elapsed().as_secs_f64()
}
