//! Ends: of a push at its deadline, of a worker and a queue that are closed in any order, of a job whose handler has
//! returned; and that a store knows which queue it holds.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bowline::queue::{
    Answer, Credit, Durable, Engine, Job, Memory, NewJob, Producer, Pushed, Queue, QueueClock,
    QueueError, QueueOptions, QueueService, Queueable, Refusal,
};
use bowline::{Server, ServerHandle, Work};
use bowline_test_queues::failing::{Failing, Fault};
use bowline_test_queues::jobs::{Note, Step};
use bytes::Bytes;
use tokio::time::{sleep, timeout};

const MILLISECOND: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(30);
/// A loaded machine is late; what is wrong is late by seconds.
const LATE: Duration = Duration::from_millis(900);
const CREDIT: Credit = Credit {
    jobs: 100,
    bytes: 1 << 20,
    takes_any_first: true,
};

fn note(number: u64) -> Note {
    Note {
        number,
        text: String::new(),
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

async fn serve<T: Queueable>(queue: &Queue<T>) -> ServerHandle {
    let service = QueueService::new().queue(queue);
    let server = Server::builder().service(service).bind("tcp://127.0.0.1:0");
    server.await.expect("it binds").spawn()
}

fn open(folder: &Path) -> Queue<Note> {
    Queue::on(Durable::open(folder, QueueOptions::default()).expect("it opens at once"))
}

/// Pushes with this time, and expects an end within it.
async fn push_in(queue: &Queue<Note>, wait: Duration) -> Result<Pushed, QueueError> {
    let began = Instant::now();
    let pushed = queue.push(&note(1)).wait_max(wait).await;
    let took = began.elapsed();
    assert!(took < wait + LATE, "{wait:?} became {took:?}: {pushed:?}");
    pushed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_ends_by_its_deadline_where_the_queue_is_gone_silent_or_full() {
    let queue = Queue::<Note>::memory(QueueOptions::default().with_jobs_max(1));
    let server = serve(&queue).await;
    let remote = Queue::<Note>::connect(server.endpoint().to_string())
        .await
        .expect("there");
    push_in(&remote, LONG).await.expect("there is room");
    for wait in [Duration::ZERO, 200 * MILLISECOND] {
        let full = push_in(&remote, wait).await;
        let is_it = matches!(full, Err(QueueError::Full | QueueError::Unavailable { .. }));
        assert!(is_it, "{full:?}");
    }
    server.shutdown().await;
    for wait in [Duration::ZERO, 200 * MILLISECOND, 2 * LATE] {
        let gone = push_in(&remote, wait).await;
        let is_it = matches!(gone, Err(QueueError::Unavailable { .. }));
        assert!(is_it, "{gone:?}");
    }
    // Many at once: none waits for the time of another.
    let pushes: Vec<_> = (1..8u32)
        .map(|n| {
            let remote = remote.clone();
            tokio::spawn(async move { push_in(&remote, n * 100 * MILLISECOND).await })
        })
        .collect();
    for push in pushes {
        push.await.expect("in time").expect_err("nothing is there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_waits_for_its_own_time_and_not_for_that_of_another() {
    let folder = tempfile::tempdir().expect("a directory");
    let socket = format!("ipc://{}", folder.path().join("queue").display());
    let queue = Queue::<Note>::memory(QueueOptions::default());
    let serve = async || {
        let service = QueueService::new().queue(&queue);
        let server = Server::builder().service(service).bind(&socket).await;
        server.expect("it binds").spawn()
    };
    let server = serve().await;
    let remote = Queue::<Note>::connect(&socket).await.expect("there");
    server.shutdown().await;
    let push = |wait| {
        let remote = remote.clone();
        tokio::spawn(async move { remote.push(&note(1)).wait_max(wait).await })
    };
    let (short, long) = (push(50 * MILLISECOND), push(LONG));
    short
        .await
        .expect("no panic")
        .expect_err("nothing is there");
    let server = serve().await;
    long.await.expect("no panic").expect("it is back");
    assert_eq!(queue.counters().await.expect("counters").jobs, 1);
    server.shutdown().await;
}

#[test]
fn a_push_whose_runtime_is_gone_ends_at_once_and_says_so() {
    let outer = tokio::runtime::Runtime::new().expect("a runtime");
    let queue = Queue::<Note>::memory(QueueOptions::default());
    let server = outer.block_on(serve(&queue));
    let inner = tokio::runtime::Runtime::new().expect("a runtime");
    let endpoint = server.endpoint().to_string();
    let remote = inner
        .block_on(Queue::<Note>::connect(endpoint))
        .expect("there");
    drop(inner);
    outer.block_on(async {
        let pushed = timeout(LONG, remote.push(&note(1)).wait_max(2 * LONG)).await;
        match pushed.expect("it ends at once") {
            Err(QueueError::Unavailable { reason, work }) => {
                assert_eq!(work, Work::NotDone);
                assert!(reason.contains("runtime"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        server.shutdown().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_that_does_not_answer_ends_a_push() {
    let folder = tempfile::tempdir().expect("a directory");
    let storage = Failing::open(folder.path()).expect("it opens");
    let builder = Durable::builder(QueueOptions::default());
    let queue = Queue::<Note>::on(builder.open_on(storage.clone()).expect("it opens"));
    queue.push(&note(1)).await.expect("there is room");
    storage.fail(Fault::Stalled);
    let pushed = timeout(LONG, queue.push(&note(2)).wait_max(100 * MILLISECOND)).await;
    match pushed.expect("it ends") {
        Err(QueueError::Unavailable { work, .. }) => assert_eq!(work, Work::OutcomeUnknown),
        other => panic!("{other:?}"),
    }
    storage.mend();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_then_drain_and_drain_then_close_are_the_same() {
    for closes_first in [true, false] {
        let folder = tempfile::tempdir().expect("a directory");
        let queue = open(folder.path());
        queue.push(&note(1)).await.expect("there is room");
        let began = Arc::new(AtomicU64::new(0));
        let worker = {
            let began = Arc::clone(&began);
            let handler = move |_: Arc<Job<Note>>| {
                began.fetch_add(1, Ordering::SeqCst);
                async move {
                    sleep(300 * MILLISECOND).await;
                    Ok::<_, Refusal>(())
                }
            };
            queue.worker(1, handler).start().await.expect("the group")
        };
        eventually(async || began.load(Ordering::SeqCst) == 1).await;
        if closes_first {
            queue.close().await.expect("it closes");
            let pushed = queue.push(&note(2)).await;
            assert!(matches!(pushed, Err(QueueError::Closed)), "{pushed:?}");
            worker.drain(LONG).await;
        } else {
            worker.drain(LONG).await;
            queue.close().await.expect("it closes");
        }
        // At once, though this one is still here.
        let again = open(folder.path());
        let counters = again.counters().await.expect("counters");
        assert_eq!((counters.jobs, counters.ready), (0, 0), "it was done");
        drop(queue);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_was_dropped_with_its_worker_is_opened_again() {
    let folder = tempfile::tempdir().expect("a directory");
    for number in 0..3 {
        let queue = open(folder.path());
        let jobs = queue.jobs().start().await.expect("the group");
        queue.push(&note(number)).await.expect("there is room");
        drop((queue, jobs));
    }
    assert_eq!(
        open(folder.path()).counters().await.expect("counters").jobs,
        3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handlers_ok_is_the_end_of_its_job_whatever_else_has_it() {
    let options = QueueOptions::default().with_lease(300 * MILLISECOND);
    let queue = Queue::<Note>::memory(options);
    let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
    let worker = {
        let kept = Arc::clone(&kept);
        let handler = move |job: Arc<Job<Note>>| {
            let number = job.plain().expect("a note").number;
            kept.lock().expect("no panic").push(job);
            async move {
                match number {
                    0 => Ok(()),
                    1 => Err(Refusal::because("cannot").for_good()),
                    _ => panic!("as it is told to"),
                }
            }
        };
        queue.worker(4, handler).start().await.expect("the group")
    };
    for number in 0..3 {
        queue.push(&note(number)).await.expect("there is room");
    }
    let counters = async || queue.counters().await.expect("counters");
    eventually(async || {
        let now = counters().await;
        (now.done, now.dead, now.leased) == (1, 1, 0)
    })
    .await;
    let first = Arc::clone(&kept.lock().expect("no panic")[0]);
    let late = first.extend().await;
    assert!(matches!(late, Err(QueueError::Stale(_))), "{late:?}");
    // It does not wait for who still has the jobs.
    timeout(LONG, worker.drain(2 * LONG))
        .await
        .expect("it ends");
    assert_eq!(counters().await.done, 1, "once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_one_queue_is_not_opened_as_another() {
    let folder = tempfile::tempdir().expect("a directory");
    let queue = open(folder.path());
    queue.push(&note(1)).await.expect("there is room");
    queue.close().await.expect("it closes");
    drop(queue);
    let engine = || Durable::open(folder.path(), QueueOptions::default()).expect("it opens");
    let steps = Queue::<Step>::on(engine());
    let step = Step::default();
    let refused = [
        steps.jobs().start().await.err(),
        steps.push(&step).await.err(),
        steps.counters().await.err(),
    ];
    for error in refused {
        let text = error.expect("refused").to_string();
        assert!(
            text.contains("\"notes\"") && text.contains("\"steps\""),
            "{text}"
        );
    }
    drop(steps);
    let notes = Queue::<Note>::on(engine());
    assert_eq!(notes.counters().await.expect("it is its own").jobs, 1);
    notes.close().await.expect("it closes");
    let adopted = Durable::builder(QueueOptions::default()).adopt();
    let steps = Queue::<Step>::on(adopted.open(folder.path()).expect("it opens"));
    assert_eq!(steps.counters().await.expect("adopted").jobs, 1);

    let memory = Memory::new(QueueOptions::default());
    let notes = Queue::<Note>::on(memory.clone());
    notes.push(&note(1)).await.expect("there is room");
    let refused = Queue::<Step>::on(memory).push(&step).await;
    assert!(
        matches!(refused, Err(QueueError::WrongQueue { .. })),
        "{refused:?}"
    );
}

/// As the queue of notes is called, and another type.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_served_as_another_type_is_refused() {
    let engine: Arc<dyn Engine> = Arc::new(Memory::new(QueueOptions::default()));
    let steps = Queue::<Step>::shared(engine);
    let server = serve(&steps).await;
    let endpoint = server.endpoint().to_string();
    let remote = bowline::queue::Remote::builder()
        .connect(endpoint, "steps")
        .await;
    let notes = Queue::<Note>::on(remote.expect("it is there"));
    let refused = notes.push(&note(1)).await;
    assert!(
        matches!(refused, Err(QueueError::WrongQueue { .. })),
        "{refused:?}"
    );
    server.shutdown().await;
}

#[tokio::test]
async fn the_order_of_a_key_is_the_same_after_a_restart() {
    for restarts in [false, true] {
        let folder = tempfile::tempdir().expect("a directory");
        let time = Arc::new(AtomicU64::new(1_000));
        let open = || {
            let clock = QueueClock::manual(Arc::clone(&time));
            let builder = Durable::builder(QueueOptions::default()).clock(clock);
            builder.open(folder.path()).expect("it opens")
        };
        let producer = Producer::ephemeral();
        let job = |body: &'static str| {
            let mut job = NewJob::new(producer.identity(), Bytes::from_static(body.as_bytes()));
            job.key = Some(Bytes::from_static(b"k"));
            job
        };
        let mut queue = open();
        let mut first = job("first");
        first.delay = Duration::from_secs(1);
        queue.push(vec![first], later(LONG)).await.expect("pushed");
        time.fetch_add(3_000, Ordering::SeqCst);
        queue
            .push(vec![job("second")], later(LONG))
            .await
            .expect("pushed");
        if restarts {
            queue.close().await.expect("it closes");
            queue = open();
        }
        let worker = queue.worker("workers").await.expect("the group");
        for expected in ["first", "second"] {
            let jobs = worker.lease(CREDIT, later(LONG)).await.expect("jobs");
            assert_eq!((jobs.len(), &jobs[0].body[..]), (1, expected.as_bytes()));
            let answers = vec![(jobs[0].number, jobs[0].token, Answer::Done)];
            worker.answer(answers).await.expect("done");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_served_queue_with_idle_workers_shuts_down_at_once() {
    let queue = Queue::<Note>::memory(QueueOptions::default().with_jobs_max(1));
    let server = serve(&queue).await;
    let endpoint = server.endpoint().to_string();
    let mut idle = Vec::new();
    for _ in 0..3 {
        let remote = Queue::<Note>::connect(endpoint.clone())
            .await
            .expect("there");
        idle.push(
            remote
                .jobs()
                .group("workers")
                .start()
                .await
                .expect("the group"),
        );
    }
    // They have asked, and wait: a job goes to one of them at once.
    let remote = Queue::<Note>::connect(endpoint).await.expect("there");
    remote.push(&note(1)).await.expect("there is room");
    eventually(async || queue.counters().await.expect("counters").leased == 1).await;
    // One that waits for room does not hold it up either.
    let waiting = tokio::spawn(async move { remote.push(&note(2)).wait_max(LONG / 2).await });
    sleep(100 * MILLISECOND).await;
    let began = Instant::now();
    server.shutdown().await;
    assert!(began.elapsed() < LATE, "{:?}", began.elapsed());
    waiting.abort();
}
