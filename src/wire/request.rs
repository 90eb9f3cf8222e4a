//! The header of a request.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::header::{HeaderBytes, check_version, open, peek};
use super::layout::{self, Data};
use super::{HeaderError, Metadata, RequestId, RequestKey, SizesMax, TraceContext};
use crate::message;
use crate::wire_capnp::request_header;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    pub interface: u64,
    pub method: u16,
    pub attempt: u16,
    pub correlation: u64,
    pub id: RequestId,
    /// How long the caller will wait from now; `None` where it did not say.
    pub remaining: Option<Duration>,
    pub trace: Option<Box<TraceContext>>,
    pub metadata: Metadata,
    /// Nothing is to be done; the caller asks how it ended.
    pub outcome_only: bool,
    /// The client wants to know what the server takes.
    pub announce: bool,
    /// The caller of `correlation` no longer waits; nothing else counts.
    pub cancel: bool,
    /// The largest replies that the client takes, where it says so.
    pub takes: Option<SizesMax>,
}

/// What every header's first word has for the version: as its difference to the default, which is
/// the version that is spoken here.
const VERSION: u64 = 0;
/// In words of the struct's data.
const INTERFACE: usize = 1;
const ID_HIGH: usize = 2;
const ID_LOW: usize = 3;
const CORRELATION: usize = 4;
const REMAINING: usize = 5;
const TAKES: usize = 6;
/// In the first word, in bits.
const METHOD_AT: u32 = 16;
const ATTEMPT_AT: u32 = 32;
const OUTCOME_ONLY_AT: u32 = 48;
const ANNOUNCE_AT: u32 = 49;
const BOUNDED_AT: u32 = 50;
const CANCEL_AT: u32 = 51;

impl RequestHeader {
    pub fn encode(&self) -> HeaderBytes {
        match &self.id {
            RequestId::Uuid(id) if self.trace.is_none() && self.metadata.is_empty() => {
                self.in_place(id)
            }
            _ => HeaderBytes::Long(self.encode_any()),
        }
    }

    fn in_place(&self, id: &Uuid) -> HeaderBytes {
        let (high, low) = id.as_u64_pair();
        let first = VERSION
            | u64::from(self.method) << METHOD_AT
            | u64::from(self.attempt) << ATTEMPT_AT
            | u64::from(self.outcome_only) << OUTCOME_ONLY_AT
            | u64::from(self.announce) << ANNOUNCE_AT
            | u64::from(self.takes.is_some()) << BOUNDED_AT
            | u64::from(self.cancel) << CANCEL_AT;
        let remaining = self.remaining.map_or(0, to_microseconds);
        let data = [
            first,
            self.interface,
            high,
            low,
            self.correlation,
            remaining,
        ];
        match self.takes {
            None | Some(SizesMax::DEFAULT) => HeaderBytes::short::<88>(layout::write(data, 3)),
            Some(takes) => {
                let [a, b, c, d, e, f] = data;
                let longer = [a, b, c, d, e, f, takes.to_word()];
                HeaderBytes::Long(message::copied(&layout::write::<7, 96>(longer, 3)))
            }
        }
    }

    /// The general way, for whatever the header has.
    pub(super) fn encode_any(&self) -> Bytes {
        message::build_with::<request_header::Owned>(|mut to| {
            to.set_interface(self.interface);
            to.set_method(self.method);
            to.set_attempt(self.attempt);
            to.set_correlation(self.correlation);
            to.set_remaining_microseconds(self.remaining.map_or(0, to_microseconds));
            match &self.id {
                RequestId::Uuid(uuid) => {
                    let (high, low) = uuid.as_u64_pair();
                    to.set_request_id_high(high);
                    to.set_request_id_low(low);
                }
                RequestId::Key(key) => to.set_request_key(key.as_bytes()),
            }
            if let Some(trace) = &self.trace {
                trace.write(to.reborrow().init_trace());
            }
            to.set_outcome_only(self.outcome_only);
            to.set_announce(self.announce);
            to.set_cancel(self.cancel);
            if let Some(takes) = self.takes {
                to.set_bounded(true);
                if takes != SizesMax::DEFAULT {
                    to.set_reply_body_bytes_max(takes.body);
                    to.set_reply_message_bytes_max(takes.message);
                }
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

    /// `None` for a version that is not spoken here.
    pub(super) fn read_in_place(from: Data<'_>) -> Option<Self> {
        let first = from.word(0);
        if u64::from(first as u16) != VERSION {
            return None;
        }
        let remaining = from.word(REMAINING);
        Some(Self {
            interface: from.word(INTERFACE),
            method: (first >> METHOD_AT) as u16,
            attempt: (first >> ATTEMPT_AT) as u16,
            correlation: from.word(CORRELATION),
            id: Uuid::from_u64_pair(from.word(ID_HIGH), from.word(ID_LOW)).into(),
            remaining: (remaining != 0).then(|| Duration::from_micros(remaining)),
            trace: None,
            metadata: Metadata::new(),
            outcome_only: first >> OUTCOME_ONLY_AT & 1 == 1,
            announce: first >> ANNOUNCE_AT & 1 == 1,
            cancel: first >> CANCEL_AT & 1 == 1,
            takes: (first >> BOUNDED_AT & 1 == 1).then(|| bounded(from.word(TAKES))),
        })
    }

    /// The correlation number of what cannot be read, where it can be told.
    pub fn peek_correlation(bytes: &[u8]) -> Option<u64> {
        peek(bytes, CORRELATION)
    }

    /// The general way, for whatever the header has.
    pub(super) fn decode_any(bytes: &[u8]) -> Result<Self, HeaderError> {
        open(bytes, |reader| {
            let from = reader.get_root::<request_header::Reader<'_>>()?;
            let correlation = from.get_correlation();
            check_version(from.get_version(), correlation)?;
            let id = match from.has_request_key() {
                true => RequestKey::new(Bytes::copy_from_slice(from.get_request_key()?))
                    .map_err(|error| HeaderError::Malformed(error.to_string()))?
                    .into(),
                false => Uuid::from_u64_pair(from.get_request_id_high(), from.get_request_id_low())
                    .into(),
            };
            let remaining = from.get_remaining_microseconds();
            Ok(Self {
                interface: from.get_interface(),
                method: from.get_method(),
                attempt: from.get_attempt(),
                correlation,
                id,
                remaining: (remaining != 0).then(|| Duration::from_micros(remaining)),
                trace: match from.has_trace() {
                    true => Some(Box::new(TraceContext::read(from.get_trace()?)?)),
                    false => None,
                },
                metadata: match from.has_metadata() {
                    true => Metadata::read(from.get_metadata()?)?,
                    false => Metadata::new(),
                },
                outcome_only: from.get_outcome_only(),
                announce: from.get_announce(),
                cancel: from.get_cancel(),
                takes: from.get_bounded().then(|| {
                    let (body, message) = (
                        from.get_reply_body_bytes_max(),
                        from.get_reply_message_bytes_max(),
                    );
                    bounded(SizesMax { body, message }.to_word())
                }),
            })
        })
    }
}

/// The sizes of a client that has limits.
fn bounded(word: u64) -> SizesMax {
    SizesMax::from_word(word).unwrap_or(SizesMax::DEFAULT)
}

/// At least 1, so that a deadline that is almost over is not taken for none.
pub(super) fn to_microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros())
        .unwrap_or(u64::MAX)
        .max(1)
}
