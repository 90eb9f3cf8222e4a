//! Why there is no connection: the caller's status says it, and one line of the log on each side.

mod common;
#[path = "common/house.rs"]
mod house;
#[path = "common/listening.rs"]
mod listening;
#[path = "common/wire.rs"]
mod wire;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use bowline::security::{ClientSecurity, Keys};
use bowline::topic::{Keys as TopicKeys, SubscribeError};
use bowline::{
    Client, Code, Publisher, Reason, Server, ServerHandle, Status, Subscriber, TransportOptions,
    Work,
};
use bowline_test_schemas::everything::Progress;
use bytes::Bytes;
use common::{ECHO, HANG, Probe, call, send};
use house::House;
use omq_tokio::{Message, Options, Socket, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(30);

async fn connect(endpoint: impl ToString) -> Client {
    connect_with(endpoint, None).await
}

async fn connect_with(endpoint: impl ToString, security: Option<ClientSecurity>) -> Client {
    let mut builder = Client::builder().connect_wait(Duration::from_millis(100));
    if let Some(security) = security {
        builder = builder.security(security);
    }
    builder.connect(endpoint.to_string()).await.unwrap()
}

/// Calls until the status has this reason, which comes with the first attempt that has ended.
async fn fails_with(client: &Client, reason: Reason) -> Status {
    let since = Instant::now();
    loop {
        let status = call(client, &ECHO, "x").await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert_eq!(status.work(), Work::NotDone, "{status}");
        if status.reason() == Some(reason) {
            let endpoint = client.endpoint().to_string();
            assert!(status.message().contains(&endpoint), "{status}");
            let failure = client.connection_failure().expect("it is not connected");
            assert_eq!(failure.reason(), reason);
            return status;
        }
        assert!(since.elapsed() < PATIENCE, "{reason:?}: {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for a line of the log with all of these.
async fn line_with(logged: &Mutex<String>, parts: &[&str]) -> String {
    let since = Instant::now();
    loop {
        let found = {
            let logged = logged.lock().unwrap();
            let mut lines = logged.lines();
            let found = lines.find(|line| parts.iter().all(|part| line.contains(part)));
            found.map(str::to_owned)
        };
        if let Some(line) = found {
            return line;
        }
        let logged = logged.lock().unwrap().clone();
        assert!(since.elapsed() < PATIENCE, "no {parts:?} in\n{logged}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn serve() -> ServerHandle {
    let server = Server::builder().service(Probe::default());
    server.bind("tcp://127.0.0.1:0").await.unwrap().spawn()
}

/// A port on which nothing listens.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// Listens, and does this with each connection.
async fn listen<F: Future + Send + 'static>(
    then: impl Fn(TcpStream) -> F + Send + 'static,
) -> String
where
    F::Output: Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(then(stream));
        }
    });
    format!("tcp://{address}")
}

#[tokio::test]
async fn a_host_name_that_is_not_found_is_told() {
    let logged = listening::listen_here();
    let client = connect("tcp://no-such-host.invalid:5555").await;
    let status = fails_with(&client, Reason::NameNotFound).await;
    assert!(
        status.message().contains("`no-such-host.invalid`"),
        "{status}"
    );
    line_with(&logged, &["WARN cannot connect", "no-such-host.invalid"]).await;
}

#[tokio::test]
async fn a_refused_connection_is_told_and_logged_once_a_minute() {
    let logged = listening::listen_here();
    let client = connect(format!("tcp://127.0.0.1:{}", free_port().await)).await;
    fails_with(&client, Reason::ConnectionRefused).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let lines = logged.lock().unwrap().matches("cannot connect").count();
    assert_eq!(lines, 1);

    let folder = tempfile::tempdir().unwrap();
    let client = connect(format!("ipc://{}/none", folder.path().display())).await;
    fails_with(&client, Reason::ConnectionRefused).await;
    let client = connect("inproc://not-bound-by-this-process").await;
    fails_with(&client, Reason::ConnectionRefused).await;
}

#[tokio::test]
async fn a_peer_that_answers_nothing_is_told_at_once_and_after_the_handshake_timeout() {
    let endpoint = listen(|stream| async move {
        tokio::time::sleep(PATIENCE).await;
        drop(stream);
    })
    .await;
    let options = TransportOptions::default().with_handshakes(Duration::from_secs(1), 64);
    let client = Client::builder()
        .connect_wait(Duration::from_millis(100))
        .transport(options)
        .connect(&endpoint)
        .await
        .unwrap();
    let status = fails_with(&client, Reason::Unreachable).await;
    assert!(status.message().contains("handshake"), "{status}");
    let since = Instant::now();
    loop {
        let status = fails_with(&client, Reason::Unreachable).await;
        if status.message().contains("sent nothing within 1s") {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_peer_that_does_not_speak_zeromq_is_told_by_both_sides() {
    let logged = listening::listen_here();
    let endpoint = listen(|mut stream| async move {
        let _ = stream.read(&mut [0; 100]).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await;
    let client = connect(&endpoint).await;
    let status = fails_with(&client, Reason::NotZeromq).await;
    assert!(status.message().contains("HTTP/1.1"), "{status}");

    let server = serve().await;
    let address = server.endpoint().to_string().replace("tcp://", "");
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let peer = stream.local_addr().unwrap().to_string();
    line_with(&logged, &["WARN handshake failed", "GET / HTTP", &peer]).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_socket_of_another_type_is_told_by_both_sides() {
    let logged = listening::listen_here();
    // A client at a publisher.
    let publisher: Publisher<Progress> = Publisher::builder()
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let client = connect(publisher.endpoint()).await;
    fails_with(&client, Reason::WrongSocketType).await;
    line_with(&logged, &["WARN handshake failed", "Pub", "Dealer"]).await;
    // A subscriber at a server.
    let server = serve().await;
    let subscriber: Subscriber<Progress> = Subscriber::<()>::builder()
        .confirm_within(Duration::from_secs(2))
        .connect(server.endpoint().to_string())
        .await
        .unwrap();
    let error = subscriber.subscribe(TopicKeys::All).await.unwrap_err();
    let SubscribeError::NotConnected { failure, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(failure.reason(), Reason::WrongSocketType);
    assert!(
        error.to_string().contains(&server.endpoint().to_string()),
        "{error}"
    );
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_wrong_with_keys_is_told_by_both_sides() {
    let logged = listening::listen_here();
    let house = House::new();
    let server = house.serve("tcp://127.0.0.1:0").await;
    let at = server.endpoint().to_string();
    let right = house.server.public();

    let stranger = Keys::generate();
    let client = connect_with(&at, Some(ClientSecurity::new(stranger.clone(), right))).await;
    fails_with(&client, Reason::KeyRejected).await;
    let key = stranger.public().to_string();
    line_with(&logged, &["WARN connection refused", &key, "127.0.0.1:"]).await;

    let other = Keys::generate().public();
    let client = connect_with(&at, Some(ClientSecurity::new(house.web.clone(), other))).await;
    fails_with(&client, Reason::WrongServerKey).await;
    line_with(&logged, &["WARN handshake failed", "another public key"]).await;

    let client = connect(&at).await;
    let status = fails_with(&client, Reason::SecurityMismatch).await;
    assert!(status.message().contains("the peer has keys"), "{status}");
    line_with(&logged, &["WARN handshake failed", "the peer has none"]).await;

    let open = serve().await;
    let client = connect_with(
        open.endpoint(),
        Some(ClientSecurity::new(house.web.clone(), right)),
    )
    .await;
    let status = fails_with(&client, Reason::SecurityMismatch).await;
    assert!(status.message().contains("the peer has none"), "{status}");
    line_with(&logged, &["WARN handshake failed", "this side has none"]).await;
    open.shutdown().await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_revoked_key_and_its_connection_are_in_the_log() {
    let logged = listening::listen_here();
    let house = House::new();
    let server = house.serve("tcp://127.0.0.1:0").await;
    let right = house.server.public();
    let client = connect_with(
        server.endpoint(),
        Some(ClientSecurity::new(house.web.clone(), right)),
    )
    .await;
    call(&client, &ECHO, "x").await.unwrap();
    line_with(&logged, &["INFO connection opened", "web", "127.0.0.1:"]).await;
    line_with(&logged, &["INFO connected", &server.endpoint().to_string()]).await;
    house.allowed.revoke_principal("web");
    line_with(
        &logged,
        &["WARN connection lost", "web", "its key was revoked"],
    )
    .await;
    fails_with(&client, Reason::KeyRejected).await;
    assert_eq!(server.door().disconnected, 1);
    server.shutdown().await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_by_both_sides() {
    let logged = listening::listen_here();
    let options = TransportOptions::default().with_connections_max(1, 1);
    let server = Server::builder()
        .service(Probe::default())
        .transport(options)
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let first = connect(server.endpoint()).await;
    call(&first, &ECHO, "x").await.unwrap();
    let second = connect(server.endpoint()).await;
    let status = fails_with(&second, Reason::Unreachable).await;
    assert!(status.message().contains("as many connections"), "{status}");
    line_with(&logged, &["WARN connection refused", "as many connections"]).await;
    server.shutdown().await;
}

/// A server that takes a connection and then does this with it; and a call in flight over it.
async fn ends_in_flight(
    server: Socket,
    endpoint: &str,
    then: impl AsyncFnOnce(&Socket, Bytes),
) -> Status {
    let options = TransportOptions::default()
        .with_heartbeat(Duration::from_millis(100), Duration::from_millis(300));
    let client = Client::builder()
        .transport(options)
        .connect(endpoint)
        .await
        .unwrap();
    let calling = tokio::spawn(async move { call(&client, &HANG, "x").await });
    let request = tokio::time::timeout(PATIENCE, server.recv()).await;
    let peer = request.unwrap().unwrap().part_bytes(0).unwrap();
    then(&server, peer).await;
    let ended = tokio::time::timeout(PATIENCE, calling)
        .await
        .unwrap()
        .unwrap();
    let status = ended.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.work(), Work::OutcomeUnknown);
    assert_eq!(status.reason(), Some(Reason::ConnectionLost), "{status}");
    status
}

#[tokio::test]
async fn a_lost_connection_is_told_with_its_cause() {
    let logged = listening::listen_here();
    // Closed by the server.
    let router = Socket::new(SocketType::Router, Options::new());
    let endpoint = router.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let status = {
        let client = connect(&endpoint).await;
        let calling = tokio::spawn(async move { call(&client, &HANG, "x").await });
        tokio::time::timeout(PATIENCE, router.recv())
            .await
            .unwrap()
            .unwrap();
        drop(router);
        let ended = tokio::time::timeout(PATIENCE, calling)
            .await
            .unwrap()
            .unwrap();
        ended.unwrap_err()
    };
    assert_eq!(status.reason(), Some(Reason::ConnectionLost), "{status}");
    line_with(&logged, &["WARN connection lost", &endpoint]).await;

    // A message that is too large.
    let router = Socket::new(SocketType::Router, Options::new());
    let endpoint = router.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let status = ends_in_flight(router, &endpoint, async |router, peer| {
        let large = Bytes::from(vec![0; 3 << 20]);
        let message = Message::multipart([peer, Bytes::new(), Bytes::new(), large]);
        router.send(message).await.unwrap();
    })
    .await;
    assert!(status.message().contains("over the limit"), "{status}");
}

#[tokio::test]
async fn an_unanswered_heartbeat_is_told_as_the_cause() {
    // Takes the handshake of a client by hand, and never answers again.
    let endpoint = listen(|mut stream| async move {
        wire::shake_hands_as(&mut stream, "ROUTER").await;
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
    })
    .await;
    let options = TransportOptions::default()
        .with_heartbeat(Duration::from_millis(100), Duration::from_millis(300));
    let client = Client::builder()
        .transport(options)
        .connect(&endpoint)
        .await
        .unwrap();
    let status = call(&client, &HANG, "x").await.unwrap_err();
    assert_eq!(status.reason(), Some(Reason::ConnectionLost), "{status}");
    assert!(status.message().contains("heartbeat"), "{status}");
}

#[tokio::test]
async fn a_call_that_waited_for_its_server_ends_with_the_last_reason() {
    let client = connect(format!("tcp://127.0.0.1:{}", free_port().await)).await;
    let mut request = bowline::call::RawRequest::new(&ECHO, Bytes::new());
    request.wait_for_ready = true;
    request.deadline = Some((Instant::now() + Duration::from_millis(300)).into());
    let status = send(&client, request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.work(), Work::NotDone);
    assert_eq!(status.reason(), Some(Reason::ConnectionRefused), "{status}");
    let endpoint = client.endpoint().to_string();
    assert!(status.message().contains(&endpoint), "{status}");
}

#[tokio::test]
async fn a_queue_that_cannot_be_reached_says_why() {
    let endpoint = format!("tcp://127.0.0.1:{}", free_port().await);
    let error = bowline::queue::Remote::builder()
        .connect(&endpoint, "thumbnails")
        .await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains(&endpoint), "{error}");
    assert!(error.contains("no process listens there"), "{error}");
}

#[tokio::test]
async fn handshakes_that_fail_in_masses_are_logged_once_a_second() {
    let logged = listening::listen_here();
    let server = serve().await;
    let address = server.endpoint().to_string().replace("tcp://", "");
    let since = Instant::now();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    // Those that say nothing are no failures: health checks do so.
    drop(TcpStream::connect(&address).await.unwrap());
    let seconds = since.elapsed().as_secs() as usize;
    let lines = logged
        .lock()
        .unwrap()
        .matches("WARN handshake failed")
        .count();
    assert!((1..=seconds + 1).contains(&lines), "{lines}");
    while server.door().handshakes_failed < 51 {
        assert!(since.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
