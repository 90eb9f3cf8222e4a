//! A world of callers whose calls are sent again: by retries, hedges and `wait_for_ready`. It proves what they are
//! told of the work against what was really done.
//!
//! Real: [`Retries`](bowline::resilience::Retries), [`Attempts`](bowline::resilience::Attempts) and the budget. Simulated:
//! connections that are cut, servers that are killed or shut down, and handlers whose work is done at some moment, or
//! not. Not here: the tokio drivers; `caller` follows the rules of `resilience/retry.rs`, `resilience/hedge.rs` and
//! `call/client.rs` by hand.

mod caller;
mod servers;

use std::time::Duration;

use crate::{History, Seed, Simulation};

use caller::Callers;
use servers::Servers;

/// A mistake that the checker has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A call ends with the status of its last attempt as it is.
    LastAttemptDecides,
    /// An attempt that is still in flight counts as one that was never made.
    InFlightForgotten,
    /// A lost connection says that nothing was done.
    LostIsNotDone,
    /// What may not be done twice is sent again after its outcome is unknown.
    UnsafeSentAgain,
    /// `wait_for_ready` sends again what a handler has answered.
    HandlersAnswerRepeated,
    /// Resends cost nothing.
    NoBudget,
}

/// Every fault that this world injects, and every rare case that it must have met.
pub const MUST_HAPPEN: &[&str] = &[
    "connection: cut",
    "server: killed",
    "server: shut down",
    "server: refused",
    "attempt: never left",
    "attempt: lost",
    "attempt: done after its call had ended",
    "call: not done",
    "call: unknown",
    "call: done without its reply",
    "call: hedged",
    "call: begun beside another attempt",
    "call: waited for its server",
    "call: over the budget",
    "work: done before its server was killed",
];

/// What can happen.
pub(crate) enum Event {
    Caller(caller::Event),
    Server(servers::Event),
}

/// What all who take part share.
pub(crate) struct Context {
    pub simulation: Simulation<Event>,
    pub mutant: Option<Mutant>,
    /// Of each call, how often its work was done.
    pub effects: Vec<u32>,
    pub is_calm: bool,
}

impl Context {
    pub fn now(&self) -> Duration {
        self.simulation.now()
    }

    pub fn count(&self, name: &'static str) {
        self.simulation.faults().count(name);
    }

    pub fn between(&mut self, least: u64, most: u64) -> Duration {
        let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
        self.simulation.duration(least, most)
    }
}

/// When the faults end.
const CALM_AFTER: Duration = Duration::from_secs(20);

/// One history: twenty seconds of faults, in which calls are made, and calm until all have ended.
pub fn history(seed: Seed, mutant: Option<Mutant>) -> History {
    let mut context = Context {
        simulation: Simulation::new(seed),
        mutant,
        effects: Vec::new(),
        is_calm: false,
    };
    let mut servers = Servers::new(&mut context);
    let mut callers = Callers::new(&mut context, servers.count());
    while let Some(event) = context.simulation.next() {
        context.is_calm = context.now() >= CALM_AFTER;
        match event {
            Event::Caller(event) => callers.handle(&mut context, event, &mut servers),
            Event::Server(event) => {
                if let Some(told) = servers.handle(&mut context, event) {
                    callers.handle(&mut context, told, &mut servers);
                }
            }
        }
        if context.simulation.is_violated() {
            return context.simulation.end();
        }
    }
    callers.check(&mut context);
    context.simulation.end()
}
