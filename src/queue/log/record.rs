//! Records of the log, to the byte: docs/queue-log.md. Bytes in, values out.

use std::time::Duration;

use bytes::Bytes;
use twox_hash::XxHash3_64;
use uuid::Uuid;

use crate::queue::machine::{
    Arrival, Digest, Fact, Finish, KnownProducer, Moment, Restored, Standing,
};
use crate::queue::{Attempts, FailureKind, Identity, JobId, JobNumber, NewJob, Priority, Token};

/// Before each record: its length, its kind, its checksum.
pub(super) const HEADER: usize = 16;
/// Records start at multiples of this.
pub(super) const ALIGN: usize = 8;

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    /// The first of each segment.
    Begun(Begun),
    /// A job came in, or was moved here from an old segment.
    Pushed {
        now: Moment,
        number: JobNumber,
        open: u16,
        arrival: Arrival,
        job: NewJob,
    },
    Fact(Moment, Fact),
    /// A job ID is known although its job is gone from the log.
    Seen {
        id: Digest,
        number: JobNumber,
        finished: Moment,
    },
    /// What one epoch of a producer has pushed.
    Producer(KnownProducer),
    /// The wall clock at a moment of the queue.
    Mark {
        now: Moment,
        wall: u64,
    },
    /// Everything before this byte of the segment was safe when this was written.
    Safe {
        offset: u64,
    },
    /// The last of a segment that others follow. What is no record from `safe` on was torn, and never acknowledged.
    Sealed {
        safe: u64,
    },
}

/// What a segment's first record says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Begun {
    pub now: Moment,
    /// Milliseconds since 1970.
    pub wall: u64,
    /// How often the queue has been opened.
    pub opening: u32,
    /// The next job's number.
    pub next: u64,
    pub groups: Vec<String>,
}

const BEGUN: u32 = 1;
const PUSHED: u32 = 2;
const LEASED: u32 = 3;
const FINISHED: u32 = 4;
const RETURNED: u32 = 5;
const BURIED: u32 = 6;
const REVIVED: u32 = 7;
const RESTORED: u32 = 8;
const SEEN: u32 = 9;
const PRODUCER: u32 = 10;
const MARK: u32 = 11;
const SEALED: u32 = 12;
const SAFE: u32 = 13;

/// Where a record is: part of its checksum, so that one which is somewhere else is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub salt: u64,
    pub offset: u64,
}

impl Position {
    fn checksum(self, length: u32, kind: u32, content: &[u8]) -> u64 {
        let framing = u64::from(length) | u64::from(kind) << 32;
        let seed = self.salt ^ self.offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ framing;
        XxHash3_64::oneshot_with_seed(seed, content)
    }
}

/// Appends a record; `into` is what follows the position that `at` gives, so far.
pub(super) fn write(into: &mut Vec<u8>, at: Position, record: &Record) {
    let start = into.len();
    into.extend([0; HEADER]);
    let kind = content(into, record);
    seal(into, start, at, kind);
}

/// The same for a push, without a copy of the job.
pub(super) fn write_push(
    into: &mut Vec<u8>,
    at: Position,
    now: Moment,
    number: JobNumber,
    open: u16,
    arrival: &Arrival,
    job: &NewJob,
) {
    let start = into.len();
    into.extend([0; HEADER]);
    push_content(into, now, number, open, arrival, job);
    seal(into, start, at, PUSHED);
}

fn seal(into: &mut Vec<u8>, start: usize, at: Position, kind: u32) {
    let length = (into.len() - start - HEADER) as u32;
    let checksum = at.checksum(length, kind, &into[start + HEADER..]);
    into[start..start + 4].copy_from_slice(&length.to_le_bytes());
    into[start + 4..start + 8].copy_from_slice(&kind.to_le_bytes());
    into[start + 8..start + 16].copy_from_slice(&checksum.to_le_bytes());
    into.resize(start + (into.len() - start).next_multiple_of(ALIGN), 0);
}

/// The record that `bytes` begin with, and the bytes that it takes; `None` where there is none, or it is damaged.
pub(super) fn read(bytes: &[u8], at: Position) -> Option<(Record, usize)> {
    let (length, kind, content) = check(bytes, at)?;
    Some((
        parse(kind, content)?,
        (HEADER + length).next_multiple_of(ALIGN),
    ))
}

/// The length, the kind and the content of a record whose checksum is right.
fn check(bytes: &[u8], at: Position) -> Option<(usize, u32, &[u8])> {
    let mut header = Reader(bytes.get(..HEADER)?);
    let (length, kind, checksum) = (header.u32()?, header.u32()?, header.u64()?);
    let content = bytes[HEADER..].get(..length as usize)?;
    let is_right = kind != 0 && at.checksum(length, kind, content) == checksum;
    is_right.then_some((length as usize, kind, content))
}

/// How many bytes a record takes that begins like this; to know how many to read.
pub(super) fn bytes_of(header: &[u8]) -> Option<usize> {
    let length = Reader(header).u32()? as usize;
    (length > 0).then(|| (HEADER + length).next_multiple_of(ALIGN))
}

fn content(into: &mut Vec<u8>, record: &Record) -> u32 {
    match record {
        Record::Begun(begun) => {
            put(into, begun.now.0);
            put(into, begun.wall);
            put(into, begun.next);
            into.extend(begun.opening.to_le_bytes());
            into.push(begun.groups.len() as u8);
            for group in &begun.groups {
                into.push(group.len() as u8);
                into.extend(group.as_bytes());
            }
            BEGUN
        }
        Record::Pushed {
            now,
            number,
            open,
            arrival,
            job,
        } => {
            push_content(into, *now, *number, *open, arrival, job);
            PUSHED
        }
        Record::Fact(now, fact) => fact_content(into, *now, fact),
        Record::Seen {
            id,
            number,
            finished,
        } => {
            into.extend(id.0.to_le_bytes());
            put(into, number.0);
            put(into, finished.0);
            SEEN
        }
        Record::Producer(producer) => {
            into.extend(producer.id.as_bytes());
            put(into, producer.epoch);
            put(into, producer.heard.0);
            for (start, end) in &producer.runs {
                put(into, *start);
                put(into, *end);
            }
            PRODUCER
        }
        Record::Mark { now, wall } => {
            put(into, now.0);
            put(into, *wall);
            MARK
        }
        Record::Sealed { safe } => {
            put(into, *safe);
            SEALED
        }
        Record::Safe { offset } => {
            put(into, *offset);
            SAFE
        }
    }
}

fn push_content(
    into: &mut Vec<u8>,
    now: Moment,
    number: JobNumber,
    open: u16,
    arrival: &Arrival,
    job: &NewJob,
) {
    put(into, now.0);
    put(into, number.0);
    into.extend(job.identity.producer.as_bytes());
    put(into, job.identity.epoch);
    put(into, job.identity.sequence);
    put(into, arrival.due.0);
    put(into, arrival.expires.map_or(u64::MAX, |expires| expires.0));
    into.extend(open.to_le_bytes());
    into.push(job.priority as u8);
    let id = job.id.as_ref().map_or(&[][..], JobId::as_bytes);
    into.push(id.len() as u8);
    let key = job.key.as_deref();
    let key_bytes = key.map_or(u32::MAX, |key| key.len() as u32);
    into.extend(key_bytes.to_le_bytes());
    into.extend(id);
    into.extend(key.unwrap_or_default());
    into.extend(&job.body[..]);
}

fn fact_content(into: &mut Vec<u8>, now: Moment, fact: &Fact) -> u32 {
    let mut of = |number: &JobNumber, group: &usize| {
        put(into, now.0);
        put(into, number.0);
        into.push(*group as u8);
    };
    match fact {
        // A push is a record of its own, with the job.
        Fact::Pushed { .. } => 0,
        Fact::Leased {
            group,
            number,
            token,
            session,
        } => {
            of(number, group);
            put(into, token.0);
            put(into, *session);
            LEASED
        }
        Fact::Finished { group, number, how } => {
            of(number, group);
            into.push(*how as u8);
            FINISHED
        }
        Fact::Returned {
            group,
            number,
            due,
            kind,
            cause,
        } => {
            of(number, group);
            put(into, due.0);
            into.push(*kind as u8);
            into.extend(cause.as_bytes());
            RETURNED
        }
        Fact::Buried {
            group,
            number,
            kind,
            cause,
        } => {
            of(number, group);
            into.push(*kind as u8);
            into.extend(cause.as_bytes());
            BURIED
        }
        Fact::Revived { group, number } => {
            of(number, group);
            REVIVED
        }
        Fact::Restored {
            group,
            number,
            restored,
        } => {
            of(number, group);
            let (standing, a, b) = match restored.standing {
                Standing::Ready => (0, 0, 0),
                Standing::Delayed(due) => (1, due.0, 0),
                Standing::Leased(token, session) => (2, token.0, session),
                Standing::Dead => (3, 0, 0),
            };
            into.push(standing);
            into.push(u8::from(restored.is_head));
            put(into, a);
            put(into, b);
            let Attempts {
                refused,
                expired,
                lost,
                postponed,
            } = restored.attempts;
            for count in [refused, expired, lost, postponed] {
                into.extend(count.to_le_bytes());
            }
            for (kind, cause, at) in &restored.failures {
                put(into, at.0);
                into.push(*kind as u8);
                into.extend((cause.len() as u32).to_le_bytes());
                into.extend(cause.as_bytes());
            }
            RESTORED
        }
    }
}

fn put(into: &mut Vec<u8>, number: u64) {
    into.extend(number.to_le_bytes());
}

fn parse(kind: u32, content: &[u8]) -> Option<Record> {
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
            Some(Record::Begun(Begun {
                now,
                wall,
                opening,
                next,
                groups,
            }))
        }
        PUSHED => parse_push(reader),
        LEASED..=RESTORED => parse_fact(kind, reader),
        SEEN => Some(Record::Seen {
            id: Digest(u128::from_le_bytes(reader.array()?)),
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
        _ => None,
    }
}

fn parse_push(mut reader: Reader<'_>) -> Option<Record> {
    let (now, number) = (reader.moment()?, JobNumber(reader.u64()?));
    let identity = Identity {
        producer: Uuid::from_bytes(reader.array()?),
        epoch: reader.u64()?,
        sequence: reader.u64()?,
    };
    let due = reader.moment()?;
    let expires = Some(reader.moment()?).filter(|expires| expires.0 != u64::MAX);
    let open = u16::from_le_bytes(reader.array()?);
    let priority = match reader.u8()? {
        0 => Priority::High,
        2 => Priority::Low,
        _ => Priority::Normal,
    };
    let id_bytes = reader.u8()? as usize;
    let key_bytes = reader.u32()?;
    let id = match id_bytes {
        0 => None,
        bytes => JobId::new(Bytes::copy_from_slice(reader.take(bytes)?)).ok(),
    };
    let key = match key_bytes {
        u32::MAX => None,
        bytes => Some(Bytes::copy_from_slice(reader.take(bytes as usize)?)),
    };
    let job = NewJob {
        identity,
        id,
        key,
        priority,
        // What is left of them is in the arrival.
        delay: Duration::ZERO,
        expires_after: None,
        body: Bytes::copy_from_slice(reader.0),
    };
    let arrival = Arrival {
        identity,
        id: job.id.as_ref().map(|id| Digest::of(id.as_bytes())),
        key: job.key.as_ref().map(|key| Digest::of(key)),
        priority,
        due,
        expires,
        bytes: u32::try_from(job.bytes()).ok()?,
    };
    Some(Record::Pushed {
        now,
        number,
        open,
        arrival,
        job,
    })
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
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn moment(&mut self) -> Option<Moment> {
        self.u64().map(Moment)
    }

    fn failure_kind(&mut self) -> Option<FailureKind> {
        Some(match self.u8()? {
            0 => FailureKind::Refused,
            1 => FailureKind::Expired,
            2 => FailureKind::Lost,
            3 => FailureKind::Postponed,
            4 => FailureKind::Released,
            _ => return None,
        })
    }

    fn rest_as_text(&mut self) -> String {
        String::from_utf8_lossy(self.0).into_owned()
    }
}

/// For fuzzing: any bytes as a record, and as the content of each kind of it; what is read is written and read again.
#[cfg(fuzzing)]
pub(super) fn read_any(bytes: &[u8]) {
    let at = Position {
        salt: 7,
        offset: 64,
    };
    let _ = (read(bytes, at), bytes_of(bytes));
    // The checksum keeps nearly all of it out.
    let Some((kind, content)) = bytes.split_first() else {
        return;
    };
    if let Some(record) = parse(u32::from(*kind), content) {
        let mut again = Vec::new();
        write(&mut again, at, &record);
        let taken = bytes_of(&again);
        assert_eq!(read(&again, at), taken.map(|bytes| (record, bytes)));
    }
}
