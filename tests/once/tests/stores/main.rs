//! What every store of outcomes must do, over every store: in memory, in redb, and with the feature
//! `postgres` on the server that `tests/once/servers` starts.
//!
//! `tests/once/servers cargo test -p bowline-test-once --features postgres`

mod alone;
mod model;
#[cfg(feature = "postgres")]
mod outage;
mod subjects;
mod together;
#[cfg(feature = "postgres")]
mod transactions;
