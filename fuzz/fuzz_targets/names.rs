//! Any text as an endpoint, a public key and a topic; what is printed reads back.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::names(bytes));
