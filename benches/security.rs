//! What keys cost: the same typed call with CURVE and without, in the same run, on one core; and one
//! question to the access list.
//!
//! Compare within one run only; the ratios are in docs/benchmarks.md.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bowline::security::{
    AccessList, AccessRules, AllowedKeys, ClientSecurity, Keys, ServerSecurity,
};
use bowline::{Client, Reply, Request, Server, Status};
use bowline_test_schemas::everything::{Base, BaseClient, BaseServer, PingParams, PingResults};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

struct Echo;

impl Base for Echo {
    async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
        let text = request.get()?.get_text()?;
        Ok(Reply::<PingResults>::build(|mut results| {
            results.set_text(text);
        }))
    }
}

/// Client and server in one thread, with or without keys.
struct Pair {
    runtime: Runtime,
    client: BaseClient,
}

impl Pair {
    fn start(with_keys: bool) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let mut server = Server::builder().service(BaseServer::new(Echo));
            let mut client = Client::builder();
            if with_keys {
                let (ours, theirs) = (Keys::generate(), Keys::generate());
                let allowed = AllowedKeys::new();
                allowed.allow("web", theirs.public()).unwrap();
                let rules = AccessRules::new().call("web", "base", "ping");
                let security = ServerSecurity::new(ours.clone(), allowed).with_access(rules);
                server = server.security(security);
                client = client.security(ClientSecurity::new(theirs, ours.public()));
            }
            let server = server.bind("tcp://127.0.0.1:0").await.unwrap();
            let endpoint = server.endpoint().to_string();
            tokio::spawn(server.run());
            BaseClient::new(client.connect(endpoint).await.unwrap())
        });
        Self { runtime, client }
    }

    fn calls(&self, text: &'static str, calls: u64, in_flight: u64) -> Duration {
        let start = Instant::now();
        self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for task in 0..in_flight {
                let client = self.client.clone();
                let calls = calls / in_flight + u64::from(task < calls % in_flight);
                tasks.spawn(async move {
                    for _ in 0..calls {
                        let reply = client.ping(|mut p| p.set_text(text)).await.unwrap();
                        black_box(reply.get().unwrap().get_text().unwrap());
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
        });
        start.elapsed()
    }
}

fn curve(criterion: &mut Criterion) {
    let (plain, locked) = (Pair::start(false), Pair::start(true));
    for (kind, in_flight, bytes) in [
        ("round trip", 1, 64),
        ("64 in flight", 64, 64),
        ("64 in flight", 64, 1024),
    ] {
        let text: &'static str = "x".repeat(bytes).leak();
        let mut group = criterion.benchmark_group(format!("{kind}, one core"));
        group.throughput(Throughput::Elements(1));
        for (name, pair) in [("plain", &plain), ("curve", &locked)] {
            group.bench_function(BenchmarkId::new(name, bytes), |bencher| {
                bencher.iter_custom(|n| pair.calls(text, n, in_flight));
            });
        }
        group.finish();
    }
}

fn access(criterion: &mut Criterion) {
    // A thousand principals with ten rules each, of which the last is asked for.
    let mut rules = AccessRules::new();
    for principal in 0..1000 {
        let principal = format!("principal-{principal}");
        for rule in 0..10 {
            rules = rules
                .call(&principal, &format!("Service{rule}"), "method")
                .subscribe(&principal, &format!("topic{rule}/"));
        }
    }
    let list = AccessList::from(rules);
    let mut group = criterion.benchmark_group("access list");
    group.bench_function("a call that is allowed", |bencher| {
        bencher.iter(|| list.may_call(black_box("principal-999"), "Service9", "method"));
    });
    group.bench_function("a call that is not", |bencher| {
        bencher.iter(|| list.may_call(black_box("principal-999"), "Service9", "other"));
    });
    group.bench_function("a subscription that is allowed", |bencher| {
        bencher.iter(|| list.may_subscribe(black_box("principal-999"), b"topic9/key"));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = access, curve
}
criterion_main!(benches);
