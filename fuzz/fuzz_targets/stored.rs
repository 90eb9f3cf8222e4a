//! Any bytes as what a store on a server gives back of a record.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::stored(bytes));
