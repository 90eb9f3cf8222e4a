//! The envelope: what stands in front of a body. Bytes in, values out.
//!
//! No sockets, no clock, no knowledge of bodies. The format is `schema/wire.capnp`; `docs/wire.md`
//! explains it for whoever writes a peer in another language.

mod compact;
mod event;
mod events;
mod header;
mod layout;
mod metadata;
mod reply;
mod request;
mod request_id;
mod sizes;
mod status;
#[cfg(test)]
mod tests;

#[cfg(fuzzing)]
pub(crate) use compact::unpack_any;
pub(crate) use compact::{
    COMPACT_BYTES_MAX, NotCompact, Packed, Packer, is_compactable, pack_one, unpack,
};
pub(crate) use event::{EventHeader, EventKind};
#[cfg(fuzzing)]
pub(crate) use events::unpack_any_events;
pub(crate) use events::{EVENTS_BYTES_MAX, EventPacker, is_packable, unpack_events};
pub(crate) use header::HeaderBytes;
pub use header::HeaderError;
pub use metadata::{Metadata, MetadataError, TraceContext};
pub(crate) use reply::{ReplyHeader, ReplyStatus};
pub(crate) use request::RequestHeader;
pub use request_id::{RequestId, RequestKey, RequestKeyError};
pub(crate) use sizes::{Oversize, SizesMax};
pub(crate) use status::Origin;
pub use status::{Code, Reason, Status, Work};

/// Reads bytes as each of the three headers, for tests of what others may send: both ways of
/// reading them agree.
#[cfg(any(test, fuzzing))]
pub(crate) fn decode_all(bytes: &[u8]) {
    let in_place = layout::read(bytes);
    if let Some(header) = in_place.and_then(RequestHeader::read_in_place) {
        assert_eq!(RequestHeader::decode_any(bytes), Ok(header));
    }
    if let Some(header) = in_place.and_then(ReplyHeader::read_in_place) {
        assert_eq!(ReplyHeader::decode_any(bytes), Ok(header));
    }
    if let Some(header) = in_place.and_then(EventHeader::read_in_place) {
        assert_eq!(EventHeader::decode_any(bytes), Ok(header));
    }
    let _ = RequestHeader::decode(bytes);
    let _ = ReplyHeader::decode(bytes);
    let _ = EventHeader::decode(bytes);
}

/// The version of the envelope that this crate speaks.
pub const ENVELOPE_VERSION: u16 = 1;

/// Largest header in bytes: request key, trace context and metadata included.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
