//! The header of a request.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::header::{check_version, open};
use super::{HeaderError, Metadata, RequestId, RequestKey, TraceContext};
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
    pub trace: Option<TraceContext>,
    pub metadata: Metadata,
    /// Nothing is to be done; the caller asks how it ended.
    pub outcome_only: bool,
}

impl RequestHeader {
    pub fn encode(&self) -> Bytes {
        let built = message::build::<request_header::Owned, std::convert::Infallible>(|mut to| {
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
                    true => Some(TraceContext::read(from.get_trace()?)?),
                    false => None,
                },
                metadata: match from.has_metadata() {
                    true => Metadata::read(from.get_metadata()?)?,
                    false => Metadata::new(),
                },
                outcome_only: from.get_outcome_only(),
            })
        })
    }
}

/// At least 1, so that a deadline that is almost over is not taken for none.
pub(super) fn to_microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros())
        .unwrap_or(u64::MAX)
        .max(1)
}
