//! Servers: they drive the real attempts by the rules of `once/driver.rs`, event by event, and die
//! between any two of them.

use std::collections::BTreeMap;
use std::time::Duration;

use bowline::__simulated::{Action, Attempt, Done, Ended, Input, RequestEnvelope, encode_reply};
use bowline::call::RawReply;
use bowline::once::{Age, Change, Claim, Claimed, Epoch, Fingerprint, Key, Resolution, Verdict};
use bowline::schema::Recovery;
use bowline::{Code, Limits, RequestId, Status, Work};
use bytes::Bytes;

use super::client;
use super::handler::Plan;
use super::promises::Scope;
use super::setting::StoreKind;
use super::store::{Answer, Ask, Local, What};
use super::{Context, Event as WorldEvent, Fault, Mutant};
use crate::{Disk, Machine, Process};

/// Of the one method that there is.
pub(crate) const INTERFACE: u64 = 0xb0_11_9e;

/// A request as it arrives.
#[derive(Clone)]
pub(crate) struct Incoming {
    pub from: Machine,
    /// For the checker; a server does not look at these two.
    pub call: u64,
    pub key: usize,
    pub header: Bytes,
    pub body: Bytes,
    pub text: String,
}

/// What a store was asked for.
#[derive(Clone, Debug)]
pub(crate) enum AskedBy {
    /// What its attempt wants, for the n-th time.
    Job { job: u64, operation: u64 },
    /// Its handler.
    Commit { job: u64 },
    /// The housekeeping.
    Renew { job: u64 },
    /// Who was asked about its doubt.
    Resolve { job: u64 },
}

pub(crate) enum Event {
    Answered {
        asked_by: AskedBy,
        answer: Answer,
    },
    /// The transaction of an embedded store begins, and ends.
    Write,
    Written {
        answers: Vec<(AskedBy, Answer)>,
    },
    /// It asks the store again.
    Offer {
        job: u64,
        operation: u64,
    },
    /// Its wait for another's outcome is over.
    LookAgain {
        job: u64,
    },
    Handler {
        job: u64,
        stage: Stage,
    },
    RunOver {
        job: u64,
    },
    /// Its caller has given up.
    Deadline {
        job: u64,
    },
    Housekeeping,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stage {
    Effect,
    End,
}

struct Server {
    process: Process,
    /// Of all epochs of this life.
    owner: u64,
    local: Local,
    jobs: BTreeMap<u64, Job>,
    paused_until: Duration,
}

struct Job {
    copy: usize,
    scope: Scope,
    text: String,
    /// `None` once its caller was answered.
    reply_to: Option<(Machine, u64)>,
    key: Key,
    attempt: Attempt,
    claim: Option<Claim>,
    doing: Doing,
    operation: u64,
    offered: Option<Change>,
    give_up: Duration,
    again: Duration,
    has_waited: bool,
    run: Option<Run>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Doing {
    Asking,
    Running,
    Waiting,
}

struct Run {
    number: usize,
    plan: Plan,
    committed: Option<RawReply>,
    commits: u32,
    ends_with: Option<Ended>,
}

/// All machines that have a server, and their disk where they need one.
pub(crate) struct Servers {
    all: BTreeMap<Machine, Server>,
    disk: Disk,
    jobs: u64,
    /// Under which keys there may be records.
    scopes: BTreeMap<Key, Scope>,
    lost: Vec<Machine>,
}

const RECORD_AGAIN_MAX: Duration = Duration::from_secs(1);
const RECORD_AGAIN_MIN: Duration = Duration::from_millis(5);

impl Servers {
    pub fn new(context: &mut Context) -> Self {
        let faults = context.simulation.faults().clone();
        let disk = Disk::new(context.simulation.random(), faults);
        let mut servers = Self {
            all: BTreeMap::new(),
            disk,
            jobs: 0,
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
            StoreKind::Memory => Ok(Local::memory()),
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
        let server = Server {
            process,
            owner: context.simulation.random().u64(..),
            local,
            jobs: BTreeMap::new(),
            paused_until: Duration::ZERO,
        };
        context.simulation.note(|| format!("{process:?} is up"));
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
        context.simulation.note(|| format!("{process:?} is dead"));
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
        context.promises.crashed(process);
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
                    let note = || format!("{machine:?} is paused for {pause:?}");
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
            return context
                .simulation
                .require(false, || "a header cannot be read".to_owned());
        };
        self.begin(context, to, incoming, &envelope);
        self.crashes(context, to);
    }

    fn begin(
        &mut self,
        context: &mut Context,
        to: Machine,
        incoming: Incoming,
        envelope: &RequestEnvelope,
    ) {
        let Some(server) = self.all.get_mut(&to) else {
            return;
        };
        let process = server.process;
        let key = Key::of_call("", envelope.interface, envelope.method, &envelope.id);
        let scope = context.promises.scope(incoming.key, process);
        self.scopes.insert(key.clone(), scope);
        let terms = context.setting.terms;
        let age = Age {
            created: key.created(),
            retention: terms.retention,
            clock_skew_max: context.setting.clock_skew_max,
        };
        let number = self.jobs;
        self.jobs += 1;
        let (attempt, action, claim) = match envelope.outcome_only {
            true => {
                let (attempt, action) = Attempt::look(terms, age);
                (attempt, action, None)
            }
            false => {
                let Ok(fingerprint) =
                    Fingerprint::of_parameters(&incoming.body, &Limits::default())
                else {
                    return context
                        .simulation
                        .require(false, || "a body cannot be read".into());
                };
                let claim = Claim {
                    epoch: Epoch {
                        owner: server.owner,
                        number,
                    },
                    fingerprint,
                    recovery: context.setting.recovery,
                    lease: terms.lease,
                    age,
                };
                let (attempt, action) = Attempt::new(terms, claim.clone());
                (attempt, action, Some(claim))
            }
        };
        let copy = context.promises.arrived(
            scope,
            (incoming.call, envelope.correlation),
            claim.as_ref().map(|claim| claim.fingerprint),
            incoming.text.clone(),
        );
        context.simulation.note(|| {
            let (from, text, attempt) = (incoming.from, &incoming.text, envelope.attempt);
            let asks = if envelope.outcome_only {
                "asks for"
            } else {
                "sends"
            };
            format!("{process:?} job {number}: {from:?} {asks} {key:?} {text:?}, attempt {attempt}")
        });
        let job = Job {
            copy,
            scope,
            text: incoming.text,
            reply_to: Some((incoming.from, envelope.correlation)),
            key,
            attempt,
            claim,
            doing: Doing::Waiting,
            operation: 0,
            offered: None,
            give_up: Duration::ZERO,
            again: RECORD_AGAIN_MIN,
            has_waited: false,
            run: None,
        };
        server.jobs.insert(number, job);
        if let Some(remaining) = envelope.remaining {
            let event = Event::Deadline { job: number };
            context.after(remaining, WorldEvent::Server { process, event });
        }
        server.act(context, number, action);
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

impl Server {
    fn handle(&mut self, context: &mut Context, event: Event) {
        let process = self.process;
        match event {
            Event::Answered { asked_by, answer } => self.answered(context, asked_by, answer),
            Event::Write => {
                if let Local::Redb(redb) = &mut self.local {
                    redb.write(context, process);
                }
            }
            Event::Written { answers } => {
                if let Local::Redb(redb) = &mut self.local {
                    redb.written(context, process);
                }
                // Each is a step of its own.
                for (asked_by, answer) in answers {
                    let event = Event::Answered { asked_by, answer };
                    context.after(Duration::ZERO, WorldEvent::Server { process, event });
                }
            }
            Event::Offer { job, operation } => {
                if self
                    .jobs
                    .get(&job)
                    .is_some_and(|it| it.operation == operation)
                {
                    self.offer(context, job);
                }
            }
            Event::LookAgain { job } => {
                if self
                    .jobs
                    .get(&job)
                    .is_some_and(|job| job.doing == Doing::Waiting)
                {
                    self.step(context, job, Input::Changed);
                }
            }
            Event::Handler { job, stage } => self.go_on_with_handler(context, job, stage),
            Event::RunOver { job } => {
                if self.is_running(job) {
                    context.count("handler: hung");
                    let status = Status::deadline_exceeded(Work::OutcomeUnknown);
                    self.ran(context, job, Err(status));
                }
            }
            Event::Deadline { job } => self.give_up(context, job),
            Event::Housekeeping => {
                let running: Vec<u64> = (self.jobs.iter())
                    .filter(|(_, job)| job.doing == Doing::Running)
                    .map(|(number, _)| *number)
                    .collect();
                for job in running {
                    self.renew(context, job);
                }
                let every = context.setting.terms.lease / 3;
                let event = Event::Housekeeping;
                context.after(every, WorldEvent::Server { process, event });
            }
        }
    }

    fn is_running(&self, job: u64) -> bool {
        self.jobs
            .get(&job)
            .is_some_and(|job| job.doing == Doing::Running)
    }

    fn ask(&mut self, context: &mut Context, asked_by: AskedBy, job: u64, what: What) {
        if let Some(job) = self.jobs.get(&job) {
            let ask = Ask {
                key: job.key.clone(),
                scope: job.scope,
                what,
            };
            self.local.ask(context, self.process, asked_by, ask);
        }
    }

    fn answered(&mut self, context: &mut Context, asked_by: AskedBy, answer: Answer) {
        match asked_by {
            AskedBy::Job { job, operation } => {
                if self
                    .jobs
                    .get(&job)
                    .is_some_and(|it| it.operation == operation)
                {
                    self.store_answered(context, job, answer);
                }
            }
            AskedBy::Commit { job } => self.committed(context, job, answer),
            AskedBy::Renew { job } => {
                if let Ok(Done::Verdict(Verdict::Superseded)) = answer
                    && self.is_running(job)
                {
                    self.supersede(context, job);
                }
            }
            AskedBy::Resolve { job } => match answer {
                Ok(Done::Verdict(Verdict::Applied | Verdict::Done(_) | Verdict::Unknown)) => {
                    self.step(context, job, Input::Changed);
                }
                _ => self.answer(context, job, Err(in_doubt())),
            },
        }
    }

    fn supersede(&mut self, context: &mut Context, job: u64) {
        context.count("handler: ended by another attempt");
        let status = Status::new(
            Code::Aborted,
            Work::OutcomeUnknown,
            "another attempt has taken over",
        );
        self.ran(context, job, Err(status));
    }

    fn step(&mut self, context: &mut Context, job: u64, input: Input) {
        if let Some(it) = self.jobs.get_mut(&job) {
            let action = it.attempt.step(input);
            self.act(context, job, action);
        }
    }

    fn act(&mut self, context: &mut Context, number: u64, action: Action) {
        let process = self.process;
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        let is_active = job.claim.is_some() && matches!(action, Action::Apply(_) | Action::Run);
        (context.promises).set_active(number, job.scope, process, is_active);
        match action {
            Action::Apply(change) => {
                job.doing = Doing::Asking;
                job.offered = Some(change);
                job.give_up = context.now() + context.setting.terms.lease;
                job.again = RECORD_AGAIN_MIN;
                self.offer(context, number);
            }
            Action::Run => self.run(context, number),
            // What has no caller any more waits for nothing.
            Action::Wait { .. } | Action::AskAboutDoubt(_) if job.reply_to.is_none() => {
                self.jobs.remove(&number);
            }
            Action::Wait { until } => {
                job.doing = Doing::Waiting;
                job.has_waited = true;
                let lease = until.since(context.clock(process.machine));
                let lease = lease.max(Duration::from_millis(10));
                let wait = context
                    .simulation
                    .duration(Duration::from_millis(10), Duration::from_millis(300));
                let event = Event::LookAgain { job: number };
                context.after(wait.min(lease), WorldEvent::Server { process, event });
            }
            Action::AskAboutDoubt(status) => self.ask_about_doubt(context, number, status),
            Action::Answer(ended) => self.answer(context, number, ended),
        }
    }

    fn offer(&mut self, context: &mut Context, number: u64) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        job.operation += 1;
        let operation = job.operation;
        if let Some(change) = job.offered.clone() {
            let asked_by = AskedBy::Job {
                job: number,
                operation,
            };
            self.ask(context, asked_by, number, What::Change(change));
        }
    }

    fn store_answered(&mut self, context: &mut Context, number: u64, answer: Answer) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        if job.doing != Doing::Asking {
            return;
        }
        let is_asking = matches!(job.offered, Some(Change::Begin(_) | Change::Look(_)) | None);
        let input = match answer {
            Ok(Done::Verdict(verdict)) => Input::Verdict(verdict),
            _ if is_asking || context.now() + job.again >= job.give_up => Input::StoreFailed,
            _ => {
                let (again, operation) = (job.again, job.operation);
                job.again = (again * 2).min(RECORD_AGAIN_MAX);
                let event = Event::Offer {
                    job: number,
                    operation,
                };
                let process = self.process;
                return context.after(again, WorldEvent::Server { process, event });
            }
        };
        let input = match (input, context.mutant) {
            (
                Input::Verdict(Verdict::Done(_) | Verdict::InFlight { .. } | Verdict::InDoubt),
                Some(Mutant::NoDeduplication),
            ) if job.claim.is_some() && is_asking => Input::Verdict(Verdict::Run),
            (input, _) => input,
        };
        self.step(context, number, input);
    }

    fn run(&mut self, context: &mut Context, number: u64) {
        // One of a key and process has its lease renewed: the last.
        let key = self.jobs.get(&number).map(|job| job.key.clone());
        let earlier: Vec<u64> = (self.jobs.iter())
            .filter(|(_, job)| job.doing == Doing::Running && Some(&job.key) == key.as_ref())
            .map(|(number, _)| *number)
            .collect();
        for earlier in earlier {
            self.supersede(context, earlier);
        }
        let process = self.process;
        let plan = Plan::new(context);
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        let scope = job.scope;
        context
            .simulation
            .note(|| format!("{process:?} job {number} runs: {plan:?}"));
        // Its number is the next one of the checker's.
        let next = context.promises.next_run();
        let reply = plan.reply(next, &job.text);
        let run = context
            .promises
            .began(&mut context.simulation, job.copy, reply);
        debug_assert_eq!(run, next, "{scope:?}");
        let before = plan.before;
        job.doing = Doing::Running;
        job.run = Some(Run {
            number: run,
            plan,
            committed: None,
            commits: 0,
            ends_with: None,
        });
        let event = Event::Handler {
            job: number,
            stage: Stage::Effect,
        };
        context.after(before, WorldEvent::Server { process, event });
        let event = Event::RunOver { job: number };
        let run_max = context.setting.run_max;
        context.after(run_max, WorldEvent::Server { process, event });
    }

    fn go_on_with_handler(&mut self, context: &mut Context, number: u64, stage: Stage) {
        if !self.is_running(number) {
            return;
        }
        let process = self.process;
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        let Some(run) = &mut job.run else {
            return;
        };
        let is_atomic = context.setting.recovery == Recovery::Atomic;
        match stage {
            Stage::Effect if run.plan.ending.has_effect() && is_atomic => {
                run.commits += 1;
                let reply = run.plan.reply(run.number, &job.text);
                let (claimed, run) = (claimed(context, job.claim.as_ref(), &job.key), run.number);
                let what = What::Commit {
                    claimed,
                    reply,
                    run,
                };
                self.ask(context, AskedBy::Commit { job: number }, number, what);
            }
            Stage::Effect => {
                if run.plan.ending.has_effect() {
                    let number = run.number;
                    (context.promises).effected(&mut context.simulation, number);
                }
                self.end_later(context, number);
            }
            Stage::End => {
                let ended = match run.ends_with.take() {
                    Some(ended) => Some(ended),
                    None => run.plan.end(run.number, &job.text),
                };
                let Some(ended) = ended else {
                    return;
                };
                match &ended {
                    Err(status) if status.work() == Work::NotDone => {
                        context.count("handler: said that nothing was done");
                    }
                    Err(_) => context.count("handler: said that nobody knows"),
                    Ok(_) => {}
                }
                context
                    .simulation
                    .note(|| format!("{process:?} job {number} ran: {ended:?}"));
                self.ran(context, number, ended);
            }
        }
    }

    fn end_later(&mut self, context: &mut Context, number: u64) {
        let process = self.process;
        let run = self.jobs.get(&number).and_then(|job| job.run.as_ref());
        if let Some(run) = run {
            let event = Event::Handler {
                job: number,
                stage: Stage::End,
            };
            context.after(run.plan.after, WorldEvent::Server { process, event });
        }
    }

    /// The handler's transaction is over, for the handler that still waits for it.
    fn committed(&mut self, context: &mut Context, number: u64, answer: Answer) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        if job.doing != Doing::Running {
            return;
        }
        let Some(run) = &mut job.run else {
            return;
        };
        match answer {
            Ok(Done::Committed(Ok(reply))) => {
                run.committed = Some(reply);
                // Some handlers know no measure: what they commit again must not count.
                if run.commits == 1 && context.fault(0.2) {
                    run.commits += 1;
                    let again = run.plan.reply(run.number, &format!("{} again", job.text));
                    let claimed = claimed(context, job.claim.as_ref(), &job.key);
                    let (reply, run) = (again, run.number);
                    let what = What::Commit {
                        claimed,
                        reply,
                        run,
                    };
                    return self.ask(context, AskedBy::Commit { job: number }, number, what);
                }
            }
            Ok(Done::Committed(Err(status))) => run.ends_with = Some(Err(status)),
            _ => {
                let status = Status::new(Code::Unavailable, Work::OutcomeUnknown, "who knows");
                run.ends_with = Some(Err(status));
            }
        }
        self.end_later(context, number);
    }

    fn ran(&mut self, context: &mut Context, number: u64, ended: Ended) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        let committed = job.run.as_mut().and_then(|run| run.committed.take());
        if context.mutant == Some(Mutant::ReplyBeforeRecord) && ended.is_ok() {
            self.reply(context, number, &ended);
        }
        let input = match committed {
            Some(reply) => Input::Committed(Ok(reply)),
            None => Input::Ran(ended),
        };
        self.step(context, number, input);
    }

    fn renew(&mut self, context: &mut Context, number: u64) {
        let claim = self.jobs.get(&number).and_then(|job| job.claim.as_ref());
        if let Some(claim) = claim {
            let renew = Change::Renew {
                epoch: claim.epoch,
                lease: claim.lease,
            };
            self.ask(
                context,
                AskedBy::Renew { job: number },
                number,
                What::Change(renew),
            );
        }
    }

    /// An application that looks for traces of its work, and does not always have the time.
    fn ask_about_doubt(&mut self, context: &mut Context, number: u64, status: Status) {
        context.count("once: in doubt");
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        job.doing = Doing::Waiting;
        let scope = job.scope;
        let was_done = match context.fault(0.5) {
            true => None,
            false => context.promises.was_done(scope),
        };
        let resolution = match was_done {
            None => return self.answer(context, number, Err(status)),
            Some(true) => {
                context.count("once: resolved as done");
                Resolution::Done {
                    outcome: context.promises.found(scope),
                    retention: context.setting.terms.retention,
                }
            }
            Some(false) => {
                context.count("once: resolved as not done");
                Resolution::NotDone
            }
        };
        let resolve = What::Change(Change::Resolve(resolution));
        self.ask(context, AskedBy::Resolve { job: number }, number, resolve);
    }

    fn give_up(&mut self, context: &mut Context, number: u64) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        if job.reply_to.is_none() {
            return;
        }
        let is_waiting = job.doing == Doing::Waiting;
        let status = Status::deadline_exceeded(Work::OutcomeUnknown);
        self.reply(context, number, &Err(status));
        if is_waiting {
            self.jobs.remove(&number);
        }
    }

    fn answer(&mut self, context: &mut Context, number: u64, ended: Ended) {
        if let Some(job) = self.jobs.get(&number) {
            let rare = match &ended {
                Ok(reply) if reply.replayed && job.has_waited => Some("once: joined"),
                Ok(reply) if reply.replayed => Some("once: replayed"),
                Ok(_) => None,
                Err(status) => match status.reason() {
                    Some(bowline::Reason::KeyReused) => Some("once: key reused"),
                    Some(bowline::Reason::KeyExpired) => Some("once: key expired"),
                    Some(bowline::Reason::ReplyNotRetained) => Some("once: reply not retained"),
                    _ => None,
                },
            };
            if let Some(rare) = rare {
                context.count(rare);
            }
            self.reply(context, number, &ended);
            let scope = job_scope(&self.jobs, number);
            (context.promises).set_active(number, scope, self.process, false);
            self.jobs.remove(&number);
        }
    }

    /// Tells the caller, if it still waits.
    fn reply(&mut self, context: &mut Context, number: u64, ended: &Ended) {
        let process = self.process;
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        // Also where its caller has gone: what it would be told must be true.
        (context.promises).answered(&mut context.simulation, job.copy, ended);
        let Some((caller, correlation)) = job.reply_to.take() else {
            return;
        };
        let note = || format!("{process:?} job {number} replies: {ended:?}");
        context.simulation.note(note);
        let header = encode_reply(correlation, ended);
        let body = ended
            .as_ref()
            .map_or_else(|_| Bytes::new(), |reply| reply.body.clone());
        context
            .network
            .send(&mut context.simulation, process.machine, caller, || {
                WorldEvent::Client(client::Event::Replied {
                    header: header.clone(),
                    body: body.clone(),
                })
            });
    }
}

fn job_scope(jobs: &BTreeMap<u64, Job>, number: u64) -> Scope {
    jobs.get(&number).map_or((0, 0), |job| job.scope)
}

fn claimed(context: &Context, claim: Option<&Claim>, key: &Key) -> Claimed {
    let none = Epoch {
        owner: 0,
        number: 0,
    };
    Claimed {
        key: key.clone(),
        epoch: claim.map_or(none, |claim| claim.epoch),
        retention: context.setting.terms.retention,
        reply_bytes_max: context.setting.terms.reply_bytes_max,
    }
}

fn in_doubt() -> Status {
    Status::new(Code::Unknown, Work::OutcomeUnknown, "nobody knows")
        .with_reason(bowline::Reason::InDoubt)
}

/// What a client sends for a key.
pub(crate) fn envelope(
    id: &RequestId,
    attempt: u16,
    correlation: u64,
    remaining: Duration,
    outcome_only: bool,
) -> RequestEnvelope {
    RequestEnvelope {
        interface: INTERFACE,
        method: 0,
        attempt,
        correlation,
        id: id.clone(),
        remaining: Some(remaining),
        outcome_only,
    }
}
