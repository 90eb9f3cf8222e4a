//! Records in a redb database: changes in, one transaction, verdicts out. No task, no queue, no clock.
//!
//! The simulator runs this on a disk that loses and tears what was not synced.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::super::store::{Bounds, WhenFull};
use super::super::{
    Change, Key, Record, Recorded, State, StoreError, Timestamp, Verdict, Write, step,
};
use crate::call::RawReply;
use crate::schema::Recovery;
use crate::wire::{Status, Work};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bowline-once-records");
/// When each record may be forgotten.
const EXPIRY: TableDefinition<'_, (u64, &[u8]), ()> = TableDefinition::new("bowline-once-expiry");
/// Records without an outcome: what to look at after a crash.
const OPEN: TableDefinition<'_, &[u8], ()> = TableDefinition::new("bowline-once-open");
const TOTALS: TableDefinition<'_, &str, u64> = TableDefinition::new("bowline-once-totals");

/// A record whose attempt died is kept at least this long.
const ABANDONED_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
/// Records that each change forgets in passing.
const FORGOTTEN_IN_PASSING: usize = 2;

/// The records of one database.
#[derive(Clone, Debug)]
pub struct Engine {
    database: Arc<Database>,
    bounds: Bounds,
}

/// What handlers commit: their writes, and the reply that goes with them. It may be run more than
/// once, and only what the last run wrote is kept.
pub type CommitWork = dyn Fn(&WriteTransaction) -> Result<RawReply, Status> + Send + Sync;

/// One of the things that are done in one transaction.
pub enum Operation {
    /// A change of a record.
    Change(Key, Change),
    /// A handler's own writes, together with the outcome of its attempt.
    Commit {
        /// Which attempt.
        claimed: super::super::Claimed,
        /// The writes.
        work: Box<CommitWork>,
    },
    /// Forget up to this many.
    Expire(usize),
}

/// What became of it.
#[derive(Debug)]
pub enum Done {
    /// Of a change.
    Verdict(Verdict),
    /// Of a commit: the reply that is recorded, or why nothing is.
    Committed(Result<RawReply, Status>),
    /// Of an expiry: how many.
    Forgotten(usize),
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Change(key, change) => write!(f, "{key:?}: {change:?}"),
            Self::Commit { claimed, .. } => write!(f, "{:?}: commit", claimed.key),
            Self::Expire(max) => write!(f, "expire {max}"),
        }
    }
}

/// A commit that must not be part of the transaction, and why.
struct Refused {
    index: usize,
    status: Status,
}

enum Failed {
    Refused(Refused),
    Store(StoreError),
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for Failed {
            fn from(error: redb::$error) -> Self {
                Self::Store(failed(error))
            }
        }
    )*};
}

from_redb!(TransactionError, TableError, StorageError, CommitError);

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

pub(super) fn failed(error: impl Into<redb::Error>) -> StoreError {
    StoreError::new(error.into())
}

impl Engine {
    /// Opens the records of a database. Attempts that are in flight belong to a process that is
    /// gone, since only one has a database open: their leases are over.
    ///
    /// # Errors
    /// Where the database fails.
    pub fn open(database: Arc<Database>, bounds: Bounds) -> Result<Self, StoreError> {
        let engine = Self { database, bounds };
        engine.end_leases().map_err(|failed| match failed {
            Failed::Store(error) => error,
            Failed::Refused(refused) => StoreError::new(refused.status),
        })?;
        Ok(engine)
    }

    fn end_leases(&self) -> Result<(), Failed> {
        let transaction = self.database.begin_write()?;
        let mut tables = Tables::open(&transaction, self.bounds)?;
        let mut open = Vec::new();
        for entry in tables.open.iter()? {
            open.push(Bytes::copy_from_slice(entry?.0.value()));
        }
        for key in open {
            if let Some(mut record) = tables.get(&key)?
                && let State::InFlight { until } = &mut record.state
            {
                *until = Timestamp::EPOCH;
                tables.put(&key, &record)?;
            }
        }
        tables.close()?;
        transaction.commit()?;
        Ok(())
    }

    /// The database.
    pub fn database(&self) -> &Arc<Database> {
        &self.database
    }

    /// What is recorded, as of the last commit.
    ///
    /// # Errors
    /// Where the database fails.
    pub fn read(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let records = transaction.open_table(RECORDS).map_err(failed)?;
        let bytes = records.get(key.as_bytes()).map_err(failed)?;
        bytes
            .map(|bytes| Record::from_bytes(Bytes::copy_from_slice(bytes.value())))
            .transpose()
    }

    /// What is said to a change that changes nothing, as of the last commit; `None` for one that
    /// has to be committed.
    pub fn answer(
        &self,
        now: Timestamp,
        key: &Key,
        change: &Change,
    ) -> Option<Result<Verdict, StoreError>> {
        if !matches!(change, Change::Begin(_) | Change::Look(_)) {
            return None;
        }
        let record = match self.read(key) {
            Ok(record) => record,
            Err(error) => return Some(Err(error)),
        };
        if record.is_none() && matches!(change, Change::Begin(_)) {
            return None;
        }
        match step(record.as_ref(), now, change.clone()) {
            (verdict, Write::Nothing) => Some(Ok(verdict)),
            _ => None,
        }
    }

    /// Up to `max` keys in doubt.
    ///
    /// # Errors
    /// Where the database fails.
    pub fn in_doubt(&self, now: Timestamp, max: usize) -> Result<Vec<Key>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let open = transaction.open_table(OPEN).map_err(failed)?;
        let mut found = Vec::new();
        for entry in open.iter().map_err(failed)? {
            if found.len() == max {
                break;
            }
            let key = Key::from_bytes(entry.map_err(failed)?.0.value());
            let is_in_doubt = self.read(&key)?.is_some_and(|record| match record.state {
                State::InDoubt => true,
                State::InFlight { until } => until <= now && record.recovery == Recovery::InDoubt,
                State::Done { .. } => false,
            });
            if is_in_doubt {
                found.push(key);
            }
        }
        Ok(found)
    }

    /// Does all of `operations`, in their order and in one transaction, which is on disk when this
    /// returns. A commit whose own writes fail has no part in it.
    ///
    /// # Errors
    /// Where the database fails. Then it is not known which of them are done.
    pub fn commit(
        &self,
        now: Timestamp,
        operations: &[Operation],
    ) -> Result<Vec<Done>, StoreError> {
        let mut refused: Vec<Refused> = Vec::new();
        loop {
            match self.try_commit(now, operations, &refused) {
                Ok(done) => return Ok(done),
                Err(Failed::Store(error)) => return Err(error),
                // Its half-done writes are in the transaction: all is undone, and done without it.
                Err(Failed::Refused(another)) => refused.push(another),
            }
        }
    }

    fn try_commit(
        &self,
        now: Timestamp,
        operations: &[Operation],
        refused: &[Refused],
    ) -> Result<Vec<Done>, Failed> {
        let transaction = self.database.begin_write()?;
        let done = self.write(&transaction, now, operations, refused)?;
        transaction.commit()?;
        Ok(done)
    }

    fn write(
        &self,
        transaction: &WriteTransaction,
        now: Timestamp,
        operations: &[Operation],
        refused: &[Refused],
    ) -> Result<Vec<Done>, Failed> {
        let mut done = Vec::with_capacity(operations.len());
        let mut tables = None;
        for (index, operation) in operations.iter().enumerate() {
            if let Some(refused) = refused.iter().find(|refused| refused.index == index) {
                done.push(Done::Committed(Err(refused.status.clone())));
                continue;
            }
            let mut reply = None;
            if let Operation::Commit { work, .. } = operation {
                // A handler's work may open any table.
                tables.take().map_or(Ok(()), Tables::close)?;
                reply = Some(run(&**work, transaction).map_err(|status| refuse(index, status))?);
            }
            let tables = match &mut tables {
                Some(tables) => tables,
                none => none.insert(Tables::open(transaction, self.bounds)?),
            };
            done.push(match (operation, reply) {
                (Operation::Change(key, change), _) => {
                    tables.forget(now, FORGOTTEN_IN_PASSING)?;
                    Done::Verdict(tables.apply(now, key, change.clone())?)
                }
                (Operation::Expire(max), _) => Done::Forgotten(tables.forget(now, *max)?),
                (Operation::Commit { claimed, .. }, Some(reply)) => {
                    let complete = Change::Complete {
                        epoch: claimed.epoch,
                        outcome: Recorded::new(&reply, claimed.reply_bytes_max),
                        retention: claimed.retention,
                    };
                    // Its outcome is recorded: what it commits now would be a second effect.
                    if tables.is_done(claimed.key.as_bytes())? {
                        return Err(refuse(index, superseded()));
                    }
                    match tables.apply(now, &claimed.key, complete)? {
                        Verdict::Applied => Done::Committed(Ok(reply)),
                        _ => return Err(refuse(index, superseded())),
                    }
                }
                (Operation::Commit { .. }, None) => return Err(refuse(index, superseded())),
            });
        }
        tables.take().map_or(Ok(()), Tables::close)?;
        Ok(done)
    }
}

fn run(work: &CommitWork, transaction: &WriteTransaction) -> Result<RawReply, Status> {
    catch_unwind(AssertUnwindSafe(|| work(transaction))).unwrap_or_else(|_| {
        let status = Status::internal("the work of the transaction panicked");
        Err(status.with_work(Work::NotDone))
    })
}

fn refuse(index: usize, status: Status) -> Failed {
    Failed::Refused(Refused { index, status })
}

fn superseded() -> Status {
    Status::new(
        crate::wire::Code::Aborted,
        Work::NotDone,
        "another attempt has taken over, or its outcome is recorded: nothing was committed",
    )
    .with_reason(crate::wire::Reason::Superseded)
}

/// The tables, open in one transaction.
struct Tables<'t> {
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
    fn open(transaction: &'t WriteTransaction, bounds: Bounds) -> Result<Self, Failed> {
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

    fn close(mut self) -> Result<(), Failed> {
        self.totals.insert(COUNT, self.count)?;
        self.totals.insert(REPLY_BYTES, self.reply_bytes)?;
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Record>, Failed> {
        let bytes = self.records.get(key)?;
        let bytes = bytes.map(|bytes| Bytes::copy_from_slice(bytes.value()));
        Ok(bytes.map(Record::from_bytes).transpose()?)
    }

    fn is_done(&self, key: &[u8]) -> Result<bool, Failed> {
        let record = self.get(key)?;
        Ok(record.is_some_and(|record| matches!(record.state, State::Done { .. })))
    }

    fn apply(&mut self, now: Timestamp, key: &Key, change: Change) -> Result<Verdict, Failed> {
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

    fn put(&mut self, key: &[u8], record: &Record) -> Result<(), Failed> {
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

    fn forget(&mut self, now: Timestamp, max: usize) -> Result<usize, Failed> {
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

#[cfg(test)]
mod tests {
    use super::super::super::{Age, Claim, Claimed, Epoch, Fingerprint};
    use super::*;
    use crate::call::Outcome;
    use crate::wire::RequestKey;

    const EFFECTS: TableDefinition<'_, &str, u64> = TableDefinition::new("effects");

    fn commit(key: &Key, epoch: Epoch, reply: &'static [u8]) -> Operation {
        Operation::Commit {
            claimed: Claimed {
                key: key.clone(),
                epoch,
                retention: ABANDONED_RETENTION,
                reply_bytes_max: 100,
            },
            work: Box::new(move |writes| {
                let mut table = writes.open_table(EFFECTS).map_err(Status::from_store)?;
                let count = table.get("count").map_err(Status::from_store)?;
                let count = count.map_or(0, |count| count.value());
                table
                    .insert("count", count + 1)
                    .map_err(Status::from_store)?;
                Ok(RawReply::new(Outcome::Success, Bytes::from_static(reply)))
            }),
        }
    }

    #[test]
    fn a_handler_that_commits_twice_has_one_effect() {
        let backend = redb::backends::InMemoryBackend::new();
        let database = Database::builder().create_with_backend(backend);
        let database = Arc::new(database.expect("in memory"));
        let engine = Engine::open(Arc::clone(&database), Bounds::default()).expect("open");
        let key = Key::named("test", &RequestKey::new("a").expect("short").into());
        let epoch = Epoch {
            owner: 1,
            number: 1,
        };
        let begin = Change::Begin(Claim {
            epoch,
            fingerprint: Fingerprint::of_bytes(b""),
            recovery: Recovery::Atomic,
            lease: Duration::from_secs(30),
            age: Age {
                created: None,
                retention: ABANDONED_RETENTION,
                clock_skew_max: Duration::ZERO,
            },
        });
        let now = Timestamp::now();
        let mut operations = vec![Operation::Change(key.clone(), begin)];
        // In one transaction, and in the next.
        for reply in [b"one", b"two"] {
            operations.push(commit(&key, epoch, reply));
            let done = engine.commit(now, &operations).expect("in memory");
            let is_first = reply == b"one";
            let last = done.last().expect("one for each");
            assert_eq!(matches!(last, Done::Committed(Ok(_))), is_first, "{last:?}");
            operations.clear();
        }
        let read = database.begin_read().expect("in memory");
        let table = read.open_table(EFFECTS).expect("it is there");
        assert_eq!(
            table
                .get("count")
                .expect("in memory")
                .map(|count| count.value()),
            Some(1)
        );
    }
}
