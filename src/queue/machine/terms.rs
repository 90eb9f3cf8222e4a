//! What the machine is asked, and what it answers: values, and nothing that they do.

use std::time::Duration;

use super::fact::Digest;
use crate::queue::{Attempts, Identity, JobNumber, Priority, Token};

/// A job that is asked to be let in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Push {
    pub identity: Identity,
    pub id: Option<Digest>,
    pub key: Option<Digest>,
    pub priority: Priority,
    pub delay: Duration,
    pub expires_after: Option<Duration>,
    pub bytes: usize,
}

/// What a push is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Accepted(JobNumber),
    /// It was there before; which job it was is known of those with a job ID.
    Duplicate(Option<JobNumber>),
    /// There is no room now.
    Full,
    /// There never is.
    TooLarge,
}

/// What a worker has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Jobs.
    pub jobs: usize,
    /// Bytes of their bodies, IDs and keys.
    pub bytes: usize,
    /// The first job may be larger than that: the worker has no other.
    pub takes_any_first: bool,
}

/// A job that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub number: JobNumber,
    pub token: Token,
    pub earlier: Attempts,
}

/// A worker's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// It could not be done: it is sent again later, or goes to the dead letters.
    Refuse(String),
    /// It can never be done: it goes to the dead letters.
    Bury(String),
    /// It is to be sent again after this time. Uses up no attempt.
    RetryAfter(Duration, String),
    /// The worker dropped it. Counts as lost.
    Abandon(String),
    /// It was not begun.
    Release,
}

/// The lease that the answer is for is over, or never was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease of this job is over")]
pub struct Stale;

/// How many jobs are where, in one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueCounters {
    /// Jobs that wait for a worker, or for the job of their key before them.
    pub ready: usize,
    /// Jobs that a worker has.
    pub leased: usize,
    /// Jobs that wait for their time, or for their next attempt.
    pub delayed: usize,
    /// Dead letters.
    pub dead: usize,
    /// Whether the dead letters are full, so that no more jobs are sent.
    pub is_blocked: bool,
    /// Jobs done since the queue was opened.
    pub done: u64,
    /// Jobs that expired since then.
    pub expired: u64,
    /// Jobs deleted from the dead letters since then.
    pub deleted: u64,
    /// Jobs whose stored bytes were found damaged since then, and set aside.
    pub damaged: u64,
    /// Jobs cancelled by their ID since then.
    pub cancelled: u64,
    /// Producers forgotten since then to make room for others: a push that one of them makes again is a second job.
    pub producers_forgotten: u64,
    /// Jobs that some group has not finished.
    pub jobs: usize,
    /// Their bytes.
    pub bytes: u64,
}
