//! Records in the memory of this process: the default store.
//!
//! Safe against lost, repeated and reordered messages, for as long as the process lives. It is not
//! shared, and it forgets everything when the process ends. `table` is what it has, `records` how that lies in
//! memory, `shares` who has how much of it.

mod records;
mod shares;
mod table;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pressure::Pressure;
use super::store::{AtOnce, Bounds, Clock, NoTransaction, SteadyClock, Usage};
use super::waiters::Waiters;
use super::{Change, Key, Now, Store, StoreError, Verdict};
use table::Table;

/// Records that an operation forgets in passing, so that no sweep has to stop the world.
const FORGOTTEN_IN_PASSING_MAX: usize = 2;
/// Records that are looked at under one lock.
const STEPS_MAX: usize = 64;

/// Keeps records in memory. Cheap to clone; clones share their records.
///
/// ```
/// use bowline::once::{Bounds, MemoryStore, Once};
///
/// let store = MemoryStore::with_bounds(Bounds::default().with_records_max(10_000));
/// let once = Once::builder().build(store)?;
/// # Ok::<(), bowline::once::OnceError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    table: Mutex<Table>,
    clock: SteadyClock,
    pressure: Pressure,
    waiters: Waiters,
}

impl MemoryStore {
    /// With default bounds.
    pub fn new() -> Self {
        Self::default()
    }

    /// With other bounds.
    pub fn with_bounds(bounds: Bounds) -> Self {
        Self::with_clock(bounds, Clock::default())
    }

    /// With another clock, for tests.
    pub fn with_clock(bounds: Bounds, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            table: Mutex::new(Table::new(bounds)),
            clock: SteadyClock::new(clock),
            ..Default::default()
        }))
    }

    /// Records that it has.
    pub fn records(&self) -> usize {
        self.0.lock().records()
    }

    /// How many entries its indexes have.
    #[cfg(test)]
    pub(super) fn indexed(&self) -> (usize, usize, usize) {
        self.0.lock().indexed()
    }

    /// How many keys somebody waits for.
    #[cfg(test)]
    pub(super) fn waited_for(&self) -> usize {
        self.0.waiters.len()
    }

    /// Bytes of the replies that it has.
    pub fn reply_bytes(&self) -> usize {
        self.0.lock().reply_bytes()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing of others runs under the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, key: &Key, change: Change) -> Verdict {
        let now = match change {
            // The end of an attempt is compared with no lease.
            Change::Complete { .. } => Now::from(self.clock.wall()),
            _ => self.clock.now(),
        };
        let mut table = self.lock();
        table.forget_due(now, FORGOTTEN_IN_PASSING_MAX);
        let changed = table.apply(now, key, change);
        drop(table);
        if changed.wakes {
            self.waiters.wake(key);
        }
        if let Some(forgotten) = &changed.forgotten {
            let retained = now.wall.since(forgotten.ended);
            self.pressure
                .forgot(&forgotten.key, forgotten.count, retained);
        }
        changed.verdict
    }

    /// Does something to all of the table, a little at a time.
    fn in_steps(&self, mut step: impl FnMut(&mut Table, Now) -> bool) {
        while step(&mut self.lock(), self.clock.now()) {}
    }
}

impl Store for MemoryStore {
    type Transaction = NoTransaction;

    async fn apply(&self, key: &Key, change: Change) -> Result<Verdict, StoreError> {
        Ok(self.0.apply(key, change))
    }

    fn apply_now(&self, key: &Key, change: Change) -> AtOnce {
        AtOnce::Applied(self.0.apply(key, change))
    }

    async fn watch(&self, key: &Key) -> Result<(), StoreError> {
        let is_in_flight = async { Ok(self.0.lock().is_in_flight(key)) };
        self.0.waiters.wait(key, is_in_flight).await
    }

    async fn expire(&self, max: usize) -> Result<usize, StoreError> {
        let mut forgotten = 0;
        self.0.in_steps(|table, now| {
            let at_once = STEPS_MAX.min(max - forgotten);
            let (steps, count) = table.forget_due(now, at_once);
            forgotten += count;
            steps == STEPS_MAX
        });
        Ok(forgotten)
    }

    async fn in_doubt(&self, max: usize) -> Result<Vec<Key>, StoreError> {
        let now = self.0.clock.now();
        Ok(self.0.lock().in_doubt(now, max))
    }

    fn usage(&self) -> Usage {
        self.0.pressure.usage()
    }
}
