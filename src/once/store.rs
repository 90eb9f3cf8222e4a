//! Where records are kept: what a store has to do, and nothing about how.

use std::time::Duration;

use tokio::time::Instant;

use super::{Change, Epoch, Key, Now, Timestamp, Verdict};
use crate::call::RawReply;

/// Keeps records.
///
/// A store does one thing: it applies [`step`](super::step) to the record of a key *atomically*, by its own
/// clock, and says what that said. Of two that begin at once, over all processes which share the
/// store, exactly one is told [`Verdict::Run`]. A store that cannot compare and set cannot promise
/// that, and must not implement this trait.
///
/// What [`apply`](Self::apply) has said is as safe as the store says of itself before it returns. Dropping its
/// future may or may not leave the change applied; asking again with the same epoch is always safe.
pub trait Store: Send + Sync + 'static {
    /// What a handler of an `$atomic` method commits its own writes with, together with its
    /// outcome. [`NoTransaction`] for a store that has none.
    type Transaction: Send + Sync + 'static;

    /// Applies one change to the record of one key.
    ///
    /// At the store's bounds, a [`Change::Begin`] of a key that is not there is [`Verdict::Full`].
    fn apply(
        &self,
        key: &Key,
        change: Change,
    ) -> impl Future<Output = Result<Verdict, StoreError>> + Send;

    /// The same, where it needs no waiting: the way of a store that answers at once, without a future.
    fn apply_now(&self, key: &Key, change: Change) -> AtOnce {
        let _ = key;
        AtOnce::NotApplied(change)
    }

    /// Returns soon after the record of `key` is no longer in flight, and at once if it is not.
    /// It may return early; whoever waits looks again. Dropping the future is always safe.
    fn watch(&self, key: &Key) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets up to `max` records whose time is over. Returns how many it forgot.
    fn expire(&self, max: usize) -> impl Future<Output = Result<usize, StoreError>> + Send;

    /// Up to `max` keys that are in doubt, for someone to resolve.
    fn in_doubt(&self, max: usize) -> impl Future<Output = Result<Vec<Key>, StoreError>> + Send;

    /// Extends the leases of attempts. Returns the verdict of each, as [`Change::Renew`] has it.
    ///
    /// The default asks for one after the other.
    fn renew(
        &self,
        attempts: &[(Key, Epoch)],
        lease: Duration,
    ) -> impl Future<Output = Vec<Result<Verdict, StoreError>>> + Send {
        async move {
            let mut verdicts = Vec::with_capacity(attempts.len());
            for (key, epoch) in attempts {
                let epoch = *epoch;
                verdicts.push(self.apply(key, Change::Renew { epoch, lease }).await);
            }
            verdicts
        }
    }

    /// What it has forgotten before its time because it was full. Default: nothing.
    fn usage(&self) -> Usage {
        Usage::default()
    }

    /// A transaction for the attempt that has `claimed`; `None` where the store has none.
    fn transaction(&self, claimed: Claimed) -> Option<Self::Transaction> {
        let _ = claimed;
        None
    }

    /// The reply that was committed with this transaction, which need not be recorded again.
    fn committed(transaction: &Self::Transaction) -> Option<RawReply> {
        let _ = transaction;
        None
    }

    /// Whether it hands out transactions.
    const TRANSACTIONS: bool = false;

    /// Whether other processes may have the same records. Then the epochs of attempts are drawn anew for each, so that
    /// a process which is forked, or runs on in two copies of one machine, has none twice.
    const SHARED: bool = false;

    /// Attempts whose leases [`renew`](Self::renew) extends at once.
    const RENEWED_AT_ONCE: usize = 1;
}

/// What a store did without waiting.
#[derive(Debug)]
pub enum AtOnce {
    /// It applied the change.
    Applied(Verdict),
    /// It would have to wait, or failed: nothing is changed, and here is the change again.
    NotApplied(Change),
}

/// Which attempt a transaction commits the outcome of.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// What it is recorded under.
    pub key: Key,
    /// The attempt.
    pub epoch: super::Epoch,
    /// How long the outcome is kept.
    pub retention: Duration,
    /// Bytes of reply that are kept.
    pub reply_bytes_max: usize,
}

/// The transaction of a store that has none. There is no value of it.
#[derive(Clone, Copy, Debug)]
pub enum NoTransaction {}

/// A store did not do what it was asked, or it is not known whether it did.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store of outcomes failed: {reason}")]
pub struct StoreError {
    /// What it said.
    pub reason: String,
    not_applied: bool,
}

impl StoreError {
    /// With what the store said. It may have done what it was asked, or do it later.
    pub fn new(reason: impl ToString) -> Self {
        Self {
            reason: reason.to_string(),
            not_applied: false,
        }
    }

    /// The request has not reached the store, and never will: the connection was refused, for example.
    pub fn not_applied(reason: impl ToString) -> Self {
        Self {
            reason: reason.to_string(),
            not_applied: true,
        }
    }

    /// Whether the store certainly did not do what it was asked.
    pub fn is_not_applied(&self) -> bool {
        self.not_applied
    }
}

/// What a store had to do because it was full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Outcomes that were forgotten before their time.
    pub forgotten_early: u64,
    /// How long the one of these that was forgotten last had been kept: the real retention, as long as the store is
    /// full. `None` if none was.
    pub retained: Option<Duration>,
    /// The same by principal, of those that lost any.
    pub principals: Vec<PrincipalUsage>,
}

/// What a full store cost one principal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrincipalUsage {
    /// Its name, `anonymous` where callers have no keys; or the name of the work, for [`Once::run`](super::Once::run).
    /// `None` for all those together that are too many to be counted by name.
    pub principal: Option<String>,
    /// Outcomes that were forgotten before their time.
    pub forgotten_early: u64,
    /// Requests that were refused.
    pub refused: u64,
}

/// How much a store keeps, and what it does when it is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// Records. Default: 1,000,000.
    pub records_max: usize,
    /// Bytes of stored replies. What runs when the bound is reached still records its reply.
    /// Default: 256 MiB.
    pub reply_bytes_max: usize,
    /// What happens at the bound. Default: [`WhenFull::ForgetOldest`].
    pub when_full: WhenFull,
}

/// What a full store does with a new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Refuses it: [`Reason::StoreFull`](crate::Reason::StoreFull), not done. Every outcome is kept for its time, and a
    /// service that records more than fits into it stops.
    Refuse,
    /// Forgets outcomes before their time, the oldest first, of the principal that has most. What runs or is in doubt is
    /// never forgotten; where there is nothing else, the new key is refused.
    ///
    /// A retry of a forgotten call is not run again where its ID says when it was made, as the UUIDv7 of every call
    /// does: it is told [`KeyExpired`](crate::Reason::KeyExpired), outcome unknown. A caller's own key says nothing of
    /// the kind, and its retry would run again.
    ForgetOldest,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            records_max: 1_000_000,
            reply_bytes_max: 256 << 20,
            when_full: WhenFull::ForgetOldest,
        }
    }
}

impl Bounds {
    /// Sets [`records_max`](Self::records_max).
    pub fn with_records_max(mut self, records: usize) -> Self {
        self.records_max = records;
        self
    }

    /// Sets [`reply_bytes_max`](Self::reply_bytes_max).
    pub fn with_reply_bytes_max(mut self, bytes: usize) -> Self {
        self.reply_bytes_max = bytes;
        self
    }

    /// Sets [`when_full`](Self::when_full).
    pub fn with_when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }
}

/// What a store on a server asks of that server before it trusts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// That what it has confirmed is on its disk. A server that is set otherwise is refused.
    #[default]
    RequireFsync,
    /// Nothing: what it forgets in a crash is run again. A server that may do so is warned of.
    AcceptLoss,
}

/// What time a store has.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// This machine's; for a store on a server, the server's.
    #[default]
    System,
    /// What somebody sets it to, for tests: milliseconds since 1970.
    Manual(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    /// The time now.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Manual(milliseconds) => {
                let milliseconds = milliseconds.load(std::sync::atomic::Ordering::Relaxed);
                Timestamp::from_milliseconds(milliseconds)
            }
        }
    }
}

/// The clocks of a store in this process: the time of day, and one for leases that nobody sets.
///
/// The second counts from the time of day at which the store was made, so that both look alike in a record. On Linux it
/// stands still while the machine sleeps: whatever ran then goes on, with its lease.
#[derive(Debug)]
pub(super) struct SteadyClock {
    clock: Clock,
    begun: (Timestamp, Instant),
}

impl SteadyClock {
    pub fn new(clock: Clock) -> Self {
        let begun = (Timestamp::now(), Instant::now());
        Self { clock, begun }
    }

    /// The time of day.
    pub fn wall(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn now(&self) -> Now {
        let wall = self.wall();
        let steady = match self.clock {
            Clock::System => self.begun.0 + self.begun.1.elapsed(),
            Clock::Manual(_) => wall,
        };
        Now { wall, steady }
    }
}

impl Default for SteadyClock {
    fn default() -> Self {
        Self::new(Clock::default())
    }
}
