//! The header of a reply.

use std::time::Duration;

use bytes::Bytes;

use super::header::{check_version, open};
use super::request::to_microseconds;
use super::{Code, HeaderError, Metadata, Reason, Status, Work};
use crate::message;
use crate::wire_capnp::reply_header;

const OK: u16 = 0;
const APPLICATION_ERROR: u16 = 100;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReplyHeader {
    pub correlation: u64,
    pub status: ReplyStatus,
    pub replayed: bool,
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

impl ReplyHeader {
    pub fn encode(&self) -> Bytes {
        let built = message::build::<reply_header::Owned, std::convert::Infallible>(|mut to| {
            to.set_correlation(self.correlation);
            to.set_replayed(self.replayed);
            match &self.status {
                ReplyStatus::Ok => {}
                ReplyStatus::ApplicationError => to.set_status(APPLICATION_ERROR),
                ReplyStatus::Failed(status) => {
                    to.set_status(status.code().number());
                    to.set_not_done(status.work() == Work::NotDone);
                    to.set_done(status.work() == Work::Done);
                    to.set_reason(status.reason().map_or(0, Reason::number));
                    to.set_message(status.message());
                    let retry_after = status.retry_after().map_or(0, to_microseconds);
                    to.set_retry_after_microseconds(retry_after);
                }
            }
            self.metadata.write(|n| to.init_metadata(n));
            Ok(())
        });
        match built {
            Ok(bytes) => bytes,
            Err(never) => match never {},
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
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
                metadata: match from.has_metadata() {
                    true => Metadata::read(from.get_metadata()?)?,
                    false => Metadata::new(),
                },
            })
        })
    }
}
