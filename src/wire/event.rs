//! The header of an event.

use bytes::Bytes;

use super::header::{HeaderBytes, check_version, open};
use super::layout::{self, Data};
use super::{HeaderError, Metadata, TraceContext};
use crate::message;
use crate::wire_capnp::event_header;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventHeader {
    pub kind: EventKind,
    pub epoch: u64,
    pub sequence: u64,
    pub trace: Option<TraceContext>,
    pub metadata: Metadata,
}

/// See `event_header::Kind` in schema/wire.capnp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    Event,
    Tail,
    Confirmed,
    Refused,
    Tails,
}

/// In the first word of the struct's data, in bits. Its version is 0: the difference to the
/// default, which is the version that is spoken here.
const KIND_AT: u32 = 16;
/// In words of the struct's data.
const EPOCH: usize = 1;
const SEQUENCE: usize = 2;

impl EventHeader {
    pub fn encode(&self) -> HeaderBytes {
        if self.trace.is_some() || !self.metadata.is_empty() {
            return HeaderBytes::Long(self.encode_any());
        }
        let first = match self.kind {
            EventKind::Event => 0,
            EventKind::Tail => 1,
            EventKind::Confirmed => 2,
            EventKind::Refused => 3,
            EventKind::Tails => 4,
        } << KIND_AT;
        let bytes: [u8; 56] = layout::write([first, self.epoch, self.sequence], 2);
        HeaderBytes::short(bytes)
    }

    /// The general way, for whatever the header has.
    pub(super) fn encode_any(&self) -> Bytes {
        message::build_with::<event_header::Owned>(|mut to| {
            to.set_kind(match self.kind {
                EventKind::Event => event_header::Kind::Event,
                EventKind::Tail => event_header::Kind::Tail,
                EventKind::Confirmed => event_header::Kind::Confirmed,
                EventKind::Refused => event_header::Kind::Refused,
                EventKind::Tails => event_header::Kind::Tails,
            });
            to.set_epoch(self.epoch);
            to.set_sequence(self.sequence);
            if let Some(trace) = &self.trace {
                trace.write(to.reborrow().init_trace());
            }
            self.metadata.write(|n| to.init_metadata(n));
        })
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        match layout::read(bytes).and_then(Self::read_in_place) {
            Some(header) => Ok(header),
            None => Self::decode_any(bytes),
        }
    }

    /// `None` for a version or a kind that is not known here.
    pub(super) fn read_in_place(from: Data<'_>) -> Option<Self> {
        let first = from.word(0);
        let kind = match ((first >> KIND_AT) as u16, first as u16) {
            (0, 0) => EventKind::Event,
            (1, 0) => EventKind::Tail,
            (2, 0) => EventKind::Confirmed,
            (3, 0) => EventKind::Refused,
            (4, 0) => EventKind::Tails,
            _ => return None,
        };
        Some(Self {
            kind,
            epoch: from.word(EPOCH),
            sequence: from.word(SEQUENCE),
            trace: None,
            metadata: Metadata::new(),
        })
    }

    /// The general way, for whatever the header has.
    pub(super) fn decode_any(bytes: &[u8]) -> Result<Self, HeaderError> {
        open(bytes, |reader| {
            let from = reader.get_root::<event_header::Reader<'_>>()?;
            check_version(from.get_version(), 0)?;
            Ok(Self {
                kind: match from.get_kind()? {
                    event_header::Kind::Event => EventKind::Event,
                    event_header::Kind::Tail => EventKind::Tail,
                    event_header::Kind::Confirmed => EventKind::Confirmed,
                    event_header::Kind::Refused => EventKind::Refused,
                    event_header::Kind::Tails => EventKind::Tails,
                },
                epoch: from.get_epoch(),
                sequence: from.get_sequence(),
                trace: match from.has_trace() {
                    true => Some(TraceContext::read(from.get_trace()?)?),
                    false => None,
                },
                metadata: match from.has_metadata() {
                    true => Metadata::read(from.get_metadata()?)?,
                    false => Metadata::new(),
                },
            })
        })
    }
}
