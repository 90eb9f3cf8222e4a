//! Each kind of bad input is counted, and logged once a second and no more. A test alone, since it listens to all
//! that its process logs.

mod common;
#[path = "common/listening.rs"]
mod listening;
#[path = "common/wire.rs"]
mod wire;

use std::time::{Duration, Instant};

use bowline::topic::Keys;
use bowline::{Client, Limits, Server, Subscriber};
use bowline_test_schemas::everything::{BASE_SERVICE, Base, BaseServer, Progress};
use bytes::Bytes;
use common::{ECHO, Probe, call};
use omq_tokio::{Message, Options, Socket, SocketType};
use wire::request_header;

const EACH: usize = 50;

/// Has a method, and no way to it for who cannot write its parameters.
struct Pings;

impl Base for Pings {}

#[tokio::test]
async fn each_kind_of_bad_input_is_counted_and_logged_now_and_then() {
    let logged = listening::listen();
    let limits = Limits::default().with_message_bytes_max(1000);
    let server = Server::builder()
        .service(Probe::default())
        .service(BaseServer::new(Pings))
        .limits(limits);
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
    let stranger = Socket::new(SocketType::Dealer, Options::new());
    let endpoint = server.endpoint().to_string();
    stranger.connect(endpoint.as_str()).await.unwrap();

    let start = Instant::now();
    let newer = {
        let mut header = request_header(0, 1);
        header[16] = 1 ^ 2; // version 2, as its difference to the default of 1
        header
    };
    let parts = |header: &[u8], body: usize| {
        [&b""[..], header, &vec![7; body]]
            .map(Bytes::copy_from_slice)
            .to_vec()
    };
    let unread = {
        let mut header = request_header(0, 1);
        header[24..32].copy_from_slice(&BASE_SERVICE.interface.to_le_bytes());
        header
    };
    let kinds = [
        parts(b"nonsense", 0),
        parts(&newer, 0),
        vec![Bytes::from_static(b"one part")],
        vec![Bytes::new()],
        parts(&request_header(0, 1), 1001),
        parts(&request_header(99, 1), 0),
        parts(&unread, 100),
    ];
    for _ in 0..EACH {
        for kind in &kinds {
            let message = Message::multipart(kind.clone());
            stranger.send(message).await.unwrap();
            let answer = tokio::time::timeout(Duration::from_secs(20), stranger.recv()).await;
            assert_eq!(answer.unwrap().unwrap().len(), 3, "a status");
        }
    }
    let counters = server.counters();
    assert_eq!(
        (counters.malformed, counters.too_large, counters.unknown),
        (4 * EACH as u64, EACH as u64, EACH as u64)
    );
    let each = EACH as u64;
    assert_eq!((counters.unreadable, counters.handled), (each, each));

    // And what a client and a subscriber are sent by who is no server and no publisher.
    let router = Socket::new(SocketType::Router, Options::new());
    let endpoint = router.bind("tcp://127.0.0.1:0").await.unwrap();
    let client = Client::connect(endpoint.to_string()).await.unwrap();
    let calling = tokio::spawn({
        let client = client.clone();
        async move { call(&client, &ECHO, "x").await }
    });
    let peer = router.recv().await.unwrap().part_bytes(0).unwrap();
    let pub_ = Socket::new(SocketType::Pub, Options::new());
    let endpoint = pub_.bind("tcp://127.0.0.1:0").await.unwrap();
    let subscriber = Subscriber::<Progress>::connect(endpoint.to_string());
    let subscriber = subscriber.await.unwrap();
    subscriber.subscribe_unconfirmed(Keys::All).await.unwrap();
    pub_.wait_subscribed(1, Duration::from_secs(20))
        .await
        .unwrap();
    for _ in 0..EACH {
        let nonsense = [
            peer.clone(),
            Bytes::new(),
            Bytes::from_static(b"no"),
            Bytes::new(),
        ];
        router.send(Message::multipart(nonsense)).await.unwrap();
        let nonsense = [&b"progress/a"[..], b"no", b""].map(Bytes::from_static);
        pub_.send(Message::multipart(nonsense)).await.unwrap();
    }
    let seen = || (client.counters().malformed, subscriber.counters().malformed);
    while seen() != (each, each) {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", seen());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    calling.abort();

    let seconds = start.elapsed().as_secs() as usize;
    let logged = logged.lock().unwrap().clone();
    for line in [
        "no request",
        "a body over the limit",
        "unknown method",
        "a body that cannot be read",
        "unreadable reply",
        "no event",
    ] {
        let lines = logged.matches(line).count();
        assert!(
            (1..=seconds + 1).contains(&lines),
            "{line}: {lines}\n{logged}"
        );
    }
    server.shutdown().await;
}
