//! How a history reads.

use bowline::__simulated::{Done, Ended};
use bowline::once::{Change, Epoch, Recorded, Resolution, Verdict};

use super::store::What;

pub(crate) fn ended(ended: &Ended) -> String {
    match ended {
        Ok(reply) => {
            let body = body(&reply.body);
            let replayed = if reply.replayed { ", replayed" } else { "" };
            format!("{:?} {body}{replayed}", reply.outcome)
        }
        Err(status) => status.to_string(),
    }
}

pub(crate) fn what(what: &What) -> String {
    match what {
        What::Change(change) => self::change(change),
        What::Commit { claimed, reply, .. } => {
            format!("commit of {}, {}", epoch(claimed.epoch), body(&reply.body))
        }
    }
}

fn change(change: &Change) -> String {
    match change {
        Change::Begin(claim) => format!("begin of {}", epoch(claim.epoch)),
        Change::Renew { epoch: it, .. } => format!("renewal of {}", epoch(*it)),
        Change::Complete {
            epoch: it, outcome, ..
        } => format!("completion of {}, {}", epoch(*it), recorded(outcome)),
        Change::Release { epoch: it } => format!("release of {}", epoch(*it)),
        Change::Doubt { epoch: it } => format!("doubt of {}", epoch(*it)),
        Change::Resolve { resolution, .. } => match resolution {
            Resolution::NotDone => "resolution: not done".to_owned(),
            Resolution::Done { outcome, .. } => {
                format!("resolution: done, {}", recorded(outcome))
            }
        },
        Change::Look(_) => "look".to_owned(),
    }
}

pub(crate) fn done(done: &Done) -> String {
    match done {
        Done::Verdict(Verdict::Done(outcome)) => format!("done, {}", recorded(outcome)),
        Done::Verdict(Verdict::InDoubt { .. }) => "InDoubt".to_owned(),
        Done::Verdict(verdict) => format!("{verdict:?}"),
        Done::Committed(Ok(_)) => "committed".to_owned(),
        Done::Committed(Err(status)) => format!("refused: {status}"),
        Done::Forgotten(count) => format!("{count} forgotten"),
    }
}

/// An owner is random: its last digits tell one from another.
fn epoch(epoch: Epoch) -> String {
    format!("epoch {:04x}/{}", epoch.owner as u16, epoch.number)
}

fn recorded(outcome: &Recorded) -> String {
    match outcome {
        Recorded::Reply {
            outcome, body: it, ..
        } => format!("{outcome:?} {}", body(it)),
        Recorded::NotRetained { outcome, bytes, .. } => {
            format!("{outcome:?} of {bytes} bytes, not retained")
        }
    }
}

/// The beginning of it says which.
fn body(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let short: String = text.chars().take(60).collect();
    format!("{short:?}")
}
