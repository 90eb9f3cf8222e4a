//! When a lease begins and ends, to the millisecond; and that nothing a handler does keeps it from being renewed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bowline::Server;
use bowline::queue::{
    Answer, Credit, Durable, Engine, EngineWorker, LeasedJob, Memory, NewJob, Producer, Queue,
    QueueClock, QueueOptions, QueueService, Stale,
};
use bowline_test_queues::jobs::Note;
use bytes::Bytes;
use tokio::time::Instant;

const LEASE: u64 = 30_000;
const ATTEMPT: u64 = 600_000;
const HOUR: u64 = 3_600_000;
const CREDIT: Credit = Credit {
    jobs: 10,
    bytes: 1 << 20,
    takes_any_first: true,
};

/// A queue with the limits that nobody has set, whose time the test sets.
struct Timed {
    time: Arc<AtomicU64>,
    engine: Memory,
}

impl Timed {
    async fn with_a_job() -> Self {
        let time = Arc::new(AtomicU64::new(0));
        let clock = QueueClock::manual(Arc::clone(&time));
        let engine = Memory::with_clock(QueueOptions::default(), clock);
        let job = NewJob::new(Producer::ephemeral().identity(), Bytes::new());
        let pushed = engine.push(vec![job], Instant::now()).await;
        assert!(pushed.expect("an answer")[0].is_ok());
        Self { time, engine }
    }

    fn at(&self, milliseconds: u64) {
        self.time.store(milliseconds, Ordering::SeqCst);
    }

    async fn worker(&self) -> Box<dyn EngineWorker> {
        self.engine.worker("workers").await.expect("the group")
    }
}

async fn lease(worker: &dyn EngineWorker) -> Option<LeasedJob> {
    let leased = worker.lease(CREDIT, Instant::now()).await;
    leased.expect("an answer").pop()
}

async fn done(worker: &dyn EngineWorker, job: &LeasedJob) -> Result<(), Stale> {
    let answer = vec![(job.number, job.token, Answer::Done)];
    let told = worker.answer(answer).await.expect("an answer");
    told[0]
}

async fn renew(worker: &dyn EngineWorker, job: &LeasedJob) -> Result<(), Stale> {
    let renewed = worker.renew(vec![(job.number, job.token)]).await;
    renewed.expect("an answer")[0]
}

#[tokio::test]
async fn a_lease_begins_when_the_job_is_sent_however_long_it_has_waited() {
    for (answered, expected) in [(HOUR + LEASE - 1, Ok(())), (HOUR + LEASE, Err(Stale))] {
        let queue = Timed::with_a_job().await;
        let worker = queue.worker().await;
        queue.at(HOUR);
        let job = lease(&*worker).await.expect("it is ready");
        queue.at(answered);
        assert_eq!(done(&*worker, &job).await, expected);
    }
}

#[tokio::test]
async fn an_attempt_ends_after_ten_minutes_however_often_it_is_renewed() {
    let queue = Timed::with_a_job().await;
    let worker = queue.worker().await;
    let job = lease(&*worker).await.expect("it is ready");
    for time in (10_000..ATTEMPT).step_by(10_000).chain([ATTEMPT - 1]) {
        queue.at(time);
        assert_eq!(renew(&*worker, &job).await, Ok(()), "after {time} ms");
    }
    queue.at(ATTEMPT);
    assert_eq!(renew(&*worker, &job).await, Err(Stale));
    assert_eq!(done(&*worker, &job).await, Err(Stale));
    // The worker was there: an attempt is used up.
    queue.at(ATTEMPT + HOUR);
    let again = lease(&*worker).await.expect("it comes again");
    assert_eq!((again.earlier.expired, again.earlier.lost), (1, 0));
    assert_eq!(again.earlier.used(), 1);
}

#[tokio::test]
async fn a_worker_of_which_nothing_is_heard_uses_up_no_attempt() {
    let queue = Timed::with_a_job().await;
    let gone = queue.worker().await;
    lease(&*gone).await.expect("it is ready");
    queue.at(LEASE);
    let other = queue.worker().await;
    assert_eq!(lease(&*other).await, None, "it waits before it comes again");
    queue.at(LEASE + HOUR);
    let again = lease(&*other).await.expect("it comes again");
    assert_eq!((again.earlier.expired, again.earlier.lost), (0, 1));
    assert_eq!(again.earlier.used(), 0);
}

/// Has two jobs, and blocks the only thread of its runtime for three leases with each: neither comes to anybody else.
fn blocks_its_only_thread(engine: impl AsyncFnOnce() -> Arc<dyn Engine>) {
    let lease = Duration::from_millis(500);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let queue = Queue::<Note>::shared(engine().await);
        for number in 0..2 {
            let text = String::new();
            let pushed = queue.push(&Note { number, text }).await;
            pushed.expect("there is room");
        }
        let mut jobs = queue.jobs().start().await.expect("the group");
        for number in 0..2 {
            let job = jobs.next().await.expect("it is open").expect("a job");
            assert_eq!(job.plain().expect("a note").number, number);
            std::thread::sleep(3 * lease);
            assert_eq!(job.earlier(), Default::default(), "it was not sent before");
            job.ack().await.expect("it has the lease");
        }
    });
}

fn short() -> QueueOptions {
    QueueOptions::default().with_lease(Duration::from_millis(500))
}

#[test]
fn a_handler_that_blocks_its_runtime_keeps_its_lease() {
    blocks_its_only_thread(async || Arc::new(Memory::new(short())) as Arc<dyn Engine>);
}

#[test]
fn on_disk_a_handler_that_blocks_its_runtime_keeps_its_lease() {
    let folder = tempfile::tempdir().expect("a directory");
    let engine = Durable::open(folder.path(), short()).expect("it opens");
    blocks_its_only_thread(async || Arc::new(engine) as Arc<dyn Engine>);
}

#[test]
fn over_the_wire_a_handler_that_blocks_its_runtime_keeps_its_lease() {
    let (started, starts) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let queue = Queue::<Note>::memory(short());
            let service = QueueService::new().queue(&queue);
            let server = Server::builder().service(service);
            let server = server.bind("tcp://127.0.0.1:0").await.expect("it binds");
            let server = server.spawn();
            let endpoint = server.endpoint().to_string();
            started.send(endpoint).expect("the test waits");
            let _ = stopped.await;
            server.shutdown().await;
        });
    });
    let endpoint = starts.recv().expect("it starts");
    blocks_its_only_thread(async || {
        let queue = Queue::<Note>::connect(endpoint).await.expect("it is there");
        Arc::clone(queue.engine())
    });
    drop(stop);
    server.join().expect("no panic");
}
