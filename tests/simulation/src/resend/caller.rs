//! Calls that are sent again, by the real `Retries` and `Attempts`, and what is true of how they end.

use std::time::Duration;

use bowline::__simulated::of_connection;
use bowline::call::RawRequest;
use bowline::resilience::{Attempts, Budget, BudgetPolicy, Next, Retries, RetryPolicy, TryTimeout};
use bowline::schema::{Effect, MethodInfo};
use bowline::{Status, Work};
use bytes::Bytes;
use tokio::time::Instant;

use super::servers::{Attempt, Event as ServerEvent, Servers};
use super::{CALM_AFTER, Context, Event as WorldEvent, Mutant};

pub(crate) enum Event {
    Call {
        call: usize,
    },
    /// An attempt is to begin after a wait.
    Again {
        call: usize,
        at: Duration,
    },
    /// The attempt that began last has been without an answer for long.
    Overdue {
        call: usize,
        number: u16,
    },
    /// The deadline of an attempt has passed.
    Expired {
        attempt: Attempt,
    },
    /// The deadline of a call that waits has passed.
    Deadline {
        call: usize,
    },
    Replied {
        attempt: Attempt,
        ended: Result<(), Status>,
        is_handlers: bool,
    },
    Lost {
        connection: u64,
    },
    Connected,
    /// The work of an attempt was done, which its caller does not know.
    Done(Attempt),
}

/// What sends the call again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Retry,
    Hedge,
    WaitForReady,
}

struct Call {
    kind: Kind,
    effect: Effect,
    deadline: Duration,
    retries: Retries,
    /// Of a hedge.
    attempts: Attempts,
    /// How the first attempt of a hedge failed.
    first: Option<Status>,
    in_flight: Vec<Attempt>,
    next: u16,
    tried: Vec<usize>,
    again: Option<Duration>,
    /// It waits for this server.
    waits: bool,
    /// Handlers that answered, and were asked once more.
    answered: u32,
    ended: Option<Result<(), Status>>,
}

pub(crate) struct Callers {
    base: Instant,
    calls: Vec<Call>,
    servers: usize,
    budget: Budget,
    resends: f64,
    made: f64,
}

fn request(effect: Effect, wait_for_ready: bool) -> RawRequest {
    let method = MethodInfo {
        service: "simulated",
        name: "method",
        interface: 1,
        ordinal: 0,
        effect,
        timeout: None,
        params: 0,
        results: 0,
        fails: None,
    };
    let mut request = RawRequest::new(&method, Bytes::new());
    request.wait_for_ready = wait_for_ready;
    request
}

impl Callers {
    pub fn new(context: &mut Context, servers: usize) -> Self {
        // Many at once are more than the budget has for.
        let is_burst = context.simulation.chance(0.3);
        let (most, within) = match is_burst {
            true => (600, Duration::from_secs(2)),
            false => (200, CALM_AFTER + Duration::from_secs(1)),
        };
        let count = context.simulation.random().usize(20..most);
        let base = Instant::now();
        let mut calls = Vec::new();
        for call in 0..count {
            let kind = *context
                .simulation
                .random()
                .choice(&[Kind::Retry, Kind::Retry, Kind::Hedge, Kind::WaitForReady])
                .unwrap_or(&Kind::Retry);
            let is_unsafe = kind != Kind::Hedge && context.simulation.random().bool();
            let effect = match is_unsafe {
                true => Effect::Unsafe,
                false => Effect::Idempotent,
            };
            let at = context.simulation.duration(Duration::ZERO, within);
            let deadline = at + context.between(50, 4_000);
            let waits = kind == Kind::WaitForReady;
            let request = request(effect, waits);
            let policy = RetryPolicy::default();
            let mut retries = Retries::of(&request, policy, base + deadline);
            if waits {
                retries = retries.only_connection();
            }
            context.effects.push(0);
            let event = WorldEvent::Caller(Event::Call { call });
            context.simulation.after(at, event);
            calls.push(Call {
                kind,
                effect,
                deadline,
                retries,
                attempts: Attempts::of(&request),
                first: None,
                in_flight: Vec::new(),
                next: 0,
                tried: Vec::new(),
                again: None,
                waits: false,
                answered: 0,
                ended: None,
            });
        }
        Self {
            base,
            calls,
            servers,
            budget: Budget::new(BudgetPolicy::default()),
            resends: 0.0,
            made: 0.0,
        }
    }

    pub fn handle(&mut self, context: &mut Context, event: Event, servers: &mut Servers) {
        match event {
            Event::Call { call } => {
                self.budget.deposit();
                self.made += 1.0;
                let deadline = self.calls[call].deadline - context.now();
                let event = WorldEvent::Caller(Event::Deadline { call });
                // As the tick of a client: a little late.
                context
                    .simulation
                    .after(deadline + Duration::from_millis(30), event);
                self.begin(context, call, servers);
            }
            Event::Again { call, at } => {
                let state = &mut self.calls[call];
                if state.again == Some(at) {
                    state.again = None;
                    self.begin(context, call, servers);
                }
            }
            Event::Overdue { call, number } => self.overdue(context, call, number, servers),
            Event::Expired { attempt } => {
                let status = Status::deadline_exceeded(Work::OutcomeUnknown);
                self.failed(context, attempt, status);
            }
            Event::Deadline { call } => {
                let state = &self.calls[call];
                if state.ended.is_none() {
                    let status = Status::deadline_exceeded(Work::NotDone);
                    self.stop(context, call, status);
                }
            }
            Event::Replied {
                attempt,
                ended,
                is_handlers,
            } => self.replied(context, attempt, ended, is_handlers),
            Event::Lost { connection } => self.lost(context, connection),
            Event::Connected => {
                for call in 0..self.calls.len() {
                    if std::mem::take(&mut self.calls[call].waits) {
                        self.begin(context, call, servers);
                    }
                }
            }
            Event::Done(attempt) => {
                if self.calls[attempt.call].ended.is_some() {
                    context.count("attempt: done after its call had ended");
                }
            }
        }
    }

    fn begin(&mut self, context: &mut Context, call: usize, servers: &mut Servers) {
        let now = context.now();
        let (count, base) = (self.servers, self.base);
        let state = &mut self.calls[call];
        if state.ended.is_some() {
            return;
        }
        let untried: Vec<usize> = (0..count).filter(|at| !state.tried.contains(at)).collect();
        let from = match untried.is_empty() {
            true => (0..count).collect(),
            false => untried,
        };
        let server = *context.simulation.random().choice(&from).unwrap_or(&0);
        let connection = servers.connection(server);
        if state.kind == Kind::WaitForReady && connection.is_none() {
            context.count("call: waited for its server");
            state.waits = true;
            return;
        }
        let attempt = Attempt {
            call,
            number: state.next,
            server,
            connection: connection.unwrap_or(u64::MAX),
        };
        state.next += 1;
        state.tried.push(server);
        match state.kind {
            Kind::Hedge => state.attempts.begin(),
            _ => state.retries.begin(),
        }
        state.in_flight.push(attempt);
        context.simulation.note(|| format!("begun: {attempt:?}"));
        let overdue = match state.kind {
            Kind::Retry => {
                let timeout = TryTimeout::default();
                Some(timeout.deadline(base + now, base + state.deadline) - (base + now))
            }
            Kind::Hedge if attempt.number == 0 => Some(Duration::from_millis(50)),
            _ => None,
        };
        let remaining = state.deadline.saturating_sub(now);
        if let Some(overdue) = overdue.filter(|overdue| *overdue < remaining) {
            let event = WorldEvent::Caller(Event::Overdue {
                call,
                number: attempt.number,
            });
            context.simulation.after(overdue, event);
        }
        if connection.is_none() {
            context.count("attempt: never left");
            let status = of_connection(Status::unavailable("nothing was done: no server"));
            return self.failed(context, attempt, status);
        }
        let event = WorldEvent::Caller(Event::Expired { attempt });
        let late = context.between(0, 10);
        context.simulation.after(remaining + late, event);
        let wait = context.between(0, 5);
        let event = WorldEvent::Server(ServerEvent::Arrived(attempt));
        context.simulation.after(wait, event);
    }

    fn overdue(&mut self, context: &mut Context, call: usize, number: u16, servers: &mut Servers) {
        let now = self.base + context.now();
        let state = &self.calls[call];
        let is_last = state.next == number + 1;
        if state.ended.is_some() || !is_last || state.in_flight.is_empty() {
            return;
        }
        let may = state.kind == Kind::Hedge || state.retries.may_begin_another();
        if !may || !self.withdraw(context, now) {
            return;
        }
        context.count(match self.calls[call].kind {
            Kind::Hedge => "call: hedged",
            _ => "call: begun beside another attempt",
        });
        self.begin(context, call, servers);
    }

    fn withdraw(&mut self, context: &mut Context, now: Instant) -> bool {
        let may = self.budget.withdraw(now) || context.mutant == Some(Mutant::NoBudget);
        match may {
            true => self.resends += 1.0,
            false => context.count("call: over the budget"),
        }
        let seconds = context.now().as_secs_f64();
        let bound = 10.0 + 0.2 * self.made + 10.0 * seconds + 1e-6;
        let (resends, made) = (self.resends, self.made);
        context.simulation.require(resends <= bound, || {
            format!("{resends} resends for {made} calls in {seconds} s")
        });
        may
    }

    fn replied(
        &mut self,
        context: &mut Context,
        attempt: Attempt,
        ended: Result<(), Status>,
        is_handlers: bool,
    ) {
        let state = &mut self.calls[attempt.call];
        if !state.in_flight.contains(&attempt) {
            return;
        }
        if is_handlers && state.kind == Kind::WaitForReady {
            state.answered += 1;
            let answered = state.answered;
            context.simulation.require(answered == 1, || {
                format!("a handler has answered call {} before", attempt.call)
            });
        }
        match ended {
            Ok(()) => self.end(context, attempt.call, Ok(())),
            Err(status) => self.failed(context, attempt, status),
        }
    }

    fn lost(&mut self, context: &mut Context, connection: u64) {
        let in_flight = self.calls.iter().flat_map(|call| &call.in_flight);
        let lost = in_flight.filter(|attempt| attempt.connection == connection);
        let lost: Vec<Attempt> = lost.copied().collect();
        for attempt in lost {
            context.count("attempt: lost");
            if context.effects[attempt.call] > 0 {
                context.count("work: done before its server was killed");
            }
            let work = match context.mutant {
                Some(Mutant::LostIsNotDone) => Work::NotDone,
                _ => Work::OutcomeUnknown,
            };
            let status = of_connection(Status::unavailable("lost").with_work(work));
            self.failed(context, attempt, status);
        }
    }

    /// An attempt has failed.
    fn failed(&mut self, context: &mut Context, attempt: Attempt, mut status: Status) {
        let call = attempt.call;
        let now = self.base + context.now();
        let random = context.simulation.random().f64();
        let state = &mut self.calls[call];
        if state.ended.is_some() || !state.in_flight.contains(&attempt) {
            return;
        }
        state.in_flight.retain(|other| *other != attempt);
        if context.mutant == Some(Mutant::UnsafeSentAgain) && state.effect == Effect::Unsafe {
            status = status.with_work(Work::NotDone);
        }
        if context.mutant == Some(Mutant::HandlersAnswerRepeated) {
            status = of_connection(status);
        }
        if state.kind == Kind::Hedge {
            state.attempts.ended(&status);
            return self.hedge_failed(context, attempt, status);
        }
        match state.retries.failed(now, status.clone(), random) {
            Next::Stop(merged) => self.end_merged(context, call, status, merged),
            Next::Wait => {}
            Next::Again { after, from_budget } => {
                let may = !from_budget || self.withdraw(context, now);
                let state = &mut self.calls[call];
                let at = context.now() + after;
                if may {
                    let at = state.again.map_or(at, |again| again.min(at));
                    state.again = Some(at);
                    let wait = at - context.now();
                    let event = WorldEvent::Caller(Event::Again { call, at });
                    context.simulation.after(wait, event);
                } else if state.in_flight.is_empty() && state.again.is_none() {
                    let merged = state.retries.stop(status.clone());
                    self.end_merged(context, call, status, merged);
                }
            }
        }
    }

    /// The rules are those of `resilience/hedge.rs`.
    fn hedge_failed(&mut self, context: &mut Context, attempt: Attempt, status: Status) {
        let state = &mut self.calls[attempt.call];
        let is_final = status.work() == Work::Done;
        if attempt.number == 0 {
            state.first = Some(status.clone());
        }
        let is_over = state.in_flight.is_empty()
            || attempt.number == 0 && is_final
            || context.mutant == Some(Mutant::InFlightForgotten);
        if is_over {
            let first = state.first.clone().unwrap_or(status);
            let merged = state.attempts.conclude(first.clone());
            self.end_merged(context, attempt.call, first, merged);
        }
    }

    fn stop(&mut self, context: &mut Context, call: usize, status: Status) {
        let state = &self.calls[call];
        let merged = match state.kind {
            Kind::Hedge => state.attempts.conclude(status.clone()),
            _ => state.retries.stop(status.clone()),
        };
        self.end_merged(context, call, status, merged);
    }

    fn end_merged(&mut self, context: &mut Context, call: usize, last: Status, merged: Status) {
        let is_raw = matches!(
            context.mutant,
            Some(Mutant::LastAttemptDecides | Mutant::InFlightForgotten)
        );
        let status = if is_raw { last } else { merged };
        self.end(context, call, Err(status));
    }

    fn end(&mut self, context: &mut Context, call: usize, ended: Result<(), Status>) {
        let now = context.now();
        let state = &mut self.calls[call];
        context
            .simulation
            .note(|| format!("call {call} ends: {ended:?}"));
        let late = now.saturating_sub(state.deadline);
        context
            .simulation
            .require(late <= Duration::from_millis(50), || {
                format!("call {call} ends {late:?} after its deadline")
            });
        if let Err(status) = &ended {
            context.count(match status.work() {
                Work::NotDone => "call: not done",
                Work::OutcomeUnknown => "call: unknown",
                Work::Done => "call: done without its reply",
            });
            let agrees =
                status.work() == Work::NotDone || !status.message().starts_with("nothing was done");
            context
                .simulation
                .require(agrees, || format!("its text contradicts it: {status}"));
        }
        state.ended = Some(ended);
        state.in_flight.clear();
    }

    /// What must hold once nothing happens any more.
    pub fn check(&self, context: &mut Context) {
        for (number, call) in self.calls.iter().enumerate() {
            let effects = context.effects[number];
            let simulation = &mut context.simulation;
            let Some(ended) = &call.ended else {
                simulation.require(false, || format!("call {number} never ended"));
                continue;
            };
            let work = match ended {
                Ok(()) => Work::Done,
                Err(status) => status.work(),
            };
            let kind = call.kind;
            simulation.require(work != Work::NotDone || effects == 0, || {
                format!("call {number}, {kind:?}, is told not done, and was done {effects} times")
            });
            simulation.require(work != Work::Done || effects > 0, || {
                format!("call {number}, {kind:?}, is told done, and was not")
            });
            simulation.require(call.effect != Effect::Unsafe || effects <= 1, || {
                format!("call {number}, {kind:?}, may not be done twice, and was {effects} times")
            });
        }
    }
}
