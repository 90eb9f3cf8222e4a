//! The hot path under callgrind: `benches/instructions N` runs each scenario N times; the script
//! beside it counts instructions for two N and divides the difference, so that start-up drops out.
//!
//! Instructions repeat to a fraction of a percent where times do not; CI compares them with
//! benches/instructions.tsv.
//!
//! `tcp` and `flight` go over a loopback socket, one call after the other and 64 at once, and
//! `publish` to one subscriber; each has a `raw` one that sends as many bytes through the raw socket
//! of the same transport in three frames, and a `raw one-frame` one. `.ci/instructions --cpu` compares the processor time of each pair, both
//! ends in one thread: that repeats on a machine which is busy with other work.

mod contenders;

use std::hint::black_box;

use bowline::message::Msg;
use bowline::{Limits, Reply, Request, Server, Status};
use bowline_test_schemas::everything::{Base, BaseClient, BaseServer, PingParams, PingResults};
use bytes::Bytes;
use contenders::topics::{Raw, Typed};
use contenders::{RawSocket, echo_raw, raw_router};

const TEXT: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// What a typed body has beside its text.
const BODY_BESIDE: usize = 32;

struct Echo;

impl Base for Echo {
    async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
        let text = request.get()?.get_text()?;
        Ok(Reply::<PingResults>::build(|mut results| {
            results.set_text(text)
        }))
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let (Some(scenario), Some(times)) = (arguments.next(), arguments.next()) else {
        return; // `cargo bench` as a whole: this one is for the script
    };
    let times: u32 = times.parse().expect("a number of times");
    match &scenario[..] {
        "build" => (0..times).for_each(|_| {
            black_box(Reply::<PingParams>::build(|mut p| {
                p.set_text(black_box("hello"))
            }));
        }),
        "open" => {
            let bytes = bowline::message::Plain::to_bytes(&PingParams {
                text: "hello".into(),
            });
            let bytes = bytes.expect("it has an encoding");
            (0..times).for_each(|_| {
                let message =
                    Msg::<PingParams>::open(black_box(&bytes).clone(), &Limits::default());
                let message = message.expect("it is a message");
                black_box(
                    message
                        .get()
                        .expect("it has a root")
                        .get_text()
                        .expect("a text"),
                );
            });
        }
        "call" => block_on(calls("inproc://instructions", times, 1)),
        "tcp" => block_on(calls("tcp://127.0.0.1:0", times, 1)),
        "flight" => block_on(calls("tcp://127.0.0.1:0", times, 64)),
        "raw tcp" => block_on(raw_calls(times, 1, false)),
        "raw flight" => block_on(raw_calls(times, 64, false)),
        "raw one-frame tcp" => block_on(raw_calls(times, 1, true)),
        "raw one-frame flight" => block_on(raw_calls(times, 64, true)),
        "publish" => block_on(events(times, 64)),
        "raw publish" => block_on(raw_events(times, 64, false)),
        "raw one-frame publish" => block_on(raw_events(times, 64, true)),
        "publish 1 KiB" => block_on(events(times, 1024)),
        "raw publish 1 KiB" => block_on(raw_events(times, 1024, false)),
        "raw one-frame publish 1 KiB" => block_on(raw_events(times, 1024, true)),
        other => panic!("no scenario {other}"),
    }
}

fn block_on(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work);
}

/// Build, header, correlate, dispatch, build, header, open; in process, that is all of a call but
/// the socket.
async fn calls(endpoint: &str, times: u32, in_flight: u32) {
    let server = Server::builder().service(BaseServer::new(Echo));
    let server = server.bind(endpoint).await.expect("it binds").spawn();
    let client = BaseClient::connect(server.endpoint().to_string())
        .await
        .expect("it connects");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..in_flight {
        let client = client.clone();
        tasks.spawn(async move {
            for _ in 0..times / in_flight {
                let reply = client
                    .ping(|mut p| p.set_text(TEXT))
                    .await
                    .expect("a reply");
                black_box(reply.get().expect("a root").get_text().expect("a text"));
            }
        });
    }
    tasks.join_all().await;
    server.shutdown().await;
}

async fn events(times: u32, bytes: usize) {
    Typed::new(1, bytes).await.deliver(times.into()).await;
}

/// As many bytes, and nothing else.
async fn raw_events(times: u32, bytes: usize, one_frame: bool) {
    let mut raw = Raw::new(1, bytes).await;
    if one_frame {
        raw = raw.in_one_frame();
    }
    raw.deliver(times.into()).await;
}

/// As many bytes, and nothing else.
async fn raw_calls(times: u32, in_flight: u32, one_frame: bool) {
    let (router, endpoint) = raw_router().await;
    let echo = tokio::spawn(echo_raw(router));
    let body = Bytes::from(vec![7; TEXT.len() + BODY_BESIDE]);
    let mut socket = RawSocket::connect(&endpoint, body).await;
    if one_frame {
        socket = socket.in_one_frame();
    }
    let mut batch = Vec::new();
    let (mut sent, mut received) = (0, 0);
    while received < times {
        while sent < times && sent - received < in_flight {
            socket.send().await;
            sent += 1;
        }
        socket.receive(&mut batch).await;
        received += batch.len() as u32;
    }
    echo.abort();
}
