//! Jobs that are safe here until their queue has them: a table in a redb database, and a task that forwards it.
//!
//! A job can be put in by itself, or in the producer's own transaction: then it is pushed if, and only if, the
//! producer's writes are there. It has its identity from the beginning, so that a forwarding which is done
//! again after a crash is no second job. It does not wait for the queue, and tells nobody when it was forwarded.

use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic, SystemTime, UNIX_EPOCH};

use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::wire::{decode_job, encode_job};
use super::{Engine, Identity, NewJob, Producer, QueueError, Queueable};

/// Jobs by their sequence number, each as a `NewJob` of schema/queue.capnp.
const JOBS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bowline.outbox");
/// Jobs that their queue will never take, or that cannot be read any more.
const REFUSED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bowline.outbox.refused");
/// When a job with a delay or an expiry was put in: milliseconds since 1970.
const PUT: TableDefinition<'_, u64, u64> = TableDefinition::new("bowline.outbox.put");
/// The producer's ID, the next sequence number, and how many jobs have expired here.
const PRODUCER: TableDefinition<'_, &str, u128> = TableDefinition::new("bowline.outbox.producer");

const EXPIRED: &str = "expired";

/// Jobs that are forwarded together.
const BATCH: usize = 512;
/// How often the table is looked at although nobody said that something was put in.
const LOOK: Duration = Duration::from_millis(100);
/// The longest wait before a queue that was not to be reached is tried again.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long a forwarding waits for room in the queue.
const PUSH: Duration = Duration::from_secs(10);

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
    database: Arc<Database>,
    clock: Clock,
    woken: Arc<Notify>,
    task: AbortHandle,
    type_: std::marker::PhantomData<fn() -> T>,
}

/// How many jobs of an [`Outbox`] are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxCounters {
    /// Not forwarded yet.
    pub waiting: u64,
    /// Their queue will never take them, since they are too large, or they are damaged. They stay in a table of their own.
    pub refused: u64,
    /// Their expiry was over before their queue could be reached, since the outbox was made.
    pub expired: u64,
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
    /// What the database says.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open<E, C, F>(database: Arc<Database>, connect: C) -> Result<Self, OutboxError>
    where
        E: Engine,
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<E, QueueError>> + Send + 'static,
    {
        let transaction = database.begin_write().map_err(OutboxError::database)?;
        {
            let open = transaction.open_table(JOBS);
            open.map_err(OutboxError::database)?;
            let open = transaction.open_table(REFUSED);
            open.map_err(OutboxError::database)?;
            let open = transaction.open_table(PUT);
            open.map_err(OutboxError::database)?;
            let mut producer = transaction
                .open_table(PRODUCER)
                .map_err(OutboxError::database)?;
            let is_new = producer.get("id").map_err(OutboxError::database)?.is_none();
            if is_new {
                let id = Producer::ephemeral().identity().producer;
                producer
                    .insert("id", id.as_u128())
                    .map_err(OutboxError::database)?;
            }
        }
        transaction.commit().map_err(OutboxError::database)?;
        let woken = Arc::new(Notify::new());
        let clock = Clock::start();
        let forward = forward(Arc::clone(&database), clock, Arc::clone(&woken), connect);
        Ok(Self {
            database,
            clock,
            woken,
            task: tokio::spawn(forward).abort_handle(),
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
        let mut producer = transaction
            .open_table(PRODUCER)
            .map_err(OutboxError::database)?;
        let number = |name| -> Result<u128, OutboxError> {
            let value = producer.get(name).map_err(OutboxError::database)?;
            Ok(value.map_or(0, |value| value.value()))
        };
        let (id, sequence) = (number("id")?, number("next")? as u64);
        let identity = Identity {
            producer: Uuid::from_u128(id),
            epoch: 0,
            sequence,
        };
        let mut new = NewJob::new(identity, job.to_bytes()?);
        new.key = job.key().map(|key| key.into_owned().into());
        how(&mut new);
        // It is its place in the table, and the push's identity.
        new.identity = identity;
        producer
            .insert("next", u128::from(sequence) + 1)
            .map_err(OutboxError::database)?;
        let mut jobs = transaction
            .open_table(JOBS)
            .map_err(OutboxError::database)?;
        jobs.insert(sequence, &encode_job(&new)[..])
            .map_err(OutboxError::database)?;
        if !new.delay.is_zero() || new.expires_after.is_some() {
            let put = transaction.open_table(PUT);
            let mut put = put.map_err(OutboxError::database)?;
            put.insert(sequence, self.clock.now_ms())
                .map_err(OutboxError::database)?;
        }
        // Before the commit, so it may look too early; it looks again soon.
        self.woken.notify_one();
        Ok(())
    }

    /// Puts a job in, in a transaction of its own. Returns when it is on disk; blocks for as long.
    ///
    /// # Errors
    /// As [`put_in`](Self::put_in).
    pub fn put(&self, job: &T) -> Result<(), OutboxError> {
        let transaction = self.database.begin_write().map_err(OutboxError::database)?;
        self.put_in(&transaction, job)?;
        transaction.commit().map_err(OutboxError::database)?;
        self.woken.notify_one();
        Ok(())
    }

    /// How many jobs are where.
    ///
    /// # Errors
    /// What the database says.
    pub fn counters(&self) -> Result<OutboxCounters, OutboxError> {
        counters(&self.database).map_err(OutboxError::database)
    }
}

impl<T> Drop for Outbox<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
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
#[derive(Clone, Copy, Debug, PartialEq)]
enum Settled {
    Forwarded,
    Refused,
    Expired,
}

/// Forwards what is there, in its order, for ever.
async fn forward<E, C, F>(database: Arc<Database>, clock: Clock, woken: Arc<Notify>, connect: C)
where
    E: Engine,
    C: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Result<E, QueueError>> + Send + 'static,
{
    let (mut engine, mut wait) = (None, LOOK);
    loop {
        let of_batch = Arc::clone(&database);
        let batch = match spawn_blocking(move || read(&of_batch, clock.now_ms())).await {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => {
                tracing::error!(%error, "an outbox cannot be read");
                sleep(RETRY_MAX).await;
                continue;
            }
            Err(_) => return,
        };
        if batch.jobs.is_empty() && batch.kept_back.is_empty() {
            // Whichever comes first.
            let _ = timeout(LOOK, woken.notified()).await;
            continue;
        }
        if engine.is_none() && !batch.jobs.is_empty() {
            engine = connect().await.ok();
        }
        let pushed = match &engine {
            Some(engine) if !batch.jobs.is_empty() => {
                engine.push(batch.jobs.clone(), Instant::now() + PUSH).await
            }
            _ => Ok(Vec::new()),
        };
        let results = pushed.unwrap_or_default();
        let settled = results.iter().zip(&batch.jobs).map_while(|(result, job)| {
            let settled = match result {
                Ok(_) => Settled::Forwarded,
                Err(QueueError::TooLarge { .. }) => Settled::Refused,
                // In order: what comes behind it waits as well.
                Err(_) => return None,
            };
            Some((job.identity.sequence, settled))
        });
        let kept_back = batch.kept_back.iter().copied();
        let settled: Vec<(u64, Settled)> = kept_back.chain(settled).collect();
        if settled.is_empty() {
            sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
            continue;
        }
        wait = LOOK;
        let of_batch = Arc::clone(&database);
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

/// The first jobs in their order, as they are to be pushed now, and the sequence numbers of those among them that are
/// not to be: no longer worth it, or not to be read.
#[derive(Default)]
struct Batch {
    jobs: Vec<NewJob>,
    kept_back: Vec<(u64, Settled)>,
}

fn read(database: &Database, now_ms: u64) -> Result<Batch, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(JOBS)?;
    let put = transaction.open_table(PUT)?;
    let mut batch = Batch::default();
    for entry in table.iter()?.take(BATCH) {
        let (sequence, job) = entry?;
        let sequence = sequence.value();
        let mut job = match decode_job(job.value()) {
            Ok(job) => job,
            Err(error) => {
                tracing::error!(sequence, %error, "a job of an outbox is damaged: it is set aside among those refused");
                batch.kept_back.push((sequence, Settled::Refused));
                continue;
            }
        };
        let put = put.get(sequence)?.map_or(now_ms, |put| put.value());
        let waited = Duration::from_millis(now_ms.saturating_sub(put));
        job.delay = job.delay.saturating_sub(waited);
        job.expires_after = job.expires_after.map(|after| after.saturating_sub(waited));
        match job.expires_after {
            Some(Duration::ZERO) => batch.kept_back.push((sequence, Settled::Expired)),
            _ => batch.jobs.push(job),
        }
    }
    Ok(batch)
}

fn settle(database: &Database, settled: &[(u64, Settled)]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut jobs = transaction.open_table(JOBS)?;
        let mut refused = transaction.open_table(REFUSED)?;
        let mut put = transaction.open_table(PUT)?;
        let mut producer = transaction.open_table(PRODUCER)?;
        let before = producer.get(EXPIRED)?.map_or(0, |expired| expired.value());
        let mut expired = before;
        for (sequence, settled) in settled {
            let job = jobs.remove(sequence)?;
            put.remove(sequence)?;
            match (job, settled) {
                (Some(job), Settled::Refused) => {
                    refused.insert(sequence, job.value())?;
                }
                (Some(_), Settled::Expired) => expired += 1,
                _ => {}
            }
        }
        if expired > before {
            producer.insert(EXPIRED, expired)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn counters(database: &Database) -> Result<OutboxCounters, redb::Error> {
    let transaction = database.begin_read()?;
    let producer = transaction.open_table(PRODUCER)?;
    let expired = producer.get(EXPIRED)?.map_or(0, |expired| expired.value());
    Ok(OutboxCounters {
        waiting: transaction.open_table(JOBS)?.len()?,
        refused: transaction.open_table(REFUSED)?.len()?,
        expired: expired as u64,
    })
}
