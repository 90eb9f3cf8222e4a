//! Any bytes as events in one part of a message: a topic, and events that lie behind it, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::events(bytes));
