//! The stores under test, each with records of its own for each test.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bowline::call::{Outcome, RawReply};
use bowline::once::{
    Age, Bounds, Change, Claim, Clock, Epoch, Fingerprint, Key, MemoryStore, Recorded, RedbStore,
    Store, Timestamp, Verdict,
};
use bowline::schema::Recovery;
use bowline::{Metadata, RequestKey};
use bytes::Bytes;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(24 * 3600);
pub const LEASE: Duration = Duration::from_secs(30);

/// Tests that freeze a server have all of them alone.
static SERVERS: RwLock<()> = RwLock::const_new(());

pub async fn undisturbed() -> RwLockReadGuard<'static, ()> {
    SERVERS.read().await
}

/// For those, and for measurements.
pub async fn alone() -> RwLockWriteGuard<'static, ()> {
    SERVERS.write().await
}

/// Records, and the stores that share them.
pub trait Records: Sized + Send + Sync + 'static {
    type Store: Store + Clone;

    /// Records that nobody has used.
    fn new(bounds: Bounds, clock: Clock) -> impl Future<Output = Self> + Send;

    /// Another store over them: a replica, where the store is one that replicas share.
    fn store(&self) -> impl Future<Output = Self::Store> + Send;
}

pub struct Memory(MemoryStore);

impl Records for Memory {
    type Store = MemoryStore;

    async fn new(bounds: Bounds, clock: Clock) -> Self {
        Self(MemoryStore::with_clock(bounds, clock))
    }

    async fn store(&self) -> MemoryStore {
        self.0.clone()
    }
}

pub struct Redb {
    store: RedbStore,
    _folder: tempfile::TempDir,
}

impl Records for Redb {
    type Store = RedbStore;

    async fn new(bounds: Bounds, clock: Clock) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("outcomes");
        let database = redb::Database::create(file).expect("a database");
        let store = RedbStore::with_clock(Arc::new(database), bounds, clock).expect("opened");
        Self {
            store,
            _folder: folder,
        }
    }

    async fn store(&self) -> RedbStore {
        self.store.clone()
    }
}

#[cfg(any(feature = "postgres", feature = "redis"))]
pub use servers::*;

#[cfg(any(feature = "postgres", feature = "redis"))]
mod servers {
    use super::*;
    /// Has `tests/once/servers` do something to a server.
    pub async fn do_to(server: &'static str, what: &'static str) {
        have(&[what, server]).await;
    }

    /// Has `tests/once/servers` do something. Returns what it says.
    pub async fn have(arguments: &[&str]) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers");
        let mut command = tokio::process::Command::new(script);
        let done = command.args(arguments).output().await.expect("it runs");
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{arguments:?}: {error}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    pub fn url(variable: &str) -> String {
        std::env::var(variable).unwrap_or_else(|_| {
            panic!("{variable} is not set: run this beneath tests/once/servers")
        })
    }

    /// A name that no other test uses, in this run or another beside it.
    pub fn fresh_name() -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        format!("test_{}_{count}", std::process::id())
    }

    /// Records on a server that can be taken away.
    pub trait OnServer: Records {
        const SERVER: &'static str;
        const OPERATION_TIMEOUT: Duration;
    }
}

#[cfg(feature = "postgres")]
pub struct Postgres {
    pub table: String,
    bounds: Bounds,
    clock: Clock,
}

#[cfg(feature = "postgres")]
impl Postgres {
    pub fn builder(&self) -> bowline::once::PostgresBuilder {
        bowline::once::PostgresStore::builder()
            .table(&self.table)
            .operation_timeout(Self::OPERATION_TIMEOUT)
            .bounds(self.bounds)
            .count_interval(Duration::ZERO)
            .clock(self.clock.clone())
    }
}

#[cfg(feature = "postgres")]
impl OnServer for Postgres {
    const SERVER: &'static str = "postgres";
    const OPERATION_TIMEOUT: Duration = Duration::from_secs(3);
}

#[cfg(feature = "postgres")]
impl Records for Postgres {
    type Store = bowline::once::PostgresStore;

    async fn new(bounds: Bounds, clock: Clock) -> Self {
        Self {
            table: fresh_name(),
            bounds,
            clock,
        }
    }

    async fn store(&self) -> Self::Store {
        let store = self.builder().connect(&url("BOWLINE_POSTGRES")).await;
        store.expect("connected")
    }
}

#[cfg(feature = "redis")]
pub struct Redis {
    pub prefix: String,
    bounds: Bounds,
    clock: Clock,
}

#[cfg(feature = "redis")]
impl Redis {
    pub fn builder(&self) -> bowline::once::RedisBuilder {
        bowline::once::RedisStore::builder()
            .prefix(&self.prefix)
            .operation_timeout(Self::OPERATION_TIMEOUT)
            .bounds(self.bounds)
            .clock(self.clock.clone())
    }
}

#[cfg(feature = "redis")]
impl OnServer for Redis {
    const SERVER: &'static str = "redis";
    const OPERATION_TIMEOUT: Duration = Duration::from_secs(3);
}

#[cfg(feature = "redis")]
impl Records for Redis {
    type Store = bowline::once::RedisStore;

    async fn new(bounds: Bounds, clock: Clock) -> Self {
        Self {
            prefix: fresh_name(),
            bounds,
            clock,
        }
    }

    async fn store(&self) -> Self::Store {
        let durability = bowline::once::Durability::RequireFsync;
        let url = url("BOWLINE_REDIS");
        let store = self.builder().connect(&url, durability).await;
        store.expect("connected")
    }
}

/// The same test over every store that replicas share.
#[cfg(any(feature = "postgres", feature = "redis"))]
macro_rules! over_shared_stores {
    ($($test:ident)*) => {
        #[cfg(feature = "postgres")]
        over_all_stores!(@ postgres Postgres $($test)*);
        #[cfg(feature = "redis")]
        over_all_stores!(@ redis Redis $($test)*);
    };
}
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) use over_shared_stores;

/// The same test over every store.
macro_rules! over_all_stores {
    ($($test:ident)*) => {
        over_all_stores!(@ memory Memory $($test)*);
        over_all_stores!(@ redb Redb $($test)*);
        #[cfg(feature = "postgres")]
        over_all_stores!(@ postgres Postgres $($test)*);
        #[cfg(feature = "redis")]
        over_all_stores!(@ redis Redis $($test)*);
    };
    (@ $store:ident $records:ident $($test:ident)*) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    let _undisturbed = crate::subjects::undisturbed().await;
                    super::$test::<crate::subjects::$records>().await;
                }
            )*
        }
    };
}
pub(crate) use over_all_stores;

/// A clock that a test moves.
#[derive(Clone)]
pub struct Hands(Arc<AtomicU64>);

impl Hands {
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(Timestamp::now().milliseconds())))
    }

    pub fn clock(&self) -> Clock {
        Clock::Manual(Arc::clone(&self.0))
    }

    pub fn now(&self) -> Timestamp {
        self.clock().now()
    }

    pub fn forward(&self, time: Duration) {
        self.0.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    }
}

pub fn key(name: &str) -> Key {
    let id = RequestKey::new(name.to_owned()).expect("short");
    Key::named("stores", &id.into())
}

pub fn epoch(number: u64) -> Epoch {
    // Both beyond what a signed number holds.
    let owner = u64::MAX - 7;
    Epoch {
        owner,
        number: u64::MAX - number,
    }
}

pub fn claim(attempt: u64) -> Claim {
    Claim {
        epoch: epoch(attempt),
        fingerprint: Fingerprint::of_bytes(b"parameters"),
        recovery: Recovery::InDoubt,
        lease: LEASE,
        age: age(),
    }
}

pub fn rerun(attempt: u64) -> Claim {
    Claim {
        recovery: Recovery::Rerun,
        ..claim(attempt)
    }
}

pub fn age() -> Age {
    Age {
        created: None,
        retention: DAY,
        clock_skew_max: Duration::from_secs(300),
    }
}

pub fn reply(text: &str) -> Recorded {
    let body = Bytes::from(text.to_owned());
    Recorded::Reply {
        outcome: Outcome::Success,
        metadata: Metadata::new(),
        body,
    }
}

pub fn large(bytes: usize) -> RawReply {
    let body: Vec<u8> = (0..bytes).map(|index| (index * 31 % 251) as u8).collect();
    RawReply::new(Outcome::ApplicationError, body.into())
}

pub fn complete(attempt: u64, text: &str) -> Change {
    Change::Complete {
        epoch: epoch(attempt),
        outcome: reply(text),
        retention: DAY,
    }
}

/// Applies, where the store is there.
pub async fn apply<S: Store>(store: &S, name: &str, change: Change) -> Verdict {
    let applied = store.apply(&key(name), change).await;
    applied.expect("the store is there")
}
