//! A world of clients, servers and stores of outcomes, which proves what `once` promises.
//!
//! Real: the attempt, the record, the retries and their budget, the headers on the wire, the store in
//! memory, and the engine of the redb store on the simulated disk. Simulated: the network, the
//! disk, the clocks, the handlers, and a store that replicas share, which stands for PostgreSQL and
//! Redis: it applies the same `step`, and its calls fail before, after and long before they take effect.
//!
//! Not here: the tokio drivers. `server` drives attempts by the same rules as `once/driver.rs`.

mod client;
mod handler;
mod notes;
mod promises;
mod server;
mod servers;
mod setting;
mod store;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{History, Machine, Machines, Network, Process, Seed, Simulation};

use client::Clients;
use promises::Promises;
use servers::Servers;
use setting::{Setting, StoreKind};
use store::Shared;

/// A mistake that the checker has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A server runs a request whatever the store says of it.
    NoDeduplication,
    /// A server replies as soon as the handler is done, and records afterwards.
    ReplyBeforeRecord,
    /// A store lets every attempt complete, also one that another has taken over from.
    NoFencing,
    /// A full store forgets what it forgets, and runs it again.
    NoTraceOfForgotten,
    /// A server that is asked for the outcome of a request which may be run again says that it was not done.
    RerunIsNotDone,
    /// A server takes an attempt that runs in its own process for dead, since a clock says so.
    ClockEndsLeases,
}

/// Every fault that this world injects, and every rare case that it must have met.
pub const MUST_HAPPEN: &[&str] = &[
    "network: drop",
    "network: duplicate",
    "network: reorder",
    "network: delay",
    "network: partition",
    "network: lost to a partition",
    "disk: power cut",
    "disk: power cut before a sync",
    "disk: power cut after a sync",
    "disk: lost write",
    "disk: torn write",
    "disk: failed sync",
    "machine: killed",
    "machine: paused",
    "machine: restarted",
    "client: connection lost",
    "client: connection refused",
    "store: failed before it took effect",
    "store: failed after it took effect",
    "store: took effect late",
    "handler: slow",
    "handler: hung",
    "handler: ended by another attempt",
    "handler: said that nothing was done",
    "handler: said that nobody knows",
    "once: lease expired",
    "once: fenced completion",
    "once: joined",
    "once: replayed",
    "once: in doubt",
    "once: resolved as done",
    "once: resolved as not done",
    "once: key reused",
    "once: key expired",
    "once: reply not retained",
    "once: open claim found at a restart",
    "once: forgotten early",
    "once: given back beside",
    "once: runs here, whatever its lease",
    "clock: jumped",
];

pub(crate) enum Event {
    Client(client::Event),
    /// A request has arrived at a machine.
    Requested {
        to: Machine,
        request: server::Incoming,
    },
    /// Something that was begun for this process is over.
    Server {
        process: Process,
        event: server::Event,
    },
    /// An operation has arrived at the shared store.
    Store(store::Operation),
    Fault(Fault),
}

/// What goes wrong without anybody's doing.
pub(crate) enum Fault {
    Part,
    Heal,
    Pause,
    FailSyncs,
    MendSyncs,
    Start(Machine),
    /// The end of all faults.
    Calm,
}

/// What all who take part share.
pub(crate) struct Context {
    pub simulation: Simulation<Event>,
    pub machines: Machines,
    pub network: Network,
    pub setting: Setting,
    pub promises: Promises,
    pub mutant: Option<Mutant>,
    /// How much the clocks of machines have been set ahead.
    pub jumped: BTreeMap<Machine, Duration>,
    /// Until it is calm.
    pub is_faulty: bool,
}

impl Context {
    /// Whether a fault that has this probability happens now.
    pub fn fault(&mut self, probability: f64) -> bool {
        self.is_faulty && self.simulation.chance(probability)
    }

    pub fn after(&mut self, wait: Duration, event: Event) {
        self.simulation.after(wait, event);
    }

    pub fn now(&self) -> Duration {
        self.simulation.now()
    }

    pub fn count(&self, name: &'static str) {
        self.simulation.faults().count(name);
    }
}

/// Events of one history: more would be a loop.
const EVENTS_MAX: u64 = 200_000;

/// One history: a minute or two of faults, then calm, in which all that is open has to be settled.
pub fn history(seed: Seed, mutant: Option<Mutant>) -> History {
    let mut simulation = Simulation::new(seed);
    let setting = Setting::new(simulation.random());
    simulation.note(|| format!("{setting:?}, {mutant:?}"));
    let machines = Machines::new(
        setting.machines(),
        setting.clock_skew_max,
        simulation.random(),
    );
    let network = Network::new(setting.network.clone());
    let mut context = Context {
        promises: Promises::new(&setting),
        simulation,
        machines,
        network,
        setting,
        mutant,
        jumped: BTreeMap::new(),
        is_faulty: true,
    };
    let mut shared = Shared::default();
    let mut servers = Servers::new(&mut context);
    let mut clients = Clients::new(&mut context);
    schedule_faults(&mut context);

    let mut events = 0;
    while let Some(event) = context.simulation.next() {
        events += 1;
        if events > EVENTS_MAX {
            context
                .simulation
                .require(false, || "it never ends".to_owned());
        }
        if context.simulation.is_violated() {
            break;
        }
        match event {
            Event::Client(event) => clients.handle(&mut context, event, &servers),
            Event::Requested { to, request } => servers.accept(&mut context, to, request),
            Event::Server { process, event } => servers.handle(&mut context, process, event),
            Event::Store(operation) => shared.handle(&mut context, operation),
            Event::Fault(fault) => {
                if let Fault::Calm = fault {
                    clients.settle(&mut context);
                }
                servers.suffer(&mut context, fault);
            }
        }
        for lost in servers.take_lost() {
            clients.lose_connections(&mut context, lost);
        }
        if clients.are_settled() {
            break;
        }
    }
    if !context.simulation.is_violated() {
        clients.check_settled(&mut context);
        context.promises.check_end(&mut context.simulation);
    }
    context.simulation.end()
}

fn schedule_faults(context: &mut Context) {
    let calm = context.setting.calm;
    let Setting { store, .. } = context.setting;
    context.after(calm, Event::Fault(Fault::Calm));
    let often = |context: &mut Context, most: usize, fault: fn() -> Fault| {
        for _ in 0..context.simulation.random().usize(0..=most) {
            let at = context.simulation.duration(Duration::ZERO, calm);
            context.after(at, Event::Fault(fault()));
        }
    };
    often(context, 3, || Fault::Part);
    often(context, 8, || Fault::Pause);
    if store == StoreKind::Redb {
        often(context, 1, || Fault::FailSyncs);
    }
}
