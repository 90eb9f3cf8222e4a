//! Connections to PostgreSQL: made when they are needed, made again when they are lost, given up
//! when they do not answer. Nothing here knows what a record is.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Client, Config, Error, Socket};

use super::super::remote::{Connected, Place, Reconnect, ServerClock};
use super::super::{Durability, StoreError};
use super::statements::Statements;

/// What all connections of a store have in common.
pub struct Connector {
    pub config: Config,
    pub tls: Box<dyn Connect>,
    pub table: String,
    pub durability: Durability,
    pub operation_timeout: Duration,
    pub transaction_idle_max: Duration,
    pub reconnect: Reconnect,
}

/// Connects with or without TLS.
pub trait Connect: Send + Sync {
    fn connect<'a>(&'a self, config: &'a Config) -> Connecting<'a>;
}

pub type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<(Client, Messages), Error>> + Send + 'a>>;

/// Drives a connection, and gives what the server says unasked.
pub type Messages =
    Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<Result<AsyncMessage, Error>>> + Send>;

impl<T> Connect for T
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn connect<'a>(&'a self, config: &'a Config) -> Connecting<'a> {
        let tls = self.clone();
        Box::pin(async move {
            let (client, mut connection) = config.connect(tls).await?;
            let messages: Messages = Box::new(move |cx| connection.poll_message(cx));
            Ok((client, messages))
        })
    }
}

/// One connection, with its statements.
pub struct Connection {
    pub client: Client,
    pub statements: Statements,
    is_given_up: AtomicBool,
    pub clock: ServerClock,
    driver: Driver,
}

/// The task that drives a connection, which ends with it.
pub struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Nobody uses it again.
    pub fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
        self.driver.0.abort();
    }

    /// What the server answers, if it does so in time. A connection that does not is given up:
    /// what is asked next goes over a new one.
    pub async fn answer<T>(
        &self,
        until: Instant,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        match timeout_at(until, answer).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => {
                self.give_up();
                Err(late())
            }
        }
    }
}

impl Connected for Connection {
    fn is_usable(&self) -> bool {
        !self.is_given_up.load(Ordering::Relaxed) && !self.client.is_closed()
    }
}

impl Connector {
    /// A connection whose driver tells `heard` what the server says unasked.
    pub async fn connect(
        &self,
        heard: impl Fn(AsyncMessage) + Send + 'static,
    ) -> Result<(Client, Driver), StoreError> {
        let (client, mut messages) = self.tls.connect(&self.config).await.map_err(failed)?;
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = std::future::poll_fn(|cx| messages(cx)).await {
                heard(message);
            }
        });
        Ok((client, Driver(driver.abort_handle())))
    }

    async fn connect_and_prepare(&self) -> Result<Connection, StoreError> {
        let (client, driver) = self.connect(|_| {}).await?;
        let now = self.set_up(&client).await?;
        let statements = Statements::prepare(&client, &self.table).await;
        let statements = statements.map_err(failed)?;
        Ok(Connection {
            client,
            statements,
            is_given_up: AtomicBool::new(false),
            clock: ServerClock::new(now),
            driver,
        })
    }

    /// Sets what the statements rely on. Returns the server's time.
    pub async fn set_up(&self, client: &Client) -> Result<i64, StoreError> {
        let milliseconds = |duration: Duration| duration.as_millis().to_string();
        let synchronous = match self.durability {
            Durability::RequireFsync => "on",
            Durability::AcceptLoss => "off",
        };
        let row = client
            .query_one(
                "select current_setting('fsync') = 'on',
                    (extract(epoch from clock_timestamp()) * 1000)::bigint,
                    set_config('statement_timeout', $1, false),
                    set_config('idle_in_transaction_session_timeout', $2, false),
                    set_config('default_transaction_isolation', 'read committed', false),
                    set_config('synchronous_commit',
                        case current_setting('synchronous_commit') when 'off' then $3
                        else current_setting('synchronous_commit') end, false)",
                &[
                    &milliseconds(self.operation_timeout),
                    &milliseconds(self.transaction_idle_max),
                    &synchronous,
                ],
            )
            .await
            .map_err(failed)?;
        if !row.try_get::<_, bool>(0).map_err(failed)? {
            const LOSES: &str = "the server's fsync is off: it may forget what it has confirmed";
            match self.durability {
                Durability::RequireFsync => return Err(StoreError::new(LOSES)),
                Durability::AcceptLoss => tracing::warn!("{LOSES}"),
            }
        }
        row.try_get(1).map_err(failed)
    }
}

/// A fixed number of connections which all callers share, each with many statements on the way.
pub struct Shared {
    places: Box<[Place<Connection>]>,
    next: AtomicUsize,
}

impl Shared {
    pub fn new(connections: usize) -> Self {
        Self {
            places: (0..connections.max(1)).map(|_| Place::default()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// The next connection in turn.
    pub async fn get(
        &self,
        connector: &Connector,
        until: Instant,
    ) -> Result<Arc<Connection>, StoreError> {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.places.len();
        let place = &self.places[next];
        let connect = Box::pin(connector.connect_and_prepare());
        place.get(&connector.reconnect, until, connect).await
    }
}

/// Connections that one caller has alone at a time.
pub struct Exclusive {
    idle: std::sync::Mutex<Vec<Arc<Connection>>>,
    places: Arc<Semaphore>,
}

/// One of them. Given up where it is dropped and not put back.
pub struct Lent {
    /// Whoever else has it could have left something undone on it.
    pub connection: Arc<Connection>,
    place: Option<OwnedSemaphorePermit>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.place.is_some() {
            self.connection.give_up();
        }
    }
}

impl Exclusive {
    pub fn new(connections: usize) -> Self {
        Self {
            idle: std::sync::Mutex::default(),
            places: Arc::new(Semaphore::new(connections.max(1))),
        }
    }

    /// One that nobody has, once there is one.
    pub async fn get(&self, connector: &Connector, until: Instant) -> Result<Lent, StoreError> {
        let get = async {
            let place = Arc::clone(&self.places).acquire_owned().await;
            let place = Some(place.map_err(StoreError::new)?);
            while let Some(connection) = self.pop() {
                if connection.is_usable() {
                    return Ok(Lent { connection, place });
                }
            }
            let connect = Box::pin(connector.connect_and_prepare());
            let connection = connector.reconnect.connect(until, connect).await?;
            let connection = Arc::new(connection);
            Ok(Lent { connection, place })
        };
        timeout_at(until, get).await.unwrap_or_else(|_| Err(late()))
    }

    fn pop(&self) -> Option<Arc<Connection>> {
        let idle = self.idle.lock();
        idle.unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// It is in no transaction, and another may have it.
    pub fn put_back(&self, mut lent: Lent) {
        if Arc::strong_count(&lent.connection) == 1 {
            let place = lent.place.take();
            let idle = self.idle.lock();
            let mut idle = idle.unwrap_or_else(PoisonError::into_inner);
            idle.push(Arc::clone(&lent.connection));
            drop(place);
        }
    }
}

/// With the whole of what it says: the driver's own words are "db error".
pub fn failed(error: Error) -> StoreError {
    if let Some(said) = error.as_db_error() {
        let reason = format!("PostgreSQL: {said}");
        return match is_rolled_back(said.code().code()) {
            true => StoreError::not_applied(reason),
            false => StoreError::new(reason),
        };
    }
    let mut reason = format!("PostgreSQL: {error}");
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        reason = format!("{reason}: {error}");
        source = error.source();
    }
    StoreError::new(reason)
}

/// Whether the server has certainly done nothing of the statement or the transaction that it answers with this
/// [code](https://www.postgresql.org/docs/current/errcodes-appendix.html). Of one that is not known here, nobody knows:
/// the completion of a statement may be unknown to the server itself (40003), and one that is being shut down, or whose
/// disk fails, may have committed.
pub fn is_rolled_back(code: &str) -> bool {
    const CLASSES: [&str; 13] = [
        "0A", "21", "22", "23", "25", "26", "28", "42", "44", "53", "54", "55", "P0",
    ];
    // Lost against another transaction, twice; a deadlock; ended by its time limit or by somebody.
    const CODES: [&str; 4] = ["40001", "40002", "40P01", "57014"];
    CODES.contains(&code) || code.get(..2).is_some_and(|class| CLASSES.contains(&class))
}

pub fn late() -> StoreError {
    StoreError::new("PostgreSQL did not answer in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rolled_back_is_said_only_of_codes_that_prove_it() {
        for refused in [
            "23505", "23503", "40001", "40P01", "57014", "42501", "P0001", "53100",
        ] {
            assert!(is_rolled_back(refused), "{refused}");
        }
        for unknown in [
            "40003", "08006", "57P01", "57P02", "58030", "XX000", "99999", "4", "",
        ] {
            assert!(!is_rolled_back(unknown), "{unknown}");
        }
    }
}
