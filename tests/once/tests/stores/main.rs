//! What every store of outcomes must do, over every store: in memory, in redb, and with the features
//! `postgres` and `redis` on the servers that `tests/once/servers` starts.
//!
//! `tests/once/servers cargo test -p bowline-test-once --features postgres,redis`

mod alone;
mod disk;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod failover;
mod model;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod outage;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod replicas;
mod service;
#[cfg(feature = "redis")]
mod settings;
mod speed;
mod subjects;
#[cfg(feature = "tls")]
mod tls;
mod together;
#[cfg(feature = "postgres")]
mod transactions;
