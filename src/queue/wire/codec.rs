//! Jobs, answers and counters as parts of messages, and back. No sockets, no engine.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

pub(super) use crate::message::build_with as build;
use crate::queue::{
    Answer, Attempts, Capabilities, Credit, DeadLetter, FailureKind, Identity, JobChange,
    JobFailure, JobId, JobNumber, JobState, LeasedJob, NewJob, Priority, Pushed, QueueCounters,
    QueueError, QueueType, Token,
};
use crate::queue_capnp as wire;

pub(super) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn write_identity(mut to: wire::identity::Builder<'_>, identity: Identity) {
    let (high, low) = identity.producer.as_u64_pair();
    to.set_producer_high(high);
    to.set_producer_low(low);
    to.set_epoch(identity.epoch);
    to.set_sequence(identity.sequence);
}

fn read_identity(from: wire::identity::Reader<'_>) -> Identity {
    Identity {
        producer: Uuid::from_u64_pair(from.get_producer_high(), from.get_producer_low()),
        epoch: from.get_epoch(),
        sequence: from.get_sequence(),
    }
}

fn priority(priority: Priority) -> wire::Priority {
    match priority {
        Priority::High => wire::Priority::High,
        Priority::Normal => wire::Priority::Normal,
        Priority::Low => wire::Priority::Low,
    }
}

fn read_priority(priority: Result<wire::Priority, capnp::NotInSchema>) -> Priority {
    match priority {
        Ok(wire::Priority::High) => Priority::High,
        Ok(wire::Priority::Low) => Priority::Low,
        _ => Priority::Normal,
    }
}

fn state(state: JobState) -> wire::JobState {
    match state {
        JobState::Ready => wire::JobState::Ready,
        JobState::Leased => wire::JobState::Leased,
        JobState::Delayed => wire::JobState::Delayed,
        JobState::Dead => wire::JobState::Dead,
        JobState::Finished => wire::JobState::Finished,
    }
}

fn read_state(state: Result<wire::JobState, capnp::NotInSchema>) -> JobState {
    match state {
        Ok(wire::JobState::Leased) => JobState::Leased,
        Ok(wire::JobState::Delayed) => JobState::Delayed,
        Ok(wire::JobState::Dead) => JobState::Dead,
        Ok(wire::JobState::Finished) => JobState::Finished,
        _ => JobState::Ready,
    }
}

fn read_id(id: &[u8]) -> capnp::Result<Option<JobId>> {
    if id.is_empty() {
        return Ok(None);
    }
    let id = JobId::new(Bytes::copy_from_slice(id));
    id.map(Some)
        .map_err(|error| capnp::Error::failed(error.to_string()))
}

fn read_key(has_key: bool, key: &[u8]) -> Option<Bytes> {
    has_key.then(|| Bytes::copy_from_slice(key))
}

pub(super) fn write_new_job(mut to: wire::new_job::Builder<'_>, job: &NewJob) {
    write_identity(to.reborrow().init_identity(), job.identity);
    if let Some(id) = &job.id {
        to.set_id(id.as_bytes());
    }
    if let Some(key) = &job.key {
        to.set_key(key);
        to.set_has_key(true);
    }
    to.set_priority(priority(job.priority));
    to.set_delay_microseconds(microseconds(job.delay));
    // 0 means never, and an expiry of nothing at all is over at once all the same.
    let expires = job
        .expires_after
        .map_or(0, |after| microseconds(after).max(1));
    to.set_expires_microseconds(expires);
    to.set_body(&job.body);
}

pub(super) fn read_new_job(from: wire::new_job::Reader<'_>) -> capnp::Result<NewJob> {
    let expires = from.get_expires_microseconds();
    Ok(NewJob {
        identity: read_identity(from.get_identity()?),
        id: read_id(from.get_id()?)?,
        key: read_key(from.get_has_key(), from.get_key()?),
        priority: read_priority(from.get_priority()),
        delay: Duration::from_micros(from.get_delay_microseconds()),
        expires_after: (expires > 0).then(|| Duration::from_micros(expires)),
        body: Bytes::copy_from_slice(from.get_body()?),
    })
}

/// `Err` where all of a push failed for a reason that is not of one job.
pub(super) fn write_pushed(
    mut to: wire::pushed::Builder<'_>,
    pushed: &Result<Pushed, QueueError>,
) -> Result<(), QueueError> {
    match pushed {
        Ok(Pushed::Accepted(number)) => {
            to.set_number(number.0);
            to.set_accepted(());
        }
        Ok(Pushed::Duplicate {
            number,
            state: original,
        }) => {
            to.set_number(number.0);
            to.set_duplicate(state(*original));
        }
        Ok(Pushed::Again) => to.set_again(()),
        Err(QueueError::Full) => to.set_full(()),
        Err(QueueError::TooLarge { max, .. }) => to.set_too_large(*max as u64),
        Err(error) => return Err(error.clone()),
    }
    Ok(())
}

pub(super) fn read_pushed(
    from: wire::pushed::Reader<'_>,
    job: &NewJob,
) -> capnp::Result<Result<Pushed, QueueError>> {
    use wire::pushed::Which;
    let number = JobNumber(from.get_number());
    Ok(match from.which()? {
        Which::Accepted(()) => Ok(Pushed::Accepted(number)),
        Which::Duplicate(original) => Ok(Pushed::Duplicate {
            number,
            state: read_state(original),
        }),
        Which::Again(()) => Ok(Pushed::Again),
        Which::Full(()) => Err(QueueError::Full),
        Which::TooLarge(max) => Err(QueueError::TooLarge {
            bytes: job.bytes(),
            max: usize::try_from(max).unwrap_or(usize::MAX),
        }),
    })
}

pub(super) fn write_credit(mut to: wire::credit::Builder<'_>, credit: Credit) {
    to.set_jobs(u32::try_from(credit.jobs).unwrap_or(u32::MAX));
    to.set_bytes(credit.bytes as u64);
    to.set_takes_any_first(credit.takes_any_first);
}

pub(super) fn read_credit(from: wire::credit::Reader<'_>) -> Credit {
    Credit {
        jobs: from.get_jobs() as usize,
        bytes: usize::try_from(from.get_bytes()).unwrap_or(usize::MAX),
        takes_any_first: from.get_takes_any_first(),
    }
}

fn write_attempts(mut to: wire::attempts::Builder<'_>, attempts: Attempts) {
    to.set_refused(attempts.refused);
    to.set_expired(attempts.expired);
    to.set_lost(attempts.lost);
    to.set_postponed(attempts.postponed);
}

fn read_attempts(from: wire::attempts::Reader<'_>) -> Attempts {
    Attempts {
        refused: from.get_refused(),
        expired: from.get_expired(),
        lost: from.get_lost(),
        postponed: from.get_postponed(),
    }
}

pub(super) fn write_leased(mut to: wire::leased_job::Builder<'_>, job: &LeasedJob) {
    to.set_number(job.number.0);
    to.set_token(job.token.0);
    if job.earlier != Attempts::default() {
        write_attempts(to.reborrow().init_earlier(), job.earlier);
    }
    write_identity(to.reborrow().init_identity(), job.identity);
    if let Some(id) = &job.id {
        to.set_id(id.as_bytes());
    }
    if let Some(key) = &job.key {
        to.set_key(key);
        to.set_has_key(true);
    }
    to.set_priority(priority(job.priority));
    to.set_body(&job.body);
}

pub(super) fn read_leased(from: wire::leased_job::Reader<'_>) -> capnp::Result<LeasedJob> {
    Ok(LeasedJob {
        number: JobNumber(from.get_number()),
        token: Token(from.get_token()),
        earlier: read_attempts(from.get_earlier()?),
        identity: read_identity(from.get_identity()?),
        id: read_id(from.get_id()?)?,
        key: read_key(from.get_has_key(), from.get_key()?),
        priority: read_priority(from.get_priority()),
        body: Bytes::copy_from_slice(from.get_body()?),
    })
}

pub(super) fn write_lease(mut to: wire::lease::Builder<'_>, (number, token): (JobNumber, Token)) {
    to.set_number(number.0);
    to.set_token(token.0);
}

pub(super) fn read_lease(from: wire::lease::Reader<'_>) -> (JobNumber, Token) {
    (JobNumber(from.get_number()), Token(from.get_token()))
}

pub(super) fn write_answer(
    mut to: wire::answer::Builder<'_>,
    (number, token, answer): &(JobNumber, Token, Answer),
) {
    write_lease(to.reborrow().init_lease(), (*number, *token));
    let cause = match answer {
        Answer::Done => {
            to.set_done(());
            return;
        }
        Answer::Release => {
            to.set_release(());
            return;
        }
        Answer::Refuse(cause) => {
            to.set_refuse(());
            cause
        }
        Answer::Bury(cause) => {
            to.set_bury(());
            cause
        }
        Answer::Abandon(cause) => {
            to.set_abandon(());
            cause
        }
        Answer::RetryAfter(time, cause) => {
            to.set_retry_after_microseconds(microseconds(*time));
            cause
        }
    };
    let end = cause.floor_char_boundary(super::CAUSE_BYTES_MAX);
    to.set_cause(&cause[..end]);
}

pub(super) fn read_answer(
    from: wire::answer::Reader<'_>,
) -> capnp::Result<(JobNumber, Token, Answer)> {
    use wire::answer::Which;
    let (number, token) = read_lease(from.get_lease()?);
    let cause = || -> capnp::Result<String> { Ok(from.get_cause()?.to_str()?.to_owned()) };
    let answer = match from.which()? {
        Which::Done(()) => Answer::Done,
        Which::Release(()) => Answer::Release,
        Which::Refuse(()) => Answer::Refuse(cause()?),
        Which::Bury(()) => Answer::Bury(cause()?),
        Which::Abandon(()) => Answer::Abandon(cause()?),
        Which::RetryAfterMicroseconds(time) => {
            Answer::RetryAfter(Duration::from_micros(time), cause()?)
        }
    };
    Ok((number, token, answer))
}

pub(super) fn write_dead(mut to: wire::dead_letter::Builder<'_>, letter: &DeadLetter) {
    to.set_number(letter.number.0);
    write_identity(to.reborrow().init_identity(), letter.identity);
    if let Some(id) = &letter.id {
        to.set_id(id.as_bytes());
    }
    if let Some(key) = &letter.key {
        to.set_key(key);
        to.set_has_key(true);
    }
    to.set_priority(priority(letter.priority));
    write_attempts(to.reborrow().init_attempts(), letter.attempts);
    let mut failures = to.reborrow().init_failures(letter.failures.len() as u32);
    for (index, failure) in (0..).zip(&letter.failures) {
        let mut to = failures.reborrow().get(index);
        to.set_kind(failure.kind as u8);
        to.set_cause(&failure.cause[..]);
        to.set_age_microseconds(microseconds(failure.age));
    }
    to.set_body(&letter.body);
}

pub(super) fn read_dead(from: wire::dead_letter::Reader<'_>) -> capnp::Result<DeadLetter> {
    let mut failures = Vec::new();
    for failure in from.get_failures()? {
        failures.push(JobFailure {
            kind: match failure.get_kind() {
                0 => FailureKind::Refused,
                1 => FailureKind::Expired,
                3 => FailureKind::Postponed,
                4 => FailureKind::Released,
                _ => FailureKind::Lost,
            },
            cause: failure.get_cause()?.to_str()?.to_owned(),
            age: Duration::from_micros(failure.get_age_microseconds()),
        });
    }
    Ok(DeadLetter {
        number: JobNumber(from.get_number()),
        identity: read_identity(from.get_identity()?),
        id: read_id(from.get_id()?)?,
        key: read_key(from.get_has_key(), from.get_key()?),
        priority: read_priority(from.get_priority()),
        attempts: read_attempts(from.get_attempts()?),
        failures,
        body: Bytes::copy_from_slice(from.get_body()?),
    })
}

pub(super) fn write_found(
    mut to: wire::job_queue::find_results::Builder<'_>,
    found: Option<(JobNumber, JobState)>,
) {
    if let Some((number, original)) = found {
        to.set_is_known(true);
        to.set_number(number.0);
        to.set_state(state(original));
    }
}

pub(super) fn read_found(
    from: wire::job_queue::find_results::Reader<'_>,
) -> Option<(JobNumber, JobState)> {
    let found = (JobNumber(from.get_number()), read_state(from.get_state()));
    from.get_is_known().then_some(found)
}

pub(super) fn write_counters(mut to: wire::counters::Builder<'_>, counters: QueueCounters) {
    to.set_ready(counters.ready as u64);
    to.set_leased(counters.leased as u64);
    to.set_delayed(counters.delayed as u64);
    to.set_dead(counters.dead as u64);
    to.set_is_blocked(counters.is_blocked);
    to.set_done(counters.done);
    to.set_expired(counters.expired);
    to.set_deleted(counters.deleted);
    to.set_damaged(counters.damaged);
    to.set_jobs(counters.jobs as u64);
    to.set_bytes(counters.bytes);
    to.set_cancelled(counters.cancelled);
    to.set_producers_forgotten(counters.producers_forgotten);
}

pub(super) fn read_counters(from: wire::counters::Reader<'_>) -> QueueCounters {
    QueueCounters {
        ready: from.get_ready() as usize,
        leased: from.get_leased() as usize,
        delayed: from.get_delayed() as usize,
        dead: from.get_dead() as usize,
        is_blocked: from.get_is_blocked(),
        done: from.get_done(),
        expired: from.get_expired(),
        deleted: from.get_deleted(),
        damaged: from.get_damaged(),
        jobs: from.get_jobs() as usize,
        bytes: from.get_bytes(),
        cancelled: from.get_cancelled(),
        producers_forgotten: from.get_producers_forgotten(),
    }
}

pub(super) fn write_change(mut to: wire::job_change::Builder<'_>, change: JobChange) {
    match change {
        JobChange::Unknown => to.set_absent(()),
        JobChange::Done(number) => {
            to.set_number(number.0);
            to.set_done(());
        }
        JobChange::TooLate { number, state: is } => {
            to.set_number(number.0);
            to.set_too_late(state(is));
        }
    }
}

pub(super) fn read_change(from: wire::job_change::Reader<'_>) -> capnp::Result<JobChange> {
    use wire::job_change::Which;
    let number = JobNumber(from.get_number());
    Ok(match from.which()? {
        Which::Absent(()) => JobChange::Unknown,
        Which::Done(()) => JobChange::Done(number),
        Which::TooLate(state) => JobChange::TooLate {
            number,
            state: read_state(state),
        },
    })
}

/// The type of the queue's jobs, where the server says so.
pub(super) fn read_type(
    from: wire::description::Reader<'_>,
) -> capnp::Result<Option<(u64, String)>> {
    let name = from.get_type_name()?.to_str()?.to_owned();
    Ok(Some((from.get_type_id(), name)).filter(|(id, _)| *id != 0))
}

pub(super) fn write_description(
    mut to: wire::description::Builder<'_>,
    lease: Duration,
    can: Capabilities,
    of: Option<&QueueType>,
) {
    if let Some(of) = of {
        to.set_type_id(of.type_id);
        to.set_type_name(&of.type_name[..]);
    }
    to.set_cancels(can.cancels);
    to.set_lease_microseconds(microseconds(lease));
    to.set_is_durable(can.is_durable);
    to.set_fences(can.fences);
    to.set_leases(can.leases);
    to.set_deduplicates(can.deduplicates);
    to.set_recognises_pushes(can.recognises_pushes);
    to.set_orders_keys(can.orders_keys);
    to.set_delays(can.delays);
    to.set_priorities(can.priorities);
    to.set_expires(can.expires);
    to.set_dead_letters(can.dead_letters);
    to.set_finds(can.finds);
    to.set_bounds(can.bounds);
    to.set_job_bytes_max(can.job_bytes_max as u64);
}

pub(super) fn read_description(from: wire::description::Reader<'_>) -> (Duration, Capabilities) {
    let can = Capabilities {
        is_durable: from.get_is_durable(),
        fences: from.get_fences(),
        leases: from.get_leases(),
        deduplicates: from.get_deduplicates(),
        recognises_pushes: from.get_recognises_pushes(),
        orders_keys: from.get_orders_keys(),
        delays: from.get_delays(),
        priorities: from.get_priorities(),
        expires: from.get_expires(),
        dead_letters: from.get_dead_letters(),
        finds: from.get_finds(),
        cancels: from.get_cancels(),
        bounds: from.get_bounds(),
        job_bytes_max: usize::try_from(from.get_job_bytes_max()).unwrap_or(usize::MAX),
    };
    (Duration::from_micros(from.get_lease_microseconds()), can)
}

#[cfg(fuzzing)]
pub(super) fn read_any(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let Ok(message) = crate::message::open(bytes, &crate::Limits::default()) else {
        return;
    };
    let _ = message.get_root().map(read_description);
    let _ = message.get_root().and_then(read_type);
    let _ = message.get_root().and_then(read_change);
    let _ = message.get_root().map(read_counters);
    let _ = message.get_root().map(read_found);
    let _ = message.get_root().and_then(read_leased);
    let _ = message.get_root().and_then(read_dead);
    let _ = message.get_root().and_then(read_answer);
    let Ok(job) = message.get_root().and_then(read_new_job) else {
        return;
    };
    let _ = (message.get_root()).and_then(|pushed| read_pushed(pushed, &job));
    let again = build::<wire::new_job::Owned>(|to| write_new_job(to, &job));
    let again = crate::message::open(again, &crate::Limits::default());
    let again = again
        .ok()
        .and_then(|it| it.get_root().and_then(read_new_job).ok());
    assert_eq!(again, Some(job));
}
