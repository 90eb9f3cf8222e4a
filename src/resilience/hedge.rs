//! A second attempt before the first has failed, against the slow few: for `$idempotent` methods.
//!
//! Dean and Barroso, *The Tail at Scale* (2013). Off by default: it costs servers what it saves callers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tower_layer::Layer;
use tower_service::Service;

use super::retry::call_once;
use crate::call::attempts::Attempts;
use crate::call::budget::SharedBudget;
use crate::call::logical::Logical;
use crate::call::retries::is_transient;
use crate::call::{CallService, RawReply, RawRequest, ReplyFuture};
use crate::schema::Effect;
use crate::wire::Status;

/// Latencies that a percentile is taken of.
const LATENCIES_MAX: usize = 100;

/// How long the first attempt is waited for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HedgeAfter {
    /// So long.
    Fixed(Duration),
    /// As long as this share of the last hundred calls took: 0.95 hedges one in twenty. Until there
    /// are a hundred, nothing is hedged.
    Percentile(f64),
}

/// Puts hedging around a service.
#[derive(Clone, Debug)]
pub struct HedgeLayer {
    after: HedgeAfter,
    budget: SharedBudget,
}

impl HedgeLayer {
    /// Hedges are paid for from the same budget as retries.
    pub fn new(after: HedgeAfter, budget: SharedBudget) -> Self {
        Self { after, budget }
    }
}

impl<S> Layer<S> for HedgeLayer {
    type Service = Hedge<S>;

    fn layer(&self, inner: S) -> Hedge<S> {
        Hedge {
            inner,
            layer: self.clone(),
            latencies: Arc::default(),
        }
    }
}

/// A service whose slow calls are made twice, and end with whichever answers first.
#[derive(Clone, Debug)]
pub struct Hedge<S> {
    inner: S,
    layer: HedgeLayer,
    latencies: Arc<Mutex<Latencies>>,
}

/// The last of them, in the order in which they came.
#[derive(Debug, Default)]
struct Latencies(VecDeque<Duration>);

impl Latencies {
    fn add(&mut self, latency: Duration) {
        if self.0.len() == LATENCIES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(latency);
    }

    fn percentile(&self, share: f64) -> Option<Duration> {
        if self.0.len() < LATENCIES_MAX {
            return None;
        }
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len() - 1);
        Some(*sorted.select_nth_unstable(index).1)
    }
}

impl<S: CallService + 'static> Service<RawRequest> for Hedge<S> {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: RawRequest) -> ReplyFuture {
        let mut inner = self.inner.clone();
        if request.effect != Effect::Idempotent {
            return Box::pin(async move { call_once(&mut inner, request).await });
        }
        let layer = self.layer.clone();
        let latencies = Arc::clone(&self.latencies);
        Box::pin(async move {
            let begun = Instant::now();
            let lock = || latencies.lock().unwrap_or_else(PoisonError::into_inner);
            let after = match layer.after {
                HedgeAfter::Fixed(after) => Some(after),
                HedgeAfter::Percentile(share) => lock().percentile(share),
            };
            let attempts = Attempts::of(&request);
            // The second goes to another endpoint than the first, and its number is no other attempt's.
            let first_of = || Arc::new(Logical::hedged(request.attempt.saturating_add(1)));
            let logical = request.logical.clone().unwrap_or_else(first_of);
            request.logical = Some(Arc::clone(&logical));
            let mut another = inner.clone();
            let mut second = request.clone();
            let first = call_once(&mut inner, request);
            let hedge = async {
                match after {
                    Some(after) => sleep(after).await,
                    None => std::future::pending().await,
                }
                layer.budget.withdraw()
            };
            let second = async {
                second.attempt = logical.next_attempt();
                call_once(&mut another, second).await
            };
            let ended = race(attempts, first, hedge, second).await;
            if ended.is_ok() {
                lock().add(begun.elapsed());
            }
            ended
        })
    }
}

/// Runs the first attempt, and the second beside it once `hedge` says so. Ends with the first success.
///
/// If the first fails before the second has begun, or in a way that no other attempt can cure, its status ends the
/// call, as it would without the second; otherwise both are waited for.
async fn race<T>(
    mut attempts: Attempts,
    first: impl Future<Output = Result<T, Status>>,
    hedge: impl Future<Output = bool>,
    second: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::pin!(first, hedge, second);
    attempts.begin();
    tokio::select! {
        biased;
        ended = &mut first => return ended.map_err(|status| {
            attempts.ended(&status);
            attempts.conclude(status)
        }),
        may = &mut hedge => if !may {
            let ended = first.await;
            return ended.map_err(|status| {
                attempts.ended(&status);
                attempts.conclude(status)
            });
        },
    }
    attempts.begin();
    let status = tokio::select! {
        biased;
        ended = &mut first => match ended {
            Ok(reply) => return Ok(reply),
            Err(status) => {
                attempts.ended(&status);
                if is_transient(&status, true) {
                    match second.await {
                        Ok(reply) => return Ok(reply),
                        Err(status) => attempts.ended(&status),
                    }
                }
                status
            }
        },
        ended = &mut second => match ended {
            Ok(reply) => return Ok(reply),
            Err(status) => {
                attempts.ended(&status);
                match first.await {
                    Ok(reply) => return Ok(reply),
                    Err(status) => {
                        attempts.ended(&status);
                        status
                    }
                }
            }
        },
    };
    Err(attempts.conclude(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_of_the_last_hundred() {
        let mut latencies = Latencies::default();
        for milliseconds in 0..1000 {
            latencies.add(Duration::from_millis(milliseconds));
            assert_eq!(latencies.percentile(0.95).is_some(), milliseconds >= 99);
        }
        assert_eq!(latencies.percentile(0.95), Some(Duration::from_millis(995)));
        assert_eq!(latencies.percentile(1.0), Some(Duration::from_millis(999)));
    }
}
