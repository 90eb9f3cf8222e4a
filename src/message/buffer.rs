//! Buffers that a message is built in and sent from, without a copy in between.
//!
//! Does not know what is built, nor where it goes. All of the crate's `unsafe` is here: `capnp`'s
//! allocator trait can only be implemented with it. The reason to implement it, measured: a small
//! message takes one allocation and less than half the time of `capnp`'s own builder and writer.
//!
//! The trick: a buffer keeps its first word free. A message that fits in one segment is built from
//! the second word on; then the first becomes the segment table of the standard framing
//! (<https://capnproto.org/encoding.html#serialization-over-a-stream>), and the buffer *is* the
//! frame. A message that does not fit spills into further segments and is then copied once; its
//! buffer comes back larger.
//!
//! A small message is copied once more, out of its buffer and behind the small messages before it:
//! a few cache lines of copying cost less than the allocation that would hand the buffer over, and
//! the next message finds the buffer warm.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::ptr::NonNull;

use bytes::{Bytes, BytesMut};
use capnp::Word;
use capnp::message::{Allocator, Builder, HeapAllocator};
use capnp::traits::Owned;

/// Words of a new buffer, its table included: most messages fit, and it is two cache lines' worth of clearing.
const WORDS_INITIAL: usize = 64;
/// A buffer larger than this is not kept: one large message must not cost memory for ever.
const WORDS_KEPT_MAX: usize = 8 * 1024;
/// Buffers that a thread keeps.
const BUFFERS_KEPT_MAX: usize = 64;

/// Messages up to this size are copied behind each other: 1 KiB, and what is around it.
const COPIED_BYTES_MAX: usize = 1280;
/// What they are copied into. A message that is kept keeps all of this: it is no larger, so that who
/// does not read cannot hold much, and who keeps messages for long copies them.
const CHUNK_BYTES: usize = 8 * 1024;
// Room for the largest copy, however its first is aligned.
const _: () = assert!(COPIED_BYTES_MAX + align_of::<Word>() <= CHUNK_BYTES);

/// With each message, the size of new buffers shrinks by one part in so many.
const SHRINK: usize = 64;
/// A buffer of more than so many times the size of new ones is not used again.
const OVERSIZE_MAX: usize = 4;

const ZERO: Word = capnp::word(0, 0, 0, 0, 0, 0, 0, 0);

/// Builds a message whose root is a `T` and returns it in the standard framing.
///
/// The bytes return to the building thread's pool, or to that of the thread that drops them last.
fn build<T: Owned, E>(write: impl FnOnce(T::Builder<'_>) -> Result<(), E>) -> Result<Bytes, E> {
    build_of_length::<T, E>(0, write)
}

/// The same, by what cannot fail.
pub(crate) fn build_with<T: Owned>(write: impl FnOnce(T::Builder<'_>)) -> Bytes {
    let Ok(bytes) = build::<T, std::convert::Infallible>(|to| {
        write(to);
        Ok(())
    });
    bytes
}

/// The same for a root that may be text, data or a list, of this length.
pub(crate) fn build_of_length<T: Owned, E>(
    length: u32,
    write: impl FnOnce(T::Builder<'_>) -> Result<(), E>,
) -> Result<Bytes, E> {
    build_in_buffer::<T, E>(length, write).map(Built::into_bytes)
}

/// The same for who copies it behind something else, and needs no copy before.
pub(crate) fn build_in_buffer<T: Owned, E>(
    length: u32,
    write: impl FnOnce(T::Builder<'_>) -> Result<(), E>,
) -> Result<Built, E> {
    let mut buffer = take();
    let spilled = {
        let mut message = Builder::new(&mut buffer);
        write(message.initn_root::<T::Builder<'_>>(length))?;
        if message.get_segments_for_output().len() == 1 {
            None
        } else {
            Some(capnp::serialize::write_message_to_words(&message))
        }
    };
    Ok(match spilled {
        None => {
            buffer.seal();
            Built(Place::Buffer(buffer))
        }
        Some(framed) => {
            buffer.grow_to_hold(framed.len() / 8);
            Built(Place::Spilled(framed))
        }
    })
}

/// A message in the standard framing, where it was built.
pub(crate) struct Built(Place);

enum Place {
    Buffer(Buffer),
    Spilled(Vec<u8>),
}

impl Built {
    /// Returns its bytes, to be kept or sent. A small message is copied behind others, and one that would
    /// leave more than half of its buffer unused into memory of its own size: a message that is kept for
    /// long must not hold much more than itself.
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Place::Buffer(buffer) => match buffer.as_ref() {
                small if small.len() <= COPIED_BYTES_MAX => copied(small),
                part if part.len() < buffer.words.len() * align_of::<Word>() / 2 => {
                    aligned_copy(part)
                }
                _ => Bytes::from_owner(buffer),
            },
            Place::Spilled(framed) => Bytes::from(framed),
        }
    }
}

impl Deref for Built {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Place::Buffer(buffer) => buffer.as_ref(),
            Place::Spilled(framed) => framed,
        }
    }
}

/// A copy of `bytes` that starts at a multiple of eight, as Cap'n Proto's reader needs; or `bytes`
/// itself where it does already.
pub(crate) fn aligned(bytes: Bytes) -> Bytes {
    if (bytes.as_ptr() as usize).is_multiple_of(align_of::<Word>()) {
        return bytes;
    }
    match bytes.len() {
        ..=COPIED_BYTES_MAX => copied(&bytes),
        _ => aligned_copy(&bytes),
    }
}

/// A copy in memory of its own, aligned.
fn aligned_copy(bytes: &[u8]) -> Bytes {
    struct AlignedCopy {
        words: Vec<Word>,
        len: usize,
    }
    impl AsRef<[u8]> for AlignedCopy {
        fn as_ref(&self) -> &[u8] {
            &Word::words_to_bytes(&self.words)[..self.len]
        }
    }
    let mut words = Word::allocate_zeroed_vec(bytes.len().div_ceil(8));
    Word::words_to_bytes_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    Bytes::from_owner(AlignedCopy {
        words,
        len: bytes.len(),
    })
}

/// A copy of few bytes, aligned, in what this thread has left of its chunk.
pub(crate) fn copied(bytes: &[u8]) -> Bytes {
    joined([bytes])
}

/// The same of several in one, aligned where they are small.
pub(crate) fn joined<const PARTS: usize>(parts: [&[u8]; PARTS]) -> Bytes {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    if len > COPIED_BYTES_MAX {
        return parts.concat().into();
    }
    let padded = len.next_multiple_of(align_of::<Word>());
    let copy = CHUNK.try_with(|chunk| {
        let mut chunk = chunk.borrow_mut();
        if chunk.capacity() < padded {
            // The same memory again, where all that was copied into it is gone by now.
            chunk.reserve(CHUNK_BYTES);
            let before_first = chunk.as_ptr().align_offset(align_of::<Word>());
            chunk.resize(before_first, 0);
            drop(chunk.split());
        }
        for part in parts {
            chunk.extend_from_slice(part);
        }
        if len == padded {
            return chunk.split().freeze();
        }
        chunk.resize(padded, 0);
        let mut copy = chunk.split();
        copy.truncate(len);
        copy.freeze()
    });
    // A thread that is ending has no chunk any more.
    copy.unwrap_or_else(|_| parts.concat().into())
}

/// Returns a part of a message that holds others. One that is less than half of the message is copied, so that it does
/// not keep them all.
pub(crate) fn part(of: &Bytes, part: &[u8]) -> Bytes {
    match part.len() {
        0..=COPIED_BYTES_MAX => copied(part),
        len if len < of.len() / 2 => aligned_copy(part),
        _ => of.slice_ref(part),
    }
}

/// Copies what is kept for long into memory of its own: what was received may hold all that was read with it.
pub(crate) fn detached(bytes: &[u8]) -> Bytes {
    aligned_copy(bytes)
}

thread_local! {
    /// Always empty: what was copied is split off. Its start is aligned, since the length of every
    /// copy is a multiple of eight.
    static CHUNK: RefCell<BytesMut> = RefCell::new(BytesMut::new());
    static POOL: RefCell<Vec<Vec<Word>>> = const { RefCell::new(Vec::new()) };
    /// Words that a new buffer has: as many as a message of late has needed.
    static WORDS_NEW: Cell<usize> = const { Cell::new(WORDS_INITIAL) };
}

fn take() -> Buffer {
    let wanted = WORDS_NEW.get();
    // Shrinks slowly with use: one large message does not make all buffers large for ever.
    WORDS_NEW.set((wanted - wanted / SHRINK).max(WORDS_INITIAL));
    let pooled = POOL.try_with(|pool| pool.borrow_mut().pop());
    let words = match pooled.ok().flatten() {
        Some(words) if words.len() <= wanted * OVERSIZE_MAX => words,
        _ => Word::allocate_zeroed_vec(wanted),
    };
    Buffer {
        words,
        used: 0,
        lent: false,
        spill: HeapAllocator::new(),
    }
}

/// Invariant while in the pool or fresh: every word is zero, and there are at least two.
struct Buffer {
    words: Vec<Word>,
    /// Words of the one segment in use, the table not counted.
    used: usize,
    /// Whether `capnp` has the segment.
    lent: bool,
    spill: HeapAllocator,
}

// SAFETY: the only part of a `Buffer` that is not `Send` by itself is `HeapAllocator`'s marker; it
// holds no pointer, only the size of its next segment.
unsafe impl Send for Buffer {}
// SAFETY: a shared `Buffer` only gives out `&[u8]` of its words (`AsRef`).
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Writes the segment table of a message of one segment into the first word.
    fn seal(&mut self) {
        let segment_words = self.used as u32; // at most `words.len()`, which came from a `u32`
        Word::words_to_bytes_mut(&mut self.words[..1])[4..8]
            .copy_from_slice(&segment_words.to_le_bytes());
    }

    fn grow_to_hold(&mut self, words: usize) {
        let words = (words + words / 4).next_power_of_two();
        if words <= WORDS_KEPT_MAX && words > self.words.len() {
            WORDS_NEW.set(words);
            self.words = Word::allocate_zeroed_vec(words);
            self.used = 0;
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        Word::words_to_bytes(&self.words[..=self.used])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.words.len() > WORDS_KEPT_MAX {
            return;
        }
        let mut words = std::mem::take(&mut self.words);
        words[..=self.used].fill(ZERO);
        // A thread that is ending has no pool any more: then the words are simply freed.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < BUFFERS_KEPT_MAX {
                pool.push(words);
            }
        });
    }
}

// SAFETY: the trait asks for zeroed, word-aligned memory of at least `minimum_size` words that
// stays put until it is deallocated. `words` is a `Vec<Word>` (eight-byte aligned) that nothing
// touches or resizes while `lent`; it is zero beyond the first word by the invariant above. Other
// segments are `HeapAllocator`'s.
unsafe impl Allocator for Buffer {
    fn allocate_segment(&mut self, minimum_size: u32) -> (NonNull<u8>, u32) {
        let available = self.words.len() - 1;
        if self.lent || minimum_size as usize > available {
            return self.spill.allocate_segment(minimum_size);
        }
        self.lent = true;
        let segment = NonNull::from(&mut self.words[1..]).cast::<u8>();
        (segment, available as u32) // a kept buffer is far below u32::MAX words
    }

    // SAFETY: as the trait asks, `capnp` gives back what it was lent here, once, with the size that it was told.
    unsafe fn deallocate_segment(&mut self, segment: NonNull<u8>, size: u32, used: u32) {
        if self.lent && segment.as_ptr().cast_const() == self.words[1..].as_ptr().cast::<u8>() {
            self.lent = false;
            self.used = used as usize;
        } else {
            // SAFETY: any other segment came from `spill`, and is given back with its own size.
            unsafe { self.spill.deallocate_segment(segment, size, used) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capnp::data;

    fn message_of(bytes: usize) -> Bytes {
        build::<data::Owned, capnp::Error>(|_| Ok(())).unwrap();
        build::<crate::wire_capnp::metadata::Owned, capnp::Error>(|mut root| {
            root.set_value(&vec![7; bytes]);
            Ok(())
        })
        .unwrap()
    }

    fn value_of(bytes: &Bytes) -> Vec<u8> {
        let message = capnp::serialize::read_message(&mut &bytes[..], Default::default()).unwrap();
        let root = message
            .get_root::<crate::wire_capnp::metadata::Reader<'_>>()
            .unwrap();
        root.get_value().unwrap().to_vec()
    }

    #[test]
    fn any_size_reads_back_with_the_stock_reader() {
        for size in [0, 1, 7, 8, 400, 480, 500, 4096, 70_000, 700_000] {
            for _ in 0..3 {
                assert_eq!(value_of(&message_of(size)), vec![7; size], "{size} bytes");
            }
        }
    }

    /// Words of the buffers that this thread keeps.
    fn words_pooled() -> usize {
        POOL.with(|pool| pool.borrow().iter().map(Vec::len).sum())
    }

    #[test]
    fn kept_messages_hold_at_most_twice_their_size_after_large_ones() {
        let large = 50_000;
        let kept: Vec<Bytes> = (0..200)
            .map(|nth| {
                if nth % 50 == 0 {
                    drop(message_of(large));
                    drop(message_of(large));
                }
                message_of(1400)
            })
            .collect();
        assert!(kept.iter().all(|message| message.len() < 1500));
        // None of them has a buffer: all of those are in the pool, and few.
        assert!(words_pooled() <= 4 * WORDS_KEPT_MAX, "{}", words_pooled());
    }

    #[test]
    fn kept_parts_hold_at_most_twice_their_size() {
        let message = Bytes::from(vec![7; 64 * 1024]);
        for (len, is_shared) in [(100, false), (1400, false), (4096, false), (40_000, true)] {
            let kept = part(&message, &message[8..8 + len]);
            assert_eq!(kept, message[8..8 + len]);
            let holds = message.as_ptr_range().contains(&kept.as_ptr());
            assert_eq!(holds, is_shared, "{len}");
        }
    }

    #[test]
    fn large_buffers_are_given_up_while_small_messages_are_built() {
        for _ in 0..3 {
            drop(message_of(50_000));
        }
        assert!(words_pooled() >= 50_000 / 8);
        for _ in 0..1000 {
            drop(message_of(100));
        }
        assert!(words_pooled() <= 1024, "{}", words_pooled());
    }

    #[test]
    fn a_reused_buffer_holds_nothing_of_the_message_before() {
        drop(message_of(300));
        let bytes = build::<crate::wire_capnp::metadata::Owned, capnp::Error>(|mut root| {
            root.reborrow().init_value(300);
            Ok(())
        })
        .unwrap();
        assert_eq!(value_of(&bytes), vec![0; 300]);
    }

    #[test]
    fn a_failed_build_gives_its_buffer_back_clean() {
        let failed = build::<crate::wire_capnp::metadata::Owned, &str>(|mut root| {
            root.set_value(&[9; 200]);
            Err("no")
        });
        assert_eq!(failed, Err("no"));
        a_reused_buffer_holds_nothing_of_the_message_before();
    }

    #[test]
    fn a_copy_for_alignment_has_the_same_bytes() {
        let bytes = Bytes::from((0..100).collect::<Vec<u8>>());
        for start in 0..9 {
            let copy = aligned(bytes.slice(start..));
            assert_eq!(copy, bytes.slice(start..));
            assert_eq!(copy.as_ptr() as usize % 8, 0);
        }
    }
}
