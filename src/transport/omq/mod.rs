//! Sockets of our own over `omq-proto`: ZMTP 3.1 over tcp and ipc, wire compatible with libzmq.
//!
//! That crate speaks the protocol, and its security, without input or output. Here are the streams,
//! the connections, and what a socket does when it has several: in the tasks that send and receive,
//! so that a call does not pass from task to task. Its breaking releases stop in this folder.

mod dealer;
mod door;
mod frames;
mod inbox;
mod link;
mod outbox;
mod publish;
mod reach;
mod router;
mod stream;
mod subscribe;

pub(super) use dealer::{DealerReceiver, DealerSender, connect_dealer};
pub(super) use publish::{PublishSender, SubscriptionWatch, bind_publish};
pub(super) use router::{InFlight, Peer, RouterReceiver, RouterSender, bind_router};
pub(super) use subscribe::{SubscribeReceiver, SubscribeSender, connect_subscribe};

use std::io;

use omq_proto::{CurveKeypair, CurvePublicKey, CurveSecretKey, Payload};

use crate::security::{Keys, PublicKey};
use crate::transport::{Endpoint, TransportError};

/// The parts of a message in the classic forms.
const PARTS: usize = 3;

/// The codec counts a slot for each part of a message against its size limit.
fn message_size_max(bytes: usize) -> usize {
    bytes.saturating_add(PARTS * size_of::<Payload>())
}

fn keypair(keys: &Keys) -> CurveKeypair {
    CurveKeypair {
        public: curve(keys.public()),
        secret: CurveSecretKey::from_bytes(*keys.secret_bytes()),
    }
}

fn curve(key: PublicKey) -> CurvePublicKey {
    CurvePublicKey::from_bytes(*key.as_bytes())
}

fn to_error(endpoint: &Endpoint, error: io::Error) -> TransportError {
    let endpoint = endpoint.clone();
    match error.kind() {
        io::ErrorKind::AddrInUse => TransportError::InUse { endpoint },
        _ => TransportError::Refused {
            endpoint,
            reason: error.to_string(),
        },
    }
}
