//! The header of an event.

use bytes::Bytes;

use super::header::{check_version, open};
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
}

impl EventHeader {
    pub fn encode(&self) -> Bytes {
        let built = message::build::<event_header::Owned, std::convert::Infallible>(|mut to| {
            to.set_kind(match self.kind {
                EventKind::Event => event_header::Kind::Event,
                EventKind::Tail => event_header::Kind::Tail,
                EventKind::Confirmed => event_header::Kind::Confirmed,
                EventKind::Refused => event_header::Kind::Refused,
            });
            to.set_epoch(self.epoch);
            to.set_sequence(self.sequence);
            if let Some(trace) = &self.trace {
                trace.write(to.reborrow().init_trace());
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
            let from = reader.get_root::<event_header::Reader<'_>>()?;
            check_version(from.get_version(), 0)?;
            Ok(Self {
                kind: match from.get_kind()? {
                    event_header::Kind::Event => EventKind::Event,
                    event_header::Kind::Tail => EventKind::Tail,
                    event_header::Kind::Confirmed => EventKind::Confirmed,
                    event_header::Kind::Refused => EventKind::Refused,
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
