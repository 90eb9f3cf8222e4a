//! Records as bytes, for stores that outlive a process or are shared: schema/once.capnp.

use bytes::Bytes;

use super::{Epoch, Fingerprint, Record, Recorded, State, StoreError, Timestamp};
use crate::call::Outcome;
use crate::message::{self, Limits};
use crate::once_capnp::{outcome, record};
use crate::schema::Recovery;
use crate::wire::Metadata;

impl Record {
    /// Its bytes, as [`from_bytes`](Self::from_bytes) reads them.
    pub fn to_bytes(&self) -> Bytes {
        message::build_with::<record::Owned>(|mut to| {
            to.set_fingerprint(&self.fingerprint.to_bytes());
            to.set_owner(self.epoch.owner);
            to.set_number(self.epoch.number);
            to.set_recovery(match self.recovery {
                Recovery::InDoubt => record::Recovery::InDoubt,
                Recovery::Rerun => record::Recovery::Rerun,
                Recovery::Atomic => record::Recovery::Atomic,
            });
            to.set_begun_before(self.begun_before);
            let mut state = to.init_state();
            match &self.state {
                State::InFlight { until } => state.set_in_flight(until.milliseconds()),
                State::InDoubt => state.set_in_doubt(()),
                State::Done { outcome, expires } => {
                    let mut done = state.init_done();
                    done.set_expires(expires.milliseconds());
                    write_outcome(outcome, done.init_outcome());
                }
            }
        })
    }

    /// From the bytes of a store.
    ///
    /// # Errors
    /// For what is no record, or has a state that this version does not know.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, StoreError> {
        read(bytes).map_err(|error| StoreError::new(format!("a damaged record: {error}")))
    }
}

/// For stores that keep the rest of a record in columns or fields of their own.
#[cfg(any(feature = "postgres", feature = "redis", fuzzing))]
impl Recorded {
    pub(super) fn to_bytes(&self) -> Bytes {
        message::build_with::<outcome::Owned>(|to| {
            write_outcome(self, to);
        })
    }

    pub(super) fn from_bytes(bytes: Bytes) -> Result<Self, StoreError> {
        let read = || -> Result<Self, capnp::Error> {
            let reader = open(bytes)?;
            read_outcome(reader.get_root::<outcome::Reader<'_>>()?)
        };
        read().map_err(|error| StoreError::new(format!("a damaged outcome: {error}")))
    }
}

fn write_outcome(from: &Recorded, mut to: outcome::Builder<'_>) {
    match from {
        Recorded::Reply {
            outcome,
            metadata,
            body,
        } => {
            to.set_is_application_error(*outcome == Outcome::ApplicationError);
            let mut reply = to.init_kept().init_reply();
            reply.set_body(body);
            let mut entries = reply.init_metadata(metadata.iter().count() as u32);
            for (index, (key, value)) in (0..).zip(metadata.iter()) {
                let mut entry = entries.reborrow().get(index);
                entry.set_key(key);
                entry.set_value(value);
            }
        }
        Recorded::NotRetained {
            outcome,
            digest,
            bytes,
        } => {
            to.set_is_application_error(*outcome == Outcome::ApplicationError);
            let mut not_retained = to.init_kept().init_not_retained();
            not_retained.set_digest(&digest.to_bytes());
            not_retained.set_bytes(*bytes);
        }
    }
}

fn open(
    bytes: Bytes,
) -> Result<capnp::message::Reader<impl capnp::message::ReaderSegments>, capnp::Error> {
    let limits = Limits::default().with_message_bytes_max(usize::MAX);
    message::open(bytes, &limits).map_err(|error| capnp::Error::failed(error.to_string()))
}

fn read(bytes: Bytes) -> Result<Record, capnp::Error> {
    let reader = open(bytes)?;
    let from = reader.get_root::<record::Reader<'_>>()?;
    Ok(Record {
        fingerprint: fingerprint(from.get_fingerprint()?)?,
        epoch: Epoch {
            owner: from.get_owner(),
            number: from.get_number(),
        },
        recovery: match from.get_recovery()? {
            record::Recovery::InDoubt => Recovery::InDoubt,
            record::Recovery::Rerun => Recovery::Rerun,
            record::Recovery::Atomic => Recovery::Atomic,
        },
        begun_before: from.get_begun_before(),
        state: match from.get_state().which()? {
            record::state::InFlight(until) => State::InFlight {
                until: Timestamp::from_milliseconds(until),
            },
            record::state::InDoubt(()) => State::InDoubt,
            record::state::Done(done) => State::Done {
                outcome: read_outcome(done.get_outcome()?)?,
                expires: Timestamp::from_milliseconds(done.get_expires()),
            },
        },
    })
}

fn read_outcome(from: outcome::Reader<'_>) -> Result<Recorded, capnp::Error> {
    let outcome = match from.get_is_application_error() {
        true => Outcome::ApplicationError,
        false => Outcome::Success,
    };
    Ok(match from.get_kept().which()? {
        outcome::kept::Reply(reply) => {
            let mut metadata = Metadata::new();
            for entry in reply.get_metadata()? {
                let key = entry.get_key()?.to_str()?;
                let value = Bytes::copy_from_slice(entry.get_value()?);
                let inserted = metadata.insert(key, value);
                inserted.map_err(|error| capnp::Error::failed(error.to_string()))?;
            }
            let body = Bytes::copy_from_slice(reply.get_body()?);
            Recorded::Reply {
                outcome,
                metadata,
                body,
            }
        }
        outcome::kept::NotRetained(not_retained) => Recorded::NotRetained {
            outcome,
            digest: fingerprint(not_retained.get_digest()?)?,
            bytes: not_retained.get_bytes(),
        },
    })
}

fn fingerprint(bytes: &[u8]) -> Result<Fingerprint, capnp::Error> {
    let bytes = bytes.try_into();
    let bytes = bytes.map_err(|_| capnp::Error::failed("a hash of another length".to_owned()))?;
    Ok(Fingerprint::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![Just(Outcome::Success), Just(Outcome::ApplicationError)]
    }

    fn recorded() -> impl Strategy<Value = Recorded> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..50);
        let metadata = prop::collection::vec(("[a-z]{1,3}", bytes()), 0..4);
        prop_oneof![
            (outcome(), metadata, bytes()).prop_map(|(outcome, entries, body)| {
                let mut metadata = Metadata::new();
                for (key, value) in entries {
                    metadata.insert(key, value).expect("short");
                }
                let body = body.into();
                Recorded::Reply {
                    outcome,
                    metadata,
                    body,
                }
            }),
            (outcome(), any::<[u8; 32]>(), any::<u64>()).prop_map(|(outcome, digest, bytes)| {
                let digest = Fingerprint::from_bytes(digest);
                Recorded::NotRetained {
                    outcome,
                    digest,
                    bytes,
                }
            }),
        ]
    }

    fn record() -> impl Strategy<Value = Record> {
        let time = || any::<u64>().prop_map(Timestamp::from_milliseconds);
        let state = prop_oneof![
            time().prop_map(|until| State::InFlight { until }),
            Just(State::InDoubt),
            (recorded(), time()).prop_map(|(outcome, expires)| State::Done { outcome, expires }),
        ];
        let recovery = prop_oneof![
            Just(Recovery::InDoubt),
            Just(Recovery::Rerun),
            Just(Recovery::Atomic)
        ];
        let fingerprint = any::<[u8; 32]>().prop_map(Fingerprint::from_bytes);
        let epoch = any::<(u64, u64)>().prop_map(|(owner, number)| Epoch { owner, number });
        let record = (fingerprint, epoch, recovery, any::<bool>(), state);
        record.prop_map(
            |(fingerprint, epoch, recovery, begun_before, state)| Record {
                fingerprint,
                epoch,
                recovery,
                begun_before,
                state,
            },
        )
    }

    proptest! {
        #[test]
        fn a_record_reads_back(record in record()) {
            prop_assert_eq!(Record::from_bytes(record.to_bytes()).expect("whole"), record);
        }

        #[test]
        fn a_damaged_record_is_another_or_an_error(
            record in record(), at in any::<prop::sample::Index>(), bit in 0..8u8,
        ) {
            let mut bytes = record.to_bytes().to_vec();
            let index = at.index(bytes.len());
            bytes[index] ^= 1 << bit;
            let _ = Record::from_bytes(bytes.into());
        }
    }
}
