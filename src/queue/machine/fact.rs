//! What has happened to a queue: the only way in which its state changes.
//!
//! A step decides facts and applies them; a queue on disk writes them down, and applies them again
//! when it is opened. Applying a fact never fails: one that says something of an unknown job changes nothing.

use std::time::Duration;

use crate::queue::{Attempts, FailureKind, Identity, JobNumber, Priority, Token};

/// A time of the queue, in milliseconds: it runs on with the queue, whatever the wall clock does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment(pub u64);

impl Moment {
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    /// Rounds up: nothing is ever early.
    fn add(self, duration: Duration) -> Self {
        let milliseconds = duration.as_nanos().div_ceil(1_000_000);
        let milliseconds = u64::try_from(milliseconds).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(milliseconds))
    }
}

/// Stands for a job ID or a key: what is equal has equal digests, and what is not, has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest(pub u128);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        let hash = blake3::hash(bytes);
        let (first, _) = hash.as_bytes().split_at(16);
        Self(
            first
                .iter()
                .fold(0, |sum, byte| sum << 8 | u128::from(*byte)),
        )
    }
}

/// Which group of workers, by its place in the options.
pub(crate) type GroupIndex = usize;

/// What the machine knows of a job: everything but what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub identity: Identity,
    pub id: Option<Digest>,
    pub key: Option<Digest>,
    pub priority: Priority,
    pub due: Moment,
    pub expires: Option<Moment>,
    pub bytes: u32,
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fact {
    /// A job is in the queue.
    Pushed { number: JobNumber, arrival: Arrival },
    /// A worker has it.
    Leased {
        group: GroupIndex,
        number: JobNumber,
        token: Token,
        session: u64,
    },
    /// A group has nothing to do with it any more.
    Finished {
        group: GroupIndex,
        number: JobNumber,
        how: Finish,
    },
    /// It is to be sent again.
    Returned {
        group: GroupIndex,
        number: JobNumber,
        due: Moment,
        kind: FailureKind,
        cause: String,
    },
    /// It is in the dead letters.
    Buried {
        group: GroupIndex,
        number: JobNumber,
        kind: FailureKind,
        cause: String,
    },
    /// It was sent back from there.
    Revived {
        group: GroupIndex,
        number: JobNumber,
    },
    /// It is due at another time than before.
    Rescheduled {
        group: GroupIndex,
        number: JobNumber,
        due: Moment,
    },
    /// It stands like this: all that was said of it before, in short.
    Restored {
        group: GroupIndex,
        number: JobNumber,
        restored: Box<Restored>,
    },
}

/// How a job stands with a group, and how its attempts ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Restored {
    pub standing: Standing,
    /// Whether its key belongs to it.
    pub is_head: bool,
    pub attempts: Attempts,
    pub failures: Vec<(FailureKind, String, Moment)>,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Ready,
    Delayed(Moment),
    Leased(Token, u64),
    Dead,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    Done,
    /// Its time was over before a worker had it.
    Expired,
    /// Somebody deleted it from the dead letters.
    Deleted,
    /// What was stored of it is damaged, and was set aside.
    Damaged,
    /// Cancelled by its ID before a worker had it.
    Cancelled,
}
