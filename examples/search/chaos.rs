//! `--chaos`: services and workers as processes that are killed again and again while documents come in.
//!
//! What makes that harmless: a document that was pushed is on disk; when its worker is gone, it is sent to another;
//! and `add` is `$once $atomic`, and called with the job's request ID, so what was done is not done again.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bowline::RequestId;
use bowline_examples::search::IndexClient;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::bar::Bar;
use crate::caller::{Latencies, ask, log_in, upload};
use crate::worker::AGAIN;
use crate::{AnyError, Arguments};

/// Between one push and the next.
const PUSH_EVERY: Duration = Duration::from_millis(30);
/// Before each document, so that a worker which is killed has some in hand.
const WORK_MILLISECONDS: u64 = 200;
const KILL_EVERY: Duration = Duration::from_millis(250);
/// Who is killed, one after the other. Between two kills of `index`, the leases of workers that are gone can end.
const VICTIMS: [&str; 8] = [
    "worker", "index", "worker", "login", "worker", "worker", "search", "worker",
];

pub async fn run(mut arguments: Arguments) -> Result<(), AnyError> {
    let folder = tempfile::tempdir()?;
    arguments.data = Some(folder.path().join("index.redb"));
    arguments.secret = Some(RequestId::new().to_string());
    arguments.pause = WORK_MILLISECONDS;
    [
        arguments.login,
        arguments.index,
        arguments.search,
        arguments.progress,
    ] = free_endpoints().await?;
    let mut processes = Processes::start(&arguments).await?;
    let session = log_in(&arguments).await?;

    let (stop, stopped) = oneshot::channel();
    let killing = tokio::spawn(async move {
        processes.kill_until(stopped).await?;
        Ok::<_, std::io::Error>(processes)
    });
    let mut latencies = Latencies::new()?;
    let bar = Bar::new()?;
    let pushed = upload(&arguments, &session, PUSH_EVERY, &bar, &mut latencies).await?;
    let _ = stop.send(()); // it ended by itself only if a process did not start
    let processes = killing.await??;
    ask(&arguments, session, &mut latencies, &mut std::io::stdout()).await?;

    let index = IndexClient::connect(&arguments.index).await?;
    let counts = index.counts(|_| {}).await?.plain()?;
    let (services, workers) = processes.kills;
    let again = processes.again.load(Relaxed);
    println!(
        "\nchaos: {pushed} documents pushed, {} in the index, taken in {} times; \
         {services} services and {workers} workers killed, {again} documents sent to another worker",
        counts.documents, counts.taken_in,
    );
    if services == 0 || workers == 0 || again == 0 {
        return Err(
            "there was no chaos, so this shows nothing: are there enough documents?".into(),
        );
    }
    if counts.documents != pushed {
        return Err("documents were lost".into());
    }
    if counts.taken_in != pushed {
        return Err("documents were taken in twice".into());
    }
    println!("nothing was lost, and nothing done twice");
    Ok(())
}

/// The services and the workers, each in the order in which it was started.
struct Processes {
    running: Vec<(&'static str, Child)>,
    arguments: Vec<String>,
    secret: String,
    /// Of services, and of workers.
    kills: (u64, u64),
    /// Documents that were sent to a worker after another had left them.
    again: Arc<AtomicU64>,
}

impl Processes {
    async fn start(arguments: &Arguments) -> Result<Self, AnyError> {
        let data = arguments.data.as_deref().unwrap_or("index.redb".as_ref());
        let options = [
            ("--login", arguments.login.clone()),
            ("--index", arguments.index.clone()),
            ("--search", arguments.search.clone()),
            ("--progress", arguments.progress.clone()),
            ("--data", data.display().to_string()),
            ("--pause", arguments.pause.to_string()),
        ];
        let mut processes = Self {
            running: Vec::new(),
            arguments: options
                .map(|(option, value)| [option.to_owned(), value])
                .concat(),
            secret: arguments.secret.clone().unwrap_or_default(),
            kills: (0, 0),
            again: Arc::default(),
        };
        for role in ["login", "index", "search"] {
            processes.add(role).await?;
        }
        for _ in 0..arguments.workers {
            processes.add("worker").await?;
        }
        Ok(processes)
    }

    /// One more, which is this program in that role.
    async fn add(&mut self, role: &'static str) -> std::io::Result<()> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--role", role])
            .args(&self.arguments)
            .env("SEARCH_SECRET", &self.secret)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(stdout) = process.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            // It says so once it serves.
            let line = lines.next_line().await?;
            line.ok_or_else(|| std::io::Error::other(format!("{role} did not start")))?;
            let again = Arc::clone(&self.again);
            tokio::spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    again.fetch_add(line.ends_with(AGAIN).into(), Relaxed);
                }
            });
        }
        self.running.push((role, process));
        Ok(())
    }

    /// Kills the one of a role that has run longest, and starts another.
    async fn replace(&mut self, role: &'static str) -> std::io::Result<()> {
        let oldest = self.running.iter().position(|(runs, _)| *runs == role);
        if let Some(oldest) = oldest {
            self.running.remove(oldest).1.kill().await?;
            match role {
                "worker" => self.kills.1 += 1,
                _ => self.kills.0 += 1,
            }
        }
        self.add(role).await
    }

    async fn kill_until(&mut self, mut stop: oneshot::Receiver<()>) -> std::io::Result<()> {
        for role in VICTIMS.into_iter().cycle() {
            tokio::select! {
                () = sleep(KILL_EVERY) => {}
                _ = &mut stop => return Ok(()),
            }
            self.replace(role).await?;
        }
        Ok(())
    }
}

/// Ports that nobody uses now.
async fn free_endpoints() -> std::io::Result<[String; 4]> {
    let mut held = Vec::new();
    let mut endpoints = <[String; 4]>::default();
    for endpoint in &mut endpoints {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        *endpoint = format!("tcp://{}", listener.local_addr()?);
        held.push(listener);
    }
    Ok(endpoints)
}
