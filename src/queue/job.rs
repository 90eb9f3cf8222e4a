//! A job: what is pushed, what is leased, and what is kept of one that nobody could do.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::wire::RequestKey;

/// A caller's own name for a job, 1 to 255 bytes: a second push of it is the same job.
pub type JobId = RequestKey;

/// A job's number in its queue, in the order in which pushes were accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobNumber(pub u64);

impl fmt::Display for JobNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What makes two pushes the same push: who, since which start, and the how manieth.
///
/// A push that is sent again, because its answer was lost, has the same identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The producer's ID, kept on its disk where it has one.
    pub producer: Uuid,
    /// Greater after each start of the producer.
    pub epoch: u64,
    /// Counted by the producer, from 0.
    pub sequence: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.producer, self.epoch, self.sequence)
    }
}

/// Which of the jobs that are ready goes first.
///
/// Of 21 jobs that are sent while all classes have some, 16 are high, 4 normal and 1 low: no class starves another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody waits for it.
    High,
    /// What most jobs are.
    #[default]
    Normal,
    /// It can wait for the others.
    Low,
}

impl Priority {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];
}

/// A job on its way into a queue.
#[derive(Clone, PartialEq)]
pub struct NewJob {
    /// Which push it is.
    pub identity: Identity,
    /// The caller's own name for it.
    pub id: Option<JobId>,
    /// Jobs with equal keys are done one at a time, in order.
    pub key: Option<Bytes>,
    /// Its class.
    pub priority: Priority,
    /// How long it is not to be sent to a worker.
    pub delay: Duration,
    /// How long after its push it is no longer worth doing.
    pub expires_after: Option<Duration>,
    /// A Cap'n Proto message.
    pub body: Bytes,
}

impl NewJob {
    /// A job with nothing but its identity and body.
    pub fn new(identity: Identity, body: Bytes) -> Self {
        Self {
            identity,
            id: None,
            key: None,
            priority: Priority::Normal,
            delay: Duration::ZERO,
            expires_after: None,
            body,
        }
    }

    /// What it counts against limits: its body, its ID and its key.
    pub fn bytes(&self) -> usize {
        let id = self.id.as_ref().map_or(0, |id| id.as_bytes().len());
        self.body.len() + id + self.key.as_ref().map_or(0, Bytes::len)
    }
}

impl fmt::Debug for NewJob {
    /// Not the body: it may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewJob({}, {} bytes)", self.identity, self.body.len())
    }
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the queue, as safe as the queue says.
    Accepted(JobNumber),
    /// A job of the same ID was there before.
    Duplicate {
        /// The original.
        number: JobNumber,
        /// How far the original is.
        state: JobState,
    },
    /// This very push was accepted before, and its answer lost.
    Again,
}

impl Pushed {
    /// Whether it was there before.
    pub fn is_duplicate(self) -> bool {
        !matches!(self, Self::Accepted(_))
    }
}

/// How far a job is, in the first group of workers that has not finished it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It waits for a worker, or for the job of its key before it.
    Ready,
    /// A worker has it.
    Leased,
    /// It waits for its time, or for its next attempt.
    Delayed,
    /// It is in the dead letters.
    Dead,
    /// It is done, expired, cancelled or deleted.
    Finished,
}

/// What became of a job that was to be cancelled or rescheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobChange {
    /// It was changed.
    Done(JobNumber),
    /// Some group of workers has it, or could not do it, or all are done with it: nothing was changed.
    TooLate {
        /// The job.
        number: JobNumber,
        /// How far it is.
        state: JobState,
    },
    /// No job of this ID is known.
    Unknown,
}

/// A part of a list, and where it goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The items of this page, in the order of their numbers.
    pub items: Vec<T>,
    /// Where the next page begins, to be given as `after`; `None` where this one is the last.
    pub next: Option<JobNumber>,
}

impl<T> std::ops::Deref for Page<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T> IntoIterator for Page<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Page<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

/// Names a queue and the type of its jobs, so that a store can tell whether it holds that queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueType {
    /// The queue's name.
    pub name: String,
    /// The name of the struct in its schema.
    pub type_name: String,
    /// The type ID of the struct.
    pub type_id: u64,
}

impl QueueType {
    /// Returns whether both name the same queue of the same type. The name of the type may differ.
    pub fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && self.type_id == other.type_id
    }
}

impl fmt::Display for QueueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            type_name,
            type_id,
        } = self;
        write!(f, "the queue {name:?} of {type_name} ({type_id:#x})")
    }
}

/// Refuses a late answer: no other lease of the queue, before or after a restart, has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// A job that a worker has until its lease ends.
#[derive(Clone, PartialEq)]
pub struct LeasedJob {
    /// Its number.
    pub number: JobNumber,
    /// What the answer must show.
    pub token: Token,
    /// How often it was sent before, each kind apart.
    pub earlier: Attempts,
    /// Which push it was.
    pub identity: Identity,
    /// The caller's own name for it.
    pub id: Option<JobId>,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its class.
    pub priority: Priority,
    /// A Cap'n Proto message.
    pub body: Bytes,
}

impl fmt::Debug for LeasedJob {
    /// Not the body: it may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeasedJob({}, {} bytes)", self.number, self.body.len())
    }
}

/// How earlier attempts at a job ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// The worker refused it. Counts against `attempts_max`.
    pub refused: u32,
    /// The worker was there and did not finish in time. Counts against `attempts_max`.
    pub expired: u32,
    /// The worker was gone. Counts against `lost_max` only.
    pub lost: u32,
    /// The worker put it off with `retry_after`. Counts against nothing.
    pub postponed: u32,
}

impl Attempts {
    /// Those that count against `attempts_max`.
    pub fn used(self) -> u32 {
        self.refused + self.expired
    }

    pub(crate) fn count(&mut self, kind: FailureKind) {
        let count = match kind {
            FailureKind::Refused => &mut self.refused,
            FailureKind::Expired => &mut self.expired,
            FailureKind::Lost => &mut self.lost,
            FailureKind::Postponed => &mut self.postponed,
            FailureKind::Released => return,
        };
        *count = count.saturating_add(1);
    }
}

/// How an attempt ended that did not finish its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The worker refused it.
    Refused,
    /// The lease ended, and the worker was there.
    Expired,
    /// The worker was gone.
    Lost,
    /// The worker put it off.
    Postponed,
    /// The worker gave it back unbegun: it is leaving. Nothing is counted.
    Released,
}

/// One attempt that did not finish its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFailure {
    /// How it ended.
    pub kind: FailureKind,
    /// In the worker's words, at most `cause_bytes_max` of them.
    pub cause: String,
    /// How long the job had been in the queue.
    pub age: Duration,
}

/// A job that nobody could do, with everything that is known of it but its body.
#[derive(Clone, PartialEq)]
pub struct DeadLetter {
    /// Its number.
    pub number: JobNumber,
    /// Which push it was.
    pub identity: Identity,
    /// The caller's own name for it.
    pub id: Option<JobId>,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its class.
    pub priority: Priority,
    /// How its attempts ended.
    pub attempts: Attempts,
    /// The last of its failures, oldest first; the last one is why it is here.
    pub failures: Vec<JobFailure>,
    /// The job itself, a Cap'n Proto message.
    pub body: Bytes,
}

impl std::fmt::Debug for DeadLetter {
    /// Shows the lengths of key and body, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key_bytes = self.key.as_ref().map_or(0, Bytes::len);
        f.debug_struct("DeadLetter")
            .field("number", &self.number)
            .field("identity", &self.identity)
            .field("id", &self.id)
            .field("key", &format_args!("{key_bytes} bytes"))
            .field("priority", &self.priority)
            .field("attempts", &self.attempts)
            .field("failures", &self.failures)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish()
    }
}
