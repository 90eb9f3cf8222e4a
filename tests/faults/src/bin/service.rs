//! The services that are tested, each a process of its own; ends when its standard input is closed.
//!
//! ```text
//! service ENDPOINT counter                        counts, each request once
//! service ENDPOINT worker HANDS MILLISECONDS DOOR works; DOOR is open, fixed or adaptive
//! service ENDPOINT relay UPSTREAM STACK TRY       has another do it; UPSTREAM is a list; STACK is whole,
//!                                                breaker, budget, none, or plain for a client without
//!                                                a stack, TRY milliseconds or -
//! ```

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bowline::call::CallService;
use bowline::once::{MemoryStore, Once};
use bowline::resilience::{AdaptivePolicy, Limit, ShedLayer, TryTimeout};
use bowline::{Client, Reply, Request, Server, ServerBuilder, Status};
use bowline_test_faults::faults::{
    AddParams, AddResults, Counter, CounterServer, SeenParams, SeenResults, StallParams,
    StallResults, TotalParams, TotalResults, Work, WorkClient, WorkParams, WorkResults, WorkServer,
};
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = match arguments[..] {
        [_, "counter"] => counter()?,
        [_, "worker", hands, milliseconds, door] => worker(hands, milliseconds, door)?,
        [_, "relay", upstream, stack, attempt] => relay(upstream, stack, attempt).await?,
        _ => return Err("which service?".into()),
    };
    let server = server.bind(arguments[0]).await?;
    println!("LISTENING {}", server.endpoint());
    let parent_is_gone = async {
        // Nothing is ever written to it.
        let _ = tokio::io::stdin().read_u8().await;
    };
    tokio::select! {
        () = server.run() => {}
        () = parent_is_gone => {}
    }
    Ok(())
}

fn counter() -> Result<ServerBuilder, Box<dyn Error>> {
    let store = MemoryStore::new();
    let count = Count {
        total: AtomicU64::new(0),
        store: store.clone(),
    };
    Ok(Server::builder()
        .service(CounterServer::new(count))
        .once(Once::builder().build(store)?))
}

struct Count {
    total: AtomicU64,
    store: MemoryStore,
}

impl Counter for Count {
    async fn add(&self, request: Request<AddParams>) -> Result<Reply<AddResults>, Status> {
        let by = request.get()?.get_by();
        // Long enough that a repeated request meets it at work, now and then.
        sleep(Duration::from_millis(1)).await;
        let total = self.total.fetch_add(by, Relaxed) + by;
        Ok(AddResults { total }.into())
    }

    async fn total(&self, _: Request<TotalParams>) -> Result<Reply<TotalResults>, Status> {
        let (total, records) = (self.total.load(Relaxed), self.store.records() as u64);
        Ok(TotalResults { total, records }.into())
    }
}

fn worker(hands: &str, milliseconds: &str, door: &str) -> Result<ServerBuilder, Box<dyn Error>> {
    let hands = hands.parse()?;
    let worker = Worker {
        hands: Semaphore::new(hands),
        time: Duration::from_millis(milliseconds.parse()?),
        stalled: watch::Sender::new(false),
        calls: AtomicU64::new(0),
        done: AtomicU64::new(0),
    };
    let server = Server::builder()
        .service(WorkServer::new(worker))
        .concurrency_max(100_000);
    Ok(match door {
        "open" => server,
        "fixed" => server.layer(ShedLayer::new(Limit::Fixed(hands))),
        "adaptive" => server.layer(ShedLayer::new(Limit::Adaptive(AdaptivePolicy::default()))),
        _ => return Err("what door?".into()),
    })
}

struct Worker {
    hands: Semaphore,
    time: Duration,
    stalled: watch::Sender<bool>,
    calls: AtomicU64,
    done: AtomicU64,
}

impl Work for Worker {
    async fn work(&self, request: Request<WorkParams>) -> Result<Reply<WorkResults>, Status> {
        let number = request.get()?.get_number();
        self.calls.fetch_add(1, Relaxed);
        let _hand = self.hands.acquire().await.map_err(Status::from_store)?;
        // The sender is in `self`, so it does not go away.
        let _ = self.stalled.subscribe().wait_for(|is| !is).await;
        sleep(self.time).await;
        self.done.fetch_add(1, Relaxed);
        Ok(WorkResults { number }.into())
    }

    async fn seen(&self, _: Request<SeenParams>) -> Result<Reply<SeenResults>, Status> {
        let (calls, done) = (self.calls.load(Relaxed), self.done.load(Relaxed));
        Ok(SeenResults { calls, done }.into())
    }

    async fn stall(&self, request: Request<StallParams>) -> Result<Reply<StallResults>, Status> {
        let time = Duration::from_millis(request.get()?.get_milliseconds().into());
        let stalled = self.stalled.clone();
        stalled.send_replace(true);
        tokio::spawn(async move {
            sleep(time).await;
            stalled.send_replace(false);
        });
        Ok(StallResults {}.into())
    }
}

async fn relay(
    upstream: &str,
    stack: &str,
    attempt: &str,
) -> Result<ServerBuilder, Box<dyn Error>> {
    if stack == "plain" {
        return Ok(relay_over(Client::connect(upstream).await?));
    }
    let builder = Client::builder().resilient();
    let builder = match attempt.parse() {
        Ok(milliseconds) => builder.try_timeout(TryTimeout {
            share: 0.0,
            at_least: Duration::from_millis(milliseconds),
        }),
        Err(_) => builder,
    };
    let builder = match stack {
        "whole" => builder,
        "budget" => builder.breaker(None),
        "breaker" => builder.budget(None),
        "none" => builder.budget(None).breaker(None),
        _ => return Err("what stack?".into()),
    };
    Ok(relay_over(builder.connect(upstream.split(',')).await?))
}

fn relay_over<S: CallService + Sync + 'static>(upstream: S) -> ServerBuilder {
    let upstream = WorkClient::new(upstream);
    let service = WorkServer::new(Relay { upstream });
    Server::builder().service(service).concurrency_max(100_000)
}

struct Relay<S> {
    upstream: WorkClient<S>,
}

impl<S: CallService + Sync + 'static> Work for Relay<S> {
    async fn work(&self, request: Request<WorkParams>) -> Result<Reply<WorkResults>, Status> {
        let number = request.get()?.get_number();
        let mut call = self.upstream.work(|mut params| params.set_number(number));
        if let Some(deadline) = request.deadline() {
            call = call.deadline(deadline);
        }
        Ok(call.await?.into())
    }
}
