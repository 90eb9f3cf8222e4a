//! `besieged [memory=<bytes>] [files=<n>] [upstream=<address>] [liar=<address>] [news=<address>] [subscribers=<n>]
//! [events=<n>] [rate=<n>]`: calls, without keys and with, and ticks, all of Bowline's and with its defaults, under these limits; clients of
//! whoever listens upstream and of a liar, and a subscriber to the news, all of whom may be hostile.
//!
//! Prints where it listens, and whom it looks for; then `answered` and `heard` when the liar or the news say the password, at last. Ends when
//! its input does, or at the first reply from upstream that is not to its own call. With `subscribers` it waits for so
//! many, then publishes `events` ticks, `rate` a second.
//!
//! To try what else helps: `threads=<n>` of its runtime, `handshakes=<n>` at once, `send_wait=<milliseconds>` for a client that does not
//! read, `connections=<n>` of one address.

use std::time::Duration;

use bowline::queue::{Queue, QueueOptions, QueueService};
use bowline::security::{AccessRules, AllowedKeys, QueueRight, ServerSecurity};
use bowline::topic::{Event, Keys};
use bowline::{
    Client, Publisher, Reply, Request, Server, ServerBuilder, Status, Subscriber, TransportOptions,
};
use bowline_test_hostile::curve::{client_keys, harmful_keys, server_keys};
use bowline_test_hostile::good::unix_nanoseconds;
use bowline_test_hostile::process::{argument, limit_from_arguments, say, until_input_ends};
use bowline_test_hostile::target::{
    EchoParams, EchoResults, GrowParams, GrowResults, Guarded, LargeParams, LargeResults, Node,
    RememberParams, RememberResults, Target, TargetClient, TargetServer, Tick, Work,
};
use bowline_test_hostile::{LARGE_BYTES_MAX, PASSWORD};
use bytes::Bytes;

/// Published in one go; then it waits.
const TICKS: Duration = Duration::from_millis(10);
/// Of jobs that wait: it is soon full, and then has to say so.
const QUEUE_BYTES_MAX: u64 = 4 << 20;
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

    async fn remember(
        &self,
        request: Request<RememberParams>,
    ) -> Result<Reply<RememberResults>, Status> {
        let data = request.plain()?.data;
        Ok(RememberResults { data }.into())
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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    limit_from_arguments()?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = argument("threads") {
        runtime.worker_threads(threads.parse()?);
    }
    runtime.enable_all().build()?.block_on(serve())
}

/// A server with its defaults, but for what is to be tried.
fn builder() -> Result<ServerBuilder, Box<dyn std::error::Error>> {
    let mut options = TransportOptions::default();
    if let Some(handshakes) = argument("handshakes") {
        options = options.with_handshakes(Duration::from_secs(5), handshakes.parse()?);
    }
    if let Some(connections) = argument("connections") {
        options = options.with_connections_max(1024, connections.parse()?);
    }
    let queue = Queue::<Work>::memory(QueueOptions::default().with_bytes_max(QUEUE_BYTES_MAX));
    let guarded = Queue::<Guarded>::memory(QueueOptions::default());
    let mut server = Server::builder()
        .service(TargetServer::new(Answers))
        .service(QueueService::new().queue(&queue).queue(&guarded))
        .transport(options);
    if let Some(milliseconds) = argument("send_wait") {
        server = server.send_wait_max(Duration::from_millis(milliseconds.parse()?));
    }
    Ok(server)
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let server = builder()?.bind("tcp://127.0.0.1:0").await?.spawn();
    let allowed = AllowedKeys::new();
    allowed.allow("good", client_keys()?.public())?;
    allowed.allow("harmful", harmful_keys()?.public())?;
    let rules = AccessRules::new()
        .call("*", "target", "*")
        .queue("harmful", "work", QueueRight::Push)
        .queue("harmful", "work", QueueRight::Work)
        .queue("harmful", "guarded", QueueRight::Push)
        .queue("harmful", "guarded", QueueRight::Work);
    let locked = builder()?
        .security(ServerSecurity::new(server_keys()?, allowed).with_access(rules))
        .bind("tcp://127.0.0.1:0")
        .await?
        .spawn();
    let publisher = Publisher::<Tick>::bind("tcp://127.0.0.1:0").await?;
    say("calls", server.endpoint());
    say("topics", publisher.endpoint());
    say("locked", locked.endpoint());
    let looked_for = ["upstream", "liar", "news"].map(|name| {
        let address = argument(name);
        address.inspect(|address| say(name, address))
    });
    let [upstream, liar, news] = looked_for;
    let calling = async {
        match upstream {
            Some(upstream) => call(&upstream).await,
            None => std::future::pending().await,
        }
    };
    if let Some(liar) = liar {
        tokio::spawn(async move { ask(&liar).await.expect("what it asks can be asked") });
    }
    if let Some(news) = news {
        tokio::spawn(async move { listen(&news).await.expect("it can be listened to") });
    }
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

/// So that much is done to it in a short time.
fn comes_again_soon() -> TransportOptions {
    let (min, max) = (Duration::from_millis(5), Duration::from_millis(50));
    TransportOptions::default().with_reconnect(min, max)
}

/// Of events that wait, and of names of topics.
const NEWS_BYTES_MAX: usize = 4 << 20;
/// Calls of one client at once.
const ASKING: usize = 16;

/// Calls for ever, believes nothing, and says once that a reply was right.
async fn ask(liar: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let client = Client::builder().transport(comes_again_soon());
    let client = client.connect(format!("tcp://{liar}")).await?;
    let client = TargetClient::new(client);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..ASKING {
        let client = client.clone();
        asking.spawn(async move {
            loop {
                let reply = client.grow(|_| {}).await;
                if reply.is_ok_and(|reply| reply.plain().is_ok_and(|it| it.nodes == PASSWORD)) {
                    return;
                }
                tokio::time::sleep(CALL).await;
            }
        });
    }
    while asking.join_next().await.is_some() {}
    println!("answered");
    Ok(())
}

/// Takes events more slowly than they may come, and says once that one was right.
async fn listen(news: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let subscriber = Subscriber::<()>::builder()
        .confirm_within(Duration::from_millis(100))
        // Less than by default, so that the limits are met in a short time.
        .bytes_max(NEWS_BYTES_MAX)
        .topic_bytes_max(NEWS_BYTES_MAX)
        .transport(comes_again_soon());
    let mut subscriber = subscriber.connect::<Tick>(format!("tcp://{news}")).await?;
    // Whoever is there now may not say yes.
    let _ = subscriber.subscribe(Keys::All).await;
    let mut taken = 0u64;
    while let Some(event) = subscriber.next().await {
        if let Event::Message(event) = event
            && event.plain().is_ok_and(|tick| tick.number == PASSWORD)
        {
            println!("heard");
            break;
        }
        taken += 1;
        if taken.is_multiple_of(8) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    std::future::pending().await
}
