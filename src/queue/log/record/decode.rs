//! The contents of records, from bytes that may be anything.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::{
    BEGUN, BURIED, Begun, FINISHED, HOLDS, LEASED, MARK, PRODUCER, PUSH_FIXED, PUSHED, Pushed,
    RESCHEDULED, RESTORED, RETURNED, REVIVED, Record, SAFE, SEALED, SEEN,
};
use crate::queue::machine::{
    Arrival, Digest, Fact, Finish, KnownProducer, Moment, Restored, Standing,
};
use crate::queue::{
    Attempts, FailureKind, Identity, JobId, JobNumber, NewJob, Priority, QueueType, Token,
};

pub(super) fn parse(kind: u32, content: &[u8]) -> Option<Record> {
    let mut reader = Reader(content);
    match kind {
        BEGUN => {
            let (now, wall, next) = (reader.moment()?, reader.u64()?, reader.u64()?);
            let opening = reader.u32()?;
            let mut groups = Vec::new();
            for _ in 0..reader.u8()? {
                let bytes = reader.u8()? as usize;
                groups.push(String::from_utf8(reader.take(bytes)?.to_vec()).ok()?);
            }
            let holds = match reader.0.is_empty() {
                true => None,
                false => Some(reader.queue_type()?),
            };
            Some(Record::Begun(Begun {
                now,
                wall,
                opening,
                next,
                groups,
                holds,
            }))
        }
        PUSHED => push(content).map(|(pushed, _)| Record::Pushed(pushed)),
        LEASED..=RESTORED | RESCHEDULED => parse_fact(kind, reader),
        SEEN => Some(Record::Seen {
            id: reader.digest()?,
            number: JobNumber(reader.u64()?),
            finished: reader.moment()?,
        }),
        PRODUCER => {
            let producer = Uuid::from_bytes(reader.array()?);
            let (epoch, heard) = (reader.u64()?, reader.moment()?);
            let mut runs = Vec::new();
            while !reader.0.is_empty() {
                runs.push((reader.u64()?, reader.u64()?));
            }
            Some(Record::Producer(KnownProducer {
                id: producer,
                epoch,
                heard,
                runs,
            }))
        }
        MARK => Some(Record::Mark {
            now: reader.moment()?,
            wall: reader.u64()?,
        }),
        SEALED => Some(Record::Sealed {
            safe: reader.u64()?,
        }),
        SAFE => Some(Record::Safe {
            offset: reader.u64()?,
        }),
        HOLDS => Some(Record::Holds(reader.queue_type()?)),
        _ => None,
    }
}

/// What is said of a job, and the job.
pub(super) fn push(content: &[u8]) -> Option<(Pushed, Parts<'_>)> {
    let mut reader = Reader(content);
    let (mut pushed, id_bytes, key_bytes) = reader.push()?;
    let id = match id_bytes {
        0 => None,
        bytes => Some(reader.take(usize::from(bytes))?),
    };
    let key = match key_bytes {
        u32::MAX => None,
        bytes => Some(reader.take(bytes as usize)?),
    };
    let body = reader.0;
    pushed.arrival.id = id.map(Digest::of);
    pushed.arrival.key = key.map(Digest::of);
    pushed.arrival.bytes = u32::try_from(content.len() - PUSH_FIXED).ok()?;
    Some((pushed, Parts { id, key, body }))
}

/// What is said of a job, as an index has it.
pub(super) fn brief_push(content: &[u8]) -> Option<Pushed> {
    let mut reader = Reader(content);
    let (mut pushed, id_bytes, key_bytes) = reader.push()?;
    pushed.arrival.bytes = reader.u32()?;
    let (id, key) = (reader.digest()?, reader.digest()?);
    pushed.arrival.id = (id_bytes != 0).then_some(id);
    pushed.arrival.key = (key_bytes != u32::MAX).then_some(key);
    Some(pushed)
}

/// What a job is, where it was read.
pub(super) struct Parts<'a> {
    id: Option<&'a [u8]>,
    key: Option<&'a [u8]>,
    body: &'a [u8],
}

impl Parts<'_> {
    pub fn job(&self, pushed: &Pushed) -> NewJob {
        NewJob {
            identity: pushed.arrival.identity,
            id: self
                .id
                .and_then(|id| JobId::new(Bytes::copy_from_slice(id)).ok()),
            key: self.key.map(Bytes::copy_from_slice),
            priority: pushed.arrival.priority,
            // What is left of them is in the arrival.
            delay: Duration::ZERO,
            expires_after: None,
            body: Bytes::copy_from_slice(self.body),
        }
    }
}

fn parse_fact(kind: u32, mut reader: Reader<'_>) -> Option<Record> {
    let (now, number) = (reader.moment()?, JobNumber(reader.u64()?));
    let group = usize::from(reader.u8()?);
    let fact = match kind {
        LEASED => Fact::Leased {
            group,
            number,
            token: Token(reader.u64()?),
            session: reader.u64()?,
        },
        FINISHED => Fact::Finished {
            group,
            number,
            how: match reader.u8()? {
                0 => Finish::Done,
                1 => Finish::Expired,
                2 => Finish::Deleted,
                3 => Finish::Damaged,
                4 => Finish::Cancelled,
                _ => return None,
            },
        },
        RETURNED => Fact::Returned {
            group,
            number,
            due: reader.moment()?,
            kind: reader.failure_kind()?,
            cause: reader.rest_as_text(),
        },
        BURIED => Fact::Buried {
            group,
            number,
            kind: reader.failure_kind()?,
            cause: reader.rest_as_text(),
        },
        REVIVED => Fact::Revived { group, number },
        RESCHEDULED => Fact::Rescheduled {
            group,
            number,
            due: reader.moment()?,
        },
        RESTORED => {
            let (standing, is_head) = (reader.u8()?, reader.u8()? != 0);
            let (a, b) = (reader.u64()?, reader.u64()?);
            let standing = match standing {
                0 => Standing::Ready,
                1 => Standing::Delayed(Moment(a)),
                2 => Standing::Leased(Token(a), b),
                3 => Standing::Dead,
                _ => return None,
            };
            let attempts = Attempts {
                refused: reader.u32()?,
                expired: reader.u32()?,
                lost: reader.u32()?,
                postponed: reader.u32()?,
            };
            let mut failures = Vec::new();
            while !reader.0.is_empty() {
                let (at, kind) = (reader.moment()?, reader.failure_kind()?);
                let bytes = reader.u32()? as usize;
                let cause = String::from_utf8_lossy(reader.take(bytes)?).into_owned();
                failures.push((kind, cause, at));
            }
            Fact::Restored {
                group,
                number,
                restored: Box::new(Restored {
                    standing,
                    is_head,
                    attempts,
                    failures,
                }),
            }
        }
        _ => return None,
    };
    Some(Record::Fact(now, fact))
}

/// What is left to be read.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn moment(&mut self) -> Option<Moment> {
        self.u64().map(Moment)
    }

    pub fn digest(&mut self) -> Option<Digest> {
        self.array().map(|bytes| Digest(u128::from_le_bytes(bytes)))
    }

    /// The part of a push that is always as long, without the digests and bytes of its job; then the length of its ID,
    /// and that of its key.
    fn push(&mut self) -> Option<(Pushed, u8, u32)> {
        let (now, number) = (self.moment()?, JobNumber(self.u64()?));
        let identity = Identity {
            producer: Uuid::from_bytes(self.array()?),
            epoch: self.u64()?,
            sequence: self.u64()?,
        };
        let due = self.moment()?;
        let expires = Some(self.moment()?).filter(|expires| expires.0 != u64::MAX);
        let open = u16::from_le_bytes(self.array()?);
        let priority = match self.u8()? {
            0 => Priority::High,
            2 => Priority::Low,
            _ => Priority::Normal,
        };
        let arrival = Arrival {
            identity,
            id: None,
            key: None,
            priority,
            due,
            expires,
            bytes: 0,
        };
        let pushed = Pushed {
            now,
            number,
            open,
            arrival,
        };
        Some((pushed, self.u8()?, self.u32()?))
    }

    fn queue_type(&mut self) -> Option<QueueType> {
        let type_id = self.u64()?;
        let mut name = || {
            let bytes = u16::from_le_bytes(self.array()?);
            let name = self.take(usize::from(bytes))?;
            Some(String::from_utf8_lossy(name).into_owned())
        };
        Some(QueueType {
            name: name()?,
            type_name: name()?,
            type_id,
        })
    }

    pub fn failure_kind(&mut self) -> Option<FailureKind> {
        Some(match self.u8()? {
            0 => FailureKind::Refused,
            1 => FailureKind::Expired,
            2 => FailureKind::Lost,
            3 => FailureKind::Postponed,
            4 => FailureKind::Released,
            _ => return None,
        })
    }

    pub fn rest_as_text(&mut self) -> String {
        String::from_utf8_lossy(self.0).into_owned()
    }
}
