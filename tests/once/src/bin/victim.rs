//! A server that counts, and stops at a named point to be killed there.
//!
//! `victim <folder> [point]`: keeps outcomes and counts in the folder, listens on loopback, says where.

use std::error::Error;
use std::path::PathBuf;

use bowline::Server;
use bowline::once::{
    Change, Claimed, Key, Once, RedbStore, RedbTransaction, Store, StoreError, Verdict,
};
use bowline_test_once::counter::CounterServer;
use bowline_test_once::{Counts, Point, Stop};
use tower::{Service, ServiceExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
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
    let store = Stopping {
        store: RedbStore::open(folder.join("outcomes.redb"))?,
        stop,
    };
    let counts = Counts {
        file: folder.join("counts"),
        stop,
    };
    let server = Server::builder()
        .service(CounterServer::new(counts))
        .layer(tower::layer::layer_fn(move |route| StopsAround {
            route,
            stop,
        }))
        .once(Once::builder().build(store)?)
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
struct Stopping {
    store: RedbStore,
    stop: Stop,
}

impl Store for Stopping {
    type Transaction = RedbTransaction;

    const TRANSACTIONS: bool = true;

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

    fn transaction(&self, claimed: Claimed) -> Option<RedbTransaction> {
        self.store.transaction(claimed)
    }

    fn committed(transaction: &RedbTransaction) -> Option<bowline::call::RawReply> {
        RedbStore::committed(transaction)
    }
}
