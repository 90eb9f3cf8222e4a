//! Any bytes as each of the three headers: an error or a value, never a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::envelope(bytes));
