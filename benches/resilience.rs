//! What the client's stack adds to a call: beside the bare client, whole and part by part.
//!
//! `cargo bench -p bowline --bench resilience`. Compare within one run only.

mod echo;

use std::time::{Duration, Instant};

use bowline::call::{CallService, RawRequest};
use bowline::resilience::{Limit, ResilientBuilder, ShedLayer};
use bowline::{Client, Server};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use echo::{Echo, IDEMPOTENT, body};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tower::ServiceExt;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The endpoint of a server that runs in the same thread.
async fn serve(endpoint: &str, door: Option<ShedLayer>) -> String {
    let server = Server::builder().service(Echo);
    let server = match door {
        Some(door) => server.layer(door),
        None => server,
    };
    let server = server.bind(endpoint).await.unwrap();
    let endpoint = server.endpoint().to_string();
    tokio::spawn(server.run());
    endpoint
}

async fn calls<S>(client: &S, calls: u64, in_flight: u64) -> Duration
where
    S: CallService + 'static,
    S::Error: std::fmt::Debug,
{
    let body = body(64);
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..in_flight {
        let (client, body) = (client.clone(), body.clone());
        let calls = calls / in_flight + u64::from(task < calls % in_flight);
        tasks.spawn(async move {
            for _ in 0..calls {
                let request = RawRequest::new(IDEMPOTENT, body.clone());
                client.clone().oneshot(request).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    begun.elapsed()
}

fn stack(criterion: &mut Criterion) {
    for (carrier, endpoint) in [("in process", "inproc://"), ("tcp", "tcp://127.0.0.1:0")] {
        let runtime = runtime();
        let at = |name: &str| match carrier {
            "tcp" => endpoint.to_owned(),
            _ => format!("{endpoint}{name}"),
        };
        let (one, other, door) = runtime.block_on(async {
            let door = ShedLayer::new(Limit::Fixed(1000));
            (
                serve(&at("one"), None).await,
                serve(&at("other"), None).await,
                serve(&at("door"), Some(door)).await,
            )
        });
        let connect = |builder: ResilientBuilder, endpoints: &[&String]| {
            runtime.block_on(builder.connect(endpoints)).unwrap()
        };
        let bare = runtime.block_on(Client::connect(&one)).unwrap();
        let behind_door = runtime.block_on(Client::connect(&door)).unwrap();
        let builder = || Client::builder().resilient();
        let whole = connect(builder(), &[&one]);
        let two = connect(builder(), &[&one, &other]);
        let no_retry = connect(builder().retry(None), &[&one]);
        for in_flight in [1, 64] {
            let name = format!("stack, {carrier}, {in_flight} in flight");
            let mut group = criterion.benchmark_group(name);
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::from_parameter("bare client"), |bencher| {
                bencher.iter_custom(|n| runtime.block_on(calls(&bare, n, in_flight)));
            });
            for (name, client) in [
                ("default stack", &whole),
                ("default stack, two endpoints", &two),
                ("without retries", &no_retry),
            ] {
                group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                    bencher.iter_custom(|n| runtime.block_on(calls(client, n, in_flight)));
                });
            }
            group.bench_function(
                BenchmarkId::from_parameter("server with a door"),
                |bencher| {
                    bencher.iter_custom(|n| runtime.block_on(calls(&behind_door, n, in_flight)));
                },
            );
            group.finish();
        }
    }
}

criterion_group!(benches, stack);
criterion_main!(benches);
