//! What a sealed segment says, without the bodies of its jobs: opening a queue takes it from here, and reads no body.
//!
//! A file beside the segment: docs/queue-log.md. It is made from the segment as it is on the disk, of whole records only,
//! and can be thrown away at any time. What in it stands for a record is what changed since the last one of its kind.

use std::io;

use twox_hash::XxHash3_64;

use super::record::{self, Position, Record};
use super::window::Window;
use super::{SEGMENT_HEADER, SegmentKey, Storage, key_of, segment_name};

const MAGIC: [u8; 8] = *b"BOWLINEI";
const HEADER: usize = 48;
/// What would be longer is not made.
const BYTES_MAX: usize = 256 << 20;

pub(super) fn index_name(segment: u32) -> String {
    format!("{segment:010}.index")
}

/// The segment that a file of this name is the index of.
pub(super) fn indexed_by(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".index")?;
    (digits.len() == 10).then(|| digits.parse().ok()).flatten()
}

/// The records of a segment.
pub(super) struct Index {
    /// Behind the last of them.
    pub end: u64,
    entries: Vec<u8>,
}

/// Writes the index of a segment that is sealed and safe. Says whether it has one: a damaged segment is read as it is.
///
/// # Errors
/// What the storage says.
pub(super) fn make(storage: &dyn Storage, segment: u32) -> io::Result<bool> {
    let name = segment_name(segment);
    let mut window = Window::new(storage, &name);
    let header = window.get(0, SEGMENT_HEADER as usize)?;
    let Some(key) = key_of(header, segment) else {
        return Ok(false);
    };
    let (mut offset, mut entries, mut changes) = (SEGMENT_HEADER, Vec::new(), Changes::default());
    loop {
        let Some((brief, bytes)) = window.brief(key, offset)? else {
            return Ok(false);
        };
        changes.write(&mut entries, brief.kind, &brief.content);
        offset += bytes as u64;
        if brief.kind == record::SEALED {
            break;
        }
        if entries.len() > BYTES_MAX {
            return Ok(false);
        }
    }
    let mut file = Vec::with_capacity(HEADER + entries.len());
    file.extend(MAGIC);
    file.extend(segment.to_le_bytes());
    file.extend((entries.len() as u32).to_le_bytes());
    file.extend(key.salt.to_le_bytes());
    file.extend(offset.to_le_bytes());
    file.extend(XxHash3_64::oneshot(&entries).to_le_bytes());
    file.extend(XxHash3_64::oneshot(&file).to_le_bytes());
    file.extend(entries);
    let name = index_name(segment);
    storage.create(&name, file.len() as u64)?;
    storage.write(&name, 0, &file)?;
    storage.sync(&name)?;
    Ok(true)
}

impl Index {
    /// The index of the segment that has this key; `None` where there is none, or it is damaged, or the end of the segment
    /// is not where it says.
    ///
    /// # Errors
    /// What the storage says of the segment.
    pub fn read(storage: &dyn Storage, segment: u32, key: SegmentKey) -> io::Result<Option<Self>> {
        let Some(index) = Self::read_file(storage, segment, key.salt) else {
            return Ok(None);
        };
        let Some(offset) = index.end.checked_sub(record::SEALED_BYTES) else {
            return Ok(None);
        };
        let mut last = [0; record::SEALED_BYTES as usize];
        storage.read(&segment_name(segment), offset, &mut last)?;
        let last = record::read(&last, Position { key, offset });
        let is_sealed = matches!(last, Some((Record::Sealed { .. }, _)));
        Ok(is_sealed.then_some(index))
    }

    fn read_file(storage: &dyn Storage, segment: u32, salt: u64) -> Option<Self> {
        let name = index_name(segment);
        let mut header = [0; HEADER];
        // One that cannot be read is as good as none.
        storage.read(&name, 0, &mut header).ok()?;
        let (head, checksum) = header.split_at(HEADER - 8);
        let u32_at = |at: usize| head[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let u64_at = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let is_its = checksum == XxHash3_64::oneshot(head).to_le_bytes()
            && head[..8] == MAGIC
            && u32_at(8)? == segment
            && u64_at(16)? == salt;
        if !is_its {
            return None;
        }
        let mut entries = vec![0; u32_at(12)? as usize];
        let read = storage.read(&name, HEADER as u64, &mut entries).ok()?;
        let is_whole = read == entries.len() && XxHash3_64::oneshot(&entries) == u64_at(32)?;
        is_whole.then_some(Self {
            end: u64_at(24)?,
            entries,
        })
    }

    /// Gives each record, and where it is in its segment.
    ///
    /// # Errors
    /// Where it was not written by this code, whole as it is.
    pub fn for_each(&self, mut with: impl FnMut(u64, Record)) -> io::Result<()> {
        let (mut offset, mut rest) = (SEGMENT_HEADER, &self.entries[..]);
        let (mut changes, mut content) = (Changes::default(), Vec::new());
        while !rest.is_empty() {
            let read = changes
                .read(&mut rest, &mut content)
                .and_then(|kind| record::from_brief(kind, &content));
            let Some((record, bytes)) = read else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "an index of a queue's log is of another version: remove the files `*.index`",
                ));
            };
            with(offset, record);
            offset += bytes as u64;
        }
        Ok(())
    }
}

/// Kinds of records are smaller than this.
const KINDS: usize = 16;

/// The last content of each kind, as words: most of the next is the same, or one more.
#[derive(Default)]
struct Changes([Vec<u64>; KINDS]);

impl Changes {
    /// Kind and length; then for each eight words a byte that says which of them changed, and by how much each did.
    fn write(&mut self, into: &mut Vec<u8>, kind: u32, content: &[u8]) {
        let before = &mut self.0[kind as usize % KINDS];
        into.push(kind as u8);
        write_number(into, content.len() as u64);
        before.resize(content.len().div_ceil(8), 0);
        for (words, before) in content.chunks(64).zip(before.chunks_mut(8)) {
            let at = into.len();
            into.push(0);
            for (index, (word, before)) in words.chunks(8).zip(before).enumerate() {
                let mut bytes = [0; 8];
                bytes[..word.len()].copy_from_slice(word);
                let word = u64::from_le_bytes(bytes);
                let change = word.wrapping_sub(*before);
                if change != 0 {
                    into[at] |= 1 << index;
                    // Small ones are short, whichever way.
                    write_number(into, change << 1 ^ ((change as i64) >> 63) as u64);
                    *before = word;
                }
            }
        }
    }

    /// The kind of the next, and its content. `None` where there is none.
    fn read(&mut self, from: &mut &[u8], content: &mut Vec<u8>) -> Option<u32> {
        let (kind, rest) = from.split_first()?;
        *from = rest;
        let before = self.0.get_mut(usize::from(*kind))?;
        let length = read_number(from)? as usize;
        // Each byte of it stands for at most 64.
        if length > from.len().saturating_mul(64) {
            return None;
        }
        before.resize(length.div_ceil(8), 0);
        content.clear();
        for before in before.chunks_mut(8) {
            let (changed, rest) = from.split_first()?;
            *from = rest;
            for (index, before) in before.iter_mut().enumerate() {
                if changed & 1 << index != 0 {
                    let folded = read_number(from)?;
                    let change = (folded >> 1) ^ (folded & 1).wrapping_neg();
                    *before = before.wrapping_add(change);
                }
                content.extend(before.to_le_bytes());
            }
        }
        content.truncate(length);
        Some(u32::from(*kind))
    }
}

/// Seven bits a byte, the lowest first (LEB128).
fn write_number(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn read_number(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(
            contents in prop::collection::vec((1..16u32, prop::collection::vec(any::<u8>(), 0..200)), 0..40),
        ) {
            let (mut bytes, mut changes) = (Vec::new(), Changes::default());
            for (kind, content) in &contents {
                changes.write(&mut bytes, *kind, content);
            }
            let (mut changes, mut rest, mut content) = (Changes::default(), &bytes[..], Vec::new());
            for (kind, written) in &contents {
                prop_assert_eq!(changes.read(&mut rest, &mut content), Some(*kind));
                prop_assert_eq!(&content, written);
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (mut changes, mut rest, mut content) = (Changes::default(), &bytes[..], Vec::new());
            while changes.read(&mut rest, &mut content).is_some() {}
        }

        #[test]
        fn numbers_are_read_as_they_were_written(number: u64) {
            let mut bytes = Vec::new();
            write_number(&mut bytes, number);
            prop_assert_eq!(read_number(&mut &bytes[..]), Some(number));
        }
    }
}
