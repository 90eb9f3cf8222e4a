//! Records in the memory of this process: the default store.
//!
//! Safe against lost, repeated and reordered messages, for as long as the process lives. It is not
//! shared, and it forgets everything when the process ends. `records` is how they lie in memory.

mod records;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::store::{AtOnce, Bounds, Clock, NoTransaction, WhenFull};
use super::waiters::Waiters;
use super::{
    Change, Key, Record, Recorded, State, Store, StoreError, Timestamp, Verdict, Write, step,
};
use crate::schema::Recovery;
use records::{Records, Ticket};

/// Shards, so that callers on different threads seldom meet.
const SHARDS: usize = 16;
/// Records that an operation forgets in passing, so that no sweep has to stop the world.
const FORGOTTEN_IN_PASSING_MAX: usize = 2;
/// Bodies up to this are kept behind each other, in chunks of so many bytes.
const SMALL_BYTES_MAX: usize = 1 << 10;
const CHUNK_BYTES: usize = 8 << 10;
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
    bounds: Bounds,
    clock: Clock,
    records: AtomicUsize,
    reply_bytes: AtomicUsize,
    waiters: Waiters,
}

#[derive(Debug, Default)]
struct Shard {
    records: Records,
    /// When each is over, the next one first. An entry whose record has changed since is passed over.
    expiry: Expiry,
    bodies: Bodies,
}

type Expiry = VecDeque<(Timestamp, Ticket)>;

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
        // The end of a key is random or counts up.
        let last = key.as_bytes().last().copied().unwrap_or_default();
        lock(&self.shards[usize::from(last) % SHARDS])
    }

    fn apply(&self, key: &Key, change: Change) -> Verdict {
        let now = self.clock.now();
        let mut guard = self.shard(key);
        let shard = &mut *guard;
        self.forget(shard, now, FORGOTTEN_IN_PASSING_MAX);
        let Some(ticket) = shard.records.find(key) else {
            return self.apply_first(shard, now, key, change);
        };
        let Some(record) = shard.records.get_mut(ticket) else {
            return Verdict::Unknown;
        };
        let (verdict, write) = step(Some(record), now, change);
        match write {
            Write::Nothing => return verdict,
            Write::Remove => self.remove(shard, ticket),
            Write::Put(mut new) => {
                shard.bodies.keep(&mut new);
                // As often as not this wraps around, and is a difference all the same.
                let more = new.bytes().wrapping_sub(record.bytes());
                if more != 0 {
                    self.reply_bytes.fetch_add(more, Ordering::Relaxed);
                }
                // A lease that is renewed keeps its entry, which leads to the later time.
                if matches!(new.state, State::Done { .. }) {
                    note_expiry(&mut shard.expiry, ticket, &new);
                }
                *record = new;
            }
        }
        drop(guard);
        self.waiters.wake(key);
        verdict
    }

    /// Where nothing is recorded, and so nobody waits.
    fn apply_first(&self, shard: &mut Shard, now: Timestamp, key: &Key, change: Change) -> Verdict {
        if matches!(change, Change::Begin(_)) && !self.has_room(shard) {
            return Verdict::Full;
        }
        let (verdict, write) = step(None, now, change);
        if let Write::Put(record) = write {
            let over = record.forgettable(ABANDONED_RETENTION);
            let ticket = shard.records.insert(key, record);
            note(&mut shard.expiry, over, ticket);
            self.records.fetch_add(1, Ordering::Relaxed);
        }
        verdict
    }

    fn remove(&self, shard: &mut Shard, ticket: Ticket) {
        if let Some(bytes) = shard.records.remove(ticket) {
            self.records.fetch_sub(1, Ordering::Relaxed);
            if bytes != 0 {
                self.reply_bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
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
                    && let Some((over, ticket)) = shard.expiry.pop_front()
                {
                    match shard.records.get(ticket) {
                        Some(record) if done(record) => self.remove(shard, ticket),
                        Some(_) => running.push((over, ticket)),
                        None => {}
                    }
                }
                for entry in running.into_iter().rev() {
                    shard.expiry.push_front(entry);
                }
                !full()
            }
        }
    }

    fn forget(&self, shard: &mut Shard, now: Timestamp, max: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < max
            && let Some((_, ticket)) = shard.expiry.pop_front_if(|(over, _)| *over <= now)
        {
            match shard.records.get(ticket) {
                Some(record) if is_over(record, now) => {
                    self.remove(shard, ticket);
                    forgotten += 1;
                }
                Some(record) => note_expiry(&mut shard.expiry, ticket, record),
                None => {}
            }
        }
        forgotten
    }
}

/// Copies what is kept: a body may be a small part of a buffer that wants to be used again.
///
/// Small ones share an allocation with those beside them, which is free again when the last of them is forgotten:
/// they are forgotten in the order in which they came.
#[derive(Debug, Default)]
struct Bodies(BytesMut);

impl Bodies {
    fn keep(&mut self, record: &mut Record) {
        if let State::Done {
            outcome: Recorded::Reply { body, .. },
            ..
        } = &mut record.state
        {
            *body = self.copy(body);
        }
    }

    fn copy(&mut self, body: &[u8]) -> Bytes {
        if body.len() > SMALL_BYTES_MAX {
            return Bytes::copy_from_slice(body);
        }
        if body.len() > self.0.capacity() {
            self.0 = BytesMut::with_capacity(CHUNK_BYTES);
        }
        self.0.extend_from_slice(body);
        self.0.split().freeze()
    }
}

fn is_over(record: &Record, now: Timestamp) -> bool {
    let over = record.forgettable(ABANDONED_RETENTION);
    over.is_some_and(|over| over <= now)
}

fn note_expiry(expiry: &mut Expiry, ticket: Ticket, record: &Record) {
    note(expiry, record.forgettable(ABANDONED_RETENTION), ticket);
}

fn note(expiry: &mut Expiry, over: Option<Timestamp>, ticket: Ticket) {
    let Some(over) = over else {
        return;
    };
    // Almost always the last: they are kept equally long.
    match expiry.back() {
        Some((last, _)) if *last > over => {
            let index = expiry.partition_point(|(at, _)| *at <= over);
            expiry.insert(index, (over, ticket));
        }
        _ => expiry.push_back((over, ticket)),
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

    fn apply_now(&self, key: &Key, change: Change) -> AtOnce {
        AtOnce::Applied(self.0.apply(key, change))
    }

    async fn watch(&self, key: &Key) -> Result<(), StoreError> {
        let is_in_flight = async {
            let shard = self.0.shard(key);
            let record = shard.records.find(key);
            let record = record.and_then(|ticket| shard.records.get(ticket));
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
