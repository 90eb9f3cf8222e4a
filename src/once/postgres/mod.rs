//! Records in a PostgreSQL database, which replicas share: exactly one of them begins a request.
//!
//! One row a record, changed by compare-and-set on the database's own clock; no lock is held while
//! a message is on its way. Claims and outcomes are one round trip and one commit each, over a few
//! connections that carry many statements at once, so that commits share their `fsync`.

mod connections;
mod rows;
mod statements;
mod totals;
mod transaction;
mod watching;

pub use transaction::{PostgresTransaction, PostgresWrites};

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, NoTls, Row, Socket};

use super::compare;
use super::pressure::Pressure;
use super::remote::{Common, FORGOTTEN_AT_ONCE, Reconnect, forget_in_steps};
use super::{
    Bounds, Change, Claimed, Clock, Durability, Epoch, Fingerprint, Key, Store, StoreError, Usage,
    Verdict, WhenFull,
};
use crate::call::RawReply;
use connections::{Connect, Connector, Exclusive, Shared, failed};
use rows::Operation;
use statements::milliseconds;
use totals::{SHARES_COUNTED, Totals};
use watching::Watching;

/// Of the records that a full table may have, how much room is made at once.
const SPARE_PARTS: usize = 1000;
/// A connection that was idle this long is asked whether it still lives.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// Keeps records in a table of a PostgreSQL database. Cheap to clone; clones share the connections.
///
/// All replicas of a service that use the same table are one: of two that begin a request at once,
/// one runs it. While the database is away, every operation is a [`StoreError`] in bounded time, and
/// nothing is begun; when it is back, so is the store.
///
/// Works with PostgreSQL 12 and later, directly or through a pooler in session mode.
///
/// ```no_run
/// use bowline::{Server, once::{Once, PostgresStore}};
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let store = PostgresStore::connect("postgres://shop@db.internal/shop").await?;
/// let server = Server::builder().once(Once::builder().build(store)?);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PostgresStore(Arc<Inner>);

/// Settings of a [`PostgresStore`].
#[must_use]
pub struct PostgresBuilder {
    table: String,
    connections: usize,
    transactions_max: usize,
    transaction_idle_max: Duration,
    count_interval: Duration,
    durability: Durability,
    tls: Box<dyn Connect>,
    common: Common,
}

struct Inner {
    connector: Arc<Connector>,
    shared: Shared,
    exclusive: Exclusive,
    common: Common,
    totals: Totals,
    watching: Watching,
    pressure: Pressure,
}

impl Default for PostgresBuilder {
    fn default() -> Self {
        Self {
            table: "bowline_once".to_owned(),
            connections: 4,
            transactions_max: 16,
            transaction_idle_max: Duration::from_secs(30),
            count_interval: Duration::from_secs(30),
            durability: Durability::RequireFsync,
            tls: Box::new(NoTls),
            common: Common::default(),
        }
    }
}

impl PostgresBuilder {
    /// The table: up to 40 of `a-z`, `0-9` and `_`, a letter first, in the first schema of the
    /// connection's search path. Services that share a database need one each. Default: `bowline_once`.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// Connections that claims and outcomes share. Beside these, a replica has one to hear of
    /// changes, and those of its transactions. Default: 4.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// Transactions of `$atomic` handlers at once, each on a connection of its own while it lasts.
    /// One more waits. Default: 16.
    pub fn transactions_max(mut self, transactions: usize) -> Self {
        self.transactions_max = transactions;
        self
    }

    /// After this, an operation has failed; a single statement is ended by the server, too.
    /// Default: 5 s.
    pub fn operation_timeout(mut self, time: Duration) -> Self {
        self.common.operation_timeout = time;
        self
    }

    /// A handler's transaction that says nothing for this long is rolled back by the server, so
    /// that a replica which hangs does not hold locks. Default: 30 s.
    pub fn transaction_idle_max(mut self, time: Duration) -> Self {
        self.transaction_idle_max = time;
        self
    }

    /// How much is kept. The count is taken from time to time, see [`count_interval`](Self::count_interval).
    pub fn bounds(mut self, bounds: Bounds) -> Self {
        self.common.bounds = bounds;
        self
    }

    /// How often the rows and reply bytes are counted, which reads the table; never more than 1 %
    /// of the time is spent on it. In between, a replica knows of its own changes only, so that the
    /// bounds may be exceeded by what the others begin in that time. Default: 30 s.
    pub fn count_interval(mut self, time: Duration) -> Self {
        self.count_interval = time;
        self
    }

    /// What the server has to be set to. With [`Durability::RequireFsync`], a server with `fsync`
    /// off is refused, and `synchronous_commit` is on for this store whatever the server's default.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Connects with TLS. Default: without, and a URL with `sslmode=require` is refused.
    pub fn tls<T>(mut self, tls: T) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        self.tls = Box::new(tls);
        self
    }

    /// Another clock than the database's, for tests.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.common.clock = clock;
        self
    }

    /// Connects, and makes the table if it is not there.
    ///
    /// `url` is of the form `postgres://user:password@host:port/database`, and may name more than
    /// one host: the one that accepts writes is used, which is how a failover is followed.
    ///
    /// # Errors
    /// Where the server is away or not durable, the URL is wrong, or the table is of another version.
    pub async fn connect(self, url: &str) -> Result<PostgresStore, StoreError> {
        check_name(&self.table)?;
        let mut config: Config = url.parse().map_err(failed)?;
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        // One host that says nothing leaves time for the others.
        let hosts = config.get_hosts().len().max(1) as u32;
        config.connect_timeout(self.common.operation_timeout / hosts);
        config.keepalives_idle(config.get_keepalives_idle().min(KEEPALIVE_IDLE));
        if config.get_application_name().is_none() {
            config.application_name("bowline");
        }
        let connector = Arc::new(Connector {
            config,
            tls: self.tls,
            table: self.table,
            durability: self.durability,
            operation_timeout: self.common.operation_timeout,
            transaction_idle_max: self.transaction_idle_max,
            reconnect: Reconnect::default(),
        });
        let until = self.common.until();
        let make = make_table(&connector);
        let made = tokio::time::timeout_at(until, make).await;
        made.unwrap_or_else(|_| Err(connections::late()))?;
        let store = PostgresStore(Arc::new(Inner {
            watching: Watching::start(Arc::clone(&connector)),
            connector,
            shared: Shared::new(self.connections),
            exclusive: Exclusive::new(self.transactions_max),
            totals: Totals::new(self.common.bounds, self.count_interval),
            pressure: Pressure::default(),
            common: self.common,
        }));
        store.0.count().await?;
        Ok(store)
    }
}

impl PostgresStore {
    /// Connects with defaults: see [`PostgresBuilder::connect`].
    ///
    /// # Errors
    /// As there.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder().connect(url).await
    }

    /// To say more than the URL.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder::default()
    }

    /// The statements that make a table, for those who do not let a service do it.
    ///
    /// # Errors
    /// For a name that [`PostgresBuilder::table`] does not take.
    pub fn schema(table: &str) -> Result<String, StoreError> {
        check_name(table)?;
        Ok(statements::schema(table))
    }

    /// Records and reply bytes in the table, as far as this replica knows.
    pub fn totals(&self) -> (usize, usize) {
        self.0.totals.now()
    }
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PostgresStore")
            .field(&self.0.connector.table)
            .finish()
    }
}

impl std::fmt::Debug for PostgresBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresBuilder")
            .field("table", &self.table)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

fn check_name(table: &str) -> Result<(), StoreError> {
    let is_good = table.len() <= 40
        && table.starts_with(|c: char| c.is_ascii_lowercase())
        && table
            .bytes()
            .all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    match is_good {
        true => Ok(()),
        false => Err(StoreError::new(format!("{table:?} is no name for a table"))),
    }
}

/// Makes the table, once, however many replicas start at once.
async fn make_table(connector: &Connector) -> Result<(), StoreError> {
    let (client, _driver) = connector.connect(|_| {}).await?;
    let table = &connector.table;
    connector.set_up(&client).await?;
    let version = "select obj_description(to_regclass($1), 'pg_class')
        where to_regclass($1) is not null";
    let found = client.query_opt(version, &[table]).await.map_err(failed)?;
    let Some(row) = found else {
        // One implicit transaction: whoever comes second waits for the first to commit.
        let lock = Fingerprint::of_bytes(table.as_bytes());
        let lock = i64::from_le_bytes(*lock.to_bytes().first_chunk().unwrap_or(&[0; 8]));
        let schema = statements::schema(table);
        let make = format!("select pg_advisory_xact_lock({lock}); {schema}");
        return client.batch_execute(&make).await.map_err(failed);
    };
    match row.try_get::<_, Option<&str>>(0).map_err(failed)? {
        Some(statements::VERSION) => Ok(()),
        _ => Err(StoreError::new(format!(
            "the table {table} is not one of {:?}",
            statements::VERSION
        ))),
    }
}

impl Inner {
    /// The time that a test has set.
    fn set_time(&self) -> Option<i64> {
        self.common.set_time().map(milliseconds)
    }

    async fn count(&self) -> Result<(), StoreError> {
        let until = self.common.until();
        let connection = self.shared.get(&self.connector, until).await?;
        let begun = Instant::now();
        let (client, statements) = (&connection.client, &connection.statements);
        let count = client.query_one(&statements.count, &[]);
        let row = connection.answer(until, count).await?;
        let record_cost = self.totals.record_cost();
        let shares = async {
            let limits: [&(dyn ToSql + Sync); 2] = [&record_cost, &SHARES_COUNTED];
            client.query(&statements.shares, &limits).await
        };
        let shares = connection.answer(until, shares).await?;
        let shares = shares.iter().map(|row| {
            let scope: Vec<u8> = row.try_get(0).map_err(failed)?;
            Ok::<_, StoreError>((scope, row.try_get(1).map_err(failed)?))
        });
        let shares = shares.collect::<Result<_, _>>()?;
        let (records, reply_bytes) = counts(&row)?;
        let took = begun.elapsed();
        self.totals.counted(records, reply_bytes, shares, took);
        Ok(())
    }

    /// Forgets what is over.
    async fn forget(&self, max: usize) -> Result<usize, StoreError> {
        let until = self.common.until();
        let connection = self.shared.get(&self.connector, until).await?;
        let (now, max) = (self.set_time(), i64::try_from(max).unwrap_or(i64::MAX));
        let forget = async {
            let statement = &connection.statements.expire;
            connection.client.query_one(statement, &[&now, &max]).await
        };
        let row = connection.answer(until, forget).await?;
        let (records, reply_bytes) = counts(&row)?;
        self.totals.forgot(None, records, reply_bytes);
        Ok(records as usize)
    }

    /// Forgets the oldest outcomes of a scope.
    async fn forget_oldest(
        &self,
        scope: &Key,
        max: usize,
        retention: Duration,
    ) -> Result<usize, StoreError> {
        let until = self.common.until();
        let connection = self.shared.get(&self.connector, until).await?;
        let (now, max) = (self.set_time(), i64::try_from(max).unwrap_or(i64::MAX));
        let (scope, id_begins) = scope.scope_and_id();
        let mark = statements::mark(scope);
        let forget = async {
            let parameters: [&(dyn ToSql + Sync); 6] = [
                &now,
                &max,
                &scope,
                &(id_begins as i32),
                &statements::duration(retention),
                &mark,
            ];
            let statement = &connection.statements.forget_oldest;
            connection.client.query_one(statement, &parameters).await
        };
        let row = connection.answer(until, forget).await?;
        let (records, reply_bytes) = counts(&row)?;
        let retained: i64 = row.try_get(2).map_err(failed)?;
        self.totals.forgot(Some(scope), records, reply_bytes);
        if records > 0 {
            let retained = Duration::from_millis(retained.max(0).cast_unsigned());
            let key = Key::from_bytes(scope);
            self.pressure.forgot(&key, records as usize, retained);
        }
        Ok(records as usize)
    }

    /// Makes room for one record, if it may.
    async fn has_room(&self, asking: &Key, retention: Duration) -> Result<bool, StoreError> {
        while let Some(excess) = self.totals.excess() {
            let largest = match self.totals.bounds.when_full {
                WhenFull::Refuse => None,
                WhenFull::ForgetOldest => self.totals.largest(),
            };
            let Some(largest) = largest else {
                return Ok(false);
            };
            // Some more at once, so that not every request waits for this.
            let spare = self.totals.bounds.records_max / SPARE_PARTS;
            let max = excess.saturating_add(spare).min(FORGOTTEN_AT_ONCE);
            let scope = Key::from_bytes(&largest);
            if self.forget_oldest(&scope, max, retention).await? == 0 {
                // Who has most, and nothing to give, is refused; others are not to make room for it.
                if asking.scope_and_id().0 == &largest[..] {
                    return Ok(false);
                }
                self.totals.pass_over(&largest);
            }
        }
        Ok(true)
    }

    /// Extends leases. Returns the owners and numbers of those attempts whose leases are.
    async fn renew(
        &self,
        attempts: &[(Key, Epoch)],
        lease: Duration,
    ) -> Result<HashSet<(i64, i64)>, StoreError> {
        let until = self.common.until();
        let connection = self.shared.get(&self.connector, until).await?;
        let set_time = self.set_time();
        let now = set_time.unwrap_or_else(|| connection.clock.now());
        let not_after = now.saturating_add(statements::duration(self.connector.operation_timeout));
        let keys: Vec<&[u8]> = attempts.iter().map(|(key, _)| key.as_bytes()).collect();
        let epochs = || attempts.iter().map(|(_, epoch)| epoch);
        let owners: Vec<i64> = epochs().map(|epoch| epoch.owner.cast_signed()).collect();
        let numbers: Vec<i64> = epochs().map(|epoch| epoch.number.cast_signed()).collect();
        let renew = async {
            let parameters: [&(dyn ToSql + Sync); 6] = [
                &set_time,
                &keys,
                &owners,
                &numbers,
                &statements::duration(lease),
                &not_after,
            ];
            let statement = &connection.statements.renew;
            connection.client.query(statement, &parameters).await
        };
        let rows = connection.answer(until, renew).await?;
        rows.iter().map(counts).collect()
    }
}

fn counts(row: &Row) -> Result<(i64, i64), StoreError> {
    let count = |index| row.try_get::<_, i64>(index).map_err(failed);
    Ok((count(0)?, count(1)?))
}

impl Store for PostgresStore {
    type Transaction = PostgresTransaction;

    const TRANSACTIONS: bool = true;
    const SHARED: bool = true;
    const RENEWED_AT_ONCE: usize = 256;

    async fn renew(
        &self,
        attempts: &[(Key, Epoch)],
        lease: Duration,
    ) -> Vec<Result<Verdict, StoreError>> {
        let renewed = match self.0.renew(attempts, lease).await {
            Ok(renewed) => renewed,
            Err(error) => return attempts.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut verdicts = Vec::with_capacity(attempts.len());
        for (key, epoch) in attempts {
            let of = (epoch.owner.cast_signed(), epoch.number.cast_signed());
            let verdict = match renewed.contains(&of) {
                true => Ok(Verdict::Applied),
                // By itself, to hear why not.
                false => {
                    let epoch = *epoch;
                    self.apply(key, Change::Renew { epoch, lease }).await
                }
            };
            verdicts.push(verdict);
        }
        verdicts
    }

    fn usage(&self) -> Usage {
        self.0.pressure.usage()
    }

    async fn apply(&self, key: &Key, change: Change) -> Result<Verdict, StoreError> {
        let operation = Operation {
            inner: &self.0,
            until: self.0.common.until(),
        };
        compare::apply(&operation, key, change).await
    }

    async fn watch(&self, key: &Key) -> Result<(), StoreError> {
        self.0.watch(key).await
    }

    async fn expire(&self, max: usize) -> Result<usize, StoreError> {
        let forget = |at_once| self.0.forget(at_once);
        let forgotten = forget_in_steps(max, forget).await?;
        if self.0.totals.is_count_due() {
            self.0.count().await?;
        }
        Ok(forgotten)
    }

    async fn in_doubt(&self, max: usize) -> Result<Vec<Key>, StoreError> {
        let until = self.0.common.until();
        let connection = self.0.shared.get(&self.0.connector, until).await?;
        let (now, max) = (self.0.set_time(), i64::try_from(max).unwrap_or(i64::MAX));
        let in_doubt = async {
            let statement = &connection.statements.in_doubt;
            connection.client.query(statement, &[&now, &max]).await
        };
        let rows = connection.answer(until, in_doubt).await?;
        rows.iter()
            .map(|row| Ok(Key::from_bytes(row.try_get(0).map_err(failed)?)))
            .collect()
    }

    fn transaction(&self, claimed: Claimed) -> Option<PostgresTransaction> {
        Some(PostgresTransaction::new(Arc::downgrade(&self.0), claimed))
    }

    fn committed(transaction: &PostgresTransaction) -> Option<RawReply> {
        transaction.committed()
    }
}
