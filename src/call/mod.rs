//! Calls: a request, and one reply or one status, by a deadline.
//!
//! `typed` is what handlers and callers see, `raw` what tower layers see, `client` and `server`
//! what drives sockets. Knows `wire`, `message` and `transport`; knows nothing of topics, of
//! queues. `attempts`, `retries` and `budget` are the state machines of all that sends a call again.

pub(crate) mod attempts;
pub(crate) mod budget;
mod client;
mod correlation;
pub(crate) mod deadline;
pub(crate) mod logical;
mod park;
mod prepared;
pub(crate) mod raw;
pub(crate) mod retries;
mod server;
mod service;
mod typed;

use std::time::Duration;

pub use client::{Client, ClientBuilder, ClientCounters, ClientFuture, Connection};
pub use deadline::inherited as inherited_deadline;
pub use park::park;
pub(crate) use park::watched;
pub use prepared::{Call, CallFuture};
pub use raw::{Outcome, RawReply, RawRequest};
pub use server::{
    BindError, PrincipalCounters, Readiness, Server, ServerBuilder, ServerCounters, ServerHandle,
    ServerStats,
};
pub use service::{CallService, NamedService, QueueAccess, ReplyFuture, Route};
pub use typed::{Failure, MethodError, Reply, Request, RequestError, Response, answer};

/// How long a call waits where neither the schema nor the client says.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
