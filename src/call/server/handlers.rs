//! Handlers that were not ready at once: each in a task of its own, until it ends, its deadline passes, its caller
//! has gone or has cancelled the call, or the drain is over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, timeout_at};

use super::drive::{Shared, shutting_down};
use super::in_flight::InFlight;
use super::replies::{Ended, Hands, RefuseOnDrop, ReplyTo};
use crate::call::deadline::within;
use crate::call::park::watched;
use crate::call::{RawRequest, ReplyFuture};
use crate::transport::{Form, Peer};
use crate::wire::{Code, Reason, SizesMax, Status, Work};

/// A call that is served, but for its peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// Its place among the methods of the server.
    pub method: usize,
    pub deadline: Option<Instant>,
    /// Of its request.
    pub bytes: usize,
    correlation: u64,
    form: Form,
    takes: SizesMax,
    announce: bool,
}

impl Call {
    pub fn new(to: ReplyTo<'_>, method: usize, request: &RawRequest) -> Self {
        let ReplyTo {
            peer: _,
            correlation,
            form,
            takes,
            announce,
        } = to;
        Self {
            method,
            deadline: request.deadline,
            bytes: request.body.len(),
            correlation,
            form,
            takes,
            announce,
        }
    }

    /// Where its reply goes.
    pub fn to(self, peer: &Peer) -> ReplyTo<'_> {
        ReplyTo {
            peer,
            correlation: self.correlation,
            form: self.form,
            takes: self.takes,
            announce: self.announce,
        }
    }
}

/// What became of a handler with its first poll.
pub(super) enum Begun {
    Ended(Ended),
    /// And whether it is parked.
    Waits(ReplyFuture, bool),
}

/// A handler at its first poll.
pub(super) enum First {
    /// It has had it, and waits.
    Done(ReplyFuture),
    /// It has it on a thread that may be blocked.
    Elsewhere(RawRequest),
}

impl Shared {
    /// Runs a handler in a task of its own.
    pub fn spawn(
        self: &Arc<Self>,
        peer: &Peer,
        call: Call,
        first: First,
        mut in_flight: InFlight,
        hands: &mut Hands,
    ) {
        if call.announce {
            self.announce(call.to(peer));
        }
        let entry = self.running.enter(peer, call.correlation);
        let (shared, peer) = (Arc::clone(self), peer.clone());
        hands.handlers.spawn(async move {
            let unless_dropped = RefuseOnDrop {
                shared: &shared,
                to: Some(call.to(&peer)),
            };
            let ended = tokio::select! {
                biased;
                ended = shared.in_time(call, first, &mut in_flight) => Some(ended),
                () = shared.sender.gone(&peer) => {
                    shared.counters.abandoned.count();
                    None
                }
                () = entry.cancelled() => {
                    shared.counters.cancelled.count();
                    None
                }
            };
            unless_dropped.disarm();
            drop((entry, in_flight));
            // Otherwise nobody is there to hear of it. What must go on in spite of that is not in this task.
            if let Some(ended) = ended {
                shared.reply_alone(call.to(&peer), ended);
            }
        });
    }

    async fn in_time(
        self: &Arc<Self>,
        call: Call,
        first: First,
        in_flight: &mut InFlight,
    ) -> Ended {
        let handler = self.handle(call, first, in_flight);
        match call.deadline {
            None => handler.await,
            Some(deadline) => timeout_at(deadline, handler).await.unwrap_or_else(|_| {
                self.counters.timed_out.count();
                Err(Status::deadline_exceeded(Work::OutcomeUnknown))
            }),
        }
    }

    async fn handle(self: &Arc<Self>, call: Call, first: First, in_flight: &mut InFlight) -> Ended {
        let mut draining = pin!(self.draining.notified());
        let mut future = match first {
            First::Done(future) => future,
            First::Elsewhere(request) => match self.begin_elsewhere(call, request).await {
                Begun::Ended(ended) => return ended,
                Begun::Waits(future, _) => future,
            },
        };
        std::future::poll_fn(|cx| {
            let (polled, is_parked) = watched(|| self.poll(&mut future, call, cx));
            if polled.is_ready() {
                return polled;
            }
            if let Err(no_room) = in_flight.set_parked(is_parked) {
                return Poll::Ready(Err(self.too_many(in_flight.peer(), no_room)));
            }
            if is_parked && draining.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(shutting_down()));
            }
            Poll::Pending
        })
        .await
    }

    /// Gives a handler its first poll on a thread that may be blocked for as long as that takes.
    async fn begin_elsewhere(self: &Arc<Self>, call: Call, request: RawRequest) -> Begun {
        let shared = Arc::clone(self);
        let first = spawn_blocking(move || {
            let since = std::time::Instant::now();
            let begun = shared.begin(call, request);
            match since.elapsed() < shared.slow_poll {
                true => shared.routes.pace(call.method).was_quick(),
                false => shared.is_slow(call.method),
            }
            begun
        });
        // One that has not begun when its call ends need not begin.
        let _abort = AbortOnDrop(first.abort_handle());
        first.await.unwrap_or_else(|error| {
            // Only one that has not begun can be ended from outside.
            let work = match error.is_cancelled() {
                true => Work::NotDone,
                false => Work::OutcomeUnknown,
            };
            let message = "the server's runtime is shutting down";
            let status = Status::new(Code::Unavailable, work, message);
            Begun::Ended(Err(status.with_reason(Reason::ShuttingDown)))
        })
    }

    fn poll(&self, future: &mut ReplyFuture, call: Call, cx: &mut Context<'_>) -> Poll<Ended> {
        let poll = || within(call.deadline, || future.as_mut().poll(cx));
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(poll) => poll,
            Err(_) => Poll::Ready(Err(self.panicked())),
        }
    }

    pub fn panicked(&self) -> Status {
        self.counters.panicked.count_and_log(|count| {
            tracing::error!(endpoint = %self.endpoint, count, "a handler panicked");
        });
        Status::internal("the handler panicked")
    }

    /// A first poll of a method was slow: from now on it has them on a thread of its own.
    pub fn is_slow(&self, method: usize) {
        if self.routes.pace(method).was_slow() {
            let (service, name) = self.routes.name(method);
            let limit = self.slow_poll;
            tracing::warn!(
                endpoint = %self.endpoint,
                service,
                method = name,
                ?limit,
                "handler computes for long before its first await: runs on a thread of its own from now on; \
                 use tokio::task::spawn_blocking for such work"
            );
        }
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
