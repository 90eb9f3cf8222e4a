//! What keeps a caller alive when the service behind it is slow or gone, and a service when there
//! are too many callers. Tower layers over raw requests; knows nothing of sockets.
//!
//! - For callers: [`Resilient`], the whole stack, from
//!   [`Client::builder().resilient()`](crate::ClientBuilder::resilient). Its parts are
//!   [`RetryLayer`] under a [`Budget`], [`Balance`] with a [`Breaker`] for each endpoint,
//!   [`TryTimeout`], and [`HedgeLayer`], each a layer of its own.
//! - For services: [`ShedLayer`], with a [`Limit`] that is fixed or adapts, and bulkheads.
//! - Deadlines are inherited: a call that a handler makes has what is left of its caller's time.
//!
//! What decides is in each case a state machine without clock, task or randomness ([`Retries`], [`Budget`],
//! [`Breaker`], [`Limiter`]); what drives it stands beside it. The reason for each default is
//! with the setting.

mod balance;
mod breaker;
mod breakers;
mod hedge;
mod limit;
mod retry;
mod shed;
mod stack;
mod timeout;

pub use crate::call::attempts::Attempts;
pub use crate::call::budget::{Budget, BudgetPolicy, SharedBudget};
pub use crate::call::inherited_deadline;
pub use crate::call::retries::{Next, Retries, RetryPolicy};
pub use balance::{Balance, BalanceFuture};
pub use breaker::{Breaker, BreakerChange, BreakerPolicy, is_failure};
pub use hedge::{Hedge, HedgeAfter, HedgeLayer};
pub use limit::{AdaptivePolicy, Limit, Limiter};
pub use retry::{Retry, RetryLayer};
pub use shed::{Shed, ShedLayer};
pub use stack::{Resilient, ResilientBuilder, ResilientCounters};
pub use timeout::{TryTimed, TryTimeout};
