//! Any text as a list of allowed keys and as a list of rules: names, or an error that says where.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::lists(bytes));
