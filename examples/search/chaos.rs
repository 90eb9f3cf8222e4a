//! `--chaos`: the services as processes that are killed again and again while documents come in.
//!
//! What makes that harmless: `add` is `$once $atomic`, so a request that is sent again is done if it was not
//! and answered from the record if it was; and its caller keeps the request ID until it has an answer.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bowline::resilience::{Resilient, TryTimeout};
use bowline::{Client, Failure, RequestId};
use bowline_examples::search::{AddParams, Document, IndexClient, LoginClient};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, sleep_until};

use crate::caller::{Latencies, ask, text_files};
use crate::{AnyError, Arguments, login};

/// Documents are spread over so long, however few there are.
const TIME: Duration = Duration::from_secs(8);
const KILL_EVERY: Duration = Duration::from_millis(500);
/// Short, so that a slow answer is asked for again although it may be on its way.
const ATTEMPT: Duration = Duration::from_millis(40);
/// Between one round of attempts and the next, at first and at last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
const KILLS_MIN: u64 = 5;

#[derive(Default)]
struct Tally {
    retries: AtomicU64,
    replays: AtomicU64,
}

pub async fn run(mut arguments: Arguments) -> Result<(), AnyError> {
    let folder = tempfile::tempdir()?;
    arguments.data = Some(folder.path().join("index.redb"));
    arguments.secret = Some(RequestId::new().to_string());
    let ports = free_endpoints().await?;
    [
        arguments.login,
        arguments.index,
        arguments.search,
        arguments.progress,
    ] = ports;
    let mut services = Services::start(&arguments).await?;

    let login = Client::builder().resilient();
    let login = LoginClient::new(login.connect([&arguments.login]).await?);
    let session = login.log_in(|mut params| {
        params.set_user("ann");
        params.set_password(login::PASSWORD);
    });
    let session = session.await?.plain()?.session;

    let (stop, stopped) = oneshot::channel();
    let killing = tokio::spawn(async move {
        services.kill_until(stopped).await?;
        Ok::<_, std::io::Error>(services)
    });
    let tally = Arc::new(Tally::default());
    let index = Client::builder().resilient().try_timeout(TryTimeout {
        share: 0.0,
        at_least: ATTEMPT,
    });
    let index = index.connect([&arguments.index]).await?;
    let sent = feed(&arguments, &index, &session, &tally).await?;
    let _ = stop.send(()); // it ended by itself only if a service did not start
    let services = killing.await??;

    ask(&arguments, session, &mut Latencies::new()?).await?;
    let counts = IndexClient::new(index.clone()).counts(|_| {});
    let counts = counts.await?.plain()?;
    let retries = tally.retries.load(Relaxed) + index.counters().sent_again;
    println!(
        "\nchaos: {sent} documents sent, {} in the index, taken in {} times; {} kills, {retries} retries, {} replays",
        counts.documents,
        counts.taken_in,
        services.kills,
        tally.replays.load(Relaxed),
    );
    if services.kills < KILLS_MIN || retries == 0 {
        return Err("there was no chaos, so this shows nothing".into());
    }
    if counts.documents != sent {
        return Err("documents were lost".into());
    }
    if counts.taken_in != sent {
        return Err("documents were taken in twice".into());
    }
    println!("nothing was lost, and nothing done twice");
    Ok(())
}

/// Sends each document in a call of its own, and returns how many.
async fn feed(
    arguments: &Arguments,
    index: &Resilient,
    session: &str,
    tally: &Arc<Tally>,
) -> Result<u64, AnyError> {
    let files = text_files(&arguments.path);
    let bar = ProgressBar::new(files.len() as u64).with_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} documents, while services are killed",
    )?);
    let mut ticks = interval(TIME / files.len().max(1) as u32);
    let mut calls = JoinSet::new();
    let mut sent = 0;
    for file in files {
        ticks.tick().await;
        bar.inc(1);
        // What cannot be read, or is no text, is left out.
        let Ok(text) = tokio::fs::read_to_string(&file).await else {
            continue;
        };
        sent += 1;
        let path = file.display().to_string();
        let params = AddParams {
            session: session.to_owned(),
            job: "chaos".to_owned(),
            documents: vec![Document { path, text }],
        };
        let index = IndexClient::new(index.clone());
        calls.spawn(add(index, params, Arc::clone(tally)));
    }
    while let Some(added) = calls.join_next().await {
        added??;
    }
    bar.finish();
    Ok(sent)
}

/// Sends it until it is answered, under one request ID.
async fn add(
    index: IndexClient<Resilient>,
    params: AddParams,
    tally: Arc<Tally>,
) -> Result<(), String> {
    let id = RequestId::new();
    let mut pause = PAUSE.0;
    loop {
        match index.add_plain(&params).request_id(id.clone()).await {
            Ok(reply) => {
                let replays = u64::from(reply.is_replayed());
                tally.replays.fetch_add(replays, Relaxed);
                return Ok(());
            }
            Err(Failure::Application(denied)) => return Err(denied.reason),
            // Whatever it says of the work: the same ID makes it safe to ask again.
            Err(Failure::Status(_)) => {
                tally.retries.fetch_add(1, Relaxed);
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

struct Services {
    running: Vec<Service>,
    kills: u64,
}

struct Service {
    role: &'static str,
    arguments: Vec<String>,
    secret: String,
    process: Child,
}

impl Services {
    async fn start(arguments: &Arguments) -> Result<Self, AnyError> {
        let data = arguments.data.as_deref().unwrap_or("index.redb".as_ref());
        let options = [
            ("--login", arguments.login.clone()),
            ("--index", arguments.index.clone()),
            ("--search", arguments.search.clone()),
            ("--progress", arguments.progress.clone()),
            ("--data", data.display().to_string()),
        ];
        let options = options.map(|(option, value)| [option.to_owned(), value]);
        let secret = arguments.secret.clone().unwrap_or_default();
        let mut running = Vec::new();
        for role in ["login", "index", "search"] {
            let arguments = options.concat();
            running.push(Service::start(role, arguments, secret.clone()).await?);
        }
        Ok(Self { running, kills: 0 })
    }

    /// Kills one after the other and starts each again, `index` twice as often as the others.
    async fn kill_until(&mut self, mut stop: oneshot::Receiver<()>) -> std::io::Result<()> {
        let first = Instant::now();
        for victim in [1, 0, 1, 2].into_iter().cycle() {
            let next = first + KILL_EVERY * (self.kills as u32 + 1);
            tokio::select! {
                () = sleep_until(next) => {}
                _ = &mut stop => return Ok(()),
            }
            self.running[victim].kill_and_start().await?;
            self.kills += 1;
        }
        Ok(())
    }
}

impl Service {
    /// In a process of its own, which is this program in another role.
    async fn start(
        role: &'static str,
        arguments: Vec<String>,
        secret: String,
    ) -> std::io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--role", role])
            .args(&arguments)
            .env("SEARCH_SECRET", &secret)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(stdout) = process.stdout.take() {
            // It says where it serves, once it does.
            let line = BufReader::new(stdout).lines().next_line().await?;
            line.ok_or_else(|| std::io::Error::other(format!("{role} did not start")))?;
        }
        Ok(Self {
            role,
            arguments,
            secret,
            process,
        })
    }

    async fn kill_and_start(&mut self) -> std::io::Result<()> {
        self.process.kill().await?;
        *self = Self::start(self.role, self.arguments.clone(), self.secret.clone()).await?;
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
