//! Jobs that are safe here until their queue has them: a table in a redb database, and a task that forwards it.
//!
//! A job can be put in by itself, or in the producer's own transaction: then it is pushed if, and only if, the
//! producer's writes are there. It has its identity from the beginning, so that a forwarding which is done
//! again after a crash is no second job. It does not wait for the queue, and tells nobody when it was forwarded.
//!
//! Each queue has tables of its own, so that one database has as many outboxes as a producer has queues. Each opening is a
//! producer of its own: where a database comes back from its backup, no job of it is taken for one of before.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant as Monotonic, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::wire::{decode_job, encode_job};
use super::{Engine, Identity, NewJob, Producer, Pushed, QueueError, Queueable};
use crate::counter::Counter;
use crate::message::{Msg, check_nesting};

/// The tables of one queue's outbox.
#[derive(Clone, Debug)]
struct Tables {
    queue: &'static str,
    jobs: String,
    refused: String,
    causes: String,
    put: String,
    numbers: String,
}

type Jobs<'a> = TableDefinition<'a, u64, &'static [u8]>;
type Causes<'a> = TableDefinition<'a, u64, &'static str>;
type Put<'a> = TableDefinition<'a, u64, u64>;
type Numbers<'a> = TableDefinition<'a, &'static str, u128>;

impl Tables {
    fn of(queue: &'static str) -> Self {
        Self {
            queue,
            jobs: format!("bowline.outbox:{queue}"),
            refused: format!("bowline.outbox.refused:{queue}"),
            causes: format!("bowline.outbox.causes:{queue}"),
            put: format!("bowline.outbox.put:{queue}"),
            numbers: format!("bowline.outbox.numbers:{queue}"),
        }
    }

    /// Jobs by their sequence number, each as a `NewJob` of schema/queue.capnp.
    fn jobs(&self) -> Jobs<'_> {
        TableDefinition::new(&self.jobs)
    }

    /// Jobs that their queue will never take, or that cannot be read any more …
    fn refused(&self) -> Jobs<'_> {
        TableDefinition::new(&self.refused)
    }

    /// … and why.
    fn causes(&self) -> Causes<'_> {
        TableDefinition::new(&self.causes)
    }

    /// When a job with a delay or an expiry was put in: milliseconds since 1970.
    fn put(&self) -> Put<'_> {
        TableDefinition::new(&self.put)
    }

    /// The next sequence number, and how many jobs have expired here.
    fn numbers(&self) -> Numbers<'_> {
        TableDefinition::new(&self.numbers)
    }
}

/// Before each queue had tables of its own.
const JOBS_OF_ALL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bowline.outbox");
const PUT_OF_ALL: TableDefinition<'_, u64, u64> = TableDefinition::new("bowline.outbox.put");

const NEXT: &str = "next";
const EXPIRED: &str = "expired";

/// The outboxes that this process has open: which database, and which queue.
static OPEN: Mutex<Option<HashSet<(usize, &'static str)>>> = Mutex::new(None);

/// Jobs that are forwarded together.
const BATCH: usize = 512;
/// How often the table is looked at although nobody said that something was put in.
const LOOK: Duration = Duration::from_millis(100);
/// The longest wait before a queue that was not to be reached is tried again.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long a forwarding waits for room in the queue.
const PUSH: Duration = Duration::from_secs(10);
/// Bytes of jobs that are forwarded together; one job may be larger.
const BATCH_BYTES: usize = 4 << 20;
/// Forwardings that fail one after the other before the queue is connected anew.
const FAILURES_MAX: u32 = 5;

/// The outbox of one queue, in a database of the producer's.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use bowline_test_schemas::everything::Thumbnail;
/// # use bowline::queue::{Outbox, Remote, Queueable};
/// # async fn f(database: Arc<redb::Database>) -> Result<(), Box<dyn std::error::Error>> {
/// let outbox = Outbox::<Thumbnail>::open(Arc::clone(&database), || async {
///     Remote::builder().connect("tcp://127.0.0.1:7300", Thumbnail::NAME).await
/// })?;
/// let transaction = database.begin_write()?;
/// // … the producer's own writes …
/// outbox.put_in(&transaction, &Thumbnail::default())?;
/// transaction.commit()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Outbox<T> {
    shared: Arc<Shared>,
    task: AbortHandle,
    _open: Open,
    type_: std::marker::PhantomData<fn() -> T>,
}

/// What an outbox and the task that forwards have.
#[derive(Debug)]
struct Shared {
    database: Arc<Database>,
    tables: Tables,
    /// This opening's, of nobody before.
    producer: Uuid,
    clock: Clock,
    woken: Notify,
    is_forwarding: AtomicBool,
    again: AtomicU64,
    last_error: Mutex<Option<QueueError>>,
    failures: Counter,
}

/// That this process has the outbox of a queue open.
#[derive(Debug)]
struct Open((usize, &'static str));

impl Open {
    fn new(database: &Arc<Database>, queue: &'static str) -> Result<Self, OutboxError> {
        let key = (Arc::as_ptr(database) as usize, queue);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_or_insert_default().insert(key) {
            true => Ok(Self(key)),
            false => Err(OutboxError::Open(queue)),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &mut *open {
            open.remove(&self.0);
        }
    }
}

/// How many jobs of an [`Outbox`] are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxCounters {
    /// Not forwarded yet.
    pub waiting: u64,
    /// Their queue will never take them, since they are too large or ask for what it does not have, or they are damaged.
    /// They stay in a table of their own, and their causes in another.
    pub refused: u64,
    /// Their expiry was over before their queue could be reached, since the outbox was made.
    pub expired: u64,
    /// Of this opening's forwardings, jobs that their queue said it had before. Jobs that an earlier opening had forwarded
    /// without hearing of it are counted here.
    pub again: u64,
    /// Whether jobs are forwarded: until the tokio runtime in which the outbox was opened shuts down. Jobs are put in all
    /// the same, and forwarded once the outbox is opened again.
    pub is_forwarding: bool,
}

/// A job could not be put into the outbox, and is not there unless a commit failed half-way.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// What the database says.
    #[error("the outbox's database failed: {0}")]
    Database(#[from] Box<redb::Error>),
    /// The job has no encoding.
    #[error(transparent)]
    Message(#[from] crate::MessageError),
    /// The outbox of this queue is open already: share it, or drop it first.
    #[error("the outbox of the queue {0:?} in this database is open already")]
    Open(&'static str),
}

impl OutboxError {
    fn database(error: impl Into<redb::Error>) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

impl<T: Queueable> Outbox<T> {
    /// The outbox in this database. `connect` makes the engine to forward to; it is asked until it can.
    ///
    /// # Errors
    /// What the database says; [`OutboxError::Open`] where this process has the outbox of this queue open already.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open<E, C, F>(database: Arc<Database>, connect: C) -> Result<Self, OutboxError>
    where
        E: Engine,
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<E, QueueError>> + Send + 'static,
    {
        let open = Open::new(&database, T::NAME)?;
        let tables = Tables::of(T::NAME);
        prepare(&database, &tables).map_err(OutboxError::database)?;
        let shared = Arc::new(Shared {
            database,
            tables,
            producer: Producer::ephemeral().identity().producer,
            clock: Clock::start(),
            woken: Notify::new(),
            is_forwarding: AtomicBool::new(true),
            again: AtomicU64::new(0),
            last_error: Mutex::new(None),
            failures: Counter::default(),
        });
        let forwarding = Forwarding(Arc::clone(&shared));
        Ok(Self {
            shared,
            task: tokio::spawn(forward(forwarding, connect)).abort_handle(),
            _open: open,
            type_: std::marker::PhantomData,
        })
    }

    /// Puts a job in, in a transaction of the producer's: it is pushed if and only if that commits.
    ///
    /// # Errors
    /// What the database says; for a job without an encoding.
    pub fn put_in(&self, transaction: &WriteTransaction, job: &T) -> Result<(), OutboxError> {
        self.put_job_in(transaction, job, |_| {})
    }

    /// The same, for a job that says how it is to be pushed: its ID, delay, priority, expiry. Delay and expiry count
    /// from now, however long it waits here; a job that expires here is never forwarded, and is counted.
    ///
    /// # Errors
    /// As [`put_in`](Self::put_in).
    pub fn put_job_in(
        &self,
        transaction: &WriteTransaction,
        job: &T,
        how: impl FnOnce(&mut NewJob),
    ) -> Result<(), OutboxError> {
        self.put_new_in(transaction, job, job.to_bytes()?, how)
    }

    /// Puts a received message in as it is, with what this program's schema does not have, and says how it is to be
    /// pushed.
    ///
    /// # Errors
    /// As [`put_in`](Self::put_in); [`OutboxError::Message`] also where the message cannot be read.
    pub fn put_message_in(
        &self,
        transaction: &WriteTransaction,
        job: &Msg<T>,
        how: impl FnOnce(&mut NewJob),
    ) -> Result<(), OutboxError> {
        let body = job.to_bytes();
        check_nesting::<T>(&body)?;
        self.put_new_in(transaction, &job.plain()?, body, how)
    }

    fn put_new_in(
        &self,
        transaction: &WriteTransaction,
        job: &T,
        body: Bytes,
        how: impl FnOnce(&mut NewJob),
    ) -> Result<(), OutboxError> {
        let Shared {
            tables, producer, ..
        } = &*self.shared;
        let mut numbers = transaction
            .open_table(tables.numbers())
            .map_err(OutboxError::database)?;
        let sequence = {
            let next = numbers.get(NEXT).map_err(OutboxError::database)?;
            next.map_or(0, |next| next.value()) as u64
        };
        let identity = Identity {
            producer: *producer,
            epoch: 0,
            sequence,
        };
        let mut new = NewJob::new(identity, body);
        new.key = job.key().map(|key| key.into_owned().into());
        how(&mut new);
        // It is its place in the table, and the push's identity.
        new.identity = identity;
        numbers
            .insert(NEXT, u128::from(sequence) + 1)
            .map_err(OutboxError::database)?;
        let mut jobs = transaction
            .open_table(tables.jobs())
            .map_err(OutboxError::database)?;
        jobs.insert(sequence, &encode_job(&new)[..])
            .map_err(OutboxError::database)?;
        if !new.delay.is_zero() || new.expires_after.is_some() {
            let put = transaction.open_table(tables.put());
            let mut put = put.map_err(OutboxError::database)?;
            put.insert(sequence, self.shared.clock.now_ms())
                .map_err(OutboxError::database)?;
        }
        // Before the commit, so it may look too early; it looks again soon.
        self.shared.woken.notify_one();
        Ok(())
    }

    /// Puts a job in, in a transaction of its own. Returns when it is on disk; blocks for as long.
    ///
    /// # Errors
    /// As [`put_in`](Self::put_in).
    pub fn put(&self, job: &T) -> Result<(), OutboxError> {
        let database = &self.shared.database;
        let transaction = database.begin_write().map_err(OutboxError::database)?;
        self.put_in(&transaction, job)?;
        transaction.commit().map_err(OutboxError::database)?;
        self.shared.woken.notify_one();
        Ok(())
    }

    /// How many jobs are where.
    ///
    /// # Errors
    /// What the database says.
    pub fn counters(&self) -> Result<OutboxCounters, OutboxError> {
        counters(&self.shared).map_err(OutboxError::database)
    }

    /// Why the last forwarding failed, where jobs wait for that.
    pub fn last_error(&self) -> Option<QueueError> {
        self.shared.last_error().clone()
    }
}

impl<T> Drop for Outbox<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn last_error(&self) -> std::sync::MutexGuard<'_, Option<QueueError>> {
        self.last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn has_failed(&self, error: QueueError) {
        let queue = self.tables.queue;
        self.failures.count_and_log(|count| {
            tracing::warn!(queue, %error, count, "jobs of an outbox wait: they could not be forwarded");
        });
        *self.last_error() = Some(error);
    }
}

/// What the task that forwards has; says when it ends.
struct Forwarding(Arc<Shared>);

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.0.is_forwarding.store(false, Ordering::Relaxed);
    }
}

/// Makes the tables, and takes over what is in those that all queues had together.
fn prepare(database: &Database, tables: &Tables) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut jobs = transaction.open_table(tables.jobs())?;
        transaction.open_table(tables.refused())?;
        transaction.open_table(tables.causes())?;
        let mut put = transaction.open_table(tables.put())?;
        let mut numbers = transaction.open_table(tables.numbers())?;
        let is_old = transaction
            .list_tables()?
            .any(|table| redb::TableHandle::name(&table) == redb::TableHandle::name(&JOBS_OF_ALL));
        if is_old {
            let mut next = numbers.get(NEXT)?.map_or(0, |next| next.value() as u64);
            let mut old = transaction.open_table(JOBS_OF_ALL)?;
            let mut old_put = transaction.open_table(PUT_OF_ALL)?;
            let mut taken = 0;
            while let Some((sequence, job)) = old.pop_first()? {
                jobs.insert(next, job.value())?;
                if let Some(at) = old_put.remove(sequence.value())? {
                    put.insert(next, at.value())?;
                }
                next += 1;
                taken += 1;
            }
            numbers.insert(NEXT, u128::from(next))?;
            if taken > 0 {
                let queue = tables.queue;
                tracing::warn!(
                    queue,
                    taken,
                    "an outbox takes over the jobs of an older version"
                );
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// The wall clock when the outbox was opened, and the monotonic one from then on: nothing is early or late because
/// the wall clock is set while the process runs.
#[derive(Clone, Copy, Debug)]
struct Clock {
    opened_ms: u64,
    opened: Monotonic,
}

impl Clock {
    fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            opened_ms: since.map_or(0, |since| since.as_millis() as u64),
            opened: Monotonic::now(),
        }
    }

    fn now_ms(self) -> u64 {
        self.opened_ms + self.opened.elapsed().as_millis() as u64
    }
}

/// What becomes of a job.
#[derive(Clone, Debug, PartialEq)]
enum Settled {
    Forwarded,
    /// Why the queue will never take it.
    Refused(String),
    Expired,
}

/// Whether a queue says this of a job each time that it is pushed.
fn is_final(error: &QueueError) -> bool {
    matches!(
        error,
        QueueError::TooLarge { .. } | QueueError::Unsupported(_) | QueueError::Message(_)
    )
}

/// Forwards what is there, in its order, for ever.
async fn forward<E, C, F>(forwarding: Forwarding, connect: C)
where
    E: Engine,
    C: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Result<E, QueueError>> + Send + 'static,
{
    let shared = &forwarding.0;
    let (mut engine, mut wait, mut failures) = (None, LOOK, 0);
    // After a push that was refused as a whole, so many jobs go alone: one of them may be what is refused.
    let mut alone = 0;
    loop {
        let jobs_max = if alone > 0 { 1 } else { BATCH };
        let of_batch = Arc::clone(shared);
        let batch = match spawn_blocking(move || read(&of_batch, jobs_max)).await {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => {
                tracing::error!(%error, "an outbox cannot be read");
                sleep(RETRY_MAX).await;
                continue;
            }
            Err(_) => return,
        };
        if batch.jobs.is_empty() && batch.kept_back.is_empty() {
            *shared.last_error() = None;
            // Whichever comes first.
            let _ = timeout(LOOK, shared.woken.notified()).await;
            continue;
        }
        let results = match (batch.jobs.is_empty(), &mut engine) {
            (true, _) => Ok(Vec::new()),
            (false, Some(engine)) => push(engine, &batch).await,
            (false, none) => match connect().await {
                Ok(connected) => push(none.insert(connected), &batch).await,
                Err(error) => Err(error),
            },
        };
        let (settled, failed) = outcome(shared, &batch, results, &mut alone);
        match failed {
            Some(error) => {
                failures += 1;
                // One that is closed, or that fails and fails, may be another by now.
                if matches!(error, QueueError::Closed) || failures % FAILURES_MAX == 0 {
                    engine = None;
                }
                shared.has_failed(error);
            }
            None => failures = 0,
        }
        if settled.is_empty() {
            if alone == 0 || failures > 0 {
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
            continue;
        }
        wait = LOOK;
        let of_batch = Arc::clone(shared);
        match spawn_blocking(move || settle(&of_batch, &settled)).await {
            Ok(Ok(())) => {}
            // They are forwarded again, as the same pushes.
            Ok(Err(error)) => {
                tracing::error!(%error, "an outbox cannot be written");
                sleep(RETRY_MAX).await;
            }
            Err(_) => return,
        }
    }
}

async fn push(
    engine: &mut impl Engine,
    batch: &Batch,
) -> Result<Vec<Result<Pushed, QueueError>>, QueueError> {
    engine.push(batch.jobs.clone(), Instant::now() + PUSH).await
}

/// What is settled of a batch, and why not all of it is.
fn outcome(
    shared: &Shared,
    batch: &Batch,
    results: Result<Vec<Result<Pushed, QueueError>>, QueueError>,
    alone: &mut usize,
) -> (Vec<(u64, Settled)>, Option<QueueError>) {
    let mut settled = batch.kept_back.clone();
    *alone = alone.saturating_sub(1);
    let results = match results {
        Ok(results) => results,
        Err(error) if is_final(&error) && batch.jobs.len() == 1 => vec![Err(error)],
        Err(error) if is_final(&error) => {
            *alone = batch.jobs.len();
            return (settled, None);
        }
        Err(error) => return (settled, Some(error)),
    };
    let mut failed = None;
    // Each answer counts, whatever became of those in front of it: what was accepted is not pushed again.
    for (sequence, result) in batch.places.iter().copied().zip(results) {
        let became = match result {
            Ok(pushed) => {
                if pushed == Pushed::Again {
                    shared.again.fetch_add(1, Ordering::Relaxed);
                }
                Settled::Forwarded
            }
            Err(error) if is_final(&error) => {
                let queue = shared.tables.queue;
                tracing::error!(queue, sequence, %error, "a queue will never take a job of an outbox: it is set aside");
                Settled::Refused(error.to_string())
            }
            Err(error) => {
                failed.get_or_insert(error);
                continue;
            }
        };
        settled.push((sequence, became));
    }
    (settled, failed)
}

/// The first jobs in their order, as they are to be pushed now, and the sequence numbers of those among them that are
/// not to be: no longer worth it, or not to be read.
#[derive(Default)]
struct Batch {
    jobs: Vec<NewJob>,
    places: Vec<u64>,
    kept_back: Vec<(u64, Settled)>,
}

fn read(shared: &Shared, jobs_max: usize) -> Result<Batch, redb::Error> {
    let tables = &shared.tables;
    let now_ms = shared.clock.now_ms();
    let transaction = shared.database.begin_read()?;
    let table = transaction.open_table(tables.jobs())?;
    let put = transaction.open_table(tables.put())?;
    let (mut batch, mut bytes) = (Batch::default(), 0);
    for entry in table.iter()?.take(jobs_max) {
        let (sequence, job) = entry?;
        let sequence = sequence.value();
        bytes += job.value().len();
        if bytes > BATCH_BYTES && !batch.jobs.is_empty() {
            break;
        }
        let mut job = match decode_job(job.value()) {
            Ok(job) => job,
            Err(error) => {
                tracing::error!(sequence, %error, "a job of an outbox is damaged: it is set aside among those refused");
                let why = Settled::Refused(error.to_string());
                batch.kept_back.push((sequence, why));
                continue;
            }
        };
        let put = put.get(sequence)?.map_or(now_ms, |put| put.value());
        let waited = Duration::from_millis(now_ms.saturating_sub(put));
        job.delay = job.delay.saturating_sub(waited);
        job.expires_after = job.expires_after.map(|after| after.saturating_sub(waited));
        match job.expires_after {
            Some(Duration::ZERO) => batch.kept_back.push((sequence, Settled::Expired)),
            _ => {
                batch.jobs.push(job);
                batch.places.push(sequence);
            }
        }
    }
    Ok(batch)
}

fn settle(shared: &Shared, settled: &[(u64, Settled)]) -> Result<(), redb::Error> {
    let tables = &shared.tables;
    let transaction = shared.database.begin_write()?;
    {
        let mut jobs = transaction.open_table(tables.jobs())?;
        let mut refused = transaction.open_table(tables.refused())?;
        let mut causes = transaction.open_table(tables.causes())?;
        let mut put = transaction.open_table(tables.put())?;
        let mut numbers = transaction.open_table(tables.numbers())?;
        let before = numbers.get(EXPIRED)?.map_or(0, |expired| expired.value());
        let mut expired = before;
        for (sequence, settled) in settled {
            let job = jobs.remove(sequence)?;
            put.remove(sequence)?;
            match (job, settled) {
                (Some(job), Settled::Refused(cause)) => {
                    refused.insert(sequence, job.value())?;
                    causes.insert(sequence, &cause[..])?;
                }
                (Some(_), Settled::Expired) => expired += 1,
                _ => {}
            }
        }
        if expired > before {
            numbers.insert(EXPIRED, expired)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn counters(shared: &Shared) -> Result<OutboxCounters, redb::Error> {
    let tables = &shared.tables;
    let transaction = shared.database.begin_read()?;
    let numbers = transaction.open_table(tables.numbers())?;
    let expired = numbers.get(EXPIRED)?.map_or(0, |expired| expired.value());
    Ok(OutboxCounters {
        waiting: transaction.open_table(tables.jobs())?.len()?,
        refused: transaction.open_table(tables.refused())?.len()?,
        expired: expired as u64,
        again: shared.again.load(Ordering::Relaxed),
        is_forwarding: shared.is_forwarding.load(Ordering::Relaxed),
    })
}
