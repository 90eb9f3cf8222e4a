//! One process of a queue's life, to be killed at any time and started again.
//!
//! `role serve <folder> <endpoint>` has the queue; `role produce <folder> <endpoint> <name> <jobs>` pushes, and writes down
//! what was acknowledged; `role work <folder> <endpoint> <name>` does, and writes down what it did.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bowline::queue::{Durable, Job, Queue, QueueOptions, QueueService};
use bowline::{RequestKey, Server};
use bowline_test_queues::jobs::Note;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", folder, endpoint] => serve(Path::new(folder), endpoint).await,
        ["produce", folder, endpoint, name, jobs] => {
            produce(Path::new(folder), endpoint, name, jobs.parse()?).await
        }
        ["work", folder, endpoint, name] => work(Path::new(folder), endpoint, name).await,
        _ => Err("which role?".into()),
    }
}

async fn serve(folder: &Path, endpoint: &str) -> Result<(), Box<dyn Error>> {
    let options = QueueOptions::default()
        .with_lease(Duration::from_secs(1))
        .with_backoff_min(Duration::from_millis(20))
        .with_backoff_max(Duration::from_millis(100))
        .with_lost_max(1000);
    let builder = Durable::builder(options).segment_bytes(1 << 20);
    let queue = Queue::<Note>::on(builder.open(folder.join("queue"))?);
    let service = QueueService::new().queue(&queue);
    Server::builder()
        .service(service)
        .bind(endpoint)
        .await?
        .run()
        .await;
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
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn produce(
    folder: &Path,
    endpoint: &str,
    name: &str,
    jobs: u64,
) -> Result<(), Box<dyn Error>> {
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
    }
    Ok(())
}

async fn work(folder: &Path, endpoint: &str, name: &str) -> Result<(), Box<dyn Error>> {
    let file: PathBuf = folder.join(format!("done-{name}"));
    let queue = connect(endpoint).await;
    let handler = move |job: Arc<Job<Note>>| {
        let file = file.clone();
        async move {
            write_down(&file, &job.plain()?.text)?;
            Ok(())
        }
    };
    let _worker = queue.worker(16, handler).start().await?;
    std::future::pending().await
}
