//! Events of one topic in one part of a message: the topic, a mark that ends it, and then pairs of
//! a header and a body as in [`compact`](super::compact).
//!
//! The topic comes first, so that subscriptions select such a message as any other. The mark is a
//! byte that no text has: neither a topic nor a prefix of Bowline's can be taken for more than it
//! says. It is repeated to a multiple of eight bytes, where Cap'n Proto may be read in place.

use bytes::Bytes;

use super::compact::{COMPACT_BYTES_MAX, NotCompact, Packed, Packer, Unpacked, unpack};
use super::is_compactable;

/// What ends a topic: in UTF-8, no byte is this.
const MARK: u8 = 0xff;
const WORD: usize = 8;

/// A topic as it begins a message: with the mark behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MarkedTopic(Bytes);

impl MarkedTopic {
    pub fn new(topic: &str) -> Self {
        let mut marked = topic.as_bytes().to_vec();
        marked.resize(marked_bytes(topic.len()), MARK);
        Self(marked.into())
    }
}

/// What a topic of so many bytes takes with its mark.
fn marked_bytes(topic_bytes: usize) -> usize {
    (topic_bytes / WORD + 1) * WORD
}

/// Puts events of one topic behind each other.
#[derive(Debug, Default)]
pub(crate) struct EventPacker {
    events: Packer,
}
