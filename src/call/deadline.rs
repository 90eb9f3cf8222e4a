//! The deadline of the call that is being answered, for the calls that its handler makes.
//!
//! A handler that calls on behalf of somebody should not wait longer than that somebody does.

use std::time::Duration;

use tokio::time::Instant;

tokio::task_local! {
    static INHERITED: Option<Instant>;
}

/// What a handler keeps of its caller's time to answer in: a tenth, and at most this, which is twice
/// as much as a client may end a call late.
const MARGIN_MAX: Duration = Duration::from_millis(20);

/// Polls a handler on behalf of a caller who waits until `deadline`.
pub(crate) fn within<T>(deadline: Option<Instant>, poll: impl FnOnce() -> T) -> T {
    INHERITED.sync_scope(deadline, poll)
}

/// The deadline of the call that this task answers, if it answers one that has a deadline.
///
/// A task that a handler spawns does not inherit it. Pass [`Request::deadline`](crate::Request::deadline)
/// on to [`Call::deadline`](crate::Call::deadline) there.
pub fn inherited() -> Option<Instant> {
    INHERITED.try_with(|deadline| *deadline).ok().flatten()
}

/// The earlier of a call's own deadline and what is left of its caller's time, less a margin.
pub(crate) fn inherit(own: Instant) -> Instant {
    let Some(callers) = inherited() else {
        return own;
    };
    let remaining = callers.saturating_duration_since(Instant::now());
    own.min(callers - (remaining / 10).min(MARGIN_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_gets_the_earlier_deadline_less_a_margin() {
        let now = Instant::now();
        let at = |milliseconds| now + Duration::from_millis(milliseconds);
        assert_eq!(inherit(at(100)), at(100));
        within(Some(at(1000)), || {
            assert_eq!(inherit(at(100)), at(100));
            assert_eq!(inherit(at(2000)), at(980));
        });
        within(Some(at(10)), || assert_eq!(inherit(at(50)), at(9)));
        within(Some(at(0)), || assert_eq!(inherit(at(50)), at(0)));
        within(None, || assert_eq!(inherit(at(100)), at(100)));
    }
}
