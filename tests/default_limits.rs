//! The limits that hold where nobody says otherwise: as the page has them, and at their edges. With others: `limits.rs`.

mod common;
#[path = "common/wire.rs"]
mod wire;

use std::time::{Duration, Instant};

use bowline::{Client, Code, Publisher, Server, ServerBuilder, ServerHandle, TransportOptions};
use bowline_test_schemas::everything::Progress;
use bytes::Bytes;
use common::{ECHO, HANG, Probe, call};
use omq_tokio::{Options, Socket, SocketType};
use tokio::io::AsyncWriteExt;
use wire::{is_closed_within, raw, receive_frame, shake_hands};

const PATIENCE: Duration = Duration::from_secs(30);

async fn start() -> ServerHandle {
    let server = Server::builder().service(Probe::default());
    server.bind("tcp://127.0.0.1:0").await.unwrap().spawn()
}

async fn client(server: &ServerHandle) -> Client {
    let endpoint = server.endpoint().to_string();
    Client::connect(endpoint).await.unwrap()
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The second column of a row of the page's table of limits.
fn on_the_page(what: &str) -> &'static str {
    let page = include_str!("../docs/security.md");
    let row = page.lines().find_map(|line| {
        let row = line.strip_prefix("| ")?.strip_prefix(what)?;
        row.strip_prefix(" | ")
    });
    let row = row.unwrap_or_else(|| panic!("no row: {what}"));
    row.split(" | ").next().unwrap()
}

#[test]
fn the_page_has_the_defaults() {
    let of = TransportOptions::default();
    assert_eq!(of.message_bytes_max, (1 << 20) + (64 << 10));
    assert_eq!(
        on_the_page("size of a message"),
        "1 MiB and a header of 64 KiB"
    );
    assert_eq!(of.send_bytes_max, 4 << 20);
    assert_eq!(
        on_the_page("bytes of replies that wait for a peer"),
        "4 MiB"
    );
    assert_eq!(of.send_bytes_total_max, 64 << 20);
    assert_eq!(on_the_page("for all peers"), "64 MiB");
    assert_eq!(of.receive_bytes_total_max, 32 << 20);
    assert_eq!(
        on_the_page("bytes of requests received, whole or in part, and not taken"),
        "32 MiB"
    );
    assert_eq!(of.subscription_bytes_total_max, 32 << 20);
    assert!(on_the_page("subscriptions of all peers").starts_with("32 MiB"));
    let number = |number: usize| match number / 1000 {
        0 => number.to_string(),
        thousands => format!("{thousands},{:03}", number % 1000),
    };
    for (what, default) in [
        ("parts of a message", of.parts_max),
        ("connections", of.connections_max),
        (
            "connections from one address",
            of.connections_per_address_max,
        ),
        ("subscriptions of a peer", of.subscriptions_max),
    ] {
        assert_eq!(on_the_page(what), number(default), "{what}");
    }
    let length = format!("{} bytes", of.subscription_bytes_max);
    assert_eq!(on_the_page("length of a subscription"), length);
    let handshake = format!("{} s", of.handshake_timeout.as_secs());
    assert_eq!(on_the_page("time of a handshake"), handshake);
    let at_once = format!("{},", of.handshakes_max);
    assert!(on_the_page("handshakes at once").starts_with(&at_once));
    let heartbeat = (of.heartbeat_interval, of.heartbeat_timeout);
    assert_eq!(heartbeat, (Duration::from_secs(1), Duration::from_secs(3)));
    assert_eq!(on_the_page("silence"), "a PING after 1 s, 3 s to answer");
    let builder = format!("{:?}", ServerBuilder::default());
    for (what, field) in [
        ("requests in flight", "concurrency_max"),
        ("of one connection", "concurrency_per_connection_max"),
        ("parked requests", "parked_max"),
    ] {
        let default = on_the_page(what).replace(',', "");
        assert!(
            builder.contains(&format!("{field}: {default},")),
            "{builder}"
        );
    }
}

#[tokio::test]
async fn sixty_four_connections_of_one_address_are_let_in_and_one_more_is_not() {
    let server = start().await;
    let mut open = Vec::new();
    for _ in 0..64 {
        let mut peer = raw(&server, "127.0.0.1").await;
        assert!(shake_hands(&mut peer).await);
        open.push(peer);
    }
    let mut one_more = raw(&server, "127.0.0.1").await;
    assert!(!shake_hands(&mut one_more).await);
    let door = server.door();
    assert_eq!((door.connections, door.connections_refused), (64, 1));
    drop(open);
    eventually("they are gone", || server.door().connections == 0).await;
    let good = client(&server).await;
    assert_eq!(call(&good, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

#[tokio::test]
async fn a_handshake_may_take_five_seconds() {
    let server = start().await;
    let mut half = raw(&server, "127.0.0.1").await;
    half.write_all(&[0xff]).await.unwrap();
    let begun = Instant::now();
    assert!(is_closed_within(&mut half, PATIENCE).await);
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4), "{took:?}");
    eventually("it is counted", || server.door().handshakes_failed == 1).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_silent_peer_is_asked_after_a_second_and_has_three_to_answer() {
    let server = start().await;
    let mut silent = raw(&server, "127.0.0.1").await;
    assert!(shake_hands(&mut silent).await);
    let begun = Instant::now();
    let (flags, body) = receive_frame(&mut silent).await.unwrap();
    assert!(flags == 4 && body.starts_with(b"\x04PING"), "{body:?}");
    let asked = begun.elapsed();
    assert!(asked > Duration::from_millis(800), "{asked:?}");
    assert!(is_closed_within(&mut silent, PATIENCE).await);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(2900), "{took:?}");
    eventually("it is counted", || server.door().broken == 1).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_connection_has_512_requests_in_flight_and_an_address_768() {
    let server = start().await;
    let mut calls = tokio::task::JoinSet::new();
    let mut hang = |client: &Client, times: u64| {
        for _ in 0..times {
            let client = client.clone();
            calls.spawn(async move { call(&client, &HANG, "").await });
        }
    };
    let clients = [client(&server).await, client(&server).await];
    // Three times what is left free of 1,024, so that there is room for other addresses.
    for (number, client, more, all) in [(1, &clients[0], 512, 512), (2, &clients[1], 256, 768)] {
        hang(client, more);
        eventually("as many are in flight as may be", || {
            server.counters().handled == all
        })
        .await;
        let refused = call(client, &HANG, "").await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(server.counters().refused, number);
    }
    let third = client(&server).await;
    let refused = call(&third, &HANG, "").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(server.counters().refused, 3);
    calls.shutdown().await;
    for client in clients {
        client.close().await;
    }
    // Handlers end with their callers' connections, and others go on.
    let start = Instant::now();
    while call(&third, &ECHO, "alive").await.is_err() {
        assert!(start.elapsed() < PATIENCE, "nobody is served any more");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_peer_has_1024_subscriptions_and_one_more_is_refused() {
    let publisher: Publisher<Progress> = Publisher::bind("tcp://127.0.0.1:0").await.unwrap();
    let peer = Socket::new(SocketType::Sub, Options::new());
    let endpoint = publisher.endpoint().to_string();
    peer.connect(endpoint.as_str()).await.unwrap();
    peer.wait_connected(1, PATIENCE).await.unwrap();
    let key = |number: usize| format!("{number:04}");
    for number in 1..=1025 {
        let prefix = format!("progress/{}", key(number));
        peer.subscribe(Bytes::from(prefix)).await.unwrap();
    }
    eventually("one is refused", || {
        publisher.door().subscriptions_refused >= 1
    })
    .await;
    // Which one came last is for the library to say.
    let taken = || (1..=1025).filter(|number| publisher.matching(&key(*number)) == 1);
    eventually("the others are there", || taken().count() == 1024).await;
    assert_eq!(publisher.door().subscriptions_refused, 1);
    publisher.close().await;
}
