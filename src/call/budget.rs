//! How many of a client's calls may be sent again: a token bucket. No clock inside.
//!
//! Retries help while few calls fail, and make things worse once many do: when every client sends
//! everything four times, a service that was a little too slow never recovers. A budget bounds what
//! retries can add. After Finagle's `RetryBudget` (<https://twitter.github.io/finagle/guide/Clients.html#retries>)
//! and the SRE book, chapter 22.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What a retry budget grows by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetPolicy {
    /// Retries for each call. Default: 0.2, so that retries add a fifth at most.
    pub per_call: f64,
    /// Retries for each second, whatever the number of calls, so that a client which seldom calls
    /// can retry at all. Default: 10.
    pub per_second: f64,
    /// Retries that can be saved up. Default: 100, ten seconds' worth.
    pub saved_max: f64,
}

impl Default for BudgetPolicy {
    fn default() -> Self {
        Self {
            per_call: 0.2,
            per_second: 10.0,
            saved_max: 100.0,
        }
    }
}

/// The retries that a client has left.
#[derive(Clone, Debug)]
pub struct Budget {
    policy: BudgetPolicy,
    tokens: f64,
    at: Option<Instant>,
}

impl Budget {
    /// With a second's worth to begin with.
    pub fn new(policy: BudgetPolicy) -> Self {
        Self {
            policy,
            tokens: policy.per_second.min(policy.saved_max),
            at: None,
        }
    }

    /// A call is made.
    pub fn deposit(&mut self) {
        self.add(self.policy.per_call);
    }

    /// A call wants to be made again. Whether it may.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        let since = self.at.map_or(Duration::ZERO, |at| now - at);
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        self.add(self.policy.per_second * since.as_secs_f64());
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }

    fn add(&mut self, tokens: f64) {
        self.tokens = (self.tokens + tokens).min(self.policy.saved_max);
    }
}

/// One budget for all calls of a client, and for its hedges.
#[derive(Clone, Debug)]
pub struct SharedBudget(Arc<Spending>);

#[derive(Debug)]
struct Spending {
    /// None where everything may be sent again.
    budget: Option<Mutex<Budget>>,
    granted: AtomicU64,
    refused: AtomicU64,
}

impl SharedBudget {
    /// A second's worth; `None` for one without bounds.
    pub fn new(policy: impl Into<Option<BudgetPolicy>>) -> Self {
        let budget = policy.into().map(|policy| Mutex::new(Budget::new(policy)));
        Self(Arc::new(Spending {
            budget,
            granted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// How many attempts it has paid for.
    pub fn granted(&self) -> u64 {
        self.0.granted.load(Ordering::Relaxed)
    }

    /// How many it has not.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn deposit(&self) {
        if let Some(mut budget) = self.lock() {
            budget.deposit();
        }
    }

    pub(crate) fn withdraw(&self) -> bool {
        let may = self
            .lock()
            .is_none_or(|mut budget| budget.withdraw(Instant::now()));
        let counter = if may {
            &self.0.granted
        } else {
            &self.0.refused
        };
        counter.fetch_add(1, Ordering::Relaxed);
        may
    }

    fn lock(&self) -> Option<MutexGuard<'_, Budget>> {
        let budget = self.0.budget.as_ref()?;
        Some(budget.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for SharedBudget {
    fn default() -> Self {
        Self::new(BudgetPolicy::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn retries_are_never_more_than_a_fifth_of_calls_and_ten_a_second(
            steps in prop::collection::vec((any::<bool>(), 0..50u64), 1..500)
        ) {
            let begun = Instant::now();
            let mut now = begun;
            let mut budget = Budget::new(BudgetPolicy::default());
            let (mut calls, mut retries) = (0.0, 0.0);
            for (calls_, milliseconds) in steps {
                now += Duration::from_millis(milliseconds);
                if calls_ {
                    budget.deposit();
                    calls += 1.0;
                } else if budget.withdraw(now) {
                    retries += 1.0;
                }
                let seconds = (now - begun).as_secs_f64();
                prop_assert!(retries <= 10.0 + 0.2 * calls + 10.0 * seconds + 1e-6);
            }
        }
    }

    #[test]
    fn no_more_is_saved_up_than_the_limit() {
        let mut budget = Budget::new(BudgetPolicy::default());
        for _ in 0..100_000 {
            budget.deposit();
        }
        let now = Instant::now();
        let granted = (0..1000).filter(|_| budget.withdraw(now)).count();
        assert_eq!(granted, 100);
    }
}
