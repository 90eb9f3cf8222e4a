//! What the soak's processes share: the schema, and how a process measures itself.
//!
//! `tests/soak.rs` runs a shop (`src/bin/shop.rs`) and workers (`src/bin/worker.rs`) for [`SECONDS_DEFAULT`] seconds, or
//! for as many as `BOWLINE_SOAK_SECONDS` says. Growth is judged from [`SECONDS_JUDGED`] on: before, caches and retention
//! times still fill.

bowline::include_schemas!();

pub mod measure;

/// Length of the run that `cargo test` makes: it shows that the counts add up.
pub const SECONDS_DEFAULT: u64 = 10;
/// Shortest run in which growth of memory, descriptors, tasks and disk is judged.
pub const SECONDS_JUDGED: u64 = 240;

/// How long the shop keeps outcomes and job IDs, so that retention is reached early in a run.
pub const RETENTION: std::time::Duration = std::time::Duration::from_secs(30);
