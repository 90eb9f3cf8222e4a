//! What a handler does: takes time, has its effect, takes time again, and ends one way or another.

use std::time::Duration;

use bowline::__simulated::{Done, Ended, Input};
use bowline::call::{Outcome, RawReply};
use bowline::once::{Claim, Claimed, Epoch, Key};
use bowline::schema::Recovery;
use bowline::{Code, Status, Work};
use bytes::Bytes;

use super::server::{AskedBy, Doing, Event, Server};
use super::setting::REPLY_BYTES_MAX;
use super::store::{Answer, What};
use super::{Context, Event as WorldEvent, Mutant, notes};

/// What one run of a handler will do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Until its effect.
    pub before: Duration,
    /// From there to its end.
    pub after: Duration,
    pub ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Success,
    ApplicationError,
    /// Its reply is too large to be kept.
    Large,
    /// Without an effect.
    NotDone,
    /// Without an effect, and it does not know that.
    UnknownWithout,
    /// With one, and it does not know that.
    UnknownWith,
    /// Not by itself.
    Never,
}

impl Ending {
    pub fn has_effect(self) -> bool {
        !matches!(self, Self::NotDone | Self::UnknownWithout)
    }
}

impl Plan {
    pub fn new(context: &mut Context) -> Self {
        let lease = context.setting.terms.lease;
        let slow_handler = context.setting.slow_handler;
        let time = |context: &mut Context| {
            if context.fault(slow_handler) {
                context.count("handler: slow");
                return context.simulation.duration(lease / 2, lease * 2);
            }
            context
                .simulation
                .duration(Duration::ZERO, Duration::from_millis(50))
        };
        let ending = match context.simulation.random().u8(0..20) {
            _ if !context.is_faulty => Ending::Success,
            0 | 1 => Ending::ApplicationError,
            2 => Ending::Large,
            3 => Ending::NotDone,
            4 => Ending::UnknownWithout,
            5 => Ending::UnknownWith,
            6 => Ending::Never,
            _ => Ending::Success,
        };
        Self {
            before: time(context),
            after: time(context),
            ending,
        }
    }

    /// What it replies. No two runs reply the same.
    pub fn reply(&self, run: usize, body: &str) -> RawReply {
        let mut text = format!("run {run} of {body}");
        if self.ending == Ending::Large {
            text.push_str(&"…".repeat(REPLY_BYTES_MAX));
        }
        let outcome = match self.ending {
            Ending::ApplicationError => Outcome::ApplicationError,
            _ => Outcome::Success,
        };
        RawReply::new(outcome, Bytes::from(text))
    }

    /// How it ends; `None` if it does not.
    pub fn end(&self, run: usize, body: &str) -> Option<Result<RawReply, Status>> {
        match self.ending {
            Ending::Success | Ending::ApplicationError | Ending::Large => {
                Some(Ok(self.reply(run, body)))
            }
            Ending::NotDone => Some(Err(Status::resource_exhausted("not now"))),
            Ending::UnknownWithout | Ending::UnknownWith => Some(Err(Status::new(
                Code::Internal,
                Work::OutcomeUnknown,
                "who knows",
            ))),
            Ending::Never => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stage {
    Effect,
    End,
}

/// A handler that runs, or has run.
pub(crate) struct Run {
    number: usize,
    plan: Plan,
    committed: Option<RawReply>,
    commits: u32,
    ends_with: Option<Ended>,
}

impl Server {
    pub fn run(&mut self, context: &mut Context, number: u64) {
        // One of a key and process has its lease renewed: the last.
        let key = self.jobs.get(&number).map(|job| job.key.clone());
        let earlier: Vec<(u64, Duration)> = (self.jobs.iter())
            .filter(|(_, job)| job.doing == Doing::Running && Some(&job.key) == key.as_ref())
            .map(|(number, job)| (*number, job.running_since))
            .collect();
        // What was asked before it ran may be granted after its lease.
        let offered_at = self.jobs.get(&number).map(|job| job.offered_at);
        let lived = earlier.iter().any(|(_, since)| Some(*since) < offered_at);
        context.simulation.require(!lived, || {
            format!("job {number} takes over from one that lives in the same process")
        });
        for (earlier, _) in earlier {
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
            .note(|| format!("{process} job {number} runs: {plan:?}"));
        // Its number is the next one of the checker's.
        let next = context.promises.next_run();
        let reply = plan.reply(next, &job.text);
        let run = context
            .promises
            .began(&mut context.simulation, job.copy, reply);
        debug_assert_eq!(run, next, "{scope:?}");
        let before = plan.before;
        job.doing = Doing::Running;
        job.running_since = context.simulation.now();
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

    pub fn go_on_with_handler(&mut self, context: &mut Context, number: u64, stage: Stage) {
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
                    .note(|| format!("{process} job {number} ran: {}", notes::ended(&ended)));
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
    pub fn committed(&mut self, context: &mut Context, number: u64, answer: Answer) {
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

    pub fn ran(&mut self, context: &mut Context, number: u64, ended: Ended) {
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

    pub fn supersede(&mut self, context: &mut Context, job: u64) {
        context.count("handler: ended by another attempt");
        let status = Status::new(
            Code::Aborted,
            Work::OutcomeUnknown,
            "another attempt has taken over",
        );
        self.ran(context, job, Err(status));
    }
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
