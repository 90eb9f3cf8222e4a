//! The header of a reply.

use std::time::Duration;

use bytes::Bytes;

use super::header::{HeaderBytes, check_version, open, peek};
use super::layout::{self, Data};
use super::request::to_microseconds;
use super::{Code, HeaderError, Metadata, Reason, SizesMax, Status, Work};
use crate::message;
use crate::wire_capnp::reply_header;

const OK: u16 = 0;
const APPLICATION_ERROR: u16 = 100;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReplyHeader {
    pub correlation: u64,
    pub status: ReplyStatus,
    pub replayed: bool,
    /// The server takes requests in the compact form.
    pub compact: bool,
    /// The server understands that a call is cancelled.
    pub cancels: bool,
    /// The largest requests that the server takes, where it says so.
    pub takes: Option<SizesMax>,
    pub metadata: Metadata,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ReplyStatus {
    /// The body is the results.
    Ok,
    /// The body is the method's own error.
    ApplicationError,
    /// There is no body.
    Failed(Status),
}

/// In the first word of the struct's data, in bits. Its version is 0: the difference to the
/// default, which is the version that is spoken here.
const STATUS_AT: u32 = 16;
const REPLAYED_AT: u32 = 32;
const COMPACT_AT: u32 = 35;
const CANCELS_AT: u32 = 36;
/// In words of the struct's data.
const CORRELATION: usize = 1;
const TAKES: usize = 3;

impl ReplyHeader {
    pub fn encode(&self) -> HeaderBytes {
        let status = match &self.status {
            ReplyStatus::Ok if self.metadata.is_empty() => OK,
            ReplyStatus::ApplicationError if self.metadata.is_empty() => APPLICATION_ERROR,
            _ => return HeaderBytes::Long(self.encode_any()),
        };
        let first = u64::from(status) << STATUS_AT
            | u64::from(self.replayed) << REPLAYED_AT
            | u64::from(self.compact) << COMPACT_AT
            | u64::from(self.cancels) << CANCELS_AT;
        match self.takes {
            None => HeaderBytes::short::<56>(layout::write([first, self.correlation, 0], 2)),
            Some(takes) => {
                let data = [first, self.correlation, 0, takes.to_word()];
                HeaderBytes::short::<64>(layout::write(data, 2))
            }
        }
    }

    /// The general way, for whatever the header has.
    pub(super) fn encode_any(&self) -> Bytes {
        message::build_with::<reply_header::Owned>(|mut to| {
            to.set_correlation(self.correlation);
            to.set_replayed(self.replayed);
            to.set_compact(self.compact);
            to.set_cancels(self.cancels);
            if let Some(takes) = self.takes {
                to.set_request_body_bytes_max(takes.body);
                to.set_request_message_bytes_max(takes.message);
            }
            match &self.status {
                ReplyStatus::Ok => {}
                ReplyStatus::ApplicationError => to.set_status(APPLICATION_ERROR),
                ReplyStatus::Failed(status) => {
                    to.set_status(status.code().number());
                    to.set_not_done(status.work() == Work::NotDone);
                    to.set_done(status.work() == Work::Done);
                    to.set_reason(status.reason().map_or(0, Reason::number));
                    to.set_message(status.message_to_send());
                    let retry_after = status.retry_after().map_or(0, to_microseconds);
                    to.set_retry_after_microseconds(retry_after);
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

    /// `None` for a version that is not spoken here, and for a status that says more.
    pub(super) fn read_in_place(from: Data<'_>) -> Option<Self> {
        let first = from.word(0);
        let status = match ((first >> STATUS_AT) as u16, first as u16) {
            (OK, 0) => ReplyStatus::Ok,
            (APPLICATION_ERROR, 0) => ReplyStatus::ApplicationError,
            _ => return None,
        };
        Some(Self {
            correlation: from.word(CORRELATION),
            status,
            replayed: first >> REPLAYED_AT & 1 == 1,
            compact: first >> COMPACT_AT & 1 == 1,
            cancels: first >> CANCELS_AT & 1 == 1,
            takes: SizesMax::from_word(from.word(TAKES)),
            metadata: Metadata::new(),
        })
    }

    /// The correlation number of what cannot be read, where it can be told.
    pub fn peek_correlation(bytes: &[u8]) -> Option<u64> {
        peek(bytes, CORRELATION)
    }

    /// The general way, for whatever the header has.
    pub(super) fn decode_any(bytes: &[u8]) -> Result<Self, HeaderError> {
        open(bytes, |reader| {
            let from = reader.get_root::<reply_header::Reader<'_>>()?;
            let correlation = from.get_correlation();
            check_version(from.get_version(), correlation)?;
            let status = match from.get_status() {
                OK => ReplyStatus::Ok,
                APPLICATION_ERROR => ReplyStatus::ApplicationError,
                number => {
                    let work = match (from.get_not_done(), from.get_done()) {
                        (true, false) => Work::NotDone,
                        (false, true) => Work::Done,
                        _ => Work::OutcomeUnknown,
                    };
                    let message = from.get_message()?.to_str()?.to_owned();
                    let mut status = Status::new(Code::from_number(number), work, message);
                    let retry_after = from.get_retry_after_microseconds();
                    if retry_after != 0 {
                        status = status.with_retry_after(Duration::from_micros(retry_after));
                    }
                    if let Some(reason) = Reason::from_number(from.get_reason()) {
                        status = status.with_reason(reason);
                    }
                    ReplyStatus::Failed(status)
                }
            };
            Ok(Self {
                correlation,
                status,
                replayed: from.get_replayed(),
                compact: from.get_compact(),
                cancels: from.get_cancels(),
                takes: {
                    let (body, message) = (
                        from.get_request_body_bytes_max(),
                        from.get_request_message_bytes_max(),
                    );
                    SizesMax::from_word(SizesMax { body, message }.to_word())
                },
                metadata: match from.has_metadata() {
                    true => Metadata::read(from.get_metadata()?)?,
                    false => Metadata::new(),
                },
            })
        })
    }
}
