//! How many words reading a whole message visits: counted once, when it is opened.
//!
//! Pointers of a message from outside may lead to the same words again and again, and lists may claim
//! elements that have no bytes. So the message is walked once, and refused where a reader that follows
//! every pointer would visit too many words. After that it is read without a counter, as often as wanted.
//!
//! Does not check what the message means: a pointer that leads outside is the reader's error, once
//! something reads it.

use capnp::message::ReaderSegments;

/// Depth that any limit may allow. Reading into plain structs needs stack for each level, in debug builds up to 2.8 KiB
/// for a small struct: a thread of tokio has 2 MiB.
pub(super) const NESTING_MAX: u16 = 256;

const WORD_BITS: usize = 64;

/// A word of a segment, whose bytes may be anywhere in memory.
type Word = [u8; 8];

/// Checks that a reader that follows each pointer once visits at most `words_max` words, in objects within each
/// other at most `nesting` deep.
pub(super) fn check<S: ReaderSegments>(
    segments: &S,
    words_max: usize,
    nesting: u16,
) -> Result<(), TooMuch> {
    let mut walk = Walk {
        segments,
        left: words_max,
    };
    let first = segments.get_segment(0).map_or(&[][..], words_of);
    let Some(root) = first.first().copied().map(Pointer::from) else {
        return Ok(());
    };
    match (root.kind(), root.target(0)) {
        // Here, since most messages are a struct of few fields.
        (0, Some(start)) => walk.record(first, root, start, nesting),
        _ => walk.pointer(first, root, 0, nesting),
    }
}

struct Walk<'a, S> {
    segments: &'a S,
    /// Words that may still be visited.
    left: usize,
}

/// What of a message is over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooMuch {
    Words,
    Nesting,
}

type Visited = Result<(), TooMuch>;

/// What a pointer says.
#[derive(Clone, Copy)]
struct Pointer(u64);

impl From<Word> for Pointer {
    fn from(word: Word) -> Self {
        Self(u64::from_le_bytes(word))
    }
}

impl Pointer {
    fn kind(self) -> u64 {
        self.0 & 3
    }

    /// Where its object begins, for a pointer at this word.
    fn target(self, at: usize) -> Option<usize> {
        let offset = (self.0 as u32 as i32 >> 2) as isize;
        (at + 1).checked_add_signed(offset)
    }

    fn data_words(self) -> usize {
        usize::from((self.0 >> 32) as u16)
    }

    fn pointers(self) -> usize {
        usize::from((self.0 >> 48) as u16)
    }

    /// Of a pointer to a list: the number of its elements, or of their words where they are structs.
    fn count(self) -> usize {
        (self.0 >> 35) as usize
    }

    /// Of a pointer to a list: whether its elements are structs, described by a word in front of them.
    fn has_structs(self) -> bool {
        self.0 >> 32 & 7 == 7
    }

    /// Of a pointer to a list: the bits of an element, 0 for those with pointers. Elements without bits count as a word
    /// each, since they cost no bytes of the message.
    fn element_bits(self) -> usize {
        [WORD_BITS, 1, 8, 16, 32, WORD_BITS, 0, 0][(self.0 >> 32 & 7) as usize]
    }
}

impl<S: ReaderSegments> Walk<'_, S> {
    fn visit(&mut self, words: usize) -> Visited {
        self.left = self.left.checked_sub(words).ok_or(TooMuch::Words)?;
        Ok(())
    }

    fn visit_elements(&mut self, count: usize, bits: usize) -> Visited {
        self.visit((count * bits).div_ceil(WORD_BITS))
    }

    /// Follows a pointer that is at this word of its segment.
    #[inline(never)]
    fn pointer(&mut self, segment: &[Word], pointer: Pointer, at: usize, nesting: u16) -> Visited {
        match pointer.kind() {
            0 | 1 => match pointer.target(at) {
                Some(target) => self.object(segment, pointer, target, nesting),
                None => Ok(()),
            },
            2 => self.far(pointer, nesting),
            _ => Ok(()), // a capability
        }
    }

    /// Follows a pointer into another segment.
    fn far(&mut self, pointer: Pointer, nesting: u16) -> Visited {
        let (pad, id) = ((pointer.0 as u32 >> 3) as usize, (pointer.0 >> 32) as u32);
        let is_double = pointer.0 & 4 != 0;
        self.visit(1 + usize::from(is_double))?;
        let Some(segment) = self.segments.get_segment(id).map(words_of) else {
            return Ok(());
        };
        let word = |at: usize| segment.get(at).copied().map(Pointer::from);
        let (landing, tag) = match (word(pad), word(pad + 1)) {
            (Some(landing), tag) if tag.is_some() || !is_double => (landing, tag),
            _ => return Ok(()),
        };
        let Some(tag) = tag.filter(|_| is_double) else {
            return match (landing.kind(), landing.target(pad)) {
                (0 | 1, Some(target)) => self.object(segment, landing, target, nesting),
                _ => Ok(()), // no reader follows a second one
            };
        };
        let (start, id) = ((landing.0 as u32 >> 3) as usize, (landing.0 >> 32) as u32);
        match (tag.kind(), self.segments.get_segment(id)) {
            (0 | 1, Some(segment)) => self.object(words_of(segment), tag, start, nesting),
            _ => Ok(()),
        }
    }

    /// Visits the struct or list that a pointer describes, and what it points to.
    fn object(&mut self, segment: &[Word], of: Pointer, start: usize, nesting: u16) -> Visited {
        if of.kind() == 0 {
            return self.record(segment, of, start, nesting);
        }
        let (count, bits) = (of.count(), of.element_bits());
        if bits > 0 {
            return self.visit_elements(count, bits);
        }
        let nesting = deeper(nesting)?;
        match of.has_structs() {
            true => self.records(segment, start, count, nesting),
            false => {
                self.visit(count)?;
                self.pointers(segment, start, count, nesting)
            }
        }
    }

    /// Visits a struct.
    #[inline]
    fn record(&mut self, segment: &[Word], of: Pointer, start: usize, nesting: u16) -> Visited {
        let (data, pointers) = (of.data_words(), of.pointers());
        let nesting = deeper(nesting)?;
        self.visit(data + pointers)?;
        self.pointers(segment, start + data, pointers, nesting)
    }

    /// Visits a list of structs, of so many words behind the word that describes them.
    fn records(&mut self, segment: &[Word], start: usize, words: usize, nesting: u16) -> Visited {
        self.visit(words + 1)?;
        if words >= segment.len().saturating_sub(start) {
            return Ok(());
        }
        let tag = Pointer::from(segment[start]);
        let count = (tag.0 as u32 >> 2) as usize;
        let (data, pointers) = (tag.data_words(), tag.pointers());
        let each = data + pointers;
        if each == 0 {
            return self.visit(count);
        }
        if pointers == 0 || count.checked_mul(each).is_none_or(|all| all > words) {
            return Ok(());
        }
        for nth in 0..count {
            self.pointers(segment, start + 1 + nth * each + data, pointers, nesting)?;
        }
        Ok(())
    }

    /// Follows pointers that lie behind each other, where all of them are within the segment.
    #[inline]
    fn pointers(&mut self, segment: &[Word], first: usize, count: usize, nesting: u16) -> Visited {
        let Some(words) = segment.get(first..first + count) else {
            return Ok(());
        };
        for (nth, word) in words.iter().enumerate() {
            let pointer = Pointer::from(*word);
            // Most are nothing or lead to a list without pointers: it does not matter where that is.
            if pointer.0 == 0 {
                continue;
            }
            match (pointer.kind(), pointer.element_bits()) {
                (1, bits @ 1..) => self.visit_elements(pointer.count(), bits)?,
                _ => self.pointer(segment, pointer, first + nth, nesting)?,
            }
        }
        Ok(())
    }
}

fn deeper(nesting: u16) -> Result<u16, TooMuch> {
    nesting.checked_sub(1).ok_or(TooMuch::Nesting)
}

fn words_of(segment: &[u8]) -> &[Word] {
    segment.as_chunks().0
}

#[cfg(test)]
mod tests {
    use capnp::message::ReaderOptions;
    use capnp::serialize::BufferSegments;
    use proptest::prelude::*;

    use super::*;

    struct Segments(Vec<Vec<u8>>);

    impl ReaderSegments for Segments {
        fn get_segment(&self, id: u32) -> Option<&[u8]> {
            self.0.get(id as usize).map(|segment| &segment[..])
        }

        fn len(&self) -> usize {
            self.0.len()
        }
    }

    /// Words that are pointers to somewhere near more often than chance would have it.
    fn words() -> impl Strategy<Value = Vec<u64>> {
        let near = (-4i64..12, 0..2u64)
            .prop_map(|(offset, kind)| u64::from((offset as i32 as u32) << 2) | kind);
        let sizes = prop_oneof![
            (0..4u64, 0..4u64).prop_map(|(data, pointers)| data << 32 | pointers << 48),
            (0..8u64, 0..12u64).prop_map(|(size, count)| size << 32 | count << 35),
        ];
        let pointer = (near, sizes).prop_map(|(near, sizes)| near | sizes);
        let far = (0..8u64, 0..3u64, 0..2u64)
            .prop_map(|(pad, segment, double)| 2 | double << 2 | pad << 3 | segment << 32);
        let word = prop_oneof![6 => pointer, 1 => far, 1 => 0..9u64, 1 => any::<u64>()];
        prop::collection::vec(word, 1..24)
    }

    /// Visits all that a reader without types can, and says whether its own counter allowed that.
    fn reads_all(segments: &Segments, words_max: usize) -> bool {
        let mut options = ReaderOptions::new();
        options.traversal_limit_in_words(Some(words_max));
        options.nesting_limit(8);
        let message = capnp::message::Reader::new(Segments(segments.0.clone()), options);
        // What is no message ends the reading, and costs no more.
        let size = message
            .get_root::<capnp::any_pointer::Reader<'_>>()
            .and_then(|root| root.target_size());
        match size {
            Ok(_) => true,
            Err(error) => error.kind != capnp::ErrorKind::ReadLimitExceeded,
        }
    }

    proptest! {
        #[test]
        fn a_message_within_the_budget_is_within_the_readers(
            segments in prop::collection::vec(words(), 1..3),
            words_max in 0..200usize,
        ) {
            let bytes = |words: Vec<u64>| words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let segments = Segments(segments.into_iter().map(bytes).collect());
            if check(&segments, words_max, 8).is_ok() {
                // Its counter has the root pointer in it.
                prop_assert!(reads_all(&segments, words_max + 1));
            }
        }
    }

    #[test]
    fn a_cycle_of_pointers_is_over_any_budget() {
        // A struct of one pointer, which points to the struct itself.
        let words: [u64; 3] = [
            2 << 32,
            1 << 48,
            u64::from(-2i32 as u32) << 2 & 0xffff_fffc | 1 << 48,
        ];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let segments = BufferSegments::new(&bytes[..], ReaderOptions::new()).unwrap();
        assert_eq!(check(&segments, 200, NESTING_MAX), Err(TooMuch::Words));
        assert_eq!(check(&segments, 200, 32), Err(TooMuch::Nesting));
    }
}
