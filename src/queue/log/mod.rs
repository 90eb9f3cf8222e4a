//! The log of a queue on disk: preallocated segments of checked records, group commit, recovery.
//!
//! `record` is the format, `tail` what is appended and what may be thrown away, `batch` what is written together, `flush`
//! writes and syncs, `open` reads all of it back: through a `window` of a segment, or from its `index`. `storage` is
//! the seam to the file system. The format to the byte is in docs/queue-log.md. Nothing here decides anything about
//! jobs: that is the machine's.
//!
//! A segment is thrown away when it is the oldest and no job in it is live: all facts about a job are
//! in its own segment or a later one. A few jobs that keep an old segment alive are moved to the tail.

mod batch;
mod flush;
mod index;
mod open;
mod record;
mod storage;
mod tail;
mod window;

pub(crate) use batch::Batch;
pub(crate) use flush::{Flusher, SafeEnd};
pub use open::{Damage, Recovery};
pub(crate) use open::{Opened, open, set_aside_job};
pub use storage::{Directory, Storage};
pub(crate) use tail::{StoredJob, Tail, Times};

/// The version of the format, in the header of each segment: higher whenever a program that knows only this one would take
/// what is new for damage. Older ones are read as well; version 0 has no check of a record's length and kind.
const VERSION: u32 = 1;
/// Bytes of the header of a segment.
const SEGMENT_HEADER: u64 = 64;
/// What claims to be longer is no record.
const RECORD_BYTES_MAX: usize = 256 << 20;
/// Body, ID and key of the largest job that a record can hold.
pub(crate) const JOB_BYTES_MAX: usize = RECORD_BYTES_MAX - (4 << 10);
const MAGIC: [u8; 8] = *b"BOWLINEQ";

/// Where a job's record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// From 1, so that a place that is not there takes no more memory than one that is.
    segment: std::num::NonZeroU32,
    /// In eights of bytes.
    words: u32,
}

const _: () = assert!(size_of::<Option<Place>>() == 8);

impl Place {
    pub fn segment(self) -> u32 {
        self.segment.get()
    }

    fn offset(self) -> u64 {
        u64::from(self.words) * record::ALIGN as u64
    }
}

/// Length of the first segment of each opening …
const FIRST_SEGMENT_BYTES: u64 = 256 << 10;
/// … and how many times the one before each of the next is, up to the longest.
const SEGMENT_GROWTH: u64 = 4;

/// The length of the segment behind one of this length, or of the first: so short that making it delays no opening.
fn next_segment_bytes(before: u64, max: u64) -> u64 {
    match before {
        0 => FIRST_SEGMENT_BYTES.min(max),
        before => (before * SEGMENT_GROWTH).min(max),
    }
}

fn segment_name(segment: u32) -> String {
    format!("{segment:010}.log")
}

fn segment_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 10).then(|| digits.parse().ok()).flatten()
}

/// The header of a segment: twice the same 32 bytes.
fn segment_header(segment: u32, version: u32, salt: u64) -> [u8; SEGMENT_HEADER as usize] {
    let mut half = [0; 32];
    half[..8].copy_from_slice(&MAGIC);
    half[8..12].copy_from_slice(&segment.to_le_bytes());
    half[12..16].copy_from_slice(&version.to_le_bytes());
    half[16..24].copy_from_slice(&salt.to_le_bytes());
    let checksum = twox_hash::XxHash3_64::oneshot(&half[..24]);
    half[24..].copy_from_slice(&checksum.to_le_bytes());
    let mut header = [0; SEGMENT_HEADER as usize];
    header[..32].copy_from_slice(&half);
    header[32..].copy_from_slice(&half);
    header
}

/// What the records of a segment are checked with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentKey {
    salt: u64,
    /// Whether length and kind of each record have a check of their own.
    is_checked: bool,
}

/// The key of the segment of a known version that begins with these bytes, where one half of them is whole.
fn key_of(header: &[u8], segment: u32) -> Option<SegmentKey> {
    let (version, salt) = version_and_salt_of(header, segment)?;
    let is_checked = version > 0;
    (version <= VERSION).then_some(SegmentKey { salt, is_checked })
}

/// Version and salt, of any version whose segments begin like this.
fn version_and_salt_of(header: &[u8], segment: u32) -> Option<(u32, u64)> {
    header.chunks_exact(32).find_map(|half| {
        let version = u32::from_le_bytes(half[12..16].try_into().ok()?);
        let salt = u64::from_le_bytes(half[16..24].try_into().ok()?);
        (*half == segment_header(segment, version, salt)[..32]).then_some((version, salt))
    })
}

/// For fuzzing: any bytes as the header of a segment, and as a record.
#[cfg(fuzzing)]
pub(crate) fn read_any(bytes: &[u8]) {
    if let Some(header) = bytes.get(..SEGMENT_HEADER as usize) {
        let _ = key_of(header, 1);
    }
    record::read_any(bytes);
}
