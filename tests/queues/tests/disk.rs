//! A queue on a disk that is full, and on one that fails: nothing is acknowledged in that time, whoever pushes is told,
//! and all is well again as soon as the disk is.
//!
//! `BOWLINE_FAULT_SECONDS=10 cargo test --release -p bowline-test-queues --test disk` is the long form.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline::queue::{
    Answer, Credit, Durable, Engine, EngineWorker, LeasedJob, Queue, QueueError, QueueOptions,
};
use bowline::{Msg, Work};
use bowline_test_queues::failing::{Failing, Fault};
use bowline_test_queues::jobs::Note;
use tokio::time::sleep;

const MILLISECOND: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(30);
/// How soon a queue is back after its disk.
const RECOVERY: Duration = Duration::from_secs(5);

/// How long each fault lasts.
fn fault_seconds() -> u64 {
    let value = std::env::var("BOWLINE_FAULT_SECONDS").ok();
    value.and_then(|value| value.parse().ok()).unwrap_or(2)
}

/// Who pushes, and what was acknowledged.
struct Producer {
    queue: Queue<Note>,
    number: u64,
    told: BTreeSet<u64>,
}

fn note(number: u64) -> Note {
    let text = "x".repeat(100);
    Note { number, text }
}

impl Producer {
    async fn push(&mut self) -> Result<(), QueueError> {
        self.number += 1;
        let push = self.queue.push(&note(self.number));
        push.wait_max(50 * MILLISECOND).await?;
        self.told.insert(self.number);
        Ok(())
    }

    /// Expects an error of this kind from all pushes, for as long as a fault lasts, and returns how many there were.
    async fn is_refused(&mut self, with: fn(&QueueError) -> bool) -> u64 {
        let until = Instant::now() + Duration::from_secs(fault_seconds());
        let mut refused = 0;
        while Instant::now() < until {
            match self.push().await {
                Ok(()) => panic!("acknowledged while the disk fails"),
                Err(error) => assert!(with(&error), "{error:?}"),
            }
            refused += 1;
            sleep(10 * MILLISECOND).await;
        }
        refused
    }

    /// Expects that the queue is back in time. What is refused until then was not done.
    async fn is_taken_again(&mut self) -> Duration {
        let began = Instant::now();
        loop {
            match self.push().await {
                Ok(()) => return began.elapsed(),
                Err(QueueError::Full) => {}
                Err(QueueError::Unavailable { work, .. }) => assert_eq!(work, Work::NotDone),
                Err(other) => panic!("{other:?}"),
            }
            assert!(began.elapsed() < RECOVERY, "it is not back");
            sleep(10 * MILLISECOND).await;
        }
    }
}

async fn lease(worker: &dyn EngineWorker, jobs: usize, wait: Duration) -> Vec<LeasedJob> {
    let credit = Credit {
        jobs,
        bytes: 64 << 20,
        takes_any_first: true,
    };
    let until = tokio::time::Instant::now() + wait;
    worker.lease(credit, until).await.expect("an answer")
}

fn read(job: &LeasedJob) -> Note {
    let message = Msg::<Note>::open(job.body.clone(), &Default::default());
    message.expect("a message").plain().expect("a note")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_and_then_fails_acknowledges_nothing_and_comes_back() {
    let folder = tempfile::tempdir().expect("a directory");
    let storage = Failing::open(folder.path()).expect("it opens");
    let builder = Durable::builder(QueueOptions::default()).segment_bytes(64 << 10);
    let queue = Queue::<Note>::on(builder.open_on(storage.clone()).expect("it opens"));
    let worker = queue.engine().worker("workers").await.expect("the group");
    let mut producer = Producer {
        queue: queue.clone(),
        number: 0,
        told: BTreeSet::new(),
    };
    for _ in 0..20 {
        producer.push().await.expect("all is well");
    }
    let held = lease(&*worker, 3, LONG).await;
    for job in &held {
        producer.told.remove(&read(job).number);
    }

    // No room for another segment.
    storage.fail(Fault::Full);
    while producer.push().await.is_ok() {
        assert!(producer.number < 2000, "a disk without room takes no more");
    }
    let is_told =
        |error: &QueueError| matches!(error, QueueError::Full | QueueError::Unavailable { .. });
    let full = producer.is_refused(is_told).await;
    // Answers still find room: they make it.
    assert_eq!(answer(&*worker, &held[..2]).await, Some(2));
    storage.mend();
    let after_full = producer.is_taken_again().await;

    // What is written is not safe.
    storage.fail(Fault::NoSync);
    let is_told = |error: &QueueError| matches!(error, QueueError::Unavailable { .. });
    let failed = producer.is_refused(is_told).await;
    assert_eq!(answer(&*worker, &held[2..]).await, None);
    storage.mend();
    let after_failure = producer.is_taken_again().await;
    println!(
        "{} s each: {full} pushes refused while it was full, back after {after_full:.1?}; \
         {failed} while it failed, back after {after_failure:.1?}",
        fault_seconds()
    );

    let told = std::mem::take(&mut producer.told);
    queue.close().await.expect("it is safe");
    drop((producer, queue, worker, storage));
    // As the next process sees it.
    let engine = reopen(folder.path()).await;
    assert_eq!(engine.recovery().damage, []);
    let worker = engine.worker("workers").await.expect("the group");
    let mut found = BTreeSet::new();
    loop {
        let leased = lease(&*worker, 1000, MILLISECOND).await;
        if leased.is_empty() {
            break;
        }
        for job in leased {
            let read = read(&job);
            assert_eq!(read, note(read.number));
            found.insert(read.number);
        }
    }
    assert!(told.is_subset(&found), "acknowledged, and lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_that_wait_for_each_other_share_a_sync() {
    const PUSHES: u64 = 100;
    let folder = tempfile::tempdir().expect("a directory");
    let storage = Failing::open(folder.path()).expect("it opens");
    let builder = Durable::builder(QueueOptions::default()).segment_bytes(64 << 10);
    let queue = Queue::<Note>::on(builder.open_on(storage.clone()).expect("it opens"));
    queue.push(&note(0)).await.expect("all is well");
    // While one is on its way, the others come.
    storage.fail(Fault::Stalled);
    let pushes = (1..=PUSHES).map(|number| {
        let queue = queue.clone();
        tokio::spawn(async move { queue.push(&note(number)).await })
    });
    let pushes: Vec<_> = pushes.collect();
    let until = Instant::now() + LONG;
    while queue.counters().await.expect("counters").jobs as u64 <= PUSHES {
        assert!(Instant::now() < until, "not all of them come");
        sleep(MILLISECOND).await;
    }
    assert!(pushes.iter().all(|push| !push.is_finished()));
    storage.mend();
    for push in pushes {
        push.await.expect("no panic").expect("all is well again");
    }
    let asked = storage.mend();
    // A write and a sync of the first, of the rest, and of perhaps a segment more.
    assert!(asked < PUSHES / 4, "the disk was asked for {asked} things");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_moved_to_the_end_of_the_log_can_be_sent_before_it_is_there() {
    const JOBS: u64 = 600;
    const LEFT: usize = 8;
    let folder = tempfile::tempdir().expect("a directory");
    let queue = Queue::<Note>::on(reopen(folder.path()).await);
    let notes: Vec<Note> = (0..JOBS).map(note).collect();
    let pushed = queue.push_all(&notes).await.expect("all is well");
    assert!(pushed.iter().all(Result::is_ok));
    queue.close().await.expect("it is safe");
    drop(queue);

    // Opened again, so that no job is in memory.
    let until = Instant::now() + LONG;
    let storage = loop {
        match Failing::open(folder.path()) {
            Ok(storage) => break storage,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        sleep(10 * MILLISECOND).await;
    };
    let builder = Durable::builder(QueueOptions::default()).segment_bytes(64 << 10);
    let engine = builder.open_on(storage.clone()).expect("it opens");
    let worker = engine.worker("workers").await.expect("the group");
    let worker: Arc<dyn EngineWorker> = Arc::from(worker);
    let leased = lease(&*worker, 1000, LONG).await;
    assert_eq!(leased.len() as u64, JOBS);
    storage.fail(Fault::Stalled);
    // The first stay, alone in the oldest of many segments, and so are moved; and they can be sent.
    let answers: Vec<_> = leased
        .iter()
        .enumerate()
        .map(|(index, job)| match index < LEFT {
            true => (job.number, job.token, Answer::Release),
            false => (job.number, job.token, Answer::Done),
        })
        .collect();
    let counters = async || engine.counters("workers").await.expect("they are known");
    let answering = tokio::spawn({
        let worker = Arc::clone(&worker);
        async move { worker.answer(answers).await }
    });
    let is_late = Instant::now() + LONG;
    while counters().await.jobs > LEFT && Instant::now() < is_late {
        sleep(MILLISECOND).await;
    }
    let leasing = tokio::spawn({
        let worker = Arc::clone(&worker);
        async move { lease(&*worker, 1000, LONG).await }
    });
    while counters().await.ready > 0 && Instant::now() < is_late {
        sleep(MILLISECOND).await;
    }
    let damaged = counters().await.damaged;
    storage.mend();
    assert_eq!(damaged, 0, "not there yet is not damaged");
    answering.await.expect("it ends").expect("it is safe");
    let again = leasing.await.expect("it ends");
    let numbers: Vec<u64> = again.iter().map(|job| read(job).number).collect();
    assert_eq!(numbers, (0..LEFT as u64).collect::<Vec<_>>());
}

/// How many of these answers were taken; none where they could not be written down.
async fn answer(worker: &dyn EngineWorker, jobs: &[LeasedJob]) -> Option<usize> {
    let answers = jobs.iter().map(|job| (job.number, job.token, Answer::Done));
    let told = worker.answer(answers.collect()).await.ok()?;
    Some(told.iter().filter(|told| told.is_ok()).count())
}

/// Opens a queue that another has just closed, and whose last threads are about to let go.
async fn reopen(folder: &std::path::Path) -> Durable {
    let until = Instant::now() + LONG;
    loop {
        let builder = Durable::builder(QueueOptions::default()).segment_bytes(64 << 10);
        match builder.open(folder) {
            Ok(engine) => return engine,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        sleep(10 * MILLISECOND).await;
    }
}

/// On a file system of two mebibytes, mounted where nobody but the test sees it.
#[test]
fn a_real_disk_that_is_full_acknowledges_nothing_and_comes_back() {
    let folder = tempfile::tempdir().expect("a directory");
    let mounted = |script: &str| {
        let mount = format!("mount -t tmpfs -o size=2m tmpfs \"$1\" && {script}");
        let mut unshare = Command::new("unshare");
        unshare.args(["-Urm", "sh", "-c", &mount, env!("CARGO_BIN_EXE_role")]);
        unshare.arg(folder.path()).arg(fault_seconds().to_string());
        unshare.output()
    };
    match mounted("true") {
        Ok(probe) if probe.status.success() => {}
        Ok(probe) => {
            let why = String::from_utf8_lossy(&probe.stderr);
            return println!("skipped, as nothing can be mounted here: {}", why.trim());
        }
        Err(error) => return println!("skipped, as there is no unshare here: {error}"),
    }
    let filled = mounted("exec \"$0\" fill \"$1\" \"$2\"").expect("it ran before");
    let said = [filled.stdout, filled.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(filled.status.success(), "{said}");
    print!("{said}");
}
