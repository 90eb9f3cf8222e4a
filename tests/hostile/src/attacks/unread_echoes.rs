//! Replies that wait for a client that does not read are held by somebody. Where that is whoever runs handlers, three
//! such clients leave no handlers for others.

use std::io;
use std::time::Duration;

use bowline::call::RawRequest;
use tower::Service;

use super::greed;
use crate::bodies::{Header, echo};
use crate::field::Field;
use crate::zmtp::{Wire, message};
use crate::{ECHO, INTERFACE};

const CLIENTS: usize = 3;
const BYTES: usize = 4 << 10;
/// Calls of a client with a key, which come back and are not read.
const CALLS_WITH_KEY: usize = 1_000;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    std::thread::scope(|scope| {
        if field.locked.is_some() {
            scope.spawn(|| {
                // What it does is seen by what becomes of the others.
                let _ = with_key(field);
            });
        }
        without_key(field)
    })
}

fn without_key(field: &Field) -> io::Result<()> {
    let mut wires = Vec::new();
    for _ in 0..CLIENTS {
        wires.push(Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?);
    }
    let body = echo(&[7; BYTES]);
    for number in 0.. {
        let request = message(&[b"", &Header::of(ECHO, number).bytes(), &body]);
        wires.retain_mut(|wire| wire.send(&request).is_ok());
        field.struck(wires.len() as u64);
        if wires.is_empty() || !field.goes_on() {
            break;
        }
        field.pause(Duration::from_millis(1));
    }
    Ok(())
}

/// A client reads in the runtime that made it: where nothing runs that, it has a key, a connection, and reads nothing.
fn with_key(field: &Field) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let body = echo(&[7; BYTES]);
    let info = greed::method(INTERFACE, ECHO);
    let (clients, calls) = runtime.block_on(async {
        let (mut clients, mut calls) = (Vec::new(), tokio::task::JoinSet::new());
        for _ in 0..CLIENTS {
            let client = greed::client_with_key(field).await?;
            for _ in 0..CALLS_WITH_KEY {
                let mut client = client.clone();
                let request = RawRequest::new(&info, body.clone().into());
                calls.spawn(async move { client.call(request).await });
            }
            clients.push(client);
        }
        // The first turn of each sends its request.
        tokio::task::yield_now().await;
        io::Result::Ok((clients, calls))
    })?;
    field.struck(calls.len() as u64);
    field.pause(Duration::from_secs(1));
    drop((calls, clients));
    Ok(())
}
