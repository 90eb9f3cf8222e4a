//! Records in a redb database, embedded in this process: they survive it.
//!
//! Every claim is on disk before its handler runs, every outcome before its reply is sent. One
//! thread writes: what has gathered while it synced goes into its next transaction, so that many
//! callers share one `fdatasync`.

mod engine;
mod failed;
mod tables;
mod transaction;

pub use engine::{CommitWork, Done, Engine, Operation};
pub use transaction::RedbTransaction;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use redb::Database;
use tokio::sync::{mpsc, oneshot};

use super::store::SteadyClock;
use super::waiters::Waiters;
use super::{
    AtOnce, Bounds, Change, Claimed, Clock, Key, State, Store, StoreError, Usage, Verdict,
};
use crate::call::RawReply;
use crate::wire::Status;
use failed::failed;

/// Operations that may wait for the disk. Those who ask for more wait to ask.
const QUEUE_MAX: usize = 4096;
/// Operations of one transaction.
const GROUP_MAX: usize = 512;

/// Keeps records in a file. Cheap to clone; clones share the database.
///
/// A database is open in one process at a time, so that a claim whose process is gone is known to
/// be dead as soon as the next one opens the file: nobody waits for its lease.
///
/// When the disk fails, so does every operation from then on: nothing is begun that cannot be recorded.
/// Then start the machine again, or mount the file system anew, before the file is opened: a process
/// that is merely started again reads from the system's cache what is not on the disk.
///
/// ```no_run
/// use bowline::{Server, once::{Once, RedbStore}};
///
/// # fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let once = Once::builder().build(RedbStore::open("outcomes.redb")?)?;
/// let server = Server::builder().once(once);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RedbStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    clock: Arc<SteadyClock>,
    /// Gone once the store is being dropped.
    queue: Mutex<Option<mpsc::Sender<Queued>>>,
    waiters: Arc<Waiters>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Queued {
    operation: Operation,
    done: oneshot::Sender<Result<Done, StoreError>>,
}

impl RedbStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// Where it cannot be opened, is no database, or is open in another process. If the power failed
    /// while the file was first made, it is no database, has nothing in it, and may be removed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let database = Database::create(path).map_err(failed)?;
        Self::with_database(Arc::new(database), Bounds::default())
    }

    /// In a database that the application has open for its own tables too, which is what an
    /// `$atomic` method wants. All of a process use clones of one store; a second one over the same
    /// database would take the first's attempts for dead.
    ///
    /// # Errors
    /// Where the database fails.
    pub fn with_database(database: Arc<Database>, bounds: Bounds) -> Result<Self, StoreError> {
        Self::with_clock(database, bounds, Clock::default())
    }

    /// With another clock, for tests.
    ///
    /// # Errors
    /// Where the database fails.
    pub fn with_clock(
        database: Arc<Database>,
        bounds: Bounds,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let clock = Arc::new(SteadyClock::new(clock));
        let engine = Engine::open(database, bounds, clock.now())?;
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        let waiters = Arc::new(Waiters::default());
        let writer = std::thread::Builder::new()
            .name("bowline-once".to_owned())
            .spawn({
                let (engine, clock, waiters) =
                    (engine.clone(), Arc::clone(&clock), Arc::clone(&waiters));
                move || write(&engine, &clock, &waiters, queued)
            })
            .map_err(StoreError::new)?;
        Ok(Self(Arc::new(Inner {
            engine,
            clock,
            queue: Mutex::new(Some(queue)),
            waiters,
            writer: Mutex::new(Some(writer)),
        })))
    }

    /// The database, to read from and for tables of one's own.
    pub fn database(&self) -> &Arc<Database> {
        self.0.engine.database()
    }
}

impl Inner {
    async fn ask(&self, operation: Operation) -> Result<Done, StoreError> {
        let closed = || StoreError::new("the store is closed");
        let queue = self.queue.lock();
        let queue = queue.unwrap_or_else(PoisonError::into_inner).clone();
        let (done, answer) = oneshot::channel();
        let queue = queue.ok_or_else(closed)?;
        let queued = Queued { operation, done };
        queue.send(queued).await.map_err(|_| closed())?;
        drop(queue);
        answer.await.map_err(|_| closed())?
    }

    /// What changes nothing is answered from the last commit.
    fn answer(&self, key: &Key, change: &Change) -> Option<Result<Verdict, StoreError>> {
        self.engine.answer(self.clock.now(), key, change)
    }

    /// Commits a handler's writes together with its outcome.
    async fn commit(
        &self,
        claimed: Claimed,
        work: Box<CommitWork>,
    ) -> Result<Result<RawReply, Status>, StoreError> {
        match self.ask(Operation::Commit { claimed, work }).await? {
            Done::Committed(reply) => Ok(reply),
            other => Err(StoreError::new(format!("a commit gave {other:?}"))),
        }
    }
}

impl Drop for Inner {
    /// Waits for what is being written, which is one transaction at most.
    fn drop(&mut self) {
        let queue = self.queue.lock();
        queue.unwrap_or_else(PoisonError::into_inner).take();
        let writer = self.writer.lock();
        if let Some(writer) = writer.unwrap_or_else(PoisonError::into_inner).take() {
            // A writer that panicked has answered nobody, and they know.
            let _ = writer.join();
        }
    }
}

/// The writing thread: ends when the store is dropped.
fn write(
    engine: &Engine,
    clock: &SteadyClock,
    waiters: &Waiters,
    mut queued: mpsc::Receiver<Queued>,
) {
    let mut group = Vec::new();
    while queued.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
        let (operations, answers): (Vec<_>, Vec<_>) = group
            .drain(..)
            .map(|queued| (queued.operation, queued.done))
            .unzip();
        // Those who asked and are gone are not missed.
        match engine.commit(clock.now(), &operations) {
            Ok(done) => {
                for (answer, done) in answers.into_iter().zip(done) {
                    let _ = answer.send(Ok(done));
                }
            }
            Err(error) => {
                tracing::error!(%error, "outcomes could not be written");
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
        for operation in &operations {
            match operation {
                Operation::Change(_, Change::Begin(_)) | Operation::Expire(_) => {}
                Operation::Change(key, _) => waiters.wake(key),
                Operation::Commit { claimed, .. } => waiters.wake(&claimed.key),
            }
        }
    }
}

impl Store for RedbStore {
    type Transaction = RedbTransaction;

    const TRANSACTIONS: bool = true;

    async fn apply(&self, key: &Key, change: Change) -> Result<Verdict, StoreError> {
        if let Some(verdict) = self.0.answer(key, &change) {
            return verdict;
        }
        let operation = Operation::Change(key.clone(), change);
        match self.0.ask(operation).await? {
            Done::Verdict(verdict) => Ok(verdict),
            other => Err(StoreError::new(format!("a change gave {other:?}"))),
        }
    }

    fn apply_now(&self, key: &Key, change: Change) -> AtOnce {
        match self.0.answer(key, &change) {
            Some(Ok(verdict)) => AtOnce::Applied(verdict),
            Some(Err(_)) | None => AtOnce::NotApplied(change),
        }
    }

    async fn watch(&self, key: &Key) -> Result<(), StoreError> {
        let is_in_flight = async {
            let record = self.0.engine.read(key)?;
            Ok(record.is_some_and(|record| matches!(record.state, State::InFlight { .. })))
        };
        self.0.waiters.wait(key, is_in_flight).await
    }

    async fn expire(&self, max: usize) -> Result<usize, StoreError> {
        match self.0.ask(Operation::Expire(max)).await? {
            Done::Forgotten(count) => Ok(count),
            other => Err(StoreError::new(format!("an expiry gave {other:?}"))),
        }
    }

    async fn in_doubt(&self, max: usize) -> Result<Vec<Key>, StoreError> {
        self.0.engine.in_doubt(self.0.clock.now(), max)
    }

    fn usage(&self) -> Usage {
        self.0.engine.usage()
    }

    fn transaction(&self, claimed: Claimed) -> Option<RedbTransaction> {
        Some(RedbTransaction::new(Arc::downgrade(&self.0), claimed))
    }

    fn committed(transaction: &RedbTransaction) -> Option<RawReply> {
        transaction.committed()
    }
}
