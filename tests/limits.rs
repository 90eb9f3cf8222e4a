//! Every limit on what strangers may have, at its edge: the last that fits, and the first that does not.

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bowline::{Client, Code, Publisher, Server, ServerHandle, TransportOptions, Work};
use bowline_test_schemas::everything::Progress;
use bytes::Bytes;
use common::{ECHO, INTERFACE, Probe, SLEEP, call, milliseconds};
use omq_tokio::{Message, Options, Socket, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const PATIENCE: Duration = Duration::from_secs(10);

async fn start(options: TransportOptions) -> ServerHandle {
    let server = Server::builder()
        .service(Probe::default())
        .transport(options);
    server.bind("tcp://127.0.0.1:0").await.unwrap().spawn()
}

async fn client(server: &ServerHandle) -> Client {
    let client = Client::builder().connect_wait(Duration::from_millis(300));
    let endpoint = server.endpoint().to_string();
    client.connect(endpoint).await.unwrap()
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn address(server: &ServerHandle) -> SocketAddr {
    let endpoint = server.endpoint().to_string();
    endpoint.strip_prefix("tcp://").unwrap().parse().unwrap()
}

/// A connection from one of this machine's addresses, before its handshake.
async fn raw(server: &ServerHandle, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(from.parse().unwrap(), 0))
        .unwrap();
    socket.connect(address(server)).await.unwrap()
}

/// The handshake of ZMTP 3.1 without keys; whether the server is ready then.
async fn shake_hands(stream: &mut TcpStream) -> bool {
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xff, 0x7f, 3, 1);
    greeting[12..16].copy_from_slice(b"NULL");
    let ready = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER";
    let mut theirs = [0; 64];
    let exchange = async {
        stream.write_all(&greeting).await?;
        stream.read_exact(&mut theirs).await?;
        stream.write_all(ready).await?;
        stream.read_u8().await
    };
    let first = tokio::time::timeout(PATIENCE, exchange).await.unwrap();
    matches!(first, Ok(4))
}

async fn is_closed_within(stream: &mut TcpStream, time: Duration) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(time, stream.read_to_end(&mut rest))
        .await
        .is_ok()
}

#[tokio::test]
async fn one_connection_too_many_is_refused_until_another_ends() {
    let server = start(TransportOptions::default().with_connections_max(2, 2)).await;
    let first = client(&server).await;
    let second = client(&server).await;
    assert_eq!(call(&first, &ECHO, "1").await.unwrap(), "1");
    assert_eq!(call(&second, &ECHO, "2").await.unwrap(), "2");
    let third = client(&server).await;
    let refused = call(&third, &ECHO, "3").await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.work()),
        (Code::Unavailable, Work::NotDone)
    );
    assert!(server.door().connections_refused >= 1);
    assert_eq!(server.door().connections, 2);

    first.close().await;
    eventually("the third is let in", || third.is_connected()).await;
    assert_eq!(call(&third, &ECHO, "3").await.unwrap(), "3");
    assert_eq!(call(&second, &ECHO, "2").await.unwrap(), "2");
    server.shutdown().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn one_address_has_its_share_of_the_connections_and_another_its_own() {
    let server = start(TransportOptions::default().with_connections_max(10, 2)).await;
    let mut open = Vec::new();
    for (from, gets_in) in [
        ("127.0.0.1", true),
        ("127.0.0.1", true),
        ("127.0.0.1", false),
        ("127.0.0.2", true),
        ("127.0.0.2", true),
        ("127.0.0.2", false),
    ] {
        let mut stream = raw(&server, from).await;
        assert_eq!(shake_hands(&mut stream).await, gets_in, "{from}");
        open.push(stream);
    }
    assert_eq!(server.door().connections, 4);
    drop(open);
    eventually("all are gone", || server.door().connections == 0).await;
    server.shutdown().await;
}

#[tokio::test]
async fn half_a_handshake_ends_in_time_and_keeps_others_out_no_longer() {
    let time = Duration::from_millis(500);
    let server = start(TransportOptions::default().with_handshakes(time, 3)).await;
    let mut halves = Vec::new();
    for _ in 0..3 {
        let mut stream = raw(&server, "127.0.0.1").await;
        stream.write_all(&[0xff]).await.unwrap();
        halves.push(stream);
    }
    tokio::time::sleep(time / 5).await;
    // One too many is not even listened to.
    let mut fourth = raw(&server, "127.0.0.1").await;
    assert!(is_closed_within(&mut fourth, time / 2).await);
    for half in &mut halves {
        assert!(is_closed_within(half, PATIENCE).await);
    }
    let client = client(&server).await;
    eventually("a good client is let in", || client.is_connected()).await;
    assert_eq!(call(&client, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

#[tokio::test]
async fn a_peer_that_answers_no_heartbeat_is_gone_after_the_time() {
    let (interval, timeout) = (Duration::from_millis(100), Duration::from_millis(300));
    let server = start(TransportOptions::default().with_heartbeat(interval, timeout)).await;
    let mut silent = raw(&server, "127.0.0.1").await;
    assert!(shake_hands(&mut silent).await);
    assert!(is_closed_within(&mut silent, PATIENCE).await);
    eventually("it is not counted any more", || {
        server.door().connections == 0
    })
    .await;
    server.shutdown().await;
}

#[tokio::test]
async fn one_connection_has_its_share_of_the_requests_in_flight() {
    let server = Server::builder()
        .service(Probe::default())
        .concurrency_per_connection_max(2)
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let (greedy, other) = (client(&server).await, client(&server).await);
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let greedy = greedy.clone();
            tokio::spawn(async move { call(&greedy, &SLEEP, milliseconds(500)).await })
        })
        .collect();
    eventually("two are in flight", || server.counters().handled == 2).await;
    let refused = call(&greedy, &SLEEP, milliseconds(1)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.work()),
        (Code::ResourceExhausted, Work::NotDone)
    );
    call(&other, &SLEEP, milliseconds(1)).await.unwrap();
    for busy in busy {
        busy.await.unwrap().unwrap();
    }
    call(&greedy, &SLEEP, milliseconds(1)).await.unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn no_peer_takes_the_zeromq_identity_of_another() {
    let server = start(TransportOptions::default()).await;
    let named = || Options::new().identity(Bytes::from_static(b"ann"));
    let endpoint = server.endpoint().to_string();
    let ann = Socket::new(SocketType::Dealer, named());
    ann.connect(endpoint.as_str()).await.unwrap();
    ann.wait_connected(1, PATIENCE).await.unwrap();
    let thief = Socket::new(SocketType::Dealer, named());
    thief.connect(endpoint.as_str()).await.unwrap();
    // The thief's side of the handshake may be over before it is refused; it is not served.
    eventually("it is refused", || server.door().handshakes_failed > 0).await;

    let nonsense = || Message::multipart([Bytes::new(), Bytes::from_static(b"x"), Bytes::new()]);
    for _ in 0..3 {
        ann.send(nonsense()).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, ann.recv()).await;
        assert_eq!(answer.unwrap().unwrap().len(), 3);
    }
    assert_eq!(server.counters().malformed, 3);
    server.shutdown().await;
}

#[tokio::test]
async fn a_client_that_reads_no_replies_has_few_waiting_and_is_shown_out() {
    let server = Server::builder()
        .service(Probe::default())
        .send_wait_max(Duration::from_millis(200))
        .transport(TransportOptions::default().with_send_bytes_max(256 << 10))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let other = client(&server).await;
    let mut stream = raw(&server, "127.0.0.1").await;
    assert!(shake_hands(&mut stream).await);
    let header = request_header();
    let body = vec![7; 64 << 10];
    // [empty, more] [header, more] [body, long]
    let mut frames = vec![1, 0, 1, header.len() as u8];
    frames.extend(&header);
    frames.push(2);
    frames.extend((body.len() as u64).to_be_bytes());
    frames.extend(&body);
    // Until it is closed: more than any buffer on the way holds.
    let mut sent = 0;
    while let Ok(Ok(())) = tokio::time::timeout(PATIENCE, stream.write_all(&frames)).await {
        sent += 1;
        assert!(sent < 10_000, "still connected");
    }
    eventually("it is shown out", || server.door().disconnected > 0).await;
    assert!(server.counters().replies_dropped > 0);
    assert_eq!(call(&other, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

/// The header of a call of `echo` with all fields at their defaults: see docs/wire.md.
fn request_header() -> Vec<u8> {
    let mut words = [0u64; 8];
    words[0] = 7 << 32;
    words[1] = 6 << 32; // a struct of six words of data, no pointers
    words[3] = INTERFACE;
    words[4] = 0x0192_f3a4_b5c6_7d8e;
    words[5] = 0x8f90_a1b2_c3d4_e5f6;
    words[6] = 1;
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[tokio::test]
async fn one_subscription_too_many_is_refused_until_another_is_taken_back() {
    let publisher: Publisher<Progress> = Publisher::builder()
        .transport(TransportOptions::default().with_subscriptions_max(4))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let subscriber = Socket::new(SocketType::Sub, Options::new());
    let endpoint = publisher.endpoint().to_string();
    subscriber.connect(endpoint.as_str()).await.unwrap();
    for key in 1..=5 {
        let prefix = format!("progress/{key}");
        subscriber.subscribe(Bytes::from(prefix)).await.unwrap();
    }
    eventually("the fourth is there", || publisher.matching("4") == 1).await;
    eventually("the fifth is refused", || {
        publisher.door().subscriptions_refused == 1
    })
    .await;
    assert_eq!(publisher.matching("5"), 0);

    subscriber
        .unsubscribe(Bytes::from_static(b"progress/1"))
        .await
        .unwrap();
    eventually("the first is not there", || publisher.matching("1") == 0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let sixth = Bytes::from_static(b"progress/6");
    subscriber.subscribe(sixth).await.unwrap();
    eventually("the sixth is there", || publisher.matching("6") == 1).await;
    publisher.close().await;
}

#[tokio::test]
async fn a_body_of_one_mebibyte_gets_through_by_default_and_a_byte_more_does_not() {
    let server = start(TransportOptions::default()).await;
    let client = client(&server).await;
    let body = vec![7; 1 << 20];
    assert_eq!(call(&client, &ECHO, body).await.unwrap().len(), 1 << 20);
    let refused = call(&client, &ECHO, vec![7; (1 << 20) + 1])
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    server.shutdown().await;
}
