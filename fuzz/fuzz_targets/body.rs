//! Any bytes as a body: opened, read as a struct with text and data, copied into a plain struct.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::body(bytes));
