//! Every limit on what strangers may have, at its edge: the last that fits, and the first that does not.

mod common;
#[path = "common/wire.rs"]
mod wire;

use std::time::{Duration, Instant};

use bowline::topic::{Event, Keys, SubscribeError};
use bowline::{Client, Code, Publisher, Server, ServerHandle, Subscriber, TransportOptions, Work};
use bowline_test_schemas::everything::Progress;
use bytes::Bytes;
use common::{ECHO, Probe, SLEEP, call, milliseconds};
use omq_tokio::{Message, Options, Socket, SocketType};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use wire::{
    frames, is_closed_within, raw, receive_frame, request_header, shake_hands, shake_hands_as,
};

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

#[tokio::test]
async fn a_connection_that_has_ended_takes_no_place_though_it_was_the_last_to_speak() {
    let server = start(TransportOptions::default().with_connections_max(1, 1)).await;
    for _ in 0..3 {
        let client = client(&server).await;
        eventually("it is let in", || client.is_connected()).await;
        assert_eq!(call(&client, &ECHO, "alive").await.unwrap(), "alive");
        client.close().await;
        eventually("its place is free", || server.door().connections == 0).await;
    }
    server.shutdown().await;
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
    let time = Duration::from_secs(2);
    let server = start(TransportOptions::default().with_handshakes(time, 3)).await;
    let mut halves = Vec::new();
    for _ in 0..3 {
        let mut stream = raw(&server, "127.0.0.1").await;
        stream.write_all(&[0xff]).await.unwrap();
        halves.push(stream);
    }
    tokio::time::sleep(time / 10).await;
    // The oldest gives way to one more.
    let mut fourth = raw(&server, "127.0.0.1").await;
    assert!(shake_hands(&mut fourth).await);
    assert_eq!(server.door().handshakes_failed, 1);
    for half in &mut halves {
        assert!(is_closed_within(half, PATIENCE).await);
    }
    eventually("all three are counted", || {
        server.door().handshakes_failed == 3
    })
    .await;
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
    assert_eq!(server.door().broken, 1);
    server.shutdown().await;
}

#[tokio::test]
async fn a_peer_that_answers_its_heartbeats_stays_until_it_stops() {
    let (interval, timeout) = (Duration::from_millis(100), Duration::from_millis(300));
    let server = start(TransportOptions::default().with_heartbeat(interval, timeout)).await;
    let mut peer = raw(&server, "127.0.0.1").await;
    assert!(shake_hands(&mut peer).await);
    let (end, mut answered) = (Instant::now() + timeout * 4, Instant::now());
    let mut pings = 0;
    while Instant::now() < end {
        let (flags, body) = receive_frame(&mut peer)
            .await
            .expect("it is still connected");
        assert!(flags == 4 && body.starts_with(b"\x04PING"), "{body:?}");
        // What follows the time to live comes back.
        let pong = [b"\x04PONG", &body[7..]].concat();
        let pong = [&[4, pong.len() as u8], &pong[..]].concat();
        peer.write_all(&pong).await.unwrap();
        (pings, answered) = (pings + 1, Instant::now());
    }
    assert!(pings >= 3, "{pings}");
    assert_eq!(server.door().connections, 1);
    assert!(is_closed_within(&mut peer, PATIENCE).await);
    assert!(answered.elapsed() >= timeout, "three may be missed");
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
    assert_eq!(server.counters().refused, 1);
    call(&other, &SLEEP, milliseconds(1)).await.unwrap();
    for busy in busy {
        busy.await.unwrap().unwrap();
    }
    call(&greedy, &SLEEP, milliseconds(1)).await.unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn all_connections_together_have_a_limit_of_requests_in_flight() {
    let server = Server::builder()
        .service(Probe::default())
        .concurrency_max(3)
        .concurrency_per_connection_max(2)
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let (one, other) = (client(&server).await, client(&server).await);
    let busy: Vec<_> = [&one, &one, &other]
        .map(|client| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, &SLEEP, milliseconds(500)).await })
        })
        .into();
    eventually("three are in flight", || server.counters().handled == 3).await;
    let refused = call(&other, &SLEEP, milliseconds(1)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.work()),
        (Code::ResourceExhausted, Work::NotDone)
    );
    assert_eq!(server.counters().refused, 1);
    for busy in busy {
        busy.await.unwrap().unwrap();
    }
    call(&other, &SLEEP, milliseconds(1)).await.unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn two_peers_of_one_zeromq_identity_each_get_their_own_replies() {
    let server = start(TransportOptions::default()).await;
    let named = || Options::new().identity(Bytes::from_static(b"ann"));
    let endpoint = server.endpoint().to_string();
    let connect = async || {
        let socket = Socket::new(SocketType::Dealer, named());
        socket.connect(endpoint.as_str()).await.unwrap();
        socket.wait_connected(1, PATIENCE).await.unwrap();
        socket
    };
    let (ann, other) = (connect().await, connect().await);
    let nonsense = || Message::multipart([Bytes::new(), Bytes::from_static(b"x"), Bytes::new()]);
    for _ in 0..3 {
        for socket in [&ann, &other] {
            socket.send(nonsense()).await.unwrap();
            let answer = tokio::time::timeout(PATIENCE, socket.recv()).await;
            assert_eq!(answer.unwrap().unwrap().len(), 3);
        }
    }
    assert_eq!(server.counters().malformed, 6);
    assert_eq!(server.door().connections, 2);
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
    let frames = frames(&[b"", &request_header(0, 1), &[7; 64 << 10]]);
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
    let sixth = Bytes::from_static(b"progress/6");
    subscriber.subscribe(sixth).await.unwrap();
    eventually("the sixth is there", || publisher.matching("6") == 1).await;
    publisher.close().await;
}

#[tokio::test]
async fn a_peer_subscribes_by_messages_too_and_what_else_it_says_is_ignored() {
    for socket_type in ["SUB", "XSUB"] {
        let publisher = publisher(TransportOptions::default()).await;
        let address = publisher.endpoint().to_string().replace("tcp://", "");
        let mut peer = TcpStream::connect(address).await.unwrap();
        assert!(shake_hands_as(&mut peer, socket_type).await);
        let long = [1; 514];
        let says: [&[&[u8]]; 8] = [
            &[b"\x00progress/"], // it has none to take back
            &[b"\x01progress/"],
            &[b"\x01progress/"],
            &[b""],
            &[b"\x02progress/"],
            &[b"\x01", b"progress/"],
            &[b"\x00progress/"],
            &[&long],
        ];
        for parts in says {
            peer.write_all(&frames(parts)).await.unwrap();
        }
        eventually("the last is heard", || {
            publisher.door().subscriptions_refused == 1
        })
        .await;
        eventually("what was taken twice is still there", || {
            publisher.matching("a") == 1
        })
        .await;
        peer.write_all(&frames(&[b"\x00progress/"])).await.unwrap();
        eventually("it is not there", || publisher.matching("a") == 0).await;
        assert_eq!(publisher.door().connections, 1);
        publisher.close().await;
    }
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
    assert_eq!(refused.code(), Code::ResourceExhausted);
    server.shutdown().await;
}

#[tokio::test]
async fn a_message_as_large_as_it_may_be_is_read_and_a_byte_more_ends_the_connection() {
    // The peers here answer no pings: on a slow machine they would be lost for that.
    let hour = Duration::from_secs(3600);
    let options = TransportOptions::default().with_heartbeat(hour, hour);
    let bytes_max = options.message_bytes_max;
    let server = start(options).await;
    let header = request_header(0, 1);
    // One that leaves with something unread breaks its connection too.
    let mut open = Vec::new();
    for (body, is_read) in [
        (1 << 20, true),
        // More than a body may have, and still a message: it is answered.
        ((1 << 20) + 1, true),
        (bytes_max - header.len(), true),
        (bytes_max - header.len() + 1, false),
    ] {
        let mut peer = raw(&server, "127.0.0.1").await;
        assert!(shake_hands(&mut peer).await);
        let message = frames(&[b"", &header, &vec![7; body]]);
        // It may be cut off before it has said all.
        let _ = peer.write_all(&message).await;
        match is_read {
            true => assert_eq!(
                receive_frame(&mut peer).await.unwrap(),
                (1, vec![]),
                "{body}"
            ),
            false => assert!(is_closed_within(&mut peer, PATIENCE).await, "{body}"),
        }
        open.push(peer);
    }
    assert_eq!(server.counters().handled, 1);
    eventually("it is counted", || server.door().broken == 1).await;
    assert_eq!(server.door().handshakes_failed, 0);
    let good = client(&server).await;
    assert_eq!(call(&good, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

#[tokio::test]
async fn sixteen_parts_are_answered_and_one_more_ends_the_connection() {
    let server = start(TransportOptions::default()).await;
    let mut peer = raw(&server, "127.0.0.1").await;
    assert!(shake_hands(&mut peer).await);
    peer.write_all(&frames(&[&b""[..]; 16])).await.unwrap();
    assert_eq!(receive_frame(&mut peer).await.unwrap(), (1, vec![]));
    assert_eq!(
        (server.counters().malformed, server.door().disconnected),
        (1, 0)
    );
    peer.write_all(&frames(&[&b""[..]; 17])).await.unwrap();
    assert!(is_closed_within(&mut peer, PATIENCE).await);
    assert_eq!(
        (server.counters().malformed, server.door().disconnected),
        (1, 1)
    );
    let good = client(&server).await;
    assert_eq!(call(&good, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

#[tokio::test]
async fn four_mebibytes_of_replies_wait_for_a_peer_that_reads_late() {
    const REPLY: usize = 64 << 10;
    let server = Server::builder()
        .service(Probe::default())
        .send_wait_max(Duration::from_millis(200))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let replies = TransportOptions::default().send_bytes_max / REPLY;
    let mut peer = raw(&server, "127.0.0.1").await;
    assert!(shake_hands(&mut peer).await);
    for number in 1..=replies {
        let request = frames(&[b"", &request_header(0, number as u64), &[7; REPLY]]);
        peer.write_all(&request).await.unwrap();
    }
    eventually("all are answered", || {
        server.counters().handled == replies as u64
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut read = 0;
    while read < replies {
        let (_, body) = receive_frame(&mut peer)
            .await
            .expect("it is still connected");
        read += usize::from(body.len() == REPLY);
    }
    assert_eq!(
        (
            server.counters().replies_dropped,
            server.door().disconnected
        ),
        (0, 0)
    );
    server.shutdown().await;
}

async fn publisher(options: TransportOptions) -> Publisher<Progress> {
    let builder = Publisher::builder().transport(options);
    builder.bind("tcp://127.0.0.1:0").await.unwrap()
}

async fn subscriber(publisher: &Publisher<Progress>) -> Subscriber<Progress> {
    let endpoint = publisher.endpoint().to_string();
    Subscriber::connect(endpoint).await.unwrap()
}

/// Subscribes to one key after the other, until one is refused. Returns those that were not.
///
/// A subscription counts twice until the publisher has seen that the question what became of it was taken back,
/// so how many there are depends on when it looks.
async fn subscribe_until_refused(subscriber: &Subscriber<Progress>, name: &str) -> Vec<String> {
    let mut taken = Vec::new();
    for number in 10..100 {
        let key = format!("{name}{number}");
        match subscriber.subscribe(Keys::Prefix(&key)).await {
            Ok(()) => taken.push(key),
            Err(refused) => {
                assert_eq!(refused, SubscribeError::Denied);
                return taken;
            }
        }
    }
    panic!("none was refused");
}

#[tokio::test]
async fn one_subscription_over_the_bytes_of_all_is_refused_and_the_others_go_on() {
    // What is counted of each: its bytes, and 64 more.
    let events = 64 + b"progress/a10".len();
    let both = events + 64 + 41 + b"progress/a10".len();
    // Of two peers, each has a quarter for itself, six with their confirmations; of the other half one has three quarters.
    let bytes_max = both * 24;
    let options = TransportOptions::default()
        .with_connections_max(2, 2)
        .with_subscription_bytes_total_max(bytes_max);
    let publisher = publisher(options).await;
    let mut greedy = subscriber(&publisher).await;
    let taken = subscribe_until_refused(&greedy, "a").await;
    assert!(taken.len() >= 15, "its own and what is for all: {taken:?}");
    assert!(taken.len() * events <= bytes_max / 4 * 3, "{taken:?}");
    assert_eq!(publisher.door().subscriptions_refused, 1);

    let mut other = subscriber(&publisher).await;
    let others = subscribe_until_refused(&other, "b").await;
    assert!(others.len() >= 6, "nobody takes its own: {others:?}");
    assert!((taken.len() + others.len()) * events <= bytes_max);
    assert_eq!(publisher.door().subscriptions_refused, 2);
    for key in [&taken[0], &others[0]] {
        let event = Progress {
            job: key.clone(),
            done: 1,
        };
        assert_eq!(publisher.publish(&event).await.unwrap().matched, 1, "{key}");
    }
    assert!(matches!(greedy.next().await, Some(Event::Message(_))));
    assert!(matches!(other.next().await, Some(Event::Message(_))));
    // What is taken back makes room.
    for key in &taken[..3] {
        greedy.unsubscribe(Keys::Prefix(key)).await.unwrap();
    }
    greedy.subscribe(Keys::Prefix(&taken[0])).await.unwrap();
    publisher.close().await;
}

#[tokio::test]
async fn one_subscription_too_many_of_one_peer_is_told_so() {
    let options = TransportOptions::default().with_subscriptions_max(4);
    let publisher = publisher(options).await;
    let subscriber = subscriber(&publisher).await;
    let taken = subscribe_until_refused(&subscriber, "a").await;
    // Each is two, with the question what became of it.
    assert!((2..=4).contains(&taken.len()), "{taken:?}");
    assert_eq!(publisher.door().subscriptions_refused, 1);
    publisher.close().await;
}

#[tokio::test]
async fn a_subscription_of_512_bytes_is_taken_and_a_longer_one_refused() {
    let publisher = publisher(TransportOptions::default()).await;
    let peer = Socket::new(SocketType::Sub, Options::new());
    let endpoint = publisher.endpoint().to_string();
    peer.connect(endpoint.as_str()).await.unwrap();
    let key = |bytes: usize| "x".repeat(bytes - b"progress/".len());
    for bytes in [512, 513] {
        let prefix = format!("progress/{}", key(bytes));
        peer.subscribe(Bytes::from(prefix)).await.unwrap();
    }
    eventually("the first is there", || publisher.matching(&key(512)) == 1).await;
    eventually("the second is refused", || {
        publisher.door().subscriptions_refused == 1
    })
    .await;
    assert_eq!(publisher.matching(&key(513)), 1, "by the first");
    publisher.close().await;
}
