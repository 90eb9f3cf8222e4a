//! Queues: between tasks beside tokio's channel, over the wire, on disk beside the bare `fdatasync` group commit of
//! the same disk in the same run, and a long backlog.
//!
//! `cargo bench -p bowline --features durable --bench queue`; with `BOWLINE_BACKLOG=10000000` the backlog too, whose
//! memory is that of the whole process. Figures are of one run: compare within it. Lines are `name value unit`.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bowline::Server;
use bowline::queue::{
    Answer, Credit, Durable, Engine, Memory, NewJob, Producer, QueueOptions, QueueService, Remote,
    channel,
};
use bytes::Bytes;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

const BODY_BYTES: usize = 100;
/// What such a job takes in the log.
const RECORD_BYTES: usize = 192;
/// Pushers of one job, and records of a bare commit.
const AT_ONCE: usize = 64;
/// Jobs of each, and bare commits.
const EACH: usize = 5000;

fn main() {
    // `cargo test --benches` only wants to know that it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        between_tasks().await;
        let memory: Arc<dyn Engine> = Arc::new(Memory::new(QueueOptions::default()));
        let rate = work(Arc::clone(&memory), 500_000, 4).await;
        println!("memory, in process: {rate:.0} jobs/s pushed, worked and acknowledged");
        over_the_wire().await;
    });
    let directory = tempfile::tempdir().expect("a directory");
    on_disk(&runtime, directory.path());
    if let Some(jobs) = std::env::var("BOWLINE_BACKLOG")
        .ok()
        .and_then(|n| n.parse().ok())
    {
        backlog(&runtime, jobs);
    }
}

fn body() -> Bytes {
    Bytes::from(vec![7; BODY_BYTES])
}

async fn between_tasks() {
    const VALUES: u64 = 2_000_000;
    let mut best = [f64::INFINITY; 2];
    for _ in 0..5 {
        let began = Instant::now();
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(1024);
        let sends = tokio::spawn(async move {
            let body = body();
            for _ in 0..VALUES {
                sender.send(body.clone()).await.expect("it is received");
            }
        });
        while receiver.recv().await.is_some() {}
        sends.await.expect("no panic");
        best[0] = best[0].min(began.elapsed().as_secs_f64());

        let began = Instant::now();
        let (pusher, taker) = channel::<Bytes>(1024);
        let pushes = tokio::spawn(async move {
            let body = body();
            for _ in 0..VALUES {
                pusher.push(body.clone()).await.expect("it is taken");
            }
        });
        while taker.take().await.is_some() {}
        pushes.await.expect("no panic");
        best[1] = best[1].min(began.elapsed().as_secs_f64());
    }
    let rate = |seconds: f64| VALUES as f64 / seconds;
    println!(
        "between tasks, tokio's channel: {:.0} values/s",
        rate(best[0])
    );
    println!("between tasks, a queue's: {:.0} values/s", rate(best[1]));
    println!("between tasks, ratio: {:.2}", best[1] / best[0]);
}

/// Pushes, leases and acknowledges so many jobs, in batches; returns jobs a second.
async fn work(engine: Arc<dyn Engine>, jobs: u64, pushers: u64) -> f64 {
    work_on(Arc::clone(&engine), engine, jobs, pushers).await
}

async fn work_on(
    of_producers: Arc<dyn Engine>,
    of_workers: Arc<dyn Engine>,
    jobs: u64,
    pushers: u64,
) -> f64 {
    const BATCH: u64 = 512;
    let began = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..pushers {
        let engine = Arc::clone(&of_producers);
        tasks.push(tokio::spawn(async move {
            let producer = Producer::ephemeral();
            for _ in 0..jobs / pushers / BATCH {
                let batch = (0..BATCH).map(|_| NewJob::new(producer.identity(), body()));
                let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
                let pushed = engine
                    .push(batch.collect(), deadline)
                    .await
                    .expect("pushed");
                assert!(pushed.iter().all(Result::is_ok));
            }
        }));
    }
    let total = jobs / pushers / BATCH * BATCH * pushers;
    for _ in 0..2 {
        let (engine, done) = (Arc::clone(&of_workers), Arc::clone(&done));
        tasks.push(tokio::spawn(async move {
            let worker = engine.worker("workers").await.expect("the group");
            let credit = Credit {
                jobs: 1024,
                bytes: 1 << 20,
                takes_any_first: true,
            };
            while done.load(Ordering::Relaxed) < total {
                let until = tokio::time::Instant::now() + Duration::from_millis(50);
                let leased = worker.lease(credit, until).await.expect("leased");
                let answers: Vec<_> = leased
                    .iter()
                    .map(|job| (job.number, job.token, Answer::Done))
                    .collect();
                if answers.is_empty() {
                    continue;
                }
                let count = answers.len() as u64;
                let held = worker.answer(answers).await.expect("answered");
                assert!(held.iter().all(Result::is_ok));
                done.fetch_add(count, Ordering::Relaxed);
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    total as f64 / began.elapsed().as_secs_f64()
}

async fn over_the_wire() {
    let memory: Arc<dyn Engine> = Arc::new(Memory::new(QueueOptions::default()));
    let server = Server::builder()
        .service(QueueService::new().engine("bench", memory))
        .bind("tcp://127.0.0.1:0")
        .await
        .expect("it binds")
        .spawn();
    let endpoint = server.endpoint().to_string();
    let connect = async || {
        let remote = Remote::builder().connect(endpoint.clone(), "bench").await;
        let remote: Arc<dyn Engine> = Arc::new(remote.expect("it is there"));
        remote
    };
    let (producers, workers) = (connect().await, connect().await);
    for _ in 0..3 {
        let rate = work_on(Arc::clone(&producers), Arc::clone(&workers), 300_000, 4).await;
        println!("memory, over TCP: {rate:.0} jobs/s pushed, worked and acknowledged");
    }
    server.shutdown().await;
}

/// The most that a log can commit: `AT_ONCE` records of the queue's size are there each time, are written at once, and
/// one sync is for all of them. Nobody is told, and nobody waits.
fn bare_group_commit(directory: &Path) -> f64 {
    let (file, records) = bare_file(directory);
    let began = Instant::now();
    for commit in 0..EACH {
        let offset = (commit * records.len()) as u64;
        file.write_all_at(&records, offset).expect("written");
        file.sync_data().expect("synced");
    }
    (EACH * AT_ONCE) as f64 / began.elapsed().as_secs_f64()
}

/// The same where `AT_ONCE` tasks each hand over a record, wait until it is safe, and are told: a group commit, and nothing
/// of a queue.
fn told_group_commit(runtime: &tokio::runtime::Runtime, directory: &Path) -> f64 {
    let (file, records) = bare_file(directory);
    let record = records[..records.len() / AT_ONCE].to_vec();
    let (hand_over, handed_over) = std::sync::mpsc::channel::<(Vec<u8>, oneshot::Sender<()>)>();
    let writer = std::thread::spawn(move || {
        let (mut bytes, mut told, mut offset) = (Vec::new(), Vec::new(), 0);
        while let Ok(first) = handed_over.recv() {
            for (record, tell) in std::iter::once(first).chain(handed_over.try_iter()) {
                bytes.extend(record);
                told.push(tell);
            }
            file.write_all_at(&bytes, offset).expect("written");
            file.sync_data().expect("synced");
            offset += bytes.len() as u64;
            bytes.clear();
            for tell in told.drain(..) {
                let _ = tell.send(());
            }
        }
    });
    let began = Instant::now();
    runtime.block_on(async {
        let tasks = (0..AT_ONCE).map(|_| {
            let (hand_over, record) = (hand_over.clone(), record.clone());
            tokio::spawn(async move {
                for _ in 0..EACH {
                    let (tell, told) = oneshot::channel();
                    hand_over.send((record.clone(), tell)).expect("it is there");
                    told.await.expect("it is safe");
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("no panic");
        }
    });
    let rate = (EACH * AT_ONCE) as f64 / began.elapsed().as_secs_f64();
    drop(hand_over);
    writer.join().expect("no panic");
    rate
}

/// A file with room for all commits, written as a segment is, and the records of one commit.
fn bare_file(directory: &Path) -> (std::fs::File, Vec<u8>) {
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(directory.join("bare"))
        .expect("a file");
    let records = vec![7u8; RECORD_BYTES * AT_ONCE];
    let bytes = (records.len() * EACH) as u64;
    let zeros = vec![0; 1 << 20];
    for offset in (0..bytes + (1 << 20)).step_by(1 << 20) {
        file.write_all_at(&zeros, offset).expect("written");
    }
    file.sync_all().expect("synced");
    (file, records)
}

fn on_disk(runtime: &tokio::runtime::Runtime, directory: &Path) {
    for round in 0..3 {
        let bare = bare_group_commit(directory);
        let told = told_group_commit(runtime, directory);
        let began = Instant::now();
        let queue = directory.join(format!("queue-{round}"));
        let engine = Durable::open(queue, QueueOptions::default()).expect("it opens");
        let opened = began.elapsed();
        let engine: Arc<dyn Engine> = Arc::new(engine);
        let rate = runtime.block_on(push_one_by_one(engine));
        println!(
            "on disk, {AT_ONCE} pushers of one job: {rate:.0} jobs/s; bare group commit {bare:.0} records/s: {:.0} %; with {AT_ONCE} tasks that are told {told:.0}: {:.0} %; opened in {:.1} ms",
            100.0 * rate / bare,
            100.0 * rate / told,
            1e3 * opened.as_secs_f64()
        );
        let engine = Arc::new(
            Durable::open(
                directory.join(format!("work-{round}")),
                QueueOptions::default(),
            )
            .expect("it opens"),
        );
        let rate = runtime.block_on(work(engine, 1_000_000, 4));
        println!("on disk, in batches: {rate:.0} jobs/s pushed, worked and acknowledged");
    }
}

/// Each of the tasks waits for the one job that it has pushed; returns jobs a second.
async fn push_one_by_one(engine: Arc<dyn Engine>) -> f64 {
    let began = Instant::now();
    let tasks = (0..AT_ONCE).map(|_| {
        let engine = Arc::clone(&engine);
        tokio::spawn(async move {
            let producer = Producer::ephemeral();
            for _ in 0..EACH {
                let job = vec![NewJob::new(producer.identity(), body())];
                let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
                let pushed = engine.push(job, deadline).await.expect("pushed");
                assert!(pushed[0].is_ok());
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    (AT_ONCE * EACH) as f64 / began.elapsed().as_secs_f64()
}

fn backlog(runtime: &tokio::runtime::Runtime, jobs: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let options = || {
        QueueOptions::default()
            .with_jobs_max(usize::MAX)
            .with_bytes_max(u64::MAX)
    };
    let before = resident_bytes();
    let engine = Durable::open(directory.path(), options()).expect("it opens");
    let began = Instant::now();
    runtime.block_on(async {
        let producer = Producer::ephemeral();
        let small = Bytes::from_static(b"a small job");
        for _ in 0..jobs / 1000 {
            let batch = (0..1000).map(|_| NewJob::new(producer.identity(), small.clone()));
            let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
            let pushed = engine
                .push(batch.collect(), deadline)
                .await
                .expect("pushed");
            assert!(pushed.iter().all(Result::is_ok));
        }
    });
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "backlog of {jobs}: pushed in {:.1} s, {:.0} MiB more memory",
        began.elapsed().as_secs_f64(),
        mebibytes(resident_bytes().saturating_sub(before))
    );
    drop(engine);
    let began = Instant::now();
    let engine = Durable::open(directory.path(), options()).expect("it opens again");
    println!(
        "backlog of {jobs}: opened in {:.1} s, {:.0} MiB resident",
        began.elapsed().as_secs_f64(),
        mebibytes(resident_bytes())
    );
    let ready = runtime
        .block_on(engine.counters("workers"))
        .expect("counters")
        .ready;
    assert_eq!(ready as u64, jobs / 1000 * 1000);
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
