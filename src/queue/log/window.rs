//! Reads through a segment, a part of it in memory at a time.

use std::io;

use super::record::{self, Brief, Position, Record};
use super::{RECORD_BYTES_MAX, SegmentKey, Storage};

/// Bytes that are read at a time.
const READ: usize = 128 << 10;

/// Bytes that are hashed between two records to find the second, before only small ones are looked for.
const HASHED_MAX: usize = 32 << 20;
/// A small record.
const SMALL: usize = 1 << 10;

/// A part of a segment in memory.
pub(super) struct Window<'a> {
    storage: &'a dyn Storage,
    name: &'a str,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub fn new(storage: &'a dyn Storage, name: &'a str) -> Self {
        Self {
            storage,
            name,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// So many bytes at an offset; fewer at the end of the file.
    pub fn get(&mut self, offset: u64, bytes: usize) -> io::Result<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + bytes as u64 > end {
            self.bytes.resize(bytes.max(READ), 0);
            let read = self.storage.read(self.name, offset, &mut self.bytes)?;
            self.bytes.truncate(read);
            self.start = offset;
        }
        let from = ((offset - self.start) as usize).min(self.bytes.len());
        let to = (from + bytes).min(self.bytes.len());
        Ok(&self.bytes[from..to])
    }

    /// The whole record at an offset, and the bytes that it takes.
    pub fn record(&mut self, key: SegmentKey, offset: u64) -> io::Result<Option<(Record, u64)>> {
        let at = Position { key, offset };
        let record = record::read(self.record_bytes(at)?, at);
        Ok(record.map(|(record, bytes)| (record, bytes as u64)))
    }

    /// The same, as an index keeps it.
    pub fn brief(
        &mut self,
        key: SegmentKey,
        offset: u64,
    ) -> io::Result<Option<(Brief<'_>, usize)>> {
        let at = Position { key, offset };
        Ok(Brief::of(self.record_bytes(at)?, at))
    }

    /// The bytes of what may be a record; none where there is none.
    pub fn record_bytes(&mut self, at: Position) -> io::Result<&[u8]> {
        let header = self.get(at.offset, record::HEADER)?;
        match record::bytes_of(header, at) {
            // A damaged length may claim anything.
            Some(bytes) if bytes <= RECORD_BYTES_MAX => self.get(at.offset, bytes),
            _ => Ok(&[]),
        }
    }

    /// Where the next whole record begins behind a place that has none.
    pub fn next_record(&mut self, key: SegmentKey, offset: u64) -> io::Result<Option<u64>> {
        let mut offset = offset + record::ALIGN as u64;
        let mut hashed = 0;
        loop {
            let part = self.get(offset, READ / 2)?;
            if part.len() < record::HEADER {
                return Ok(None);
            }
            // Most of what is looked through is nothing at all.
            let words = part.chunks_exact(record::ALIGN);
            let zeros = words.take_while(|word| *word == [0; record::ALIGN]).count();
            if zeros > 0 {
                offset += (zeros * record::ALIGN) as u64;
                continue;
            }
            // Nearly all that is left is told by its first eight bytes.
            let at = Position { key, offset };
            if let Some(bytes) = record::bytes_of(part, at) {
                // A body of the oldest version that looks like many records would be hashed again and again.
                let is_worth_it = hashed <= HASHED_MAX || bytes <= SMALL;
                if is_worth_it && self.record(key, offset)?.is_some() {
                    return Ok(Some(offset));
                }
                hashed += bytes.min(RECORD_BYTES_MAX);
            }
            offset += record::ALIGN as u64;
        }
    }

    pub fn end(&mut self) -> io::Result<u64> {
        let mut end = 0;
        loop {
            match self.get(end, READ)?.len() {
                0 => return Ok(end),
                bytes => end += bytes as u64,
            }
        }
    }

    /// Behind the last byte that is not zero.
    pub fn end_of_data(&mut self, from: u64) -> io::Result<u64> {
        let (mut end, mut offset) = (from, from);
        loop {
            let part = self.get(offset, READ)?;
            if part.is_empty() {
                return Ok(end);
            }
            if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
                end = offset + last as u64 + 1;
            }
            offset += part.len() as u64;
        }
    }
}
