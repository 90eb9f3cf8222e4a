//! How many subscriptions a publisher keeps: of one peer, and in bytes of all. The count, without sockets.
//!
//! Half of the bytes are shared out among as many peers as may connect: each always has its part,
//! whatever the others do. The other half is for those who want more. Nobody says when a subscription
//! is taken back; those that there are get counted again now and then.

use std::collections::HashMap;

/// What a subscription takes besides its prefix.
const EACH: usize = 64;

/// Counts the subscriptions of one socket, by the numbers of their peers.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    of_one_max: usize,
    /// Bytes that every peer has for itself.
    part: usize,
    /// Bytes of all that peers have past their parts.
    more_max: usize,
    more: usize,
    of: HashMap<u64, Held>,
    /// What was admitted since the last look at those that there are began, and between that and the one before.
    since: [HashMap<u64, Held>; 2],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    count: usize,
    bytes: usize,
}

/// What a subscription is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Events,
    /// To be told what became of another one. There is an eighth more room for those, so that one who is
    /// refused a subscription can still be told so.
    Answer,
}

impl Wanted {
    fn room(self, max: usize) -> usize {
        match self {
            Self::Events => max,
            Self::Answer => max + max.div_ceil(8),
        }
    }
}

impl Subscriptions {
    pub fn new(of_one_max: usize, bytes_total_max: usize, peers_max: usize) -> Self {
        Self {
            of_one_max,
            part: bytes_total_max / 2 / peers_max.max(1),
            more_max: bytes_total_max / 2,
            more: 0,
            of: HashMap::new(),
            since: Default::default(),
        }
    }

    /// Whether a peer may have one more, with a prefix of this length; counts it if so.
    pub fn admit(&mut self, peer: u64, prefix_bytes: usize, wanted: Wanted) -> bool {
        let before = self.of.get(&peer).copied().unwrap_or_default();
        let after = before.and(prefix_bytes);
        let more = self.more - self.past_part(before) + self.past_part(after);
        let has_room = after.bytes <= wanted.room(self.part) || more <= wanted.room(self.more_max);
        let fits = after.count <= wanted.room(self.of_one_max) && has_room;
        if fits {
            self.more = more;
            self.of.insert(peer, after);
            let since = self.since[0].entry(peer).or_default();
            *since = since.and(prefix_bytes);
        }
        fits
    }

    /// Those that there are will be looked at now, and [counted](Self::recount) then.
    pub fn look(&mut self) {
        let [last, before] = &mut self.since;
        std::mem::swap(last, before);
        last.clear();
    }

    /// A peer had these when they were looked at. One that was admitted a moment before may not have been among them, so those
    /// since the look before this one count beside them; in all never as more than without a look.
    pub fn recount(&mut self, peer: u64, prefixes_bytes: impl Iterator<Item = usize>) {
        let before = self.of.get(&peer).copied().unwrap_or_default();
        let since = self.since.each_ref().map(|since| since.get(&peer).copied());
        let since = since.into_iter().flatten();
        let since = since.fold(Held::default(), |all, of| Held {
            count: all.count + of.count,
            bytes: all.bytes + of.bytes,
        });
        let held = prefixes_bytes.fold(since, Held::and);
        let held = Held {
            count: held.count.min(before.count),
            bytes: held.bytes.min(before.bytes),
        };
        self.more -= self.past_part(before);
        self.more += self.past_part(held);
        match held.count {
            0 => self.of.remove(&peer),
            _ => self.of.insert(peer, held),
        };
    }

    /// A peer is gone.
    pub fn release(&mut self, peer: u64) {
        for since in &mut self.since {
            since.remove(&peer);
        }
        if let Some(held) = self.of.remove(&peer) {
            self.more -= self.past_part(held);
        }
    }

    /// Forgets those who are not there any more.
    pub fn retain(&mut self, is_there: impl Fn(u64) -> bool) {
        let gone: Vec<u64> = self
            .of
            .keys()
            .copied()
            .filter(|of| !is_there(*of))
            .collect();
        for peer in gone {
            self.release(peer);
        }
    }

    /// Whether this peer, or all together, come near a limit.
    pub fn is_much(&self, peer: u64) -> bool {
        self.of.get(&peer).is_some_and(|held| self.is_near(*held)) || self.more > self.more_max / 2
    }

    /// Whether anybody comes near a limit.
    pub fn is_crowded(&self) -> bool {
        self.more > self.more_max / 2 || self.of.values().any(|held| self.is_near(*held))
    }

    fn is_near(&self, held: Held) -> bool {
        held.count > self.of_one_max / 2
    }

    fn past_part(&self, held: Held) -> usize {
        held.bytes.saturating_sub(self.part)
    }
}

impl Held {
    fn and(self, prefix_bytes: usize) -> Self {
        Self {
            count: self.count + 1,
            bytes: self.bytes + prefix_bytes + EACH,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Admit(u64, usize, bool),
        Recount(u64, usize),
        Release(u64),
        Retain(Vec<bool>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let peer = || 0u64..4;
        prop_oneof![
            6 => (peer(), 0usize..40, any::<bool>()).prop_map(|(p, b, a)| Step::Admit(p, b, a)),
            1 => (peer(), 0usize..6).prop_map(|(p, keep)| Step::Recount(p, keep)),
            1 => peer().prop_map(Step::Release),
            1 => proptest::collection::vec(any::<bool>(), 4).prop_map(Step::Retain),
        ]
    }

    proptest! {
        #[test]
        fn counts_as_plain_lists_would(steps in proptest::collection::vec(step(), 0..120)) {
            const ONE: usize = 5;
            const TOTAL: usize = 1600;
            const PART: usize = 200;
            let mut subscriptions = Subscriptions::new(ONE, TOTAL, 4);
            let mut lists: [Vec<usize>; 4] = Default::default();
            let bytes = |list: &Vec<usize>| list.iter().map(|of| of + EACH).sum::<usize>();
            let past = |bytes: usize| bytes.saturating_sub(PART);
            for step in steps {
                match step {
                    Step::Admit(peer, length, is_answer) => {
                        let list = &mut lists[peer as usize];
                        list.push(length);
                        let (count, of_it) = (list.len(), bytes(list));
                        let (wanted, one, eighths) = match is_answer {
                            false => (Wanted::Events, ONE, 8),
                            true => (Wanted::Answer, ONE + 1, 9),
                        };
                        let more: usize = lists.iter().map(|list| past(bytes(list))).sum();
                        let has_room = of_it <= PART * eighths / 8 || more <= TOTAL / 2 * eighths / 8;
                        let fits = count <= one && has_room;
                        prop_assert_eq!(subscriptions.admit(peer, length, wanted), fits);
                        if !fits {
                            lists[peer as usize].pop();
                        }
                    }
                    Step::Recount(peer, keep) => {
                        let list = &mut lists[peer as usize];
                        list.truncate(keep);
                        // Long after the last one was admitted.
                        (0..2).for_each(|_| subscriptions.look());
                        subscriptions.recount(peer, list.iter().copied());
                    }
                    Step::Release(peer) => {
                        lists[peer as usize].clear();
                        subscriptions.release(peer);
                    }
                    Step::Retain(there) => {
                        for (list, there) in lists.iter_mut().zip(&there) {
                            if !there {
                                list.clear();
                            }
                        }
                        subscriptions.retain(|peer| there[peer as usize]);
                    }
                }
                let more: usize = lists.iter().map(|list| past(bytes(list))).sum();
                prop_assert_eq!(subscriptions.more, more);
                let all: usize = lists.iter().map(bytes).sum();
                prop_assert!(all <= TOTAL + TOTAL / 8);
                prop_assert!(subscriptions.of.values().all(|held| held.count > 0));
            }
        }
    }

    #[test]
    fn the_last_to_come_has_its_part_whatever_the_others_took() {
        const PART: usize = (32 << 20) / 2 / 1024;
        let mut subscriptions = Subscriptions::new(1024, 32 << 20, 1024);
        for greedy in 0..1023 {
            while subscriptions.admit(greedy, 512, Wanted::Events) {}
        }
        let mut count = 0;
        while subscriptions.admit(u64::MAX, 64, Wanted::Events) {
            count += 1;
        }
        assert!(count >= PART / 128, "{count}");
        let bytes: usize = subscriptions.of.values().map(|held| held.bytes).sum();
        assert!(bytes <= 32 << 20);
    }

    #[test]
    fn what_is_admitted_while_those_that_there_are_are_looked_at_is_counted() {
        let mut subscriptions = Subscriptions::new(8, 1 << 20, 4);
        let admit = |subscriptions: &mut Subscriptions, times: usize| {
            let admitted = (0..times).filter(|_| subscriptions.admit(1, 5, Wanted::Events));
            admitted.count()
        };
        assert_eq!(admit(&mut subscriptions, 5), 5);
        subscriptions.look();
        assert_eq!(admit(&mut subscriptions, 2), 2);
        // The look saw some of the first, and one of these.
        subscriptions.recount(1, std::iter::repeat_n(5, 4));
        assert_eq!(admit(&mut subscriptions, 5), 1, "eight, and no more");
        // Those that were taken back are not counted any more.
        (0..2).for_each(|_| subscriptions.look());
        subscriptions.recount(1, std::iter::repeat_n(5, 3));
        assert_eq!(admit(&mut subscriptions, 9), 5);
    }

    #[test]
    fn who_is_refused_a_subscription_can_ask_what_became_of_it() {
        let mut subscriptions = Subscriptions::new(2, 1 << 20, 4);
        assert!(subscriptions.admit(1, 5, Wanted::Events));
        assert!(subscriptions.admit(1, 46, Wanted::Answer));
        assert!(!subscriptions.admit(1, 5, Wanted::Events));
        assert!(subscriptions.admit(1, 46, Wanted::Answer));
        assert!(!subscriptions.admit(1, 46, Wanted::Answer));
    }
}
