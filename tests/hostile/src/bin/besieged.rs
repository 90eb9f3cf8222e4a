//! `besieged [memory=<bytes>] [files=<n>] [upstream=<address>] [subscribers=<n>] [events=<n>] [rate=<n>]`: calls and ticks, all of Bowline's and with its defaults,
//! under these limits; and a client of whoever listens upstream, who may be hostile. Prints where it listens; ends when its
//! input does, or at the first reply that is not to its own call. With `subscribers` it waits for so many, then publishes
//! `events` ticks, `rate` a second.

use std::time::Duration;

use bowline::{Publisher, Reply, Request, Server, Status};
use bowline_test_hostile::LARGE_BYTES_MAX;
use bowline_test_hostile::good::unix_nanoseconds;
use bowline_test_hostile::process::{argument, limit_from_arguments, say, until_input_ends};
use bowline_test_hostile::target::{
    EchoParams, EchoResults, GrowParams, GrowResults, LargeParams, LargeResults, Node, Target,
    TargetClient, TargetServer, Tick,
};
use bytes::Bytes;

/// Published in one go; then it waits.
const TICKS: Duration = Duration::from_millis(10);
/// Of a tick.
const PAYLOAD_BYTES: usize = 200;
/// Between two calls upstream.
const CALL: Duration = Duration::from_millis(10);

struct Answers;

impl Target for Answers {
    async fn echo(&self, request: Request<EchoParams>) -> Result<Reply<EchoResults>, Status> {
        let data = Bytes::copy_from_slice(request.get()?.get_data()?);
        Ok(EchoResults { data }.into())
    }

    async fn large(&self, request: Request<LargeParams>) -> Result<Reply<LargeResults>, Status> {
        let bytes = request.get()?.get_bytes().min(LARGE_BYTES_MAX);
        let data = Bytes::from(vec![7; bytes as usize]);
        Ok(LargeResults { data }.into())
    }

    async fn grow(&self, request: Request<GrowParams>) -> Result<Reply<GrowResults>, Status> {
        let params = request.plain()?;
        let nodes = count(&params.root);
        Ok(GrowResults { nodes }.into())
    }
}

fn count(node: &Node) -> u64 {
    1 + node.children.iter().map(count).sum::<u64>()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    limit_from_arguments()?;
    let server = Server::builder()
        .service(TargetServer::new(Answers))
        .bind("tcp://127.0.0.1:0")
        .await?
        .spawn();
    let publisher = Publisher::<Tick>::bind("tcp://127.0.0.1:0").await?;
    say("calls", server.endpoint());
    say("topics", publisher.endpoint());
    let upstream = argument("upstream");
    let calling = async {
        match upstream {
            Some(upstream) => call(&upstream).await,
            None => std::future::pending().await,
        }
    };
    let number = |name, default| argument(name).map_or(Ok(default), |value| value.parse::<u64>());
    let subscribers = number("subscribers", 0)? as usize;
    let (events, rate) = (number("events", u64::MAX)?, number("rate", 100)?);
    let ticking = async {
        while publisher.counters().subscribers < subscribers {
            tokio::time::sleep(TICKS).await;
        }
        publish(&publisher, events, rate).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = ticking => {}
        wrong = calling => return wrong,
        () = until_input_ends() => {}
    }
    Ok(())
}

/// Publishes so many ticks, so many a second.
async fn publish(publisher: &Publisher<Tick>, events: u64, rate: u64) {
    let begun = tokio::time::Instant::now();
    let payload = Bytes::from(vec![7; PAYLOAD_BYTES]);
    let mut number = 0;
    while number < events {
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as u64;
        while number < due.min(events) {
            number += 1;
            let tick = Tick {
                number,
                unix_nanoseconds: unix_nanoseconds(),
                payload: payload.clone(),
            };
            if publisher.publish(&tick).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(TICKS).await;
    }
}

/// Calls for ever; returns with a reply that is another call's.
async fn call(upstream: &str) -> Result<(), Box<dyn std::error::Error>> {
    println!("upstream {upstream}");
    let client = TargetClient::connect(format!("tcp://{upstream}")).await?;
    for number in 0u64.. {
        let data = Bytes::copy_from_slice(&number.to_be_bytes());
        // It may be without an answer: there is nobody, or it is cut off.
        if let Ok(reply) = client.echo(|mut params| params.set_data(&data)).await
            && reply.plain()?.data != data
        {
            return Err("the reply to another call".into());
        }
        tokio::time::sleep(CALL).await;
    }
    Ok(())
}
