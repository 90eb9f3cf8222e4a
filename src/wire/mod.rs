//! The envelope: what stands in front of a body. Bytes in, values out.
//!
//! No sockets, no clock, no knowledge of bodies. The format is `schema/wire.capnp`; `docs/wire.md`
//! explains it for whoever writes a peer in another language.

mod event;
mod header;
mod metadata;
mod reply;
mod request;
mod request_id;
mod status;
#[cfg(test)]
mod tests;

pub(crate) use event::{EventHeader, EventKind};
pub use header::HeaderError;
pub use metadata::{Metadata, MetadataError, TraceContext};
pub(crate) use reply::{ReplyHeader, ReplyStatus};
pub(crate) use request::RequestHeader;
pub use request_id::{RequestId, RequestKey, RequestKeyError};
pub use status::{Code, Reason, Status, Work};

/// Reads bytes as each of the three headers, for tests of what others may send.
#[cfg(any(test, fuzzing))]
pub(crate) fn decode_all(bytes: &[u8]) {
    let _ = RequestHeader::decode(bytes);
    let _ = ReplyHeader::decode(bytes);
    let _ = EventHeader::decode(bytes);
}

/// The version of the envelope that this crate speaks.
pub const ENVELOPE_VERSION: u16 = 1;

/// Largest header in bytes: request key, trace context and metadata included.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
