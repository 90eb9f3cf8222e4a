//! `service [memory=<bytes>] [files=<n>]`: calls and ticks, all of Bowline's and with its defaults, under these
//! limits. Prints where it listens; ends when its input does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bowline::{Publisher, Reply, Request, Server, Status};
use bowline_test_hostile::LARGE_BYTES_MAX;
use bowline_test_hostile::process::{limit_from_arguments, say, until_input_ends};
use bowline_test_hostile::target::{
    EchoParams, EchoResults, GrowParams, GrowResults, LargeParams, LargeResults, Node, Target,
    TargetServer, Tick,
};
use bytes::Bytes;

/// Between two ticks.
const TICK: Duration = Duration::from_millis(10);

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
    let ticking = async {
        let mut interval = tokio::time::interval(TICK);
        for number in 1.. {
            interval.tick().await;
            let tick = Tick {
                number,
                unix_nanoseconds: unix_nanoseconds(),
                payload: Bytes::new(),
            };
            if publisher.publish(&tick).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = ticking => {}
        () = until_input_ends() => {}
    }
    Ok(())
}

fn unix_nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
