//! Queues whose clock is set, and which are opened again; workers that answer late; poison.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bowline::RequestKey;
use bowline::queue::{
    Answer, Credit, Durable, Engine, Job, Memory, NewJob, Producer, Queue, QueueClock,
    QueueOptions, Refusal, SimulatedQueue,
};
use bowline_test_queues::jobs::Note;
use bytes::Bytes;
use tokio::time::sleep;

const MILLISECOND: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(30);
const CREDIT: Credit = Credit {
    jobs: 1000,
    bytes: 64 << 20,
    takes_any_first: true,
};

fn note(number: u64) -> Note {
    Note {
        number,
        text: "x".repeat(100),
    }
}

fn later(time: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + time
}

async fn eventually(mut is: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !is().await {
        assert!(Instant::now() < until, "it never came about");
        sleep(5 * MILLISECOND).await;
    }
}

/// Opens a queue that another has just closed, and whose last threads are about to let go.
async fn reopen(folder: &std::path::Path, options: QueueOptions) -> Durable {
    let until = Instant::now() + LONG;
    loop {
        let builder = Durable::builder(options.clone()).segment_bytes(64 << 10);
        match builder.open(folder) {
            Ok(engine) => return engine,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        sleep(10 * MILLISECOND).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_as_it_was_after_a_restart() {
    let folder = tempfile::tempdir().expect("a directory");
    let options = || {
        QueueOptions::default()
            .with_attempts_max(2)
            .with_backoff_min(MILLISECOND)
            .with_backoff_max(2 * MILLISECOND)
    };
    let id = RequestKey::new("order-314").expect("a key");
    let (leased, producer) = {
        let engine = reopen(folder.path(), options()).await;
        let producer = Producer::open(folder.path()).expect("a producer");
        let queue = Queue::<Note>::on(engine).with_producer(producer.clone());
        queue.push(&note(1)).id(id.clone()).await.expect("pushed");
        queue.push(&note(2)).await.expect("pushed");
        let delay = Duration::from_secs(3600);
        queue.push(&note(3)).delay(delay).await.expect("pushed");
        queue.push(&note(4)).await.expect("pushed");
        let worker = queue.engine().worker("workers").await.expect("the group");
        let leased = worker.lease(CREDIT, later(LONG)).await.expect("leased");
        let [done, dead, held] = &leased[..] else {
            panic!("three are ready");
        };
        let answers = vec![
            (done.number, done.token, Answer::Done),
            (
                dead.number,
                dead.token,
                Answer::Bury("it cannot be done".into()),
            ),
        ];
        let told = worker.answer(answers).await.expect("answered");
        assert!(told.iter().all(Result::is_ok));
        queue.close().await.expect("it is safe");
        (held.clone(), producer)
    };
    let engine = reopen(folder.path(), options()).await;
    assert!(engine.recovery().damage.is_empty() && engine.recovery().torn_bytes == 0);
    let again = Producer::open(folder.path()).expect("a producer");
    let (before, after) = (producer.identity(), again.identity());
    assert_eq!(before.producer, after.producer);
    assert!(before.epoch < after.epoch);
    let queue = Queue::<Note>::on(engine);
    let counters = queue.counters().await.expect("counters");
    let counts = (
        counters.ready,
        counters.leased,
        counters.delayed,
        counters.dead,
    );
    assert_eq!(counts, (0, 1, 1, 1));
    let known = queue.push(&note(1)).id(id).await.expect("an answer");
    assert!(known.is_duplicate());
    let letters = queue.dead_letters().list(None, 10).await.expect("a list");
    assert_eq!(letters[0].failures[0].cause, "it cannot be done");
    let opened = queue.dead_letters().open(&letters[0]).expect("a message");
    assert_eq!(opened.plain().expect("a note"), note(2));
    // The lease has survived: its holder answers, and is heard.
    let worker = queue.engine().worker("workers").await.expect("the group");
    let answer = vec![(leased.number, leased.token, Answer::Done)];
    let told = worker.answer(answer).await.expect("answered");
    assert_eq!(told, [Ok(())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_segments_go_and_what_they_knew_stays() {
    let folder = tempfile::tempdir().expect("a directory");
    let engine = reopen(folder.path(), QueueOptions::default()).await;
    let queue = Queue::<Note>::on(engine);
    let id = |number: u64| RequestKey::new(format!("id-{number}")).expect("a key");
    // One that stays while thousands come and go.
    let patient = Duration::from_secs(3600);
    queue
        .push(&note(0))
        .id(id(0))
        .delay(patient)
        .await
        .expect("pushed");
    let worker = queue.engine().worker("workers").await.expect("the group");
    for round in 0..150 {
        for number in 1..21 {
            let number = round * 20 + number;
            queue
                .push(&note(number))
                .id(id(number))
                .await
                .expect("pushed");
        }
        let leased = worker.lease(CREDIT, later(LONG)).await.expect("leased");
        let answers = leased
            .iter()
            .map(|job| (job.number, job.token, Answer::Done));
        worker.answer(answers.collect()).await.expect("answered");
    }
    let bytes = || -> u64 {
        let files = std::fs::read_dir(folder.path()).expect("a directory");
        files
            .map(|file| file.expect("a file").metadata().expect("its length").len())
            .sum()
    };
    // 3,000 jobs of 300 bytes with their facts are a megabyte and more.
    eventually(async || bytes() <= 9 * (64 << 10)).await;
    drop(worker);
    queue.close().await.expect("it is safe");
    drop(queue);
    let queue = Queue::<Note>::on(reopen(folder.path(), QueueOptions::default()).await);
    assert_eq!(queue.counters().await.expect("counters").delayed, 1);
    for number in [0, 1, 1500, 3000] {
        let pushed = queue.push(&note(number)).id(id(number)).await;
        assert!(
            pushed.expect("an answer").is_duplicate(),
            "{number} is known"
        );
    }
}

#[test]
fn a_clock_that_was_set_by_an_hour_brings_nothing_early_and_loses_nothing() {
    const HOUR: u64 = 3_600_000;
    for wall in [2 * HOUR, 0] {
        let folder = tempfile::tempdir().expect("a directory");
        let open = |wall| {
            let storage = bowline::queue::Directory::open(folder.path()).expect("it opens");
            let options = QueueOptions::default();
            let opened = SimulatedQueue::open(Arc::new(storage), &options, 64 << 10, wall, 1);
            opened.expect("it opens")
        };
        let mut queue = open(HOUR);
        let producer = Producer::ephemeral();
        for _ in 0..2 {
            let job = NewJob::new(producer.identity(), Bytes::new());
            queue.push(HOUR, &job).expect("pushed");
        }
        queue.flush().expect("written");
        let leased = queue.lease(HOUR, 1, CREDIT).expect("it reads");
        let (refused, held) = (&leased[0], &leased[1]);
        let answer = Answer::Refuse("no".into());
        let told = queue.answer(HOUR, refused.number, refused.token, answer);
        told.expect("it has the lease");
        queue.flush().expect("written");
        drop(queue);
        let sent =
            |queue: &mut SimulatedQueue, now| queue.lease(now, 2, CREDIT).expect("it reads").len();
        // The process starts again, by a clock that is an hour ahead, or behind.
        let mut queue = open(wall);
        assert_eq!(sent(&mut queue, 0), 0, "neither is early");
        assert_eq!(sent(&mut queue, 999), 0, "neither is early");
        let again = queue.lease(2_001, 2, CREDIT).expect("it reads");
        assert_eq!(again.len(), 1, "the wait for another attempt is over");
        assert_eq!(again[0].number, refused.number);
        // Its lease began anew; then comes the wait after a lost worker.
        assert_eq!(sent(&mut queue, 29_999), 0, "it is held");
        queue.lease(30_000, 2, CREDIT).expect("it reads");
        let lost = queue.lease(33_000, 3, CREDIT).expect("it reads");
        assert!(lost.iter().any(|job| job.number == held.number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_answer_is_refused_a_hundred_times_of_a_hundred() {
    let time = Arc::new(AtomicU64::new(0));
    let clock = QueueClock::manual(Arc::clone(&time));
    let engine = Memory::with_clock(QueueOptions::default(), clock);
    let producer = Producer::ephemeral();
    let jobs = (0..100).map(|_| NewJob::new(producer.identity(), Bytes::new()));
    engine
        .push(jobs.collect(), later(LONG))
        .await
        .expect("pushed");
    let stopped = engine.worker("workers").await.expect("the group");
    let leased = stopped.lease(CREDIT, later(LONG)).await.expect("leased");
    assert_eq!(leased.len(), 100);
    // Three leases later.
    time.fetch_add(90_000, Ordering::SeqCst);
    let other = engine.worker("workers").await.expect("the group");
    // The time is looked at; what was lost waits a while before it is sent again.
    assert!(
        other
            .lease(CREDIT, later(MILLISECOND))
            .await
            .expect("an answer")
            .is_empty()
    );
    time.fetch_add(300_000, Ordering::SeqCst);
    let again = other.lease(CREDIT, later(LONG)).await.expect("leased");
    assert_eq!(again.len(), 100);
    let done = |jobs: &[bowline::queue::LeasedJob]| {
        let answers = jobs.iter().map(|job| (job.number, job.token, Answer::Done));
        answers.collect::<Vec<_>>()
    };
    let late = stopped.answer(done(&leased)).await.expect("answered");
    assert_eq!(late.iter().filter(|told| told.is_err()).count(), 100);
    let told = other.answer(done(&again)).await.expect("answered");
    assert!(told.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_jobs_exactly_the_poisoned_are_dead() {
    let options = QueueOptions::default()
        .with_backoff_min(MILLISECOND)
        .with_backoff_max(5 * MILLISECOND);
    let queue = Queue::<Note>::memory(options);
    let all: Vec<Note> = (0..1000).map(note).collect();
    queue.push_all(&all).await.expect("pushed");
    let tried = Arc::new(AtomicUsize::new(0));
    let handler = {
        let tried = Arc::clone(&tried);
        move |job: Arc<Job<Note>>| {
            let tried = Arc::clone(&tried);
            async move {
                match job.plain()?.number % 100 {
                    13 => {
                        tried.fetch_add(1, Ordering::SeqCst);
                        Err(Refusal::because("poison"))
                    }
                    _ => Ok(()),
                }
            }
        }
    };
    let worker = queue.worker(16, handler).start().await.expect("the group");
    eventually(async || queue.counters().await.expect("counters").jobs == 10).await;
    eventually(async || queue.counters().await.expect("counters").dead == 10).await;
    worker.drain(LONG).await;
    assert_eq!(tried.load(Ordering::SeqCst), 10 * 16);
    let dead = queue.dead_letters();
    let letters = dead.list(None, 100).await.expect("a list");
    for letter in letters {
        let job = dead.open(&letter).expect("a message").plain();
        assert_eq!(job.expect("a note").number % 100, 13);
        assert_eq!(letter.attempts.refused, 16);
    }
}
