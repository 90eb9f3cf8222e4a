//! What stores forget before its time because they are full: counted, by principal too, and logged.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Key;
use super::store::{PrincipalUsage, Usage};
use crate::counter::Counter;
use crate::security::{Principal, Tally};

/// Principals that are counted by name; all others are counted together.
const NAMES_MAX: usize = 1000;

#[derive(Debug)]
pub(super) struct Pressure {
    forgotten: Counter,
    /// How old the outcome was that was forgotten last: milliseconds, and one more.
    retained: AtomicU64,
    by_principal: Tally<AtomicU64>,
}

impl Default for Pressure {
    fn default() -> Self {
        Self {
            forgotten: Counter::default(),
            retained: AtomicU64::new(0),
            by_principal: Tally::new(NAMES_MAX),
        }
    }
}

impl Pressure {
    /// Outcomes were forgotten before their time; the last of them under `key`, so long after it had ended.
    pub fn forgot(&self, key: &Key, count: usize, retained: Duration) {
        let milliseconds = u64::try_from(retained.as_millis()).unwrap_or(u64::MAX - 1);
        self.retained.store(milliseconds + 1, Relaxed);
        let principal = key.principal();
        self.by_principal.count(&principal, |of| {
            of.fetch_add(count as u64, Relaxed);
        });
        self.forgotten.add_and_log(count, |count| {
            tracing::warn!(
                %principal, ?retained, count,
                "outcomes forgotten before their time: the store of outcomes is full"
            );
        });
    }

    pub fn usage(&self) -> Usage {
        let retained = self.retained.load(Relaxed).checked_sub(1);
        Usage {
            forgotten_early: self.forgotten.read(),
            retained: retained.map(Duration::from_millis),
            principals: self.by_principal.read(|name, of| PrincipalUsage {
                principal: name.map(Principal::to_string),
                forgotten_early: of.load(Relaxed),
                refused: 0,
            }),
        }
    }
}
