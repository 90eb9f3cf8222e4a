//! What the `zeromq` crate lacks and nothing outside it can make up: docs/transports.md lists it.
#![cfg(feature = "zeromq")]

mod common;
#[path = "common/wire.rs"]
mod wire;

use std::time::Duration;

use bowline::topic::Keys;
use bowline::{Carrier, Client, Publisher, Server, ServerHandle, Subscriber, TransportOptions};
use bowline_test_schemas::everything::Sample;
use common::{ECHO, Probe, call};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use wire::{frames, raw, request_header, shake_hands, shake_hands_as};

async fn start(carrier: Carrier) -> ServerHandle {
    let options = TransportOptions::default()
        .with_carrier(carrier)
        .with_message_bytes_max(10_000);
    let server = Server::builder()
        .service(Probe::default())
        .transport(options);
    server.bind("tcp://127.0.0.1:0").await.unwrap().spawn()
}

#[tokio::test]
async fn zeromq_takes_messages_over_the_sockets_limit() {
    for (carrier, is_taken) in [(Carrier::Omq, false), (Carrier::Zeromq, true)] {
        let server = start(carrier).await;
        let client = Client::connect(server.endpoint().to_string())
            .await
            .unwrap();
        let reply = call(&client, &ECHO, vec![0; 20_000]).await;
        assert_eq!(reply.is_ok(), is_taken, "{carrier:?}: {reply:?}");
        server.shutdown().await;
    }
}

/// What a libzmq peer with heartbeats sends: greeting, READY, PING.
fn greeting_ready_ping() -> (Vec<u8>, Vec<u8>) {
    let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1];
    greeting.extend(b"NULL");
    greeting.resize(64, 0);
    let command = |body: &[u8]| [&[0x04, body.len() as u8], body].concat();
    let ready = command(b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER");
    let ping = command(b"\x04PING\x00\x64");
    ([greeting, ready].concat(), ping)
}

#[tokio::test]
async fn zeromq_cuts_off_a_peer_that_asks_whether_it_lives() {
    for (carrier, answers) in [(Carrier::Omq, true), (Carrier::Zeromq, false)] {
        let server = start(carrier).await;
        let address = server.endpoint().to_string().replace("tcp://", "");
        let mut peer = TcpStream::connect(&address).await.unwrap();
        let (ready, ping) = greeting_ready_ping();
        peer.write_all(&ready).await.unwrap();
        peer.write_all(&ping).await.unwrap();
        let mut received: Vec<u8> = Vec::new();
        let mut buffer = [0; 1024];
        // Reads until there is an answer, or the end.
        let answered = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                match peer.read(&mut buffer).await {
                    Ok(0) | Err(_) => return false,
                    Ok(n) => received.extend(&buffer[..n]),
                }
                if received.windows(5).any(|window| window == b"\x04PONG") {
                    return true;
                }
            }
        });
        assert_eq!(answered.await.unwrap_or(false), answers, "{carrier:?}");
        server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeromq_keeps_all_that_a_client_does_not_read() {
    const REQUESTS: u64 = 300;
    for (carrier, keeps_all) in [(Carrier::Omq, false), (Carrier::Zeromq, true)] {
        let options = TransportOptions::default()
            .with_carrier(carrier)
            .with_send_bytes_max(256 << 10);
        let server = Server::builder()
            .service(Probe::default())
            .send_wait_max(Duration::from_millis(100))
            .transport(options);
        let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
        let mut peer = raw(&server, "127.0.0.1").await;
        assert!(shake_hands(&mut peer).await);
        let request = frames(&[b"", &request_header(0, 1), &[7; 64 << 10]]);
        // A peer that is not read from can write no more.
        let within = Duration::from_secs(if keeps_all { 60 } else { 2 });
        let mut written = 0;
        while written < REQUESTS
            && matches!(timeout(within, peer.write_all(&request)).await, Ok(Ok(())))
        {
            written += 1;
        }
        assert_eq!(written == REQUESTS, keeps_all, "{carrier:?}: {written}");
        if keeps_all {
            let all_handled = async {
                while server.counters().handled < REQUESTS {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(60), all_handled).await.unwrap();
            assert_eq!(server.counters().replies_dropped, 0);
        }
        assert!(server.counters().handled >= 4);
        server.shutdown().await;
    }
}

/// The crate itself would wait, and everybody with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeromq_shows_out_who_leaves_a_hundred_thousand_replies_unread() {
    const REQUESTS: u64 = 150_000;
    let server = start(Carrier::Zeromq).await;
    let mut peer = raw(&server, "127.0.0.1").await;
    assert!(shake_hands(&mut peer).await);
    let hundred = frames(&[b"", &request_header(0, 1), &[7; 1 << 10]]).repeat(100);
    for _ in 0..REQUESTS / 100 {
        // Once it is shown out, nothing more is read from it.
        let written = timeout(Duration::from_secs(5), peer.write_all(&hundred)).await;
        if !matches!(written, Ok(Ok(()))) {
            break;
        }
    }
    let client = Client::connect(server.endpoint().to_string())
        .await
        .unwrap();
    assert_eq!(call(&client, &ECHO, "others").await.unwrap(), "others");
    let handled = server.counters().handled;
    assert!(handled < REQUESTS, "not all was read");
    timeout(Duration::from_secs(20), server.shutdown())
        .await
        .expect("the exit does not hang");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeromq_does_not_wait_for_what_it_has_taken_when_it_closes() {
    for (carrier, wait, waits) in [(Carrier::Omq, 2, true), (Carrier::Zeromq, 20, false)] {
        let options = TransportOptions::default()
            .with_carrier(carrier)
            .with_receive_queue_max(1)
            .with_linger(Duration::from_secs(60));
        let server = Server::builder().service(Probe::default());
        let server = server.transport(options.clone());
        // Nothing of it reads before it is run.
        let server = server.bind("tcp://127.0.0.1:0").await.unwrap();
        let client = Client::builder().transport(options);
        let client = client.connect(server.endpoint().to_string()).await.unwrap();
        let mut calls = JoinSet::new();
        for _ in 0..1000 {
            let client = client.clone();
            calls.spawn(async move { call(&client, &ECHO, &[7; 64 << 10][..]).await });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let closed = timeout(Duration::from_secs(wait), client.close()).await;
        assert_eq!(closed.is_err(), waits, "{carrier:?}");
    }
}

async fn publisher(carrier: Carrier) -> Publisher<Sample> {
    let options = TransportOptions::default()
        .with_carrier(carrier)
        .with_send_queue_max(16);
    let builder = Publisher::builder().transport(options);
    builder.bind("tcp://127.0.0.1:0").await.unwrap()
}

fn sample() -> Sample {
    Sample {
        series: "a".to_owned(),
        payload: vec![7; 64 << 10].into(),
    }
}

#[tokio::test]
async fn zeromq_counts_prefixes_and_not_subscribers() {
    for (carrier, matched) in [(Carrier::Omq, 2), (Carrier::Zeromq, 1)] {
        let publisher = publisher(carrier).await;
        let mut subscribers = Vec::new();
        for _ in 0..2 {
            let subscriber = Subscriber::<Sample>::connect(publisher.endpoint().to_string());
            let subscriber = subscriber.await.unwrap();
            subscriber.subscribe(Keys::All).await.unwrap();
            subscribers.push(subscriber);
        }
        let published = publisher.publish(&sample()).await.unwrap();
        assert_eq!(published.matched, matched, "{carrier:?}");
        publisher.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeromq_stops_for_a_subscriber_that_does_not_read() {
    for (carrier, stops) in [(Carrier::Omq, false), (Carrier::Zeromq, true)] {
        let publisher = publisher(carrier).await;
        let address = publisher.endpoint().to_string().replace("tcp://", "");
        let mut peer = TcpStream::connect(&address).await.unwrap();
        assert!(shake_hands_as(&mut peer, "SUB").await);
        peer.write_all(&frames(&[b"\x01sample/"])).await.unwrap();
        let subscribed = async {
            while publisher.matching("a") == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), subscribed).await.unwrap();
        // Far more than all queues on the way hold, of the publisher and of the kernel.
        let (sample, mut stopped) = (sample(), false);
        for _ in 0..600 {
            let publish = publisher.publish(&sample);
            if timeout(Duration::from_secs(5), publish).await.is_err() {
                stopped = true;
                break;
            }
        }
        assert_eq!(stopped, stops, "{carrier:?}");
        drop(peer);
        publisher.close().await;
    }
}
