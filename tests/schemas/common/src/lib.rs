//! Types that services of other crates have in common.

#![deny(
    warnings,
    elided_lifetimes_in_paths,
    missing_copy_implementations,
    missing_debug_implementations,
    missing_docs,
    single_use_lifetimes,
    trivial_casts,
    trivial_numeric_casts,
    unreachable_pub,
    unused_qualifications,
    unused_results,
    clippy::nursery,
    clippy::pedantic
)]

messaging::include_schemas!();
