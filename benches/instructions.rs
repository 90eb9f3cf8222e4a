//! The hot path under callgrind: `benches/instructions N` runs each scenario N times; the script
//! beside it counts instructions for two N and divides the difference, so that start-up drops out.
//!
//! Instructions repeat to a fraction of a percent where times do not; CI compares them with
//! benches/instructions.tsv.

use std::hint::black_box;

use bowline::message::Msg;
use bowline::{Limits, Reply, Request, Server, Status};
use bowline_test_schemas::everything::{Base, BaseClient, BaseServer, PingParams, PingResults};

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
        "call" => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(calls(times));
        }
        other => panic!("no scenario {other}"),
    }
}

/// All of a call but the socket: build, header, correlate, dispatch, build, header, open.
async fn calls(times: u32) {
    let server = Server::builder().service(BaseServer::new(Echo));
    let server = server
        .bind("inproc://instructions")
        .await
        .expect("it binds")
        .spawn();
    let client = BaseClient::connect("inproc://instructions")
        .await
        .expect("it connects");
    for _ in 0..times {
        let reply = client
            .ping(|mut p| p.set_text("hello"))
            .await
            .expect("a reply");
        black_box(reply.get().expect("a root").get_text().expect("a text"));
    }
    server.shutdown().await;
}
