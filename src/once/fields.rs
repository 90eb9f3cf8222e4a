//! What a shared store gives back of a record, field by field: it may be damaged, or of another version.
//!
//! No connections: the fields of a row and of a script's answer come here as they are.

use bytes::Bytes;

use super::{Epoch, Fingerprint, Record, Recorded, State, StoreError, Timestamp};
use crate::schema::Recovery;

/// The fields of a record, as PostgreSQL has them in columns and Redis in a hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    pub fingerprint: &'a [u8],
    pub epoch: Epoch,
    pub recovery: u64,
    pub state: u64,
    /// When the claim ends, or when the outcome expires: milliseconds since 1970.
    pub until: u64,
    /// Of a record that is done.
    pub outcome: Option<&'a [u8]>,
}

/// Beside the number of a recovery: an earlier attempt was begun.
const BEGUN_BEFORE: u64 = 4;

/// The number of a record's recovery: 0 for none but [`Recovery::InDoubt`].
pub(super) fn recovery_number(recovery: Recovery, begun_before: bool) -> u8 {
    let number = match recovery {
        Recovery::InDoubt => 0,
        Recovery::Rerun => 1,
        Recovery::Atomic => 2,
    };
    match begun_before {
        true => number | BEGUN_BEFORE as u8,
        false => number,
    }
}

impl Fields<'_> {
    pub fn record(&self) -> Result<Record, StoreError> {
        let until = Timestamp::from_milliseconds(self.until);
        let fingerprint = self.fingerprint.try_into();
        Ok(Record {
            fingerprint: Fingerprint::from_bytes(
                fingerprint.map_err(|_| damaged("its fingerprint"))?,
            ),
            epoch: self.epoch,
            recovery: match self.recovery & !BEGUN_BEFORE {
                0 => Recovery::InDoubt,
                1 => Recovery::Rerun,
                2 => Recovery::Atomic,
                _ => return Err(damaged("its recovery")),
            },
            begun_before: self.recovery & BEGUN_BEFORE != 0,
            state: match self.state {
                0 => State::InFlight { until },
                1 => State::InDoubt,
                2 => State::Done {
                    outcome: Recorded::from_bytes(Bytes::copy_from_slice(
                        self.outcome.ok_or_else(|| damaged("its outcome"))?,
                    ))?,
                    expires: until,
                },
                _ => return Err(damaged("its state")),
            },
        })
    }
}

pub(super) fn damaged(what: impl std::fmt::Display) -> StoreError {
    StoreError::new(format!("a damaged record: {what}"))
}

/// What a script in Redis answers: a word, the time, and a record if there is one.
#[cfg(any(feature = "redis", fuzzing))]
pub(super) type Answer = Vec<Option<Vec<u8>>>;

/// The record in an answer, and the time.
#[cfg(any(feature = "redis", fuzzing))]
pub(super) fn read_answer(answer: &Answer) -> Result<(Option<Record>, Timestamp), StoreError> {
    let field = |index: usize| answer.get(index).and_then(Option::as_deref);
    let number = |index: usize| -> Result<u64, StoreError> {
        let text = field(index).and_then(|text| std::str::from_utf8(text).ok());
        let number = text.and_then(|text| text.parse().ok());
        number.ok_or_else(|| damaged(format_args!("field {index}")))
    };
    let now = Timestamp::from_milliseconds(number(1)?);
    let Some(fingerprint) = field(2) else {
        return Ok((None, now));
    };
    let epoch = field(3).and_then(|epoch| <[u8; 16]>::try_from(epoch).ok());
    let epoch = u128::from_be_bytes(epoch.ok_or_else(|| damaged("its epoch"))?);
    let fields = Fields {
        fingerprint,
        epoch: Epoch {
            owner: (epoch >> 64) as u64,
            number: epoch as u64,
        },
        recovery: number(4)?,
        state: number(5)?,
        until: number(6)?,
        outcome: field(7),
    };
    fields.record().map(|record| (Some(record), now))
}

/// What an answer says beside a record: up to when keys of the scope may have been forgotten, and what was forgotten now.
#[cfg(any(feature = "redis", fuzzing))]
pub(super) struct Forgotten {
    pub until: Timestamp,
    pub count: usize,
    pub retained: std::time::Duration,
    pub scope: Vec<u8>,
}

#[cfg(any(feature = "redis", fuzzing))]
pub(super) fn read_forgotten(answer: &Answer) -> Forgotten {
    let field = |index: usize| answer.get(index).and_then(Option::as_deref);
    let number = |index: usize| -> u64 {
        let text = field(index).and_then(|text| std::str::from_utf8(text).ok());
        text.and_then(|text| text.parse().ok()).unwrap_or_default()
    };
    Forgotten {
        until: Timestamp::from_milliseconds(number(8)),
        count: usize::try_from(number(9)).unwrap_or_default(),
        retained: std::time::Duration::from_millis(number(10)),
        scope: field(11).unwrap_or_default().to_vec(),
    }
}

/// For fuzzing: any bytes as an outcome, and as an answer: fields after each other, each behind its length, 255 for one that is not there.
#[cfg(fuzzing)]
pub(super) fn read_any(bytes: &[u8]) {
    if let Ok(outcome) = Recorded::from_bytes(Bytes::copy_from_slice(bytes)) {
        let again = Recorded::from_bytes(outcome.to_bytes());
        assert_eq!(again.ok(), Some(outcome));
    }
    let mut answer = Answer::new();
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first() {
        if *length == u8::MAX {
            answer.push(None);
            rest = after;
        } else {
            let (field, after) = after.split_at(after.len().min(usize::from(*length)));
            answer.push(Some(field.to_vec()));
            rest = after;
        }
    }
    let _ = read_forgotten(&answer);
    if let Ok((Some(record), _)) = read_answer(&answer) {
        let again = Record::from_bytes(record.to_bytes());
        assert_eq!(again.ok(), Some(record));
    }
}

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::*;

    fn answer(fields: [Option<&[u8]>; 7]) -> Answer {
        fields.map(|field| field.map(<[u8]>::to_vec)).into()
    }

    #[test]
    fn an_answer_is_read_whole_or_is_damaged() {
        let (fingerprint, epoch) = ([7; 32], 3u128.to_be_bytes());
        let right = [
            Some(&b"seen"[..]),
            Some(b"5"),
            Some(&fingerprint),
            Some(&epoch),
            Some(b"1"),
            Some(b"0"),
            Some(b"9"),
        ];
        let (record, now) = read_answer(&answer(right)).unwrap();
        assert_eq!(now, Timestamp::from_milliseconds(5));
        let until = Timestamp::from_milliseconds(9);
        let expected = Record {
            fingerprint: Fingerprint::from_bytes(fingerprint),
            epoch: Epoch {
                owner: 0,
                number: 3,
            },
            recovery: Recovery::Rerun,
            begun_before: false,
            state: State::InFlight { until },
        };
        assert_eq!(record, Some(expected));
        for (index, wrong) in [
            (1, Some(&b"-1"[..])),
            (1, None),
            (2, Some(&fingerprint[1..])),
            (3, None),
            (3, Some(&epoch[1..])),
            (4, Some(b"3")),
            (5, Some(b"3")),
            // Done, and without an outcome.
            (5, Some(b"2")),
            (6, Some(b"\xff")),
            (6, None),
        ] {
            let mut fields = right;
            fields[index] = wrong;
            assert!(read_answer(&answer(fields)).is_err(), "{index}: {wrong:?}");
        }
    }
}
