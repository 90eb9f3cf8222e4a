//! The canonical form of a message: the same bytes for the same content.
//!
//! <https://capnproto.org/encoding.html#canonicalization>. Trailing defaults are trimmed, so that a
//! field which a newer schema has and nobody set changes nothing.

use bytes::Bytes;
use capnp::message::{Allocator, Builder, HeapAllocator, ScratchSpaceHeapAllocator};

use super::received::single_segment;
use super::{Limits, MessageError, open};

/// Gives `read` the canonical bytes of a message, without its segment table.
///
/// # Errors
/// For bytes that are no message, cost more to read than `limits` allow, or hold capabilities.
pub(crate) fn canonical<T>(
    body: &Bytes,
    limits: &Limits,
    read: impl FnOnce(&[u8]) -> T,
) -> Result<T, MessageError> {
    // What a client has built is that already, where it set the last field.
    if body.len() <= limits.message_bytes_max
        && let Some(segment) = single_segment(body)
        && Walk::finds_canonical(segment, limits.nesting_max)
    {
        return Ok(read(segment));
    }
    let reader = open(body.clone(), limits)?;
    let root = reader.get_root::<capnp::any_pointer::Reader<'_>>()?;
    // What is aliased is copied as often as it is pointed at. The reader's limits bound that.
    let words = root.target_size()?.word_count + 1;
    let words = u32::try_from(words).map_err(|_| MessageError::TooLarge {
        bytes: usize::MAX,
        max: limits.message_bytes_max,
    })?;
    let mut scratch = Scratch([0; SCRATCH_BYTES]);
    if words as usize * 8 <= SCRATCH_BYTES {
        let allocator = ScratchSpaceHeapAllocator::new(&mut scratch.0);
        copy(root, Builder::new(allocator), read)
    } else {
        let allocator = HeapAllocator::new().first_segment_words(words);
        copy(root, Builder::new(allocator), read)
    }
}

/// Walks through a segment in the one order that a canonical message has its objects in.
///
/// It looks at each word at most once, wherever pointers lead: away from that order is not canonical. It says
/// no to some that are, such as those with empty lists; then a copy is made of what need not be copied.
/// `Reader::is_canonical` of `capnp` says no wherever a pointer is null, and takes five times as long.
struct Walk<'a> {
    words: &'a [[u8; 8]],
    /// Where the next object has to be.
    next: usize,
}

/// Nobody nests deeper and wants it quick.
const NESTING_MAX: u16 = 32;

impl Walk<'_> {
    fn finds_canonical(segment: &[u8], nesting_max: u16) -> bool {
        let (words, rest) = segment.as_chunks();
        let mut walk = Walk { words, next: 1 };
        let root = walk.word(0).filter(|root| *root != 0);
        root.is_some()
            && walk.pointer(0, nesting_max.min(NESTING_MAX)).is_some()
            && walk.next == words.len()
            && rest.is_empty()
    }

    fn word(&self, at: usize) -> Option<u64> {
        self.words.get(at).map(|word| u64::from_le_bytes(*word))
    }

    fn is_set(&self, at: usize) -> Option<bool> {
        Some(self.word(at)? != 0)
    }

    /// Steps over so many words. Returns where they begin.
    fn take(&mut self, words: usize) -> Option<usize> {
        let begin = self.next;
        self.next = begin.checked_add(words)?;
        (self.next <= self.words.len()).then_some(begin)
    }

    /// Walks through what a pointer points at. `None` where it finds what is not canonical.
    fn pointer(&mut self, at: usize, nesting: u16) -> Option<()> {
        let pointer = self.word(at)?;
        if pointer == 0 {
            return Some(());
        }
        let nesting = nesting.checked_sub(1)?;
        let offset = i64::from(pointer as u32 as i32 >> 2);
        let (data, pointers) = sizes(pointer);
        let is_struct = pointer & 3 == 0;
        if is_struct && data + pointers == 0 {
            return (offset == -1).then_some(());
        }
        if at as i64 + 1 + offset != self.next as i64 {
            return None;
        }
        match pointer & 3 {
            0 => self.structs(1, data, pointers, nesting),
            1 => self.list(pointer, nesting),
            _ => None,
        }
    }

    /// Structs of one size behind each other. The size has to be what one of them needs.
    fn structs(&mut self, count: usize, data: usize, pointers: usize, nesting: u16) -> Option<()> {
        let size = data + pointers;
        let begin = self.take(count.checked_mul(size)?)?;
        let ends_set = |end: usize| {
            let mut structs = (0..count).map(|index| begin + index * size);
            structs.any(|begin| self.is_set(begin + end - 1) == Some(true))
        };
        if (data > 0 && !ends_set(data)) || (pointers > 0 && !ends_set(size)) {
            return None;
        }
        for index in 0..count {
            let begin = begin + index * size + data;
            for at in begin..begin + pointers {
                self.pointer(at, nesting)?;
            }
        }
        Some(())
    }

    fn list(&mut self, pointer: u64, nesting: u16) -> Option<()> {
        let count = (pointer >> 35) as usize;
        if count == 0 {
            return None;
        }
        let bits_each = match (pointer >> 32) & 7 {
            1 => 1,
            2 => 8,
            3 => 16,
            4 => 32,
            5 => 64,
            6 => {
                let begin = self.take(count)?;
                return (begin..begin + count).try_for_each(|at| self.pointer(at, nesting));
            }
            7 => {
                let tag = self.take(1)?;
                let tag = self.word(tag)?;
                let (data, pointers) = sizes(tag);
                let structs = (tag as u32 >> 2) as usize;
                let is_whole = tag & 3 == 0 && structs.checked_mul(data + pointers)? == count;
                return is_whole
                    .then(|| self.structs(structs, data, pointers, nesting))
                    .flatten();
            }
            _ => return None,
        };
        let bits = count * bits_each;
        let begin = self.take(bits.div_ceil(64))?;
        // What is left of the last word is empty.
        let is_filled = bits.is_multiple_of(64);
        let last = self.word(begin + bits / 64 - usize::from(is_filled))?;
        (is_filled || last >> (bits % 64) == 0).then_some(())
    }
}

/// Words of data, and of pointers.
fn sizes(pointer: u64) -> (usize, usize) {
    let (data, pointers) = ((pointer >> 32) as u16, (pointer >> 48) as u16);
    (data.into(), pointers.into())
}

/// Most messages are so small that their canonical form needs no memory of its own.
const SCRATCH_BYTES: usize = 1024;

#[repr(align(8))]
struct Scratch([u8; SCRATCH_BYTES]);

fn copy<A: Allocator, T>(
    root: capnp::any_pointer::Reader<'_>,
    mut message: Builder<A>,
    read: impl FnOnce(&[u8]) -> T,
) -> Result<T, MessageError> {
    message.set_root_canonical(root)?;
    Ok(match message.get_segments_for_output() {
        capnp::OutputSegments::SingleSegment([segment]) => read(segment),
        capnp::OutputSegments::MultiSegment(segments) => read(&segments.concat()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Link, Plain};
    use proptest::prelude::*;

    fn copied(body: Bytes) -> Vec<u8> {
        let reader = open(body, &Limits::default()).expect("a message");
        let root = reader.get_root::<capnp::any_pointer::Reader<'_>>();
        let message = Builder::new(HeapAllocator::new());
        copy(root.expect("a root"), message, <[u8]>::to_vec).expect("a copy")
    }

    fn framed(segment: &[u8]) -> Bytes {
        let words = (segment.len() / 8) as u32;
        [&0u32.to_le_bytes()[..], &words.to_le_bytes(), segment]
            .concat()
            .into()
    }

    /// What the walk says, by nesting, of a message with a struct in a list in a struct.
    #[test]
    fn the_walk_knows_a_canonical_message_and_what_is_none() {
        use crate::wire_capnp::reply_header;
        let mut message = Builder::new_default();
        let mut header = message.init_root::<reply_header::Builder<'_>>();
        header.set_correlation(7);
        header.set_message("");
        let mut entry = header.init_metadata(2).get(1);
        entry.set_key("key");
        let mut segment = copied(framed(&message.get_segments_for_output().concat()));
        assert!(Walk::finds_canonical(&segment, 3));
        assert!(!Walk::finds_canonical(&segment, 2), "it is nested deeper");
        let longer = [&segment[..], &[0; 8]].concat();
        assert!(
            !Walk::finds_canonical(&longer, 3),
            "there is more behind it"
        );
        *segment.last_mut().expect("a word") = 1;
        assert!(
            !Walk::finds_canonical(&segment, 3),
            "what the text does not use is not empty"
        );
        assert!(!Walk::finds_canonical(&[0; 8], 3) && !Walk::finds_canonical(&[], 3));
    }

    proptest! {
        #[test]
        fn what_is_canonical_already_is_what_a_copy_would_be(
            service in "[a-z]{0,20}", interface in 0..3u64, method in 0..3u16,
            parameters in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let link = Link::<String>::new(service, interface, method, parameters);
            let limits = Limits::default();
            let body = link.to_bytes().expect("it has an encoding");
            let bytes = canonical(&body, &limits, <[u8]>::to_vec).expect("a message");
            prop_assert_eq!(&bytes, &copied(body));
            // And its canonical form is its own.
            let again = canonical(&framed(&bytes), &limits, <[u8]>::to_vec).expect("a message");
            prop_assert_eq!(again, bytes);
        }
    }
}
