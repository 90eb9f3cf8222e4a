//! Peers that mean harm, in a program of their own, and the service that they meet.
//!
//! Three programs, each its own process:
//! - `hostile`: speaks ZMTP by hand over raw TCP, and strikes in every way of [`attacks`];
//! - `besieged`: calls, a publisher and a client of another service, all Bowline's, under low limits
//!   on memory and files;
//! - `bare`: a REP of the `zeromq` crate, which must die of the same, or the test proves nothing.
//!
//! The tests start them, and meanwhile are the [`good`] client. Minutes of all attacks together:
//!
//! ```sh
//! BOWLINE_HOSTILE_SECONDS=120 cargo test --release -p bowline-test-hostile -- --nocapture
//! ```
//!
//! Nothing here uses a ZeroMQ library against the service: a library sends what is allowed.

bowline::include_schemas!();

pub mod attacks;
pub mod bodies;
pub mod curve;
pub mod field;
pub mod good;
pub mod process;
pub mod zmtp;

/// The interface of the schema, as it stands in a header.
pub const INTERFACE: u64 = 0xe0f1_a3c5_d7e9_1001;
/// The method that echoes.
pub const ECHO: u16 = 0;
/// The method that answers with much.
pub const LARGE: u16 = 1;
/// The method that reads a tree.
pub const GROW: u16 = 2;
/// The method whose outcome is kept.
pub const REMEMBER: u16 = 3;
/// The interface of queues.
pub const QUEUES: u64 = 0xb0f1_a3c5_d7e9_0232;
/// Its method that takes jobs in.
pub const PUSH: u16 = 1;
/// Its method that waits for jobs.
pub const LEASE: u16 = 2;
/// Its method that ends leases.
pub const ANSWER: u16 = 3;
/// What a good service and a good publisher say that no hostile one knows.
pub const PASSWORD: u64 = 0x5e5a_3e00;
/// The most that [`LARGE`] answers with.
pub const LARGE_BYTES_MAX: u32 = 256 * 1024;
