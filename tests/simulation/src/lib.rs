//! A seeded simulator: one thread, one virtual clock, a network, disks and crashes. One seed is one
//! history, which can be replayed.
//!
//! It runs state machines that have no clock, socket or task of their own. It does not run tokio,
//! and it knows nothing of what it simulates: a world such as [`once`] brings its own drivers and checker.
//!
//! # How a world is built
//!
//! A world has an enum of what can happen, and a loop:
//!
//! ```
//! use std::time::Duration;
//! use bowline_simulation::{Faults, History, Machine, Network, NetworkFaults, Seed, Simulation};
//!
//! enum Event {
//!     Arrived { at: Machine, text: &'static str },
//! }
//!
//! fn history(seed: Seed) -> History {
//!     let mut simulation: Simulation<Event> = Simulation::new(seed);
//!     let network = Network::new(NetworkFaults::some(simulation.random()));
//!     let (client, server) = (Machine(0), Machine(1));
//!     for _ in 0..10 {
//!         network.send(&mut simulation, client, server, || Event::Arrived { at: server, text: "hello" });
//!     }
//!     let mut arrived = 0;
//!     while let Some(event) = simulation.next() {
//!         match event {
//!             Event::Arrived { at, text } => {
//!                 simulation.note(|| format!("{at:?} got {text}"));
//!                 arrived += 1;
//!             }
//!         }
//!         simulation.require(arrived <= 20, || format!("{arrived} of 10 arrived"));
//!     }
//!     simulation.end()
//! }
//!
//! // In a test: `bowline_simulation::prove("once", "name_of_the_test", 1_000, &["network: drop"], history)`.
//! let history = history(Seed::quiet(314));
//! assert!(history.violations.is_empty());
//! ```
//!
//! - All randomness comes from [`Simulation::random`], all time from [`Simulation::now`]: no `HashMap`
//!   may be iterated over, since its order is not the seed's.
//! - [`Network::send`] decides what becomes of a message, and puts its arrivals into the queue.
//! - A [`Disk`] has [`File`]s that forget or tear what was not synced when [`Disk::cut_power`] is
//!   called, or at the n-th sync from now ([`Disk::cut_power_at_sync`]). [`Database`](database) runs redb on one.
//! - A crash: [`Machines::crash`] makes all events of the machine's [`Process`] stale; the world
//!   drops its state machines, and starts new ones on what the disk still has.
//! - [`prove`] runs many seeds, on all cores, prints the faults that were injected, and for a seed
//!   that fails its history and the command that replays it. [`caught`] says which seed finds a mutant.

mod disk;
mod faults;
mod machines;
mod network;
mod seeds;
mod simulation;

pub mod database;
pub mod once;
pub mod resend;

pub use disk::{Disk, File};
pub use faults::Faults;
pub use machines::{Machine, Machines, Process};
pub use network::{Network, NetworkFaults};
pub use seeds::{History, Seed, caught, prove};
pub use simulation::Simulation;
