//! Jobs that wait at their producer until their queue can be reached.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline::queue::{Outbox, Queue, QueueError, QueueOptions, QueueService, Remote};
use bowline::{Client, Server, ServerHandle};
use bowline_test_queues::jobs::Note;
use redb::Database;
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
