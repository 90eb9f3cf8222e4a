//! How many records and reply bytes a table has, as far as one replica knows: what it last counted,
//! and what it has changed since.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::super::Bounds;

/// A count that takes this long is taken once in a hundred times as long.
const REST_PER_COUNT: u32 = 100;
/// Outcomes that are forgotten at once where their bytes are too many.
const FORGOTTEN_FOR_BYTES: usize = 16;

pub struct Totals {
    pub bounds: Bounds,
    interval: Duration,
    records: AtomicI64,
    reply_bytes: AtomicI64,
    due: Mutex<Instant>,
}

impl Totals {
    pub fn new(bounds: Bounds, interval: Duration) -> Self {
        Self {
            bounds,
            interval,
            records: AtomicI64::new(0),
            reply_bytes: AtomicI64::new(0),
            due: Mutex::new(Instant::now()),
        }
    }

    pub fn now(&self) -> (usize, usize) {
        let read = |total: &AtomicI64| total.load(Ordering::Relaxed).max(0) as usize;
        (read(&self.records), read(&self.reply_bytes))
    }

    pub fn add(&self, records: i64, reply_bytes: i64) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.reply_bytes.fetch_add(reply_bytes, Ordering::Relaxed);
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

    pub fn counted(&self, records: i64, reply_bytes: i64, took: Duration) {
        self.records.store(records, Ordering::Relaxed);
        self.reply_bytes.store(reply_bytes, Ordering::Relaxed);
        let rest = self.interval.max(took * REST_PER_COUNT);
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + rest;
    }

    pub fn is_count_due(&self) -> bool {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) <= Instant::now()
    }
}
