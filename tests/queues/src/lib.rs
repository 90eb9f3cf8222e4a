//! One suite over every engine, and what its tests need.
//!
//! An engine has a file in `tests/` that implements [`Setup`](suite::Setup) and calls
//! [`conformance!`](crate::conformance).

bowline::include_schemas!();

pub mod suite;
