//! A service without a schema, for tests of what carries calls: its method says what it does.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bowline::call::{NamedService, Outcome, RawReply, RawRequest, ReplyFuture};
use bowline::schema::{Effect, MethodInfo, ServiceInfo};
use bowline::{Client, Status};
use bytes::Bytes;
use tower::Service;

pub const INTERFACE: u64 = 0xfeed;

macro_rules! method {
    ($name:literal, $ordinal:literal, $effect:expr) => {
        MethodInfo {
            service: "probe",
            name: $name,
            interface: INTERFACE,
            ordinal: $ordinal,
            effect: $effect,
            timeout: None,
            params: 0,
            results: 0,
            fails: None,
        }
    };
}

/// Answers its body at once.
pub static ECHO: MethodInfo = method!("echo", 0, Effect::Idempotent);
/// Answers after as many milliseconds as the first two bytes say.
pub static SLEEP: MethodInfo = method!("sleep", 1, Effect::Unsafe);
/// Panics at its first poll.
pub static PANIC: MethodInfo = method!("panic", 2, Effect::Unsafe);
/// Panics after a while.
pub static PANIC_LATER: MethodInfo = method!("panicLater", 3, Effect::Unsafe);
/// Never answers.
pub static HANG: MethodInfo = method!("hang", 4, Effect::Unsafe);

static METHODS: [MethodInfo; 5] = [
    method!("echo", 0, Effect::Idempotent),
    method!("sleep", 1, Effect::Unsafe),
    method!("panic", 2, Effect::Unsafe),
    method!("panicLater", 3, Effect::Unsafe),
    method!("hang", 4, Effect::Unsafe),
];
static INFO: ServiceInfo = ServiceInfo {
    name: "probe",
    interface: INTERFACE,
    methods: &METHODS,
};

#[derive(Clone, Default)]
pub struct Probe {
    pub started: Arc<AtomicU64>,
}

impl NamedService for Probe {
    const INFO: &'static ServiceInfo = &INFO;
}

impl Service<RawRequest> for Probe {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        self.started.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            match request.method {
                0 => {}
                1 => {
                    let milliseconds = u64::from(request.body[0]) << 8 | u64::from(request.body[1]);
                    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                }
                2 => panic!("as asked"),
                3 => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    panic!("as asked, later");
                }
                _ => std::future::pending().await,
            }
            Ok(RawReply::new(Outcome::Success, request.body))
        })
    }
}

pub async fn call(
    client: &Client,
    method: &MethodInfo,
    body: impl Into<Bytes>,
) -> Result<Bytes, Status> {
    send(client, RawRequest::new(method, body.into())).await
}

pub async fn send(client: &Client, request: RawRequest) -> Result<Bytes, Status> {
    client.clone().call(request).await.map(|reply| reply.body)
}

pub fn milliseconds(n: u16) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}
