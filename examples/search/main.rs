//! A search engine of four services, each on its own endpoint, in one run:
//!
//! ```text
//! cargo run --release --example search -- PATH QUERY
//! ```
//!
//! `login` gives sessions, `index` keeps documents and publishes its progress, `search` asks both
//! and ranks; the caller here feeds them a folder of text, shows the progress, asks the query and
//! follows the link of each hit to its document. `--role login` (or `index`, `search`, `caller`)
//! runs one of them alone.

mod caller;
mod index;
mod login;
mod ranking;
mod words;

use std::path::PathBuf;

use bowline::{Client, Publisher, Server, ServerHandle};
use bowline_examples::search::{IndexClient, IndexServer, LoginClient, LoginServer, SearchServer};
use clap::{Parser, ValueEnum};

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
        Role::All => {
            let services = all_services(&mut arguments).await?;
            caller::run(&arguments).await?;
            for service in services {
                service.shutdown().await;
            }
            Ok(())
        }
        Role::Caller => caller::run(&arguments).await,
        Role::Login => until_told(login_service(&arguments.login).await?).await,
        Role::Index => until_told(index_service(&arguments).await?).await,
        Role::Search => until_told(search_service(&arguments).await?).await,
    }
}

/// Starts them on ports that are free, and says in the arguments which.
async fn all_services(arguments: &mut Arguments) -> Result<[ServerHandle; 3], AnyError> {
    const ANY: &str = "tcp://127.0.0.1:0";
    let login = login_service(ANY).await?;
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

async fn login_service(endpoint: &str) -> Result<ServerHandle, AnyError> {
    let service = LoginServer::new(login::Sessions::default());
    Ok(Server::builder()
        .service(service)
        .bind(endpoint)
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
    let service = IndexServer::new(index::Documents::new(login, progress));
    let server = Server::builder()
        .service(service)
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
