//! Who gets in, and what they may do, while keys and rules change. Every kind of key against everything that it may want: `matrix.rs`.

mod common;
#[path = "common/house.rs"]
mod house;

#[path = "security/doors.rs"]
mod doors;
#[path = "security/keys.rs"]
mod keys;
#[path = "security/rules.rs"]
mod rules;
