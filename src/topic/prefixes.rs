//! Whether one of many prefixes begins a topic, in time that depends on the topic and hardly on how many there are.

use std::collections::BTreeMap;
use std::ops::Bound::{Included, Unbounded};

use bytes::Bytes;

/// Returns whether `topic` begins with one of `prefixes`.
pub(super) fn covers<V>(prefixes: &BTreeMap<Bytes, V>, topic: &[u8]) -> bool {
    // In their order, all that begin with a prefix stand together. So the last one up to the topic is a prefix of it, or
    // shares with it all that any prefix of it has.
    let mut part = topic;
    loop {
        let bounds = (Unbounded, Included(part));
        let Some((last, _)) = prefixes.range::<[u8], _>(bounds).next_back() else {
            return false;
        };
        let pairs = last.iter().zip(part);
        let common = pairs.take_while(|(one, other)| one == other).count();
        if common == last.len() {
            return true;
        }
        part = &part[..common];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few letters, so that many are prefixes of each other; the last sorts behind all.
    fn text(longest: usize) -> impl Strategy<Value = Vec<u8>> {
        let letter = prop_oneof![4 => Just(b'a'), 2 => Just(b'b'), 1 => Just(0), 1 => Just(0xff)];
        prop::collection::vec(letter, 0..=longest)
    }

    proptest! {
        #[test]
        fn covers_what_a_list_of_prefixes_covers(
            prefixes in prop::collection::vec(text(4), 0..12),
            topics in prop::collection::vec(text(7), 1..12),
        ) {
            let set: BTreeMap<Bytes, ()> = prefixes.iter().map(|of| (of.clone().into(), ())).collect();
            for topic in topics {
                let expected = prefixes.iter().any(|prefix| topic.starts_with(prefix));
                prop_assert_eq!(covers(&set, &topic), expected);
            }
        }
    }
}
