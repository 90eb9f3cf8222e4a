//! Queues: work that need not be answered now.
//!
//! A struct with `$queue("thumbnails")` in its schema is pushed into a [`Queue`], and done by workers,
//! at least once each. This module keeps jobs and hands them out. It does not make what a job does happen
//! once: that is [`once`](crate::once)'s, with the [request ID](Job::request_id) that a job brings.
//!
//! # What is promised
//!
//! A push returns when the job is as safe as its engine says. Then it is sent to a worker of each group until one has
//! acknowledged it, or it is in the dead letters, or its expiry is over. A worker has a job for as long as its
//! lease, which is renewed by itself; a late answer is refused. A second push of the same job ID, or of the same
//! push, is no second job. Jobs of one key are done one at a time, in the order of their producer.
//! A full queue makes a push wait, and then say [`Full`](QueueError::Full).
//!
//! # The rooms
//!
//! `machine` is the queue as a state machine, with its model. `engine` is what keeps jobs: [`Memory`] in this
//! process, `Durable` on its disk (feature `durable`), [`Remote`] in another process. `queue`, `push`, `jobs` and `worker` are what programs see; `keeper` keeps
//! a worker's leases.

mod channel;
mod embedded;
mod engine;
#[cfg(any(feature = "kafka", feature = "nats", feature = "rabbitmq", fuzzing))]
#[cfg_attr(
    not(any(feature = "kafka", feature = "nats", feature = "rabbitmq")),
    allow(
        dead_code,
        reason = "for fuzzing, what reads messages without who gets them"
    )
)]
pub mod engines;
mod error;
mod job;
mod jobs;
mod keeper;
#[cfg(feature = "durable")]
mod log;
#[cfg_attr(
    not(feature = "durable"),
    allow(dead_code, reason = "what only a log restores")
)]
mod machine;
mod options;
#[cfg(feature = "durable")]
mod outbox;
mod producer;
mod push;
#[expect(
    clippy::module_inception,
    reason = "the room is named after its main idea"
)]
mod queue;
mod wire;
mod worker;

pub use channel::{NotPushed, Pusher, Taker, channel};
#[cfg(feature = "durable")]
#[doc(hidden)]
pub use embedded::SimulatedQueue;
#[cfg(feature = "durable")]
pub use embedded::{Durable, DurableBuilder};
pub use embedded::{Memory, QueueClock};
pub use engine::{Capabilities, Engine, EngineFuture, EngineWorker};
pub use error::{QueueError, Refusal};
pub use job::{
    Attempts, DeadLetter, FailureKind, Identity, JobChange, JobFailure, JobId, JobNumber, JobState,
    LeasedJob, NewJob, Page, Priority, Pushed, QueueType, Token,
};
pub use jobs::{Job, Jobs, JobsBuilder};
#[cfg(feature = "durable")]
pub use log::{Damage, Directory, Recovery, Storage};
pub use machine::{Answer, Credit, QueueCounters, Stale};
pub use options::{GROUP_DEFAULT, Groups, GroupsError, Poison, QueueOptions};
#[cfg(feature = "durable")]
pub use outbox::{Outbox, OutboxCounters, OutboxError};
pub use producer::Producer;
pub use push::Push;
pub use queue::{DeadLetters, Queue, Queueable};
pub use wire::{QueueService, Remote, RemoteBuilder};
pub use worker::{Worker, WorkerBuilder};

/// For fuzzing: any bytes as what comes over the wire, out of a log, and out of another system's headers.
#[cfg(fuzzing)]
pub(crate) mod fuzzing {
    pub(crate) fn jobs(bytes: &[u8]) {
        super::wire::read_any(bytes);
    }

    #[cfg(feature = "durable")]
    pub(crate) fn log(bytes: &[u8]) {
        super::log::read_any(bytes);
    }

    pub(crate) fn headers(text: &str) {
        super::engines::read_any(text);
    }
}
