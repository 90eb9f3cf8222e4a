//! What is recorded under a key, and how it changes: a state machine.
//!
//! No clock, no store, no randomness: `step(record, now, change)` gives what the record becomes and
//! what the one who asked is told. A store only has to apply it atomically; see [`Store`](super::Store).
//!
//! Two clocks, since each is wrong for the other's purpose: how old a key or an outcome is, the time of day says,
//! which keys carry too; whether an attempt lives, a clock says that nobody sets. See [`Now`].

use std::ops::Add;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::Fingerprint;
use crate::call::{Outcome, RawReply};
use crate::schema::Recovery;
use crate::wire::Metadata;

/// A time of day in whole milliseconds since 1970, by the store's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// 1970-01-01 00:00 UTC.
    pub const EPOCH: Self = Self(0);

    /// By this machine's clock.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self::EPOCH + since.unwrap_or_default()
    }

    /// From a number of milliseconds.
    pub const fn from_milliseconds(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    /// As a number of milliseconds.
    pub const fn milliseconds(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it was not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(milliseconds))
    }
}

impl Timestamp {
    /// Halfway between two times.
    pub(super) fn middle(self, other: Self) -> Self {
        Self(self.0.midpoint(other.0))
    }
}

/// What the clocks of a store show.
///
/// A store on a server has one clock, that server's, for both. A store in this process compares leases by a clock
/// that does not jump: a machine that resumes, or whose time is set, ends no lease of an attempt that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The time of day: for the age of keys and outcomes.
    pub wall: Timestamp,
    /// For leases.
    pub steady: Timestamp,
}

impl From<Timestamp> for Now {
    /// One clock for both.
    fn from(now: Timestamp) -> Self {
        Self {
            wall: now,
            steady: now,
        }
    }
}

/// The fencing token of one attempt: no other attempt, anywhere, has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// Drawn at random by each [`Once`](super::Once).
    pub owner: u64,
    /// Counted by it.
    pub number: u64,
}

/// What is recorded under one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Of the request that it was begun for.
    pub fingerprint: Fingerprint,
    /// Of the attempt that has it, or had it last.
    pub epoch: Epoch,
    /// What a retry gets if that attempt dies.
    pub recovery: Recovery,
    /// Whether an earlier attempt, of a method that may be run again, was begun and ended without an outcome.
    pub begun_before: bool,
    /// How far it is.
    pub state: State,
}

/// How far a recorded request is.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It runs, or died and its lease has not run out.
    InFlight {
        /// The end of its lease.
        until: Timestamp,
    },
    /// It was begun, and nobody knows whether it was done.
    InDoubt,
    /// It has its outcome.
    Done {
        /// The outcome.
        outcome: Recorded,
        /// When it is forgotten.
        expires: Timestamp,
    },
}

/// A recorded outcome.
#[derive(Clone, PartialEq)]
pub enum Recorded {
    /// With the reply, byte for byte.
    Reply {
        /// Success, or the method's own error.
        outcome: Outcome,
        /// What went beside the body.
        metadata: Metadata,
        /// The body.
        body: Bytes,
    },
    /// Without it: it was too large to be kept.
    NotRetained {
        /// Success, or the method's own error.
        outcome: Outcome,
        /// Of its body.
        digest: Fingerprint,
        /// The length of its body.
        bytes: u64,
    },
}

impl std::fmt::Debug for Recorded {
    /// Shows the length of the body, whose fields may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (outcome, bytes) = match self {
            Self::Reply { outcome, body, .. } => (outcome, body.len() as u64),
            Self::NotRetained { outcome, bytes, .. } => (outcome, *bytes),
        };
        let is_retained = matches!(self, Self::Reply { .. });
        f.debug_struct("Recorded")
            .field("outcome", outcome)
            .field("retained", &is_retained)
            .field("body", &format_args!("{bytes} bytes"))
            .finish_non_exhaustive()
    }
}

impl Recorded {
    /// What is kept of a reply: all of it up to `bytes_max`, and its digest beyond.
    pub fn new(reply: &RawReply, bytes_max: usize) -> Self {
        if reply.body.len() + reply.metadata.bytes() > bytes_max {
            return Self::NotRetained {
                outcome: reply.outcome,
                digest: Fingerprint::of_bytes(&reply.body),
                bytes: reply.body.len() as u64,
            };
        }
        Self::Reply {
            outcome: reply.outcome,
            metadata: reply.metadata.clone(),
            body: reply.body.clone(),
        }
    }

    /// Bytes of the reply that it keeps.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Reply { metadata, body, .. } => body.len() + metadata.bytes(),
            Self::NotRetained { .. } => 0,
        }
    }
}

impl Record {
    /// Bytes that it takes, beside a fixed cost for each record.
    pub fn bytes(&self) -> usize {
        match &self.state {
            State::Done { outcome, .. } => outcome.bytes(),
            State::InFlight { .. } | State::InDoubt => 0,
        }
    }

    /// When a store may forget it, if time alone decides.
    ///
    /// What is in doubt stays until somebody resolves it.
    pub fn forgettable(&self, retention: Duration) -> Option<Timestamp> {
        match self.state {
            State::Done { expires, .. } => Some(expires),
            State::InFlight { until } if self.recovery != Recovery::InDoubt => {
                Some(until + retention)
            }
            State::InFlight { .. } | State::InDoubt => None,
        }
    }
}

/// What an attempt asks for when it wants to begin.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Its own.
    pub epoch: Epoch,
    /// Of its parameters.
    pub fingerprint: Fingerprint,
    /// What its annotation says.
    pub recovery: Recovery,
    /// How long it may be silent before it is taken for dead.
    pub lease: Duration,
    /// How old its key may be.
    pub age: Age,
}

/// Which keys are too old, or not yet possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// When the key was made, where it says so.
    pub created: Option<Timestamp>,
    /// How long outcomes are kept.
    pub retention: Duration,
    /// How far the caller's clock and the store's may differ.
    pub clock_skew_max: Duration,
}

/// What is asked of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// To begin, if nobody has.
    Begin(Claim),
    /// To stay alive for this long from now.
    Renew {
        /// Of the attempt that asks.
        epoch: Epoch,
        /// From now.
        lease: Duration,
    },
    /// To have this outcome.
    Complete {
        /// Of the attempt that asks.
        epoch: Epoch,
        /// What is recorded.
        outcome: Recorded,
        /// How long from now.
        retention: Duration,
    },
    /// To be as if this attempt had never been begun. [`Verdict::InDoubt`] where an earlier one was.
    Release {
        /// Of the attempt that asks.
        epoch: Epoch,
    },
    /// To have ended, and nobody knows how: in doubt, or to be run again where the recovery says so.
    Doubt {
        /// Of the attempt that asks.
        epoch: Epoch,
    },
    /// To be in doubt no longer.
    Resolve {
        /// Of the attempt that somebody has looked into: the doubt about a later one stays.
        /// `None` for whichever it is now.
        epoch: Option<Epoch>,
        /// What was found out.
        resolution: Resolution,
    },
    /// To be told and nothing else.
    Look(Age),
}

/// What somebody found out about a request that was in doubt.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolution {
    /// It was not done: a retry may run it.
    NotDone,
    /// It was done, with this outcome.
    Done {
        /// What a retry gets.
        outcome: Recorded,
        /// How long from now.
        retention: Duration,
    },
}

/// What the one who asked is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// To [`Change::Begin`]: run it, you are the only one.
    Run,
    /// What was asked for is so now.
    Applied,
    /// Another attempt has it.
    InFlight {
        /// The end of that one's lease.
        until: Timestamp,
    },
    /// It has its outcome.
    Done(Recorded),
    /// Nobody knows whether it was done.
    InDoubt {
        /// Of the attempt that began it.
        epoch: Epoch,
    },
    /// Nothing is recorded.
    Unknown,
    /// The key was used for other parameters.
    KeyReused,
    /// The key is older than outcomes are kept.
    KeyExpired,
    /// The key comes from a clock that is ahead by more than clocks may differ.
    KeyFromFuture,
    /// Another attempt took over, or somebody resolved it; or the doubt is about another attempt.
    Superseded,
    /// The store has as many records as it may.
    Full,
}

/// What becomes of the record.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it is moved into its place at once"
)]
pub enum Write {
    /// It stays as it is.
    Nothing,
    /// It becomes this.
    Put(Record),
    /// It is removed.
    Remove,
}

/// One change of one record.
pub fn step(record: Option<&Record>, now: impl Into<Now>, change: Change) -> (Verdict, Write) {
    let now = now.into();
    match change {
        Change::Begin(claim) => begin(record, now, claim),
        Change::Look(age) => (look(record, now, age), Write::Nothing),
        Change::Resolve { epoch, resolution } => resolve(record, now, epoch, resolution),
        Change::Renew { epoch, lease } => own(record, epoch, |record| match record.state {
            State::InFlight { .. } => {
                let until = now.steady + lease;
                put(record, State::InFlight { until })
            }
            _ => (Verdict::Superseded, Write::Nothing),
        }),
        Change::Complete {
            epoch,
            outcome,
            retention,
        } => own(record, epoch, |record| match record.state {
            // Said twice, because the first answer was lost.
            State::Done {
                outcome: ref recorded,
                ..
            } if *recorded == outcome => (Verdict::Applied, Write::Nothing),
            // Late: somebody has resolved it, and others are told what that one said.
            State::Done { .. } => (Verdict::Superseded, Write::Nothing),
            // Late, and in doubt by now: here is the truth.
            State::InFlight { .. } | State::InDoubt => {
                let expires = now.wall + retention;
                put(record, State::Done { outcome, expires })
            }
        }),
        Change::Release { epoch } => own(record, epoch, |record| match record.state {
            State::Done { .. } => (Verdict::Superseded, Write::Nothing),
            // This attempt did nothing; what the one before it did, nobody knows.
            _ if record.begun_before => (in_doubt(record), end_lease(record, now)),
            State::InFlight { .. } | State::InDoubt => (Verdict::Applied, Write::Remove),
        }),
        Change::Doubt { epoch } => own(record, epoch, |record| match record.state {
            State::Done { .. } => (Verdict::Superseded, Write::Nothing),
            State::InFlight { .. } | State::InDoubt => match record.recovery {
                Recovery::InDoubt => put(record, State::InDoubt),
                // A retry runs it again, and whoever only asks is told that nobody knows.
                Recovery::Rerun | Recovery::Atomic => (Verdict::Applied, end_lease(record, now)),
            },
        }),
    }
}

fn begin(record: Option<&Record>, now: Now, claim: Claim) -> (Verdict, Write) {
    let begun = |begun_before| Record {
        fingerprint: claim.fingerprint,
        epoch: claim.epoch,
        recovery: claim.recovery,
        begun_before: begun_before && claim.recovery != Recovery::InDoubt,
        state: State::InFlight {
            until: now.steady + claim.lease,
        },
    };
    let Some(record) = record.filter(|record| !is_over(record, now)) else {
        return match claim.age.verdict(now.wall) {
            None => (Verdict::Run, Write::Put(begun(false))),
            Some(refused) => (refused, Write::Nothing),
        };
    };
    // First of all, so that nothing about a record is told to one who only knows its key.
    if record.fingerprint != claim.fingerprint {
        return (Verdict::KeyReused, Write::Nothing);
    }
    match &record.state {
        State::Done { outcome, .. } => (Verdict::Done(outcome.clone()), Write::Nothing),
        State::InDoubt => (in_doubt(record), Write::Nothing),
        // The answer to the first asking was lost.
        State::InFlight { .. } if record.epoch == claim.epoch => {
            (Verdict::Run, Write::Put(begun(record.begun_before)))
        }
        State::InFlight { until } if *until > now.steady => {
            (Verdict::InFlight { until: *until }, Write::Nothing)
        }
        State::InFlight { .. } => match record.recovery {
            Recovery::Rerun => (Verdict::Run, Write::Put(begun(true))),
            // What it did not commit was not done.
            Recovery::Atomic => (Verdict::Run, Write::Put(begun(record.begun_before))),
            Recovery::InDoubt => {
                let doubted = Record {
                    state: State::InDoubt,
                    ..record.clone()
                };
                (in_doubt(record), Write::Put(doubted))
            }
        },
    }
}

fn look(record: Option<&Record>, now: Now, age: Age) -> Verdict {
    let Some(record) = record.filter(|record| !is_over(record, now)) else {
        return age.verdict(now.wall).unwrap_or(Verdict::Unknown);
    };
    match &record.state {
        State::Done { outcome, .. } => Verdict::Done(outcome.clone()),
        State::InFlight { until } if *until > now.steady => Verdict::InFlight { until: *until },
        // Also where it may be run again: it was begun, and could have been done, or still be.
        State::InDoubt | State::InFlight { .. } => in_doubt(record),
    }
}

fn in_doubt(record: &Record) -> Verdict {
    let epoch = record.epoch;
    Verdict::InDoubt { epoch }
}

fn resolve(
    record: Option<&Record>,
    now: Now,
    epoch: Option<Epoch>,
    resolution: Resolution,
) -> (Verdict, Write) {
    let Some(record) = record else {
        return (Verdict::Unknown, Write::Nothing);
    };
    match record.state {
        State::Done { ref outcome, .. } => (Verdict::Done(outcome.clone()), Write::Nothing),
        State::InFlight { until } if until > now.steady => {
            (Verdict::InFlight { until }, Write::Nothing)
        }
        // What was found out was of an earlier one.
        _ if epoch.is_some_and(|epoch| epoch != record.epoch) => {
            (Verdict::Superseded, Write::Nothing)
        }
        State::InFlight { .. } | State::InDoubt => match resolution {
            Resolution::NotDone => (Verdict::Applied, Write::Remove),
            Resolution::Done { outcome, retention } => {
                let expires = now.wall + retention;
                put(record, State::Done { outcome, expires })
            }
        },
    }
}

/// Retention is over, whether or not a store has got round to forgetting it.
fn is_over(record: &Record, now: Now) -> bool {
    matches!(record.state, State::Done { expires, .. } if expires <= now.wall)
}

/// Only for the attempt that has the record.
fn own(
    record: Option<&Record>,
    epoch: Epoch,
    change: impl FnOnce(&Record) -> (Verdict, Write),
) -> (Verdict, Write) {
    match record {
        Some(record) if record.epoch == epoch => change(record),
        _ => (Verdict::Superseded, Write::Nothing),
    }
}

fn put(record: &Record, state: State) -> (Verdict, Write) {
    (Verdict::Applied, with_state(record, state))
}

fn with_state(record: &Record, state: State) -> Write {
    Write::Put(Record {
        state,
        ..record.clone()
    })
}

fn end_lease(record: &Record, now: Now) -> Write {
    let until = now.steady;
    with_state(record, State::InFlight { until })
}

impl Change {
    /// What refuses it where nothing is recorded, and a key that was made before `forgotten` may have been
    /// forgotten before its time.
    pub(super) fn refused_by(&self, forgotten: Timestamp) -> Option<Verdict> {
        let (Self::Begin(Claim { age, .. }) | Self::Look(age)) = self else {
            return None;
        };
        (age.created? <= forgotten).then_some(Verdict::KeyExpired)
    }
}

/// What keys a store has forgotten, by when they were made: to be refused from now on, as they may have been done.
///
/// A key says when it was made by its caller's clock. One that is ahead does not count beyond the middle between the
/// end of its request and now, nor within the last millisecond: fresh keys of callers whose clocks are right must never
/// be refused. So what was forgotten within two milliseconds, by a store of a few records, leaves no trace.
pub(super) fn forgotten(
    created: Option<Timestamp>,
    ended: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    let middle = ended.min(now).middle(now).milliseconds();
    Some(created?.min(Timestamp::from_milliseconds(middle.saturating_sub(1))))
}

impl Age {
    /// What refuses a key that nothing is recorded under, if anything does.
    ///
    /// A key counts as older by the skew than it says: its caller's clock may be ahead, and a key
    /// must never outlive its record.
    fn verdict(&self, now: Timestamp) -> Option<Verdict> {
        let created = self.created?;
        if created > now + self.clock_skew_max {
            Some(Verdict::KeyFromFuture)
        } else if now.since(created) + self.clock_skew_max >= self.retention {
            Some(Verdict::KeyExpired)
        } else {
            None
        }
    }
}
