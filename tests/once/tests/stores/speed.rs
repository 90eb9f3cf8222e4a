//! How many calls a second each store records. A measurement, not a test: it asserts nothing of its figures.
//!
//! `tests/once/servers cargo test --release -p bowline-test-once --features postgres,redis --test stores -- \
//! --ignored --nocapture speed`

use std::time::{Duration, Instant};

use bowline::once::{Bounds, Clock, Once};
use bowline::{Client, Failure, Reply, Request, Server};
use bowline_test_once::counter::{
    AddParams, AddResults, Counter, CounterClient, CounterServer, Refused,
};
use tokio::task::JoinSet;

use crate::subjects::*;

const CALLERS: usize = 64;
const TIME: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct AtOnce;

impl Counter for AtOnce {
    async fn add(&self, _: Request<AddParams>) -> Result<Reply<AddResults>, Failure<Refused>> {
        Ok(AddResults { total: 1 }.into())
    }
}

async fn measure<R: Records>(name: &str) {
    let bounds = Bounds::default().with_records_max(50_000_000);
    let records = R::new(bounds, Clock::System).await;
    let once = Once::builder()
        .build(records.store().await)
        .expect("good terms");
    let server = Server::builder()
        .service(CounterServer::new(AtOnce))
        .once(once);
    let server = server
        .bind("tcp://127.0.0.1:0")
        .await
        .expect("a port")
        .spawn();
    let client = Client::connect(server.endpoint().to_string()).await;
    let client = CounterClient::new(client.expect("an endpoint"));
    let begun = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let client = client.clone();
        callers.spawn(async move {
            let mut calls = 0u64;
            while begun.elapsed() < TIME {
                let call = client.add(|mut params| params.set_account("ann"));
                call.timeout(TIME).await.expect("recorded");
                calls += 1;
            }
            calls
        });
    }
    let calls: u64 = callers.join_all().await.iter().sum();
    let rate = calls as f64 / begun.elapsed().as_secs_f64();
    let latency = begun.elapsed().as_secs_f64() * 1000.0 * CALLERS as f64 / calls as f64;
    println!(
        "{name:>10}: {rate:>8.0} recorded calls/s with {CALLERS} callers, {latency:.2} ms each"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a figure, no check: cargo test --release -p bowline-test-once --test stores -- --ignored --nocapture recorded"]
async fn recorded_calls_a_second() {
    let _alone = alone().await;
    measure::<Memory>("memory").await;
    measure::<Redb>("redb").await;
    #[cfg(feature = "postgres")]
    measure::<Postgres>("postgres").await;
    #[cfg(feature = "redis")]
    measure::<Redis>("redis").await;
}
