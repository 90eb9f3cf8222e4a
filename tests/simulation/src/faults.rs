//! How often each fault was injected. A proof that injected none proves nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Counters by name. Clones share them, so that a disk and a network count into one.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Faults {
    /// One more.
    pub fn count(&self, name: &'static str) {
        self.add(name, 1);
    }

    /// So many more.
    pub fn add(&self, name: &'static str, count: u64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry(name).or_default() += count;
    }

    /// How many so far.
    pub fn get(&self, name: &str) -> u64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).copied().unwrap_or_default()
    }

    /// All of another's too.
    pub fn add_all(&self, other: &Self) {
        let other = other.0.lock().unwrap_or_else(PoisonError::into_inner);
        let other: Vec<_> = other.iter().map(|(name, count)| (*name, *count)).collect();
        for (name, count) in other {
            self.add(name, count);
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, count) in all.iter() {
            writeln!(f, "{count:>12}  {name}")?;
        }
        Ok(())
    }
}
