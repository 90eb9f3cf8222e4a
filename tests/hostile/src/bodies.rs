//! Cap'n Proto messages by hand: headers and bodies that no builder would make.
//!
//! A message here is one segment: a table of eight bytes, then words.

use crate::INTERFACE;

/// The words of one segment, with the table in front.
pub fn message(words: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&(words.len() as u32).to_le_bytes());
    for word in words {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// A pointer to a struct, `offset` words behind the pointer.
pub fn struct_pointer(offset: i32, data_words: u16, pointers: u16) -> u64 {
    u64::from((offset << 2) as u32) | u64::from(data_words) << 32 | u64::from(pointers) << 48
}

/// A pointer to a list of elements of a size code (0 void, 2 bytes, 6 pointers, 7 structs; with 7
/// the count is that of words).
pub fn list_pointer(offset: i32, size: u8, count: u32) -> u64 {
    u64::from((offset << 2) as u32 | 1) | u64::from(size) << 32 | u64::from(count) << 35
}

/// What stands in front of a list of structs.
pub fn list_tag(count: i32, data_words: u16, pointers: u16) -> u64 {
    struct_pointer(count, data_words, pointers)
}

/// Bytes as words, filled up with zeros.
pub fn words_of(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    };
    bytes.chunks(8).map(word).collect()
}

/// A `RequestHeader` of six words of data and three pointers, as docs/wire.md shows it.
#[derive(Clone, Debug)]
pub struct Header {
    /// The six words.
    pub data: [u64; 6],
    /// Its pointers: request key, trace, metadata; offsets count from each pointer.
    pub pointers: [u64; 3],
    /// What they point to.
    pub rest: Vec<u64>,
}

impl Header {
    /// A request as a client would send it, with ten seconds left.
    pub fn of(method: u16, correlation: u64) -> Self {
        // Version 1 is 0 on the wire: defaults are taken off.
        let id = [0x0192_f3a4_b5c6_7d8e, 0x8f90_a1b2_0000_0000 | correlation];
        Self {
            data: [
                u64::from(method) << 16,
                INTERFACE,
                id[0],
                id[1],
                correlation,
                10_000_000,
            ],
            pointers: [0; 3],
            rest: Vec::new(),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut words = vec![struct_pointer(0, 6, 3)];
        words.extend(self.data);
        words.extend(self.pointers);
        words.extend(&self.rest);
        message(&words)
    }
}

/// The parameters of an echo.
pub fn echo(data: &[u8]) -> Vec<u8> {
    let mut words = vec![
        struct_pointer(0, 0, 1),
        list_pointer(0, 2, data.len() as u32),
    ];
    words.extend(words_of(data));
    message(&words)
}

/// The parameters that ask for a large reply.
pub fn large(bytes: u32) -> Vec<u8> {
    message(&[struct_pointer(0, 1, 0), u64::from(bytes)])
}
