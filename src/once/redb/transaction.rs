//! What a handler of an `$atomic` method commits its writes with.

use std::sync::{Mutex, PoisonError, Weak};

use redb::WriteTransaction;

use super::super::{Claimed, StoreError};
use super::Inner;
use crate::call::{MethodError, RawReply, Reply, answer};
use crate::message::Plain;
use crate::wire::{Code, Reason, Status, Work};

/// Commits a handler's own writes together with its outcome: both are on disk, or neither.
///
/// ```no_run
/// use bowline::once::RedbTransaction;
/// use bowline::{Link, Reply, Request, Status};
/// use redb::TableDefinition;
///
/// const TOTALS: TableDefinition<&str, i64> = TableDefinition::new("totals");
///
/// async fn add(request: Request<Link<String>>) -> Result<Reply<Link<String>>, Status> {
///     let account = request.plain()?.service;
///     let transaction = request.transaction::<RedbTransaction>()?;
///     transaction
///         .commit(move |writes| -> Result<_, Status> {
///             let mut totals = writes.open_table(TOTALS).map_err(Status::from_store)?;
///             let total = totals.get(&*account).map_err(Status::from_store)?.map_or(0, |t| t.value());
///             totals.insert(&*account, total + 1).map_err(Status::from_store)?;
///             Ok(Link::default())
///         })
///         .await
/// }
/// # use redb::ReadableTable;
/// ```
#[derive(Debug)]
pub struct RedbTransaction {
    store: Weak<Inner>,
    claimed: Claimed,
    committed: Mutex<Option<RawReply>>,
}

impl RedbTransaction {
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

    /// Runs `work` in the store's next transaction, records the reply that it gives in the same
    /// one, and returns when both are on disk. That reply is what the caller and every retry get.
    ///
    /// `work` runs in the store's writing thread: it should only read and write. It may be run more
    /// than once, if another's in the same transaction fails; only the last run counts. Where it
    /// fails, nothing of it is kept, and its error is the handler's to return.
    ///
    /// Dropping the future does not stop what has been handed over.
    ///
    /// # Errors
    /// Those of `work`; [`Reason::Superseded`], not done, where another attempt has taken over; and
    /// [`Reason::StoreUnavailable`], outcome unknown, where the disk fails.
    pub async fn commit<R, E>(
        &self,
        work: impl Fn(&WriteTransaction) -> Result<R, E> + Send + Sync + 'static,
    ) -> Result<Reply<R>, E>
    where
        R: Plain,
        E: MethodError + Send + 'static,
    {
        let store = self.store.upgrade();
        let store = store.ok_or_else(|| Status::unavailable("the store is closed"))?;
        // The error of `work` has a type that the engine does not know; it goes round it.
        let failed = std::sync::Arc::new(Mutex::new(None));
        let fails = std::sync::Arc::clone(&failed);
        let encoded = move |writes: &WriteTransaction| match work(writes) {
            Ok(plain) => answer::<R, Status>(Ok(plain.into())),
            Err(error) => {
                *fails.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(Status::internal("the handler's work failed"))
            }
        };
        let done = store.commit(self.claimed.clone(), Box::new(encoded)).await;
        let error = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (done, error) {
            (Ok(Ok(reply)), _) => {
                let mut committed = self
                    .committed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *committed = Some(reply.clone());
                Ok(Reply::encoded(reply))
            }
            (Ok(Err(_)), Some(error)) => Err(error),
            (Ok(Err(status)), None) => Err(status.into()),
            (Err(error), _) => Err(not_known(&error).into()),
        }
    }

    pub(super) fn committed(&self) -> Option<RawReply> {
        let committed = self.committed.lock();
        committed.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn not_known(error: &StoreError) -> Status {
    Status::new(Code::Unavailable, Work::OutcomeUnknown, error.to_string())
        .with_reason(Reason::StoreUnavailable)
}
