//! What travels with a call and how long it may take, over a real socket: generated clients and servers.

mod common;

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bowline::call::{RawReply, RawRequest, ReplyFuture};
use bowline::message::Plain;
use bowline::{
    Call, Client, Code, Failure, Link, Metadata, Reply, Request, RequestKey, Server, ServerHandle,
    Status, TraceContext, Work,
};
use bowline_test_schemas::common::Versioned;
use bowline_test_schemas::everything::*;
use bytes::Bytes;
use common::{Probe, SLEEP, milliseconds};
use omq_tokio::{Message, Options, Socket, SocketType};
use tower::limit::ConcurrencyLimitLayer;
use tower::timeout::TimeoutLayer;
use tower::{Service, ServiceBuilder};

/// Answers with what it was told beside the parameters.
struct Told;

fn left<P: Plain>(request: &Request<P>) -> u64 {
    request
        .remaining()
        .map_or(0, |left| left.as_millis() as u64)
}

impl Base for Told {
    /// The task that it runs in; of "wait", the one after it has waited.
    async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
        if request.plain()?.text == "wait" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let text = format!("{:?}", tokio::task::try_id());
        Ok(PingResults { text }.into())
    }
}

impl Versioned for Told {}

impl Login for Told {
    async fn log_out(&self, request: Request<Tick>) -> Result<Reply<Numbers>, Status> {
        let numbers = Numbers {
            u64: left(&request),
            ..Numbers::default()
        };
        Ok(numbers.into())
    }
}

impl Other for Told {
    async fn log_in(
        &self,
        request: Request<OtherLogInParams>,
    ) -> Result<Reply<OtherLogInResults>, Status> {
        let session = format!(
            "{} {} {:?}",
            left(&request),
            request.id(),
            request.trace().cloned()
        );
        let reply = Reply::from(OtherLogInResults { session });
        Ok(reply.with_metadata(request.metadata().clone()))
    }
}

/// Two services on one endpoint.
async fn start() -> ServerHandle {
    let server = Server::builder()
        .service(LoginServer::new(Told))
        .service(OtherServer::new(Told));
    server.bind("tcp://127.0.0.1:0").await.unwrap().spawn()
}

async fn connect(server: &ServerHandle) -> Client {
    Client::connect(server.endpoint().to_string())
        .await
        .unwrap()
}

/// How long the handler still had, in milliseconds.
async fn time_of(call: Call<Client, OtherLogInResults, Status>) -> u64 {
    let session = call.await.unwrap().plain().unwrap().session;
    session.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_time_of_a_call_is_its_own_or_the_schemas_or_the_clients_or_ten_seconds() {
    let server = start().await;
    let client = connect(&server).await;
    let other = OtherClient::new(client.clone());
    // Nobody says: the client's, which is 10 s unless it is set.
    assert!((5_000..=10_000).contains(&time_of(other.log_in(|_| {})).await));
    let own = other.log_in(|_| {}).timeout(Duration::from_secs(60));
    assert!((30_000..=60_000).contains(&time_of(own).await));
    let set = Client::builder().timeout(Duration::from_secs(300));
    let set = set.connect(server.endpoint().to_string()).await.unwrap();
    let set = OtherClient::new(set);
    assert!((100_000..=300_000).contains(&time_of(set.log_in(|_| {})).await));
    // The schema says 2 s for all of the interface.
    let login = LoginClient::new(client);
    let reply = login.log_out(|_| {}).await.unwrap();
    assert!((1..=2_000).contains(&reply.plain().unwrap().u64));
    server.shutdown().await;
}

/// Keeps the time that each request has.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Option<Duration>>>>);

impl Service<RawRequest> for Kept {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        let now = tokio::time::Instant::now();
        let time = request.deadline.map(|deadline| deadline - now);
        self.0.lock().unwrap().push(time);
        Box::pin(async { Err(Status::unavailable("not here")) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_method_has_its_own_timeout_before_that_of_its_interface() {
    let kept = Kept::default();
    let login = LoginClient::new(kept.clone());
    let _ = login.log_in(|_| {}).await;
    let _ = login.log_out(|_| {}).await;
    let _ = login.version(|_| {}).await;
    let times = kept.0.lock().unwrap().clone();
    let of = Duration::from_millis;
    // What is inherited has what its own interface says, which is nothing.
    assert_eq!(times, [Some(of(250)), Some(of(2000)), None]);
}

#[tokio::test]
async fn metadata_a_trace_and_the_callers_own_id_travel_with_a_call() {
    let server = start().await;
    let other = OtherClient::new(connect(&server).await);
    let mut metadata = Metadata::new();
    metadata.insert("tenant", "blue").unwrap();
    let trace = TraceContext {
        trace_id: 7,
        parent_id: 8,
        flags: 1,
        state: Some("vendor=x".into()),
    };
    for length in [1, 255] {
        let key = "k".repeat(length);
        let reply = other
            .log_in(|_| {})
            .metadata(metadata.clone())
            .trace(trace.clone())
            .request_id(RequestKey::new(key.clone()).unwrap())
            .await
            .unwrap();
        assert_eq!(reply.metadata(), &metadata);
        let session = reply.plain().unwrap().session;
        let expected = format!(" {key} {:?}", Some(&trace));
        assert!(session.ends_with(&expected), "{session}");
    }
    assert!(RequestKey::new("k".repeat(256)).is_err());
    server.shutdown().await;
}

#[tokio::test]
async fn a_link_is_followed_to_whoever_has_its_interface() {
    let server = start().await;
    let client = connect(&server).await;
    let ping = LOGIN_SERVICE.methods.iter().find(|m| m.name == "ping");
    let ping = ping.unwrap();
    let params = PingParams { text: "x".into() }.to_bytes().unwrap();
    let link = Link::<PingResults>::new("logins", ping.interface, ping.ordinal, params);
    // As it comes in a message.
    let pairs = Pairs::default();
    assert_eq!(pairs.link, Link::<Account>::default());
    let reply = Call::<_, PingResults, Status>::follow(&client, &link)
        .await
        .unwrap();
    assert!(!reply.plain().unwrap().text.is_empty());
    let nowhere = Link::<PingResults>::new("logins", 1, 0, Bytes::new());
    let status = Call::<_, PingResults, Status>::follow(&client, &nowhere)
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::Unimplemented, Work::NotDone)
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_are_ready_at_once_run_in_the_reading_task_and_others_in_their_own() {
    let server = start().await;
    let login = LoginClient::new(connect(&server).await);
    let task_of = async |text: &'static str| {
        let reply = login.ping(|mut params| params.set_text(text)).await;
        reply.unwrap().plain().unwrap().text
    };
    let reading = task_of("").await;
    for _ in 0..10 {
        assert_eq!(task_of("").await, reading);
        assert_ne!(task_of("wait").await, reading);
    }
    server.shutdown().await;
}

#[tokio::test]
async fn layers_of_tower_fit_on_both_sides_and_what_they_refuse_is_a_status() {
    let server = Server::builder()
        .service(LoginServer::new(Told))
        .layer(ConcurrencyLimitLayer::new(100))
        .layer(TimeoutLayer::new(Duration::from_secs(60)))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let stack = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(10)
        .timeout(Duration::from_secs(60))
        .service(connect(&server).await);
    let login = LoginClient::new(stack);
    let reply = login.ping(|mut params| params.set_text("x")).await;
    assert!(!reply.unwrap().plain().unwrap().text.is_empty());

    // A layer that gives up, in front of a service without a socket.
    let stack = ServiceBuilder::new()
        .timeout(Duration::from_millis(10))
        .service(Probe::default());
    let request = RawRequest::new(&SLEEP, milliseconds(60_000).into());
    let gives_up = Call::<_, Link<Account>, Failure<Denied>>::follow(
        &stack,
        &Link::new("probe", request.interface, request.method, request.body),
    );
    match gives_up.await.unwrap_err() {
        Failure::Status(status) => {
            assert_eq!(
                (status.code(), status.work()),
                (Code::Unknown, Work::OutcomeUnknown),
                "no more is known of an error that is not Bowline's"
            );
        }
        other => panic!("{other:?}"),
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_reply_to_who_has_gone_is_counted() {
    let server = Server::builder()
        .service(Probe::default())
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    // What a client sends, as a router sees it: identity, delimiter, header, body.
    let router = Socket::new(SocketType::Router, Options::new());
    let endpoint = router.bind("tcp://127.0.0.1:0").await.unwrap();
    let client = Client::connect(endpoint.to_string()).await.unwrap();
    let calling =
        tokio::spawn(async move { common::call(&client, &SLEEP, milliseconds(300)).await });
    let seen = router.recv().await.unwrap();
    calling.abort();
    let goes = Socket::new(SocketType::Dealer, Options::new());
    goes.connect(server.endpoint().to_string()).await.unwrap();
    let parts = (1..4).map(|part| seen.part_bytes(part).unwrap());
    goes.send(Message::multipart(parts)).await.unwrap();
    let start = Instant::now();
    let wait = || {
        assert!(start.elapsed() < Duration::from_secs(20), "not so");
        tokio::time::sleep(Duration::from_millis(5))
    };
    while server.counters().handled == 0 {
        wait().await;
    }
    goes.close().await.unwrap();
    let lost = || server.counters().abandoned + server.counters().replies_dropped;
    while lost() == 0 {
        wait().await;
    }
    assert_eq!(lost(), 1);
    server.shutdown().await;
}
