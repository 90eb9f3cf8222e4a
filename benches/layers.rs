//! What goes around a call, under callgrind: `benches/layers SCENARIO N` makes N calls in process, `bare`
//! or with one thing around them. Counted as benches/instructions.rs is.

mod echo;

use bowline::call::{CallService, RawRequest};
use bowline::once::{Bounds, MemoryStore, Once, WhenFull};
use bowline::resilience::{Limit, ShedLayer};
use bowline::{Client, RequestId, Server};
use echo::{Echo, IDEMPOTENT, ONCE, body};
use tower::ServiceExt;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let (Some(scenario), Some(times)) = (arguments.next(), arguments.next()) else {
        return; // `cargo bench` as a whole: this one is for the script
    };
    let times: u32 = times.parse().expect("a number of times");
    let kind = match &scenario[..] {
        "bare" => Kind::Bare,
        "once" => Kind::Once,
        "full" => Kind::Full,
        "replayed" => Kind::Replayed,
        "stack" => Kind::Stack,
        "door" => Kind::Door,
        other => panic!("no scenario {other}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(calls(kind, times));
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Bare,
    /// Each is recorded.
    Once,
    /// The same, and an old one is forgotten for it: what a store does that has been there for a day.
    Full,
    Replayed,
    Stack,
    Door,
}

/// Records of the store that is full.
const FULL: usize = 20_000;

async fn calls(kind: Kind, times: u32) {
    let server = Server::builder().service(Echo);
    let server = match kind {
        Kind::Door => server.layer(ShedLayer::new(Limit::Fixed(100))),
        Kind::Full => {
            let bounds = Bounds::default().with_records_max(FULL);
            let bounds = bounds.with_when_full(WhenFull::ForgetOldest);
            let store = MemoryStore::with_bounds(bounds);
            server.once(Once::builder().build(store).expect("good terms"))
        }
        _ => server,
    };
    let server = server
        .bind("inproc://layers")
        .await
        .expect("it binds")
        .spawn();
    match kind {
        Kind::Stack => {
            let client = Client::builder().resilient().connect(["inproc://layers"]);
            call(client.await.expect("it connects"), kind, times).await;
        }
        _ => {
            let client = Client::connect("inproc://layers").await;
            call(client.expect("it connects"), kind, times).await;
        }
    }
    server.shutdown().await;
}

async fn call<S>(client: S, kind: Kind, times: u32)
where
    S: CallService,
    S::Error: std::fmt::Debug,
{
    let body = body(5);
    let method = match kind {
        Kind::Once | Kind::Full | Kind::Replayed => ONCE,
        Kind::Bare | Kind::Stack | Kind::Door => IDEMPOTENT,
    };
    let always = RequestId::new();
    for _ in 0..times {
        let mut request = RawRequest::new(method, body.clone());
        if kind == Kind::Replayed {
            request.id = always.clone();
        }
        client.clone().oneshot(request).await.expect("a reply");
    }
}
