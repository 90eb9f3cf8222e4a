//! A typed call beside the raw socket of the same transport and raw TCP: one after the other, small
//! and large, and 64 in flight; on one core (everything in one thread) and on two.
//!
//! Compare within one run only; the ratios are in docs/benchmarks.md.

mod contenders;

use std::hint::black_box;
use std::time::{Duration, Instant};

use bowline::{Reply, Request, Server, Status};
use bowline_test_schemas::everything::{Base, BaseClient, BaseServer, PingParams, PingResults};
use bytes::Bytes;
use contenders::{RawSocket, RawTcp, echo_raw, echo_tcp, raw_router, tcp_listener};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

const IN_FLIGHT: u64 = 64;
/// Nearly as large as a message may be by default.
const LARGE_BYTES: usize = 1_000_000;

struct Echo;

impl Base for Echo {
    async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
        let text = request.get()?.get_text()?;
        Ok(Reply::<PingResults>::build(|mut results| {
            results.set_text(text);
        }))
    }
}

/// Where servers run: with the client, or in a thread of their own.
#[derive(Clone, Copy)]
enum Cores {
    One,
    Two,
}

impl Cores {
    const ALL: [Self; 2] = [Self::One, Self::Two];

    fn name(self) -> &'static str {
        match self {
            Self::One => "one core",
            Self::Two => "two cores",
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Starts a server where it belongs: `start` binds and returns what to run, and where it is.
fn serve<E: Send + 'static, F: Future<Output = ()> + Send + 'static>(
    cores: Cores,
    client: &Runtime,
    start: impl AsyncFnOnce() -> (F, E) + Send + 'static,
) -> E {
    match cores {
        Cores::One => client.block_on(async {
            let (serving, endpoint) = start().await;
            tokio::spawn(serving);
            endpoint
        }),
        Cores::Two => {
            let (tell, told) = std::sync::mpsc::channel();
            // Ends with the process: a bench has one life.
            std::thread::spawn(move || {
                runtime().block_on(async {
                    let (serving, endpoint) = start().await;
                    tell.send(endpoint).unwrap();
                    serving.await;
                });
            });
            told.recv().unwrap()
        }
    }
}

async fn calls_in_flight(client: &BaseClient, text: &'static str, calls: u64, in_flight: u64) {
    let mut tasks = JoinSet::new();
    for task in 0..in_flight {
        let client = client.clone();
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
}

async fn raw_in_flight(socket: &RawSocket, messages: u64, in_flight: u64) {
    let mut sent = in_flight.min(messages);
    let mut received = 0;
    let mut batch = Vec::new();
    for _ in 0..sent {
        socket.send().await;
    }
    while received < messages {
        socket.receive(&mut batch).await;
        received += batch.len() as u64;
        for _ in 0..(batch.len() as u64).min(messages - sent) {
            sent += 1;
            socket.send().await;
        }
    }
}

async fn tcp_in_flight(tcp: &mut RawTcp, frames: u64, in_flight: u64) {
    let mut sent = in_flight.min(frames);
    let mut received = 0;
    tcp.send(sent as usize).await;
    while received < frames {
        tcp.receive().await;
        received += 1;
        while tcp.buffered() > 0 {
            tcp.receive().await;
            received += 1;
        }
        let more = (frames - sent).min(in_flight - (sent - received));
        if more > 0 {
            sent += more;
            tcp.send(more as usize).await;
        }
    }
}

fn calls(criterion: &mut Criterion) {
    for cores in Cores::ALL {
        for bytes in [64, LARGE_BYTES] {
            measure(criterion, cores, "round trip", 1, bytes);
        }
        for bytes in [64, 1024] {
            measure(criterion, cores, "64 in flight", IN_FLIGHT, bytes);
        }
    }
}

fn measure(criterion: &mut Criterion, cores: Cores, kind: &str, in_flight: u64, bytes: usize) {
    let text: &'static str = "x".repeat(bytes).leak();
    let body = Bytes::from_static(text.as_bytes());
    let mut group = criterion.benchmark_group(format!("{kind}, {}", cores.name()));
    group.throughput(Throughput::Elements(1));
    let timed = |runtime: &Runtime, work: &mut dyn FnMut(&Runtime)| -> Duration {
        let start = Instant::now();
        work(runtime);
        start.elapsed()
    };

    let bowline = runtime();
    let endpoint = serve(cores, &bowline, async || {
        let server = Server::builder().service(BaseServer::new(Echo));
        let server = server.bind("tcp://127.0.0.1:0").await.unwrap();
        let endpoint = server.endpoint().to_string();
        (server.run(), endpoint)
    });
    let client = bowline.block_on(BaseClient::connect(endpoint)).unwrap();
    group.bench_function(BenchmarkId::new("bowline", bytes), |bencher| {
        bencher.iter_custom(|n| {
            timed(&bowline, &mut |runtime| {
                runtime.block_on(calls_in_flight(&client, text, n, in_flight));
            })
        });
    });

    let raw = runtime();
    let endpoint = serve(cores, &raw, async || {
        let (router, endpoint) = raw_router().await;
        (echo_raw(router), endpoint)
    });
    let socket = raw.block_on(RawSocket::connect(&endpoint, body.clone()));
    group.bench_function(BenchmarkId::new("raw omq", bytes), |bencher| {
        bencher.iter_custom(|n| {
            timed(&raw, &mut |runtime| {
                runtime.block_on(raw_in_flight(&socket, n, in_flight));
            })
        });
    });

    let tcp = runtime();
    let address = serve(cores, &tcp, async || {
        let (listener, address) = tcp_listener().await;
        (echo_tcp(listener), address)
    });
    let mut stream = tcp.block_on(RawTcp::connect(address, &body));
    group.bench_function(BenchmarkId::new("raw tcp", bytes), |bencher| {
        bencher.iter_custom(|n| {
            timed(&tcp, &mut |runtime| {
                runtime.block_on(tcp_in_flight(&mut stream, n, in_flight));
            })
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = calls
}
criterion_main!(benches);
