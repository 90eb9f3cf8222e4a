//! `omq-tokio`: ZMTP 3.1 over tcp and ipc, wire compatible with libzmq.
//!
//! Everything here sets what that library leaves open (limits, linger, heartbeats, mandatory
//! routing) and turns its values into ours. Its breaking releases stop in this folder.

mod door;
mod pair;
mod publish;
mod subscribe;

pub(super) use publish::{PublishSender, SubscriptionWatch, bind_publish};
pub(super) use subscribe::{SubscribeReceiver, SubscribeSender, connect_subscribe};

use omq_tokio::{Error, Message, MessagePool, Options, Payload, ReconnectPolicy, Socket};

use crate::message::copied;
use crate::wire::{HeaderBytes, Packed};

use super::{
    BATCH_MAX, Closed, Endpoint, Form, Frames, Malformed, Outgoing, Received, TransportError,
    TransportOptions, unpack,
};

/// omq counts a slot of this size for each part of a message against its size limit.
const PART_BYTES: usize = 64;
/// The parts of `[empty][header][body]`.
const PARTS: usize = 3;
/// A part of so many bytes lies in the table itself.
const INLINE_BYTES_MAX: usize = 62;
/// Part tables kept for reuse, a socket and direction: they are there from the start, idle or not,
/// and cost about 300 bytes each.
const TABLES_KEPT: usize = BATCH_MAX;

fn options(from: &TransportOptions) -> Options {
    Options::new()
        .max_message_size(from.message_bytes_max + PARTS * PART_BYTES)
        .send_hwm(from.send_queue_max)
        .transmit_slot_cap(from.send_bytes_max)
        .recv_hwm(from.receive_queue_max)
        .linger(from.linger)
        .heartbeat_interval(from.heartbeat_interval)
        .heartbeat_timeout(from.heartbeat_timeout)
        // A peer that answers no PING because it reads nothing is found by what it leaves unread.
        .tcp_user_timeout(from.heartbeat_interval + from.heartbeat_timeout)
        .handshake_timeout(from.handshake_timeout)
        .max_pending_handshakes(from.handshakes_max)
        .reconnect(ReconnectPolicy::Exponential {
            min: from.reconnect_min,
            max: from.reconnect_max,
        })
        .recv_message_pool(MessagePool::new(TABLES_KEPT, PARTS + 1))
}

fn to_message(pool: &MessagePool, outgoing: Outgoing) -> Message {
    match outgoing {
        Outgoing::Classic(frames) => pool.multipart_payloads([
            Payload::new(),
            header_part(frames.header),
            Payload::from_bytes(frames.body),
        ]),
        Outgoing::Compact(packed) => Message::single(packed.bytes),
    }
}

/// What omq gives back of a message of so many calls that it could not take now.
fn given_back(message: &Message, calls: usize) -> Option<Outgoing> {
    match message.part_bytes(0) {
        Some(bytes) if message.len() == 1 => Some(Outgoing::Compact(Packed { bytes, calls })),
        _ => to_frames(message).ok().map(Outgoing::Classic),
    }
}

/// A short header goes into omq's own table, or behind other small messages: without an allocation.
fn header_part(header: HeaderBytes) -> Payload {
    match header {
        HeaderBytes::Short { .. } if header.len() <= INLINE_BYTES_MAX => {
            Payload::from_slice(&header)
        }
        HeaderBytes::Short { .. } => Payload::from_bytes(copied(&header)),
        HeaderBytes::Long(bytes) => Payload::from_bytes(bytes),
    }
}

/// Takes a message apart.
fn apart(message: &Message, take: impl FnMut(Received)) {
    match message.part_bytes(0) {
        Some(part) if message.len() == 1 => unpack(&part).for_each(take),
        _ => {
            let received = to_frames(message).map(|frames| (Form::Classic, frames));
            std::iter::once(received).for_each(take);
        }
    }
}

fn to_frames(message: &Message) -> Result<Frames, Malformed> {
    let parts = message.len();
    if parts == PARTS
        && message.part_slice(0).is_some_and(<[u8]>::is_empty)
        && let (Some(header), Some(body)) = (message.part_slice(1), message.part_bytes(2))
    {
        Ok(Frames {
            header: header.into(),
            body,
        })
    } else {
        Err(Malformed { parts })
    }
}

/// Waits for a message, then takes all that are there. Cancel safe.
///
/// A message that had to be waited for comes alone: to look for a second costs more than to be asked
/// again, and whoever asks again at once then gets all that are there.
async fn receive(socket: &Socket, messages: &mut Vec<Message>) -> Result<(), Closed> {
    let mut has_waited = false;
    let mut receiving = std::pin::pin!(socket.recv());
    let first = std::future::poll_fn(|cx| {
        let poll = receiving.as_mut().poll(cx);
        has_waited |= poll.is_pending();
        poll
    });
    messages.push(first.await.map_err(|_| Closed)?);
    if !has_waited {
        // An error is that there are no more, or will come again with the next receive.
        let _ = socket.try_recv_many_into(BATCH_MAX - 1, messages);
    }
    Ok(())
}

/// The endpoint that a socket really has: what was asked for, with the port that was free.
fn actual(asked: &Endpoint, bound: &omq_tokio::Endpoint) -> Result<Endpoint, TransportError> {
    Ok(match asked {
        // Keeps the host as it was given: it may be a name.
        Endpoint::Tcp { host, port: 0 } => match bound.to_string().parse()? {
            Endpoint::Tcp { port, .. } => Endpoint::Tcp {
                host: host.clone(),
                port,
            },
            other => other,
        },
        other => other.clone(),
    })
}

fn to_error(endpoint: &Endpoint, error: Error) -> TransportError {
    let endpoint = endpoint.clone();
    match error {
        Error::Io(io) if io.kind() == std::io::ErrorKind::AddrInUse => {
            TransportError::InUse { endpoint }
        }
        error => TransportError::Refused {
            endpoint,
            reason: error.to_string(),
        },
    }
}
