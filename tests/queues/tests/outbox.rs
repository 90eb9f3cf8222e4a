//! Jobs that wait at their producer until their queue can be reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bowline::queue::{
    Capabilities, DeadLetter, Engine, EngineFuture, EngineWorker, JobId, JobNumber, JobState,
    Memory, NewJob, Outbox, OutboxError, Pushed, Queue, QueueCounters, QueueError, QueueOptions,
    QueueService, Queueable, Remote,
};
use bowline::{Client, Server, ServerHandle, Work};
use bowline_test_queues::jobs::{Note, Step};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::time::{sleep, timeout};

const MILLISECOND: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(30);

fn note(number: u64) -> Note {
    let text = String::new();
    Note { number, text }
}

async fn eventually(mut is: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !is().await {
        assert!(Instant::now() < until, "it never came about");
        sleep(5 * MILLISECOND).await;
    }
}

/// The outbox of a queue at this socket, which is perhaps not there yet.
fn outbox(database: &Arc<Database>, socket: &str) -> Outbox<Note> {
    let socket = socket.to_owned();
    let outbox = Outbox::open(Arc::clone(database), move || {
        let socket = socket.clone();
        let client = Client::builder().timeout(Duration::from_secs(1));
        async move {
            let remote = Remote::builder().client(client).connect(socket, "notes");
            let remote = timeout(Duration::from_secs(1), remote).await;
            remote.unwrap_or(Err(QueueError::Closed))
        }
    });
    outbox.expect("it opens")
}

async fn serve(queue: &Queue<Note>, socket: &str) -> ServerHandle {
    let service = QueueService::new().queue(queue);
    let server = Server::builder().service(service).bind(socket).await;
    server.expect("it binds").spawn()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_in_the_outbox_until_its_queue_can_be_reached() {
    let folder = tempfile::tempdir().expect("a directory");
    let database = redb::Database::create(folder.path().join("orders.redb")).expect("it opens");
    let database = Arc::new(database);
    let socket = format!("ipc://{}", folder.path().join("queue").display());
    let outbox = outbox(&database, &socket);
    for number in 0..10 {
        let transaction = database.begin_write().expect("a transaction");
        outbox.put_in(&transaction, &note(number)).expect("put in");
        match number {
            // The producer changes its mind, and nothing is pushed.
            5 => transaction.abort().expect("aborted"),
            _ => transaction.commit().expect("committed"),
        }
    }
    sleep(200 * MILLISECOND).await;
    assert_eq!(outbox.counters().expect("counters").waiting, 9);

    let queue = Queue::<Note>::memory(QueueOptions::default());
    let server = serve(&queue, &socket).await;
    eventually(async || outbox.counters().expect("counters").waiting == 0).await;
    let mut jobs = queue.jobs().start().await.expect("the group");
    for number in [0, 1, 2, 3, 4, 6, 7, 8, 9] {
        let job = timeout(LONG, jobs.next()).await.expect("a job");
        let job = job.expect("open").expect("an answer");
        assert_eq!(job.plain().expect("a note").number, number);
        job.ack().await.expect("it has the lease");
    }
    server.shutdown().await;
}

/// A queue to which the way is bad: every other answer is lost on it, after the jobs were pushed.
struct Lossy {
    queue: Arc<dyn Engine>,
    pushes: AtomicUsize,
}

impl Engine for Lossy {
    fn capabilities(&self) -> Capabilities {
        self.queue.capabilities()
    }

    fn push(
        &self,
        jobs: Vec<NewJob>,
        deadline: tokio::time::Instant,
    ) -> EngineFuture<'_, Vec<Result<Pushed, QueueError>>> {
        Box::pin(async move {
            let pushed = self.queue.push(jobs, deadline).await;
            match self.pushes.fetch_add(1, Ordering::SeqCst) % 2 {
                0 => Err(QueueError::Unavailable {
                    reason: "the answer was lost".into(),
                    work: Work::OutcomeUnknown,
                }),
                _ => pushed,
            }
        })
    }

    fn worker(&self, group: &str) -> EngineFuture<'_, Box<dyn EngineWorker>> {
        self.queue.worker(group)
    }

    fn dead_letters(
        &self,
        group: &str,
        after: Option<JobNumber>,
        max: usize,
    ) -> EngineFuture<'_, Vec<DeadLetter>> {
        self.queue.dead_letters(group, after, max)
    }

    fn send_back(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        self.queue.send_back(group, numbers)
    }

    fn delete(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        self.queue.delete(group, numbers)
    }

    fn find(&self, id: &JobId) -> EngineFuture<'_, Option<(JobNumber, JobState)>> {
        self.queue.find(id)
    }

    fn counters(&self, group: &str) -> EngineFuture<'_, QueueCounters> {
        self.queue.counters(group)
    }

    fn close(&self) -> EngineFuture<'_, ()> {
        self.queue.close()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_forwarded_twice_is_one_job_and_in_its_place() {
    const JOBS: u64 = 20;
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("orders.redb");
    let database = Arc::new(Database::create(&path).expect("it opens"));
    let queue = Queue::<Note>::memory(QueueOptions::default());
    let forwards = Arc::new(AtomicUsize::new(0));
    let outbox = Outbox::open(Arc::clone(&database), || async {
        Err::<Lossy, _>(QueueError::Closed)
    });
    let outbox = outbox.expect("it opens");
    for number in 0..JOBS {
        outbox.put(&note(number)).expect("put in");
    }
    // The process ends, and the next one finds them.
    drop(outbox);
    let outbox = {
        let (queue, forwards) = (queue.clone(), Arc::clone(&forwards));
        Outbox::<Note>::open(database, move || {
            let queue = Arc::clone(queue.engine());
            forwards.fetch_add(1, Ordering::SeqCst);
            async move {
                let pushes = AtomicUsize::new(0);
                Ok(Lossy { queue, pushes })
            }
        })
    };
    let outbox = outbox.expect("it opens");
    eventually(async || outbox.counters().expect("counters").waiting == 0).await;
    assert_eq!(forwards.load(Ordering::SeqCst), 1);
    let counters = queue.counters().await.expect("counters");
    assert_eq!(counters.jobs as u64, JOBS, "none is there twice");
    let mut jobs = queue.jobs().start().await.expect("the group");
    for number in 0..JOBS {
        let job = timeout(LONG, jobs.next()).await.expect("a job");
        let job = job.expect("open").expect("an answer");
        assert_eq!(job.plain().expect("a note").number, number);
        job.ack().await.expect("it has the lease");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_its_queue_will_never_take_stays_and_is_counted_and_holds_up_none() {
    let folder = tempfile::tempdir().expect("a directory");
    let database = Database::create(folder.path().join("orders.redb")).expect("it opens");
    let options = QueueOptions::default().with_job_bytes_max(100);
    let queue = Queue::<Note>::memory(options.clone());
    let outbox = {
        let queue = queue.clone();
        Outbox::<Note>::open(Arc::new(database), move || {
            let queue = Arc::clone(queue.engine());
            let pushes = AtomicUsize::new(1);
            async move { Ok(Lossy { queue, pushes }) }
        })
    };
    let outbox = outbox.expect("it opens");
    let large = Note {
        number: 1,
        text: "x".repeat(200),
    };
    for note in [note(0), large, note(2)] {
        outbox.put(&note).expect("put in");
    }
    eventually(async || outbox.counters().expect("counters").waiting == 0).await;
    assert_eq!(outbox.counters().expect("counters").refused, 1);
    assert_eq!(queue.counters().await.expect("counters").ready, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delay_and_expiry_count_from_the_push_however_long_the_queue_is_away() {
    let folder = tempfile::tempdir().expect("a directory");
    let database = Database::create(folder.path().join("orders.redb")).expect("it opens");
    let database = Arc::new(database);
    let socket = format!("ipc://{}", folder.path().join("queue").display());
    let hour = Duration::from_secs(3600);
    {
        let outbox = outbox(&database, &socket);
        let put = |number, delay, expires_after| {
            let transaction = database.begin_write().expect("a transaction");
            let put = outbox.put_job_in(&transaction, &note(number), |job| {
                job.delay = delay;
                job.expires_after = expires_after;
            });
            put.expect("put in");
            transaction.commit().expect("committed");
        };
        put(1, Duration::ZERO, Some(500 * MILLISECOND));
        put(2, 500 * MILLISECOND, None);
        put(3, Duration::ZERO, Some(hour));
        put(4, hour, None);
    }
    sleep(600 * MILLISECOND).await;
    // As the next process finds it.
    let outbox = outbox(&database, &socket);
    eventually(async || outbox.counters().expect("counters").expired == 1).await;
    assert_eq!(outbox.counters().expect("counters").waiting, 3);

    let queue = Queue::<Note>::memory(QueueOptions::default());
    let server = serve(&queue, &socket).await;
    eventually(async || outbox.counters().expect("counters").waiting == 0).await;
    let counters = queue.counters().await.expect("counters");
    // The second has waited long enough, and the first is not worth doing any more.
    assert_eq!((counters.ready, counters.delayed), (2, 1));
    let mut jobs = queue.jobs().start().await.expect("the group");
    for number in [2, 3] {
        let job = timeout(LONG, jobs.next()).await.expect("a job");
        let job = job.expect("open").expect("an answer");
        assert_eq!(job.plain().expect("a note").number, number);
        job.ack().await.expect("it has the lease");
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_damaged_in_the_outbox_is_set_aside_and_holds_up_none() {
    const JOBS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bowline.outbox:notes");
    const REFUSED: TableDefinition<'_, u64, &[u8]> =
        TableDefinition::new("bowline.outbox.refused:notes");
    let folder = tempfile::tempdir().expect("a directory");
    let database = redb::Database::create(folder.path().join("orders.redb")).expect("it opens");
    let database = Arc::new(database);
    let socket = format!("ipc://{}", folder.path().join("queue").display());
    let before = outbox(&database, &socket);
    for number in 0..3 {
        let transaction = database.begin_write().expect("a transaction");
        before.put_in(&transaction, &note(number)).expect("put in");
        transaction.commit().expect("committed");
    }
    // What it has read of the first is gone with it.
    drop(before);
    let transaction = database.begin_write().expect("a transaction");
    let damaged = {
        let mut jobs = transaction.open_table(JOBS).expect("the table");
        let first = jobs.first().expect("readable");
        let sequence = first.map(|(sequence, _)| sequence.value());
        let sequence = sequence.expect("three are there");
        jobs.insert(sequence, &b"nonsense"[..]).expect("damaged");
        sequence
    };
    transaction.commit().expect("committed");

    let outbox = outbox(&database, &socket);
    let queue = Queue::<Note>::memory(QueueOptions::default());
    let server = serve(&queue, &socket).await;
    eventually(async || outbox.counters().expect("counters").waiting == 0).await;
    assert_eq!(outbox.counters().expect("counters").refused, 1);
    assert_eq!(queue.counters().await.expect("counters").ready, 2);
    let transaction = database.begin_read().expect("a transaction");
    let refused = transaction.open_table(REFUSED).expect("the table");
    let kept = refused.get(damaged).expect("readable");
    assert_eq!(kept.expect("it is kept").value(), b"nonsense");
    server.shutdown().await;
}

/// The outbox of a queue of this type in memory.
fn to_memory<T: Queueable>(
    database: &Arc<Database>,
    engine: &Memory,
) -> Result<Outbox<T>, OutboxError> {
    let engine = engine.clone();
    Outbox::open(Arc::clone(database), move || {
        let engine = engine.clone();
        async move { Ok(engine) }
    })
}

fn is_empty<T: Queueable>(outbox: &Outbox<T>) -> bool {
    outbox.counters().expect("counters").waiting == 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outboxes_of_two_queues_share_a_database_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a directory");
    let database = Database::create(folder.path().join("orders.redb")).expect("it opens");
    let database = Arc::new(database);
    let (notes, steps) = (
        Memory::new(QueueOptions::default()),
        Memory::new(QueueOptions::default()),
    );
    let of_notes = to_memory::<Note>(&database, &notes).expect("it opens");
    let of_steps = to_memory::<Step>(&database, &steps).expect("it opens");
    for number in 0..20 {
        let transaction = database.begin_write().expect("a transaction");
        of_notes
            .put_in(&transaction, &note(number))
            .expect("put in");
        let work = "w".into();
        of_steps
            .put_in(&transaction, &Step { work, number })
            .expect("put in");
        transaction.commit().expect("committed");
    }
    eventually(async || is_empty(&of_notes) && is_empty(&of_steps)).await;
    for engine in [&notes, &steps] {
        assert_eq!(engine.counters("workers").await.expect("counters").jobs, 20);
    }
    let second = to_memory::<Note>(&database, &notes);
    assert!(
        matches!(second, Err(OutboxError::Open("notes"))),
        "{second:?}"
    );
    drop(of_notes);
    to_memory::<Note>(&database, &notes).expect("the first is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_put_in_after_a_backup_was_restored_are_new_jobs() {
    let folder = tempfile::tempdir().expect("a directory");
    let (path, backup) = (
        folder.path().join("orders.redb"),
        folder.path().join("backup.redb"),
    );
    let engine = Memory::new(QueueOptions::default());
    let forward = async |numbers: std::ops::Range<u64>| {
        let opened = || Database::create(&path).ok();
        let database = loop {
            // The task of the outbox before is about to let go of it.
            match opened() {
                Some(database) => break Arc::new(database),
                None => sleep(5 * MILLISECOND).await,
            }
        };
        let outbox = to_memory::<Note>(&database, &engine).expect("it opens");
        for number in numbers {
            outbox.put(&note(number)).expect("put in");
        }
        eventually(async || is_empty(&outbox)).await;
        outbox.counters().expect("counters").again
    };
    let closed = async || {
        eventually(async || Database::create(&path).is_ok()).await;
    };
    forward(0..10).await;
    closed().await;
    std::fs::copy(&path, &backup).expect("copied");
    forward(10..20).await;
    closed().await;
    std::fs::copy(&backup, &path).expect("restored");
    assert_eq!(forward(100..110).await, 0);
    let counters = engine.counters("workers").await.expect("counters");
    assert_eq!(counters.jobs, 30, "those from before, and those from after");
}

/// A queue that refuses each third job, or a batch with one as a whole; and is closed at first.
#[derive(Clone)]
struct Picky {
    queue: Memory,
    as_a_whole: bool,
    pushes: Arc<AtomicUsize>,
}

impl Engine for Picky {
    fn capabilities(&self) -> Capabilities {
        self.queue.capabilities()
    }

    fn push(
        &self,
        jobs: Vec<NewJob>,
        deadline: tokio::time::Instant,
    ) -> EngineFuture<'_, Vec<Result<Pushed, QueueError>>> {
        self.pushes.fetch_add(jobs.len(), Ordering::SeqCst);
        Box::pin(async move {
            let is_refused = |job: &NewJob| job.identity.sequence % 3 == 1;
            if self.as_a_whole && jobs.iter().any(is_refused) {
                return Err(QueueError::Unsupported("third jobs"));
            }
            let mut results = Vec::new();
            for job in jobs {
                if is_refused(&job) {
                    results.push(Err(QueueError::Unsupported("third jobs")));
                    continue;
                }
                results.extend(self.queue.push(vec![job], deadline).await?);
            }
            Ok(results)
        })
    }

    fn worker(&self, group: &str) -> EngineFuture<'_, Box<dyn EngineWorker>> {
        self.queue.worker(group)
    }

    fn dead_letters(
        &self,
        group: &str,
        after: Option<JobNumber>,
        max: usize,
    ) -> EngineFuture<'_, Vec<DeadLetter>> {
        self.queue.dead_letters(group, after, max)
    }

    fn send_back(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        self.queue.send_back(group, numbers)
    }

    fn delete(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        self.queue.delete(group, numbers)
    }

    fn find(&self, id: &JobId) -> EngineFuture<'_, Option<(JobNumber, JobState)>> {
        self.queue.find(id)
    }

    fn counters(&self, group: &str) -> EngineFuture<'_, QueueCounters> {
        self.queue.counters(group)
    }

    fn close(&self) -> EngineFuture<'_, ()> {
        self.queue.close()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_an_engine_refuses_is_set_aside_and_the_others_are_pushed_once() {
    for as_a_whole in [false, true] {
        let folder = tempfile::tempdir().expect("a directory");
        let database = Database::create(folder.path().join("orders.redb")).expect("it opens");
        let database = Arc::new(database);
        let picky = Picky {
            queue: Memory::new(QueueOptions::default()),
            as_a_whole,
            pushes: Arc::default(),
        };
        let connects = Arc::new(AtomicUsize::new(0));
        let outbox = {
            let (picky, connects) = (picky.clone(), Arc::clone(&connects));
            Outbox::<Note>::open(Arc::clone(&database), move || {
                let (picky, first) = (picky.clone(), connects.fetch_add(1, Ordering::SeqCst) == 0);
                async move {
                    match first {
                        true => Err(QueueError::Closed),
                        false => Ok(picky),
                    }
                }
            })
        };
        let outbox = outbox.expect("it opens");
        let transaction = database.begin_write().expect("a transaction");
        for number in 0..9 {
            outbox.put_in(&transaction, &note(number)).expect("put in");
        }
        transaction.commit().expect("committed");
        eventually(async || is_empty(&outbox)).await;
        let counters = outbox.counters().expect("counters");
        assert_eq!((counters.refused, counters.again), (3, 0));
        assert!(counters.is_forwarding);
        assert_eq!(
            picky
                .queue
                .counters("workers")
                .await
                .expect("counters")
                .jobs,
            6
        );
        let pushes = picky.pushes.load(Ordering::SeqCst);
        assert!(pushes <= 9 + 9, "{pushes} pushes of 9 jobs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_says_closed_is_connected_anew() {
    let folder = tempfile::tempdir().expect("a directory");
    let database = Database::create(folder.path().join("orders.redb")).expect("it opens");
    let (old, new) = (
        Memory::new(QueueOptions::default()),
        Memory::new(QueueOptions::default()),
    );
    old.close().await.expect("it closes");
    let connects = AtomicUsize::new(0);
    let engines = [old, new.clone()];
    let outbox = Outbox::<Note>::open(Arc::new(database), move || {
        let nth = connects.fetch_add(1, Ordering::SeqCst).min(1);
        let engine = engines[nth].clone();
        async move { Ok(engine) }
    });
    let outbox = outbox.expect("it opens");
    outbox.put(&note(1)).expect("put in");
    eventually(async || is_empty(&outbox)).await;
    assert_eq!(new.counters("workers").await.expect("counters").jobs, 1);
    eventually(async || outbox.last_error().is_none()).await;
}

#[test]
fn an_outbox_whose_runtime_is_gone_says_so_and_still_takes_jobs() {
    let folder = tempfile::tempdir().expect("a directory");
    let database = Database::create(folder.path().join("orders.redb")).expect("it opens");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let engine = Memory::new(QueueOptions::default());
    let outbox = {
        let _inside = runtime.enter();
        to_memory::<Note>(&Arc::new(database), &engine).expect("it opens")
    };
    drop(runtime);
    assert!(!outbox.counters().expect("counters").is_forwarding);
    outbox.put(&note(1)).expect("put in");
    assert_eq!(outbox.counters().expect("counters").waiting, 1);
}
