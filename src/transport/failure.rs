//! Why a connecting socket has no connection.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

use crate::wire::Reason;

/// Why a client or a subscriber has no connection to its peer: how the last attempt failed, how far
/// the first attempt has come, or how the last connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConnectionFailure {
    reason: Reason,
    message: Cow<'static, str>,
}

impl ConnectionFailure {
    pub(crate) fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// Returns the kind of the failure.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Returns what happened, for a person to read.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Describes a connection that worked and has ended.
    pub(crate) fn lost(why: impl fmt::Display) -> Self {
        Self::new(
            Reason::ConnectionLost,
            format!("the connection was lost: {why}"),
        )
    }

    /// Describes a socket that has not been able to connect yet.
    pub(crate) fn connecting() -> Self {
        Self::new(
            Reason::Unreachable,
            "the first attempt to connect has not ended yet",
        )
    }

    /// Describes a connection whose ZeroMQ handshake has not ended yet.
    pub(crate) fn unfinished() -> Self {
        Self::new(
            Reason::Unreachable,
            "the peer has taken the connection, and has not finished the ZeroMQ handshake yet",
        )
    }

    /// Describes a name within this process that no socket has bound.
    pub(crate) fn not_bound() -> Self {
        Self::new(
            Reason::ConnectionRefused,
            "nothing in this process is bound to this name",
        )
    }

    pub(crate) fn name_not_found(host: &str, error: &io::Error) -> Self {
        let message = format!("the host name `{host}` cannot be resolved: {error}");
        Self::new(Reason::NameNotFound, message)
    }

    pub(crate) fn name_timeout(host: &str, within: Duration) -> Self {
        let message = format!("the host name `{host}` was not resolved within {within:?}");
        Self::new(Reason::NameNotFound, message)
    }

    pub(crate) fn connect_timeout(within: Duration) -> Self {
        let message = format!("the host did not answer within {within:?}");
        Self::new(Reason::Unreachable, message)
    }
}

/// The same failure of attempts is logged again after so long.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// Says which failed attempts of a socket to log: it tries for ever.
#[derive(Debug, Default)]
pub(crate) struct RepeatedFailure(HashMap<Reason, Instant>);

impl RepeatedFailure {
    /// Whether a failure is to be logged: the first of its kind, and one again after a while.
    pub fn is_due(&mut self, reason: Reason, now: Instant) -> bool {
        let logged = self.0.get(&reason);
        let is_due = logged.is_none_or(|at| now - *at >= LOG_AGAIN);
        if is_due {
            self.0.insert(reason, now);
        }
        is_due
    }
}

impl From<&io::Error> for ConnectionFailure {
    /// Classifies an error of the system's `connect`.
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                Self::new(Reason::ConnectionRefused, "no process listens there")
            }
            // Of a Unix socket.
            io::ErrorKind::NotFound => Self::new(
                Reason::ConnectionRefused,
                "no process listens there: the socket file does not exist",
            ),
            _ => Self::new(Reason::Unreachable, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_failure_is_logged_once_a_minute() {
        let mut repeated = RepeatedFailure::default();
        let (refused, unknown) = (Reason::ConnectionRefused, Reason::NameNotFound);
        let now = Instant::now();
        let mut is_due = |reason, seconds| {
            let at = now + Duration::from_secs(seconds);
            repeated.is_due(reason, at)
        };
        assert!(is_due(refused, 0));
        assert!(!is_due(refused, 59));
        assert!(is_due(refused, 60));
        assert!(!is_due(refused, 61));
        assert!(is_due(unknown, 61));
        assert!(!is_due(refused, 62) && !is_due(unknown, 120));
        assert!(is_due(refused, 120) && is_due(unknown, 121));
    }
}
