//! A search engine of four services, each on its own endpoint, in one run:
//!
//! ```text
//! cargo run --release --example search -- PATH QUERY
//! ```
//!
//! `login` gives sessions, `index` keeps documents and publishes its progress, `search` asks both
//! and ranks; the caller here feeds them a folder of text, shows the progress, asks the query and
//! follows the link of each hit to its document. `--role login` (or `index`, `search`, `caller`)
//! runs one of them alone. With `--chaos` each service is a process of its own, which is killed
//! again and again while the documents come in: none is lost, and none is taken in twice.

mod caller;
mod chaos;
mod index;
mod login;
mod ranking;
mod words;

use std::path::PathBuf;
use std::sync::Arc;

use bowline::once::{Bounds, Once, RedbStore};
use bowline::{Client, Publisher, RequestId, Server, ServerHandle};
use bowline_examples::search::{IndexClient, IndexServer, LoginClient, LoginServer, SearchServer};
use clap::{Parser, ValueEnum};
use redb::backends::InMemoryBackend;

type AnyError = Box<dyn std::error::Error>;

/// Searches a folder of text with four services.
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
    /// A file that keeps what `index` has. Without it, that is as long as the process lives.
    #[arg(long)]
    data: Option<PathBuf>,
    /// What `login` makes sessions with. Without it, sessions are as long as the process lives.
    #[arg(long, env = "SEARCH_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// Kills the services while they work, and shows that nothing is lost or done twice.
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
    Caller,
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let mut arguments = Arguments::parse();
    match arguments.role {
        Role::All if arguments.chaos => chaos::run(arguments).await,
        Role::All => {
            let services = all_services(&mut arguments).await?;
            caller::run(&arguments).await?;
            for service in services {
                service.shutdown().await;
            }
            Ok(())
        }
        Role::Caller => caller::run(&arguments).await,
        Role::Login => until_told(login_service(&arguments).await?).await,
        Role::Index => until_told(index_service(&arguments).await?).await,
        Role::Search => until_told(search_service(&arguments).await?).await,
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
        .once(Once::builder().build(store)?)
        .bind(&arguments.index)
        .await?;
    Ok((server.spawn(), progress_endpoint))
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
