//! A service that counts, on a store of outcomes, for tests that kill it.
//!
//! Two counters, so that a count which is off can be told from one that was never made: `add` appends to a file of
//! its own, `addTogether` counts in the store's database, in the transaction of its outcome.

bowline::include_schemas!();

use std::io::Write;
use std::path::{Path, PathBuf};

use bowline::once::RedbTransaction;
use bowline::{Failure, Reply, Request, Status};
use counter::{
    AddAgainParams, AddAgainResults, AddParams, AddResults, AddTogetherParams, AddTogetherResults,
    Counter, Ledger, Refused,
};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};

/// Totals by account, kept by `addTogether`.
pub const TOTALS: TableDefinition<'_, &str, i64> = TableDefinition::new("totals");

/// Where a victim stops, says so, and waits to be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The request has arrived, and nothing was done with it.
    Received,
    /// The claim is on disk.
    Claimed,
    /// The effect is half way: written to the file, or not yet handed to the transaction.
    Running,
    /// The outcome is on disk.
    Recorded,
    /// The reply is ready to be sent.
    BeforeReply,
    /// The reply was sent.
    AfterReply,
}

impl Point {
    /// All, in the order in which a request meets them.
    pub const ALL: [Self; 6] = [
        Self::Received,
        Self::Claimed,
        Self::Running,
        Self::Recorded,
        Self::BeforeReply,
        Self::AfterReply,
    ];
}

/// Stops at one point, if any.
#[derive(Clone, Copy, Debug)]
pub struct Stop(pub Option<Point>);

impl Stop {
    /// Stops for ever if this is the point.
    pub async fn at(self, point: Point) {
        if self.0 == Some(point) {
            println!("AT {point:?}");
            std::future::pending::<()>().await;
        }
    }
}

/// Counts.
#[derive(Clone, Debug)]
pub struct Counts {
    /// One line for each time that `add` was done.
    pub file: PathBuf,
    /// The table of `addTogether`, where the store is PostgreSQL.
    pub table: String,
    /// Where it stops.
    pub stop: Stop,
}

impl Counts {
    fn append(&self, account: &str) -> std::io::Result<i64> {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.file)?;
        // In one write, between which and another's nothing can come.
        file.write_all(format!("{account}\n").as_bytes())?;
        file.sync_data()?;
        count_lines(&self.file, account)
    }
}

/// How often the file says that `account` was counted.
///
/// # Errors
/// Where it cannot be read; a file that is not there has counted nothing.
pub fn count_lines(file: &Path, account: &str) -> std::io::Result<i64> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().filter(|line| *line == account).count() as i64),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// What the database says.
///
/// # Errors
/// Where it cannot be read.
pub fn total(database: &redb::Database, account: &str) -> Result<i64, redb::Error> {
    let transaction = database.begin_read()?;
    match transaction.open_table(TOTALS) {
        Ok(totals) => Ok(totals.get(account)?.map_or(0, |total| total.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

impl Counter for Counts {
    async fn add(
        &self,
        request: Request<AddParams>,
    ) -> Result<Reply<AddResults>, Failure<Refused>> {
        let params = request.plain()?;
        if params.by < 0 {
            let reason = "counts only go up".to_owned();
            return Err(Refused { reason }.into());
        }
        let total = self.append(&params.account).map_err(Status::from_store)?;
        self.stop.at(Point::Running).await;
        Ok(AddResults { total }.into())
    }

    async fn add_again(
        &self,
        request: Request<AddAgainParams>,
    ) -> Result<Reply<AddAgainResults>, Status> {
        let account = request.plain()?.account;
        let total = self.append(&account).map_err(Status::from_store)?;
        self.stop.at(Point::Running).await;
        Ok(AddAgainResults { total }.into())
    }
}

impl Ledger for Counts {
    async fn add_together(
        &self,
        request: Request<AddTogetherParams>,
    ) -> Result<Reply<AddTogetherResults>, Status> {
        #[cfg(feature = "postgres")]
        if request
            .transaction::<bowline::once::PostgresTransaction>()
            .is_ok()
        {
            return postgres::add_together(self, request).await;
        }
        let AddTogetherParams { account, by } = request.plain()?;
        let transaction = request.transaction::<RedbTransaction>()?;
        self.stop.at(Point::Running).await;
        let reply = transaction
            .commit(move |writes| -> Result<_, Status> {
                if by < 0 {
                    return Err(Status::invalid_argument("counts only go up"));
                }
                let mut totals = writes.open_table(TOTALS).map_err(Status::from_store)?;
                let before = totals.get(&*account).map_err(Status::from_store)?;
                let total = before.map_or(0, |total| total.value()) + by;
                totals
                    .insert(&*account, total)
                    .map_err(Status::from_store)?;
                Ok(AddTogetherResults { total })
            })
            .await?;
        self.stop.at(Point::Recorded).await;
        Ok(reply)
    }
}

/// The same, in PostgreSQL.
#[cfg(feature = "postgres")]
pub mod postgres {
    use super::*;
    use bowline::once::PostgresTransaction;
    use tokio_postgres::{Client, Error, NoTls};

    /// Connects, and makes the table if it is not there.
    ///
    /// # Errors
    /// Where the database is away.
    pub async fn connect(url: &str, table: &str) -> Result<Client, Error> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let make = format!(
            "create table if not exists {table} (account text primary key, total bigint not null)"
        );
        client.batch_execute(&make).await?;
        Ok(client)
    }

    /// What the table says.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn total(client: &Client, table: &str, account: &str) -> Result<i64, Error> {
        let select = format!("select total from {table} where account = $1");
        let row = client.query_opt(&select, &[&account]).await?;
        row.map_or(Ok(0), |row| row.try_get(0))
    }

    pub(super) async fn add_together(
        counts: &Counts,
        request: Request<AddTogetherParams>,
    ) -> Result<Reply<AddTogetherResults>, Status> {
        let AddTogetherParams { account, by } = request.plain()?;
        let transaction = request.transaction::<PostgresTransaction>()?;
        let Counts { table, stop, .. } = counts;
        let add = format!(
            "insert into {table} values ($1, $2)
             on conflict (account) do update set total = {table}.total + $2 returning total"
        );
        let reply = transaction
            .commit(async |writes| -> Result<_, Status> {
                let row = writes.query_one(&add, &[&account, &by]).await;
                let total = row.map_err(Status::from_store)?.get(0);
                stop.at(Point::Running).await;
                Ok(AddTogetherResults { total })
            })
            .await?;
        stop.at(Point::Recorded).await;
        Ok(reply)
    }
}
