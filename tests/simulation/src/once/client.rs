//! Callers: each call is sent and sent again by the real `Retries`, under a real budget, until it
//! ends. Some call again under the same ID, some only ask how it ended, some send something else.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bowline::__simulated::decode_reply;
use bowline::call::{RawReply, RawRequest};
use bowline::message::Plain;
use bowline::resilience::{Budget, BudgetPolicy, Next, Retries, RetryPolicy, TryTimeout};
use bowline::schema::{Effect, MethodInfo, Recovery};
use bowline::{Code, Reason, RequestId, RequestKey, Status, Work};
use bytes::Bytes;
use tokio::time::Instant;

use super::server::{Incoming, envelope};
use super::servers::Servers;
use super::{Context, Event as WorldEvent, notes};
use crate::Machine;

pub(crate) enum Event {
    /// A call is made.
    Call(Planned),
    /// Its wait before the next attempt is over.
    Again { call: u64 },
    /// An attempt has had its time.
    TryOver { call: u64, correlation: u64 },
    /// The connection is refused, or was lost.
    Failed {
        call: u64,
        correlation: u64,
        status: Status,
    },
    /// A reply has arrived.
    Replied { header: Bytes, body: Bytes },
    /// It is calm, and somebody wants to know how this ended.
    Settle { key: usize },
}

/// A call that will be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    client: Machine,
    key: usize,
    kind: Kind,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, key, kind } = self;
        write!(f, "{client}, {kind:?} key {key}")
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// With the parameters that belong to the key.
    Send,
    /// With others.
    SendOther,
    /// Without any: how did it end?
    Ask,
    /// The same when it is calm, and then sent if it was not done.
    SettleAsk,
    SettleSend,
}

struct Call {
    planned: Planned,
    deadline: Duration,
    retries: Retries,
    attempt: u16,
    current: Option<u64>,
    tried: Option<Machine>,
}

/// All of them, on all machines.
pub(crate) struct Clients {
    base: Instant,
    keys: BTreeMap<usize, RequestId>,
    calls: BTreeMap<u64, Call>,
    calls_made: u64,
    /// Which call each message belongs to.
    correlations: BTreeMap<u64, u64>,
    messages: u64,
    budgets: BTreeMap<Machine, Budget>,
    unsettled: Vec<usize>,
    is_calm: bool,
    settle_until: Duration,
}

/// How long after the faults everything must be settled.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

/// What `Retries` looks at.
fn request_of(effect: Effect, outcome_only: bool) -> RawRequest {
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
    request.outcome_only = outcome_only;
    request
}

fn text(key: usize, kind: Kind) -> String {
    match kind {
        Kind::SendOther => format!("[other of {key}]"),
        Kind::Ask | Kind::SettleAsk => String::new(),
        Kind::Send | Kind::SettleSend => format!("[work of {key}]"),
    }
}

impl Clients {
    pub fn new(context: &mut Context) -> Self {
        let setting = context.setting.clone();
        for key in 0..setting.keys {
            let first = context
                .simulation
                .duration(Duration::ZERO, setting.calm * 2 / 3);
            let calls = context.simulation.random().usize(1..=4);
            for number in 0..calls {
                let random = context.simulation.random();
                let client = setting.client(random.u16(..));
                let kind = match random.u8(0..12) {
                    _ if number == 0 => Kind::Send,
                    0 => Kind::SendOther,
                    1 => Kind::Ask,
                    _ => Kind::Send,
                };
                let spread = *random.choice(&[0, 100, 10_000, 60_000]).unwrap_or(&0);
                let spread = Duration::from_millis(spread);
                let at = first + context.simulation.duration(Duration::ZERO, spread);
                let planned = Planned { client, key, kind };
                context.after(at, WorldEvent::Client(Event::Call(planned)));
            }
        }
        Self {
            base: Instant::now(),
            keys: BTreeMap::new(),
            calls: BTreeMap::new(),
            calls_made: 0,
            correlations: BTreeMap::new(),
            messages: 0,
            budgets: BTreeMap::new(),
            unsettled: (0..setting.keys).collect(),
            is_calm: false,
            settle_until: Duration::MAX,
        }
    }

    pub fn handle(&mut self, context: &mut Context, event: Event, servers: &Servers) {
        match event {
            Event::Call(planned) => self.call(context, planned, servers),
            Event::Again { call } => self.send(context, call, servers),
            Event::TryOver { call, correlation } => {
                let status = Status::deadline_exceeded(Work::OutcomeUnknown);
                self.failed(context, call, correlation, status);
            }
            Event::Failed {
                call,
                correlation,
                status,
            } => self.failed(context, call, correlation, status),
            Event::Replied { header, body } => self.replied(context, &header, body),
            Event::Settle { key } => {
                let client = context.setting.client(key as u16);
                let kind = Kind::SettleAsk;
                self.call(context, Planned { client, key, kind }, servers);
            }
        }
    }

    /// The ID of a key, made when it is first needed.
    fn id(&mut self, context: &mut Context, planned: Planned) -> RequestId {
        if let Some(id) = self.keys.get(&planned.key) {
            return id.clone();
        }
        let clock = context.clock(planned.client).milliseconds();
        let random = context.simulation.random();
        // A key that says nothing of its age cannot be refused for it.
        let id = match random.bool() && !context.setting.keys_say_their_age() {
            true => match RequestKey::new(format!("order-{}", planned.key)) {
                Ok(key) => key.into(),
                Err(_) => RequestId::new(),
            },
            false => {
                let mut bytes = [0; 10];
                context.simulation.random().fill(&mut bytes);
                let id = uuid::Builder::from_unix_timestamp_millis(clock, &bytes);
                id.into_uuid().into()
            }
        };
        self.keys.insert(planned.key, id.clone());
        id
    }

    fn call(&mut self, context: &mut Context, planned: Planned, servers: &Servers) {
        let number = self.calls_made;
        self.calls_made += 1;
        let timeout = match planned.kind {
            Kind::SettleAsk | Kind::SettleSend => Duration::from_secs(10),
            _ => context
                .simulation
                .duration(Duration::from_millis(200), Duration::from_secs(20)),
        };
        let deadline = context.now() + timeout;
        let effect = Effect::Once(context.setting.recovery);
        let asks = matches!(planned.kind, Kind::Ask | Kind::SettleAsk);
        let request = request_of(effect, asks);
        let retries = Retries::of(&request, RetryPolicy::default(), self.base + deadline);
        context
            .simulation
            .note(|| format!("call {number}: {planned}, within {timeout:?}"));
        let call = Call {
            planned,
            deadline,
            retries,
            attempt: 0,
            current: None,
            tried: None,
        };
        self.calls.insert(number, call);
        self.budget(planned.client).deposit();
        self.send(context, number, servers);
    }

    fn budget(&mut self, client: Machine) -> &mut Budget {
        let new = || Budget::new(BudgetPolicy::default());
        self.budgets.entry(client).or_insert_with(new)
    }

    /// One attempt.
    fn send(&mut self, context: &mut Context, number: u64, servers: &Servers) {
        let Some(planned) = self.calls.get(&number).map(|call| call.planned) else {
            return;
        };
        let id = self.id(context, planned);
        let correlation = self.messages;
        self.messages += 1;
        self.correlations.insert(correlation, number);
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        let others: Vec<Machine> = (context.setting.server_machines())
            .filter(|machine| Some(*machine) != call.tried)
            .collect();
        let all: Vec<Machine> = context.setting.server_machines().collect();
        let from = if others.is_empty() { &all } else { &others };
        let Some(&to) = context.simulation.random().choice(from) else {
            return;
        };
        call.tried = Some(to);
        call.current = Some(correlation);
        call.retries.begin();
        let now = self.base + context.now();
        let until = TryTimeout::default().deadline(now, self.base + call.deadline);
        let remaining = until - now;
        let event = Event::TryOver {
            call: number,
            correlation,
        };
        context.after(remaining, WorldEvent::Client(event));
        if !servers.is_up(to) && context.simulation.chance(0.5) {
            context.count("client: connection refused");
            let event = Event::Failed {
                call: number,
                correlation,
                status: Status::unavailable("nobody is there"),
            };
            return context.after(Duration::from_millis(1), WorldEvent::Client(event));
        }
        let only_asks = matches!(planned.kind, Kind::Ask | Kind::SettleAsk);
        let envelope = envelope(&id, call.attempt, correlation, remaining, only_asks);
        let text = text(planned.key, planned.kind);
        let body = match only_asks {
            true => Bytes::new(),
            false => text.clone().to_bytes().unwrap_or_default(),
        };
        let request = Incoming {
            from: planned.client,
            call: number,
            key: planned.key,
            header: envelope.encode(),
            body,
            text,
        };
        context
            .network
            .send(&mut context.simulation, planned.client, to, || {
                let request = request.clone();
                WorldEvent::Requested { to, request }
            });
    }

    /// The machine has died: some of its clients learn it at once.
    pub fn lose_connections(&mut self, context: &mut Context, machine: Machine) {
        for (number, call) in &self.calls {
            if call.tried == Some(machine)
                && let Some(correlation) = call.current
                && context.simulation.chance(0.5)
            {
                context.count("client: connection lost");
                let event = Event::Failed {
                    call: *number,
                    correlation,
                    status: Status::new(Code::Unavailable, Work::OutcomeUnknown, "lost"),
                };
                context.after(Duration::from_millis(1), WorldEvent::Client(event));
            }
        }
    }

    fn replied(&mut self, context: &mut Context, header: &[u8], body: Bytes) {
        let Some((correlation, ended)) = decode_reply(header, body) else {
            let unreadable = || "the header of a reply cannot be read".to_owned();
            return context.simulation.require(false, unreadable);
        };
        let Some(&call) = self.correlations.get(&correlation) else {
            return;
        };
        match ended {
            Ok(reply) if self.is_current(call, correlation) => self.end(context, call, Ok(reply)),
            Ok(_) => {}
            Err(status) => self.failed(context, call, correlation, status),
        }
    }

    fn is_current(&self, call: u64, correlation: u64) -> bool {
        let call = self.calls.get(&call);
        call.is_some_and(|call| call.current == Some(correlation))
    }

    /// An attempt has failed. The rules are those of `resilience/retry.rs`.
    fn failed(&mut self, context: &mut Context, number: u64, correlation: u64, status: Status) {
        if !self.is_current(number, correlation) {
            return;
        }
        let now = self.base + context.now();
        let random = context.simulation.random().f64();
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        call.current = None;
        let client = call.planned.client;
        let next = call.retries.failed(now, status.clone(), random);
        let stopped = call.retries.stop(status);
        match next {
            Next::Stop(status) => self.end(context, number, Err(status)),
            // One attempt is in flight at a time.
            Next::Wait => {}
            Next::Again { from_budget, .. }
                if from_budget && !self.budget(client).withdraw(now) =>
            {
                self.end(context, number, Err(stopped));
            }
            Next::Again { after, .. } => {
                if let Some(call) = self.calls.get_mut(&number) {
                    call.attempt += 1;
                }
                let event = Event::Again { call: number };
                context.after(after, WorldEvent::Client(event));
            }
        }
    }

    fn end(&mut self, context: &mut Context, number: u64, ended: Result<RawReply, Status>) {
        let Some(call) = self.calls.remove(&number) else {
            return;
        };
        let Planned { client, key, kind } = call.planned;
        context
            .simulation
            .note(|| format!("call {number} of key {key} ends: {}", notes::ended(&ended)));
        let late = context.now().saturating_sub(call.deadline);
        context
            .simulation
            .require(late <= Duration::from_millis(50), || {
                format!("call {number} ends {late:?} after its deadline")
            });
        if let Err(status) = &ended
            && status.work() == Work::NotDone
        {
            context
                .promises
                .call_was_not_done(&mut context.simulation, number);
        }
        let (reason, work) = match &ended {
            Ok(_) => (None, Work::Done),
            Err(status) => (status.reason(), status.work()),
        };
        if reason == Some(Reason::KeyUnknown) {
            // Of a caller's own key, which says nothing of its age, that is not certain.
            let says_its_age = matches!(self.keys.get(&key), Some(RequestId::Uuid(_)));
            let expected = match says_its_age {
                true => Work::NotDone,
                false => Work::OutcomeUnknown,
            };
            context.simulation.require(work == expected, || {
                format!("call {number} asked, was answered, and is told {work:?}")
            });
        }
        let is_unknown = matches!(&ended, Err(status) if status.work() == Work::OutcomeUnknown);
        match kind {
            Kind::SettleAsk | Kind::SettleSend => self.settled(context, key, kind, ended),
            // The caller comes back for what it does not know.
            _ if is_unknown && !self.is_calm => {
                let kind = match context.simulation.random().u8(0..4) {
                    0 => return,
                    1 => Kind::Ask,
                    _ => Kind::Send,
                };
                let wait = context
                    .simulation
                    .duration(Duration::ZERO, Duration::from_secs(10));
                let planned = Planned { client, key, kind };
                context.after(wait, WorldEvent::Client(Event::Call(planned)));
            }
            _ => {}
        }
    }

    /// Somebody wants to know of every key how it ended, now that all is well.
    pub fn settle(&mut self, context: &mut Context) {
        self.is_calm = true;
        self.settle_until = context.now() + SETTLED_WITHIN;
        for key in self.unsettled.clone() {
            let wait = context
                .simulation
                .duration(Duration::from_secs(10), Duration::from_secs(20));
            context.after(wait, WorldEvent::Client(Event::Settle { key }));
        }
    }

    fn settled(
        &mut self,
        context: &mut Context,
        key: usize,
        kind: Kind,
        ended: Result<RawReply, Status>,
    ) {
        let reason = ended.as_ref().err().and_then(Status::reason);
        let is_settled = match (&ended, reason) {
            (Ok(_), _) | (_, Some(Reason::ReplyNotRetained | Reason::KeyExpired)) => true,
            // Somebody else's parameters were begun under this ID.
            (_, Some(Reason::KeyReused)) => kind == Kind::SettleSend,
            _ => false,
        };
        if is_settled {
            self.unsettled.retain(|open| *open != key);
        } else if context.now() < self.settle_until {
            // What was not done can be sent.
            let client = context.setting.client(key as u16 + 1);
            let (wait, kind) = match reason {
                Some(Reason::KeyUnknown) => (Duration::from_millis(10), Kind::SettleSend),
                // It may be run again, and is if it is sent.
                Some(Reason::InDoubt) if context.setting.recovery == Recovery::Rerun => {
                    (Duration::from_secs(1), Kind::SettleSend)
                }
                _ => (Duration::from_secs(1), Kind::SettleAsk),
            };
            let planned = Planned { client, key, kind };
            context.after(wait, WorldEvent::Client(Event::Call(planned)));
        } else {
            context
                .simulation
                .require(false, || format!("key {key} cannot be settled: {ended:?}"));
        }
    }

    pub fn are_settled(&self) -> bool {
        self.unsettled.is_empty() && self.calls.is_empty()
    }

    pub fn check_settled(&self, context: &mut Context) {
        let (unsettled, open) = (&self.unsettled, self.calls.len());
        context.simulation.require(self.are_settled(), || {
            format!("keys {unsettled:?} were never settled, {open} calls never ended")
        });
    }
}
