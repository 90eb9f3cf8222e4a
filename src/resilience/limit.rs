//! How much may run at once: a number, or one that is found by watching how long things take. No
//! clock inside.
//!
//! Latency is flat while a service has capacity left and grows once it queues. So: compare what calls
//! take now with what they take when there is no queue, and shrink when they take longer. The
//! step is that of Netflix's `Gradient2Limit` (<https://github.com/Netflix/concurrency-limits>). Its
//! mean of the long run follows a load that lasts, and the limit with it; so the time without a queue is measured
//! instead, now and then, at a quarter of the limit, as BBR does with round trips (Cardwell et al., 2016).

use std::time::Duration;

/// How much may run at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// So many.
    Fixed(usize),
    /// As many as latency allows.
    Adaptive(AdaptivePolicy),
}

/// How a limit adapts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptivePolicy {
    /// To begin with. Default: 20.
    pub initial: usize,
    /// Never fewer. Default: 4.
    pub at_least: usize,
    /// Never more. Default: 1,024.
    pub at_most: usize,
    /// How much longer calls may take than without a queue before the limit shrinks. Default: 2;
    /// less would take chance for load.
    pub tolerance: f64,
    /// How much of each change is made at once. Default: 0.2.
    pub smoothing: f64,
}

impl Default for AdaptivePolicy {
    fn default() -> Self {
        Self {
            initial: 20,
            at_least: 4,
            at_most: 1024,
            tolerance: 2.0,
            smoothing: 0.2,
        }
    }
}

/// A limit and what it has seen.
#[derive(Clone, Debug)]
pub struct Limiter {
    limit: Limit,
    current: f64,
    /// The least mean of a sample since the last probe, in seconds.
    unqueued: Option<f64>,
    /// Sum of the sample that is being taken, and how many it has.
    sample: (f64, u32),
    /// Samples since the last probe began.
    samples: u32,
}

/// Calls whose mean is looked at.
const SAMPLE: u32 = 10;
/// A probe begins after so many samples.
const PROBE_EVERY: u32 = 200;
/// It takes so many samples; the first is of calls that came before it.
const PROBE: u32 = 3;

impl Limiter {
    /// That has seen nothing yet.
    pub fn new(limit: Limit) -> Self {
        let current = match limit {
            Limit::Fixed(limit) => limit as f64,
            Limit::Adaptive(policy) => policy.initial as f64,
        };
        Self {
            limit,
            current,
            unqueued: None,
            sample: (0.0, 0),
            samples: PROBE,
        }
    }

    /// How many may run.
    pub fn current(&self) -> usize {
        let current = match (self.limit, self.is_probing()) {
            (Limit::Adaptive(policy), true) => (self.current / 4.0).max(policy.at_least as f64),
            _ => self.current,
        };
        (current as usize).max(1)
    }

    fn is_probing(&self) -> bool {
        self.samples < PROBE
    }

    /// One has ended, after so long, when so many were running.
    pub fn ended(&mut self, latency: Duration, in_flight: usize) {
        let Limit::Adaptive(policy) = self.limit else {
            return;
        };
        self.sample.0 += latency.as_secs_f64();
        self.sample.1 += 1;
        if self.sample.1 < SAMPLE {
            return;
        }
        let mean = (self.sample.0 / f64::from(self.sample.1)).max(1e-9);
        self.sample = (0.0, 0);
        let was_probing = self.is_probing();
        self.samples += 1;
        match self.samples {
            1 => return,
            2 => self.unqueued = Some(mean),
            _ => self.unqueued = Some(self.unqueued.map_or(mean, |least| least.min(mean))),
        }
        if self.samples > PROBE_EVERY {
            self.samples = 0;
        }
        // Nobody has asked for more than half: it says nothing about the limit.
        if was_probing || (in_flight as f64) < self.current / 2.0 {
            return;
        }
        let unqueued = self.unqueued.unwrap_or(mean);
        let gradient = (policy.tolerance * unqueued / mean).clamp(0.5, 1.0);
        let room = if gradient < 1.0 {
            0.0
        } else {
            self.current.sqrt()
        };
        let wanted = self.current * gradient + room;
        self.current += (wanted - self.current) * policy.smoothing;
        self.current = self
            .current
            .clamp(policy.at_least as f64, policy.at_most as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A service that takes 10 ms with up to `capacity` at once, and queues beyond.
    fn latency(capacity: usize, in_flight: usize) -> Duration {
        let beyond = (in_flight as f64 / capacity as f64).max(1.0);
        Duration::from_millis(10).mul_f64(beyond)
    }

    #[test]
    fn it_finds_a_capacity_and_neither_starves_nor_floods_it() {
        for capacity in [10, 40, 200] {
            let mut limiter = Limiter::new(Limit::Adaptive(AdaptivePolicy::default()));
            let mut seen = Vec::new();
            for _ in 0..20_000 {
                let in_flight = limiter.current();
                limiter.ended(latency(capacity, in_flight), in_flight);
                seen.push(in_flight);
            }
            let last = &seen[seen.len() / 2..];
            let mean = last.iter().sum::<usize>() / last.len();
            assert!(mean >= capacity * 8 / 10, "{capacity}: {mean}");
            assert!(mean <= capacity * 4, "{capacity}: {mean}");
        }
    }

    #[test]
    fn a_fixed_one_stays() {
        let mut limiter = Limiter::new(Limit::Fixed(7));
        for _ in 0..100 {
            limiter.ended(Duration::from_secs(100), 7);
        }
        assert_eq!(limiter.current(), 7);
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(latencies in prop::collection::vec((0..10_000_000u64, 0..2000usize), 0..500)) {
            let policy = AdaptivePolicy::default();
            let mut limiter = Limiter::new(Limit::Adaptive(policy));
            for (microseconds, in_flight) in latencies {
                limiter.ended(Duration::from_micros(microseconds), in_flight);
                prop_assert!((policy.at_least..=policy.at_most).contains(&limiter.current()));
            }
        }
    }
}
