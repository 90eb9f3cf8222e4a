//! What makes two requests the same request.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use uuid::{Builder, Uuid};

/// Names one logical call, over all its retries and whichever replica they reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RequestId {
    /// Made for the call: a UUIDv7 (RFC 9562), so that stores find them in order of time.
    Uuid(Uuid),
    /// Brought by the caller: an order number, the ID of the job that it works on.
    Key(RequestKey),
}

impl RequestId {
    /// A fresh one: a UUIDv7 whose random bits are those of a keyed hash of a counter and the time in nanoseconds, and
    /// the end of the counter. The key is the operating system's randomness, asked for once a process and not,
    /// at the cost of a system call, for each request; the time tells this process from one that was forked from
    /// it, or that runs on in another copy of its machine, with the same key and counter.
    pub fn new() -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        static KEY: LazyLock<RandomState> = LazyLock::new(Default::default);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self::at(since.unwrap_or_default(), count, &KEY)
    }

    fn at(since: Duration, count: u64, key: &RandomState) -> Self {
        let milliseconds = since.as_secs() * 1000 + u64::from(since.subsec_millis());
        let hash = key.hash_one((count, since.subsec_nanos()));
        let mut random = [0; 10];
        random[..8].copy_from_slice(&hash.to_be_bytes());
        random[8..].copy_from_slice(&(count as u16).to_be_bytes());
        Self::Uuid(Builder::from_unix_timestamp_millis(milliseconds, &random).into_uuid())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn two_copies_of_one_process_make_different_ids() {
        // After a fork, or in two copies of a machine: the same key, the same counter, the same millisecond.
        let key = RandomState::new();
        let at = |nanos| RequestId::at(Duration::new(1_800_000_000, nanos), 7, &key);
        assert_ne!(at(1_000), at(1_001));
    }

    #[test]
    fn fresh_ids_are_version_7_and_all_different() {
        let ids: Vec<RequestId> = (0..100_000).map(|_| RequestId::new()).collect();
        for id in &ids {
            let RequestId::Uuid(uuid) = id else { panic!() };
            assert_eq!(uuid.get_version_num(), 7);
        }
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    }
}
