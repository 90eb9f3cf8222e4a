//! What travels with a call and how long it may take, over a real socket: generated clients and servers.

mod common;

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bowline::call::{RawReply, RawRequest, ReplyFuture};
use bowline::message::Plain;
use bowline::{
    Call, Client, Code, Failure, Link, Metadata, Reason, Reply, Request, RequestKey, Server,
    ServerHandle, Status, TraceContext, Work,
};
use bowline_test_schemas::everything::*;
use bowline_test_schemas::sub::common::Versioned;
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

/// A runtime of one thread, that of the test.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A server in a thread of its own, until the test ends.
fn serve_in_another_thread() -> (String, bowline::call::ServerStats) {
    let (told, tells) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let server = Server::builder().service(Probe::default());
            let server = server.bind("tcp://127.0.0.1:0").await.unwrap();
            told.send((server.endpoint().to_string(), server.stats()))
                .unwrap();
            server.run().await;
        });
    });
    tells.recv().unwrap()
}

#[test]
fn a_client_whose_runtime_has_shut_down_ends_its_calls_at_once() {
    let (endpoint, stats) = serve_in_another_thread();
    let first = runtime();
    let client = first.block_on(Client::connect(&endpoint)).unwrap();
    let in_flight = first.spawn({
        let client = client.clone();
        async move { common::call(&client, &common::HANG, "x").await }
    });
    first.block_on(async {
        while stats.counters().handled == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    // One that is polled by another runtime.
    let second = runtime();
    let mut waiting = Box::pin(common::call(&client, &common::HANG, "x"));
    second.block_on(async {
        let soon = tokio::time::timeout(Duration::from_millis(1), &mut waiting);
        assert!(soon.await.is_err(), "it waits");
    });
    drop(first);
    drop(in_flight);
    let status = second.block_on(waiting).unwrap_err();
    assert_eq!(
        (status.code(), status.reason(), status.work()),
        (
            Code::Unavailable,
            Some(Reason::RuntimeShutDown),
            Work::OutcomeUnknown
        )
    );
    second.block_on(async {
        let mut patient = RawRequest::new(&common::ECHO, Bytes::new());
        patient.wait_for_ready = true;
        for request in [RawRequest::new(&common::ECHO, Bytes::new()), patient] {
            let status = common::send(&client, request).await.unwrap_err();
            assert_eq!(
                (status.code(), status.reason(), status.work()),
                (
                    Code::Unavailable,
                    Some(Reason::RuntimeShutDown),
                    Work::NotDone
                )
            );
        }
        client.close().await;
    });
}

#[test]
fn a_call_ends_by_its_deadline_though_its_clients_runtime_stands_still() {
    let (endpoint, _) = serve_in_another_thread();
    let (first, second) = (runtime(), runtime());
    let client = first.block_on(Client::connect(&endpoint)).unwrap();
    // Nothing runs in the first any more.
    second.block_on(async {
        for wait_for_ready in [false, true] {
            let mut request = RawRequest::new(&common::ECHO, Bytes::new());
            request.wait_for_ready = wait_for_ready;
            request.deadline = Some(tokio::time::Instant::now() + Duration::from_millis(50));
            let call = common::send(&client, request);
            let ended = tokio::time::timeout(Duration::from_secs(60), call).await;
            let status = ended.expect("it ends").unwrap_err();
            assert_eq!(
                (status.code(), status.work()),
                (Code::DeadlineExceeded, Work::OutcomeUnknown)
            );
        }
    });
    drop(first);
}

#[test]
fn a_servers_handle_returns_though_its_runtime_has_shut_down() {
    let (first, second) = (runtime(), runtime());
    let server = first.block_on(async {
        let server = Server::builder().service(Probe::default());
        server.bind("tcp://127.0.0.1:0").await.unwrap().spawn()
    });
    let readiness = server.readiness();
    first.block_on(async {
        while !readiness.is_ready() {
            tokio::task::yield_now().await;
        }
    });
    drop(first);
    assert!(!readiness.is_ready());
    second.block_on(async {
        let shut_down = tokio::time::timeout(Duration::from_secs(60), server.shutdown());
        shut_down.await.expect("it returns");
    });
}

#[tokio::test]
async fn counters_are_there_before_a_server_runs_and_after() {
    let server = Server::builder().service(Probe::default());
    let server = server.bind("inproc://stats").await.unwrap();
    let stats = server.stats();
    assert!(!stats.readiness().is_ready());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.run_until(async {
        let _ = stopped.await;
    }));
    let client = Client::connect(stats.endpoint().to_string()).await.unwrap();
    common::call(&client, &common::ECHO, "x").await.unwrap();
    assert!(stats.readiness().is_ready());
    stop.send(()).unwrap();
    running.await.unwrap();
    assert_eq!(
        (stats.counters().handled, stats.readiness().is_ready()),
        (1, false)
    );
}

/// What a handler that has worked says of a message that it cannot read.
#[tokio::test]
async fn a_message_that_a_handler_cannot_read_is_not_said_to_be_not_done() {
    struct Unreadable;

    impl Base for Unreadable {
        async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
            let text = request.get()?.get_text()?;
            if text.to_str()? == "other" {
                // Of another service, say.
                let reply = bowline::Msg::<PingParams>::open(
                    Bytes::from_static(b"no"),
                    &Default::default(),
                )?;
                reply.plain()?;
            }
            Ok(PingResults::default().into())
        }
    }

    let server = Server::builder().service(BaseServer::new(Unreadable));
    let server = server
        .bind("inproc://unreadable-in-handler")
        .await
        .unwrap()
        .spawn();
    let client = BaseClient::connect("inproc://unreadable-in-handler")
        .await
        .unwrap();
    let status = client.ping(|mut p| p.set_text("other")).await.unwrap_err();
    assert_eq!(
        (status.code(), status.work(), status.reason()),
        (
            Code::Internal,
            Work::OutcomeUnknown,
            Some(Reason::Unreadable)
        )
    );
    // As often as it likes, and one by one.
    let text = "x".repeat(200_000);
    let reply = client.ping(|mut p| p.set_text(&text)).await.unwrap();
    for _ in 0..100 {
        reply.plain().unwrap();
    }
    server.shutdown().await;
}

#[test]
fn what_is_shown_of_a_call_has_no_body() {
    let body = Bytes::from_static(b"t0psecret");
    let request = RawRequest::new(&common::ECHO, body.clone());
    let reply = RawReply::new(bowline::call::Outcome::Success, body);
    for shown in [format!("{request:?}"), format!("{reply:?}")] {
        assert!(
            !shown.contains("t0psecret") && shown.contains("9 bytes"),
            "{shown}"
        );
    }
}

/// Lets nobody in before it is told to.
#[derive(Clone, Default)]
struct Waits {
    started: Arc<std::sync::atomic::AtomicU64>,
    done: Arc<std::sync::atomic::AtomicU64>,
    go_on: Arc<tokio::sync::Notify>,
}

impl Base for Waits {}
impl Versioned for Waits {}

impl Login for Waits {
    async fn log_in(
        &self,
        _: Request<LoginLogInParams>,
    ) -> Result<Reply<LoginLogInResults>, Failure<Denied>> {
        use std::sync::atomic::Ordering::SeqCst;
        self.started.fetch_add(1, SeqCst);
        self.go_on.notified().await;
        self.done.fetch_add(1, SeqCst);
        Ok(LoginLogInResults::default().into())
    }
}

#[tokio::test]
async fn dropping_a_call_does_not_end_work_that_is_done_once() {
    use std::sync::atomic::Ordering::SeqCst;
    let waits = Waits::default();
    let server = Server::builder().service(LoginServer::new(waits.clone()));
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
    let client = LoginClient::new(connect(&server).await);
    let id = bowline::RequestId::new();
    let calling = tokio::spawn({
        let call = client.log_in(|_| {}).request_id(id.clone());
        async move { call.timeout(Duration::from_secs(60)).await.map(|_| ()) }
    });
    while waits.started.load(SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    calling.abort();
    while server.counters().cancelled == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    waits.go_on.notify_one();
    let again = client.log_in(|_| {}).request_id(id);
    let again = again.timeout(Duration::from_secs(60)).await.unwrap();
    assert!(again.is_replayed() || waits.done.load(SeqCst) == 1);
    assert_eq!(
        (waits.started.load(SeqCst), waits.done.load(SeqCst)),
        (1, 1)
    );
    server.shutdown().await;
}
