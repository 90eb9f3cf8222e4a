//! The `zeromq` crate: ZMTP 3.0 over tcp and ipc.
//!
//! What that crate lacks is made up here where it can be: a task owns each socket, connects again
//! when its peer has gone, and finishes every send that it has begun. What cannot be made up
//! (limits on frames, heartbeats, what one subscriber that stops reading does to the others) is
//! listed in docs/transports.md.

mod calls;
mod topics;

pub(super) use calls::{
    DealerReceiver, DealerSender, Peer, RouterReceiver, RouterSender, bind_router, connect_dealer,
};
pub(super) use topics::{
    PublishSender, SubscribeReceiver, SubscribeSender, SubscriptionWatch, bind_publish,
    connect_subscribe,
};

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use zeromq::{Socket, SocketOptions, ZmqError, ZmqMessage};

use super::connection::Connection;
use super::endpoint::ALL_ADDRESSES;
use super::failure::{ConnectionFailure, RepeatedFailure};
use super::{Endpoint, TransportError, TransportOptions};
use crate::counter::Counter;
use crate::wire::Reason;

/// How often closing looks whether all is sent.
const LINGER_TICK: Duration = Duration::from_millis(1);

fn options(from: &TransportOptions) -> SocketOptions {
    let mut options = SocketOptions::default();
    options.connect_timeout(from.handshake_timeout);
    options
}

fn to_error(endpoint: &Endpoint, error: ZmqError) -> TransportError {
    let endpoint = endpoint.clone();
    match error {
        ZmqError::Network(io) if io.kind() == std::io::ErrorKind::AddrInUse => {
            TransportError::InUse { endpoint }
        }
        error => TransportError::Refused {
            endpoint,
            reason: error.to_string(),
        },
    }
}

/// After so long without a connection, it is looked why: the crate itself goes on trying in silence.
const PROBE_AFTER: Duration = Duration::from_millis(200);

/// Connects once, within the crate's own time limit.
async fn connect(
    socket: &mut impl Socket,
    endpoint: &Endpoint,
    within: Duration,
    connection: &Connection,
) -> Result<(), ConnectionFailure> {
    let text = to_connect(endpoint);
    let connecting = socket.connect(&text);
    let probing = async {
        tokio::time::sleep(PROBE_AFTER).await;
        match probe(endpoint, within).await {
            Err(failure) => connection.failed(failure),
            Ok(()) => connection.progress(ConnectionFailure::unfinished()),
        }
        std::future::pending().await
    };
    let error = tokio::select! {
        connected = connecting => match connected {
            Ok(()) => return Ok(()),
            Err(error) => error,
        },
        () = probing => return Ok(()), // it never ends
    };
    Err(match error {
        ZmqError::ConnectTimeout(_) => match probe(endpoint, within).await {
            Err(failure) => failure,
            Ok(()) => ConnectionFailure::unfinished(),
        },
        ZmqError::Network(error) => ConnectionFailure::from(&error),
        ZmqError::Codec(error) => {
            let message = format!("the peer does not speak ZeroMQ (ZMTP): {error}");
            ConnectionFailure::new(Reason::NotZeromq, message)
        }
        ZmqError::UnsupportedVersion((major, _)) => {
            let message = format!("the peer speaks ZMTP {major}.x, and 3.x is needed");
            ConnectionFailure::new(Reason::NotZeromq, message)
        }
        ZmqError::Other(words) if words.contains("not compatible") => ConnectionFailure::new(
            Reason::WrongSocketType,
            "the peer's socket type does not fit this one",
        ),
        error => {
            let message = format!("the peer did not finish the handshake: {error}");
            ConnectionFailure::new(Reason::Unreachable, message)
        }
    })
}

/// Looks how far a connection comes, without ZeroMQ.
async fn probe(endpoint: &Endpoint, within: Duration) -> Result<(), ConnectionFailure> {
    match endpoint {
        Endpoint::Tcp { .. } => super::tcp::connect(endpoint, within).await.map(drop),
        Endpoint::Ipc(path) => match tokio::net::UnixStream::connect(path).await {
            Ok(_) => Ok(()),
            Err(error) => Err(ConnectionFailure::from(&error)),
        },
        Endpoint::Inproc(_) => Ok(()),
    }
}

/// Logs what becomes of the connection of one socket.
#[derive(Default)]
struct ConnectionLog {
    failed: RepeatedFailure,
    opened: Counter,
    lost: Counter,
}

impl ConnectionLog {
    fn failed(&mut self, endpoint: &Endpoint, error: &ConnectionFailure) {
        if self.failed.is_due(error.reason(), Instant::now()) {
            tracing::warn!(%endpoint, %error, "cannot connect");
        }
    }

    fn connected(&mut self, endpoint: &Endpoint) {
        self.failed = RepeatedFailure::default();
        self.opened
            .count_and_log(|count| tracing::info!(%endpoint, count, "connected"));
    }

    fn lost(&self, endpoint: &Endpoint) {
        self.lost
            .count_and_log(|count| tracing::warn!(%endpoint, count, "connection lost"));
    }
}

/// The crate knows no message without parts; these have three.
fn message(parts: Vec<Bytes>) -> ZmqMessage {
    ZmqMessage::try_from(parts).unwrap_or_else(|_| ZmqMessage::from(Bytes::new()))
}

/// Why a connection ended, of which the crate says nothing.
const CAUSE_UNKNOWN: &str = "closed by the peer, or broken";

/// Binds the first of the addresses, for `tcp`; the crate binds one.
async fn bind(
    socket: &mut impl Socket,
    endpoint: &Endpoint,
    addresses: &[SocketAddr],
    ipc_mode: u32,
) -> Result<zeromq::Endpoint, TransportError> {
    let text = match addresses
        .iter()
        .find(|address| is_possible(endpoint, address))
    {
        Some(address) => format!("tcp://{address}"),
        None => endpoint.to_string(),
    };
    let bound = socket.bind(&text).await;
    let bound = bound.map_err(|error| to_error(endpoint, error))?;
    if let Endpoint::Ipc(path) = endpoint {
        let mode = std::fs::Permissions::from_mode(ipc_mode);
        std::fs::set_permissions(path, mode).map_err(|error| TransportError::Refused {
            endpoint: endpoint.clone(),
            reason: error.to_string(),
        })?;
    }
    Ok(bound)
}

/// Of all addresses, the crate serves those of IPv4.
fn is_possible(endpoint: &Endpoint, address: &SocketAddr) -> bool {
    let is_all = matches!(endpoint, Endpoint::Tcp { host, .. } if host == ALL_ADDRESSES);
    !is_all || address.is_ipv4()
}

/// The endpoint as the crate knows it.
fn to_connect(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp { host, port } if host == ALL_ADDRESSES => format!("tcp://127.0.0.1:{port}"),
        endpoint => endpoint.to_string(),
    }
}

/// The endpoint that a socket really has.
fn actual(asked: &Endpoint, bound: &zeromq::Endpoint) -> Endpoint {
    match (asked, bound) {
        (Endpoint::Tcp { host, port: 0 }, zeromq::Endpoint::Tcp(_, port)) => Endpoint::Tcp {
            host: host.clone(),
            port: *port,
        },
        _ => asked.clone(),
    }
}

/// Waits until a queue is sent, for as long as the linger time.
async fn linger<T>(queue: &mpsc::Sender<T>, time: Duration) {
    let empty = async {
        // Where its task has ended, nothing is sent any more.
        while queue.capacity() < queue.max_capacity() && !queue.is_closed() {
            tokio::time::sleep(LINGER_TICK).await;
        }
        // The last one has left the queue, not yet the socket.
        tokio::time::sleep(LINGER_TICK).await;
    };
    // What is not sent by then is dropped: that is what a linger time means.
    let _ = tokio::time::timeout(time, empty).await;
}
