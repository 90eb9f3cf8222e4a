//! Virtual time, what happens in it, and the one source of randomness.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;

use crate::{Faults, History, Seed};

/// Violations of one history that are kept. The first is the one to look at.
const VIOLATIONS_MAX: usize = 10;

/// Time and events of one history. It begins at zero, and time passes only from event to event.
#[derive(Debug)]
pub struct Simulation<E> {
    seed: Seed,
    now: Duration,
    /// By time, and then in the order in which they were scheduled.
    events: BTreeMap<(Duration, u64), E>,
    scheduled: u64,
    random: Rng,
    faults: Faults,
    notes: Vec<String>,
    violations: Vec<String>,
}

impl<E> Simulation<E> {
    /// The beginning of a history.
    pub fn new(seed: Seed) -> Self {
        Self {
            seed,
            now: Duration::ZERO,
            events: BTreeMap::new(),
            scheduled: 0,
            random: Rng::with_seed(seed.number),
            faults: Faults::default(),
            notes: Vec::new(),
            violations: Vec::new(),
        }
    }

    /// True time since the beginning.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// The source of all randomness.
    pub fn random(&mut self) -> &mut Rng {
        &mut self.random
    }

    /// Whether something that has this probability is so now.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.random.f64() < probability
    }

    /// A time between two.
    pub fn duration(&mut self, least: Duration, most: Duration) -> Duration {
        least + most.saturating_sub(least).mul_f64(self.random.f64())
    }

    /// Has something happen after a while.
    pub fn after(&mut self, wait: Duration, event: E) {
        self.scheduled += 1;
        self.events.insert((self.now + wait, self.scheduled), event);
    }

    /// Goes on to the next event; `None` when nothing will ever happen again.
    #[allow(
        clippy::should_implement_trait,
        reason = "what is scheduled while it is iterated over is a part of it"
    )]
    pub fn next(&mut self) -> Option<E> {
        let ((at, _), event) = self.events.pop_first()?;
        self.now = at;
        Some(event)
    }

    /// How many events are scheduled.
    pub fn pending(&self) -> usize {
        self.events.len()
    }

    /// Where faults are counted.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// A line of the history. It is only made when somebody will read it.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if self.seed.is_traced {
            let (now, line) = (self.now.as_secs_f64(), line());
            self.notes.push(format!("{now:>12.6}  {line}"));
        }
    }

    /// What must hold now. Where it does not, the history goes on, and its proof fails.
    pub fn require(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds && self.violations.len() < VIOLATIONS_MAX {
            let violation = format!("at {:.6} s: {}", self.now.as_secs_f64(), otherwise());
            self.note(|| format!("VIOLATION {violation}"));
            self.violations.push(violation);
        }
    }

    /// Whether something did not hold.
    pub fn is_violated(&self) -> bool {
        !self.violations.is_empty()
    }

    /// The end of it.
    pub fn end(self) -> History {
        History {
            faults: self.faults,
            violations: self.violations,
            notes: self.notes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_happen_in_the_order_of_their_time_and_then_of_their_scheduling() {
        let mut simulation = Simulation::new(Seed::quiet(0));
        for (wait, name) in [(2, "c"), (1, "a"), (2, "d"), (1, "b")] {
            simulation.after(Duration::from_secs(wait), name);
        }
        let mut order = Vec::new();
        while let Some(event) = simulation.next() {
            order.push((simulation.now().as_secs(), event));
        }
        assert_eq!(order, [(1, "a"), (1, "b"), (2, "c"), (2, "d")]);
    }
}
