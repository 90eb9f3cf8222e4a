//! Counts by principal, of a bounded number of them: those beyond are counted together.
//!
//! A name that was counted once stays, so that its counts never go back: also after its keys were
//! revoked.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use super::Principal;

/// `C` is made of counters that count by themselves.
#[derive(Debug)]
pub(crate) struct Tally<C> {
    names_max: usize,
    of: RwLock<HashMap<Principal, C>>,
    of_others: C,
}

impl<C: Default> Tally<C> {
    pub fn new(names_max: usize) -> Self {
        Self {
            names_max,
            of: RwLock::default(),
            of_others: C::default(),
        }
    }

    /// Counts something of a principal.
    pub fn count(&self, principal: &Principal, count: impl Fn(&C)) {
        let known = self.of.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(of) = known.get(principal) {
            return count(of);
        }
        if known.len() >= self.names_max {
            return count(&self.of_others);
        }
        drop(known);
        let mut known = self.of.write().unwrap_or_else(PoisonError::into_inner);
        // Others may have come in between.
        if known.len() >= self.names_max && !known.contains_key(principal) {
            return count(&self.of_others);
        }
        count(known.entry(principal.clone()).or_default());
    }

    /// What was counted, by name; and at the end, without a name, of all others together.
    pub fn read<R>(&self, read: impl Fn(Option<&Principal>, &C) -> R) -> Vec<R> {
        let known = self.of.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<_> = known.iter().collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        let names = names.into_iter().map(|(name, of)| (Some(name), of));
        let others = (known.len() >= self.names_max).then_some((None, &self.of_others));
        names
            .chain(others)
            .map(|(name, of)| read(name, of))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    #[test]
    fn the_last_name_that_has_room_is_counted_by_itself_and_the_next_with_the_others() {
        let tally = Tally::<AtomicU64>::new(2);
        let counted = || {
            let name = |name: Option<&Principal>| name.map_or("-".to_owned(), Principal::to_string);
            tally.read(|of, count| (name(of), count.load(Relaxed)))
        };
        for (times, name) in [(1, "b"), (2, "a"), (3, "c"), (4, "d"), (1, "a")] {
            for _ in 0..times {
                tally.count(&Principal::new(name), |count| {
                    count.fetch_add(1, Relaxed);
                });
            }
            if name == "b" {
                assert_eq!(counted(), [("b".to_owned(), 1)]);
            }
        }
        let expected = [("a", 3), ("b", 1), ("-", 7)];
        assert_eq!(counted(), expected.map(|(name, of)| (name.to_owned(), of)));
    }
}
