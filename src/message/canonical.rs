//! The canonical form of a message: the same bytes for the same content.
//!
//! <https://capnproto.org/encoding.html#canonicalization>. Trailing defaults are trimmed, so that a
//! field which a newer schema has and nobody set changes nothing.

use bytes::Bytes;
use capnp::message::{
    Allocator, Builder, HeapAllocator, ReaderSegments, ScratchSpaceHeapAllocator,
};

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
    let reader = open(body.clone(), limits)?;
    // What a client has built is that already, where it set the last field.
    if reader.is_canonical()? {
        let segments = reader.into_segments();
        return Ok(read(segments.get_segment(0).unwrap_or_default()));
    }
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
            let copied = {
                let reader = open(body, &limits).expect("a message");
                let root = reader.get_root::<capnp::any_pointer::Reader<'_>>().expect("a root");
                copy(root, Builder::new(HeapAllocator::new()), <[u8]>::to_vec).expect("a copy")
            };
            prop_assert_eq!(&bytes, &copied);
            // And its canonical form is its own.
            let words = (bytes.len() / 8) as u32;
            let framed = [&0u32.to_le_bytes()[..], &words.to_le_bytes(), &bytes].concat();
            let again = canonical(&framed.into(), &limits, <[u8]>::to_vec).expect("a message");
            prop_assert_eq!(again, bytes);
        }
    }
}
