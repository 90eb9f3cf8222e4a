//! Any bytes as a record of an outcome: what is read is written and read again.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::record(bytes));
