//! What the tests here share: a proxy that does to messages what networks do, services in processes of their own,
//! and callers who call at a rate. What is under test is in `src/bin/service.rs`, over schema/faults.capnp.
//!
//! The tests have two forms. The short one runs by default; the long one by
//! `BOWLINE_LONG=1 cargo test --release -p bowline-test-faults -- --nocapture --test-threads 1`.

bowline::include_schemas!();

pub mod load;
pub mod process;
pub mod proxy;
pub mod zmtp;

/// Whether the long form was asked for.
pub fn is_long() -> bool {
    std::env::var_os("BOWLINE_LONG").is_some()
}

/// One or the other, by the form.
pub fn by_form<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}
