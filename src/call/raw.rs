//! Requests and replies as tower layers see them: without the types of the schema.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::logical::Logical;
use crate::message::Limits;
use crate::schema::{Effect, MethodInfo};
use crate::security::{Address, Principal};
use crate::wire::{Metadata, RequestId, TraceContext};

/// One request: which method, whose, until when, and the parameters as they travel.
///
/// What a tower layer works on. It can be cloned cheaply, so that a layer can send it again: the
/// [`id`](Self::id) then stays and [`attempt`](Self::attempt) counts up.
#[derive(Clone)]
#[non_exhaustive]
pub struct RawRequest {
    /// Type ID of the interface that declares the method.
    pub interface: u64,
    /// Ordinal of the method in it.
    pub method: u16,
    /// What it means to send the request twice. [`Effect::Unsafe`] where nobody knows.
    pub effect: Effect,
    /// Who asks, as a key has proved it; `None` on a client, and on a server without keys.
    pub principal: Option<Principal>,
    /// Where it comes from, on a server without keys: what it holds is counted for that address.
    pub(crate) address: Option<Address>,
    /// What makes two requests the same.
    pub id: RequestId,
    /// 0 for the first attempt.
    pub attempt: u16,
    /// When the caller gives up. `None` before a client has set its default, and on a server for
    /// a caller that did not say.
    pub deadline: Option<Instant>,
    /// Nothing is to be done: the caller asks how the request of this ID ended. There is no body.
    pub outcome_only: bool,
    /// Whether to wait for a server that is not there, instead of failing at once.
    pub wait_for_ready: bool,
    /// The trace that the call is part of.
    pub trace: Option<Box<TraceContext>>,
    /// The application's own, beside the body.
    pub metadata: Metadata,
    /// The parameters, a Cap'n Proto message.
    pub body: Bytes,
    /// What reading the body may cost.
    pub limits: Limits,
    /// What all attempts of the call share, where a layer sends it more than once.
    pub(crate) logical: Option<Arc<Logical>>,
    /// What the handler of an `$atomic` method commits with.
    pub(crate) transaction: Option<Transaction>,
}

/// A store's transaction, of a type that only the store and the handler know.
#[derive(Clone)]
pub(crate) struct Transaction(pub Arc<dyn Any + Send + Sync>);

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transaction")
    }
}

impl fmt::Debug for RawRequest {
    /// Shows the length of the body, whose fields may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawRequest")
            .field("interface", &format_args!("{:#x}", self.interface))
            .field("method", &self.method)
            .field("effect", &self.effect)
            .field("principal", &self.principal)
            .field("id", &self.id)
            .field("attempt", &self.attempt)
            .field("deadline", &self.deadline)
            .field("outcome_only", &self.outcome_only)
            .field("wait_for_ready", &self.wait_for_ready)
            .field("metadata", &self.metadata)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish_non_exhaustive()
    }
}

impl RawRequest {
    /// A request with a fresh ID, and the deadline of the schema's `$timeout` if it has one.
    pub fn new(method: &MethodInfo, body: Bytes) -> Self {
        Self {
            interface: method.interface,
            method: method.ordinal,
            effect: method.effect,
            principal: None,
            address: None,
            id: RequestId::new(),
            attempt: 0,
            deadline: method.timeout.map(deadline_after),
            outcome_only: false,
            wait_for_ready: false,
            trace: None,
            metadata: Metadata::new(),
            body,
            limits: Limits::default(),
            logical: None,
            transaction: None,
        }
    }
}

/// A timeout too long for the clock is as good as a year.
pub(crate) fn deadline_after(timeout: Duration) -> Instant {
    after(Instant::now(), timeout)
}

/// The same for who knows the time already.
pub(super) fn after(now: Instant, timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    now + timeout.min(YEAR)
}

/// How a call ended that has an outcome of its own: results, or the method's own error.
#[derive(Clone)]
#[non_exhaustive]
pub struct RawReply {
    /// Which of the two.
    pub outcome: Outcome,
    /// Whether it is the stored outcome of an earlier attempt.
    pub replayed: bool,
    /// The application's own, beside the body.
    pub metadata: Metadata,
    /// The results or the error, a Cap'n Proto message.
    pub body: Bytes,
    /// What reading the body may cost.
    pub limits: Limits,
}

/// What the body of a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The method's results.
    Success,
    /// The struct that the method's `$fails` names.
    ApplicationError,
}

impl fmt::Debug for RawReply {
    /// Shows the length of the body, whose fields may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawReply")
            .field("outcome", &self.outcome)
            .field("replayed", &self.replayed)
            .field("metadata", &self.metadata)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish_non_exhaustive()
    }
}

impl RawReply {
    /// A reply with nothing beside its body.
    pub fn new(outcome: Outcome, body: Bytes) -> Self {
        Self {
            outcome,
            replayed: false,
            metadata: Metadata::new(),
            body,
            limits: Limits::default(),
        }
    }
}
