//! Requests on their way to a server that does not read yet: none of them is sent twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bowline::call::{NamedService, RawReply, ReplyFuture};
use bowline::schema::ServiceInfo;
use bowline::{RequestId, Status};
use tower::Service;

use crate::stalled::{alone, fill, leaves};
use crate::*;

/// How often each attempt of a request has come.
type Seen = Arc<Mutex<HashMap<(RequestId, u16), usize>>>;

#[derive(Clone)]
struct Recording {
    probe: Probe,
    seen: Seen,
}

impl NamedService for Recording {
    const INFO: &'static ServiceInfo = Probe::INFO;
}

impl Service<RawRequest> for Recording {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.probe.poll_ready(cx)
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        let attempt = (request.id.clone(), request.attempt);
        *self.seen.lock().unwrap().entry(attempt).or_default() += 1;
        self.probe.call(request)
    }
}

fn recording(carried: Carried) -> (ServerBuilder, Seen) {
    let seen = Seen::default();
    let service = Recording {
        probe: Probe::default(),
        seen: Arc::clone(&seen),
    };
    let server = Server::builder().service(service);
    (server.transport(carried.options()), seen)
}

fn request() -> RawRequest {
    let mut request = RawRequest::new(&ECHO, Bytes::from_static(b"once"));
    request.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(120));
    request
}

fn again(request: &RawRequest) -> RawRequest {
    let mut request = request.clone();
    request.attempt += 1;
    request
}

pub async fn a_call_that_is_dropped_while_its_send_is_blocked_is_not_sent_twice(carried: Carried) {
    let _alone = alone().await;
    let (server, seen) = recording(carried);
    // Nothing of it reads before it is run.
    let server = server.bind(carried.endpoint()).await.unwrap();
    let client = carried.connect(server.endpoint()).await;
    let filled = fill(&client).await;
    let dropped: Vec<_> = (0..20).map(|_| request()).collect();
    let retried: Vec<_> = (0..20).map(|_| request()).collect();
    let left = |request: &RawRequest| leaves(&client, request.clone());
    assert_eq!(
        dropped.iter().chain(&retried).filter(|r| left(r)).count(),
        0
    );
    let mut waiting = JoinSet::new();
    for request in &retried {
        let (client, request) = (client.clone(), again(request));
        waiting.spawn(async move { send(&client, request).await });
    }
    let server = server.spawn();
    while let Some(replied) = waiting.join_next().await {
        assert_eq!(replied.unwrap().unwrap(), "once");
    }
    // What left before them may still be waiting for its handler, or had none: it is refused where too many wait at once.
    let expected = filled + retried.len();
    let arrived = || {
        let counters = server.counters();
        seen.lock().unwrap().len() + (counters.refused + counters.cancelled) as usize
    };
    eventually("all have come", || arrived() >= expected).await;
    let seen = seen.lock().unwrap().clone();
    assert!(seen.values().all(|times| *times == 1), "none comes twice");
    assert!(seen.len() <= expected);
    for request in dropped.iter().chain(&retried) {
        assert!(!seen.contains_key(&(request.id.clone(), 0)), "never sent");
    }
    server.shutdown().await;
}

pub async fn what_a_lost_connection_had_not_sent_is_not_sent_to_the_next(carried: Carried) {
    let _alone = alone().await;
    let (server, _) = recording(carried);
    let server = server.bind(carried.endpoint()).await.unwrap();
    let endpoint = server.endpoint().to_string();
    let client = carried.connect(&endpoint).await;
    let mut requests = JoinSet::new();
    for _ in 0..20 {
        let (client, request) = (client.clone(), request());
        requests.spawn(async move { (send(&client, request.clone()).await, request) });
    }
    eventually("they have left", || client.counters().in_flight == 20).await;
    fill(&client).await;
    for _ in 0..20 {
        let (client, request) = (client.clone(), request());
        requests.spawn(async move { (send(&client, request.clone()).await, request) });
    }
    drop(server);
    let mut failed = Vec::new();
    while let Some(ended) = requests.join_next().await {
        let (ended, request) = ended.unwrap();
        assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
        failed.push(request);
    }
    let (server, seen) = recording(carried);
    let server = server.bind(&endpoint).await.unwrap().spawn();
    for request in &failed {
        let mut request = again(request);
        request.wait_for_ready = true;
        assert_eq!(send(&client, request).await.unwrap(), "once");
    }
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), failed.len(), "nothing of before has come");
    for request in &failed {
        assert_eq!(seen.get(&(request.id.clone(), 1)), Some(&1));
    }
    server.shutdown().await;
}
