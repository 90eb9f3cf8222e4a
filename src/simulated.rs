//! What the simulator of tests/simulation runs of this crate, which is no business of users: the
//! state machines themselves, and what goes over the wire between them.

use std::time::Duration;

use bytes::Bytes;

use crate::call::{Outcome, RawReply};
use crate::message::Limits;
pub use crate::once::simulated::*;
use crate::wire::{Metadata, ReplyHeader, ReplyStatus, RequestHeader, RequestId, Status};

/// Of a request's header, what a simulated client says and a simulated server reads.
#[derive(Clone, Debug)]
pub struct RequestEnvelope {
    /// Type ID of the interface.
    pub interface: u64,
    /// Ordinal of the method.
    pub method: u16,
    /// From 0.
    pub attempt: u16,
    /// What the reply says again.
    pub correlation: u64,
    /// The same over all attempts.
    pub id: RequestId,
    /// How long the caller will wait.
    pub remaining: Option<Duration>,
    /// Whether it only asks.
    pub outcome_only: bool,
}

impl RequestEnvelope {
    /// As it travels.
    pub fn encode(&self) -> Bytes {
        let header = RequestHeader {
            interface: self.interface,
            method: self.method,
            attempt: self.attempt,
            correlation: self.correlation,
            id: self.id.clone(),
            remaining: self.remaining,
            trace: None,
            metadata: Metadata::new(),
            outcome_only: self.outcome_only,
            announce: false,
            cancel: false,
            takes: None,
        };
        header.encode().into()
    }

    /// As a server understands it.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = RequestHeader::decode(bytes).ok()?;
        Some(Self {
            interface: header.interface,
            method: header.method,
            attempt: header.attempt,
            correlation: header.correlation,
            id: header.id,
            remaining: header.remaining,
            outcome_only: header.outcome_only,
        })
    }
}

/// The header of a reply, whose body travels beside it.
pub fn encode_reply(correlation: u64, ended: &Result<RawReply, Status>) -> Bytes {
    let status = match ended {
        Ok(reply) if reply.outcome == Outcome::Success => ReplyStatus::Ok,
        Ok(_) => ReplyStatus::ApplicationError,
        Err(status) => ReplyStatus::Failed(status.clone()),
    };
    let header = ReplyHeader {
        correlation,
        status,
        replayed: ended.as_ref().is_ok_and(|reply| reply.replayed),
        compact: false,
        cancels: false,
        takes: None,
        metadata: Metadata::new(),
    };
    header.encode().into()
}

/// What a client makes of a reply, and the correlation that it is for.
pub fn decode_reply(header: &[u8], body: Bytes) -> Option<(u64, Result<RawReply, Status>)> {
    let header = ReplyHeader::decode(header).ok()?;
    let outcome = match header.status {
        ReplyStatus::Ok => Outcome::Success,
        ReplyStatus::ApplicationError => Outcome::ApplicationError,
        ReplyStatus::Failed(status) => return Some((header.correlation, Err(status))),
    };
    let reply = RawReply {
        outcome,
        replayed: header.replayed,
        metadata: header.metadata,
        body,
        limits: Limits::default(),
    };
    Some((header.correlation, Ok(reply)))
}

/// Returns the status as a client makes it whose connection is down or was lost.
pub fn of_connection(status: Status) -> Status {
    status.with_origin(crate::wire::Origin::Connection)
}
