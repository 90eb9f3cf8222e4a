//! What tells a repeated request from another one under the same ID.

use std::fmt;
use std::hash::{Hash, Hasher};

use bytes::Bytes;

use crate::message::{Limits, MessageError, canonical};

/// The BLAKE3 hash of a request's parameters in canonical form, or of a reply's body.
///
/// What is short is carried along as it is and hashed when somebody asks for the hash: a store in memory
/// compares two of these without.
#[derive(Clone, Copy)]
pub struct Fingerprint {
    /// Of what is hashed later, or [`IS_HASH`].
    length: u8,
    /// That, or the hash, and zeros.
    bytes: [u8; SHORT_BYTES_MAX],
}

/// What is no longer than this is compared faster than it is hashed, and takes a cache line and a half.
const SHORT_BYTES_MAX: usize = 95;
const IS_HASH: u8 = u8::MAX;

impl Fingerprint {
    /// Of parameters. Headers are no part of it, nor are fields that nobody set.
    ///
    /// # Errors
    /// For a body that is no message, or that costs more to read than `limits` allow.
    pub fn of_parameters(body: &Bytes, limits: &Limits) -> Result<Self, MessageError> {
        canonical(body, limits, Self::of_bytes)
    }

    /// Of bytes as they are.
    pub fn of_bytes(content: &[u8]) -> Self {
        let mut bytes = [0; SHORT_BYTES_MAX];
        match bytes.get_mut(..content.len()) {
            Some(short) => {
                short.copy_from_slice(content);
                let length = content.len() as u8;
                Self { length, bytes }
            }
            None => Self::from_bytes(*blake3::hash(content).as_bytes()),
        }
    }

    /// The hash, as a store keeps it.
    pub fn to_bytes(&self) -> [u8; 32] {
        match self.short() {
            Some(content) => *blake3::hash(content).as_bytes(),
            None => std::array::from_fn(|index| self.bytes[index]),
        }
    }

    /// From a store.
    pub fn from_bytes(hash: [u8; 32]) -> Self {
        let mut bytes = [0; SHORT_BYTES_MAX];
        bytes[..32].copy_from_slice(&hash);
        Self {
            length: IS_HASH,
            bytes,
        }
    }

    fn short(&self) -> Option<&[u8]> {
        self.bytes.get(..self.length.into())
    }
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        match (self.length == IS_HASH) == (other.length == IS_HASH) {
            true => self.length == other.length && self.bytes == other.bytes,
            false => self.to_bytes() == other.to_bytes(),
        }
    }
}

impl Eq for Fingerprint {}

impl Hash for Fingerprint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.to_bytes().hash(state);
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.to_bytes()[..4] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hashed_later_is_what_was_hashed_before() {
        let content: Vec<u8> = (0..200).collect();
        for length in [0, 1, 32, 94, 95, 96, 97, 200] {
            let content = &content[..length];
            let later = Fingerprint::of_bytes(content);
            let before = Fingerprint::from_bytes(*blake3::hash(content).as_bytes());
            assert_eq!(later, before, "{length} bytes");
            assert_eq!(before, later, "{length} bytes");
            assert_eq!(later.to_bytes(), before.to_bytes());
            assert_eq!(format!("{later:?}"), format!("{before:?}"));
            let other = Fingerprint::of_bytes(&[content, &[0]].concat());
            assert_ne!(later, other, "a zero more than {length} bytes");
            assert_ne!(before, other, "a zero more than {length} bytes");
        }
    }
}
