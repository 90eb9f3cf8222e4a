//! What the `zeromq` crate lacks and nothing outside it can make up: docs/transports.md lists it.
#![cfg(feature = "zeromq")]

mod common;

use std::time::Duration;

use bowline::{Carrier, Client, Server, ServerHandle, TransportOptions};
use common::{ECHO, Probe, call};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
