//! What makes two requests the same: the hash of the parameters in canonical form, however they were sent.

use bowline::Limits;
use bowline::message::Plain;
use bowline::once::Fingerprint;
use bowline_test_schemas::everything::{Lists, Numbers, Tree};
use bytes::Bytes;
use capnp::message::{Builder, Reader};
use capnp::serialize::BufferSegments;
use proptest::collection::vec;
use proptest::prelude::*;

/// As the library for Cap'n Proto makes it.
fn canonical(body: &[u8]) -> Option<Vec<u8>> {
    // Of words, so that it begins where a word may.
    let mut aligned = capnp::Word::allocate_zeroed_vec(body.len().div_ceil(8));
    capnp::Word::words_to_bytes_mut(&mut aligned)[..body.len()].copy_from_slice(body);
    let words = &capnp::Word::words_to_bytes(&aligned)[..body.len()];
    let segments = BufferSegments::new(words, Default::default()).ok()?;
    let reader = Reader::new(segments, Default::default());
    let root = reader.get_root::<capnp::any_pointer::Reader<'_>>().ok()?;
    let mut message = Builder::new_default();
    message.set_root_canonical(root).ok()?;
    Some(message.get_segments_for_output().concat())
}

fn framed(segment: &[u8]) -> Bytes {
    let words = (segment.len() / 8) as u32;
    [&0u32.to_le_bytes()[..], &words.to_le_bytes(), segment]
        .concat()
        .into()
}

fn lists() -> impl Strategy<Value = Lists> {
    let numbers = (any::<bool>(), any::<u8>()).prop_map(|(is_set, number)| Numbers {
        u8: if is_set { number } else { 0 },
        ..Default::default()
    });
    let text = || "[a-z]{0,12}";
    let lists = (
        vec(any::<bool>(), 0..70),
        vec(any::<i32>(), 0..5),
        vec(any::<u8>(), 0..20),
        vec(text(), 0..4),
        vec(numbers, 0..4),
        vec(vec(text(), 0..3), 0..3),
        text(),
    );
    lists.prop_map(
        |(flags, numbers, bytes, texts, structs, lists, text)| Lists {
            flags,
            numbers,
            bytes,
            texts,
            structs,
            lists,
            text,
            ..Default::default()
        },
    )
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = Just(Tree::default());
    leaf.prop_recursive(5, 20, 3, |of| {
        vec(of, 0..4).prop_map(|children| Tree {
            children,
            ..Default::default()
        })
    })
}

fn body() -> impl Strategy<Value = Bytes> {
    let bytes = |plain: Result<Bytes, _>| plain.expect("it has an encoding");
    prop_oneof![
        lists().prop_map(move |plain| bytes(plain.to_bytes())),
        tree().prop_map(move |plain| bytes(plain.to_bytes())),
    ]
}

/// The hash of the canonical form, or none where there is no such form.
fn check(body: Bytes) -> Result<(), TestCaseError> {
    let expected = canonical(&body).map(|canonical| Fingerprint::of_bytes(&canonical));
    let found = Fingerprint::of_parameters(&body, &Limits::default());
    match (found, expected) {
        (Ok(found), Some(expected)) => prop_assert_eq!(found, expected),
        // Our limits are tighter than that library's.
        (Err(_), _) => {}
        (Ok(_), None) => prop_assert!(false, "a hash of what has no canonical form"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_fingerprint_is_the_hash_of_the_canonical_form(
        body in body(), flips in vec((any::<prop::sample::Index>(), 0..8u8), 0..3),
    ) {
        let segment = canonical(&body).expect("it was built");
        let limits = Limits::default();
        let of_body = Fingerprint::of_parameters(&body, &limits).expect("a message");
        prop_assert_eq!(of_body, Fingerprint::of_bytes(&segment));
        let of_canonical = Fingerprint::of_parameters(&framed(&segment), &limits);
        prop_assert_eq!(of_canonical.expect("a message"), of_body);
        // What is nearly canonical is not taken for canonical.
        let mut flipped = segment;
        for (index, bit) in flips {
            let at = index.index(flipped.len());
            flipped[at] ^= 1 << bit;
        }
        check(framed(&flipped))?;
    }
}
