//! Who has subscribed to what, found by the topic. No sockets.
//!
//! How long it takes depends on the topic and on those whom it matches, and hardly on how many
//! subscriptions there are.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Included, Unbounded};

use bytes::Bytes;

/// Peers by their numbers, and their prefixes. A peer that subscribes to one twice has it until it
/// has taken it back twice, as ZeroMQ has it.
#[derive(Debug)]
pub(crate) struct Index<P> {
    peers: BTreeMap<u64, Peer<P>>,
    by_prefix: BTreeMap<Bytes, Vec<(u64, P)>>,
}

#[derive(Debug)]
struct Peer<P> {
    of: P,
    /// Each with how many times it has it.
    prefixes: HashMap<Bytes, usize>,
}

impl<P: Clone> Index<P> {
    pub fn new() -> Self {
        Self {
            peers: BTreeMap::new(),
            by_prefix: BTreeMap::new(),
        }
    }

    /// A peer is there, without a subscription.
    pub fn join(&mut self, number: u64, of: P) {
        let prefixes = HashMap::new();
        self.peers.insert(number, Peer { of, prefixes });
    }

    /// It is gone with its subscriptions; says whether it had any.
    pub fn leave(&mut self, number: u64) -> bool {
        let Some(peer) = self.peers.remove(&number) else {
            return false;
        };
        for prefix in peer.prefixes.keys() {
            self.forget(number, prefix);
        }
        !peer.prefixes.is_empty()
    }

    /// A peer that is there subscribes.
    pub fn add(&mut self, number: u64, prefix: Bytes) {
        let Some(peer) = self.peers.get_mut(&number) else {
            return;
        };
        let times = peer.prefixes.entry(prefix.clone()).or_default();
        *times += 1;
        if *times == 1 {
            let peers = self.by_prefix.entry(prefix).or_default();
            peers.push((number, peer.of.clone()));
        }
    }

    /// It takes one back; says whether it had it.
    pub fn remove(&mut self, number: u64, prefix: &[u8]) -> bool {
        let Some(peer) = self.peers.get_mut(&number) else {
            return false;
        };
        let Some(times) = peer.prefixes.get_mut(prefix) else {
            return false;
        };
        *times -= 1;
        if *times == 0 {
            peer.prefixes.remove(prefix);
            self.forget(number, prefix);
        }
        true
    }

    fn forget(&mut self, number: u64, prefix: &[u8]) {
        let Some(peers) = self.by_prefix.get_mut(prefix) else {
            return;
        };
        peers.retain(|(of, _)| *of != number);
        if peers.is_empty() {
            self.by_prefix.remove(prefix);
        }
    }

    /// Finds the peers that have a prefix of the topic; one that has several is found for each.
    pub fn find(&self, topic: &[u8], mut found: impl FnMut(&P)) {
        // In their order, all that begin with a prefix stand together. So of those up to the topic,
        // the last begins with every prefix of the topic that there is, or is one itself.
        let mut up_to = Some(topic);
        while let Some(part) = up_to {
            let bounds = (Unbounded, Included(part));
            let Some((last, peers)) = self.by_prefix.range::<[u8], _>(bounds).next_back() else {
                return;
            };
            let common = common_len(last, part);
            up_to = if common == last.len() {
                peers.iter().for_each(|(_, of)| found(of));
                common.checked_sub(1).map(|shorter| &part[..shorter])
            } else {
                Some(&part[..common])
            };
        }
    }

    /// Whether a peer has all topics with a prefix; or, without one, whether any has.
    pub fn has(&self, number: Option<u64>, prefix: &[u8]) -> bool {
        let covers = |peer: &Peer<P>| peer.prefixes.keys().any(|of| prefix.starts_with(of));
        match number {
            Some(number) => self.peers.get(&number).is_some_and(covers),
            None => self.peers.values().any(covers),
        }
    }

    /// Whether a peer has any subscription.
    pub fn has_any(&self, number: u64) -> bool {
        let peer = self.peers.get(&number);
        peer.is_some_and(|peer| !peer.prefixes.is_empty())
    }

    /// How many peers there are.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    pub fn peer(&self, number: u64) -> Option<&P> {
        self.peers.get(&number).map(|peer| &peer.of)
    }

    pub fn peers(&self) -> impl Iterator<Item = &P> {
        self.peers.values().map(|peer| &peer.of)
    }

    /// The different prefixes of one peer.
    pub fn prefixes(&self, number: u64) -> Vec<Bytes> {
        let peer = self.peers.get(&number);
        peer.map_or(Vec::new(), |peer| peer.prefixes.keys().cloned().collect())
    }

    /// The prefixes of all, each as many times as its peer has it.
    pub fn all(&self) -> Vec<(u64, Vec<Bytes>)> {
        let peers = self.peers.iter();
        let peers = peers.filter(|(_, peer)| !peer.prefixes.is_empty());
        let prefixes = |peer: &Peer<P>| {
            let prefixes = peer.prefixes.iter();
            let each = prefixes.flat_map(|(of, times)| std::iter::repeat_n(of.clone(), *times));
            each.collect()
        };
        peers
            .map(|(number, peer)| (*number, prefixes(peer)))
            .collect()
    }
}

/// How many bytes are the same at the beginning.
fn common_len(one: &[u8], other: &[u8]) -> usize {
    let pairs = one.iter().zip(other);
    pairs.take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const PEERS: u64 = 4;

    #[derive(Clone, Debug)]
    enum Step {
        Join(u64),
        Add(u64, Vec<u8>),
        Remove(u64, Vec<u8>),
        Leave(u64),
    }

    /// Few letters, so that many are prefixes of each other; the last sorts behind all.
    fn text(longest: usize) -> impl Strategy<Value = Vec<u8>> {
        let letter = prop_oneof![4 => Just(b'a'), 2 => Just(b'b'), 1 => Just(0), 1 => Just(0xff)];
        proptest::collection::vec(letter, 0..=longest)
    }

    fn step() -> impl Strategy<Value = Step> {
        let peer = || 0..PEERS;
        prop_oneof![
            2 => peer().prop_map(Step::Join),
            8 => (peer(), text(4)).prop_map(|(peer, prefix)| Step::Add(peer, prefix)),
            3 => (peer(), text(4)).prop_map(|(peer, prefix)| Step::Remove(peer, prefix)),
            1 => peer().prop_map(Step::Leave),
        ]
    }

    /// What an index is, said plainly: who is there, and the list of what each has.
    #[derive(Default)]
    struct Lists(BTreeMap<u64, Vec<Vec<u8>>>);

    impl Lists {
        fn take(&mut self, step: &Step) {
            match step {
                Step::Join(peer) => {
                    self.0.entry(*peer).or_default();
                }
                Step::Add(peer, prefix) => {
                    if let Some(list) = self.0.get_mut(peer) {
                        list.push(prefix.clone());
                    }
                }
                Step::Remove(peer, prefix) => {
                    if let Some(list) = self.0.get_mut(peer)
                        && let Some(at) = list.iter().position(|of| of == prefix)
                    {
                        list.remove(at);
                    }
                }
                Step::Leave(peer) => {
                    self.0.remove(peer);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn finds_whom_plain_lists_of_prefixes_find(
            steps in proptest::collection::vec(step(), 0..80),
            topics in proptest::collection::vec(text(7), 1..12),
        ) {
            let mut index = Index::new();
            let mut lists = Lists::default();
            for step in steps {
                match &step {
                    // A number is given once.
                    Step::Join(peer) if lists.0.contains_key(peer) => {}
                    Step::Join(peer) => index.join(*peer, *peer),
                    Step::Add(peer, prefix) => index.add(*peer, prefix.clone().into()),
                    Step::Remove(peer, prefix) => {
                        let had = lists.0.get(peer).is_some_and(|list| list.contains(prefix));
                        prop_assert_eq!(index.remove(*peer, prefix), had);
                    }
                    Step::Leave(peer) => {
                        let had = lists.0.get(peer).is_some_and(|list| !list.is_empty());
                        prop_assert_eq!(index.leave(*peer), had);
                    }
                }
                lists.take(&step);
                for topic in &topics {
                    // Once for each different prefix, and the longest first.
                    let mut found = Vec::new();
                    index.find(topic, |peer| found.push(*peer));
                    found.sort_unstable();
                    let mut expected = Vec::new();
                    for (peer, list) in &lists.0 {
                        let different: BTreeSet<_> = list.iter().collect();
                        let matching = different.iter().filter(|of| topic.starts_with(of));
                        expected.extend(matching.map(|_| *peer));
                    }
                    prop_assert_eq!(found, expected);
                }
                let mut all: Vec<(u64, Vec<Vec<u8>>)> = Vec::new();
                for (peer, prefixes) in index.all() {
                    let mut prefixes: Vec<Vec<u8>> = prefixes.iter().map(|of| of.to_vec()).collect();
                    prefixes.sort_unstable();
                    all.push((peer, prefixes));
                }
                let expected = lists.0.iter().filter(|(_, list)| !list.is_empty());
                let expected: Vec<_> = expected
                    .map(|(peer, list)| {
                        let mut list = list.clone();
                        list.sort_unstable();
                        (*peer, list)
                    })
                    .collect();
                prop_assert_eq!(all, expected);
                prop_assert!(index.by_prefix.values().all(|peers| !peers.is_empty()));
            }
        }
    }

    #[test]
    fn nested_prefixes_are_all_found_and_their_neighbours_are_not() {
        let mut index = Index::new();
        index.join(1, 1);
        let topic = b"progress/job-314";
        for length in 0..=topic.len() {
            index.add(1, Bytes::copy_from_slice(&topic[..length]));
            let mut neighbour = topic[..length].to_vec();
            if let Some(last) = neighbour.last_mut() {
                *last -= 1;
                index.add(1, neighbour.into());
            }
        }
        let mut found = 0;
        index.find(topic, |_| found += 1);
        assert_eq!(found, topic.len() + 1);
    }
}
