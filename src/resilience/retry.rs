//! Sends calls again, where that is safe and helps: drives [`Retries`], which decides.
//!
//! The request ID stays over all attempts; the attempt number counts up. An attempt that has had its time is not
//! cut: another begins beside it, and the first answer ends the call. So a call that is slow everywhere ends as it
//! would without this layer, and one whose server hangs has an answer from another.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

use super::timeout::TryTimeout;
use crate::call::budget::SharedBudget;
use crate::call::deadline::inherit;
use crate::call::logical::Logical;
use crate::call::retries::{Next, Retries, RetryPolicy};
use crate::call::{CallService, RawReply, RawRequest, ReplyFuture, TIMEOUT_DEFAULT};
use crate::wire::{Status, Work};

/// How much later than its deadline a call ends whose attempts do not end by it themselves: more than a
/// [`Client`](crate::Client) needs, so that its status, which says why, comes first.
const LATE: Duration = Duration::from_millis(30);

/// Puts retries around a service. All clones of what it makes share one budget.
#[derive(Clone, Debug)]
pub struct RetryLayer {
    policy: RetryPolicy,
    budget: SharedBudget,
    attempt: Option<TryTimeout>,
}

impl RetryLayer {
    /// With a budget that others may share.
    pub fn new(policy: RetryPolicy, budget: SharedBudget) -> Self {
        Self {
            policy,
            budget,
            attempt: None,
        }
    }

    /// Begins another attempt beside one that has been without an answer for so long, where the method may be
    /// sent again and the budget allows it. Default: none; a call waits for its attempt.
    pub fn attempt_timeout(mut self, timeout: impl Into<Option<TryTimeout>>) -> Self {
        self.attempt = timeout.into();
        self
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service whose failed calls are sent again, where that is safe and helps.
#[derive(Clone, Debug)]
pub struct Retry<S> {
    inner: S,
    layer: RetryLayer,
}

impl<S: CallService + 'static> Service<RawRequest> for Retry<S> {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Each attempt waits for itself: another endpoint may be ready by then.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: RawRequest) -> ReplyFuture {
        let own = request
            .deadline
            .unwrap_or_else(|| Instant::now() + TIMEOUT_DEFAULT);
        let deadline = inherit(own);
        request.deadline = Some(deadline);
        Box::pin(send(
            self.inner.clone(),
            self.layer.clone(),
            request,
            deadline,
        ))
    }
}

async fn send<S: CallService + 'static>(
    inner: S,
    layer: RetryLayer,
    mut request: RawRequest,
    deadline: Instant,
) -> Result<RawReply, Status> {
    layer.budget.deposit();
    let mut retries = Retries::of(&request, layer.policy, deadline);
    let logical = Arc::new(Logical::retried(request.attempt));
    request.logical = Some(Arc::clone(&logical));
    request.attempt = logical.next_attempt();
    retries.begin();
    let overdue_at = |retries: &Retries, now| {
        let timeout = layer.attempt.filter(|_| retries.may_begin_another())?;
        Some(timeout.deadline(now, deadline)).filter(|at| *at < deadline)
    };
    let mut overdue = overdue_at(&retries, Instant::now());
    let mut again: Option<Instant> = None;
    let mut service = inner.clone();
    let mut first = pin!(call_once(&mut service, request.clone()));
    let mut is_first_in_flight = true;
    // Boxed, since most calls have none.
    let mut others: Vec<ReplyFuture> = Vec::new();
    loop {
        let ended = std::future::poll_fn(|cx| {
            if is_first_in_flight && let Poll::Ready(ended) = first.as_mut().poll(cx) {
                is_first_in_flight = false;
                return Poll::Ready(ended);
            }
            for index in 0..others.len() {
                if let Poll::Ready(ended) = others[index].as_mut().poll(cx) {
                    drop(others.swap_remove(index));
                    return Poll::Ready(ended);
                }
            }
            Poll::Pending
        });
        let next = again.into_iter().chain(overdue).min();
        let event = tokio::select! {
            biased;
            ended = ended => Some(ended),
            () = sleep_until(next.unwrap_or(deadline + LATE)) => None,
        };
        let now = Instant::now();
        match event {
            Some(Ok(reply)) => return Ok(reply),
            Some(Err(status)) => match retries.failed(now, status.clone(), fastrand::f64()) {
                Next::Stop(status) => return Err(status),
                Next::Wait => {}
                Next::Again { after, from_budget } => {
                    if !from_budget || layer.budget.withdraw() {
                        let at = now + after;
                        again = Some(again.map_or(at, |again| again.min(at)));
                    } else if retries.is_idle() && again.is_none() {
                        return Err(retries.stop(status));
                    }
                }
            },
            None if now >= deadline => {
                return Err(retries.stop(Status::deadline_exceeded(Work::NotDone)));
            }
            None => {
                let is_due = again.take_if(|at| *at <= now).is_some();
                if !is_due {
                    overdue = None;
                    if !retries.may_begin_another() || !layer.budget.withdraw() {
                        continue;
                    }
                }
                retries.begin();
                request.attempt = logical.next_attempt();
                overdue = overdue_at(&retries, now);
                let (mut inner, request) = (inner.clone(), request.clone());
                others.push(Box::pin(
                    async move { call_once(&mut inner, request).await },
                ));
            }
        }
    }
}

pub(super) async fn call_once<S: CallService>(
    service: &mut S,
    request: RawRequest,
) -> Result<RawReply, Status> {
    let status = |error: S::Error| Status::from_error(error.into());
    std::future::poll_fn(|cx| service.poll_ready(cx))
        .await
        .map_err(status)?;
    service.call(request).await.map_err(status)
}
