//! Any bytes as a message of several calls: calls that lie in them, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::compact(bytes));
