//! How many records and reply bytes a table has, and who has most of them, as far as one replica knows: what it last
//! counted, and what it has changed since.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::super::{Bounds, Key};

/// A count that takes this long is taken once in a hundred times as long.
const REST_PER_COUNT: u32 = 100;
/// Outcomes that are forgotten at once where their bytes are too many.
const FORGOTTEN_FOR_BYTES: usize = 16;
/// Scopes whose shares are known: the largest that were counted, and as many that have come since.
pub const SHARES_COUNTED: i64 = 64;
const SHARES_MAX: usize = 1024;

pub struct Totals {
    pub bounds: Bounds,
    interval: Duration,
    records: AtomicI64,
    reply_bytes: AtomicI64,
    due: Mutex<Instant>,
    /// What the records of a scope cost.
    shares: Mutex<HashMap<Vec<u8>, i64>>,
}

impl Totals {
    pub fn new(bounds: Bounds, interval: Duration) -> Self {
        Self {
            bounds,
            interval,
            records: AtomicI64::new(0),
            reply_bytes: AtomicI64::new(0),
            due: Mutex::new(Instant::now()),
            shares: Mutex::default(),
        }
    }

    pub fn now(&self) -> (usize, usize) {
        let read = |total: &AtomicI64| total.load(Ordering::Relaxed).max(0) as usize;
        (read(&self.records), read(&self.reply_bytes))
    }

    /// Records and bytes of the scope of a key.
    pub fn add(&self, key: &Key, records: i64, reply_bytes: i64) {
        self.add_to_all(records, reply_bytes);
        self.add_to_share(key.scope_and_id().0, records, reply_bytes);
    }

    fn add_to_all(&self, records: i64, reply_bytes: i64) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.reply_bytes.fetch_add(reply_bytes, Ordering::Relaxed);
    }

    fn add_to_share(&self, scope: &[u8], records: i64, reply_bytes: i64) {
        let more = reply_bytes.saturating_add(records.saturating_mul(self.record_cost()));
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = shares.len() < SHARES_MAX;
        match shares.get_mut(scope) {
            Some(share) => *share = share.saturating_add(more),
            None if has_room => {
                shares.insert(scope.to_vec(), more);
            }
            None => {}
        }
    }

    /// Records that were forgotten, of all scopes or of one.
    pub fn forgot(&self, scope: Option<&[u8]>, records: i64, reply_bytes: i64) {
        self.add_to_all(-records, -reply_bytes);
        if let Some(scope) = scope {
            self.add_to_share(scope, -records, -reply_bytes);
        }
    }

    /// What a record costs beside its reply.
    pub fn record_cost(&self) -> i64 {
        let cost = self.bounds.reply_bytes_max / self.bounds.records_max.max(1);
        i64::try_from(cost).unwrap_or(i64::MAX).clamp(1, 1 << 32)
    }

    /// The scope that has most.
    pub fn largest(&self) -> Option<Vec<u8>> {
        let shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let largest = shares.iter().max_by_key(|(_, cost)| **cost);
        largest.map(|(scope, _)| scope.clone())
    }

    /// It has nothing that could be forgotten.
    pub fn pass_over(&self, scope: &[u8]) {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.remove(scope);
    }

    /// How many records are in the way of one more; `None` where there is room.
    pub fn excess(&self) -> Option<usize> {
        let (records, reply_bytes) = self.now();
        if records >= self.bounds.records_max {
            Some(records - self.bounds.records_max + 1)
        } else if reply_bytes >= self.bounds.reply_bytes_max {
            Some(FORGOTTEN_FOR_BYTES)
        } else {
            None
        }
    }

    pub fn counted(
        &self,
        records: i64,
        reply_bytes: i64,
        shares: HashMap<Vec<u8>, i64>,
        took: Duration,
    ) {
        *self.shares.lock().unwrap_or_else(PoisonError::into_inner) = shares;
        self.records.store(records, Ordering::Relaxed);
        self.reply_bytes.store(reply_bytes, Ordering::Relaxed);
        let rest = self.interval.max(took * REST_PER_COUNT);
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + rest;
    }

    pub fn is_count_due(&self) -> bool {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) <= Instant::now()
    }
}
