//! The records of a store in memory: what is asked of one changes, which are over, and which go when there is no
//! room. No locks, no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::records::{Chain, Entry, List, Listed, Records};
use super::shares::Shares;
use crate::once::record::forgotten;
use crate::once::store::{Bounds, WhenFull};
use crate::once::{Change, Key, Now, Record, Recorded, State, Timestamp, Verdict, Write, step};
use crate::schema::Recovery;

/// Bodies up to this are kept behind each other, in chunks of so many bytes.
const SMALL_BYTES_MAX: usize = 1 << 10;
const CHUNK_BYTES: usize = 8 << 10;
/// A record whose attempt died is kept at least this long.
const ABANDONED_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
/// Outcomes that make room for one operation. Where one large reply comes, more may be needed: those that come after
/// it make it.
const FORGOTTEN_FOR_ROOM_MAX: usize = 64;

#[derive(Debug, Default)]
pub struct Table {
    bounds: Bounds,
    records: Records,
    shares: Shares,
    reply_bytes: usize,
    /// Records that are over within the same second, by that second. One whose lease was renewed is over later than it is
    /// due.
    due: BTreeMap<u64, List>,
    /// Records that stay until somebody says what became of them.
    open: List,
    bodies: Bodies,
}

/// What an operation did.
#[derive(Debug)]
pub struct Changed {
    pub verdict: Verdict,
    /// Whether those who wait for the record should look again.
    pub wakes: bool,
    /// What was forgotten before its time.
    pub forgotten: Option<Forgotten>,
}

/// Outcomes that were forgotten before their time: the last one, and how many.
#[derive(Debug)]
pub struct Forgotten {
    pub key: Key,
    pub ended: Timestamp,
    pub count: usize,
}

impl From<Verdict> for Changed {
    fn from(verdict: Verdict) -> Self {
        Self {
            verdict,
            wakes: false,
            forgotten: None,
        }
    }
}

impl Table {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            ..Self::default()
        }
    }

    pub fn records(&self) -> usize {
        self.records.len()
    }

    pub fn reply_bytes(&self) -> usize {
        self.reply_bytes
    }

    pub fn is_in_flight(&self, key: &Key) -> bool {
        let entry = self.records.find(key).and_then(|at| self.records.get(at));
        entry.is_some_and(|entry| matches!(entry.record.state, State::InFlight { .. }))
    }

    pub fn in_doubt(&self, now: Now, max: usize) -> Vec<Key> {
        let open = self.records.in_list(Chain::Order, &self.open);
        let in_doubt = open.filter(|entry| match entry.record.state {
            State::InDoubt => true,
            State::InFlight { until } => until <= now.steady,
            State::Done { .. } => false,
        });
        in_doubt.map(|entry| entry.key.clone()).take(max).collect()
    }

    pub fn apply(&mut self, now: Now, key: &Key, change: Change) -> Changed {
        let Some(place) = self.records.find(key) else {
            return self.apply_first(now, key, change);
        };
        let record = self.records.get(place).map(|entry| &entry.record);
        let (verdict, write) = step(record, now, change);
        let forgotten = match write {
            Write::Nothing => return verdict.into(),
            Write::Remove => {
                self.remove(place);
                None
            }
            Write::Put(record) => self.put(now, place, record),
        };
        Changed {
            verdict,
            wakes: true,
            forgotten,
        }
    }

    /// Where nothing is recorded, and so nobody waits.
    fn apply_first(&mut self, now: Now, key: &Key, change: Change) -> Changed {
        let is_anonymous = key.is_anonymous();
        let holder = key.share_hash();
        if let Some(refused) = change.refused_by(self.shares.forgotten(holder, is_anonymous)) {
            return refused.into();
        }
        let (verdict, write) = step(None, now, change);
        let Write::Put(record) = write else {
            return verdict.into();
        };
        let share = self.shares.enter(holder, self.cost(0));
        let (has_room, forgotten) = self.make_room(now, share);
        if !has_room {
            self.shares.leave(share, self.cost(0));
            return Changed {
                forgotten,
                ..Verdict::Full.into()
            };
        }
        let place = self.records.insert(key, record, share);
        self.link(now, place);
        Changed {
            forgotten,
            ..verdict.into()
        }
    }

    fn put(&mut self, now: Now, place: u32, mut new: Record) -> Option<Forgotten> {
        self.bodies.keep(&mut new);
        let entry = self.records.get_mut(place)?;
        let (was, is) = (entry.record.bytes(), new.bytes());
        let share = entry.share;
        entry.record = new;
        if was != is {
            self.reply_bytes = self.reply_bytes - was + is;
            let (was, is) = (self.cost(was), self.cost(is));
            self.shares.change_cost(share, was, is);
        }
        self.link(now, place);
        // What is recorded has its room by all means: older outcomes give it.
        let is_over = |table: &Self| table.reply_bytes > table.bounds.reply_bytes_max;
        self.forget_while(now, share, is_over)
    }

    /// Puts a record into the lists that it belongs to.
    fn link(&mut self, now: Now, place: u32) {
        let Some(entry) = self.records.get_mut(place) else {
            return;
        };
        let (is, was) = (listed(&entry.record, now), entry.listed);
        let (share, due) = (entry.share, entry.due);
        let over = over(&entry.record);
        // A lease that is renewed keeps its second, where it is looked at again.
        let keeps_due = due.is_some() && over.is_some() && is == was && is != Listed::Ended;
        entry.listed = is;
        if is == Listed::Ended && was != is {
            entry.ended = now.wall;
        }
        if was != is {
            self.unlist(place, was, share);
            match is {
                Listed::Nowhere => {}
                Listed::Open => self.records.push(Chain::Order, &mut self.open, place),
                Listed::Ended => {
                    let ended = self.shares.ended_mut(share);
                    self.records.push(Chain::Order, ended, place);
                    self.shares.list(share);
                }
            }
        }
        if !keeps_due {
            self.take_from_due(place);
            if let Some(over) = over {
                self.add_to_due(place, over);
            }
        }
    }

    fn unlist(&mut self, place: u32, was: Listed, share: u32) {
        match was {
            Listed::Nowhere => {}
            Listed::Open => self.records.unlink(Chain::Order, &mut self.open, place),
            Listed::Ended => {
                let ended = self.shares.ended_mut(share);
                self.records.unlink(Chain::Order, ended, place);
                self.shares.list(share);
            }
        }
    }

    fn add_to_due(&mut self, place: u32, over: Timestamp) {
        let second = over.milliseconds() / 1000;
        let list = self.due.entry(second).or_default();
        self.records.push(Chain::Due, list, place);
        if let Some(entry) = self.records.get_mut(place) {
            entry.due = Some(second);
        }
    }

    fn take_from_due(&mut self, place: u32) {
        let entry = self.records.get_mut(place);
        let Some(second) = entry.and_then(|entry| entry.due.take()) else {
            return;
        };
        if let Some(list) = self.due.get_mut(&second) {
            self.records.unlink(Chain::Due, list, place);
            if list.is_empty() {
                self.due.remove(&second);
            }
        }
    }

    fn remove(&mut self, place: u32) -> Option<Entry> {
        let entry = self.records.get(place)?;
        let (listed, share) = (entry.listed, entry.share);
        self.take_from_due(place);
        self.unlist(place, listed, share);
        let entry = self.records.remove(place)?;
        let bytes = entry.record.bytes();
        self.reply_bytes -= bytes;
        self.shares.leave(share, self.cost(bytes));
        Some(entry)
    }

    /// Forgets a record: what was done under its key can no longer be told.
    fn forget(&mut self, now: Now, place: u32) -> Option<Entry> {
        let entry = self.records.get(place)?;
        let ended = match entry.listed {
            Listed::Ended => entry.ended,
            Listed::Nowhere | Listed::Open => now.wall,
        };
        if let Some(until) = forgotten(entry.key.created(), ended, now.wall) {
            let (share, is_anonymous) = (entry.share, entry.key.is_anonymous());
            self.shares.forget(share, is_anonymous, until);
        }
        self.remove(place)
    }

    fn is_full(&self) -> bool {
        self.records.len() >= self.bounds.records_max
            || self.reply_bytes >= self.bounds.reply_bytes_max
    }

    /// What a record and its reply cost its principal.
    fn cost(&self, bytes: usize) -> u64 {
        let of_record = self.bounds.reply_bytes_max / self.bounds.records_max.max(1);
        (bytes as u64).saturating_add(of_record.max(1) as u64)
    }

    /// Whether there is room for one more record of a principal, and what was forgotten for it.
    fn make_room(&mut self, now: Now, share: u32) -> (bool, Option<Forgotten>) {
        let forgotten = self.forget_while(now, share, Self::is_full);
        let has_room = match forgotten {
            None => !self.is_full(),
            // The bytes of one large reply are many small ones: what comes next goes on.
            Some(_) => self.records.len() < self.bounds.records_max,
        };
        (has_room, forgotten)
    }

    /// Forgets the oldest outcomes of who has most, for one who asks, where a full store may do that.
    fn forget_while(
        &mut self,
        now: Now,
        asking: u32,
        is_full: impl Fn(&Self) -> bool,
    ) -> Option<Forgotten> {
        let mut last: Option<Forgotten> = None;
        let mut count = 0;
        while is_full(self)
            && self.bounds.when_full == WhenFull::ForgetOldest
            && count < FORGOTTEN_FOR_ROOM_MAX
            && let Some(oldest) = self.shares.oldest_of_largest(asking)
            && let Some(Entry { key, ended, .. }) = self.forget(now, oldest)
        {
            count += 1;
            last = Some(Forgotten { key, ended, count });
        }
        last
    }

    /// Forgets records that are over, and looks at no more than `max`. Returns how many it looked at, and forgot.
    pub fn forget_due(&mut self, now: Now, max: usize) -> (usize, usize) {
        let this_second = now.wall.milliseconds() / 1000;
        let (mut steps, mut forgotten) = (0, 0);
        while steps < max
            && let Some((second, list)) = self.due.first_key_value()
            && *second <= this_second
            && let Some(place) = list.first()
        {
            steps += 1;
            let over = self
                .records
                .get(place)
                .and_then(|entry| over(&entry.record));
            match over {
                Some(over) if over > now.wall => {
                    if over.milliseconds() / 1000 == *second {
                        break;
                    }
                    self.take_from_due(place);
                    self.add_to_due(place, over);
                }
                _ => {
                    self.forget(now, place);
                    forgotten += 1;
                }
            }
        }
        (steps, forgotten)
    }

    /// How many entries its indexes have: of keys, lists of seconds, principals.
    #[cfg(test)]
    pub fn indexed(&self) -> (usize, usize, usize) {
        (self.records.len(), self.due.len(), self.shares.len())
    }
}

fn over(record: &Record) -> Option<Timestamp> {
    record.forgettable(ABANDONED_RETENTION)
}

fn listed(record: &Record, now: Now) -> Listed {
    match record.state {
        State::Done { .. } => Listed::Ended,
        State::InFlight { until } if record.recovery != Recovery::InDoubt => {
            match until <= now.steady {
                true => Listed::Ended,
                false => Listed::Nowhere,
            }
        }
        State::InFlight { .. } | State::InDoubt => Listed::Open,
    }
}

/// Copies what is kept: a body may be a small part of a buffer that wants to be used again.
///
/// Small ones share an allocation with those beside them, which is free again when the last of them is forgotten:
/// nearly all are forgotten in the order in which they came.
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
