//! How many connections there may be, in total, from one address and of one principal, and how many handshakes: the
//! counts, without sockets.
//!
//! Told of each connection that wants in, and of each that went.

use std::collections::HashMap;
use std::net::IpAddr;

use super::Principal;
use super::share::{Address, Holder, may_take};

/// Counts the connections of one socket.
#[derive(Debug)]
pub(crate) struct Admissions {
    total_max: usize,
    per_address_max: usize,
    next: u64,
    /// Each with what it counts for.
    admitted: HashMap<u64, (Holder, Address)>,
    by_holder: HashMap<Holder, usize>,
    by_address: HashMap<Address, usize>,
}

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdmissionRefused {
    #[error("as many connections as there may be")]
    Total,
    #[error("as many connections from one address as there may be")]
    Address,
    #[error(
        "as many connections as one principal or address may have, so that there is room for others"
    )]
    Share,
}

impl Admissions {
    pub fn new(total_max: usize, per_address_max: usize) -> Self {
        Self {
            total_max,
            per_address_max,
            next: 1,
            admitted: HashMap::new(),
            by_holder: HashMap::new(),
            by_address: HashMap::new(),
        }
    }

    /// Lets a connection in, and gives it a number that no other has. Connections without an address, as over a
    /// Unix socket, have no limit per address.
    pub fn admit(
        &mut self,
        principal: Option<&Principal>,
        address: Option<IpAddr>,
    ) -> Result<u64, AdmissionRefused> {
        if self.admitted.len() >= self.total_max {
            return Err(AdmissionRefused::Total);
        }
        let holder = Holder::of(principal, address);
        let address = Address::of(address);
        let of_address = self.by_address.get(&address).copied().unwrap_or(0);
        if address != Address::Local && of_address >= self.per_address_max {
            return Err(AdmissionRefused::Address);
        }
        let held = self.by_holder.get(&holder).copied().unwrap_or(0);
        if !may_take(self.total_max, self.admitted.len(), held, 1) {
            return Err(AdmissionRefused::Share);
        }
        *self.by_holder.entry(holder.clone()).or_default() += 1;
        *self.by_address.entry(address).or_default() += 1;
        let number = self.next;
        self.next += 1;
        self.admitted.insert(number, (holder, address));
        Ok(number)
    }

    /// Told that a connection went; does nothing for one that is not there.
    pub fn release(&mut self, number: u64) {
        if let Some((holder, address)) = self.admitted.remove(&number) {
            count_down(&mut self.by_holder, &holder);
            count_down(&mut self.by_address, &address);
        }
    }

    pub fn len(&self) -> usize {
        self.admitted.len()
    }
}

fn count_down<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, of: &K) {
    if let Some(count) = counts.get_mut(of) {
        *count -= 1;
        if *count == 0 {
            counts.remove(of);
        }
    }
}

/// The handshakes of one socket that are not over. Where there are as many as there may be, a new one takes
/// the place of the oldest of the address that has most: an address that opens many connections and says
/// nothing delays only itself.
#[derive(Debug)]
pub(crate) struct Handshakes<E> {
    max: usize,
    next: u64,
    /// In the order in which they began, each with what ends it.
    pending: Vec<(u64, Address, E)>,
}

impl<E> Handshakes<E> {
    pub fn new(max: usize) -> Self {
        Self {
            max,
            next: 0,
            pending: Vec::new(),
        }
    }

    /// The number of the next one, to be given to [`begin`](Self::begin) and [`finish`](Self::finish).
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Begins one, and returns what ends the one that has to give way: the new one itself, where there may be none.
    pub fn begin(&mut self, number: u64, address: Option<IpAddr>, end: E) -> Option<E> {
        self.pending.push((number, Address::of(address), end));
        (self.pending.len() > self.max).then(|| {
            let mut counts: HashMap<Address, usize> = HashMap::new();
            for (_, address, _) in &self.pending {
                *counts.entry(*address).or_default() += 1;
            }
            let most = counts.values().max().copied();
            let of_most =
                |(_, address, _): &(u64, Address, E)| counts.get(address) == most.as_ref();
            let oldest = self.pending.iter().position(of_most).unwrap_or(0);
            self.pending.remove(oldest).2
        })
    }

    /// One is over.
    pub fn finish(&mut self, number: u64) {
        self.pending.retain(|(of, ..)| *of != number);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.pending.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Admit(Option<u8>, Option<u8>),
        Release(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (proptest::option::of(0u8..2), proptest::option::of(0u8..3))
                .prop_map(|(principal, host)| Step::Admit(principal, host)),
            2 => any::<usize>().prop_map(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn counts_as_a_plain_list_would(steps in proptest::collection::vec(step(), 0..80)) {
            const TOTAL: usize = 8;
            let mut admissions = Admissions::new(TOTAL, 4);
            let mut list: Vec<(u64, Option<u8>, Option<u8>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Admit(name, host) => {
                        let principal = name.map(|name| Principal::new(["a", "b"][usize::from(name)]));
                        let address = host.map(|host| IpAddr::from([10, 0, 0, host]));
                        let from_it = list.iter().filter(|(_, _, of)| *of == host).count();
                        let held = list.iter().filter(|(_, of, from)| match name {
                            Some(_) => *of == name,
                            None => of.is_none() && *from == host,
                        });
                        let held = held.count();
                        let expected = match () {
                            () if list.len() >= TOTAL => Err(AdmissionRefused::Total),
                            () if host.is_some() && from_it >= 4 => Err(AdmissionRefused::Address),
                            () if held > 0 && held + 1 > 3 * (TOTAL - list.len()) => Err(AdmissionRefused::Share),
                            () => Ok(()),
                        };
                        let admitted = admissions.admit(principal.as_ref(), address);
                        prop_assert_eq!(admitted.map(|_| ()), expected);
                        list.extend(admitted.ok().map(|number| (number, name, host)));
                    }
                    Step::Release(index) => {
                        let number = match list.len() {
                            0 => 77,
                            length => list.remove(index % length).0,
                        };
                        admissions.release(number);
                        admissions.release(number);
                    }
                }
                prop_assert_eq!(admissions.len(), list.len());
                prop_assert!(admissions.by_address.values().all(|count| *count > 0));
                prop_assert!(admissions.by_holder.values().all(|count| *count > 0));
            }
        }
    }

    #[test]
    fn a_silent_connection_gives_way_to_a_new_one_from_any_address() {
        let mut handshakes = Handshakes::new(64);
        let from = |last: u8| Some(IpAddr::from([127, 0, 0, last]));
        let mut begin = |name, address| {
            let number = handshakes.number();
            (number, handshakes.begin(number, address, name))
        };
        for silent in 0..64 {
            assert_eq!(begin(silent, from(1)).1, None);
        }
        assert_eq!(
            begin(100, from(1)).1,
            Some(0),
            "the oldest of the same address"
        );
        assert_eq!(
            begin(200, from(2)).1,
            Some(1),
            "the oldest of the address with most"
        );
        assert_eq!(begin(300, None).1, Some(2));
        let (number, gave_way) = begin(400, from(2));
        assert_eq!(gave_way, Some(3));
        handshakes.finish(number);
        handshakes.finish(number);
        assert_eq!(handshakes.len(), 63);
    }

    #[test]
    fn no_handshake_is_begun_where_none_may_be() {
        let mut handshakes = Handshakes::new(0);
        let number = handshakes.number();
        assert_eq!(handshakes.begin(number, None, "itself"), Some("itself"));
        assert_eq!(handshakes.len(), 0);
    }
}
