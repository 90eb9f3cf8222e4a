//! The breakers of one endpoint: one for its connection, and one for each method, so that a method which fails leaves
//! the others alone. No clock inside.

use tokio::time::Instant;

use super::breaker::{Breaker, BreakerChange, BreakerPolicy, Evidence};
use crate::call::RawRequest;

/// Methods of an endpoint with failures that are known apart. One beyond them is not counted.
pub(super) const METHODS_MAX: usize = 256;

/// A method, by its interface and ordinal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Method {
    pub interface: u64,
    pub ordinal: u16,
}

impl Method {
    pub fn of(request: &RawRequest) -> Self {
        Self {
            interface: request.interface,
            ordinal: request.method,
        }
    }
}

#[derive(Debug)]
pub(super) struct Breakers {
    policy: BreakerPolicy,
    connection: Breaker,
    /// How many connections there had been when the loss of one was counted last.
    lost: Option<u64>,
    made: u64,
    /// Of methods with recent failures.
    methods: Vec<(Method, Breaker)>,
}

impl Breakers {
    pub fn new(policy: BreakerPolicy) -> Self {
        Self {
            policy,
            connection: Breaker::new(policy),
            lost: None,
            made: 0,
            methods: Vec::new(),
        }
    }

    /// Returns whether calls of a method should go elsewhere.
    pub fn is_open(&self, method: Method, now: Instant) -> bool {
        self.connection.is_open(now)
            || (self.methods.iter())
                .any(|(known, breaker)| *known == method && breaker.is_open(now))
    }

    /// Returns whether the calls of any method should go elsewhere.
    pub fn is_any_open(&self, now: Instant) -> bool {
        self.connection.is_open(now) || self.methods.iter().any(|(_, breaker)| breaker.is_open(now))
    }

    /// The connection is the one of this number: where it is another than before, what is open is probed at once.
    pub fn connected(&mut self, made: u64, now: Instant) {
        if made != self.made {
            self.made = made;
            self.connection.connected(now);
            for (_, breaker) in &mut self.methods {
                breaker.connected(now);
            }
        }
    }

    /// A call of a method goes to the endpoint.
    pub fn enter(&mut self, method: Method, now: Instant) {
        self.connection.enter(now);
        if let Some(breaker) = self.of(method) {
            breaker.enter(now);
        }
    }

    /// A call of a method has ended.
    pub fn ended(
        &mut self,
        method: Method,
        now: Instant,
        evidence: Evidence,
    ) -> Option<BreakerChange> {
        match evidence {
            Evidence::Nothing => None,
            // One loss ends all calls that are on their way: it is one failure.
            Evidence::Lost if self.lost == Some(self.made) => None,
            Evidence::Lost => {
                self.lost = Some(self.made);
                self.connection.ended(now, true)
            }
            Evidence::Fails => {
                if self.of(method).is_none() && self.methods.len() < METHODS_MAX {
                    self.methods.push((method, Breaker::new(self.policy)));
                }
                self.of(method)?.ended(now, true)
            }
            Evidence::Works => {
                let of_connection = match self.connection.is_clear() {
                    true => None,
                    false => self.connection.ended(now, false),
                };
                let Some(breaker) = self.of(method) else {
                    return of_connection;
                };
                let of_method = breaker.ended(now, false);
                if breaker.is_clear() {
                    self.methods.retain(|(known, _)| *known != method);
                }
                of_method.or(of_connection)
            }
        }
    }

    fn of(&mut self, method: Method) -> Option<&mut Breaker> {
        let mut methods = self.methods.iter_mut();
        methods.find_map(|(known, breaker)| (*known == method).then_some(breaker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn method(ordinal: u16) -> Method {
        Method {
            interface: 1,
            ordinal,
        }
    }

    fn breakers() -> (Breakers, Instant) {
        (Breakers::new(BreakerPolicy::default()), Instant::now())
    }

    #[test]
    fn a_failing_method_opens_its_own_breaker_only() {
        let (mut breakers, now) = breakers();
        for _ in 0..5 {
            breakers.ended(method(0), now, Evidence::Fails);
        }
        assert!(breakers.is_open(method(0), now));
        assert!(!breakers.is_open(method(1), now));
    }

    #[test]
    fn a_new_connection_is_probed_at_once() {
        let (mut breakers, now) = breakers();
        for made in 1..=5 {
            breakers.connected(made, now);
            // All of the calls in flight are told.
            for _ in 0..100 {
                breakers.ended(method(0), now, Evidence::Lost);
            }
            assert_eq!(breakers.is_open(method(0), now), made == 5);
        }
        breakers.connected(6, now);
        assert!(!breakers.is_open(method(0), now));
        breakers.enter(method(0), now);
        assert!(breakers.is_open(method(0), now), "one probe at a time");
        breakers.ended(method(0), now, Evidence::Works);
        assert!(!breakers.is_open(method(0), now));
    }

    #[test]
    fn methods_are_known_apart_up_to_a_limit_and_forgotten_once_they_work() {
        let (mut breakers, now) = breakers();
        for ordinal in 0..=METHODS_MAX as u16 {
            for _ in 0..5 {
                breakers.ended(method(ordinal), now, Evidence::Fails);
            }
        }
        assert_eq!(breakers.methods.len(), METHODS_MAX);
        assert!(!breakers.is_open(method(METHODS_MAX as u16), now));
        for ordinal in 0..METHODS_MAX as u16 {
            let closed = breakers.ended(method(ordinal), now, Evidence::Works);
            assert_eq!(closed, Some(BreakerChange::Closed));
        }
        assert!(breakers.methods.is_empty());
    }
}
