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
/// Never answers, and is parked meanwhile.
pub static PARK: MethodInfo = method!("park", 8, Effect::Unsafe);

/// Computes for as many milliseconds as the first two bytes say, without an await.
pub static SPIN: MethodInfo = method!("spin", 5, Effect::Idempotent);
/// Answers with as many bytes as the first eight say.
pub static LARGE: MethodInfo = method!("large", 6, Effect::Unsafe);
/// Fails with a message of 66,000 bytes.
pub static FAIL_LONG: MethodInfo = method!("failLong", 7, Effect::Unsafe);

static METHODS: [MethodInfo; 9] = [
    method!("echo", 0, Effect::Idempotent),
    method!("sleep", 1, Effect::Unsafe),
    method!("panic", 2, Effect::Unsafe),
    method!("panicLater", 3, Effect::Unsafe),
    method!("hang", 4, Effect::Unsafe),
    method!("spin", 5, Effect::Idempotent),
    method!("large", 6, Effect::Unsafe),
    method!("failLong", 7, Effect::Unsafe),
    method!("park", 8, Effect::Unsafe),
];
static INFO: ServiceInfo = ServiceInfo {
    name: "probe",
    interface: INTERFACE,
    methods: &METHODS,
};

#[derive(Clone, Default)]
pub struct Probe {
    pub started: Arc<AtomicU64>,
    /// Handlers that have neither ended nor been dropped.
    pub running: Arc<AtomicU64>,
}

struct Running(Arc<AtomicU64>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
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
        self.running.fetch_add(1, Ordering::SeqCst);
        let running = Running(Arc::clone(&self.running));
        Box::pin(async move {
            let _running = running;
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
                5 => {
                    let milliseconds = u64::from(request.body[0]) << 8 | u64::from(request.body[1]);
                    std::thread::sleep(Duration::from_millis(milliseconds));
                }
                6 => {
                    let bytes = u64::from_be_bytes(request.body[..8].try_into().expect("eight"));
                    let body = Bytes::from(vec![7; bytes as usize]);
                    return Ok(RawReply::new(Outcome::Success, body));
                }
                7 => return Err(Status::internal("x".repeat(66_000))),
                8 => {
                    drop(request);
                    return bowline::call::park(std::future::pending()).await;
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
