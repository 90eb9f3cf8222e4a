//! The changes of one record, each as one statement.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::super::compare::{Begun, Rows, Seen};
use super::super::fields::recovery_number;
use super::super::{
    Change, Claim, Epoch, Key, Record, Recorded, StoreError, Timestamp, Verdict, step,
};
use super::connections::{Connection, failed};
use super::statements::{self, Columns, duration, mark, milliseconds, record};
use super::{Inner, watching};

type Parameters<'a> = [&'a (dyn ToSql + Sync)];

/// One operation, which is over at a time.
pub struct Operation<'a> {
    pub inner: &'a Inner,
    pub until: Instant,
}

impl Operation<'_> {
    async fn connection(&self) -> Result<Arc<Connection>, StoreError> {
        self.inner
            .shared
            .get(&self.inner.connector, self.until)
            .await
    }

    /// The latest time, by the server's clock, at which what is asked now may still be done. What a
    /// server that was stopped finds in its queue when it goes on, nobody waits for any more.
    fn not_after(&self, connection: &Connection) -> i64 {
        let timeout = duration(self.inner.connector.operation_timeout);
        let now = self
            .inner
            .set_time()
            .unwrap_or_else(|| connection.clock.now());
        now.saturating_add(timeout)
    }

    fn seen(connection: &Connection, row: &Row) -> Result<Seen, StoreError> {
        let now: i64 = row.try_get(1).map_err(failed)?;
        connection.clock.set(now);
        Ok(Seen {
            record: record(row)?,
            now: Timestamp::from_milliseconds(now.max(0).cast_unsigned()),
            forgotten: statements::forgotten(row)?,
        })
    }

    async fn try_begin(
        &self,
        key: &Key,
        claim: &Claim,
        is_full: bool,
    ) -> Result<Begun, StoreError> {
        let connection = self.connection().await?;
        let mark = mark(key.scope_and_id().0);
        let fingerprint = claim.fingerprint.to_bytes();
        let begin = async {
            let statement = &connection.statements.begin;
            let parameters: &Parameters<'_> = &[
                &self.inner.set_time(),
                &key.as_bytes(),
                &&fingerprint[..],
                &claim.epoch.owner.cast_signed(),
                &claim.epoch.number.cast_signed(),
                &i16::from(recovery_number(claim.recovery, false)),
                &duration(claim.lease),
                &self.not_after(&connection),
                &claim.age.created.map(milliseconds),
                &duration(claim.age.retention),
                &duration(claim.age.clock_skew_max),
                &is_full,
                &mark,
            ];
            connection.client.query_one(statement, parameters).await
        };
        let row = connection.answer(self.until, begin).await?;
        if row.try_get(0).map_err(failed)? {
            self.inner.totals.add(key, 1, 0);
            return Ok(Begun::Inserted);
        }
        let seen = Self::seen(&connection, &row)?;
        let begin = Change::Begin(claim.clone());
        let would_run = seen.record.is_none()
            && begin.refused_by(seen.forgotten).is_none()
            && matches!(step(None, seen.now, begin), (Verdict::Run, _));
        match is_full && would_run {
            true => Ok(Begun::Full),
            false => Ok(Begun::Refused(seen)),
        }
    }
}

impl Rows for Operation<'_> {
    async fn begin(&self, key: &Key, claim: &Claim) -> Result<Begun, StoreError> {
        let is_full = self.inner.totals.excess().is_some();
        let begun = self.try_begin(key, claim, is_full).await?;
        // Only for a key that would be begun: what is there already needs no room.
        if let Begun::Full = begun
            && self.inner.has_room(key, claim.age.retention).await?
        {
            return self.try_begin(key, claim, false).await;
        }
        Ok(begun)
    }

    async fn complete(
        &self,
        key: &Key,
        epoch: Epoch,
        outcome: &Recorded,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        let connection = self.connection().await?;
        let now = self.inner.set_time();
        let complete = Complete::new(key, epoch, outcome, retention);
        let done = connection
            .answer(self.until, complete.run(&connection, now))
            .await?;
        if done {
            self.inner.totals.add(key, 0, complete.reply_bytes);
        }
        Ok(done)
    }

    async fn read(&self, key: &Key) -> Result<Seen, StoreError> {
        let connection = self.connection().await?;
        let now = self.inner.set_time();
        let read = async {
            let statement = &connection.statements.read;
            let mark = mark(key.scope_and_id().0);
            let parameters: &Parameters<'_> = &[&now, &key.as_bytes(), &mark];
            connection.client.query_one(statement, parameters).await
        };
        let row = connection.answer(self.until, read).await?;
        Self::seen(&connection, &row)
    }

    async fn settle(&self, key: &Key, epoch: Epoch) -> Result<(), StoreError> {
        let connection = self.connection().await?;
        let table = &self.inner.connector.table;
        let settle = statements::settle(table, key.as_bytes(), epoch);
        let settled = connection.client.batch_execute(&settle);
        connection.answer(self.until, settled).await
    }

    async fn replace(
        &self,
        key: &Key,
        old: &Record,
        new: Option<&Record>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let connection = self.connection().await?;
        let set_time = self.inner.set_time();
        let not_after =
            milliseconds(now).saturating_add(duration(self.inner.connector.operation_timeout));
        let (was, told) = (Columns::of(old), watching::payload(key));
        let of = key;
        let key = key.as_bytes();
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![
            &set_time,
            &key,
            &was.owner,
            &was.number,
            &was.state,
            &was.until,
            &not_after,
            &told,
        ];
        let replaced = match new {
            None => {
                let remove = async {
                    let statement = &connection.statements.remove;
                    connection.client.query_opt(statement, &parameters).await
                };
                let removed = connection.answer(self.until, remove).await?;
                removed.map(|_| (-1, -was.reply_bytes))
            }
            Some(new) => {
                let is = Columns::of(new);
                let outcome = is.outcome.as_deref();
                let parameters_of_new: [&(dyn ToSql + Sync); 8] = [
                    &&is.fingerprint[..],
                    &is.owner,
                    &is.number,
                    &is.recovery,
                    &is.state,
                    &is.until,
                    &outcome,
                    &is.reply_bytes,
                ];
                parameters.extend(parameters_of_new);
                let put = async {
                    let statement = &connection.statements.put;
                    connection.client.query_opt(statement, &parameters).await
                };
                let put = connection.answer(self.until, put).await?;
                put.map(|_| (0, is.reply_bytes - was.reply_bytes))
            }
        };
        if let Some((records, reply_bytes)) = replaced {
            self.inner.totals.add(of, records, reply_bytes);
        }
        Ok(replaced.is_some())
    }
}

/// An attempt's outcome, on its way into a row: alone, or in a handler's transaction.
pub struct Complete<'a> {
    key: &'a Key,
    epoch: Epoch,
    outcome: bytes::Bytes,
    pub reply_bytes: i64,
    retention: i64,
    told: String,
}

impl<'a> Complete<'a> {
    pub fn new(key: &'a Key, epoch: Epoch, outcome: &Recorded, retention: Duration) -> Self {
        Self {
            key,
            epoch,
            outcome: outcome.to_bytes(),
            reply_bytes: outcome.bytes() as i64,
            retention: duration(retention),
            told: watching::payload(key),
        }
    }

    /// Whether it is recorded: not if another attempt has the row, or it has an outcome already.
    pub async fn run(
        &self,
        connection: &Connection,
        now: Option<i64>,
    ) -> Result<bool, tokio_postgres::Error> {
        let parameters: &Parameters<'_> = &[
            &now,
            &self.key.as_bytes(),
            &self.epoch.owner.cast_signed(),
            &self.epoch.number.cast_signed(),
            &self.retention,
            &&self.outcome[..],
            &self.reply_bytes,
            &self.told,
        ];
        let statement = &connection.statements.complete;
        let row = connection.client.query_opt(statement, parameters).await?;
        Ok(row.is_some())
    }
}
