//! Full topics, the prefixes that select them, and the topics over which a publisher confirms.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

/// A full topic: `progress/job-314`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TopicName(pub(super) Bytes);

impl TopicName {
    pub(super) fn new(topic: &str, key: &str) -> Self {
        Self(joined(topic, key))
    }

    /// Its bytes on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What follows the topic's name: the key, empty where the topic has none.
    pub fn key(&self) -> Cow<'_> {
        let key = match self.0.iter().position(|byte| *byte == b'/') {
            Some(slash) => &self.0[slash + 1..],
            None => &[],
        };
        String::from_utf8_lossy(key)
    }
}

type Cow<'a> = std::borrow::Cow<'a, str>;

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicName({self})")
    }
}

/// Which keys of a topic to subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys<'a> {
    /// Every key, and a topic without keys.
    All,
    /// Keys that begin with this, as `Keys::Prefix("eu/")`.
    ///
    /// A key is a prefix of itself, and of longer keys too: ZeroMQ knows no other filter.
    Prefix(&'a str),
}

impl Keys<'_> {
    pub(super) fn prefix(self, topic: &str) -> Bytes {
        match self {
            Self::All => joined(topic, ""),
            Self::Prefix(prefix) => joined(topic, prefix),
        }
    }
}

fn joined(topic: &str, key: &str) -> Bytes {
    let mut full = Vec::with_capacity(topic.len() + 1 + key.len());
    join(&mut full, topic, key);
    full.into()
}

/// Makes `full` a full topic.
pub(super) fn join(full: &mut Vec<u8>, topic: &str, key: &str) {
    full.clear();
    full.extend_from_slice(topic.as_bytes());
    full.push(b'/');
    full.extend_from_slice(key.as_bytes());
}

/// Begins the topics over which a publisher confirms; no schema can name such a topic.
const CONFIRMATIONS: &[u8] = b"\0bowline/";
/// In hexadecimal: there are ZeroMQ libraries that take only text for a subscription.
const NONCE_BYTES: usize = 32;

/// The topic that asks for a confirmation of the subscription to `prefix`, and carries it.
pub(super) fn confirmation_of(nonce: u128, prefix: &[u8]) -> Bytes {
    let mut topic = BytesMut::with_capacity(CONFIRMATIONS.len() + NONCE_BYTES + prefix.len());
    topic.put_slice(CONFIRMATIONS);
    topic.put_slice(format!("{nonce:032x}").as_bytes());
    topic.put_slice(prefix);
    topic.freeze()
}

/// The nonce and the prefix of a topic made by [`confirmation_of`].
pub(super) fn is_confirmation(topic: &[u8]) -> Option<(u128, &[u8])> {
    let (nonce, prefix) = topic
        .strip_prefix(CONFIRMATIONS)?
        .split_first_chunk::<NONCE_BYTES>()?;
    let nonce = u128::from_str_radix(std::str::from_utf8(nonce).ok()?, 16).ok()?;
    Some((nonce, prefix))
}

/// For fuzzing: any bytes as a topic.
#[cfg(fuzzing)]
pub(crate) fn read_any(topic: &[u8]) {
    if let Some((nonce, prefix)) = is_confirmation(topic) {
        let again = confirmation_of(nonce, prefix);
        assert_eq!(is_confirmation(&again), Some((nonce, prefix)));
    }
    let name = TopicName(Bytes::copy_from_slice(topic));
    let _ = (name.key(), name.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_what_follows_the_first_slash() {
        assert_eq!(TopicName::new("progress", "eu/314").key(), "eu/314");
        assert_eq!(TopicName::new("tick", "").key(), "");
    }

    #[test]
    fn one_topic_does_not_select_another_that_begins_like_it() {
        let all = Keys::All.prefix("tick");
        assert!(TopicName::new("tick", "1").0.starts_with(&all));
        assert!(!TopicName::new("ticker", "1").0.starts_with(&all));
    }

    #[test]
    fn a_confirmation_names_its_nonce_and_prefix() {
        let topic = confirmation_of(314, b"tick/");
        assert_eq!(is_confirmation(&topic), Some((314, &b"tick/"[..])));
        assert_eq!(is_confirmation(b"tick/1"), None);
        assert_eq!(is_confirmation(b"\0bowline/short"), None);
    }
}
