//! What `$once` adds to a call: beside the same call without it, by store; and what a stored reply costs.
//!
//! `cargo bench -p bowline --features durable --bench once`. Compare within one run only.

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bowline::call::{NamedService, Outcome, RawReply, RawRequest, ReplyFuture};
use bowline::once::{MemoryStore, Once, RedbStore, Store};
use bowline::schema::{Effect, MethodInfo, Recovery, ServiceInfo};
use bowline::{Client, RequestId, RequestKey, Server, Status};
use bowline_test_schemas::everything::PingParams;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tower::{Service, ServiceExt};

const fn method(name: &'static str, ordinal: u16, effect: Effect) -> MethodInfo {
    MethodInfo {
        service: "echo",
        name,
        interface: 0xec40,
        ordinal,
        effect,
        timeout: None,
        params: 0,
        results: 0,
        fails: None,
    }
}

static METHODS: [MethodInfo; 2] = [
    method("bare", 0, Effect::Idempotent),
    method("once", 1, Effect::Once(Recovery::InDoubt)),
];
static INFO: ServiceInfo = ServiceInfo {
    name: "echo",
    interface: 0xec40,
    methods: &METHODS,
};

/// Answers its body at once.
#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const INFO: &'static ServiceInfo = &INFO;
}

impl Service<RawRequest> for Echo {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        Box::pin(async move { Ok(RawReply::new(Outcome::Success, request.body)) })
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A client of a server that runs with it in one thread.
async fn start<S: Store>(store: S) -> Client {
    let once = Once::builder().build(store).unwrap();
    let server = Server::builder().service(Echo).once(once);
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap();
    let endpoint = server.endpoint().to_string();
    tokio::spawn(server.run());
    Client::connect(endpoint).await.unwrap()
}

fn body() -> Bytes {
    use bowline::message::Plain;
    let params = PingParams {
        text: "x".repeat(64),
    };
    params.to_bytes().unwrap()
}

#[derive(Clone, Copy)]
enum Kind {
    Bare,
    Once,
    Replayed,
}

async fn calls(client: &Client, kind: Kind, calls: u64, in_flight: u64) -> Duration {
    let body = body();
    let make = move || {
        let method = match kind {
            Kind::Bare => &METHODS[0],
            Kind::Once | Kind::Replayed => &METHODS[1],
        };
        let mut request = RawRequest::new(method, body.clone());
        request.id = match kind {
            Kind::Bare | Kind::Once => RequestId::new(),
            Kind::Replayed => RequestKey::new("always the same").unwrap().into(),
        };
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
    // Bounds as a service would set that is called this often.
    let bounds = bowline::once::Bounds::default().with_records_max(50_000_000);
    let memory = runtime.block_on(start(MemoryStore::with_bounds(bounds)));
    let redb = RedbStore::open(folder.path().join("outcomes")).unwrap();
    let redb = runtime.block_on(start(redb));
    for in_flight in [1, 64] {
        let mut group = criterion.benchmark_group(format!("once, {in_flight} in flight"));
        group.throughput(Throughput::Elements(1));
        let contenders = [
            ("bare", &memory, Kind::Bare),
            ("memory", &memory, Kind::Once),
            ("memory, replayed", &memory, Kind::Replayed),
            ("redb", &redb, Kind::Once),
            ("redb, replayed", &redb, Kind::Replayed),
        ];
        for (name, client, kind) in contenders {
            let id = BenchmarkId::from_parameter(name);
            group.bench_function(id, |bencher| {
                bencher
                    .iter_custom(|count| runtime.block_on(calls(client, kind, count, in_flight)));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, once);
criterion_main!(benches);
