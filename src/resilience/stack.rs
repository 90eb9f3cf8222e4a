//! The whole of it around a client, in the one order that is right.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::balance::{Balance, RECONNECT_WAIT_DEFAULT};
use super::breaker::BreakerPolicy;
use super::hedge::{Hedge, HedgeAfter, HedgeLayer};
use super::retry::{Retry, RetryLayer};
use super::timeout::TryTimeout;
use crate::call::budget::{BudgetPolicy, SharedBudget};
use crate::call::deadline::inherit;
use crate::call::retries::RetryPolicy;
use crate::call::{Client, ClientBuilder, RawReply, RawRequest, ReplyFuture};
use crate::transport::TransportError;
use crate::wire::Status;

/// A timeout too long for the clock is as good as a year.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What sends the calls of a resilient client: one connection for each endpoint.
type Endpoints = Balance<Client>;

/// A client of a service that runs at several endpoints, any of which may be down.
///
/// What a call passes through, from the outside in, and why in this order:
///
/// 1. the deadline, which a call made in a handler inherits: everything below happens within it;
/// 2. the request ID, made once: so all attempts are the same request;
/// 3. the retry and its budget (and the hedge): outside the choice of an endpoint, so that each attempt chooses anew.
///    An attempt that has had its time is not cut: another begins beside it, and the first answer ends the call;
/// 4. the balance: a retry goes to another endpoint, and any call to one that is connected. Where none is, it
///    waits a moment for a restart;
/// 5. the breakers of the endpoint, one for each method: where one is open, calls go elsewhere if they can, and
///    nothing is sent there again.
///
/// ```
/// # async fn f() -> Result<(), bowline::TransportError> {
/// use bowline::Client;
///
/// let resilient = Client::builder()
///     .resilient()
///     .connect(["tcp://10.0.0.1:5555", "tcp://10.0.0.2:5555"])
///     .await?;
/// // LoginClient::new(resilient)
/// # Ok(()) }
/// ```
///
/// A part is set with its policy, or left out with `None`. To put something else in its place, build the stack of the
/// parts, which are tower layers all, and put a generated client on that:
///
/// ```
/// # async fn f() -> Result<(), bowline::TransportError> {
/// use bowline::Client;
/// use bowline::resilience::{Balance, BreakerPolicy, RetryLayer, RetryPolicy, SharedBudget, TryTimeout};
/// use tower::ServiceBuilder;
///
/// let mut endpoints = Vec::new();
/// for endpoint in ["tcp://10.0.0.1:5555", "tcp://10.0.0.2:5555"] {
///     let client = Client::connect(endpoint).await?;
///     let connection = client.connection();
///     endpoints.push((client, connection));
/// }
/// let retry = RetryLayer::new(RetryPolicy::default(), SharedBudget::default());
/// let stack = ServiceBuilder::new()
///     .layer(retry.attempt_timeout(TryTimeout::default()))
///     .concurrency_limit(100) // one's own
///     .service(Balance::with_connections(endpoints, BreakerPolicy::default()));
/// # Ok(()) }
/// ```
///
/// Cheap to clone; clones share connections, budget and breakers.
#[derive(Clone, Debug)]
pub struct Resilient {
    stack: Stack,
    /// Of a call that says nothing, in a method whose schema says nothing.
    timeout: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    budget: SharedBudget,
    endpoints: Endpoints,
}

/// What a [`Resilient`] client has counted since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResilientCounters {
    /// Attempts beyond the first of their call, hedges among them.
    pub sent_again: u64,
    /// Attempts that the budget did not allow.
    pub over_budget: u64,
    /// Endpoints that are left out now.
    pub left_out: usize,
}

impl Resilient {
    /// What it has counted.
    pub fn counters(&self) -> ResilientCounters {
        ResilientCounters {
            sent_again: self.shared.budget.granted(),
            over_budget: self.shared.budget.refused(),
            left_out: self.shared.endpoints.ejected(),
        }
    }
}

#[derive(Clone, Debug)]
enum Stack {
    Bare(Endpoints),
    Retried(Retry<Endpoints>),
    Hedged(Hedge<Endpoints>),
    Both(Retry<Hedge<Endpoints>>),
}

/// Settings of a [`Resilient`] client. Each part can be left out with `None`.
#[derive(Clone, Debug)]
#[must_use]
pub struct ResilientBuilder {
    client: ClientBuilder,
    retry: Option<RetryPolicy>,
    budget: Option<BudgetPolicy>,
    hedge: Option<HedgeAfter>,
    breaker: Option<BreakerPolicy>,
    try_timeout: Option<TryTimeout>,
    reconnect_wait: Duration,
}

impl ClientBuilder {
    /// A client of several endpoints that retries, balances and leaves out what keeps failing.
    pub fn resilient(self) -> ResilientBuilder {
        ResilientBuilder {
            client: self,
            retry: Some(RetryPolicy::default()),
            budget: Some(BudgetPolicy::default()),
            hedge: None,
            breaker: Some(BreakerPolicy::default()),
            try_timeout: Some(TryTimeout::default()),
            reconnect_wait: RECONNECT_WAIT_DEFAULT,
        }
    }
}

impl ResilientBuilder {
    /// How calls are sent again.
    pub fn retry(mut self, policy: impl Into<Option<RetryPolicy>>) -> Self {
        self.retry = policy.into();
        self
    }

    /// How many may be. Without a budget, retries make an overload that nothing ends.
    pub fn budget(mut self, policy: impl Into<Option<BudgetPolicy>>) -> Self {
        self.budget = policy.into();
        self
    }

    /// When slow `$idempotent` calls are made twice. Default: never.
    pub fn hedge(mut self, after: impl Into<Option<HedgeAfter>>) -> Self {
        self.hedge = after.into();
        self
    }

    /// When an endpoint is left alone.
    pub fn breaker(mut self, policy: impl Into<Option<BreakerPolicy>>) -> Self {
        self.breaker = policy.into();
        self
    }

    /// Sets how long an attempt is waited for before another begins beside it; the first answer ends the call.
    /// Of methods that may be sent again only.
    pub fn try_timeout(mut self, timeout: impl Into<Option<TryTimeout>>) -> Self {
        self.try_timeout = timeout.into();
        self
    }

    /// Sets how long after the last connection was lost calls wait for the next one. After that they fail at
    /// once, not done. Default: 500 ms.
    pub fn reconnect_wait(mut self, wait: Duration) -> Self {
        self.reconnect_wait = wait;
        self
    }

    /// Opens a socket for each endpoint.
    ///
    /// # Errors
    /// For what is no endpoint. One where nobody is yet is no error.
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub async fn connect<E: AsRef<str>>(
        self,
        endpoints: impl IntoIterator<Item = E>,
    ) -> Result<Resilient, TransportError> {
        let mut clients = Vec::new();
        for endpoint in endpoints {
            clients.push(self.client.clone().connect(endpoint).await?);
        }
        Ok(self.over(clients))
    }

    /// Over connections that there are already.
    pub fn over(self, clients: impl IntoIterator<Item = Client>) -> Resilient {
        let timeout = self.client.timeout_default();
        let clients = clients.into_iter().map(|client| {
            let connection = client.connection();
            (client, connection)
        });
        let endpoints =
            Balance::with_connections(clients, self.breaker).reconnect_wait(self.reconnect_wait);
        let budget = SharedBudget::new(self.budget);
        let retry = self.retry.map(|policy| {
            RetryLayer::new(policy, budget.clone()).attempt_timeout(self.try_timeout)
        });
        let hedge = self
            .hedge
            .map(|after| HedgeLayer::new(after, budget.clone()));
        let shared = Arc::new(Shared {
            budget,
            endpoints: endpoints.clone(),
        });
        let stack = match (retry, hedge) {
            (None, None) => Stack::Bare(endpoints),
            (Some(retry), None) => Stack::Retried(retry.layer(endpoints)),
            (None, Some(hedge)) => Stack::Hedged(hedge.layer(endpoints)),
            (Some(retry), Some(hedge)) => Stack::Both(retry.layer(hedge.layer(endpoints))),
        };
        Resilient {
            stack,
            timeout,
            shared,
        }
    }
}

impl Service<RawRequest> for Resilient {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Every attempt waits for itself.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: RawRequest) -> ReplyFuture {
        let own = request
            .deadline
            .unwrap_or_else(|| Instant::now() + self.timeout.min(YEAR));
        request.deadline = Some(inherit(own));
        match &mut self.stack {
            Stack::Bare(stack) => Box::pin(stack.call(request)),
            Stack::Retried(stack) => stack.call(request),
            Stack::Hedged(stack) => {
                // Nobody else does.
                self.shared.budget.deposit();
                stack.call(request)
            }
            Stack::Both(stack) => stack.call(request),
        }
    }
}
