//! Queues over the wire: schema/queue.capnp, spoken by [`QueueService`] and [`Remote`].
//!
//! `codec` turns jobs and answers into messages and back, `service` answers for engines of this process,
//! `remote` is an engine whose queue is in another. Neither decides anything about jobs.

mod codec;
mod remote;
mod service;
mod sessions;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::schema::{Effect, MethodInfo, ServiceInfo};

/// A job as bytes, for an outbox.
#[cfg(feature = "durable")]
pub(super) fn encode_job(job: &super::NewJob) -> bytes::Bytes {
    codec::build::<crate::queue_capnp::new_job::Owned>(|to| codec::write_new_job(to, job))
}

/// The job of these bytes.
#[cfg(feature = "durable")]
pub(super) fn decode_job(bytes: &[u8]) -> Result<super::NewJob, crate::MessageError> {
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    let limits = crate::Limits::default().with_message_bytes_max(bytes.len());
    let message = crate::message::open(bytes, &limits)?;
    let job = message.get_root::<crate::queue_capnp::new_job::Reader<'_>>()?;
    Ok(codec::read_new_job(job)?)
}

pub use remote::{Remote, RemoteBuilder};
pub use service::QueueService;

const INTERFACE: u64 = 0xb0f1_a3c5_d7e9_0232;

/// Bytes of jobs in one message, which with what is around them stays under the default
/// [`Limits`](crate::Limits).
const BATCH_BYTES_MAX: usize = 512 << 10;
/// Jobs, answers, leases or numbers in one message; one with more is refused.
const BATCH_JOBS_MAX: usize = 1024;
/// Body, ID and key of the largest job that a message has room for.
const JOB_BYTES_MAX: usize = (1 << 20) - (64 << 10);
/// Bytes of the cause of a failure.
const CAUSE_BYTES_MAX: usize = 1024;

/// How long a call may take besides what it waits for by intention.
const CALL: Duration = Duration::from_secs(10);

const fn method(name: &'static str, ordinal: u16, effect: Effect) -> MethodInfo {
    MethodInfo {
        service: "job_queue",
        name,
        interface: INTERFACE,
        ordinal,
        effect,
        timeout: Some(CALL),
        params: 0,
        results: 0,
        fails: None,
    }
}

/// The methods, by their ordinals.
static METHODS: [MethodInfo; 13] = [
    method("describe", 0, Effect::Idempotent),
    // A push is known by its identity.
    method("push", 1, Effect::Idempotent),
    // What a lost answer had leased comes back by itself.
    method("lease", 2, Effect::Unsafe),
    // The second time, the lease is over: whoever asks could not tell that from a lease that was lost.
    method("answer", 3, Effect::Unsafe),
    method("renew", 4, Effect::Idempotent),
    method("leave", 5, Effect::Idempotent),
    method("deadLetters", 6, Effect::Idempotent),
    method("sendBack", 7, Effect::Unsafe),
    method("delete", 8, Effect::Unsafe),
    method("find", 9, Effect::Idempotent),
    method("counters", 10, Effect::Idempotent),
    method("cancel", 11, Effect::Unsafe),
    method("reschedule", 12, Effect::Unsafe),
];
static INFO: ServiceInfo = ServiceInfo {
    name: "job_queue",
    interface: INTERFACE,
    methods: &METHODS,
};

const DESCRIBE: u16 = 0;
const PUSH: u16 = 1;
const LEASE: u16 = 2;
const ANSWER: u16 = 3;
const RENEW: u16 = 4;
const LEAVE: u16 = 5;
const DEAD_LETTERS: u16 = 6;
const SEND_BACK: u16 = 7;
const DELETE: u16 = 8;
const FIND: u16 = 9;
const COUNTERS: u16 = 10;
const CANCEL: u16 = 11;
const RESCHEDULE: u16 = 12;

/// For fuzzing: any bytes as each message of schema/queue.capnp that has more in it than numbers.
#[cfg(fuzzing)]
pub(super) fn read_any(bytes: &[u8]) {
    codec::read_any(bytes);
}
