//! Three replicas of one service over one store, and callers who send the same request to all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bowline::call::CallService;
use bowline::once::{Bounds, Clock, Once};
use bowline::{Client, Failure, Reply, Request, RequestKey, Server, ServerHandle};
use bowline_test_once::counter::{
    AddParams, AddResults, Counter, CounterClient, CounterServer, Refused,
};
use tokio::task::JoinSet;

use crate::subjects::*;

over_shared_stores! {
    of_duplicates_that_reach_all_replicas_at_once_one_is_done
    duplicates_through_a_client_that_retries_are_done_once_while_a_replica_leaves
}

/// Counts what it does, in no hurry.
#[derive(Clone, Default)]
struct Counting(Arc<AtomicU64>);

impl Counter for Counting {
    async fn add(&self, _: Request<AddParams>) -> Result<Reply<AddResults>, Failure<Refused>> {
        let total = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(AddResults {
            total: total as i64,
        }
        .into())
    }
}

async fn start<R: Records>(records: &R, counting: &Counting) -> ServerHandle {
    let once = Once::builder()
        .build(records.store().await)
        .expect("good terms");
    let server = Server::builder()
        .service(CounterServer::new(counting.clone()))
        .once(once);
    let server = server.bind("tcp://127.0.0.1:0").await.expect("a port");
    server.spawn()
}

async fn add<S: CallService>(client: &CounterClient<S>, key: &str) -> i64 {
    let id = RequestKey::new(key.to_owned()).expect("short");
    let call = client.add(|mut params| {
        params.set_account("ann");
        params.set_by(1);
    });
    let response = call.request_id(id).timeout(Duration::from_secs(30)).await;
    let response = response.unwrap_or_else(|failure| panic!("{key}: {failure:?}"));
    response.get().expect("readable").get_total()
}

async fn of_duplicates_that_reach_all_replicas_at_once_one_is_done<R: Records>() {
    const KEYS: u64 = 100;
    let records = R::new(Bounds::default(), Clock::System).await;
    let counting = Counting::default();
    let mut servers = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let server = start(&records, &counting).await;
        let client = Client::connect(server.endpoint().to_string()).await;
        clients.push(CounterClient::new(client.expect("an endpoint")));
        servers.push(server);
    }
    let mut callers = JoinSet::new();
    for key in 0..KEYS {
        let clients = clients.clone();
        callers.spawn(async move {
            let key = key.to_string();
            let (a, b, c) = tokio::join!(
                add(&clients[0], &key),
                add(&clients[1], &key),
                add(&clients[2], &key)
            );
            assert_eq!((a, a), (b, c), "one outcome, told to all");
            assert_eq!(add(&clients[1], &key).await, a, "and kept");
        });
    }
    callers.join_all().await;
    assert_eq!(counting.0.load(Ordering::Relaxed), KEYS);
}

async fn duplicates_through_a_client_that_retries_are_done_once_while_a_replica_leaves<
    R: Records,
>() {
    const KEYS: u64 = 300;
    let records = R::new(Bounds::default(), Clock::System).await;
    let counting = Counting::default();
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(start(&records, &counting).await);
    }
    let endpoints: Vec<_> = servers
        .iter()
        .map(|server| server.endpoint().to_string())
        .collect();
    let client = Client::builder().resilient().connect(endpoints).await;
    let client = CounterClient::new(client.expect("endpoints"));
    let mut callers = JoinSet::new();
    for caller in 0..20 {
        let client = client.clone();
        callers.spawn(async move {
            for key in (caller..KEYS).step_by(20) {
                let key = key.to_string();
                let (a, b) = tokio::join!(add(&client, &key), add(&client, &key));
                assert_eq!(a, b, "one outcome, told to both");
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let leaving = servers.remove(1);
    leaving.shutdown().await;
    callers.join_all().await;
    assert_eq!(counting.0.load(Ordering::Relaxed), KEYS);
}
