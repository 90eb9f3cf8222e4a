//! Any bytes as each message about jobs that comes over the wire.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::jobs(bytes));
