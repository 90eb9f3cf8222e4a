//! Headers as nearly all of them are, written and read in place: one segment, the header's struct
//! first in it, and nothing that it points to.
//!
//! The general codec, `capnp`'s, remains for the others: those with a key, a trace, metadata or a
//! message, and those that a peer has laid out another way. Where both can read a header, both
//! read the same; the property tests and the fuzz target hold them to it. The reason for a second
//! way, measured: `capnp`'s spends most of a small call's instructions here.
//!
//! The layout: <https://capnproto.org/encoding.html#structs>.

use super::HEADER_BYTES_MAX;

const WORD: usize = 8;
/// The segment table of a message of one segment, and the pointer to its root.
const BEFORE_DATA: usize = 2 * WORD;

/// The data of a header's struct, which may be shorter or longer than this version's.
#[derive(Clone, Copy)]
pub(super) struct Data<'a>(&'a [u8]);

/// The data of a header that is laid out as above; `None` for any other and for what is no header.
pub(super) fn read(bytes: &[u8]) -> Option<Data<'_>> {
    let (before, content) = bytes.split_first_chunk::<BEFORE_DATA>()?;
    let [table, root] = [0, WORD].map(|at| u64_at(before, at));
    let (segments_less_one, segment_words) = (table as u32, (table >> 32) as usize);
    // A struct pointer (its lowest two bits) to what directly follows it.
    let is_struct_next = root as u32 == 0;
    let data_words = usize::from((root >> 32) as u16);
    let pointer_words = usize::from((root >> 48) as u16);
    let fits = segment_words * WORD == bytes.len() - WORD
        && (data_words + pointer_words) * WORD <= content.len()
        && bytes.len() <= HEADER_BYTES_MAX;
    if segments_less_one != 0 || !is_struct_next || !fits {
        return None;
    }
    let (data, rest) = content.split_at(data_words * WORD);
    let pointers = rest[..pointer_words * WORD].chunks_exact(WORD);
    let are_null = pointers.fold(true, |null, word| null & (u64_at(word, 0) == 0));
    are_null.then_some(Data(data))
}

/// The word of a header's data with this index, also where the header cannot be read as a whole: for the
/// correlation of what is answered with an error.
pub(super) fn peek(bytes: &[u8], index: usize) -> Option<u64> {
    let segments = u32::from_le_bytes(*bytes.first_chunk()?).checked_add(1)? as usize;
    let table_bytes = (4 + segments.checked_mul(4)?).next_multiple_of(WORD);
    let mut words = bytes.get(table_bytes..)?.chunks_exact(WORD);
    let root = u64_at(words.next()?, 0);
    let is_struct = root & 3 == 0;
    let data_words = usize::from((root >> 32) as u16);
    let offset = usize::try_from(root as u32 as i32 >> 2).ok()?;
    if !is_struct || index >= data_words {
        return None;
    }
    Some(u64_at(words.nth(offset + index)?, 0))
}

impl Data<'_> {
    /// The word with this index, 0 where the struct is shorter.
    pub fn word(self, index: usize) -> u64 {
        match self.0.get(index * WORD..(index + 1) * WORD) {
            Some(word) => u64_at(word, 0),
            None => 0,
        }
    }
}

/// Reads eight bytes, of which there are enough.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; WORD];
    word.copy_from_slice(&bytes[at..at + WORD]);
    u64::from_le_bytes(word)
}

/// A header of so many words of data and pointers, with this data and null pointers.
///
/// `BYTES` is what both come to with the table and the root pointer in front of them.
pub(super) fn write<const DATA: usize, const BYTES: usize>(
    data: [u64; DATA],
    pointers: u16,
) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    let segment_words = (BYTES / WORD - 1) as u64;
    let root = (DATA as u64) << 32 | u64::from(pointers) << 48;
    let words = [segment_words << 32, root].into_iter().chain(data);
    for (to, word) in bytes.chunks_exact_mut(WORD).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
