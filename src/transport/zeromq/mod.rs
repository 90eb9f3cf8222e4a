//! The `zeromq` crate: ZMTP 3.0 over tcp and ipc.
//!
//! What that crate lacks is made up here where it can be: a task owns each socket, connects again
//! when its peer has gone, and finishes every send that it has begun. What cannot be made up
//! (limits on frames, heartbeats, what one subscriber that stops reading does to the others) is
//! listed in docs/transports.md.

mod calls;
mod topics;

pub(super) use calls::{
    DealerReceiver, DealerSender, RouterReceiver, RouterSender, bind_router, connect_dealer,
};
pub(super) use topics::{
    PublishSender, SubscribeReceiver, SubscribeSender, SubscriptionWatch, bind_publish,
    connect_subscribe,
};

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use zeromq::{SocketOptions, ZmqError, ZmqMessage};

use super::{Endpoint, TransportError, TransportOptions};

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

/// The crate knows no message without parts; these have three.
fn message(parts: Vec<Bytes>) -> ZmqMessage {
    ZmqMessage::try_from(parts).unwrap_or_else(|_| ZmqMessage::from(Bytes::new()))
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
