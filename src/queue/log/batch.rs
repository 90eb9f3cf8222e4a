//! What is to be written together: the bytes of one sync.

use super::SegmentKey;

/// The most bytes whose room is kept for the next batch.
const KEPT_BYTES: usize = 1 << 20;

/// Bytes that belong together, and what is to be done with them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Those of all chunks, one after the other.
    bytes: Vec<u8>,
    chunks: Vec<Chunk>,
    /// Segments that can go once the chunks are safe.
    pub removals: Vec<u32>,
    /// Whether somebody waits for it to be safe.
    pub is_critical: bool,
    /// The end of it, counted over all that was ever appended.
    pub position: u64,
    /// Of the segment of its last chunk.
    pub key: SegmentKey,
}

/// Where some of the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunk {
    segment: u32,
    offset: u64,
    bytes: usize,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.removals.is_empty()
    }

    pub fn has_bytes(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Appends what `write` writes, which goes to this place, and says how many bytes it is. Where it is more than `max`,
    /// it is left out again.
    pub fn write(
        &mut self,
        segment: u32,
        offset: u64,
        max: u64,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Option<u64> {
        let start = self.bytes.len();
        write(&mut self.bytes);
        let bytes = self.bytes.len() - start;
        if bytes as u64 > max {
            self.bytes.truncate(start);
            return None;
        }
        match self.chunks.last_mut() {
            Some(last) if last.segment == segment => last.bytes += bytes,
            _ => self.chunks.push(Chunk {
                segment,
                offset,
                bytes,
            }),
        }
        self.position += bytes as u64;
        Some(bytes as u64)
    }

    /// Each segment, the offset there, and the bytes.
    pub fn chunks(&self) -> impl Iterator<Item = (u32, u64, &[u8])> {
        let mut rest = &self.bytes[..];
        self.chunks.iter().map(move |chunk| {
            let (bytes, behind) = rest.split_at(chunk.bytes);
            rest = behind;
            (chunk.segment, chunk.offset, bytes)
        })
    }

    /// Goes on with a later batch, which is empty afterwards. Both keep their room for bytes.
    pub fn append(&mut self, later: &mut Self) {
        let (position, key) = (later.position, later.key);
        if self.is_empty() {
            std::mem::swap(self, later);
        } else {
            self.bytes.extend_from_slice(&later.bytes);
            let mut chunks = &later.chunks[..];
            if let (Some(last), [first, rest @ ..]) = (self.chunks.last_mut(), chunks)
                && last.segment == first.segment
            {
                last.bytes += first.bytes;
                chunks = rest;
            }
            self.chunks.extend_from_slice(chunks);
            self.removals.append(&mut later.removals);
            self.is_critical |= later.is_critical;
            self.position = position;
            self.key = key;
        }
        later.clear();
        (later.position, later.key) = (position, key);
    }

    /// Nothing is to be written, at the same position.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.chunks.clear();
        self.removals.clear();
        self.is_critical = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(position: u64, parts: &[(u32, u64, &str)]) -> Batch {
        let mut batch = Batch {
            position,
            ..Batch::default()
        };
        for (segment, offset, text) in parts {
            let write = |into: &mut Vec<u8>| into.extend(text.as_bytes());
            let written = batch.write(*segment, *offset, u64::MAX, write);
            assert_eq!(written, Some(text.len() as u64));
        }
        batch
    }

    fn parts(batch: &Batch) -> Vec<(u32, u64, &str)> {
        let chunks = batch.chunks();
        let text = |bytes| std::str::from_utf8(bytes).expect("text");
        chunks
            .map(|(segment, offset, bytes)| (segment, offset, text(bytes)))
            .collect()
    }

    #[test]
    fn what_follows_in_the_same_segment_is_one_chunk() {
        let mut first = batch(0, &[(1, 64, "one"), (1, 67, "two")]);
        let mut later = batch(6, &[(1, 70, "three"), (2, 0, "four")]);
        later.is_critical = true;
        first.append(&mut later);
        assert_eq!(parts(&first), [(1, 64, "onetwothree"), (2, 0, "four")]);
        assert_eq!((first.position, first.is_critical), (15, true));
        assert!(later.is_empty() && !later.is_critical);
        assert_eq!(later.position, 15);
    }

    #[test]
    fn an_empty_batch_takes_over_all_of_the_next() {
        let (mut first, mut later) = (Batch::default(), batch(7, &[(3, 0, "bytes")]));
        later.removals.push(2);
        first.append(&mut later);
        assert_eq!(parts(&first), [(3, 0, "bytes")]);
        assert_eq!((first.position, &first.removals[..]), (12, &[2][..]));
    }

    #[test]
    fn what_is_too_long_is_left_out() {
        let mut batch = batch(0, &[(1, 0, "kept")]);
        let written = batch.write(1, 4, 3, |into| into.extend(b"long"));
        assert_eq!(written, None);
        assert_eq!((parts(&batch), batch.position), (vec![(1, 0, "kept")], 4));
    }
}
