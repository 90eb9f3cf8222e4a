//! Records in a redb database: changes in, one transaction, verdicts out. No task, no queue, no clock.
//! How records lie in their tables is in `tables`.
//!
//! The simulator runs this on a disk that loses and tears what was not synced.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};

use super::failed::{Failed, Refused, failed};
use super::tables::{Early, FORGOTTEN, OPEN, RECORDS, SHARES, TOTALS, Tables, scope};
use crate::call::RawReply;
use crate::once::pressure::Pressure;
use crate::once::store::{Bounds, Usage};
use crate::once::{
    Change, Key, Now, Record, Recorded, State, StoreError, Timestamp, Verdict, Write, step,
};
use crate::schema::Recovery;
use crate::wire::{Status, Work};

/// Records that each change forgets in passing.
const FORGOTTEN_IN_PASSING: usize = 2;

/// The records of one database.
#[derive(Clone, Debug)]
pub struct Engine {
    database: Arc<Database>,
    bounds: Bounds,
    pressure: Arc<Pressure>,
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
        claimed: crate::once::Claimed,
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

impl Engine {
    /// Opens the records of a database. Attempts that are in flight belong to a process that is
    /// gone, since only one has a database open: their leases are over.
    ///
    /// # Errors
    /// Where the database fails.
    pub fn open(
        database: Arc<Database>,
        bounds: Bounds,
        now: impl Into<Now>,
    ) -> Result<Self, StoreError> {
        let engine = Self {
            database,
            bounds,
            pressure: Arc::default(),
        };
        engine
            .end_leases(now.into())
            .map_err(|failed| match failed {
                Failed::Store(error) => error,
                Failed::Refused(refused) => StoreError::new(refused.status),
            })?;
        Ok(engine)
    }

    fn end_leases(&self, now: Now) -> Result<(), Failed> {
        let transaction = self.database.begin_write()?;
        let mut tables = Tables::open(&transaction, self.bounds)?;
        tables.count_shares()?;
        for key in tables.open_keys()? {
            if let Some(mut record) = tables.get(&key)?
                && let State::InFlight { until } = &mut record.state
            {
                *until = now.steady.min(*until);
                tables.put(now, &key, &record)?;
            }
        }
        tables.close()?;
        transaction.commit()?;
        Ok(())
    }

    /// What it has forgotten before its time.
    pub fn usage(&self) -> Usage {
        self.pressure.usage()
    }

    /// Up to when keys like this may have been forgotten, as of the last commit.
    fn forgotten(&self, key: &Key) -> Result<Timestamp, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let totals = transaction.open_table(TOTALS).map_err(failed)?;
        let of_all = totals.get(FORGOTTEN).map_err(failed)?;
        let shares = transaction.open_table(SHARES).map_err(failed)?;
        let own = shares.get(&scope(key.as_bytes())[..]).map_err(failed)?;
        let of_all = of_all.map_or(0, |of_all| of_all.value());
        let own = own.map_or(0, |own| own.value().2);
        Ok(Timestamp::from_milliseconds(own.max(of_all)))
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
        now: impl Into<Now>,
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
        if record.is_none() {
            if matches!(change, Change::Begin(_)) {
                return None;
            }
            match self
                .forgotten(key)
                .map(|forgotten| change.refused_by(forgotten))
            {
                Ok(None) => {}
                Ok(Some(refused)) => return Some(Ok(refused)),
                Err(error) => return Some(Err(error)),
            }
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
    pub fn in_doubt(&self, now: impl Into<Now>, max: usize) -> Result<Vec<Key>, StoreError> {
        let now = now.into();
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
                State::InFlight { until } => {
                    until <= now.steady && record.recovery == Recovery::InDoubt
                }
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
        now: impl Into<Now>,
        operations: &[Operation],
    ) -> Result<Vec<Done>, StoreError> {
        let now = now.into();
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
        now: Now,
        operations: &[Operation],
        refused: &[Refused],
    ) -> Result<Vec<Done>, Failed> {
        let transaction = self.database.begin_write()?;
        let (done, early) = self.write(&transaction, now, operations, refused)?;
        transaction.commit()?;
        for early in early {
            let Early {
                key,
                count,
                retained,
            } = early;
            self.pressure.forgot(&key, count, retained);
        }
        Ok(done)
    }

    fn write(
        &self,
        transaction: &WriteTransaction,
        now: Now,
        operations: &[Operation],
        refused: &[Refused],
    ) -> Result<(Vec<Done>, Vec<Early>), Failed> {
        let mut done = Vec::with_capacity(operations.len());
        let mut early = Vec::new();
        let mut tables: Option<Tables<'_>> = None;
        for (index, operation) in operations.iter().enumerate() {
            if let Some(refused) = refused.iter().find(|refused| refused.index == index) {
                done.push(Done::Committed(Err(refused.status.clone())));
                continue;
            }
            let mut reply = None;
            if let Operation::Commit { work, .. } = operation {
                // A handler's work may open any table.
                if let Some(tables) = tables.take() {
                    early.extend(tables.close()?);
                }
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
        if let Some(tables) = tables.take() {
            early.extend(tables.close()?);
        }
        Ok((done, early))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use redb::TableDefinition;

    use super::*;
    use crate::call::Outcome;
    use crate::once::{Age, Claim, Claimed, Epoch, Fingerprint};
    use crate::wire::RequestKey;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const LEASE: Duration = Duration::from_secs(30);
    const EFFECTS: TableDefinition<'_, &str, u64> = TableDefinition::new("effects");

    fn commit(key: &Key, epoch: Epoch, reply: &'static [u8]) -> Operation {
        Operation::Commit {
            claimed: Claimed {
                key: key.clone(),
                epoch,
                retention: DAY,
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

    fn begin(epoch: Epoch) -> Change {
        Change::Begin(Claim {
            epoch,
            fingerprint: Fingerprint::of_bytes(b""),
            recovery: Recovery::Atomic,
            lease: LEASE,
            age: Age {
                created: None,
                retention: DAY,
                clock_skew_max: Duration::ZERO,
            },
        })
    }

    fn attempt(number: u64) -> Epoch {
        Epoch { owner: 1, number }
    }

    fn key() -> Key {
        Key::named("test", &RequestKey::new("a").expect("short").into())
    }

    fn engine() -> Engine {
        let backend = redb::backends::InMemoryBackend::new();
        let database = Database::builder().create_with_backend(backend);
        let database = Arc::new(database.expect("in memory"));
        Engine::open(database, Bounds::default(), Timestamp::now()).expect("open")
    }

    /// How often work was done.
    fn effects(engine: &Engine) -> u64 {
        let read = engine.database().begin_read().expect("in memory");
        match read.open_table(EFFECTS) {
            Ok(table) => {
                let count = table.get("count").expect("in memory");
                count.map_or(0, |count| count.value())
            }
            Err(_) => 0,
        }
    }

    #[test]
    fn a_handler_that_commits_twice_has_one_effect() {
        let (engine, key, now) = (engine(), key(), Timestamp::now());
        let mut operations = vec![Operation::Change(key.clone(), begin(attempt(1)))];
        // In one transaction, and in the next.
        for reply in [b"one", b"two"] {
            operations.push(commit(&key, attempt(1), reply));
            let done = engine.commit(now, &operations).expect("in memory");
            let is_first = reply == b"one";
            let last = done.last().expect("one for each");
            assert_eq!(matches!(last, Done::Committed(Ok(_))), is_first, "{last:?}");
            operations.clear();
        }
        assert_eq!(effects(&engine), 1);
    }

    #[test]
    fn a_superseded_attempt_commits_nothing() {
        let (engine, key, now) = (engine(), key(), Timestamp::now());
        let done = |now, operation| {
            let done = engine.commit(now, &[operation]).expect("in memory");
            done.into_iter().next().expect("one for one")
        };
        let later = now + LEASE;
        for (now, attempt) in [(now, attempt(1)), (later, attempt(2))] {
            let begun = done(now, Operation::Change(key.clone(), begin(attempt)));
            assert!(matches!(begun, Done::Verdict(Verdict::Run)), "{begun:?}");
        }
        for (number, effects_after) in [(1, 0), (2, 1)] {
            let committed = done(later, commit(&key, attempt(number), b"reply"));
            match committed {
                Done::Committed(Err(status)) => {
                    assert_eq!((status, number), (superseded(), 1));
                }
                Done::Committed(Ok(_)) => assert_eq!(number, 2),
                other => panic!("{other:?}"),
            }
            assert_eq!(effects(&engine), effects_after);
        }
    }
}
