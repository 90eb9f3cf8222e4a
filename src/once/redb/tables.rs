//! How records lie in the tables of a redb database, and how many there are, within one transaction.
//! Which changes a transaction has, and when it is committed, is in `engine`.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::failed::Failed;
use crate::once::record::forgotten;
use crate::once::store::{Bounds, WhenFull};
use crate::once::{Change, Key, Now, Record, State, Timestamp, Verdict, Write, step};
use crate::schema::Recovery;

pub const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bowline-once-records");
/// When each record may be forgotten.
const EXPIRY: TableDefinition<'_, (u64, &[u8]), ()> = TableDefinition::new("bowline-once-expiry");
/// Records without an outcome: what to look at after a crash.
pub const OPEN: TableDefinition<'_, &[u8], ()> = TableDefinition::new("bowline-once-open");
pub const TOTALS: TableDefinition<'_, &str, u64> = TableDefinition::new("bowline-once-totals");
/// What each principal has: its records, what they cost, and up to when its keys may have been forgotten.
pub const SHARES: TableDefinition<'_, &[u8], (u64, u64, u64)> =
    TableDefinition::new("bowline-once-shares");
/// What may be forgotten when there is no room, by principal, the oldest first.
const ENDED: TableDefinition<'_, (&[u8], u64, &[u8]), ()> =
    TableDefinition::new("bowline-once-ended");

/// A record whose attempt died is kept at least this long.
const ABANDONED_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
/// Outcomes that make room for one operation.
const FORGOTTEN_FOR_ROOM_MAX: usize = 64;

/// The tables, open in one transaction.
pub struct Tables<'t> {
    records: Table<'t, &'static [u8], &'static [u8]>,
    expiry: Table<'t, (u64, &'static [u8]), ()>,
    open: Table<'t, &'static [u8], ()>,
    totals: Table<'t, &'static str, u64>,
    shares: Table<'t, &'static [u8], (u64, u64, u64)>,
    ended: Table<'t, (&'static [u8], u64, &'static [u8]), ()>,
    count: u64,
    reply_bytes: u64,
    /// Up to when keys may have been forgotten of principals that have no records any more.
    forgotten: Timestamp,
    /// Of principals that have changed.
    changed: HashMap<Bytes, Share>,
    largest: Option<(Bytes, u64)>,
    bounds: Bounds,
    /// What was forgotten before its time.
    early: Option<Early>,
}

#[derive(Clone, Copy, Debug)]
struct Share {
    records: u64,
    cost: u64,
    forgotten: Timestamp,
}

impl Share {
    fn read((records, cost, forgotten): (u64, u64, u64)) -> Self {
        let forgotten = Timestamp::from_milliseconds(forgotten);
        Self {
            records,
            cost,
            forgotten,
        }
    }
}

/// Outcomes that were forgotten before their time: the last one, how many, and how old it was.
pub struct Early {
    pub key: Key,
    pub count: usize,
    pub retained: Duration,
}

const COUNT: &str = "records";
const REPLY_BYTES: &str = "reply bytes";
pub const FORGOTTEN: &str = "forgotten";

impl<'t> Tables<'t> {
    pub fn open(transaction: &'t WriteTransaction, bounds: Bounds) -> Result<Self, Failed> {
        let totals = transaction.open_table(TOTALS)?;
        let total = |name| -> Result<u64, Failed> {
            Ok(totals.get(name)?.map_or(0, |total| total.value()))
        };
        let (count, reply_bytes, forgotten) =
            (total(COUNT)?, total(REPLY_BYTES)?, total(FORGOTTEN)?);
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            expiry: transaction.open_table(EXPIRY)?,
            open: transaction.open_table(OPEN)?,
            shares: transaction.open_table(SHARES)?,
            ended: transaction.open_table(ENDED)?,
            totals,
            count,
            reply_bytes,
            forgotten: Timestamp::from_milliseconds(forgotten),
            changed: HashMap::new(),
            largest: None,
            bounds,
            early: None,
        })
    }

    /// Counts what each principal has, where an earlier version did not.
    pub fn count_shares(&mut self) -> Result<(), Failed> {
        if self.count == 0 || self.shares.first()?.is_some() {
            return Ok(());
        }
        let mut found = Vec::new();
        for entry in self.records.iter()? {
            let (key, record) = entry?;
            let record = Record::from_bytes(Bytes::copy_from_slice(record.value()))?;
            found.push((
                Bytes::copy_from_slice(key.value()),
                record.bytes(),
                over(&record),
            ));
        }
        for (key, bytes, over) in found {
            let scope = scope(&key);
            self.change_share(&scope, 1, 0, self.cost(bytes))?;
            if let Some(over) = over {
                let ended = (&scope[..], over.milliseconds(), &key[..]);
                self.ended.insert(ended, ())?;
            }
        }
        Ok(())
    }

    /// Writes down what has changed of the totals. Returns what was forgotten before its time.
    pub fn close(mut self) -> Result<Option<Early>, Failed> {
        for (scope, share) in std::mem::take(&mut self.changed) {
            if share.records == 0 {
                self.forgotten = self.forgotten.max(share.forgotten);
                self.shares.remove(&scope[..])?;
            } else {
                let row = (share.records, share.cost, share.forgotten.milliseconds());
                self.shares.insert(&scope[..], row)?;
            }
        }
        self.totals.insert(COUNT, self.count)?;
        self.totals.insert(REPLY_BYTES, self.reply_bytes)?;
        self.totals
            .insert(FORGOTTEN, self.forgotten.milliseconds())?;
        Ok(self.early)
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

    pub fn apply(&mut self, now: Now, key: &Key, change: Change) -> Result<Verdict, Failed> {
        let bytes = key.as_bytes();
        let record = self.get(bytes)?;
        if record.is_none() {
            let forgotten = self.share(&scope(bytes))?.forgotten.max(self.forgotten);
            if let Some(refused) = change.refused_by(forgotten) {
                return Ok(refused);
            }
        }
        let retention = match &change {
            Change::Begin(claim) => claim.age.retention,
            Change::Complete { retention, .. } => *retention,
            _ => Duration::ZERO,
        };
        let (verdict, write) = step(record.as_ref(), now, change);
        match write {
            Write::Nothing => {}
            Write::Remove => self.remove(bytes)?,
            Write::Put(_) if record.is_none() && !self.has_room(now, bytes, retention)? => {
                return Ok(Verdict::Full);
            }
            Write::Put(record) => {
                self.put(now, bytes, &record)?;
                // What is recorded has its room by all means: older outcomes give it.
                let is_over =
                    |tables: &Self| tables.reply_bytes > tables.bounds.reply_bytes_max as u64;
                self.forget_while(now, bytes, retention, is_over)?;
            }
        }
        Ok(verdict)
    }

    pub fn put(&mut self, now: Now, key: &[u8], record: &Record) -> Result<(), Failed> {
        self.remove(key)?;
        match record.state {
            State::Done { .. } => {}
            State::InFlight { .. } | State::InDoubt => {
                self.open.insert(key, ())?;
            }
        }
        let scope = scope(key);
        if let Some(over) = over(record) {
            self.expiry.insert((over.milliseconds(), key), ())?;
            if has_ended(record, now) {
                self.ended
                    .insert((&scope[..], over.milliseconds(), key), ())?;
            }
        }
        self.records.insert(key, &record.to_bytes()[..])?;
        self.count += 1;
        self.reply_bytes += record.bytes() as u64;
        self.change_share(&scope, 1, 0, self.cost(record.bytes()))
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
        let scope = scope(key);
        if let Some(over) = over(&record) {
            self.expiry.remove((over.milliseconds(), key))?;
            self.ended.remove((&scope[..], over.milliseconds(), key))?;
        }
        self.count = self.count.saturating_sub(1);
        self.reply_bytes = self.reply_bytes.saturating_sub(record.bytes() as u64);
        self.change_share(&scope, -1, self.cost(record.bytes()), 0)
    }

    /// What a record and its reply cost its principal.
    fn cost(&self, bytes: usize) -> u64 {
        let of_record = self.bounds.reply_bytes_max / self.bounds.records_max.max(1);
        (bytes as u64).saturating_add(of_record.max(1) as u64)
    }

    fn share(&self, scope: &Bytes) -> Result<Share, Failed> {
        if let Some(share) = self.changed.get(scope) {
            return Ok(*share);
        }
        let row = self.shares.get(&scope[..])?;
        Ok(Share::read(row.map_or((0, 0, 0), |row| row.value())))
    }

    fn change_share(
        &mut self,
        scope: &Bytes,
        records: i64,
        was: u64,
        is: u64,
    ) -> Result<(), Failed> {
        let mut share = self.share(scope)?;
        share.records = share.records.saturating_add_signed(records);
        share.cost = share.cost.saturating_sub(was).saturating_add(is);
        self.changed.insert(scope.clone(), share);
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.count >= self.bounds.records_max as u64
            || self.reply_bytes >= self.bounds.reply_bytes_max as u64
    }

    fn has_room(&mut self, now: Now, key: &[u8], retention: Duration) -> Result<bool, Failed> {
        let forgotten = self.forget_while(now, key, retention, Self::is_full)?;
        Ok(match forgotten {
            0 => !self.is_full(),
            // The bytes of one large reply are many small ones: what comes next goes on.
            _ => self.count < self.bounds.records_max as u64,
        })
    }

    /// Forgets the oldest outcomes of who has most, where a full store may do that. Returns how many.
    fn forget_while(
        &mut self,
        now: Now,
        asking: &[u8],
        retention: Duration,
        is_full: impl Fn(&Self) -> bool,
    ) -> Result<usize, Failed> {
        let mut count = 0;
        while is_full(self)
            && self.bounds.when_full == WhenFull::ForgetOldest
            && count < FORGOTTEN_FOR_ROOM_MAX
            && let Some((key, over)) = self.oldest_of_largest(asking)?
        {
            let before = now.wall.milliseconds().saturating_sub(over.milliseconds());
            let retained =
                Duration::from_millis(before).max(retention.saturating_sub(over.since(now.wall)));
            self.forget_one(now, &key, retained)?;
            count += 1;
            let early = self.early.take();
            self.early = Some(Early {
                key: Key::from_bytes(&key),
                count: early.map_or(0, |early| early.count) + 1,
                retained,
            });
        }
        Ok(count)
    }

    /// The oldest outcome of who has most, and when it would be over, unless who asks has more and nothing to give.
    fn oldest_of_largest(&mut self, asking: &[u8]) -> Result<Option<(Bytes, Timestamp)>, Failed> {
        let mut is_fresh = false;
        loop {
            if self.largest.is_none() {
                is_fresh = true;
                self.largest = self.find_largest()?;
            }
            let Some((scope, cost)) = self.largest.clone() else {
                return Ok(None);
            };
            let share = self.share(&scope)?;
            let oldest = self.oldest(&scope)?;
            if let Some(oldest) = oldest
                && (is_fresh || share.cost >= cost / 2)
            {
                let asking = self.share(&self::scope(asking))?.cost;
                return Ok((class(asking) <= class(share.cost)).then_some(oldest));
            }
            self.largest = None;
            if is_fresh {
                return Ok(None);
            }
        }
    }

    fn find_largest(&self) -> Result<Option<(Bytes, u64)>, Failed> {
        let mut largest: Option<(Bytes, u64)> = None;
        let mut consider = |scope: Bytes, cost: u64| -> Result<(), Failed> {
            let is_larger = largest.as_ref().is_none_or(|(_, most)| cost > *most);
            if is_larger && self.oldest(&scope)?.is_some() {
                largest = Some((scope, cost));
            }
            Ok(())
        };
        for entry in self.shares.iter()? {
            let (scope, row) = entry?;
            let scope = Bytes::copy_from_slice(scope.value());
            if !self.changed.contains_key(&scope) {
                consider(scope, Share::read(row.value()).cost)?;
            }
        }
        for (scope, share) in &self.changed {
            consider(scope.clone(), share.cost)?;
        }
        Ok(largest)
    }

    fn oldest(&self, scope: &Bytes) -> Result<Option<(Bytes, Timestamp)>, Failed> {
        let mut ended = self.ended.range((&scope[..], 0, &[][..])..)?;
        let Some(entry) = ended.next() else {
            return Ok(None);
        };
        let entry = entry?.0;
        let (of, over, key) = entry.value();
        let is_its = of == &scope[..];
        let over = Timestamp::from_milliseconds(over);
        Ok(is_its.then(|| (Bytes::copy_from_slice(key), over)))
    }

    /// Forgets a record that was kept so long since it ended.
    fn forget_one(&mut self, now: Now, key: &Bytes, retained: Duration) -> Result<(), Failed> {
        let ended =
            now.wall.milliseconds() - (retained.as_millis() as u64).min(now.wall.milliseconds());
        let ended = Timestamp::from_milliseconds(ended);
        if let Some(until) = forgotten(Key::from_bytes(key).created(), ended, now.wall) {
            let scope = scope(key);
            let mut share = self.share(&scope)?;
            share.forgotten = share.forgotten.max(until);
            self.changed.insert(scope, share);
        }
        self.remove(key)
    }

    pub fn forget(&mut self, now: Now, max: usize) -> Result<usize, Failed> {
        let mut over = Vec::new();
        for entry in self.expiry.iter()?.take(max) {
            let entry = entry?.0;
            let (at, key) = entry.value();
            if at > now.wall.milliseconds() {
                break;
            }
            over.push(Bytes::copy_from_slice(key));
        }
        for key in &over {
            self.forget_one(now, key, Duration::ZERO)?;
        }
        Ok(over.len())
    }
}

/// When a record is over, if time alone decides.
fn over(record: &Record) -> Option<Timestamp> {
    record.forgettable(ABANDONED_RETENTION)
}

fn has_ended(record: &Record, now: Now) -> bool {
    match record.state {
        State::Done { .. } => true,
        State::InFlight { until } => record.recovery != Recovery::InDoubt && until <= now.steady,
        State::InDoubt => false,
    }
}

pub fn scope(key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(Key::scope_of(key))
}

fn class(cost: u64) -> u32 {
    u64::BITS - cost.leading_zeros()
}
