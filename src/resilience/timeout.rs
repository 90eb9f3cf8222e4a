//! How long one attempt is waited for, within the time of its call.
//!
//! [`RetryLayer`](super::RetryLayer) begins another attempt beside one that has had this time. As a layer of its own
//! it cuts attempts instead.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::call::{CallService, RawRequest};

/// How much of a call's time one attempt gets to itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TryTimeout {
    /// Of what remains. Default: 0.4, so that a server which hangs leaves time for two others.
    pub share: f64,
    /// But no less than this: a slow answer is better than three that were cut short. Default: 50 ms.
    pub at_least: Duration,
}

impl Default for TryTimeout {
    fn default() -> Self {
        Self {
            share: 0.4,
            at_least: Duration::from_millis(50),
        }
    }
}

impl TryTimeout {
    /// The deadline of an attempt that begins now.
    pub fn deadline(&self, now: Instant, calls: Instant) -> Instant {
        let remaining = calls.saturating_duration_since(now);
        let share = remaining.mul_f64(self.share.clamp(0.0, 1.0));
        now + share.max(self.at_least).min(remaining)
    }
}

impl<S> Layer<S> for TryTimeout {
    type Service = TryTimed<S>;

    fn layer(&self, inner: S) -> TryTimed<S> {
        let timeout = *self;
        TryTimed { inner, timeout }
    }
}

/// A service whose attempts end early enough for another. What cannot be sent again has all of its
/// call's time.
#[derive(Clone, Debug)]
pub struct TryTimed<S> {
    inner: S,
    timeout: TryTimeout,
}

impl<S: CallService> Service<RawRequest> for TryTimed<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: RawRequest) -> S::Future {
        if let Some(deadline) = &mut request.deadline
            && request.effect.may_be_resent()
        {
            *deadline = self.timeout.deadline(Instant::now(), *deadline);
        }
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_gets_its_share_but_neither_too_little_nor_more_than_there_is() {
        let now = Instant::now();
        for (remaining, expected) in [(1000, 400), (100, 50), (30, 30), (0, 0)] {
            let call = now + Duration::from_millis(remaining);
            let deadline = TryTimeout::default().deadline(now, call);
            assert_eq!(deadline - now, Duration::from_millis(expected));
        }
    }
}
