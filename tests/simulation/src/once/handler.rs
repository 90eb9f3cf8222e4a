//! What a handler does: takes time, has its effect, takes time again, and ends one way or another.

use std::time::Duration;

use bowline::call::{Outcome, RawReply};
use bowline::{Code, Status, Work};
use bytes::Bytes;

use super::Context;
use super::setting::REPLY_BYTES_MAX;

/// What one run of a handler will do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Until its effect.
    pub before: Duration,
    /// From there to its end.
    pub after: Duration,
    pub ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Success,
    ApplicationError,
    /// Its reply is too large to be kept.
    Large,
    /// Without an effect.
    NotDone,
    /// Without an effect, and it does not know that.
    UnknownWithout,
    /// With one, and it does not know that.
    UnknownWith,
    /// Not by itself.
    Never,
}

impl Ending {
    pub fn has_effect(self) -> bool {
        !matches!(self, Self::NotDone | Self::UnknownWithout)
    }
}

impl Plan {
    pub fn new(context: &mut Context) -> Self {
        let lease = context.setting.terms.lease;
        let slow_handler = context.setting.slow_handler;
        let time = |context: &mut Context| {
            if context.fault(slow_handler) {
                context.count("handler: slow");
                return context.simulation.duration(lease / 2, lease * 2);
            }
            context
                .simulation
                .duration(Duration::ZERO, Duration::from_millis(50))
        };
        let ending = match context.simulation.random().u8(0..20) {
            _ if !context.is_faulty => Ending::Success,
            0 | 1 => Ending::ApplicationError,
            2 => Ending::Large,
            3 => Ending::NotDone,
            4 => Ending::UnknownWithout,
            5 => Ending::UnknownWith,
            6 => Ending::Never,
            _ => Ending::Success,
        };
        Self {
            before: time(context),
            after: time(context),
            ending,
        }
    }

    /// What it replies. No two runs reply the same.
    pub fn reply(&self, run: usize, body: &str) -> RawReply {
        let mut text = format!("run {run} of {body}");
        if self.ending == Ending::Large {
            text.push_str(&"…".repeat(REPLY_BYTES_MAX));
        }
        let outcome = match self.ending {
            Ending::ApplicationError => Outcome::ApplicationError,
            _ => Outcome::Success,
        };
        RawReply::new(outcome, Bytes::from(text))
    }

    /// How it ends; `None` if it does not.
    pub fn end(&self, run: usize, body: &str) -> Option<Result<RawReply, Status>> {
        match self.ending {
            Ending::Success | Ending::ApplicationError | Ending::Large => {
                Some(Ok(self.reply(run, body)))
            }
            Ending::NotDone => Some(Err(Status::resource_exhausted("not now"))),
            Ending::UnknownWithout | Ending::UnknownWith => Some(Err(Status::new(
                Code::Internal,
                Work::OutcomeUnknown,
                "who knows",
            ))),
            Ending::Never => None,
        }
    }
}
