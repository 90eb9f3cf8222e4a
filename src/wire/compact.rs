//! Several calls in one part of a message: a header, its body, the next header, and so on.
//!
//! Each is a Cap'n Proto message of one segment in the standard framing, whose first word says how
//! long it is; nothing else tells them apart. What is larger, empty, or in several segments goes in
//! a message of its own, as `[empty][header][body]`. docs/wire.md says who may send this form.
//!
//! Does not know what a header says. A sketch: a small call costs two copies of some hundred bytes
//! here, where a message of its own costs some seven thousand instructions of the socket's.

use bytes::{Bytes, BytesMut};

use crate::message;

/// Largest message in this form; larger ones are refused.
pub(crate) const COMPACT_BYTES_MAX: usize = 64 * 1024;
/// Most calls in a message of this form; what is behind them is refused.
pub(crate) const COMPACT_CALLS_MAX: usize = 128;
/// Header and body of a call that is sent this way: to copy a larger one costs as much as its frames.
pub(crate) const COMPACT_CALL_BYTES_MAX: usize = 4 * 1024;

/// What new memory for a message has room for, so that it seldom has to grow.
const BYTES_NEW: usize = 16 * 1024;
const WORD: usize = 8;

/// A message in this form.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    pub bytes: Bytes,
    pub calls: usize,
}

/// The message is not, or not to its end, pairs of a header and a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotCompact;

/// Whether a call may be sent in this form.
pub(crate) fn is_compactable(header: &[u8], body: &[u8]) -> bool {
    header.len() + body.len() <= COMPACT_CALL_BYTES_MAX
        && first_message(header) == Some(header.len())
        && first_message(body) == Some(body.len())
}

/// One call, [compactable](is_compactable), in a message of its own.
pub(crate) fn pack_one(header: &[u8], body: &[u8]) -> Packed {
    Packed {
        bytes: message::joined([header, body]),
        calls: 1,
    }
}

/// Puts calls behind each other, in memory that is used again when its messages have left.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    buffer: BytesMut,
    calls: usize,
}

impl Packer {
    pub fn is_empty(&self) -> bool {
        self.calls == 0
    }

    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Bytes of the message so far.
    pub(super) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Whether a call of so many bytes still fits.
    pub fn has_room(&self, call_bytes: usize) -> bool {
        self.calls < COMPACT_CALLS_MAX && self.buffer.len() + call_bytes <= COMPACT_BYTES_MAX
    }

    /// Where to write what stands in front of all calls, with room for so many bytes.
    pub(super) fn front(&mut self, bytes: usize) -> &mut BytesMut {
        debug_assert!(self.is_empty());
        self.reserve(bytes);
        &mut self.buffer
    }

    fn reserve(&mut self, bytes: usize) {
        if self.buffer.capacity() - self.buffer.len() < bytes {
            self.buffer.reserve(bytes.max(BYTES_NEW));
        }
    }

    /// Adds a call that is [compactable](is_compactable) and [fits](Self::has_room).
    pub fn push(&mut self, header: &[u8], body: &[u8]) {
        let bytes = header.len() + body.len();
        debug_assert!(is_compactable(header, body) && self.has_room(bytes));
        self.reserve(bytes);
        self.buffer.extend_from_slice(header);
        self.buffer.extend_from_slice(body);
        self.calls += 1;
    }

    /// The calls so far; `None` where there are none.
    pub fn take(&mut self) -> Option<Packed> {
        if self.is_empty() {
            return None;
        }
        Some(Packed {
            bytes: self.buffer.split().freeze(),
            calls: std::mem::take(&mut self.calls),
        })
    }
}

/// The calls of a message, each a header and a body, up to the first that is none.
pub(crate) fn unpack(message: &[u8]) -> Unpacked<'_> {
    let is_any = (1..=COMPACT_BYTES_MAX).contains(&message.len());
    Unpacked {
        rest: is_any.then_some(message).ok_or(NotCompact),
        calls_left: COMPACT_CALLS_MAX,
    }
}

#[derive(Debug)]
pub(crate) struct Unpacked<'a> {
    /// What is still to be read; an error once, and then nothing.
    rest: Result<&'a [u8], NotCompact>,
    calls_left: usize,
}

impl<'a> Iterator for Unpacked<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), NotCompact>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = match std::mem::replace(&mut self.rest, Ok(&[])) {
            Ok([]) => return None,
            Ok(rest) => rest,
            Err(error) => return Some(Err(error)),
        };
        let Some((header, rest)) = split_first(rest).filter(|_| self.calls_left > 0) else {
            return Some(Err(NotCompact));
        };
        let Some((body, rest)) = split_first(rest) else {
            return Some(Err(NotCompact));
        };
        self.calls_left -= 1;
        self.rest = Ok(rest);
        Some(Ok((header, body)))
    }
}

/// The message of one segment at the beginning of `bytes`, and what is behind it.
pub(crate) fn split_first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(first_message(bytes)?)
}

/// How long the message of one segment at the beginning of `bytes` says that it is.
fn first_message(bytes: &[u8]) -> Option<usize> {
    let [0, 0, 0, 0, a, b, c, d] = *bytes.first_chunk::<WORD>()? else {
        return None;
    };
    let segment_words = u32::from_le_bytes([a, b, c, d]) as usize;
    segment_words.checked_mul(WORD)?.checked_add(WORD)
}

/// Takes bytes apart and puts what comes out together again, for tests of what others may send.
#[cfg(any(test, fuzzing))]
pub(crate) fn unpack_any(bytes: &[u8]) {
    let mut at = 0;
    let mut packer = Packer::default();
    for (header, body) in unpack(bytes).map_while(Result::ok) {
        let call = [header, body].concat();
        assert!(
            bytes[at..].starts_with(&call),
            "in their order, with nothing in between"
        );
        at += call.len();
        if is_compactable(header, body) && packer.has_room(call.len()) {
            packer.push(header, body);
        }
    }
    if let Some(packed) = packer.take() {
        assert_eq!(
            unpack(&packed.bytes).filter(Result::is_ok).count(),
            packed.calls
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::{framed, message};
    use proptest::prelude::*;

    /// A header and a body.
    type Call = (Vec<u8>, Vec<u8>);

    fn read(message: &[u8]) -> (Vec<Call>, Option<NotCompact>) {
        let mut calls = Vec::new();
        for call in unpack(message) {
            match call {
                Ok((header, body)) => calls.push((header.to_vec(), body.to_vec())),
                Err(error) => return (calls, Some(error)),
            }
        }
        (calls, None)
    }

    proptest! {
        #[test]
        fn whatever_is_packed_comes_out_the_same(
            calls in prop::collection::vec((message(20), message(60)), 1..100),
        ) {
            let mut packer = Packer::default();
            let mut messages = Vec::new();
            for (header, body) in &calls {
                prop_assert!(is_compactable(header, body));
                if !packer.has_room(header.len() + body.len()) {
                    messages.extend(packer.take());
                }
                packer.push(header, body);
            }
            messages.extend(packer.take());
            prop_assert!(packer.take().is_none());
            let mut out = Vec::new();
            for message in messages {
                let (calls, error) = read(&message.bytes);
                prop_assert_eq!((calls.len(), error), (message.calls, None));
                out.extend(calls);
            }
            prop_assert_eq!(out, calls);
        }

        #[test]
        fn one_call_alone_is_a_message_like_any_other(header in message(20), body in message(400)) {
            let packed = pack_one(&header, &body);
            prop_assert_eq!(read(&packed.bytes), (vec![(header, body)], None));
        }

        #[test]
        fn what_is_not_one_segment_of_its_own_length_is_not_packed(
            good in message(20), bytes in prop::collection::vec(any::<u8>(), 0..64), behind in 1..9usize,
        ) {
            let is_one = bytes.len() >= 8 && bytes == framed(&vec![0; bytes.len() / 8 - 1]);
            prop_assert_eq!(is_compactable(&good, &bytes), is_one);
            let longer = [&good[..], &vec![0; behind]].concat();
            prop_assert!(!is_compactable(&good, &longer) && !is_compactable(&longer, &good));
            prop_assert!(!is_compactable(&good, &good[..good.len() - behind.min(good.len())]));
        }

        #[test]
        fn a_message_that_is_cut_gives_the_calls_before_the_cut(
            calls in prop::collection::vec((message(4), message(6)), 1..10), at in any::<prop::sample::Index>(),
        ) {
            let mut packer = Packer::default();
            let mut ends = vec![0];
            for (header, body) in &calls {
                packer.push(header, body);
                ends.push(ends[ends.len() - 1] + header.len() + body.len());
            }
            let bytes = packer.take().unwrap().bytes;
            let cut = at.index(bytes.len());
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            let is_clean = cut > 0 && ends.contains(&cut);
            let (read, error) = read(&bytes[..cut]);
            prop_assert_eq!(&read[..], &calls[..whole]);
            prop_assert_eq!(error.is_none(), is_clean);
        }

        #[test]
        fn any_bytes_are_calls_that_lie_in_them_or_an_error(
            words in prop::collection::vec(prop_oneof![0..4u64, (0..4u64).prop_map(|n| n << 32), any::<u64>()], 0..200),
            cut in 0..8usize,
        ) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            unpack_any(&bytes[..bytes.len() - cut.min(bytes.len())]);
        }
    }

    #[test]
    fn a_message_has_at_most_so_many_calls_and_bytes() {
        let call = (framed(&[1]), framed(&[2]));
        let of = |calls: usize| [&call.0[..], &call.1].concat().repeat(calls);
        assert_eq!(read(&of(COMPACT_CALLS_MAX)).1, None);
        let (calls, error) = read(&of(COMPACT_CALLS_MAX + 1));
        assert_eq!(
            (calls.len(), error),
            (COMPACT_CALLS_MAX, Some(NotCompact)),
            "those in front of the one too many are taken"
        );

        let large = |bytes: usize| [framed(&[]), framed(&vec![0; bytes / 8 - 2])].concat();
        assert_eq!(read(&large(COMPACT_BYTES_MAX)).1, None);
        assert_eq!(
            read(&large(COMPACT_BYTES_MAX + 8)),
            (vec![], Some(NotCompact))
        );

        assert_eq!(read(&[]), (vec![], Some(NotCompact)));
        let largest = large(COMPACT_CALL_BYTES_MAX);
        assert!(is_compactable(&largest[..8], &largest[8..]));
        let larger = large(COMPACT_CALL_BYTES_MAX + 8);
        assert!(!is_compactable(&larger[..8], &larger[8..]));
    }

    #[test]
    fn a_full_packer_says_so() {
        let mut packer = Packer::default();
        let (header, body) = (
            framed(&[]),
            framed(&vec![0; COMPACT_CALL_BYTES_MAX / 8 - 2]),
        );
        while packer.has_room(COMPACT_CALL_BYTES_MAX) {
            packer.push(&header, &body);
        }
        assert_eq!(packer.calls(), COMPACT_BYTES_MAX / COMPACT_CALL_BYTES_MAX);
        assert!(!packer.has_room(16));
        packer.take();
        while packer.has_room(16) {
            packer.push(&header, &framed(&[]));
        }
        assert_eq!(packer.calls(), COMPACT_CALLS_MAX);
    }
}
