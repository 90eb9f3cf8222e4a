//! Servers that are killed, shut down and cut off, and handlers that do their work at some moment of their run.

use std::time::Duration;

use bowline::{Code, Reason, Status, Work};

use super::{Context, Event as WorldEvent, caller};

/// One attempt of one call, on its way over one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub call: usize,
    pub number: u16,
    pub server: usize,
    pub connection: u64,
}

pub(crate) enum Event {
    Arrived(Attempt),
    /// The handler of an attempt is done with its work, or with what it does instead.
    Worked {
        attempt: Attempt,
        life: u64,
        ending: Ending,
    },
    Answered {
        attempt: Attempt,
        life: u64,
        ending: Ending,
    },
    Fault {
        server: usize,
        fault: Fault,
    },
    /// A client tries to connect again.
    Connect {
        server: usize,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Cut,
    Kill,
    ShutDown,
    Start,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    Success,
    /// Nothing was done, and the handler says so.
    Refused,
    /// The handler does not know, and whether it was done is another question.
    Unknown {
        was_done: bool,
    },
    /// It was done, and there is no reply.
    DoneOnly,
}

#[derive(Debug)]
struct Server {
    life: u64,
    is_up: bool,
    is_leaving: bool,
    /// The connection that there is now.
    connection: Option<u64>,
}

pub(crate) struct Servers {
    all: Vec<Server>,
    connections: u64,
}

impl Servers {
    pub fn new(context: &mut Context) -> Self {
        let count = context.simulation.random().usize(1..=3);
        let server = |index| Server {
            life: 0,
            is_up: true,
            is_leaving: false,
            connection: Some(index as u64),
        };
        let faults = context.simulation.random().usize(5..40);
        for _ in 0..faults {
            let server = context.simulation.random().usize(..count);
            let fault = match context.simulation.random().u8(..4) {
                0 => Fault::Cut,
                1 => Fault::ShutDown,
                _ => Fault::Kill,
            };
            let at = context
                .simulation
                .duration(Duration::ZERO, super::CALM_AFTER);
            let event = WorldEvent::Server(Event::Fault { server, fault });
            context.simulation.after(at, event);
        }
        Self {
            all: (0..count).map(server).collect(),
            connections: count as u64,
        }
    }

    pub fn count(&self) -> usize {
        self.all.len()
    }

    pub fn connection(&self, server: usize) -> Option<u64> {
        self.all[server].connection
    }

    /// What happens to a server. Returns what its clients notice.
    pub fn handle(&mut self, context: &mut Context, event: Event) -> Option<caller::Event> {
        match event {
            Event::Arrived(attempt) => self.arrived(context, attempt),
            Event::Worked {
                attempt,
                life,
                ending,
            } => self.worked(context, attempt, life, ending),
            Event::Answered {
                attempt,
                life,
                ending,
            } => {
                let server = &self.all[attempt.server];
                if server.life == life && server.connection == Some(attempt.connection) {
                    answer(context, attempt, ending);
                }
            }
            Event::Fault { server, fault } => return self.suffer(context, server, fault),
            Event::Connect { server } => return self.connect(context, server),
        }
        None
    }

    fn arrived(&mut self, context: &mut Context, attempt: Attempt) {
        let server = &self.all[attempt.server];
        if !server.is_up || server.connection != Some(attempt.connection) {
            return;
        }
        let refusal = match () {
            () if server.is_leaving => {
                let leaving = Status::unavailable("nothing was done: it is leaving");
                Some(leaving.with_reason(Reason::ShuttingDown))
            }
            () if context.simulation.chance(0.1) => {
                Some(Status::resource_exhausted("nothing was done: it is full"))
            }
            () => None,
        };
        if let Some(status) = refusal {
            context.count("server: refused");
            return reply(context, attempt, Err(status), false);
        }
        let ending = match context.simulation.random().u8(..10) {
            0 | 1 => Ending::Refused,
            2 => Ending::Unknown {
                was_done: context.simulation.random().bool(),
            },
            3 => Ending::DoneOnly,
            _ => Ending::Success,
        };
        let wait = match context.simulation.random().u8(..4) {
            0 => context.between(0, 1_500),
            _ => context.between(0, 60),
        };
        let life = self.all[attempt.server].life;
        let event = Event::Worked {
            attempt,
            life,
            ending,
        };
        context.simulation.after(wait, WorldEvent::Server(event));
    }

    fn worked(&mut self, context: &mut Context, attempt: Attempt, life: u64, ending: Ending) {
        let server = &self.all[attempt.server];
        // What was killed does no work. A handler whose connection is gone goes on.
        if server.life != life {
            return;
        }
        let has_effect = match ending {
            Ending::Success | Ending::DoneOnly => true,
            Ending::Unknown { was_done } => was_done,
            Ending::Refused => false,
        };
        if has_effect {
            context.effects[attempt.call] += 1;
            context
                .simulation
                .note(|| format!("the work of call {} is done: {attempt:?}", attempt.call));
            let event = WorldEvent::Caller(caller::Event::Done(attempt));
            context.simulation.after(Duration::ZERO, event);
        }
        let wait = context.between(0, 40);
        let event = Event::Answered {
            attempt,
            life,
            ending,
        };
        context.simulation.after(wait, WorldEvent::Server(event));
    }

    fn suffer(
        &mut self,
        context: &mut Context,
        index: usize,
        fault: Fault,
    ) -> Option<caller::Event> {
        // One that is leaving leaves in the calm, too.
        let is_new = !matches!(fault, Fault::Start) && !self.all[index].is_leaving;
        if context.is_calm && is_new {
            return None;
        }
        context
            .simulation
            .note(|| format!("server {index}: {fault:?}"));
        let server = &mut self.all[index];
        match fault {
            Fault::Cut => context.count("connection: cut"),
            Fault::Kill => {
                context.count("server: killed");
                server.life += 1;
                server.is_up = false;
                server.is_leaving = false;
                let wait = context.between(10, 800);
                let event = Event::Fault {
                    server: index,
                    fault: Fault::Start,
                };
                context.simulation.after(wait, WorldEvent::Server(event));
            }
            Fault::ShutDown if server.is_up && !server.is_leaving => {
                context.count("server: shut down");
                server.is_leaving = true;
                // Its process ends when its handlers have.
                let wait = context.between(100, 3_000);
                let event = Event::Fault {
                    server: index,
                    fault: Fault::Kill,
                };
                context.simulation.after(wait, WorldEvent::Server(event));
                return None;
            }
            Fault::ShutDown => return None,
            Fault::Start => {
                server.is_up = true;
                return None;
            }
        }
        let lost = self.all[index].connection.take()?;
        let wait = context.between(20, 200);
        let connect = Event::Connect { server: index };
        context.simulation.after(wait, WorldEvent::Server(connect));
        Some(caller::Event::Lost { connection: lost })
    }

    fn connect(&mut self, context: &mut Context, index: usize) -> Option<caller::Event> {
        let server = &mut self.all[index];
        if server.connection.is_some() {
            return None;
        }
        if !server.is_up {
            let wait = context.between(20, 200);
            let connect = Event::Connect { server: index };
            context.simulation.after(wait, WorldEvent::Server(connect));
            return None;
        }
        server.connection = Some(self.connections);
        self.connections += 1;
        Some(caller::Event::Connected)
    }
}

/// The answer of a handler.
fn answer(context: &mut Context, attempt: Attempt, ending: Ending) {
    let ended = match ending {
        Ending::Success => Ok(()),
        Ending::Refused => {
            let status = Status::unavailable("nothing was done: the database is away");
            Err(match context.simulation.random().bool() {
                true => status.with_retry_after(context.between(10, 500)),
                false => status,
            })
        }
        Ending::Unknown { .. } => Err(Status::internal("broken")),
        Ending::DoneOnly => Err(Status::new(Code::OutOfRange, Work::Done, "too large")),
    };
    reply(context, attempt, ended, true);
}

fn reply(context: &mut Context, attempt: Attempt, ended: Result<(), Status>, is_handlers: bool) {
    let wait = context.between(0, 5);
    let event = caller::Event::Replied {
        attempt,
        ended,
        is_handlers,
    };
    context.simulation.after(wait, WorldEvent::Caller(event));
}
