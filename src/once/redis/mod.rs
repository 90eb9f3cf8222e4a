//! Records in Redis, which replicas share: exactly one of them begins a request.
//!
//! One hash a record, changed by compare-and-set in a script on the server's own clock: a claim and an
//! outcome are one round trip each, over one connection. What survives the server is the server's
//! setting; it is asked for, and refused where it is less than was demanded. No transactions: an
//! effect outside Redis cannot commit with a record in it.

mod connection;

use std::sync::Arc;
use std::time::Duration;

use redis::{Script, ScriptInvocation};
use tokio::time::{Instant, timeout};

use super::compare::{self, Begun, Rows, Seen};
use super::fields::{Answer, read_answer, read_forgotten, recovery_number};
use super::pressure::Pressure;
use super::remote::{Common, forget_in_steps};
use super::waiters::Waiters;
use super::{
    Bounds, Change, Claim, Clock, Durability, Epoch, Key, NoTransaction, Record, Recorded, State,
    Store, StoreError, Timestamp, Usage, Verdict, WhenFull,
};
use connection::{Connection, Connector};

/// A message that was lost is not waited for longer.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The largest time that is kept: scripts count in floating point, exact to 2^53.
const MILLISECONDS_MAX: u64 = (1 << 52) + (1 << 51);
/// The longest duration that is added to a time.
const DURATION_MAX: u64 = 1 << 50;

/// Keeps records in a Redis server. Cheap to clone; clones share the connection.
///
/// All replicas of a service that use the same prefix are one: of two that begin a request at
/// once, one runs it. While the server is away, every operation is a [`StoreError`] in bounded time,
/// and nothing is begun; when it is back, so is the store.
///
/// Works with one Redis primary from version 6 on, not with a cluster.
///
/// ```no_run
/// use bowline::{Server, once::{Durability, Once, RedisStore}};
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RedisStore::connect("redis://cache.internal/", Durability::RequireFsync).await?;
/// let server = Server::builder().once(Once::builder().build(store)?);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedisStore(Arc<Inner>);

/// Settings of a [`RedisStore`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisBuilder {
    prefix: String,
    common: Common,
}

struct Inner {
    connector: Connector,
    script: Script,
    settings: RedisBuilder,
    waiters: Arc<Waiters>,
    pressure: Pressure,
}

impl Default for RedisBuilder {
    fn default() -> Self {
        Self {
            prefix: "bowline:once".to_owned(),
            common: Common::default(),
        }
    }
}

impl RedisBuilder {
    /// What all its keys begin with, followed by a colon. Services that share a server need one
    /// each. Default: `bowline:once`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// After this, an operation has failed. Default: 5 s.
    pub fn operation_timeout(mut self, time: Duration) -> Self {
        self.common.operation_timeout = time;
        self
    }

    /// How much is kept. Counted exactly, by all replicas together.
    pub fn bounds(mut self, bounds: Bounds) -> Self {
        self.common.bounds = bounds;
        self
    }

    /// Another clock than the server's, for tests.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.common.clock = clock;
        self
    }

    /// Connects. `url` is of the form `redis://user:password@host:port/database`.
    ///
    /// With [`Durability::RequireFsync`], a server is refused that may forget what it has confirmed:
    /// it must have `appendonly yes`, `appendfsync always`, `no-appendfsync-on-rewrite no` and
    /// `maxmemory-policy noeviction`, and allow to ask for them. It is asked whenever a connection
    /// is made.
    ///
    /// # Errors
    /// Where the server is away or not durable, or the URL is wrong.
    pub async fn connect(
        self,
        url: &str,
        durability: Durability,
    ) -> Result<RedisStore, StoreError> {
        let client = redis::Client::open(url).map_err(connection::failed)?;
        self.connect_with(client, durability).await
    }

    /// The same, with a client of the `redis` crate that the application has set up: to trust a
    /// certificate of its own, for example (`Client::build_with_tls`).
    ///
    /// # Errors
    /// Where the server is away or not durable.
    pub async fn connect_with(
        self,
        client: redis::Client,
        durability: Durability,
    ) -> Result<RedisStore, StoreError> {
        let waiters = Arc::new(Waiters::default());
        let channel = format!("{}:changed", self.prefix).into_bytes();
        let connector = Connector::new(&client, durability, channel, Arc::clone(&waiters))?;
        let store = RedisStore(Arc::new(Inner {
            connector,
            script: connection::script(),
            settings: self,
            waiters,
            pressure: Pressure::default(),
        }));
        store.0.connector.get(store.0.until()).await?;
        Ok(store)
    }
}

impl RedisStore {
    /// Connects with defaults: see [`RedisBuilder::connect`].
    ///
    /// # Errors
    /// As there.
    pub async fn connect(url: &str, durability: Durability) -> Result<Self, StoreError> {
        Self::builder().connect(url, durability).await
    }

    /// To say more than the URL.
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisStore")
            .field(&self.0.settings.prefix)
            .finish()
    }
}

impl Inner {
    fn until(&self) -> Instant {
        self.settings.common.until()
    }

    /// The time that a test has set.
    fn set_time(&self) -> Option<i64> {
        self.settings.common.set_time().map(milliseconds)
    }

    async fn forget(&self, at_once: usize) -> Result<usize, StoreError> {
        let until = self.until();
        let connection = self.connector.get(until).await?;
        let mut expire = self.prepare("expire", b"");
        expire.arg(at_once);
        let (_, count): (String, usize) = connection.run(&expire, until).await?;
        Ok(count)
    }

    /// A run of the script, up to what is special to it.
    fn prepare(&self, what: &str, key: &[u8]) -> ScriptInvocation<'_> {
        let prefix = &self.settings.prefix;
        let record = [prefix.as_bytes(), b":record:", key].concat();
        let mut run = self.script.key(record);
        run.key(format!("{prefix}:open"))
            .key(format!("{prefix}:over"))
            .key(format!("{prefix}:totals"))
            .key(format!("{prefix}:shares"))
            .arg(what)
            .arg(optional(self.set_time()))
            .arg(key)
            .arg(format!("{prefix}:changed"));
        run
    }

    async fn watch(&self, key: &Key) -> Result<(), StoreError> {
        let is_in_flight = async {
            let until = self.until();
            let connection = self.connector.get(until).await?;
            let wait = self.prepare("wait", key.as_bytes());
            let answer: Answer = connection.run(&wait, until).await?;
            Ok(is(&answer, b"done"))
        };
        // Returning early is allowed, and is the look.
        timeout(LOOK_EVERY, self.waiters.wait(key, is_in_flight))
            .await
            .unwrap_or(Ok(()))
    }
}

fn is(answer: &Answer, word: &[u8]) -> bool {
    answer.first().is_some_and(|it| it.as_deref() == Some(word))
}

fn epoch_bytes(epoch: Epoch) -> [u8; 16] {
    let together = (u128::from(epoch.owner) << 64) | u128::from(epoch.number);
    together.to_be_bytes()
}

/// The number of a state, and its time.
fn state_and_time(state: &State) -> (u8, i64) {
    match state {
        State::InFlight { until } => (0, milliseconds(*until)),
        State::InDoubt => (1, 0),
        State::Done { expires, .. } => (2, milliseconds(*expires)),
    }
}

fn milliseconds(time: Timestamp) -> i64 {
    time.milliseconds().min(MILLISECONDS_MAX) as i64
}

fn duration(duration: Duration) -> i64 {
    duration.as_millis().min(u128::from(DURATION_MAX)) as i64
}

/// A number, or nothing, which the script takes for none.
fn optional(number: Option<i64>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}

/// One operation, which is over at a time.
struct Operation<'a> {
    inner: &'a Inner,
    until: Instant,
}

impl Operation<'_> {
    async fn connection(&self) -> Result<Arc<Connection>, StoreError> {
        self.inner.connector.get(self.until).await
    }

    /// Counts what the server forgot before its time to make room.
    fn note_forgotten(&self, answer: &Answer) {
        let forgotten = read_forgotten(answer);
        if forgotten.count > 0 {
            let key = Key::from_bytes(&forgotten.scope);
            let pressure = &self.inner.pressure;
            pressure.forgot(&key, forgotten.count, forgotten.retained);
        }
    }

    fn seen(&self, connection: &Connection, answer: &Answer) -> Result<Seen, StoreError> {
        let (record, now) = read_answer(answer)?;
        let forgotten = read_forgotten(answer).until;
        let seen = Seen {
            record,
            now,
            forgotten,
        };
        if self.inner.set_time().is_none() {
            connection.clock.set(milliseconds(seen.now));
        }
        Ok(seen)
    }
}

impl Rows for Operation<'_> {
    async fn begin(&self, key: &Key, claim: &Claim) -> Result<Begun, StoreError> {
        let connection = self.connection().await?;
        let Common {
            bounds,
            operation_timeout,
            ..
        } = &self.inner.settings.common;
        let mut begin = self.inner.prepare("begin", key.as_bytes());
        // What a server that was stopped finds in its queue when it goes on, nobody waits for any more.
        let now = self
            .inner
            .set_time()
            .unwrap_or_else(|| connection.clock.now());
        begin
            .arg(&claim.fingerprint.to_bytes())
            .arg(&epoch_bytes(claim.epoch))
            .arg(recovery_number(claim.recovery, false))
            .arg(duration(claim.lease))
            .arg(now + duration(*operation_timeout))
            .arg(optional(claim.age.created.map(milliseconds)))
            .arg(duration(claim.age.retention))
            .arg(duration(claim.age.clock_skew_max))
            .arg(bounds.records_max)
            .arg(bounds.reply_bytes_max)
            .arg(u8::from(bounds.when_full == WhenFull::ForgetOldest));
        let answer: Answer = connection.run(&begin, self.until).await?;
        self.note_forgotten(&answer);
        if is(&answer, b"done") {
            Ok(Begun::Inserted)
        } else if is(&answer, b"full") {
            Ok(Begun::Full)
        } else {
            Ok(Begun::Refused(self.seen(&connection, &answer)?))
        }
    }

    async fn complete(
        &self,
        key: &Key,
        epoch: Epoch,
        outcome: &Recorded,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        let connection = self.connection().await?;
        let bounds = &self.inner.settings.common.bounds;
        let mut complete = self.inner.prepare("complete", key.as_bytes());
        complete
            .arg(&epoch_bytes(epoch))
            .arg(duration(retention))
            .arg(outcome.bytes())
            .arg(&outcome.to_bytes()[..])
            .arg(bounds.reply_bytes_max)
            .arg(u8::from(bounds.when_full == WhenFull::ForgetOldest));
        let answer: Answer = connection.run(&complete, self.until).await?;
        self.note_forgotten(&answer);
        Ok(is(&answer, b"done"))
    }

    async fn read(&self, key: &Key) -> Result<Seen, StoreError> {
        let connection = self.connection().await?;
        let read = self.inner.prepare("read", key.as_bytes());
        let answer: Answer = connection.run(&read, self.until).await?;
        self.seen(&connection, &answer)
    }

    /// Scripts run one after the other, and one that comes too late does nothing.
    async fn settle(&self, _: &Key, _: Epoch) -> Result<(), StoreError> {
        Ok(())
    }

    async fn replace(
        &self,
        key: &Key,
        old: &Record,
        new: Option<&Record>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let connection = self.connection().await?;
        let (state, until) = state_and_time(&old.state);
        let timeout = duration(self.inner.settings.common.operation_timeout);
        let mut replace = self.inner.prepare("replace", key.as_bytes());
        replace
            .arg(&epoch_bytes(old.epoch))
            .arg(state)
            .arg(until)
            .arg(milliseconds(now) + timeout);
        if let Some(new) = new {
            let (state, until) = state_and_time(&new.state);
            replace
                .arg(&new.fingerprint.to_bytes())
                .arg(&epoch_bytes(new.epoch))
                .arg(recovery_number(new.recovery, new.begun_before))
                .arg(state)
                .arg(until)
                .arg(new.bytes());
            if let State::Done { outcome, .. } = &new.state {
                replace.arg(&outcome.to_bytes()[..]);
            }
        }
        let answer: Answer = connection.run(&replace, self.until).await?;
        Ok(is(&answer, b"done"))
    }
}

impl Store for RedisStore {
    type Transaction = NoTransaction;

    const SHARED: bool = true;

    fn usage(&self) -> Usage {
        self.0.pressure.usage()
    }

    async fn apply(&self, key: &Key, change: Change) -> Result<Verdict, StoreError> {
        let operation = Operation {
            inner: &self.0,
            until: self.0.until(),
        };
        compare::apply(&operation, key, change).await
    }

    async fn watch(&self, key: &Key) -> Result<(), StoreError> {
        self.0.watch(key).await
    }

    /// Records expire by themselves; this takes them out of the count.
    async fn expire(&self, max: usize) -> Result<usize, StoreError> {
        forget_in_steps(max, |at_once| self.0.forget(at_once)).await
    }

    async fn in_doubt(&self, max: usize) -> Result<Vec<Key>, StoreError> {
        let until = self.0.until();
        let connection = self.0.connector.get(until).await?;
        let mut in_doubt = self.0.prepare("in doubt", b"");
        in_doubt.arg(max);
        let keys: Vec<Vec<u8>> = connection.run(&in_doubt, until).await?;
        Ok(keys.iter().map(|key| Key::from_bytes(key)).collect())
    }
}
