//! What makes two requests the same request.

use std::fmt;

use bytes::Bytes;
use uuid::Uuid;

/// Names one logical call, over all its retries and whichever replica they reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RequestId {
    /// Made for the call: a UUIDv7 (RFC 9562), so that stores find them in order of time.
    Uuid(Uuid),
    /// Brought by the caller: an order number, the ID of the job that it works on.
    Key(RequestKey),
}

impl RequestId {
    /// A fresh one.
    pub fn new() -> Self {
        Self::Uuid(Uuid::now_v7())
    }

    /// Whether the caller gave none at all, as a minimal client in another language may.
    pub fn is_nil(&self) -> bool {
        matches!(self, Self::Uuid(uuid) if uuid.is_nil())
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

impl From<RequestKey> for RequestId {
    fn from(key: RequestKey) -> Self {
        Self::Key(key)
    }
}

impl From<Uuid> for RequestId {
    fn from(uuid: Uuid) -> Self {
        Self::Uuid(uuid)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => uuid.fmt(f),
            Self::Key(key) => key.fmt(f),
        }
    }
}

/// A caller's own request ID: 1 to 255 bytes.
///
/// ```
/// # use bowline::RequestKey;
/// assert!(RequestKey::new("order-314").is_ok());
/// assert!(RequestKey::new("").is_err());
/// assert!(RequestKey::new(vec![0; 256]).is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey(Bytes);

/// A request key has 1 to 255 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request key has 1 to {} bytes, not {bytes}", RequestKey::BYTES_MAX)]
pub struct RequestKeyError {
    /// The length of what was given.
    pub bytes: usize,
}

impl RequestKey {
    /// The longest key.
    pub const BYTES_MAX: usize = 255;

    /// Checks the length.
    ///
    /// # Errors
    /// An empty key, or one over [`BYTES_MAX`](Self::BYTES_MAX).
    pub fn new(key: impl Into<Bytes>) -> Result<Self, RequestKeyError> {
        let key = key.into();
        if key.is_empty() || key.len() > Self::BYTES_MAX {
            return Err(RequestKeyError { bytes: key.len() });
        }
        Ok(Self(key))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}
