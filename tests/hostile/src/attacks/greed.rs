//! Many requests at once, none of which is wrong by itself: without keys over the wire, and meanwhile as a principal with a key
//! that may call and push.
//!
//! Replies over the wire are not read. With a key they are, since the library does.

use std::io;
use std::time::Duration;

use bowline::Client;
use bowline::call::RawRequest;
use bowline::schema::{Effect, MethodInfo};
use bowline::security::ClientSecurity;
use tokio::task::JoinSet;
use tower::Service;

use crate::bodies::Header;
use crate::curve::{harmful_keys, server_keys};
use crate::field::Field;
use crate::zmtp::{Wire, message};

/// Calls with a key that wait for their replies.
const WAITING_MAX: usize = 2_000;

/// One of them.
pub(super) struct Request {
    pub interface: u64,
    pub method: u16,
    pub body: Vec<u8>,
}

/// Sends `calls` over each of so many connections, with a pause after each round.
pub(super) fn strike(
    field: &Field,
    connections: usize,
    calls: u64,
    pause: Duration,
    request: impl Fn(u64) -> Request + Sync,
) -> io::Result<()> {
    std::thread::scope(|scope| {
        if field.locked.is_some() {
            scope.spawn(|| {
                // What it does is seen by what becomes of the others.
                let _ = with_keys(field, connections, calls, pause, &request);
            });
        }
        let mut wires = Vec::new();
        for _ in 0..connections {
            wires.push(Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?);
        }
        for number in 0..calls {
            wires.retain_mut(|wire| {
                let Request {
                    interface,
                    method,
                    body,
                } = request(number);
                let mut header = Header::for_interface(interface, method, number);
                // No two are the same call.
                header.data[3] = 1 << 63 | u64::from(field.fresh());
                let sent = wire.send(&message(&[b"", &header.bytes(), &body])).is_ok();
                field.struck(u64::from(sent));
                sent
            });
            if wires.is_empty() || !field.goes_on() {
                break;
            }
            field.pause(pause);
        }
        Ok(())
    })
}

/// A client of the locked service with the key of a principal that may call and push.
pub(super) async fn client_with_key(field: &Field) -> io::Result<Client> {
    let locked = field.locked.ok_or(io::ErrorKind::NotFound)?;
    let keys = harmful_keys().map_err(io::Error::other)?;
    let server = server_keys().map_err(io::Error::other)?;
    Client::builder()
        .security(ClientSecurity::new(keys, server.public()))
        .connect(format!("tcp://{locked}"))
        .await
        .map_err(io::Error::other)
}

/// What the library asks of a method that only its numbers name.
pub(super) fn method(interface: u64, ordinal: u16) -> MethodInfo {
    MethodInfo {
        service: "hostile",
        name: "hostile",
        interface,
        ordinal,
        effect: Effect::Unsafe,
        timeout: Some(Duration::from_secs(30)),
        params: 0,
        results: 0,
        fails: None,
    }
}

fn with_keys(
    field: &Field,
    connections: usize,
    calls: u64,
    pause: Duration,
    request: &impl Fn(u64) -> Request,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(client_with_key(field).await?);
        }
        let mut waiting = JoinSet::new();
        for number in 0..calls {
            for client in &clients {
                let Request {
                    interface,
                    method,
                    body,
                } = request(number);
                let info = self::method(interface, method);
                let mut client = client.clone();
                waiting
                    .spawn(async move { client.call(RawRequest::new(&info, body.into())).await });
            }
            field.struck(clients.len() as u64);
            while waiting.try_join_next().is_some() {}
            while waiting.len() > WAITING_MAX && field.goes_on() {
                let _ = tokio::time::timeout(Duration::from_millis(100), waiting.join_next()).await;
            }
            if !field.goes_on() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        Ok(())
    })
}
