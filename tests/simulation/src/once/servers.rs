//! The machines that servers run on: how they start, what happens to them, and how they die between
//! any two steps.

use std::collections::BTreeMap;
use std::time::Duration;

use bowline::__simulated::RequestEnvelope;
use bowline::once::Key;

use super::promises::Scope;
use super::server::{Event, Incoming, Server};
use super::setting::StoreKind;
use super::store::Local;
use super::{Context, Event as WorldEvent, Fault};
use crate::{Disk, Machine, Process};

/// All machines that have a server, and their disk where they need one.
pub(crate) struct Servers {
    all: BTreeMap<Machine, Server>,
    disk: Disk,
    /// Under which keys there may be records.
    scopes: BTreeMap<Key, Scope>,
    lost: Vec<Machine>,
}

impl Servers {
    pub fn new(context: &mut Context) -> Self {
        let faults = context.simulation.faults().clone();
        let disk = Disk::new(context.simulation.random(), faults);
        let mut servers = Self {
            all: BTreeMap::new(),
            disk,
            scopes: BTreeMap::new(),
            lost: Vec::new(),
        };
        for machine in context.setting.server_machines() {
            let process = context.machines.process(machine);
            servers.start(context, process);
        }
        servers
    }

    /// Machines that have died since this was asked for.
    pub fn take_lost(&mut self) -> Vec<Machine> {
        std::mem::take(&mut self.lost)
    }

    pub fn is_up(&self, machine: Machine) -> bool {
        self.all.contains_key(&machine)
    }

    fn start(&mut self, context: &mut Context, process: Process) {
        let machine = process.machine;
        let local = match context.setting.store {
            StoreKind::Memory => Ok(Local::memory(context.setting.bounds())),
            StoreKind::Shared => Ok(Local::None),
            StoreKind::Redb => {
                self.disk.turn_on();
                // Not before it was made: one whose making was cut short is for an operator.
                if process.life > 1 && context.fault(0.2) {
                    let syncs = context.simulation.random().u32(0..4);
                    self.disk.cut_power_at_sync(syncs);
                }
                Local::redb(context, &self.disk, &self.scopes)
            }
        };
        let local = match local {
            Ok(local) => local,
            Err(error) => {
                let is_on = self.disk.is_on();
                context.simulation.require(!is_on, || {
                    format!("the disk works, and the database cannot be opened: {error}")
                });
                context.machines.crash(machine);
                return self.start_later(context, machine);
            }
        };
        let owner = context.simulation.random().u64(..);
        let server = Server::new(process, owner, local);
        context.simulation.note(|| format!("{process} is up"));
        self.all.insert(machine, server);
        let every = context.setting.terms.lease / 3;
        let event = Event::Housekeeping;
        context.after(every, WorldEvent::Server { process, event });
        self.maybe_arm(context);
    }

    /// Has the power fail at one of the next syncs.
    fn maybe_arm(&mut self, context: &mut Context) {
        if context.setting.store == StoreKind::Redb && context.fault(10.0 * context.setting.crash) {
            let syncs = context.simulation.random().u32(0..30);
            self.disk.cut_power_at_sync(syncs);
        }
    }

    fn start_later(&mut self, context: &mut Context, machine: Machine) {
        let wait = context
            .simulation
            .duration(Duration::from_millis(50), Duration::from_secs(4));
        context.after(wait, WorldEvent::Fault(Fault::Start(machine)));
    }

    fn crash(&mut self, context: &mut Context, machine: Machine) {
        let Some(server) = self.all.remove(&machine) else {
            return;
        };
        let process = server.process;
        context.count("machine: killed");
        context.simulation.note(|| format!("{process} is dead"));
        if context.setting.store == StoreKind::Redb && self.disk.is_on() {
            // After a disk that failed, the machine is started again, and not the process alone:
            // the memory of its system has pages that it takes for written, and they are not.
            match context.simulation.random().bool() || self.disk.has_failed() {
                true => self.disk.cut_power(),
                false => self.disk.close_all(),
            }
        }
        // What it writes now, as it is dropped, goes nowhere.
        drop(server);
        context.machines.crash(machine);
        let now = context.simulation.now();
        context.promises.crashed(now, process);
        self.lost.push(machine);
        self.start_later(context, machine);
    }

    pub fn suffer(&mut self, context: &mut Context, fault: Fault) {
        let machines: Vec<Machine> = context.setting.server_machines().collect();
        match fault {
            Fault::Part if context.is_faulty => {
                let count = context.setting.machines();
                let apart = (0..count)
                    .map(Machine)
                    .filter(|_| context.simulation.random().bool());
                let apart = apart.collect();
                context.network.part(&mut context.simulation, apart);
                let wait = context
                    .simulation
                    .duration(Duration::from_millis(100), Duration::from_secs(15));
                context.after(wait, WorldEvent::Fault(Fault::Heal));
            }
            Fault::Heal => context.network.heal(&mut context.simulation),
            Fault::Pause if context.is_faulty => {
                let machine = *context
                    .simulation
                    .random()
                    .choice(&machines)
                    .unwrap_or(&Machine(0));
                let lease = context.setting.terms.lease;
                let pause = context.simulation.duration(lease / 2, lease * 3);
                let until = context.now() + pause;
                if let Some(server) = self.all.get_mut(&machine) {
                    context.count("machine: paused");
                    let note = || format!("{machine} is paused for {pause:?}");
                    context.simulation.note(note);
                    server.paused_until = until;
                }
            }
            Fault::FailSyncs if context.is_faulty => {
                self.disk.fail_syncs(true);
                let wait = context
                    .simulation
                    .duration(Duration::from_millis(100), Duration::from_secs(5));
                context.after(wait, WorldEvent::Fault(Fault::MendSyncs));
            }
            // A database that has seen its disk fail has to be opened again.
            Fault::MendSyncs => {
                self.disk.fail_syncs(false);
                for machine in machines {
                    self.crash(context, machine);
                }
            }
            Fault::Start(machine) => {
                context.count("machine: restarted");
                let process = context.machines.start(machine);
                self.start(context, process);
            }
            Fault::Calm => {
                context
                    .simulation
                    .note(|| "from now on, all is well".to_owned());
                context.is_faulty = false;
                context.network.become_good();
                self.disk.keep_power_on();
                for server in self.all.values_mut() {
                    server.paused_until = Duration::ZERO;
                }
            }
            Fault::Part | Fault::Pause | Fault::FailSyncs => {}
        }
    }

    /// A request has come over the network.
    pub fn accept(&mut self, context: &mut Context, to: Machine, incoming: Incoming) {
        if let Some(process) = self.delay(context, to) {
            // It lies in the socket's buffer.
            let wait = process - context.now();
            let request = incoming;
            return context.after(wait, WorldEvent::Requested { to, request });
        }
        if self.crashes(context, to) || !self.is_up(to) {
            return;
        }
        let Some(envelope) = RequestEnvelope::decode(&incoming.header) else {
            let unreadable = || "the header of a request cannot be read".to_owned();
            return context.simulation.require(false, unreadable);
        };
        if let Some(server) = self.all.get_mut(&to) {
            let (key, scope) = server.accept(context, incoming, &envelope);
            self.scopes.insert(key, scope);
        }
        self.crashes(context, to);
    }

    /// Until when a machine does nothing, if it is paused.
    fn delay(&self, context: &Context, machine: Machine) -> Option<Duration> {
        let until = self.all.get(&machine)?.paused_until;
        (until > context.now()).then_some(until)
    }

    pub fn handle(&mut self, context: &mut Context, process: Process, event: Event) {
        let machine = process.machine;
        if !context.machines.is_alive(process) {
            return;
        }
        if let Some(until) = self.delay(context, machine) {
            let wait = until - context.now();
            return context.after(wait, WorldEvent::Server { process, event });
        }
        if self.crashes(context, machine) {
            return;
        }
        if let Some(server) = self.all.get_mut(&machine) {
            server.handle(context, event);
        }
        if !self.disk.is_on() || self.crashes(context, machine) {
            self.crash(context, machine);
        }
    }

    /// Whether a machine dies at this step.
    fn crashes(&mut self, context: &mut Context, machine: Machine) -> bool {
        let dies = context.fault(context.setting.crash);
        if dies {
            self.crash(context, machine);
        }
        dies
    }
}
