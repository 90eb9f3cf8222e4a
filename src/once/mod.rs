//! Request IDs and stored outcomes: what is sent twice is done once.
//!
//! A method with `$once` in its schema has at most one recorded outcome for each (principal, service,
//! method, request ID). This module decides and records that. It does not send anything again: that
//! is the caller's, or [`resilience`](crate::resilience)'s.
//!
//! # What is promised
//!
//! Within the retention time (24 h from completion), the effect happens at most once per request ID
//! *if it commits together with the record* (`$atomic`, on a store with transactions). Otherwise it
//! happens at most once as long as no process dies between the work and its record; after such a
//! death a retry is told that the outcome is unknown, or runs the work again where the schema says
//! `$rerun`. Whoever is told an outcome is told the same one. A store that is full keeps outcomes for a shorter time, says
//! for how long, and refuses later retries of calls with generated IDs: see [`WhenFull::ForgetOldest`].
//!
//! | store | one winner among | survives | `$atomic` |
//! |---|---|---|---|
//! | [`MemoryStore`] | the callers of one process | lost, repeated, reordered messages | no |
//! | `RedbStore` (feature `durable`) | the callers of one process | the same, and its death | yes |
//! | `PostgresStore` (feature `postgres`) | all replicas | the same, and the database's restart | yes |
//! | `RedisStore` (feature `redis`) | all replicas | the same, and what the server is set to survive | no |
//!
//! # What a caller is told
//!
//! | [`Reason`](crate::Reason) | it means | do |
//! |---|---|---|
//! | `KeyReused` | the ID was used with other parameters | correct the program |
//! | `KeyExpired` | the ID is older than outcomes are kept, or than a full store keeps them | look for yourself |
//! | `InProgress` | the first attempt runs | come back later |
//! | `InDoubt` | begun, and nobody knows | have it [resolved](Once::resolve) |
//! | `ReplyNotRetained` | done; the reply was too large to keep | read it another way |
//! | `KeyUnknown` | nothing recorded, nothing runs | send it |
//! | `StoreFull` | the store has no room for this caller | more room, see [`Bounds`] |
//! | `StoreUnavailable` | not begun; or run, and not recorded: see [`Work`](crate::Work) | retry |
//!
//! # The rooms
//!
//! `record` is what is stored and how it changes, `attempt` what a server does with one request:
//! state machines both. `driver` drives them with tokio; `memory` and the other stores apply them, those on a
//! server by `compare`, with what they share in `remote`.

mod attempt;
mod builder;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod compare;
mod driver;
#[cfg(any(feature = "durable", feature = "postgres", feature = "redis", fuzzing))]
mod encoding;
#[cfg(any(feature = "postgres", feature = "redis", fuzzing))]
mod fields;
mod fingerprint;
mod key;
mod layer;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
mod pressure;
mod record;
#[cfg(feature = "durable")]
mod redb;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod remote;
mod store;
#[cfg(test)]
mod tests;
mod waiters;
mod work;

#[cfg(feature = "postgres")]
pub use self::postgres::{PostgresBuilder, PostgresStore, PostgresTransaction, PostgresWrites};
#[cfg(feature = "durable")]
pub use self::redb::{RedbStore, RedbTransaction};
#[cfg(feature = "redis")]
pub use self::redis::{RedisBuilder, RedisStore};
pub use attempt::{Duplicates, Terms};
pub use builder::{OnceBuilder, OnceCounters, OnceError};
pub use driver::{Once, Resolver};
pub use fingerprint::Fingerprint;
pub use key::Key;
pub use layer::OnceService;
pub use memory::MemoryStore;
pub use record::{
    Age, Change, Claim, Epoch, Now, Record, Recorded, Resolution, State, Timestamp, Verdict, Write,
    step,
};
pub use store::{
    AtOnce, Bounds, Claimed, Clock, Durability, NoTransaction, PrincipalUsage, Store, StoreError,
    Usage, WhenFull,
};
pub use work::{Keep, Task};

pub(crate) use layer::Keeper;

/// For [`__simulated`](crate::__simulated).
pub(crate) mod simulated {
    pub use super::attempt::{Action, Attempt, Ended, Input};
    #[cfg(feature = "durable")]
    pub use super::redb::{CommitWork, Done, Engine, Operation};
}

/// For fuzzing: any bytes as what a shared store gives back.
#[cfg(fuzzing)]
pub(crate) fn read_any(bytes: &[u8]) {
    fields::read_any(bytes);
}
