//! A server that counts, and stops at a named point to be killed there.
//!
//! `victim <store> <folder> [point]`: counts in the folder, listens on loopback, says where. Outcomes are kept
//! in the folder (`redb`), in tables of this name (`postgres:name`), or in keys of this prefix (`redis:name`).

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use bowline::Server;
use bowline::once::{Change, Claimed, Key, Once, RedbStore, Store, StoreError, Verdict};
use bowline_test_once::counter::{CounterServer, LedgerServer};
use bowline_test_once::{Counts, Point, Stop};
use tower::{Service, ServiceExt};

/// A shared store knows that a process is dead when its lease has run out.
const LEASE: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let store = arguments.next().ok_or("which store?")?;
    let folder = PathBuf::from(arguments.next().ok_or("which folder?")?);
    let stop = Stop(match arguments.next() {
        None => None,
        Some(name) => Some(
            Point::ALL
                .into_iter()
                .find(|point| format!("{point:?}") == name)
                .ok_or("no such point")?,
        ),
    });
    let (kind, name) = store.split_once(':').unwrap_or((&store, ""));
    let counts = Counts {
        file: folder.join("counts"),
        table: format!("{name}_totals"),
        stop,
    };
    match kind {
        "redb" => serve(RedbStore::open(folder.join("outcomes.redb"))?, counts).await,
        #[cfg(feature = "postgres")]
        "postgres" => {
            let url = std::env::var("BOWLINE_POSTGRES")?;
            bowline_test_once::postgres::connect(&url, &counts.table).await?;
            let store = bowline::once::PostgresStore::builder().table(name);
            serve(store.connect(&url).await?, counts).await
        }
        #[cfg(feature = "redis")]
        "redis" => {
            let url = std::env::var("BOWLINE_REDIS")?;
            let store = bowline::once::RedisStore::builder().prefix(name);
            let durability = bowline::once::Durability::RequireFsync;
            serve(store.connect(&url, durability).await?, counts).await
        }
        other => Err(format!("no store {other}").into()),
    }
}

async fn serve<S: Store>(store: S, counts: Counts) -> Result<(), Box<dyn Error>> {
    let stop = counts.stop;
    let store = Stopping { store, stop };
    let mut server = Server::builder().service(CounterServer::new(counts.clone()));
    if S::TRANSACTIONS {
        server = server.service(LedgerServer::new(counts));
    }
    let server = server
        .layer(tower::layer::layer_fn(move |route| StopsAround {
            route,
            stop,
        }))
        .once(Once::builder().lease(LEASE).build(store)?)
        .bind("tcp://127.0.0.1:0")
        .await?;
    println!("LISTENING {}", server.endpoint());
    server.run().await;
    Ok(())
}

/// Stops before a request reaches its store, and after its reply is ready.
#[derive(Clone)]
struct StopsAround<S> {
    route: S,
    stop: Stop,
}

impl<S> Service<bowline::call::RawRequest> for StopsAround<S>
where
    S: Service<bowline::call::RawRequest> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), S::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: bowline::call::RawRequest) -> Self::Future {
        let Self { route, stop } = self.clone();
        Box::pin(async move {
            stop.at(Point::Received).await;
            let ended = route.oneshot(request).await;
            stop.at(Point::BeforeReply).await;
            ended
        })
    }
}

/// Stops once a claim, or an outcome, is on disk.
struct Stopping<S> {
    store: S,
    stop: Stop,
}

impl<S: Store> Store for Stopping<S> {
    type Transaction = S::Transaction;

    const TRANSACTIONS: bool = S::TRANSACTIONS;

    async fn apply(&self, key: &Key, change: Change) -> Result<Verdict, StoreError> {
        let point = match change {
            Change::Begin(_) => Some(Point::Claimed),
            Change::Complete { .. } => Some(Point::Recorded),
            _ => None,
        };
        let verdict = self.store.apply(key, change).await?;
        if let (Some(point), Verdict::Run | Verdict::Applied) = (point, &verdict) {
            self.stop.at(point).await;
        }
        Ok(verdict)
    }

    async fn watch(&self, key: &Key) -> Result<(), StoreError> {
        self.store.watch(key).await
    }

    async fn expire(&self, max: usize) -> Result<usize, StoreError> {
        self.store.expire(max).await
    }

    async fn in_doubt(&self, max: usize) -> Result<Vec<Key>, StoreError> {
        self.store.in_doubt(max).await
    }

    fn transaction(&self, claimed: Claimed) -> Option<S::Transaction> {
        self.store.transaction(claimed)
    }

    fn committed(transaction: &S::Transaction) -> Option<bowline::call::RawReply> {
        S::committed(transaction)
    }
}
