//! The breakers of one endpoint: one for its connection, one for its silence, and one for each method, so that a
//! method which fails leaves the others alone. No clock inside.

use tokio::time::Instant;

use super::breaker::{Breaker, BreakerChange, BreakerPolicy, Evidence};
use crate::call::RawRequest;

/// Methods of an endpoint with failures that are known apart. One beyond them is not counted.
pub(super) const METHODS_MAX: usize = 256;

/// A method, by its interface and ordinal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Method {
    pub interface: u64,
    pub ordinal: u16,
}

impl Method {
    /// One that no schema has: what is open for it is open for all.
    const NONE: Self = Self {
        interface: 0,
        ordinal: 0,
    };

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
    /// Open where the last calls, of any method, had no answer at all.
    silence: Breaker,
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
            silence: Breaker::new(policy),
            lost: None,
            made: 0,
            methods: Vec::new(),
        }
    }

    /// Returns whether calls of a method should go elsewhere.
    pub fn is_open(&self, method: Method, now: Instant) -> bool {
        self.silence.is_open(now) || self.is_failing(method, now)
    }

    /// Returns whether calls of a method should not be sent here again, where there is no other endpoint. That
    /// other methods have no answer says nothing of this one.
    pub fn is_failing(&self, method: Method, now: Instant) -> bool {
        self.connection.is_open(now)
            || (self.methods.iter())
                .any(|(known, breaker)| *known == method && breaker.is_open(now))
    }

    /// Returns the methods whose calls should go elsewhere: one at least where that is so of all.
    pub fn methods_open(&self, now: Instant) -> impl Iterator<Item = Method> {
        let of_all = self.connection.is_open(now) || self.silence.is_open(now);
        let methods = (self.methods.iter())
            .filter_map(move |(method, breaker)| breaker.is_open(now).then_some(*method));
        methods.chain(of_all.then_some(Method::NONE))
    }

    /// The connection is the one of this number: where it is another than before, what is open is probed at once.
    pub fn connected(&mut self, made: u64, now: Instant) {
        if made != self.made {
            self.made = made;
            self.connection.connected(now);
            self.silence.connected(now);
            for (_, breaker) in &mut self.methods {
                breaker.connected(now);
            }
        }
    }

    /// A call of a method goes to the endpoint.
    pub fn enter(&mut self, method: Method, now: Instant) {
        self.connection.enter(now);
        self.silence.enter(now);
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
            Evidence::Silent => {
                let of_all = self.silence.ended(now, true);
                self.fails(method, now).or(of_all)
            }
            Evidence::Fails => {
                self.answers(now);
                self.fails(method, now)
            }
            Evidence::Works => {
                let of_all = self.answers(now);
                let Some(breaker) = self.of(method) else {
                    return of_all;
                };
                let of_method = breaker.ended(now, false);
                if breaker.is_clear() {
                    self.methods.retain(|(known, _)| *known != method);
                }
                of_method.or(of_all)
            }
        }
    }

    fn fails(&mut self, method: Method, now: Instant) -> Option<BreakerChange> {
        if self.of(method).is_none() && self.methods.len() < METHODS_MAX {
            self.methods.push((method, Breaker::new(self.policy)));
        }
        self.of(method)?.ended(now, true)
    }

    fn answers(&mut self, now: Instant) -> Option<BreakerChange> {
        let mut change = None;
        for breaker in [&mut self.connection, &mut self.silence] {
            if !breaker.is_clear() {
                change = breaker.ended(now, false).or(change);
            }
        }
        change
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
    fn an_endpoint_that_answers_nothing_is_left_out_of_all_methods() {
        let (mut silent, now) = breakers();
        let mut answers = Breakers::new(BreakerPolicy::default());
        for _ in 0..5 {
            silent.ended(method(0), now, Evidence::Silent);
            answers.ended(method(0), now, Evidence::Silent);
            answers.ended(method(1), now, Evidence::Works);
        }
        assert!(silent.is_open(method(1), now));
        assert!(!silent.is_failing(method(1), now), "it may be sent again");
        assert!(answers.is_open(method(0), now) && !answers.is_open(method(1), now));
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
