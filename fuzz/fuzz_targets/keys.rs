//! Any text as a file of keys: the secret in it, or an error that does not show it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::keys(bytes));
