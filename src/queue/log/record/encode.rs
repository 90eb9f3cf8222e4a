//! The contents of records, as bytes.

use super::{
    BEGUN, BURIED, FINISHED, HOLDS, LEASED, MARK, PRODUCER, PUSH_FIXED, Pushed, RESCHEDULED,
    RESTORED, RETURNED, REVIVED, Record, SAFE, SEALED, SEEN,
};
use crate::queue::machine::{Arrival, Fact, Moment, Standing};
use crate::queue::{Attempts, JobId, JobNumber, NewJob, QueueType};

pub(super) fn content(into: &mut Vec<u8>, record: &Record) -> u32 {
    match record {
        Record::Begun(begun) => {
            put(into, begun.now.0);
            put(into, begun.wall);
            put(into, begun.next);
            into.extend(begun.opening.to_le_bytes());
            into.push(begun.groups.len() as u8);
            for group in &begun.groups {
                into.push(group.len() as u8);
                into.extend(group.as_bytes());
            }
            if let Some(holds) = &begun.holds {
                queue_type(into, holds);
            }
            BEGUN
        }
        // A push is written with its job.
        Record::Pushed(_) => 0,
        Record::Fact(now, fact) => fact_content(into, *now, fact),
        Record::Seen {
            id,
            number,
            finished,
        } => {
            into.extend(id.0.to_le_bytes());
            put(into, number.0);
            put(into, finished.0);
            SEEN
        }
        Record::Producer(producer) => {
            into.extend(producer.id.as_bytes());
            put(into, producer.epoch);
            put(into, producer.heard.0);
            for (start, end) in &producer.runs {
                put(into, *start);
                put(into, *end);
            }
            PRODUCER
        }
        Record::Mark { now, wall } => {
            put(into, now.0);
            put(into, *wall);
            MARK
        }
        Record::Sealed { safe } => {
            put(into, *safe);
            SEALED
        }
        Record::Safe { offset } => {
            put(into, *offset);
            SAFE
        }
        Record::Holds(holds) => {
            queue_type(into, holds);
            HOLDS
        }
    }
}

fn queue_type(into: &mut Vec<u8>, holds: &QueueType) {
    put(into, holds.type_id);
    for name in [&holds.name, &holds.type_name] {
        into.extend((name.len() as u16).to_le_bytes());
        into.extend(&name.as_bytes()[..usize::from(name.len() as u16)]);
    }
}

pub(super) fn push_content(
    into: &mut Vec<u8>,
    now: Moment,
    number: JobNumber,
    open: u16,
    arrival: &Arrival,
    job: &NewJob,
) {
    put(into, now.0);
    put(into, number.0);
    into.extend(job.identity.producer.as_bytes());
    put(into, job.identity.epoch);
    put(into, job.identity.sequence);
    put(into, arrival.due.0);
    put(into, arrival.expires.map_or(u64::MAX, |expires| expires.0));
    into.extend(open.to_le_bytes());
    into.push(job.priority as u8);
    let id = job.id.as_ref().map_or(&[][..], JobId::as_bytes);
    into.push(id.len() as u8);
    let key = job.key.as_deref();
    let key_bytes = key.map_or(u32::MAX, |key| key.len() as u32);
    into.extend(key_bytes.to_le_bytes());
    into.extend(id);
    into.extend(key.unwrap_or_default());
    into.extend(&job.body[..]);
}

/// What is always as long, how many bytes the job has, and the digests of its ID and key.
pub(super) fn brief_push(content: &[u8], pushed: &Pushed) -> Vec<u8> {
    let mut brief = Vec::with_capacity(PUSH_FIXED + 4 + 2 * 16);
    brief.extend(&content[..PUSH_FIXED]);
    brief.extend(pushed.arrival.bytes.to_le_bytes());
    for digest in [pushed.arrival.id, pushed.arrival.key] {
        brief.extend(digest.map_or(0, |digest| digest.0).to_le_bytes());
    }
    brief
}

fn fact_content(into: &mut Vec<u8>, now: Moment, fact: &Fact) -> u32 {
    let mut of = |number: &JobNumber, group: &usize| {
        put(into, now.0);
        put(into, number.0);
        into.push(*group as u8);
    };
    match fact {
        // The same.
        Fact::Pushed { .. } => 0,
        Fact::Leased {
            group,
            number,
            token,
            session,
        } => {
            of(number, group);
            put(into, token.0);
            put(into, *session);
            LEASED
        }
        Fact::Finished { group, number, how } => {
            of(number, group);
            into.push(*how as u8);
            FINISHED
        }
        Fact::Returned {
            group,
            number,
            due,
            kind,
            cause,
        } => {
            of(number, group);
            put(into, due.0);
            into.push(*kind as u8);
            into.extend(cause.as_bytes());
            RETURNED
        }
        Fact::Buried {
            group,
            number,
            kind,
            cause,
        } => {
            of(number, group);
            into.push(*kind as u8);
            into.extend(cause.as_bytes());
            BURIED
        }
        Fact::Revived { group, number } => {
            of(number, group);
            REVIVED
        }
        Fact::Rescheduled { group, number, due } => {
            of(number, group);
            put(into, due.0);
            RESCHEDULED
        }
        Fact::Restored {
            group,
            number,
            restored,
        } => {
            of(number, group);
            let (standing, a, b) = match restored.standing {
                Standing::Ready => (0, 0, 0),
                Standing::Delayed(due) => (1, due.0, 0),
                Standing::Leased(token, session) => (2, token.0, session),
                Standing::Dead => (3, 0, 0),
            };
            into.push(standing);
            into.push(u8::from(restored.is_head));
            put(into, a);
            put(into, b);
            let Attempts {
                refused,
                expired,
                lost,
                postponed,
            } = restored.attempts;
            for count in [refused, expired, lost, postponed] {
                into.extend(count.to_le_bytes());
            }
            for (kind, cause, at) in &restored.failures {
                put(into, at.0);
                into.push(*kind as u8);
                into.extend((cause.len() as u32).to_le_bytes());
                into.extend(cause.as_bytes());
            }
            RESTORED
        }
    }
}

fn put(into: &mut Vec<u8>, number: u64) {
    into.extend(number.to_le_bytes());
}
