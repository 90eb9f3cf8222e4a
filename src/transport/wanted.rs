//! The subscriptions that each connection of a subscriber begins with. No sockets.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

/// Prefixes in the order in which they were first subscribed to: a question about a subscription has to reach the
/// publisher after it.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// How many times each is wanted, and its place in the order.
    prefixes: HashMap<Bytes, (usize, u64)>,
    in_order: BTreeMap<u64, Bytes>,
    last: u64,
}

/// What has to be sent to a publisher that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Subscribe(Bytes),
    Cancel(Bytes),
}

impl Wanted {
    /// Adds a prefix; returns what has to be sent, if anything.
    pub fn add(&mut self, prefix: Bytes) -> Option<Change> {
        if let Some((times, _)) = self.prefixes.get_mut(&prefix) {
            *times += 1;
            return None;
        }
        self.last += 1;
        self.prefixes.insert(prefix.clone(), (1, self.last));
        self.in_order.insert(self.last, prefix.clone());
        Some(Change::Subscribe(prefix))
    }

    /// Removes a prefix; returns what has to be sent, if anything.
    pub fn remove(&mut self, prefix: Bytes) -> Option<Change> {
        let (times, place) = self.prefixes.get_mut(&prefix)?;
        *times -= 1;
        if *times > 0 {
            return None;
        }
        self.in_order.remove(place);
        self.prefixes.remove(&prefix);
        Some(Change::Cancel(prefix))
    }

    /// Returns all prefixes, in their order.
    pub fn all(&self) -> impl Iterator<Item = &Bytes> {
        self.in_order.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_sent_once_and_in_the_order_of_its_first_subscription() {
        let mut wanted = Wanted::default();
        let (a, b) = (Bytes::from_static(b"b"), Bytes::from_static(b"a"));
        let subscribe = |of: &Bytes| Some(Change::Subscribe(of.clone()));
        let cancel = |of: &Bytes| Some(Change::Cancel(of.clone()));
        assert_eq!(wanted.remove(a.clone()), None);
        assert_eq!(wanted.add(a.clone()), subscribe(&a));
        assert_eq!(wanted.add(b.clone()), subscribe(&b));
        assert_eq!(wanted.add(a.clone()), None);
        assert_eq!(wanted.remove(a.clone()), None);
        assert!(wanted.all().eq([&a, &b]));
        assert_eq!(wanted.remove(a.clone()), cancel(&a));
        assert_eq!(wanted.add(a.clone()), subscribe(&a));
        assert!(wanted.all().eq([&b, &a]));
    }
}
