//! How many subscriptions a publisher keeps: of one peer, and in bytes of all. The count, without sockets.
//!
//! Half of the bytes are shared out among as many peers as may connect: each always has its part,
//! whatever the others do. The other half is for those who want more; of it the peers of one principal or address
//! have a [share](super::share).

use std::collections::HashMap;

use super::share::{Holder, may_take};

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
    /// What the peers of each holder have past their parts.
    more_of: HashMap<Holder, usize>,
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
            more_of: HashMap::new(),
        }
    }

    /// Whether a peer may have one more, with a prefix of this length; counts it if so.
    pub fn admit(
        &mut self,
        peer: u64,
        holder: &Holder,
        prefix_bytes: usize,
        wanted: Wanted,
    ) -> bool {
        let before = self.of.get(&peer).copied().unwrap_or_default();
        let after = before.and(prefix_bytes);
        let more = self.past_part(after) - self.past_part(before);
        let has_room = after.bytes <= wanted.room(self.part) || {
            let held = self.more_of.get(holder).copied().unwrap_or(0);
            may_take(wanted.room(self.more_max), self.more, held, more)
        };
        let fits = after.count <= wanted.room(self.of_one_max) && has_room;
        if fits {
            self.set(peer, holder, after);
        }
        fits
    }

    /// A peer takes one back that was admitted.
    pub fn give_back(&mut self, peer: u64, holder: &Holder, prefix_bytes: usize) {
        if let Some(before) = self.of.get(&peer).copied() {
            self.set(peer, holder, before.without(prefix_bytes));
        }
    }

    /// A peer is gone.
    pub fn release(&mut self, peer: u64, holder: &Holder) {
        self.set(peer, holder, Held::default());
    }

    fn set(&mut self, peer: u64, holder: &Holder, held: Held) {
        let before = self.of.remove(&peer).unwrap_or_default();
        if held.count > 0 {
            self.of.insert(peer, held);
        }
        let (before, now) = (self.past_part(before), self.past_part(held));
        self.more = self.more + now - before;
        if before != now {
            let more = self.more_of.entry(holder.clone()).or_default();
            *more = *more + now - before;
            if *more == 0 {
                self.more_of.remove(holder);
            }
        }
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

    fn without(self, prefix_bytes: usize) -> Self {
        Self {
            count: self.count - 1,
            bytes: self.bytes - prefix_bytes - EACH,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two peers each of one address.
    fn holder(peer: u64) -> Holder {
        let last = u8::try_from(peer / 2 % 250).unwrap();
        Holder::of(
            None,
            Some(std::net::IpAddr::from([10, 0, (peer / 500) as u8, last])),
        )
    }

    #[derive(Clone, Debug)]
    enum Step {
        Admit(u64, usize, bool),
        GiveBack(u64, usize),
        Release(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let peer = || 0u64..4;
        prop_oneof![
            6 => (peer(), 0usize..40, any::<bool>()).prop_map(|(p, b, a)| Step::Admit(p, b, a)),
            3 => (peer(), 0usize..6).prop_map(|(p, at)| Step::GiveBack(p, at)),
            1 => peer().prop_map(Step::Release),
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
                        let more = |list: &Vec<usize>| past(bytes(list));
                        let own = more(&lists[peer as usize]);
                        let new = own - past(of_it - length - EACH);
                        let used = lists.iter().map(more).sum::<usize>() - new;
                        let held = own + more(&lists[peer as usize ^ 1]) - new;
                        let free = (TOTAL / 2 * eighths / 8_usize).saturating_sub(used);
                        let has_share = free > 0 && new <= free && (held == 0 || held + new <= 3 * free);
                        let has_room = of_it <= PART * eighths / 8 || has_share;
                        let fits = count <= one && has_room;
                        prop_assert_eq!(subscriptions.admit(peer, &holder(peer), length, wanted), fits);
                        if !fits {
                            lists[peer as usize].pop();
                        }
                    }
                    Step::GiveBack(peer, at) => {
                        let list = &mut lists[peer as usize];
                        if at < list.len() {
                            subscriptions.give_back(peer, &holder(peer), list.swap_remove(at));
                        }
                    }
                    Step::Release(peer) => {
                        lists[peer as usize].clear();
                        subscriptions.release(peer, &holder(peer));
                    }
                }
                let more: usize = lists.iter().map(|list| past(bytes(list))).sum();
                prop_assert_eq!(subscriptions.more, more);
                prop_assert_eq!(subscriptions.more_of.values().sum::<usize>(), more);
                prop_assert!(subscriptions.more_of.values().all(|more| *more > 0));
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
            while subscriptions.admit(greedy, &holder(greedy), 512, Wanted::Events) {}
        }
        let mut count = 0;
        while subscriptions.admit(2000, &holder(2000), 64, Wanted::Events) {
            count += 1;
        }
        assert!(count >= PART / 128, "{count}");
        let bytes: usize = subscriptions.of.values().map(|held| held.bytes).sum();
        assert!(bytes <= 32 << 20);
    }

    #[test]
    fn what_is_taken_back_makes_room_at_once() {
        let mut subscriptions = Subscriptions::new(2, 1 << 20, 4);
        assert!(subscriptions.admit(1, &holder(1), 5, Wanted::Events));
        assert!(subscriptions.admit(1, &holder(1), 5, Wanted::Events));
        assert!(!subscriptions.admit(1, &holder(1), 5, Wanted::Events));
        subscriptions.give_back(1, &holder(1), 5);
        assert!(subscriptions.admit(1, &holder(1), 5, Wanted::Events));
        assert!(!subscriptions.admit(1, &holder(1), 5, Wanted::Events));
    }

    #[test]
    fn who_is_refused_a_subscription_can_ask_what_became_of_it() {
        let mut subscriptions = Subscriptions::new(2, 1 << 20, 4);
        assert!(subscriptions.admit(1, &holder(1), 5, Wanted::Events));
        assert!(subscriptions.admit(1, &holder(1), 46, Wanted::Answer));
        assert!(!subscriptions.admit(1, &holder(1), 5, Wanted::Events));
        assert!(subscriptions.admit(1, &holder(1), 46, Wanted::Answer));
        assert!(!subscriptions.admit(1, &holder(1), 46, Wanted::Answer));
    }

    #[test]
    fn one_holder_with_many_peers_leaves_room_for_others() {
        let mut subscriptions = Subscriptions::new(usize::MAX, 32 << 20, 1024);
        let [greedy, other] = [0, 100].map(holder);
        for peer in 0..64 {
            while subscriptions.admit(peer, &greedy, 512, Wanted::Events) {}
        }
        let more = subscriptions.more_of[&greedy];
        assert!(more <= (16 << 20) / 4 * 3 + 512 + EACH, "{more}");
        let mut count = 0;
        while count < 1000 && subscriptions.admit(100, &other, 512, Wanted::Events) {
            count += 1;
        }
        assert_eq!(count, 1000);
    }
}
