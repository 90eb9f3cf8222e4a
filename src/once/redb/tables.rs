//! How records lie in the tables of a redb database, and how many there are, within one transaction.
//! Which changes a transaction has, and when it is committed, is in `engine`.

use std::time::Duration;

use bytes::Bytes;
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::failed::Failed;
use crate::once::store::{Bounds, WhenFull};
use crate::once::{Change, Key, Record, State, Timestamp, Verdict, Write, step};

pub const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bowline-once-records");
/// When each record may be forgotten.
const EXPIRY: TableDefinition<'_, (u64, &[u8]), ()> = TableDefinition::new("bowline-once-expiry");
/// Records without an outcome: what to look at after a crash.
pub const OPEN: TableDefinition<'_, &[u8], ()> = TableDefinition::new("bowline-once-open");
const TOTALS: TableDefinition<'_, &str, u64> = TableDefinition::new("bowline-once-totals");

/// A record whose attempt died is kept at least this long.
const ABANDONED_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// The tables, open in one transaction.
pub struct Tables<'t> {
    records: Table<'t, &'static [u8], &'static [u8]>,
    expiry: Table<'t, (u64, &'static [u8]), ()>,
    open: Table<'t, &'static [u8], ()>,
    totals: Table<'t, &'static str, u64>,
    count: u64,
    reply_bytes: u64,
    bounds: Bounds,
}

const COUNT: &str = "records";
const REPLY_BYTES: &str = "reply bytes";

impl<'t> Tables<'t> {
    pub fn open(transaction: &'t WriteTransaction, bounds: Bounds) -> Result<Self, Failed> {
        let totals = transaction.open_table(TOTALS)?;
        let total = |name| -> Result<u64, Failed> {
            Ok(totals.get(name)?.map_or(0, |total| total.value()))
        };
        let (count, reply_bytes) = (total(COUNT)?, total(REPLY_BYTES)?);
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            expiry: transaction.open_table(EXPIRY)?,
            open: transaction.open_table(OPEN)?,
            totals,
            count,
            reply_bytes,
            bounds,
        })
    }

    pub fn close(mut self) -> Result<(), Failed> {
        self.totals.insert(COUNT, self.count)?;
        self.totals.insert(REPLY_BYTES, self.reply_bytes)?;
        Ok(())
    }

    /// The keys of records without an outcome.
    pub fn open_keys(&self) -> Result<Vec<Bytes>, Failed> {
        let mut keys = Vec::new();
        for entry in self.open.iter()? {
            keys.push(Bytes::copy_from_slice(entry?.0.value()));
        }
        Ok(keys)
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Record>, Failed> {
        let bytes = self.records.get(key)?;
        let bytes = bytes.map(|bytes| Bytes::copy_from_slice(bytes.value()));
        Ok(bytes.map(Record::from_bytes).transpose()?)
    }

    pub fn is_done(&self, key: &[u8]) -> Result<bool, Failed> {
        let record = self.get(key)?;
        Ok(record.is_some_and(|record| matches!(record.state, State::Done { .. })))
    }

    pub fn apply(&mut self, now: Timestamp, key: &Key, change: Change) -> Result<Verdict, Failed> {
        let bytes = key.as_bytes();
        let record = self.get(bytes)?;
        if matches!(change, Change::Begin(_)) && record.is_none() && !self.has_room()? {
            return Ok(Verdict::Full);
        }
        let (verdict, write) = step(record.as_ref(), now, change);
        match write {
            Write::Nothing => {}
            Write::Remove => self.remove(bytes)?,
            Write::Put(record) => self.put(bytes, &record)?,
        }
        Ok(verdict)
    }

    pub fn put(&mut self, key: &[u8], record: &Record) -> Result<(), Failed> {
        self.remove(key)?;
        match record.state {
            State::Done { .. } => {}
            State::InFlight { .. } | State::InDoubt => {
                self.open.insert(key, ())?;
            }
        }
        if let Some(over) = record.forgettable(ABANDONED_RETENTION) {
            self.expiry.insert((over.milliseconds(), key), ())?;
        }
        self.records.insert(key, &record.to_bytes()[..])?;
        self.count += 1;
        self.reply_bytes += record.bytes() as u64;
        Ok(())
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), Failed> {
        let removed = self.records.remove(key)?;
        let Some(bytes) = removed.map(|bytes| Bytes::copy_from_slice(bytes.value())) else {
            return Ok(());
        };
        let record = Record::from_bytes(bytes)?;
        if !matches!(record.state, State::Done { .. }) {
            self.open.remove(key)?;
        }
        if let Some(over) = record.forgettable(ABANDONED_RETENTION) {
            self.expiry.remove((over.milliseconds(), key))?;
        }
        self.count = self.count.saturating_sub(1);
        self.reply_bytes = self.reply_bytes.saturating_sub(record.bytes() as u64);
        Ok(())
    }

    fn has_room(&mut self) -> Result<bool, Failed> {
        let full = |tables: &Self| {
            tables.count >= tables.bounds.records_max as u64
                || tables.reply_bytes >= tables.bounds.reply_bytes_max as u64
        };
        while full(self) {
            let oldest = match self.bounds.when_full {
                WhenFull::Refuse => None,
                WhenFull::ForgetOldest => self.oldest_outcome()?,
            };
            match oldest {
                Some(key) => self.remove(&key)?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn oldest_outcome(&self) -> Result<Option<Bytes>, Failed> {
        for entry in self.expiry.iter()? {
            let entry = entry?.0;
            let key = Bytes::copy_from_slice(entry.value().1);
            if let Some(Record {
                state: State::Done { .. },
                ..
            }) = self.get(&key)?
            {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    pub fn forget(&mut self, now: Timestamp, max: usize) -> Result<usize, Failed> {
        let mut over = Vec::new();
        for entry in self.expiry.iter()?.take(max) {
            let entry = entry?.0;
            let (at, key) = entry.value();
            if at > now.milliseconds() {
                break;
            }
            over.push(Bytes::copy_from_slice(key));
        }
        for key in &over {
            self.remove(key)?;
        }
        Ok(over.len())
    }
}
