//! Records in the memory of this process: the default store.
//!
//! Safe against lost, repeated and reordered messages, for as long as the process lives. It is not
//! shared, and it forgets everything when the process ends.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::store::{Bounds, Clock, NoTransaction, WhenFull};
use super::waiters::Waiters;
use super::{Change, Key, Record, State, Store, StoreError, Timestamp, Verdict, Write, step};
use crate::schema::Recovery;

/// Shards, so that callers on different threads seldom meet.
const SHARDS: usize = 16;
/// Records that an operation forgets in passing, so that no sweep has to stop the world.
const FORGOTTEN_IN_PASSING_MAX: usize = 2;
/// A record whose attempt died is kept at least this long.
const ABANDONED_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

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
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    bounds: Bounds,
    clock: Clock,
    records: AtomicUsize,
    reply_bytes: AtomicUsize,
    waiters: Waiters,
}

#[derive(Debug, Default)]
struct Shard {
    records: HashMap<Key, Record>,
    /// When each is over. An entry whose record has changed since is passed over.
    expiry: BinaryHeap<Reverse<(Timestamp, Key)>>,
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
            bounds,
            clock,
            ..Default::default()
        }))
    }

    /// Records that it has.
    pub fn records(&self) -> usize {
        self.0.records.load(Ordering::Relaxed)
    }

    /// Bytes of the replies that it has.
    pub fn reply_bytes(&self) -> usize {
        self.0.reply_bytes.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        lock(&self.shards[index])
    }

    fn apply(&self, key: &Key, change: Change) -> Verdict {
        let now = self.clock.now();
        let begins = matches!(change, Change::Begin(_));
        let mut shard = self.shard(key);
        self.forget(&mut shard, now, FORGOTTEN_IN_PASSING_MAX);
        let record = shard.records.get(key);
        if begins && record.is_none() && !self.has_room(&mut shard) {
            return Verdict::Full;
        }
        let (verdict, write) = step(shard.records.get(key), now, change);
        match write {
            Write::Nothing => return verdict,
            Write::Remove => self.remove(&mut shard, key),
            Write::Put(record) => self.put(&mut shard, key, record),
        }
        drop(shard);
        if !begins {
            self.waiters.wake(key);
        }
        verdict
    }

    fn put(&self, shard: &mut Shard, key: &Key, record: Record) {
        if let Some(over) = record.forgettable(ABANDONED_RETENTION) {
            // A lease that is renewed does not push again: its entry leads to the later time.
            if matches!(record.state, State::Done { .. }) || !shard.records.contains_key(key) {
                shard.expiry.push(Reverse((over, key.clone())));
            }
        }
        self.reply_bytes
            .fetch_add(record.bytes(), Ordering::Relaxed);
        match shard.records.insert(key.clone(), record) {
            None => self.records.fetch_add(1, Ordering::Relaxed),
            Some(old) => self.reply_bytes.fetch_sub(old.bytes(), Ordering::Relaxed),
        };
    }

    fn remove(&self, shard: &mut Shard, key: &Key) {
        if let Some(old) = shard.records.remove(key) {
            self.records.fetch_sub(1, Ordering::Relaxed);
            self.reply_bytes.fetch_sub(old.bytes(), Ordering::Relaxed);
        }
    }

    fn has_room(&self, shard: &mut Shard) -> bool {
        let full = || {
            self.records.load(Ordering::Relaxed) >= self.bounds.records_max
                || self.reply_bytes.load(Ordering::Relaxed) >= self.bounds.reply_bytes_max
        };
        match self.bounds.when_full {
            WhenFull::Refuse => !full(),
            WhenFull::ForgetOldest => {
                // The oldest of this shard: close to the oldest of all, and under one lock.
                let done = |record: &Record| matches!(record.state, State::Done { .. });
                let mut running = Vec::new();
                while full()
                    && let Some(Reverse((over, key))) = shard.expiry.pop()
                {
                    match shard.records.get(&key) {
                        Some(record) if done(record) => self.remove(shard, &key),
                        Some(_) => running.push(Reverse((over, key))),
                        None => {}
                    }
                }
                shard.expiry.extend(running);
                !full()
            }
        }
    }

    fn forget(&self, shard: &mut Shard, now: Timestamp, max: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < max {
            let Some(Reverse((over, _))) = shard.expiry.peek() else {
                break;
            };
            if *over > now {
                break;
            }
            let Some(Reverse((_, key))) = shard.expiry.pop() else {
                break;
            };
            match shard.records.get(&key) {
                Some(record) => match record.forgettable(ABANDONED_RETENTION) {
                    Some(over) if over <= now => {
                        self.remove(shard, &key);
                        forgotten += 1;
                    }
                    Some(later) => shard.expiry.push(Reverse((later, key))),
                    None => {}
                },
                None => {}
            }
        }
        forgotten
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // Nothing of others runs under the lock.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for MemoryStore {
    type Transaction = NoTransaction;

    async fn apply(&self, key: &Key, change: Change) -> Result<Verdict, StoreError> {
        Ok(self.0.apply(key, change))
    }

    async fn watch(&self, key: &Key) -> Result<(), StoreError> {
        let is_in_flight = async {
            let shard = self.0.shard(key);
            let record = shard.records.get(key);
            Ok(record.is_some_and(|record| matches!(record.state, State::InFlight { .. })))
        };
        self.0.waiters.wait(key, is_in_flight).await
    }

    async fn expire(&self, max: usize) -> Result<usize, StoreError> {
        let now = self.0.clock.now();
        let mut forgotten = 0;
        for shard in &self.0.shards {
            forgotten += self.0.forget(&mut lock(shard), now, max - forgotten);
        }
        Ok(forgotten)
    }

    async fn in_doubt(&self, max: usize) -> Result<Vec<Key>, StoreError> {
        let now = self.0.clock.now();
        let mut found = Vec::new();
        for shard in &self.0.shards {
            let shard = lock(shard);
            let doubted = shard
                .records
                .iter()
                .filter(|(_, record)| match record.state {
                    State::InDoubt => true,
                    State::InFlight { until } => {
                        until <= now && record.recovery == Recovery::InDoubt
                    }
                    State::Done { .. } => false,
                });
            found.extend(doubted.take(max - found.len()).map(|(key, _)| key.clone()));
        }
        Ok(found)
    }
}
