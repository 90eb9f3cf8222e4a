//! Any text as headers of a job in another system: read, written, and read again the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::headers(bytes));
