//! How many connections there may be, in total and from one address: the count, without sockets.
//!
//! Told of each connection that wants in, and of each that went.

use std::collections::HashMap;
use std::net::IpAddr;

/// Counts the connections of one socket.
#[derive(Debug)]
pub(crate) struct Admissions {
    total_max: usize,
    per_address_max: usize,
    next: u64,
    /// With the addresses that count.
    admitted: HashMap<u64, Option<Address>>,
    by_address: HashMap<Address, usize>,
}

/// A host: an IPv4 address, or the 64 bits of an IPv6 address that a host does not choose itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Address {
    V4([u8; 4]),
    V6([u8; 8]),
}

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdmissionRefused {
    #[error("as many connections as there may be")]
    Total,
    #[error("as many connections from one address as there may be")]
    Address,
}

impl Address {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

impl Admissions {
    pub fn new(total_max: usize, per_address_max: usize) -> Self {
        Self {
            total_max,
            per_address_max,
            next: 1,
            admitted: HashMap::new(),
            by_address: HashMap::new(),
        }
    }

    /// Lets a connection in, and gives it a number that no other has. Without an address, as over
    /// a Unix socket, only the total counts.
    pub fn admit(&mut self, address: Option<IpAddr>) -> Result<u64, AdmissionRefused> {
        if self.admitted.len() >= self.total_max {
            return Err(AdmissionRefused::Total);
        }
        let address = address.map(Address::of);
        if let Some(address) = address {
            let count = self.by_address.entry(address).or_default();
            if *count >= self.per_address_max {
                if *count == 0 {
                    self.by_address.remove(&address);
                }
                return Err(AdmissionRefused::Address);
            }
            *count += 1;
        }
        let number = self.next;
        self.next += 1;
        self.admitted.insert(number, address);
        Ok(number)
    }

    /// Told that a connection went; does nothing for one that is not there.
    pub fn release(&mut self, number: u64) {
        let Some(address) = self.admitted.remove(&number) else {
            return;
        };
        if let Some(address) = address
            && let Some(count) = self.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.admitted.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Admit(Option<u8>),
        Release(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => proptest::option::of(0u8..3).prop_map(Step::Admit),
            2 => any::<usize>().prop_map(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn counts_as_a_plain_list_would(steps in proptest::collection::vec(step(), 0..80)) {
            let mut admissions = Admissions::new(5, 2);
            let mut list: Vec<(u64, Option<u8>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Admit(host) => {
                        let address = host.map(|host| IpAddr::from([10, 0, 0, host]));
                        let same = list.iter().filter(|(_, of)| host.is_some() && *of == host).count();
                        let expected = match () {
                            () if list.len() >= 5 => Err(AdmissionRefused::Total),
                            () if same >= 2 => Err(AdmissionRefused::Address),
                            () => Ok(()),
                        };
                        let admitted = admissions.admit(address);
                        prop_assert_eq!(admitted.map(|_| ()), expected);
                        list.extend(admitted.ok().map(|number| (number, host)));
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
            }
        }
    }

    #[test]
    fn an_ipv6_host_is_its_first_sixty_four_bits() {
        let mut admissions = Admissions::new(10, 1);
        let admit = |admissions: &mut Admissions, text: &str| {
            admissions.admit(Some(text.parse().unwrap())).map(|_| ())
        };
        assert_eq!(admit(&mut admissions, "2001:db8::1"), Ok(()));
        let same = admit(&mut admissions, "2001:db8::2:3");
        assert_eq!(same, Err(AdmissionRefused::Address));
        assert_eq!(admit(&mut admissions, "2001:db8:0:1::1"), Ok(()));
        assert_eq!(admit(&mut admissions, "192.0.2.1"), Ok(()));
        let mapped = admit(&mut admissions, "::ffff:192.0.2.1");
        assert_eq!(mapped, Err(AdmissionRefused::Address));
    }
}
