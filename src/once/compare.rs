//! How a store on a server applies a change: it reads the record, decides here, and writes if the
//! record is still what was read. For stores that replicas share.
//!
//! The two changes that every request makes, to begin and to complete, are one round trip where
//! nothing stands in their way. What they do then is what [`step`] says, which the suite over all stores checks.

use std::time::Duration;

use super::{
    Change, Claim, Epoch, Key, Record, Recorded, StoreError, Timestamp, Verdict, Write, step,
};

/// Records on a server.
pub(super) trait Rows: Sync {
    /// Puts a record where none is, if the key is of the right age and there is room.
    fn begin(
        &self,
        key: &Key,
        claim: &Claim,
    ) -> impl Future<Output = Result<Begun, StoreError>> + Send;

    /// Records an outcome if this attempt has the record and it has no outcome yet. Says whether it did.
    fn complete(
        &self,
        key: &Key,
        epoch: Epoch,
        outcome: &Recorded,
        retention: Duration,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// What is recorded, and the server's time.
    fn read(&self, key: &Key) -> impl Future<Output = Result<Seen, StoreError>> + Send;

    /// Gives back a claim of which nothing is seen, and which the server may still be making: waits until it has, or has
    /// not, and undoes it.
    fn settle(
        &self,
        key: &Key,
        epoch: Epoch,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Puts `new`, or nothing, in the place of `old`. Says whether it did: not if the record has
    /// changed, nor long after `now`, at which it was read and decided upon.
    fn replace(
        &self,
        key: &Key,
        old: &Record,
        new: Option<&Record>,
        now: Timestamp,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

/// A record as it was at a time.
pub(super) struct Seen {
    pub record: Option<Record>,
    pub now: Timestamp,
    /// Keys like this one that were made up to then may have been forgotten.
    pub forgotten: Timestamp,
}

#[expect(
    clippy::large_enum_variant,
    reason = "one lives as long as a round trip"
)]
pub(super) enum Begun {
    /// Nothing was there, and the claim is now.
    Inserted,
    /// Nothing is there, and there is no room.
    Full,
    /// Something stands in its way, or did.
    Refused(Seen),
}

/// Applies one change. Ends when one try meets nobody else's change; the caller bounds the time.
pub(super) async fn apply(
    rows: &impl Rows,
    key: &Key,
    change: Change,
) -> Result<Verdict, StoreError> {
    loop {
        let seen = match &change {
            Change::Begin(claim) => match rows.begin(key, claim).await? {
                Begun::Inserted => return Ok(Verdict::Run),
                Begun::Full => return Ok(Verdict::Full),
                Begun::Refused(seen) => seen,
            },
            Change::Complete {
                epoch,
                outcome,
                retention,
            } => {
                if rows.complete(key, *epoch, outcome, *retention).await? {
                    return Ok(Verdict::Applied);
                }
                rows.read(key).await?
            }
            _ => rows.read(key).await?,
        };
        if seen.record.is_none() {
            if let Some(refused) = change.refused_by(seen.forgotten) {
                return Ok(refused);
            }
            if let Change::Release { epoch } = change {
                rows.settle(key, epoch).await?;
            }
        }
        let (verdict, write) = step(seen.record.as_ref(), seen.now, change.clone());
        let new = match write {
            Write::Nothing => return Ok(verdict),
            Write::Remove => None,
            Write::Put(new) => Some(new),
        };
        if let Some(old) = &seen.record
            && rows.replace(key, old, new.as_ref(), seen.now).await?
        {
            return Ok(verdict);
        }
    }
}
