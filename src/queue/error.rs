//! Why a queue did not do what it was asked.

use std::time::Duration;

use crate::message::MessageError;
use crate::wire::{Code, Status, Work};

use super::{QueueType, Stale};

/// A queue did not do what it was asked, or it is not known whether it did.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// No room until the deadline. The job was not accepted: push it again later, or do without it.
    #[error("the queue is full; the job was not accepted")]
    Full,
    /// The job is larger than the queue takes, or than this producer builds.
    #[error("a job of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// Its body, ID and key.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The queue cannot be reached, or its storage fails. Where the work is not *not done*, a push may be made
    /// again with the same identity or job ID: it is then the same job.
    #[error("the queue is unavailable: {reason}")]
    Unavailable {
        /// What it said.
        reason: String,
        /// Whether what was asked may have been done.
        work: Work,
    },
    /// No rule of the queue's access list allows it; nothing was done. Trying again does not help.
    #[error("the queue's access list does not allow it")]
    Denied,
    /// The lease is over: another worker may have the job, or has done it.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The queue has no such group of workers; its options name them.
    #[error("the queue has no group of workers called {0:?}")]
    NoSuchGroup(String),
    /// This engine cannot do that; see its [`Capabilities`](super::Capabilities).
    #[error("this engine has no {0}")]
    Unsupported(&'static str),
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed,
    /// The store holds another queue. Open the directory of this one; or, if the queue or its type was renamed,
    /// [adopt](super::DurableBuilder::adopt) what is there.
    #[error("the store holds {holds}, not {asked}")]
    WrongQueue {
        /// The queue in the store.
        holds: Box<QueueType>,
        /// The queue that was asked for.
        asked: Box<QueueType>,
    },
    /// The job has no encoding, or is no message of its type.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl QueueError {
    pub(crate) fn unavailable(reason: impl ToString, work: Work) -> Self {
        Self::Unavailable {
            reason: reason.to_string(),
            work,
        }
    }

    /// Whether trying the same again may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Full | Self::Unavailable { .. })
    }
}

impl From<Status> for QueueError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::PermissionDenied => Self::Denied,
            Code::Unimplemented if status.work() == Work::NotDone => {
                Self::Unsupported("such method: its server is older")
            }
            _ => Self::unavailable(&status, status.work()),
        }
    }
}

/// Why a job was not done, as a handler says it.
///
/// Any error becomes one, and the job is sent again after a while.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub(crate) cause: String,
    pub(crate) then: Then,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Then {
    Backoff,
    After(Duration),
    Never,
}

impl Refusal {
    /// It is sent again after a while, and goes to the dead letters after so many attempts.
    pub fn because(cause: impl ToString) -> Self {
        Self {
            cause: cause.to_string(),
            then: Then::Backoff,
        }
    }

    /// It is sent again after this time, and no attempt is counted.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.then = Then::After(time);
        self
    }

    /// It goes to the dead letters at once: another attempt cannot help.
    #[must_use]
    pub fn for_good(mut self) -> Self {
        self.then = Then::Never;
        self
    }
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::because(error)
    }
}
