//! A service that counts, in this process and on the store of a test, and its one caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bowline::once::{Once, Store};
use bowline::{Failure, Reply, Request, RequestKey, Server, Status};
use bowline_test_once::counter::{
    AddParams, AddResults, Counter, CounterClient, CounterServer, Refused, TotalParams,
    TotalResults,
};

#[derive(Clone, Default)]
struct Counting(Arc<AtomicI64>);

impl Counter for Counting {
    async fn add(&self, _: Request<AddParams>) -> Result<Reply<AddResults>, Failure<Refused>> {
        let total = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(AddResults { total }.into())
    }

    async fn total(&self, _: Request<TotalParams>) -> Result<Reply<TotalResults>, Status> {
        let total = self.0.load(Ordering::Relaxed);
        Ok(TotalResults { total }.into())
    }
}

pub struct Service {
    client: CounterClient,
    _server: bowline::ServerHandle,
}

impl Service {
    pub async fn start<S: Store>(store: S) -> Self {
        let once = Once::builder().build(store).expect("good terms");
        let server = Server::builder()
            .service(CounterServer::new(Counting::default()))
            .once(once)
            .bind("tcp://127.0.0.1:0");
        let server = server.await.expect("a port").spawn();
        let client = CounterClient::connect(server.endpoint().to_string()).await;
        Self {
            client: client.expect("an endpoint"),
            _server: server,
        }
    }

    /// The total after this request was counted, now or before.
    pub async fn add(&self, key: &str) -> Result<i64, Status> {
        let id = RequestKey::new(key.to_owned()).expect("short");
        let call = self.client.add(|_| {}).request_id(id);
        match call.timeout(Duration::from_secs(30)).await {
            Ok(reply) => Ok(reply.plain()?.total),
            Err(Failure::Status(status)) => Err(status),
            Err(Failure::Application(_)) => panic!("it refuses nothing"),
        }
    }

    /// How often it has counted.
    pub async fn total(&self) -> Result<i64, Status> {
        Ok(self.client.total(|_| {}).await?.plain()?.total)
    }
}
