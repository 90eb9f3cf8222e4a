//! What goes around a call, under callgrind: `benches/layers SCENARIO N` makes N calls in process, `bare`
//! or with one thing around them. Counted as benches/instructions.rs is.

use std::task::{Context, Poll};

use bowline::call::{CallService, NamedService, Outcome, RawReply, RawRequest, ReplyFuture};
use bowline::message::Plain;
use bowline::resilience::{Limit, ShedLayer};
use bowline::schema::{Effect, MethodInfo, Recovery, ServiceInfo};
use bowline::{Client, RequestKey, Server, Status};
use bowline_test_schemas::everything::PingParams;
use tower::{Service, ServiceExt};

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let (Some(scenario), Some(times)) = (arguments.next(), arguments.next()) else {
        return; // `cargo bench` as a whole: this one is for the script
    };
    let times: u32 = times.parse().expect("a number of times");
    let kind = match &scenario[..] {
        "bare" => Kind::Bare,
        "once" => Kind::Once,
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
    Once,
    Replayed,
    Stack,
    Door,
}

const fn method(ordinal: u16, effect: Effect) -> MethodInfo {
    MethodInfo {
        service: "echo",
        name: "echo",
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
    method(0, Effect::Idempotent),
    method(1, Effect::Once(Recovery::InDoubt)),
];
static INFO: ServiceInfo = ServiceInfo {
    name: "echo",
    interface: 0xec40,
    methods: &METHODS,
};

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

async fn calls(kind: Kind, times: u32) {
    let server = Server::builder().service(Echo);
    let server = match kind {
        Kind::Door => server.layer(ShedLayer::new(Limit::Fixed(100))),
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
    let text = "hello".to_owned();
    let body = PingParams { text }.to_bytes().expect("it has an encoding");
    let method = &METHODS[usize::from(matches!(kind, Kind::Once | Kind::Replayed))];
    for _ in 0..times {
        let mut request = RawRequest::new(method, body.clone());
        if kind == Kind::Replayed {
            request.id = RequestKey::new("the same").expect("short").into();
        }
        client.clone().oneshot(request).await.expect("a reply");
    }
}
