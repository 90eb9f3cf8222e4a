//! Records of the log, to the byte: docs/queue-log.md. Bytes in, values out.
//!
//! Here is what records there are, and what all of them begin with; their contents are in `encode` and `decode`.

mod decode;
mod encode;

use decode::Reader;
use twox_hash::XxHash3_64;

use super::SegmentKey;
use crate::queue::machine::{Arrival, Digest, Fact, KnownProducer, Moment};
use crate::queue::{JobNumber, NewJob, QueueType};

/// Before each record: its length, its kind, its checksum.
pub(super) const HEADER: usize = 16;
/// Records start at multiples of this.
pub(super) const ALIGN: usize = 8;

/// Bytes of the content of a push, but for its ID, key and body.
const PUSH_FIXED: usize = 72;

/// Bytes of the record that ends a segment.
pub(super) const SEALED_BYTES: u64 = 24;

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    /// The first of each segment.
    Begun(Begun),
    /// A job came in, or was moved here from an old segment. The job itself: [`write_push`], [`read_push`].
    Pushed(Pushed),
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
    /// Which queue the log holds.
    Holds(QueueType),
    /// The last of a segment that others follow. What is no record from `safe` on was torn, and never acknowledged.
    Sealed {
        safe: u64,
    },
}

/// What is said of a job that came in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pushed {
    pub now: Moment,
    pub number: JobNumber,
    /// The groups that have it to do: a bit for each.
    pub open: u16,
    pub arrival: Arrival,
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
    /// Which queue the log holds, where that is known.
    pub holds: Option<QueueType>,
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
pub(super) const SEALED: u32 = 12;
const SAFE: u32 = 13;
const RESCHEDULED: u32 = 14;
const HOLDS: u32 = 15;

/// Where a record is: part of its checksum, so that one which is somewhere else is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub key: SegmentKey,
    pub offset: u64,
}

impl Position {
    fn seed(self, length: u32, kind: u32) -> u64 {
        let framing = u64::from(length) | u64::from(kind) << 32;
        self.key.salt ^ self.offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ framing
    }

    fn checksum(self, length: u32, kind: u32, content: &[u8]) -> u64 {
        XxHash3_64::oneshot_with_seed(self.seed(length, kind), content)
    }

    /// What stands above the kind: with it, what only looks like the beginning of a record is told without reading all
    /// that it claims to be.
    fn framing_check(self, length: u32, kind: u32) -> u32 {
        match self.key.is_checked {
            true => (XxHash3_64::oneshot_with_seed(self.seed(length, kind), &[]) >> 40) as u32,
            false => 0,
        }
    }
}

/// Length and kind of the record that may begin with these bytes.
fn framing(header: &[u8], at: Position) -> Option<(u32, u32)> {
    let mut header = Reader(header);
    let (length, word) = (header.u32()?, header.u32()?);
    let (kind, check) = (word & 0xff, word >> 8);
    let is_right = kind != 0 && length > 0 && check == at.framing_check(length, kind);
    is_right.then_some((length, kind))
}

/// Appends a record, but for a push; `into` is what follows the position that `at` gives, so far.
pub(super) fn write(into: &mut Vec<u8>, at: Position, record: &Record) {
    let start = into.len();
    into.extend([0; HEADER]);
    let kind = encode::content(into, record);
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
    into.reserve(HEADER + PUSH_FIXED + ALIGN + job.bytes());
    into.extend([0; HEADER]);
    encode::push_content(into, now, number, open, arrival, job);
    seal(into, start, at, PUSHED);
}

fn seal(into: &mut Vec<u8>, start: usize, at: Position, kind: u32) {
    let length = (into.len() - start - HEADER) as u32;
    let checksum = at.checksum(length, kind, &into[start + HEADER..]);
    into[start..start + 4].copy_from_slice(&length.to_le_bytes());
    let word = kind | at.framing_check(length, kind) << 8;
    into[start + 4..start + 8].copy_from_slice(&word.to_le_bytes());
    into[start + 8..start + 16].copy_from_slice(&checksum.to_le_bytes());
    into.resize(start + (into.len() - start).next_multiple_of(ALIGN), 0);
}

/// The record that `bytes` begin with, and the bytes that it takes; `None` where there is none, or it is damaged.
pub(super) fn read(bytes: &[u8], at: Position) -> Option<(Record, usize)> {
    let (length, kind, content) = check(bytes, at)?;
    Some((
        decode::parse(kind, content)?,
        (HEADER + length).next_multiple_of(ALIGN),
    ))
}

/// The same for a push, with its job.
pub(super) fn read_push(bytes: &[u8], at: Position) -> Option<(Pushed, NewJob)> {
    let (_, kind, content) = check(bytes, at)?;
    let (pushed, rest) = decode::push((kind == PUSHED).then_some(content)?)?;
    let job = rest.job(&pushed);
    Some((pushed, job))
}

/// What an index keeps of a record: its kind, and its content; of a push, without the job.
pub(super) struct Brief<'a> {
    pub kind: u32,
    pub content: std::borrow::Cow<'a, [u8]>,
}

impl<'a> Brief<'a> {
    /// Of the record that `bytes` begin with, and the bytes that it takes; `None` where there is none, or it is damaged.
    pub fn of(bytes: &'a [u8], at: Position) -> Option<(Self, usize)> {
        let (length, kind, content) = check(bytes, at)?;
        let content = match kind {
            PUSHED => encode::brief_push(content, &decode::push(content)?.0).into(),
            BEGUN..=HOLDS => content.into(),
            _ => return None,
        };
        let taken = (HEADER + length).next_multiple_of(ALIGN);
        Some((Self { kind, content }, taken))
    }
}

/// The record that was kept like this, and the bytes that it takes in its segment.
pub(super) fn from_brief(kind: u32, content: &[u8]) -> Option<(Record, usize)> {
    let (record, length) = match kind {
        PUSHED => {
            let pushed = decode::brief_push(content)?;
            let length = PUSH_FIXED + pushed.arrival.bytes as usize;
            (Record::Pushed(pushed), length)
        }
        _ => (decode::parse(kind, content)?, content.len()),
    };
    Some((record, (HEADER + length).next_multiple_of(ALIGN)))
}

/// The length, the kind and the content of a record whose checksum is right.
fn check(bytes: &[u8], at: Position) -> Option<(usize, u32, &[u8])> {
    let (length, kind) = framing(bytes, at)?;
    let checksum = Reader(bytes.get(8..HEADER)?).u64()?;
    let content = bytes[HEADER..].get(..length as usize)?;
    let is_right = at.checksum(length, kind, content) == checksum;
    is_right.then_some((length as usize, kind, content))
}

/// How many bytes the record of a push takes.
pub(super) fn bytes_of_push(job_bytes: usize) -> usize {
    (HEADER + PUSH_FIXED + job_bytes).next_multiple_of(ALIGN)
}

/// How many bytes a record takes that begins like this; to know how many to read.
pub(super) fn bytes_of(header: &[u8], at: Position) -> Option<usize> {
    let (length, _) = framing(header, at)?;
    Some((HEADER + length as usize).next_multiple_of(ALIGN))
}

/// For fuzzing: any bytes as a record, and as the content of each kind of it; what is read is written and read again.
#[cfg(fuzzing)]
pub(super) fn read_any(bytes: &[u8]) {
    let key = SegmentKey {
        salt: 7,
        is_checked: true,
    };
    let at = Position { key, offset: 64 };
    let _ = (read(bytes, at), bytes_of(bytes, at));
    // The checksum keeps nearly all of it out.
    let Some((kind, content)) = bytes.split_first() else {
        return;
    };
    let kind = u32::from(*kind);
    let _ = from_brief(kind, content);
    let mut again = Vec::new();
    match decode::parse(kind, content) {
        Some(Record::Pushed(_)) => {
            let Some((pushed, parts)) = decode::push(content) else {
                return;
            };
            let job = parts.job(&pushed);
            // No queue has written an ID that is none.
            if job.id.is_some() == pushed.arrival.id.is_some() {
                let (now, number, open) = (pushed.now, pushed.number, pushed.open);
                write_push(&mut again, at, now, number, open, &pushed.arrival, &job);
                assert_eq!(read_push(&again, at), Some((pushed, job)));
            }
        }
        Some(record) => {
            write(&mut again, at, &record);
            let taken = bytes_of(&again, at);
            assert_eq!(read(&again, at), taken.map(|bytes| (record, bytes)));
        }
        None => {}
    }
}
