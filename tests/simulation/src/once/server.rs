//! One server: it drives the real attempts by the rules of `once/driver.rs`, event by event.

use std::collections::BTreeMap;
use std::time::Duration;

use bowline::__simulated::{Action, Attempt, Done, Ended, Input, RequestEnvelope, encode_reply};
use bowline::once::{Age, Change, Claim, Epoch, Fingerprint, Key, Resolution, Verdict};
use bowline::schema::Recovery;
use bowline::{Code, Limits, RequestId, Status, Work};
use bytes::Bytes;

use super::client;
use super::handler::{Run, Stage};
use super::promises::Scope;
use super::store::{Answer, Ask, Local, What};
use super::{Context, Event as WorldEvent, Mutant, notes};
use crate::{Machine, Process};

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
    /// What the store may have begun unheard.
    Release { number: u64 },
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
    /// It gives a claim back.
    Release {
        number: u64,
    },
}

pub(crate) struct Server {
    pub process: Process,
    /// Of all epochs of this life.
    owner: u64,
    local: Local,
    pub jobs: BTreeMap<u64, Job>,
    /// Claims whose answer was lost, by the number of their job.
    releases: BTreeMap<u64, (Key, Scope, Epoch)>,
    pub paused_until: Duration,
}

/// A request that it works on.
pub(crate) struct Job {
    pub copy: usize,
    pub scope: Scope,
    pub text: String,
    /// `None` once its caller was answered.
    reply_to: Option<(Machine, u64)>,
    pub key: Key,
    attempt: Attempt,
    pub claim: Option<Claim>,
    pub doing: Doing,
    operation: u64,
    offered: Option<Change>,
    give_up: Duration,
    again: Duration,
    has_waited: bool,
    /// Whether the store has just failed it.
    is_gone: bool,
    /// When it asked the store last, and when its handler began.
    pub offered_at: Duration,
    pub running_since: Duration,
    pub run: Option<Run>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Doing {
    Asking,
    Running,
    Waiting,
}

const RECORD_AGAIN_MAX: Duration = Duration::from_secs(1);
const RECORD_AGAIN_MIN: Duration = Duration::from_millis(5);

impl Server {
    pub fn new(process: Process, owner: u64, local: Local) -> Self {
        Self {
            process,
            owner,
            local,
            jobs: BTreeMap::new(),
            releases: BTreeMap::new(),
            paused_until: Duration::ZERO,
        }
    }

    /// A request begins. Returns what it may be recorded under.
    pub fn accept(
        &mut self,
        context: &mut Context,
        incoming: Incoming,
        envelope: &RequestEnvelope,
    ) -> (Key, Scope) {
        let process = self.process;
        let key = Key::of_call("", envelope.interface, envelope.method, &envelope.id);
        let scope = context.promises.scope(incoming.key, process);
        let terms = context.setting.terms;
        let age = Age {
            created: key.created(),
            retention: terms.retention,
            clock_skew_max: context.setting.clock_skew_max,
        };
        let number = context.promises.next_job();
        let claim = (!envelope.outcome_only).then(|| Claim {
            epoch: Epoch {
                owner: self.owner,
                number,
            },
            fingerprint: fingerprint(&incoming.body),
            recovery: context.setting.recovery,
            lease: terms.lease,
            age,
        });
        let (attempt, action) = match claim.clone() {
            Some(claim) => Attempt::new(terms, claim),
            None => Attempt::look(terms, age),
        };
        let copy = context.promises.arrived(
            scope,
            (incoming.call, envelope.correlation),
            claim.as_ref().map(|claim| claim.fingerprint),
            incoming.text.clone(),
        );
        context.simulation.note(|| {
            let (from, key, attempt) = (incoming.from, incoming.key, envelope.attempt);
            let text = &incoming.text;
            let asks = if envelope.outcome_only {
                "asks for the outcome of"
            } else {
                "sends"
            };
            format!("{process} job {number}: {from} {asks} key {key} {text:?}, attempt {attempt}")
        });
        let job = Job {
            copy,
            scope,
            text: incoming.text,
            reply_to: Some((incoming.from, envelope.correlation)),
            key: key.clone(),
            attempt,
            claim,
            doing: Doing::Waiting,
            operation: 0,
            offered: None,
            give_up: Duration::ZERO,
            again: RECORD_AGAIN_MIN,
            has_waited: false,
            is_gone: false,
            offered_at: Duration::ZERO,
            running_since: Duration::ZERO,
            run: None,
        };
        self.jobs.insert(number, job);
        if let Some(remaining) = envelope.remaining {
            let event = Event::Deadline { job: number };
            context.after(remaining, WorldEvent::Server { process, event });
        }
        self.act(context, number, action);
        (key, scope)
    }

    pub fn handle(&mut self, context: &mut Context, event: Event) {
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
                self.maybe_jump(context);
                let every = context.setting.terms.lease / 3;
                let event = Event::Housekeeping;
                context.after(every, WorldEvent::Server { process, event });
            }
            Event::Release { number } => {
                if let Some((key, scope, epoch)) = self.releases.get(&number).cloned() {
                    let what = What::Change(Change::Release { epoch });
                    let ask = Ask { key, scope, what };
                    let asked_by = AskedBy::Release { number };
                    self.local.ask(context, process, asked_by, ask);
                }
            }
        }
    }

    /// Somebody sets the clock, or the machine has slept.
    fn maybe_jump(&mut self, context: &mut Context) {
        if context.fault(context.setting.clock_jump) {
            let most = context.setting.terms.lease * 4;
            let jump = context.simulation.duration(Duration::ZERO, most);
            let machine = self.process.machine;
            *context.jumped.entry(machine).or_default() += jump;
            context.count("clock: jumped");
            let note = || format!("the clock of {machine} jumps {jump:?} ahead");
            context.simulation.note(note);
        }
    }

    /// Gives a claim back in the background, until the store has taken it.
    fn release(&mut self, context: &mut Context, number: u64, epoch: Epoch) {
        context.count("once: given back beside");
        if let Some(job) = self.jobs.get(&number) {
            let claim = (job.key.clone(), job.scope, epoch);
            self.releases.insert(number, claim);
            self.release_soon(context, number);
        }
    }

    fn release_soon(&mut self, context: &mut Context, number: u64) {
        let (process, event) = (self.process, Event::Release { number });
        let wait = context
            .simulation
            .duration(RECORD_AGAIN_MIN, RECORD_AGAIN_MAX);
        context.after(wait, WorldEvent::Server { process, event });
    }

    /// What is said without the store: an attempt of this key runs here, whatever its lease is.
    fn runs_here(&self, context: &Context, number: u64, change: &Change) -> Option<Verdict> {
        if let Some(Mutant::ClockEndsLeases | Mutant::NoDeduplication) = context.mutant {
            return None;
        }
        let own = self.jobs.get(&number)?;
        let asked = match change {
            Change::Begin(claim) => Some(claim.fingerprint),
            Change::Look(_) => None,
            _ => return None,
        };
        let running = self
            .jobs
            .values()
            .find(|job| job.doing == Doing::Running && job.key == own.key)?;
        let claim = running.claim.as_ref()?;
        Some(match asked {
            Some(asked) if asked != claim.fingerprint => Verdict::KeyReused,
            _ => Verdict::InFlight {
                until: context.clock(self.process.machine) + claim.lease,
            },
        })
    }

    pub fn is_running(&self, job: u64) -> bool {
        self.jobs
            .get(&job)
            .is_some_and(|job| job.doing == Doing::Running)
    }

    pub fn ask(&mut self, context: &mut Context, asked_by: AskedBy, job: u64, what: What) {
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
                Ok(Done::Verdict(
                    Verdict::Applied | Verdict::Done(_) | Verdict::Unknown | Verdict::Superseded,
                )) => {
                    self.step(context, job, Input::Changed);
                }
                _ => self.answer(context, job, Err(in_doubt())),
            },
            AskedBy::Release { number } => match answer {
                Ok(_) => {
                    self.releases.remove(&number);
                }
                Err(()) => self.release_soon(context, number),
            },
        }
    }

    pub fn step(&mut self, context: &mut Context, job: u64, input: Input) {
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
            Action::Apply(Change::Release { epoch }) if job.is_gone => {
                self.release(context, number, epoch);
                self.step(context, number, Input::StoreFailed);
            }
            Action::Apply(change) => {
                job.doing = Doing::Asking;
                job.offered = Some(change);
                job.give_up = context.now() + context.setting.terms.lease;
                job.again = RECORD_AGAIN_MIN;
                self.offer(context, number);
            }
            Action::Run => self.run(context, number),
            // What has no caller any more waits for nothing.
            Action::Wait { .. } | Action::AskAboutDoubt { .. } if job.reply_to.is_none() => {
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
            Action::AskAboutDoubt { epoch, status } => {
                self.ask_about_doubt(context, number, epoch, status);
            }
            Action::Answer(ended) => self.answer(context, number, ended),
        }
    }

    fn offer(&mut self, context: &mut Context, number: u64) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        job.operation += 1;
        job.offered_at = context.now();
        let operation = job.operation;
        let offered = job.offered.clone();
        if let Some(change) = &offered
            && let Some(verdict) = self.runs_here(context, number, change)
        {
            context.count("once: runs here, whatever its lease");
            return self.step(context, number, Input::Verdict(verdict));
        }
        if let Some(mut change) = offered {
            if let (Change::Begin(claim), Some(Mutant::NoTraceOfForgotten)) =
                (&mut change, context.mutant)
            {
                claim.age.created = None;
            }
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
        let is_asking = matches!(
            job.offered,
            Some(Change::Begin(_) | Change::Look(_) | Change::Release { .. }) | None
        );
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
                Input::Verdict(
                    Verdict::Done(_) | Verdict::InFlight { .. } | Verdict::InDoubt { .. },
                ),
                Some(Mutant::NoDeduplication),
            ) if job.claim.is_some() && is_asking => Input::Verdict(Verdict::Run),
            (Input::Verdict(Verdict::InDoubt { .. }), Some(Mutant::RerunIsNotDone))
                if job.claim.is_none() && context.setting.recovery == Recovery::Rerun =>
            {
                Input::Verdict(Verdict::Unknown)
            }
            (input, _) => input,
        };
        job.is_gone = matches!(input, Input::StoreFailed);
        let released = job.attempt.release().filter(|_| job.is_gone);
        if let Some(epoch) = released {
            self.release(context, number, epoch);
        }
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
    fn ask_about_doubt(
        &mut self,
        context: &mut Context,
        number: u64,
        epoch: Epoch,
        status: Status,
    ) {
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
        let epoch = Some(epoch);
        let resolve = What::Change(Change::Resolve { epoch, resolution });
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
    pub fn reply(&mut self, context: &mut Context, number: u64, ended: &Ended) {
        let process = self.process;
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        // Also where its caller has gone: what it would be told must be true.
        (context.promises).answered(&mut context.simulation, job.copy, ended);
        let Some((caller, correlation)) = job.reply_to.take() else {
            return;
        };
        let note = || format!("{process} job {number} replies: {}", notes::ended(ended));
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

/// What has no fingerprint is refused before it comes to an attempt; nobody sends that here.
fn fingerprint(body: &Bytes) -> Fingerprint {
    let limits = Limits::default();
    Fingerprint::of_parameters(body, &limits).unwrap_or_else(|_| Fingerprint::of_bytes(body))
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
