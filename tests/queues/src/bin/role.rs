//! One process of a queue's life, to be killed or stopped at any time and started again.
//!
//! - `role serve <folder> <endpoint> <lease in ms>` has the queue;
//! - `role produce <folder> <endpoint> <name> <jobs>` pushes, and writes down what was acknowledged;
//! - `role work <folder> <endpoint> <name> <ledger's endpoint>` writes down what it is sent, and enters it in the ledger;
//! - `role ledger <folder> <endpoint>` keeps what was done, each job's once;
//! - `role hold <endpoint>`, or `nats <server> <name>`, or `rabbitmq <uri> <name>`, takes one job after another, says so, and acknowledges each
//!   when it is told to;
//! - `role fill <folder> <seconds>` fills the disk that it is on, and sees what becomes of a queue there.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline::once::{Bounds, Once, RedbStore, RedbTransaction};
use bowline::queue::{Durable, Job, Queue, QueueError, QueueOptions, QueueService, Refusal};
use bowline::{Client, Reply, Request, RequestKey, Server, Status};
use bowline_test_queues::jobs::{EnterResults, Ledger, LedgerClient, LedgerServer, Note};
use bowline_test_queues::{ENTRIES, is_poison};
use redb::{Database, ReadableTable, WriteTransaction};
use tokio::time::sleep;

type AnyError = Box<dyn Error>;

/// Between what a job does and the acknowledgement, so that workers are killed there.
const WORK: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", folder, endpoint, lease] => {
            let lease = Duration::from_millis(lease.parse()?);
            serve(Path::new(folder), endpoint, lease).await
        }
        ["produce", folder, endpoint, name, jobs] => {
            produce(Path::new(folder), endpoint, name, jobs.parse()?).await
        }
        ["work", folder, endpoint, name, ledger] => {
            work(Path::new(folder), endpoint, name, ledger).await
        }
        ["ledger", folder, endpoint] => ledger(Path::new(folder), endpoint).await,
        ["hold", endpoint] => hold(connect(endpoint).await).await,
        #[cfg(feature = "nats")]
        ["hold", "nats", server, name] => {
            let queue = bowline_test_queues::held_on_nats(server, name).await?;
            hold(Queue::on(queue)).await
        }
        #[cfg(feature = "rabbitmq")]
        ["hold", "rabbitmq", uri, name] => {
            let queue = bowline_test_queues::held_on_rabbitmq(uri, name).await?;
            hold(Queue::on(queue)).await
        }
        ["fill", folder, seconds] => {
            fill(Path::new(folder), Duration::from_secs(seconds.parse()?)).await
        }
        _ => Err("which role?".into()),
    }
}

async fn serve(folder: &Path, endpoint: &str, lease: Duration) -> Result<(), AnyError> {
    let options = QueueOptions::default()
        .with_lease(lease)
        .with_backoff_min(Duration::from_millis(20))
        .with_backoff_max(Duration::from_millis(100))
        .with_lost_max(1000);
    let builder = Durable::builder(options).segment_bytes(1 << 20);
    let queue = Queue::<Note>::on(builder.open(folder.join("queue"))?);
    let service = QueueService::new().queue(&queue);
    let server = Server::builder().service(service).bind(endpoint).await?;
    server.run().await;
    Ok(())
}

/// One write, so that a line is there or is not.
fn write_down(file: &Path, line: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    file.write_all(format!("{line}\n").as_bytes())
}

async fn connect(endpoint: &str) -> Queue<Note> {
    loop {
        match Queue::connect(endpoint).await {
            Ok(queue) => return queue,
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn produce(folder: &Path, endpoint: &str, name: &str, jobs: u64) -> Result<(), AnyError> {
    let file = folder.join(format!("pushed-{name}"));
    let queue = connect(endpoint).await;
    let told = std::fs::read_to_string(&file).unwrap_or_default();
    let mut number = told.lines().count() as u64;
    while number < jobs {
        let id = format!("{name}-{number}");
        let note = Note {
            number,
            text: id.clone(),
        };
        let push = queue.push(&note).id(RequestKey::new(id.clone())?);
        // What became of it is not known, or it was not done: the same job once more.
        if push.wait_max(Duration::from_secs(2)).await.is_ok() {
            write_down(&file, &id)?;
            number += 1;
        }
        // So that there is a time in which it can be killed.
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn work(folder: &Path, endpoint: &str, name: &str, ledger: &str) -> Result<(), AnyError> {
    let file: PathBuf = folder.join(format!("sent-{name}"));
    let queue = connect(endpoint).await;
    let ledger = LedgerClient::new(Client::connect(ledger).await?);
    let handler = move |job: Arc<Job<Note>>| {
        let (file, ledger) = (file.clone(), ledger.clone());
        async move {
            let note = job.plain()?;
            write_down(&file, &note.text)?;
            if is_poison(note.number) {
                return Err(Refusal::because("poison").for_good());
            }
            let enter = ledger.enter_plain(&note).request_id(job.request_id());
            enter.wait_for_ready().await?;
            sleep(WORK).await;
            Ok(())
        }
    };
    let _worker = queue.worker(16, handler).start().await?;
    std::future::pending().await
}

async fn ledger(folder: &Path, endpoint: &str) -> Result<(), AnyError> {
    let database = Arc::new(Database::create(folder.join("ledger.redb"))?);
    let store = RedbStore::with_database(database, Bounds::default())?;
    let server = Server::builder()
        .service(LedgerServer::new(Entries))
        .once(Once::builder().build(store)?)
        .bind(endpoint)
        .await?;
    server.run().await;
    Ok(())
}

struct Entries;

impl Ledger for Entries {
    async fn enter(&self, request: Request<Note>) -> Result<Reply<EnterResults>, Status> {
        let text = request.plain()?.text;
        let transaction = request.transaction::<RedbTransaction>()?;
        let entered = transaction.commit(move |writes| -> Result<_, Status> {
            let times = enter(writes, &text).map_err(Status::from_store)?;
            Ok(EnterResults { times })
        });
        entered.await
    }
}

fn enter(writes: &WriteTransaction, text: &str) -> Result<u64, redb::Error> {
    let mut entries = writes.open_table(ENTRIES)?;
    let times = entries.get(text)?.map_or(0, |times| times.value()) + 1;
    entries.insert(text, times)?;
    Ok(times)
}

async fn hold(queue: Queue<Note>) -> Result<(), AnyError> {
    let mut jobs = queue.jobs().jobs_max(1).start().await?;
    while let Some(job) = jobs.next().await {
        // Not to be reached for a while, after the process was stopped.
        let Ok(job) = job else { continue };
        println!("has {}", job.plain()?.number);
        let told = || std::io::stdin().read_line(&mut String::new());
        if tokio::task::spawn_blocking(told).await?? == 0 {
            break;
        }
        match job.ack().await {
            Ok(()) => println!("held"),
            Err(QueueError::Stale(_)) => println!("refused"),
            Err(error) => println!("{error}"),
        }
    }
    Ok(())
}

async fn fill(folder: &Path, time: Duration) -> Result<(), AnyError> {
    let open = || {
        let builder = Durable::builder(QueueOptions::default()).segment_bytes(64 << 10);
        builder.open(folder.join("queue"))
    };
    // What somebody will remove.
    let ballast = folder.join("ballast");
    std::fs::write(&ballast, vec![1; 512 << 10])?;
    let queue = Queue::<Note>::on(open()?);
    let (mut number, mut accepted) = (0, BTreeSet::new());
    let mut push = async || -> Result<bool, AnyError> {
        number += 1;
        let text = "x".repeat(1000);
        let wait = Duration::from_millis(50);
        match queue.push(&Note { number, text }).wait_max(wait).await {
            Ok(_) => Ok(accepted.insert(number)),
            Err(QueueError::Full | QueueError::Unavailable { .. }) => Ok(false),
            Err(other) => Err(other.into()),
        }
    };
    // One push may be refused because the disk is slow. It is full when it has taken none for a second.
    let mut taken = Instant::now();
    while taken.elapsed() < Duration::from_secs(1) {
        if push().await? {
            taken = Instant::now();
        }
    }
    let (until, mut refused) = (Instant::now() + time, 0);
    while Instant::now() < until {
        if push().await? {
            return Err("a full disk took a job".into());
        }
        refused += 1;
    }
    std::fs::remove_file(ballast)?;
    let room = Instant::now();
    while !push().await? {
        if room.elapsed() > Duration::from_secs(5) {
            return Err("there is room, and it takes no job".into());
        }
    }
    let back = room.elapsed();
    queue.close().await?;
    drop(queue);
    // Its last threads are about to let go.
    let mut engine = open();
    while engine.is_err() && room.elapsed() < Duration::from_secs(30) {
        sleep(Duration::from_millis(10)).await;
        engine = open();
    }
    let engine = engine?;
    if !engine.recovery().damage.is_empty() {
        return Err(format!("damaged: {:?}", engine.recovery().damage).into());
    }
    let queue = Queue::<Note>::on(engine);
    let mut jobs = queue.jobs().start().await?;
    let count = accepted.len();
    while !accepted.is_empty() {
        let job = jobs.next().await.ok_or("closed")??;
        accepted.remove(&job.plain()?.number);
        job.ack().await?;
    }
    println!("{count} accepted and found, {refused} refused in {time:?}; back after {back:.1?}");
    Ok(())
}
