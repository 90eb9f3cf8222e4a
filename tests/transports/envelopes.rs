//! What other ZeroMQ sockets put in front of a request.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stalled::{Stream, connected};
use crate::wire::{frames, request_header, shake_hands};
use crate::*;

/// The parts of the next message.
async fn receive(stream: &mut Box<dyn Stream>) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    loop {
        let flags = stream.read_u8().await.unwrap();
        let bytes = match flags & 2 {
            0 => u64::from(stream.read_u8().await.unwrap()),
            _ => stream.read_u64().await.unwrap(),
        };
        let mut part = vec![0; bytes as usize];
        stream.read_exact(&mut part).await.unwrap();
        if flags & 4 != 0 {
            continue; // a heartbeat
        }
        parts.push(part);
        if flags & 1 == 0 {
            return parts;
        }
    }
}

async fn answer(stream: &mut Box<dyn Stream>, parts: &[&[u8]]) -> Vec<Vec<u8>> {
    stream.write_all(&frames(parts)).await.unwrap();
    let received = tokio::time::timeout(Duration::from_secs(20), receive(stream)).await;
    received.expect("it answers")
}

/// Of a reply header in its usual place: 0 for a success.
fn status(header: &[u8]) -> u8 {
    header[18]
}

pub async fn the_envelope_of_a_request_comes_back_in_front_of_its_reply(carried: Carried) {
    let server = carried.start().await;
    let Some(mut stream) = connected(&server.endpoint().to_string()).await else {
        return; // nothing is in between in a process
    };
    assert!(shake_hands(&mut stream).await);
    let header = request_header(0, 1);
    let long = [7; 255];
    for envelope in [
        &[&b"\0abcd"[..]][..],
        &[b"hop", b"peer"],
        &[b"\0", &long, b"314"],
    ] {
        let parts = [envelope, &[b"", &header, b"body"]].concat();
        let reply = answer(&mut stream, &parts).await;
        let (front, rest) = reply.split_at(envelope.len());
        assert_eq!(front, envelope);
        assert_eq!(
            (rest.len(), &rest[0][..], &rest[2][..]),
            (3, &b""[..], &b"body"[..])
        );
        assert_eq!(status(&rest[1]), 0);
    }
    // What cannot be read is answered in its envelope, too, and so is a compact message behind one.
    let reply = answer(&mut stream, &[b"peer", b"", b"nonsense", b""]).await;
    assert_eq!(
        (reply.len(), &reply[0][..], status(&reply[2])),
        (4, &b"peer"[..], 3)
    );
    // One without an envelope goes on as before.
    let reply = answer(&mut stream, &[b"", &header, b"body"]).await;
    assert_eq!((reply.len(), &reply[2][..]), (3, &b"body"[..]));
    server.shutdown().await;
}

pub async fn an_envelope_over_its_limit_is_answered_as_malformed(carried: Carried) {
    let options = carried.options().with_envelope_bytes_max(10);
    let server = carried.server().transport(options);
    let server = server.bind(carried.endpoint()).await.unwrap().spawn();
    let Some(mut stream) = connected(&server.endpoint().to_string()).await else {
        return;
    };
    assert!(shake_hands(&mut stream).await);
    let header = request_header(0, 1);
    let reply = answer(&mut stream, &[b"12345", b"67890", b"", &header, b"body"]).await;
    assert_eq!(reply.len(), 5);
    let reply = answer(&mut stream, &[b"12345", b"678901", b"", &header, b"body"]).await;
    assert_eq!(
        (reply.len(), &reply[0][..], status(&reply[1])),
        (3, &b""[..], 3)
    );
    assert_eq!(server.counters().malformed, 1);
    server.shutdown().await;
}

pub async fn callers_behind_one_connection_cancel_their_own_calls(carried: Carried) {
    let server = carried.start().await;
    let Some(mut stream) = connected(&server.endpoint().to_string()).await else {
        return;
    };
    assert!(shake_hands(&mut stream).await);
    // Both take the same number for it.
    let hang = request_header(4, 1);
    let mut cancel = hang.clone();
    cancel[16 + 6] |= 1 << 3; // `cancel`, bit 51 of the struct
    let none = &[0, 0, 0, 0, 0, 0, 0, 0];
    for caller in [b"a", b"b"] {
        let parts = frames(&[caller, b"", &hang, none]);
        stream.write_all(&parts).await.unwrap();
    }
    eventually("both wait", || server.counters().handled == 2).await;
    for (cancelled, caller) in [(1, b"a"), (2, b"b")] {
        let parts = frames(&[caller, b"", &cancel, none]);
        stream.write_all(&parts).await.unwrap();
        eventually("it is cancelled", || {
            server.counters().cancelled == cancelled
        })
        .await;
    }
    server.shutdown().await;
}
