//! Any bytes as a record of a queue's log, and as the content of each kind of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::log(bytes));
