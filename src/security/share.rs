//! How much one peer may hold of what all peers of a server have together: counts, without sockets.
//!
//! A peer is a *holder*: a principal, or an address where there are no keys. A holder may have up to
//! [`FREE_FACTOR`] times what is left free, the rule that switches use for their shared buffers. So one
//! holder alone gets three quarters, two that take all they can get three sevenths each, and a holder
//! that has nothing yet always finds something, however many others take all they can. There is
//! nothing to configure for one principal or for a thousand.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Principal;

/// A holder may have so many times what is left free.
const FREE_FACTOR: usize = 3;
/// Entries of holders below which none is looked for that has gone.
const PRUNE_MIN: usize = 64;

/// Whether a holder of `held` may take `amount` more, where `used` of `max` are taken by all. What is larger than
/// `max` counts as `max`, so that one alone always fits.
pub(crate) fn may_take(max: usize, used: usize, held: usize, amount: usize) -> bool {
    let free = max.saturating_sub(used);
    let amount = amount.min(max);
    free > 0 && amount <= free && (held == 0 || held + amount <= free.saturating_mul(FREE_FACTOR))
}

/// Something that all peers of a server have together.
#[derive(Debug)]
pub(crate) struct Pool {
    used: AtomicUsize,
    max: usize,
    /// The most that one holder may have, whatever is free.
    each_max: usize,
}

impl Pool {
    pub fn new(max: usize, each_max: usize) -> Self {
        Self {
            used: AtomicUsize::new(0),
            max,
            each_max,
        }
    }

    /// Whether a holder may take so much more. Others may take some in between: a pool can be
    /// passed by what as many threads as there are take at once.
    pub fn may_take(&self, held: &AtomicUsize, amount: usize) -> bool {
        let (used, held) = (self.used(), held.load(Relaxed));
        may_take(self.max, used, held, amount) && (amount.min(self.max)) + held <= self.each_max
    }

    /// The same where only half of it is for what is asked about.
    pub fn may_take_of_half(&self, held: &AtomicUsize, amount: usize) -> bool {
        may_take(self.max / 2, self.used(), held.load(Relaxed), amount)
    }

    /// Takes it, whether or not there is room.
    pub fn take(&self, held: &AtomicUsize, amount: usize) {
        self.used.fetch_add(amount, Relaxed);
        held.fetch_add(amount, Relaxed);
    }

    /// Takes it where there is room.
    pub fn try_take(&self, held: &AtomicUsize, amount: usize) -> bool {
        let may = self.may_take(held, amount);
        if may {
            self.take(held, amount);
        }
        may
    }

    pub fn give_back(&self, held: &AtomicUsize, amount: usize) {
        self.used.fetch_sub(amount, Relaxed);
        held.fetch_sub(amount, Relaxed);
    }

    /// Whether there is so much that nobody has.
    pub fn has_free(&self, amount: usize) -> bool {
        let free = self.max.saturating_sub(self.used());
        free > 0 && amount.min(self.max) <= free
    }

    /// What all holders have.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// A host: an IPv4 address, or the 64 bits of an IPv6 address that a host does not choose itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    V4([u8; 4]),
    V6([u8; 8]),
    /// A Unix socket: a process of this machine.
    Local,
}

impl Address {
    pub fn of(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            None => Self::Local,
            Some(IpAddr::V4(v4)) => Self::V4(v4.octets()),
            Some(IpAddr::V6(v6)) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Who shares are counted for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    Principal(Principal),
    Address(Address),
}

impl Holder {
    pub fn of(principal: Option<&Principal>, address: Option<IpAddr>) -> Self {
        match principal {
            Some(principal) => Self::Principal(principal.clone()),
            None => Self::Address(Address::of(address)),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(principal) => write!(f, "{principal}"),
            Self::Address(Address::V4(octets)) => write!(f, "{}", IpAddr::from(*octets)),
            Self::Address(Address::V6([a, b, c, d, e, g, h, i])) => {
                let network = [*a, *b, *c, *d, *e, *g, *h, *i, 0, 0, 0, 0, 0, 0, 0, 0];
                write!(f, "{}/64", IpAddr::from(network))
            }
            Self::Address(Address::Local) => f.write_str("this machine, by a Unix socket"),
        }
    }
}

/// What one holder has of a server's pools, over all of its connections.
#[derive(Debug)]
pub(crate) struct Share {
    holder: Holder,
    /// Calls whose handlers wait for something that they work on.
    pub calls: AtomicUsize,
    /// Calls that wait for something to happen, and hold nothing meanwhile.
    pub parked: AtomicUsize,
    /// Bytes of requests that handlers work on.
    pub request_bytes: AtomicUsize,
    /// Bytes of requests that are received, in part or whole, and not handled yet.
    pub received_bytes: AtomicUsize,
    /// Whether one of its connections goes on with a message though all of this is taken.
    pub finishes: AtomicBool,
    /// Bytes of replies that wait to be sent...
    pub reply_bytes: AtomicUsize,
    /// ...and of those that wait to be among them.
    pub backlog_bytes: AtomicUsize,
}

impl Share {
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    pub fn principal(&self) -> Option<&Principal> {
        match &self.holder {
            Holder::Principal(principal) => Some(principal),
            Holder::Address(_) => None,
        }
    }

    /// Returns the address that it is counted for, where there are no keys.
    pub fn address(&self) -> Option<Address> {
        match &self.holder {
            Holder::Principal(_) => None,
            Holder::Address(address) => Some(*address),
        }
    }

    fn of(holder: Holder) -> Self {
        Self {
            holder,
            calls: AtomicUsize::new(0),
            parked: AtomicUsize::new(0),
            request_bytes: AtomicUsize::new(0),
            received_bytes: AtomicUsize::new(0),
            finishes: AtomicBool::new(false),
            reply_bytes: AtomicUsize::new(0),
            backlog_bytes: AtomicUsize::new(0),
        }
    }
}

/// The shares of all holders that are connected. A holder's is kept for as long as one of its connections or
/// calls is.
#[derive(Debug, Default)]
pub(crate) struct Shares(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    of: HashMap<Holder, Weak<Share>>,
    prune_at: usize,
}

impl Shares {
    /// The share of a holder, the same for all of its connections.
    pub fn of(&self, holder: Holder) -> Arc<Share> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = known.of.get(&holder).and_then(Weak::upgrade) {
            return share;
        }
        if known.of.len() >= known.prune_at.max(PRUNE_MIN) {
            known.of.retain(|_, share| share.strong_count() > 0);
            known.prune_at = known.of.len() * 2;
        }
        let share = Arc::new(Share::of(holder.clone()));
        known.of.insert(holder, Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn greedy(max: usize, holders: usize) -> Vec<usize> {
        let mut held = vec![0; holders];
        loop {
            let mut has_taken = false;
            for holder in 0..holders {
                let used = held.iter().sum();
                if may_take(max, used, held[holder], 1) {
                    held[holder] += 1;
                    has_taken = true;
                }
            }
            if !has_taken {
                return held;
            }
        }
    }

    #[test]
    fn a_holder_gets_three_times_what_is_left_free() {
        assert_eq!(greedy(1024, 1), [768]);
        assert_eq!(greedy(1024, 2), [439, 439]);
        assert_eq!(greedy(2, 1), [2]);
        assert_eq!(greedy(3, 1), [3]);
        assert_eq!(greedy(4, 1), [3]);
        assert_eq!(greedy(0, 1), [0]);
    }

    #[test]
    fn a_newcomer_finds_room_however_many_are_greedy() {
        for holders in [1, 2, 10, 100, 300] {
            let held = greedy(1024, holders);
            let used = held.iter().sum();
            assert!(may_take(1024, used, 0, 1), "{holders} hold {used}");
        }
    }

    #[test]
    fn one_alone_fits_however_large() {
        assert!(may_take(100, 0, 0, 5_000));
        assert!(!may_take(100, 5_000, 5_000, 1));
        assert!(!may_take(100, 1, 0, 100));
        assert!(may_take(100, 1, 0, 99));
    }

    #[test]
    fn a_holder_has_its_own_limit_beside_the_pool() {
        let (pool, one, other) = (Pool::new(100, 2), AtomicUsize::new(0), AtomicUsize::new(0));
        assert!(pool.try_take(&one, 1) && pool.try_take(&one, 1));
        assert!(!pool.try_take(&one, 1));
        assert!(pool.try_take(&other, 2));
        pool.give_back(&one, 1);
        assert!(pool.try_take(&one, 1));
        assert!(!Pool::new(100, 0).may_take(&AtomicUsize::new(0), 1));
    }

    proptest! {
        #[test]
        fn a_pool_counts_as_a_plain_list_would(
            steps in proptest::collection::vec((0usize..3, 0usize..40, any::<bool>()), 0..200),
        ) {
            const MAX: usize = 100;
            let pool = Pool::new(MAX, usize::MAX);
            let counts: [AtomicUsize; 3] = Default::default();
            let mut lists: [Vec<usize>; 3] = Default::default();
            for (holder, amount, takes) in steps {
                let sum = |list: &Vec<usize>| list.iter().sum::<usize>();
                let used: usize = lists.iter().map(sum).sum();
                if takes {
                    let free = MAX - used;
                    let own = sum(&lists[holder]);
                    let fits = free > 0 && amount <= free && (own == 0 || own + amount <= 3 * free);
                    prop_assert_eq!(pool.try_take(&counts[holder], amount), fits);
                    lists[holder].extend(fits.then_some(amount));
                } else if let Some(amount) = lists[holder].pop() {
                    pool.give_back(&counts[holder], amount);
                }
                prop_assert!(pool.used() <= MAX);
            }
        }
    }

    #[test]
    fn connections_of_one_holder_share_and_those_that_went_are_forgotten() {
        let shares = Shares::default();
        let host = |last: u8| Holder::of(None, Some(IpAddr::from([10, 0, 0, last])));
        let (one, same, other) = (shares.of(host(1)), shares.of(host(1)), shares.of(host(2)));
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
        for _ in 0..10 {
            for last in 3..=250 {
                drop(shares.of(host(last)));
            }
        }
        assert!(shares.0.lock().unwrap().of.len() <= PRUNE_MIN + 1);
        assert!(Arc::ptr_eq(&one, &shares.of(host(1))));
    }

    #[test]
    fn an_ipv6_host_is_its_first_sixty_four_bits() {
        let of = |text: &str| Holder::of(None, Some(text.parse().unwrap()));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_eq!(of("2001:db8::1").to_string(), "2001:db8::/64");
    }
}
