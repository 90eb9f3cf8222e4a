//! Any bytes as the confirmation of a subscription: its topic, and the numbers of the last events.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bowline::fuzzing::tails(bytes));
