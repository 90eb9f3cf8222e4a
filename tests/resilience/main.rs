//! Resilient clients, and servers with a door, in this process. Some of the services fail.

mod breakers;
mod client;
#[path = "../common/listening.rs"]
mod listening;
mod server;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bowline::call::{NamedService, Outcome, RawReply, RawRequest, ReplyFuture};
use bowline::once::{MemoryStore, Once};
use bowline::resilience::{
    AdaptivePolicy, Balance, BudgetPolicy, HedgeAfter, Limit, Resilient, RetryLayer, RetryPolicy,
    SharedBudget, ShedLayer, TryTimeout,
};
use bowline::schema::{Effect, MethodInfo, Recovery, ServiceInfo};
use bowline::{Client, Code, Reason, RequestKey, Server, ServerHandle, Status, Work};
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

const fn method(name: &'static str, ordinal: u16, effect: Effect) -> MethodInfo {
    MethodInfo {
        service: "moody",
        name,
        interface: 0x700d,
        ordinal,
        effect,
        timeout: None,
        params: 0,
        results: 0,
        fails: None,
    }
}

static METHODS: [MethodInfo; 3] = [
    method("idempotent", 0, Effect::Idempotent),
    method("once", 1, Effect::Once(Recovery::InDoubt)),
    method("unsafe", 2, Effect::Unsafe),
];
static INFO: ServiceInfo = ServiceInfo {
    name: "moody",
    interface: 0x700d,
    methods: &METHODS,
};
static IDEMPOTENT: &MethodInfo = &METHODS[0];
static ONCE: &MethodInfo = &METHODS[1];
static UNSAFE: &MethodInfo = &METHODS[2];

type Mood = Arc<dyn Fn(RawRequest) -> ReplyFuture + Send + Sync>;

/// Does what its mood says, and counts.
#[derive(Clone)]
struct Moody {
    mood: Mood,
    calls: Arc<AtomicU64>,
}

impl Moody {
    fn new<F>(mood: impl Fn(RawRequest) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<RawReply, Status>> + Send + 'static,
    {
        Self {
            mood: Arc::new(move |request| Box::pin(mood(request))),
            calls: Arc::default(),
        }
    }

    fn good() -> Self {
        Self::new(|request| async move { Ok(RawReply::new(Outcome::Success, request.body)) })
    }

    fn slow(time: Duration) -> Self {
        Self::new(move |request| async move {
            tokio::time::sleep(time).await;
            Ok(RawReply::new(Outcome::Success, request.body))
        })
    }

    fn failing(status: impl Fn() -> Status + Send + Sync + 'static) -> Self {
        Self::new(move |_| std::future::ready(Err(status())))
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    async fn start(&self) -> ServerHandle {
        let server = Server::builder().service(self.clone());
        server.bind(endpoint()).await.expect("it binds").spawn()
    }
}

fn endpoint() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("inproc://resilience-{number}")
}

impl NamedService for Moody {
    const INFO: &'static ServiceInfo = &INFO;
}

impl Service<RawRequest> for Moody {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        self.calls.fetch_add(1, Ordering::Relaxed);
        (self.mood)(request)
    }
}

fn body() -> Bytes {
    use bowline::message::Plain;
    "hello".to_owned().to_bytes().expect("it has an encoding")
}

async fn call(client: &Resilient, method: &MethodInfo) -> Result<RawReply, Status> {
    client
        .clone()
        .oneshot(RawRequest::new(method, body()))
        .await
}

async fn connect(servers: &[&ServerHandle]) -> Resilient {
    let endpoints = servers.iter().map(|server| server.endpoint().to_string());
    let client = Client::builder().resilient().connect(endpoints).await;
    client.expect("endpoints")
}

async fn wait_until(is_so: impl Fn() -> bool) {
    let waits = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waits).await;
    waited.expect("in time");
}
