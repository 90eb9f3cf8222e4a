//! Jobs that wait at their producer until their queue can be reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bowline::queue::{
    Capabilities, DeadLetter, Engine, EngineFuture, EngineWorker, JobId, JobNumber, JobState,
    NewJob, Outbox, Pushed, Queue, QueueCounters, QueueError, QueueOptions, QueueService, Remote,
};
use bowline::{Client, Server, ServerHandle, Work};
use bowline_test_queues::jobs::Note;
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
    const JOBS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bowline.outbox");
    const REFUSED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bowline.outbox.refused");
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
