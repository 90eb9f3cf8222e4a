//! A search engine of four services and a queue, each on its own endpoint, in one run:
//!
//! ```text
//! cargo run --release --example search -- PATH QUERY
//! ```
//!
//! `login` gives sessions, `index` keeps documents and publishes its progress, `search` asks both and ranks. The
//! caller pushes a folder of text into a queue, where `worker`s take it from and have it indexed; it shows
//! the progress, asks the query and follows the link of each hit to its document.
//!
//! `--role login` (or `index`, `search`, `worker`, `caller`) runs one of them alone. Workers can be started
//! and killed at any time. With `--chaos` everything is a process of its own, which is killed again and again while
//! the documents come in: none is lost, and none is taken in twice.

mod bar;
mod caller;
mod chaos;
mod index;
mod login;
mod ranking;
#[cfg(test)]
mod roles;
#[cfg(test)]
mod tests;
mod words;
mod worker;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bowline::once::{Bounds, Once, RedbStore};
use bowline::queue::{Durable, QueueOptions, QueueService};
use bowline::{Client, Publisher, Queue, RequestId, Server, ServerHandle};
use bowline_examples::search::{
    Incoming, IndexClient, IndexServer, LoginClient, LoginServer, SearchServer,
};
use clap::{Parser, ValueEnum};
use redb::backends::InMemoryBackend;

type AnyError = Box<dyn std::error::Error>;

/// How long a worker may take to end what it has begun.
const DRAIN: Duration = Duration::from_secs(10);

/// Searches a folder of text with four services and a queue.
///
/// Without options, all of them are in this process. To see workers come and go, start `--role login`, `--role index
/// --data index.redb`, `--role search` and `--role worker --pause 200` in terminals of their own, then `--role caller`; while its bar
/// moves, start more workers, and kill some.
#[derive(Parser)]
struct Arguments {
    /// The folder to index.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// What to look for.
    #[arg(default_value = "request ID")]
    query: String,
    /// Runs one of the services alone, until ctrl-c.
    #[arg(long, value_enum, default_value = "all")]
    role: Role,
    /// Where `login` is.
    #[arg(long, default_value = "tcp://127.0.0.1:7001")]
    login: String,
    /// Where `index` is.
    #[arg(long, default_value = "tcp://127.0.0.1:7002")]
    index: String,
    /// Where `search` is.
    #[arg(long, default_value = "tcp://127.0.0.1:7003")]
    search: String,
    /// Where `index` publishes its progress.
    #[arg(long, default_value = "tcp://127.0.0.1:7004")]
    progress: String,
    /// Workers, where they are not alone.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Milliseconds that a worker waits before each document, so that there is something to see.
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// A file that keeps what `index` has, beside its queue. Without it, both are as long as the process lives.
    #[arg(long)]
    data: Option<PathBuf>,
    /// What `login` makes sessions with. Without it, sessions are as long as the process lives.
    #[arg(long, env = "SEARCH_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// Kills services and workers while they work, and shows that nothing is lost or done twice.
    #[arg(long)]
    chaos: bool,
    /// How many hits to show.
    #[arg(long, default_value_t = 5)]
    limit: u16,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Role {
    All,
    Login,
    Index,
    Search,
    Worker,
    Caller,
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    run(Arguments::parse(), &mut std::io::stdout()).await
}

async fn run(mut arguments: Arguments, out: &mut impl Write) -> Result<(), AnyError> {
    match arguments.role {
        Role::All if arguments.chaos => chaos::run(arguments).await,
        Role::All => {
            let services = all_services(&mut arguments).await?;
            let mut workers = Vec::new();
            for _ in 0..arguments.workers {
                workers.push(worker::start(&arguments).await?);
            }
            caller::run(&arguments, out).await?;
            for worker in workers {
                worker.drain(DRAIN).await;
            }
            for service in services {
                service.shutdown().await;
            }
            Ok(())
        }
        Role::Caller => caller::run(&arguments, out).await,
        Role::Login => until_told(login_service(&arguments).await?).await,
        Role::Index => until_told(index_service(&arguments).await?).await,
        Role::Search => until_told(search_service(&arguments).await?).await,
        Role::Worker => {
            let worker = worker::start(&arguments).await?;
            println!("working for {}", arguments.index);
            tokio::signal::ctrl_c().await?;
            worker.drain(DRAIN).await;
            Ok(())
        }
    }
}

/// Starts them on ports that are free, and says in the arguments which.
async fn all_services(arguments: &mut Arguments) -> Result<[ServerHandle; 3], AnyError> {
    const ANY: &str = "tcp://127.0.0.1:0";
    arguments.login = ANY.into();
    let login = login_service(arguments).await?;
    arguments.login = login.endpoint().to_string();
    arguments.progress = ANY.into();
    arguments.index = ANY.into();
    let (index, progress) = index_and_progress(arguments).await?;
    arguments.index = index.endpoint().to_string();
    arguments.progress = progress;
    arguments.search = ANY.into();
    let search = search_service(arguments).await?;
    arguments.search = search.endpoint().to_string();
    Ok([search, index, login])
}

async fn login_service(arguments: &Arguments) -> Result<ServerHandle, AnyError> {
    let random = || RequestId::new().to_string();
    let secret = arguments.secret.clone().unwrap_or_else(random);
    let service = LoginServer::new(login::Sessions::new(&secret));
    Ok(Server::builder()
        .service(service)
        .bind(&arguments.login)
        .await?
        .spawn())
}

async fn index_service(arguments: &Arguments) -> Result<ServerHandle, AnyError> {
    Ok(index_and_progress(arguments).await?.0)
}

async fn index_and_progress(arguments: &Arguments) -> Result<(ServerHandle, String), AnyError> {
    let login = LoginClient::new(Client::connect(&arguments.login).await?);
    let progress = Publisher::bind(&arguments.progress).await?;
    let progress_endpoint = progress.endpoint().to_string();
    let database = Arc::new(match &arguments.data {
        Some(file) => redb::Database::create(file)?,
        None => redb::Database::builder().create_with_backend(InMemoryBackend::new())?,
    });
    let store = RedbStore::with_database(Arc::clone(&database), Bounds::default())?;
    let documents = index::Documents::new(database, login, progress)?;
    let server = Server::builder()
        .service(IndexServer::new(documents))
        .service(QueueService::new().queue(&incoming(arguments)?))
        .once(Once::builder().build(store)?)
        .bind(&arguments.index)
        .await?;
    Ok((server.spawn(), progress_endpoint))
}

/// The queue of documents that are to be taken in: on disk, where the index is.
fn incoming(arguments: &Arguments) -> Result<Queue<Incoming>, AnyError> {
    // A document takes milliseconds: a worker that says nothing for a second is gone.
    let options = QueueOptions::default()
        .with_lease(Duration::from_secs(1))
        .with_backoff_min(Duration::from_millis(100))
        .with_backoff_max(Duration::from_secs(1));
    Ok(match &arguments.data {
        Some(file) => Queue::on(
            Durable::builder(options)
                .segment_bytes(4 << 20)
                .open(file.with_extension("queue"))?,
        ),
        None => Queue::memory(options),
    })
}

async fn search_service(arguments: &Arguments) -> Result<ServerHandle, AnyError> {
    let login = LoginClient::new(Client::connect(&arguments.login).await?);
    let index = IndexClient::new(Client::connect(&arguments.index).await?);
    let service = SearchServer::new(ranking::Ranking { login, index });
    let server = Server::builder()
        .service(service)
        .bind(&arguments.search)
        .await?;
    Ok(server.spawn())
}

async fn until_told(service: ServerHandle) -> Result<(), AnyError> {
    println!("serving on {}", service.endpoint());
    tokio::signal::ctrl_c().await?;
    service.shutdown().await;
    Ok(())
}
