//! What a server does with one request of a `$once` method: a state machine.
//!
//! It claims, runs, records, and only then answers. It does none of this itself: each step says what to do next,
//! and is told how that went. [`Once`](super::Once) drives it with tokio, the simulator without.

use std::time::Duration;

use super::{Change, Claim, Recorded, Timestamp, Verdict};
use crate::call::{RawReply, RawRequest};
use crate::message::Limits;
use crate::schema::Recovery;
use crate::wire::{Code, Reason, Status, Work};

/// How an attempt ends.
pub type Ended = Result<RawReply, Status>;

/// The terms that outcomes are kept under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long an outcome is kept from its completion.
    pub retention: Duration,
    /// How long an attempt may be silent before it is taken for dead.
    pub lease: Duration,
    /// Replies over this keep their digest only.
    pub reply_bytes_max: usize,
    /// What a duplicate of a running request gets.
    pub duplicates: Duplicates,
}

/// What a duplicate gets while the first is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplicates {
    /// It waits, until its own deadline, for the same reply.
    Join,
    /// [`Reason::InProgress`] at once, asking it to come back after this long.
    Refuse(Duration),
}

/// One request on its way through a server.
#[derive(Debug)]
pub struct Attempt {
    terms: Terms,
    purpose: Purpose,
    phase: Phase,
}

#[derive(Debug)]
enum Purpose {
    Run(Claim),
    Look(Change),
}

#[derive(Debug)]
enum Phase {
    /// The store was asked to begin, or to look.
    Asked,
    /// The handler runs.
    Running,
    /// The store was asked to record this.
    Recording(Ended),
    /// Another has it.
    Waiting,
    Over,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The store did what it was asked.
    Verdict(Verdict),
    /// Nobody knows whether it did.
    StoreFailed,
    /// It did not, and never will: it could not be reached.
    NotApplied,
    /// The record that was waited for may have changed.
    Changed,
    /// The handler is done.
    Ran(Ended),
    /// The handler is done and has committed this in its own transaction.
    Committed(Ended),
}

/// What to do next.
#[derive(Debug)]
pub enum Action {
    /// Have the store apply this, and say what it said.
    Apply(Change),
    /// Run the handler, which nobody else does now.
    Run,
    /// Watch the record, at most until this lease runs out.
    Wait {
        /// The end of the other's lease.
        until: Timestamp,
    },
    /// Somebody who knows should say what became of it. If nobody does, answer this.
    AskAboutDoubt {
        /// Of the attempt that is in doubt.
        epoch: super::Epoch,
        /// The answer, if nobody knows.
        status: Status,
    },
    /// Answer. The attempt is over.
    Answer(Ended),
}

impl Attempt {
    /// A request that wants to be run. The first thing to do comes with it.
    pub fn new(terms: Terms, claim: Claim) -> (Self, Action) {
        let ask = Action::Apply(Change::Begin(claim.clone()));
        (Self::asking(terms, Purpose::Run(claim)), ask)
    }

    /// A request for the outcome only.
    pub fn look(terms: Terms, age: super::Age) -> (Self, Action) {
        let look = Change::Look(age);
        let ask = Action::Apply(look.clone());
        (Self::asking(terms, Purpose::Look(look)), ask)
    }

    /// What it claimed or wants to; none where it only looks.
    pub fn claim(&self) -> Option<&Claim> {
        match &self.purpose {
            Purpose::Run(claim) => Some(claim),
            Purpose::Look(_) => None,
        }
    }

    fn asking(terms: Terms, purpose: Purpose) -> Self {
        let phase = Phase::Asked;
        Self {
            terms,
            purpose,
            phase,
        }
    }

    /// The next thing to do.
    pub fn step(&mut self, input: Input) -> Action {
        match (std::mem::replace(&mut self.phase, Phase::Over), input) {
            (Phase::Asked, Input::Verdict(verdict)) => self.asked(verdict),
            (Phase::Asked, Input::StoreFailed) => self.not_begun(),
            (Phase::Asked, Input::NotApplied) => Action::Answer(Err(self.store_unavailable())),
            (Phase::Waiting, Input::Changed) => self.ask(),
            (Phase::Running, Input::Committed(ended)) => Action::Answer(ended),
            (Phase::Running, Input::Ran(ended)) => self.ran(ended),
            (Phase::Recording(ended), Input::Verdict(Verdict::Applied)) => Action::Answer(ended),
            // This attempt did nothing. One before it was begun, and may have.
            (Phase::Recording(Err(status)), Input::Verdict(Verdict::InDoubt { .. })) => {
                Action::Answer(Err(status.with_work(Work::OutcomeUnknown)))
            }
            // Nothing was done and nothing is promised: its claim is gone, or will run out.
            (Phase::Recording(Err(status)), _) if status.work() == Work::NotDone => {
                Action::Answer(Err(status))
            }
            (Phase::Recording(_), Input::Verdict(_)) => Action::Answer(Err(superseded())),
            (Phase::Recording(_), Input::StoreFailed | Input::NotApplied) => {
                Action::Answer(Err(not_recorded()))
            }
            (phase, input) => {
                debug_assert!(false, "{input:?} in {phase:?}");
                Action::Answer(Err(Status::internal("the attempt lost its way")))
            }
        }
    }

    fn ask(&mut self) -> Action {
        self.phase = Phase::Asked;
        Action::Apply(match &self.purpose {
            Purpose::Run(claim) => Change::Begin(claim.clone()),
            Purpose::Look(look) => look.clone(),
        })
    }

    /// The store may have begun although it did not say so. The claim is given back, if it can be.
    fn not_begun(&mut self) -> Action {
        match &self.purpose {
            Purpose::Run(claim) => {
                let epoch = claim.epoch;
                self.phase = Phase::Recording(Err(self.store_unavailable()));
                Action::Apply(Change::Release { epoch })
            }
            Purpose::Look(_) => Action::Answer(Err(self.store_unavailable())),
        }
    }

    /// Which attempt is to be given back, where the store has just been asked to and failed.
    pub fn release(&self) -> Option<super::Epoch> {
        let is_released = match &self.phase {
            Phase::Recording(Err(status)) => match self.claim()?.recovery {
                Recovery::Atomic => true,
                Recovery::InDoubt | Recovery::Rerun => status.work() == Work::NotDone,
            },
            _ => false,
        };
        is_released.then_some(self.claim()?.epoch)
    }

    fn store_unavailable(&self) -> Status {
        let message = "the store of outcomes does not answer";
        let status = match &self.purpose {
            Purpose::Run(_) => Status::unavailable(format!("{message}, so nothing was begun")),
            // Whoever only asks knows nothing of what was done before.
            Purpose::Look(_) => Status::new(Code::Unavailable, Work::OutcomeUnknown, message),
        };
        status.with_reason(Reason::StoreUnavailable)
    }

    fn asked(&mut self, verdict: Verdict) -> Action {
        let status = match verdict {
            Verdict::Run => {
                self.phase = Phase::Running;
                return Action::Run;
            }
            Verdict::Done(outcome) => return Action::Answer(replay(outcome)),
            Verdict::InFlight { until } => match self.terms.duplicates {
                Duplicates::Join => {
                    self.phase = Phase::Waiting;
                    return Action::Wait { until };
                }
                Duplicates::Refuse(wait) => in_progress().with_retry_after(wait),
            },
            Verdict::InDoubt { epoch } => {
                // If somebody resolves it, what was waited for has changed.
                self.phase = Phase::Waiting;
                let status = in_doubt();
                return Action::AskAboutDoubt { epoch, status };
            }
            Verdict::KeyReused => {
                Status::invalid_argument("the request ID was used with other parameters")
                    .with_reason(Reason::KeyReused)
            }
            Verdict::KeyExpired => Status::new(
                Code::FailedPrecondition,
                Work::OutcomeUnknown,
                "the request ID is older than outcomes are kept",
            )
            .with_reason(Reason::KeyExpired),
            Verdict::KeyFromFuture => {
                Status::invalid_argument("the request ID was made by a clock that is too far ahead")
            }
            Verdict::Unknown => unknown(self.is_of_known_age()),
            Verdict::Full => Status::resource_exhausted("the store of outcomes is full")
                .with_reason(Reason::StoreFull),
            Verdict::Superseded | Verdict::Applied => superseded(),
        };
        Action::Answer(Err(status))
    }

    /// Whether the key says when it was made, so that one whose outcome may be forgotten is told apart.
    fn is_of_known_age(&self) -> bool {
        let (Purpose::Run(Claim { age, .. }) | Purpose::Look(Change::Look(age))) = &self.purpose
        else {
            return false;
        };
        age.created.is_some()
    }

    /// What the handler's end means for the record.
    fn ran(&mut self, ended: Ended) -> Action {
        let Some(claim) = self.claim() else {
            return Action::Answer(Err(Status::internal("what only looked has run")));
        };
        let epoch = claim.epoch;
        let change = match &ended {
            Ok(reply) => Change::Complete {
                epoch,
                outcome: Recorded::new(reply, self.terms.reply_bytes_max),
                retention: self.terms.retention,
            },
            Err(status) if status.work() == Work::NotDone => Change::Release { epoch },
            Err(_) => match claim.recovery {
                Recovery::InDoubt | Recovery::Rerun => Change::Doubt { epoch },
                // What it did not commit was not done.
                Recovery::Atomic => Change::Release { epoch },
            },
        };
        self.phase = Phase::Recording(ended);
        Action::Apply(change)
    }
}

fn replay(outcome: Recorded) -> Ended {
    match outcome {
        Recorded::Reply {
            outcome,
            metadata,
            body,
        } => Ok(RawReply {
            outcome,
            replayed: true,
            metadata,
            body,
            limits: Limits::default(),
        }),
        Recorded::NotRetained { bytes, .. } => Err(Status::new(
            Code::OutOfRange,
            Work::Done,
            format!("done; its reply of {bytes} bytes was too large to be kept"),
        )
        .with_reason(Reason::ReplyNotRetained)),
    }
}

fn in_progress() -> Status {
    Status::new(
        Code::Unavailable,
        Work::OutcomeUnknown,
        "the first attempt is still running",
    )
    .with_reason(Reason::InProgress)
}

fn in_doubt() -> Status {
    Status::new(
        Code::Unknown,
        Work::OutcomeUnknown,
        "begun, and nobody knows whether it was done",
    )
    .with_reason(Reason::InDoubt)
}

fn superseded() -> Status {
    Status::new(
        Code::Aborted,
        Work::OutcomeUnknown,
        "another attempt has taken over",
    )
    .with_reason(Reason::Superseded)
}

fn not_recorded() -> Status {
    Status::new(
        Code::Unavailable,
        Work::OutcomeUnknown,
        "it ran, and its outcome could not be recorded",
    )
    .with_reason(Reason::StoreUnavailable)
}

/// Nothing is recorded. That it was not done is certain only of a key that says its age: an older one is refused
/// otherwise, while that of a caller's own may have been done, and forgotten since.
fn unknown(is_of_known_age: bool) -> Status {
    let status = Status::not_found("nothing is recorded under this request ID, and nothing runs")
        .with_reason(Reason::KeyUnknown);
    match is_of_known_age {
        true => status,
        false => status.with_work(Work::OutcomeUnknown),
    }
}

/// What a request that only asks gets from a method that keeps nothing.
pub(crate) fn keeps_no_outcomes() -> Status {
    Status::new(
        Code::FailedPrecondition,
        Work::OutcomeUnknown,
        "the method is not $once: it keeps no outcomes",
    )
}

/// What a `$once` request without an ID gets.
pub(super) fn needs_an_id(request: &RawRequest) -> Option<Status> {
    request
        .id
        .is_nil()
        .then(|| Status::invalid_argument("a $once method needs a request ID"))
}
