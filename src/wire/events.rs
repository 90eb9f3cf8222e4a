//! Events of one topic in one part of a message: the topic, a mark that ends it, and then pairs of
//! a header and a body as in [`compact`](super::compact).
//!
//! The topic comes first, so that subscriptions select such a message as any other. The mark is a
//! byte that no text has: neither a topic nor a prefix can be taken for more than it says. It is
//! repeated to a multiple of eight bytes, from where Cap'n Proto may be read in place.
//!
//! Does not know what a header says. A sketch: an event of its own in three parts costs some seven
//! thousand instructions of the socket's, one more in a message costs the copying of its bytes.

use bytes::{BufMut, Bytes};

use super::compact::{
    COMPACT_BYTES_MAX, COMPACT_CALL_BYTES_MAX, NotCompact, Packer, Unpacked, is_compactable, unpack,
};

/// Largest message that a publisher makes of several events: most of the cost of a message is spread
/// over them by then. Who reads takes larger ones, up to `COMPACT_BYTES_MAX`.
pub(crate) const EVENTS_BYTES_MAX: usize = 16 * 1024;

/// What ends a topic: in UTF-8, no byte is this.
const MARK: u8 = 0xff;
const WORD: usize = 8;

/// Whether an event may be sent in this form; its topic is text.
pub(crate) fn is_packable(topic: &[u8], header: &[u8], body: &[u8]) -> bool {
    marked_bytes(topic) + header.len() + body.len() <= COMPACT_CALL_BYTES_MAX
        && is_compactable(header, body)
}

/// What a topic takes with its mark.
fn marked_bytes(topic: &[u8]) -> usize {
    (topic.len() / WORD + 1) * WORD
}

/// Puts events of one topic behind each other, in memory that is used again when its messages have left.
#[derive(Debug, Default)]
pub(crate) struct EventPacker {
    events: Packer,
    topic: Bytes,
}

impl EventPacker {
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// How many events are here.
    pub fn len(&self) -> usize {
        self.events.calls()
    }

    /// Whether an event can join those that are here, in a message of so many bytes.
    pub fn has_room(&self, topic: &[u8], event_bytes: usize, bytes_max: usize) -> bool {
        let is_within = self.events.bytes() + event_bytes <= bytes_max;
        self.is_empty() || self.topic == topic && is_within && self.events.has_room(event_bytes)
    }

    /// Adds an event that is [packable](is_packable) and [fits](Self::has_room).
    pub fn push(&mut self, topic: &Bytes, header: &[u8], body: &[u8]) {
        if self.is_empty() {
            let marked = marked_bytes(topic);
            let to = self.events.front(marked + header.len() + body.len());
            to.put_slice(topic);
            to.put_bytes(MARK, marked - topic.len());
            if self.topic != topic {
                self.topic = topic.clone();
            }
        }
        self.events.push(header, body);
    }

    /// The message so far; `None` where there is none.
    pub fn take(&mut self) -> Option<Bytes> {
        self.events.take().map(|packed| packed.bytes)
    }
}

/// The topic of a message in one part, and its events, up to the first that is none.
pub(crate) fn unpack_events(message: &[u8]) -> Result<(&[u8], Unpacked<'_>), NotCompact> {
    if message.len() > COMPACT_BYTES_MAX {
        return Err(NotCompact);
    }
    let end = message.iter().position(|byte| *byte == MARK);
    let topic = &message[..end.ok_or(NotCompact)?];
    let (front, events) = message
        .split_at_checked(marked_bytes(topic))
        .ok_or(NotCompact)?;
    let is_marked = front[topic.len()..].iter().all(|byte| *byte == MARK);
    is_marked.then(|| (topic, unpack(events))).ok_or(NotCompact)
}

/// Takes bytes apart and puts what comes out together again, for tests of what others may send.
#[cfg(any(test, fuzzing))]
pub(crate) fn unpack_any_events(bytes: &[u8]) {
    let Ok((topic, events)) = unpack_events(bytes) else {
        return;
    };
    let front = marked_bytes(topic);
    let mut again = bytes[..front].to_vec();
    for (header, body) in events.map_while(Result::ok) {
        again.extend_from_slice(header);
        again.extend_from_slice(body);
    }
    assert!(bytes.starts_with(&again), "in their order, nothing between");
    assert!(front.is_multiple_of(WORD) && !topic.contains(&MARK));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::{framed, message};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_is_packed_comes_out_the_same(
            topic in ".{0,40}", events in prop::collection::vec((message(8), message(60)), 1..100),
        ) {
            let topic = Bytes::from(topic);
            let mut packer = EventPacker::default();
            let mut messages = Vec::new();
            for (header, body) in &events {
                prop_assert!(is_packable(&topic, header, body));
                if !packer.has_room(&topic, header.len() + body.len(), EVENTS_BYTES_MAX) {
                    messages.extend(packer.take());
                }
                packer.push(&topic, header, body);
            }
            messages.extend(packer.take());
            prop_assert!(packer.take().is_none());
            let mut out = Vec::new();
            for message in &messages {
                prop_assert!(message.len() <= EVENTS_BYTES_MAX && message.starts_with(&topic));
                let (of, events) = unpack_events(message).unwrap();
                prop_assert_eq!(of, &topic[..]);
                out.extend(events.map(|event| event.map(|(h, b)| (h.to_vec(), b.to_vec())).unwrap()));
            }
            prop_assert_eq!(out, events);
        }

        #[test]
        fn no_prefix_that_is_text_selects_more_than_its_topics(topic in ".{0,12}", prefix in ".{0,12}") {
            let mut packer = EventPacker::default();
            packer.push(&Bytes::from(topic.clone()), &framed(&[]), &framed(&[1]));
            let message = packer.take().unwrap();
            prop_assert_eq!(message.starts_with(prefix.as_bytes()), topic.starts_with(&prefix));
        }

        #[test]
        fn any_bytes_are_events_that_lie_in_them_or_an_error(
            front in prop::collection::vec(prop_oneof![Just(MARK), any::<u8>()], 0..24),
            words in prop::collection::vec(prop_oneof![0..4u64, (0..4u64).prop_map(|n| n << 32), any::<u64>()], 0..50),
        ) {
            let words = words.iter().flat_map(|word| word.to_le_bytes());
            unpack_any_events(&front.into_iter().chain(words).collect::<Vec<u8>>());
        }
    }

    #[test]
    fn a_topic_ends_with_one_to_eight_marks_and_nothing_else() {
        let events = [framed(&[]), framed(&[7])].concat();
        for length in 0..20 {
            let topic = vec![b't'; length];
            let marks = 8 - length % 8;
            let message = |marks: &[u8]| [&topic, marks, &events].concat();
            let right = message(&vec![MARK; marks]);
            let (of, mut unpacked) = unpack_events(&right).unwrap();
            assert_eq!(
                (of, unpacked.next().unwrap().unwrap().1),
                (&topic[..], &framed(&[7])[..])
            );
            assert!(unpack_events(&message(&[])).is_err());
            let mut wrong = vec![MARK; marks];
            wrong[marks - 1] = 0;
            assert!(unpack_events(&message(&wrong)).is_err());
            assert!(unpack_events(&[&topic[..], &[MARK][..]].concat()).is_err() || marks == 1);
        }
    }

    #[test]
    fn a_message_has_at_most_so_many_bytes_with_its_topic() {
        let message = |bytes: usize| {
            let body = framed(&vec![0; bytes / 8 - 3]);
            [&[MARK; 8][..], &framed(&[]), &body].concat()
        };
        assert!(unpack_events(&message(COMPACT_BYTES_MAX)).is_ok());
        assert!(unpack_events(&message(COMPACT_BYTES_MAX + 8)).is_err());

        let topic = Bytes::from_static(b"t");
        let body = framed(&vec![0; (COMPACT_CALL_BYTES_MAX - 24) / 8]);
        assert!(is_packable(&topic, &framed(&[]), &body));
        assert!(
            !is_packable(&[b't'; 8], &framed(&[]), &body),
            "its mark is one too many"
        );

        let mut packer = EventPacker::default();
        packer.push(&topic, &framed(&[]), &framed(&[]));
        assert!(packer.has_room(&topic, 40, 64) && !packer.has_room(&topic, 48, 64));
        assert!(!packer.has_room(b"u", 16, 64), "another topic");
    }
}
