//! What `$once` adds to a call: beside the same call without it, by store; and what a stored reply costs.
//!
//! `cargo bench -p bowline --features durable --bench once`. Compare within one run only.

mod echo;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use bowline::call::RawRequest;
use bowline::once::{Bounds, MemoryStore, Once, RedbStore, Store, WhenFull};
use bowline::{Client, RequestId, Server};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use echo::{Echo, IDEMPOTENT, ONCE, body};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tower::ServiceExt;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A client of a server that runs with it in one thread.
async fn start<S: Store>(endpoint: &str, store: S) -> Client {
    let once = Once::builder().build(store).unwrap();
    let server = Server::builder().service(Echo).once(once);
    let server = server.bind(endpoint).await.unwrap();
    let endpoint = server.endpoint().to_string();
    tokio::spawn(server.run());
    Client::connect(endpoint).await.unwrap()
}

#[derive(Clone, Copy)]
enum Kind {
    Bare,
    Once,
    Replayed,
}

async fn calls(client: &Client, kind: Kind, calls: u64, in_flight: u64) -> Duration {
    let (body, always) = (body(64), RequestId::new());
    let make = move || {
        let method = match kind {
            Kind::Bare => IDEMPOTENT,
            Kind::Once | Kind::Replayed => ONCE,
        };
        let mut request = RawRequest::new(method, body.clone());
        if let Kind::Replayed = kind {
            request.id = always.clone();
        }
        request
    };
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..in_flight {
        let (client, make) = (client.clone(), make.clone());
        let calls = calls / in_flight + u64::from(task < calls % in_flight);
        tasks.spawn(async move {
            for _ in 0..calls {
                client.clone().oneshot(make()).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    begun.elapsed()
}

fn once(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    // A store that has been there for a day: for each record that comes, one goes.
    let bounds = Bounds::default()
        .with_records_max(100_000)
        .with_when_full(WhenFull::ForgetOldest);
    for (carrier, endpoint) in [
        ("in process", "inproc://once"),
        ("tcp", "tcp://127.0.0.1:0"),
    ] {
        let store = MemoryStore::with_bounds(bounds);
        let memory = runtime.block_on(start(endpoint, store));
        for in_flight in [1, 64] {
            let mut group =
                criterion.benchmark_group(format!("once, {carrier}, {in_flight} in flight"));
            group.throughput(Throughput::Elements(1));
            for (name, kind) in [
                ("bare", Kind::Bare),
                ("memory", Kind::Once),
                ("memory, replayed", Kind::Replayed),
            ] {
                group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                    bencher.iter_custom(|n| runtime.block_on(calls(&memory, kind, n, in_flight)));
                });
            }
            group.finish();
        }
    }
    let redb = RedbStore::open(folder.path().join("outcomes")).unwrap();
    let redb = runtime.block_on(start("tcp://127.0.0.1:0", redb));
    let mut group = criterion.benchmark_group("once, on disk");
    group.throughput(Throughput::Elements(1));
    // What all of it waits for: a page written and synced, by itself.
    let mut file = File::create(folder.path().join("page")).unwrap();
    group.bench_function(BenchmarkId::from_parameter("the disk alone"), |bencher| {
        bencher.iter(|| {
            file.seek(SeekFrom::Start(0)).unwrap();
            file.write_all(&[7; 4096]).unwrap();
            file.sync_data().unwrap();
        });
    });
    for (name, kind, in_flight) in [
        ("redb, 1 caller", Kind::Once, 1),
        ("redb, 64 callers", Kind::Once, 64),
        ("redb, replayed, 1 caller", Kind::Replayed, 1),
        ("redb, replayed, 64 callers", Kind::Replayed, 64),
    ] {
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|n| runtime.block_on(calls(&redb, kind, n, in_flight)));
        });
    }
    group.finish();
}

criterion_group!(benches, once);
criterion_main!(benches);
