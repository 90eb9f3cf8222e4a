//! What tells a repeated request from another one under the same ID.

use std::fmt;

use bytes::Bytes;

use crate::message::{Limits, MessageError, canonical};

/// The BLAKE3 hash of a request's parameters in canonical form, or of a reply's body.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of parameters. Headers are no part of it, nor are fields that nobody set.
    ///
    /// # Errors
    /// For a body that is no message, or that costs more to read than `limits` allow.
    pub fn of_parameters(body: &Bytes, limits: &Limits) -> Result<Self, MessageError> {
        canonical(body, limits, Self::of_bytes)
    }

    /// Of bytes as they are.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// As a store keeps it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From a store.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..4] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…")
    }
}
