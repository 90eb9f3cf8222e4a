//! What a handler of an `$atomic` method commits its writes with.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio_postgres::Client;

use super::super::{Claimed, Recorded, StoreError};
use super::Inner;
use super::connections::{Connection, Lent, failed, late};
use super::rows::Complete;
use crate::call::{MethodError, RawReply, Reply, answer};
use crate::message::Plain;
use crate::wire::{Code, Reason, Status, Work};

/// Commits a handler's own writes together with its outcome: both are in the database, or neither.
///
/// ```no_run
/// use bowline::once::PostgresTransaction;
/// use bowline::{Link, Reply, Request, Status};
///
/// async fn add(request: Request<Link<String>>) -> Result<Reply<Link<String>>, Status> {
///     let account = request.plain()?.service;
///     let transaction = request.transaction::<PostgresTransaction>()?;
///     transaction
///         .commit(async move |writes| -> Result<_, Status> {
///             let add = "insert into totals values ($1, 1)
///                 on conflict (account) do update set total = totals.total + 1";
///             writes.execute(add, &[&account]).await.map_err(Status::from_store)?;
///             Ok(Link::default())
///         })
///         .await
/// }
/// ```
pub struct PostgresTransaction {
    store: Weak<Inner>,
    claimed: Claimed,
    committed: Mutex<Option<RawReply>>,
}

/// The open transaction, as a [`tokio_postgres::Client`] to read and write with.
///
/// Neither `commit` nor `rollback` is to be said on it; savepoints may be. Kept after the handler's
/// work has returned, it is a connection that nobody uses any more.
pub struct PostgresWrites(Arc<Connection>);

impl Deref for PostgresWrites {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0.client
    }
}

impl std::fmt::Debug for PostgresWrites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostgresWrites")
    }
}

impl std::fmt::Debug for PostgresTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresTransaction")
            .field("claimed", &self.claimed)
            .finish_non_exhaustive()
    }
}

impl PostgresTransaction {
    pub(super) fn new(store: Weak<Inner>, claimed: Claimed) -> Self {
        Self {
            store,
            claimed,
            committed: Mutex::new(None),
        }
    }

    /// The request ID's record and the attempt that has it.
    pub fn claimed(&self) -> &Claimed {
        &self.claimed
    }

    /// Runs `work` in a transaction, records the reply that it gives in the same one, and returns
    /// when both are committed. That reply is what the caller and every retry get.
    ///
    /// `work` runs once, at `read committed`; its first statement may set another isolation level.
    /// Where it fails, nothing of it is kept, and its error is the handler's to return. It should
    /// not wait for anything but the database: see
    /// [`transaction_idle_max`](super::PostgresBuilder::transaction_idle_max).
    ///
    /// Dropping the future rolls back, unless the commit is on its way.
    ///
    /// # Errors
    /// Those of `work`; [`Reason::Superseded`], not done, where another attempt has taken over or
    /// this one has committed before; and [`Reason::StoreUnavailable`]: not done where the
    /// transaction could not be begun, outcome unknown where the answer to its commit was lost.
    pub async fn commit<R, E, F, Fut>(&self, work: F) -> Result<Reply<R>, E>
    where
        R: Plain,
        E: MethodError,
        F: FnOnce(PostgresWrites) -> Fut,
        Fut: Future<Output = Result<R, E>>,
    {
        let store = self.store.upgrade();
        let store = store.ok_or_else(|| Status::unavailable("the store is closed"))?;
        let lent = begin(&store).await?;
        let worked = work(PostgresWrites(Arc::clone(&lent.connection))).await;
        let reply = match worked {
            Ok(plain) => answer::<R, Status>(Ok(plain.into())),
            Err(error) => {
                roll_back(&store, lent).await;
                return Err(error);
            }
        };
        let ended = match reply {
            Ok(reply) => self.record(&store, &lent, &reply).await.map(|()| reply),
            Err(status) => Err(status.with_work(Work::NotDone)),
        };
        match ended {
            Ok(reply) => {
                store.exclusive.put_back(lent);
                let committed = self.committed.lock();
                *committed.unwrap_or_else(PoisonError::into_inner) = Some(reply.clone());
                Ok(Reply::encoded(reply))
            }
            Err(status) => {
                roll_back(&store, lent).await;
                Err(status.into())
            }
        }
    }

    /// Records the outcome in the transaction, if the attempt still has the record, and commits.
    async fn record(&self, store: &Inner, lent: &Lent, reply: &RawReply) -> Result<(), Status> {
        let Claimed {
            key,
            epoch,
            retention,
            reply_bytes_max,
        } = &self.claimed;
        let outcome = Recorded::new(reply, *reply_bytes_max);
        let complete = Complete::new(key, *epoch, &outcome, *retention);
        let recorded = lent.connection.answer(
            store.common.until(),
            complete.run(&lent.connection, store.set_time()),
        );
        match recorded.await {
            Ok(true) => {}
            Ok(false) => return Err(superseded()),
            Err(error) => return Err(not_done(&error)),
        }
        let commit = lent.connection.client.batch_execute("commit");
        match tokio::time::timeout_at(store.common.until(), commit).await {
            Ok(Ok(())) => {
                store.totals.add(key, 0, complete.reply_bytes);
                Ok(())
            }
            Ok(Err(error)) => match failed(error) {
                // A constraint that is checked last, say.
                error if error.is_not_applied() => Err(not_done(&error)),
                error => Err(not_known(&error)),
            },
            Err(_) => Err(not_known(&late())),
        }
    }

    pub(super) fn committed(&self) -> Option<RawReply> {
        let committed = self.committed.lock();
        committed.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn begin(store: &Inner) -> Result<Lent, Status> {
    let until = store.common.until();
    let unavailable = |error: StoreError| not_done(&error);
    let lent = store.exclusive.get(&store.connector, until).await;
    let lent = lent.map_err(unavailable)?;
    let begin = lent.connection.client.batch_execute("begin");
    let begun = lent.connection.answer(until, begin).await;
    begun.map_err(unavailable)?;
    Ok(lent)
}

/// A connection that does not even do that is not used again.
async fn roll_back(store: &Inner, lent: Lent) {
    let rollback = lent.connection.client.batch_execute("rollback");
    let rolled_back = lent.connection.answer(store.common.until(), rollback).await;
    if rolled_back.is_ok() {
        store.exclusive.put_back(lent);
    }
}

fn superseded() -> Status {
    Status::new(
        Code::Aborted,
        Work::NotDone,
        "another attempt has taken over, so nothing was committed",
    )
    .with_reason(Reason::Superseded)
}

fn not_done(error: &StoreError) -> Status {
    Status::new(Code::Unavailable, Work::NotDone, error.to_string())
        .with_reason(Reason::StoreUnavailable)
}

fn not_known(error: &StoreError) -> Status {
    Status::new(Code::Unavailable, Work::OutcomeUnknown, error.to_string())
        .with_reason(Reason::StoreUnavailable)
}
