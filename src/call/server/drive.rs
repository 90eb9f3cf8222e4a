//! Reading requests, running handlers, and stopping.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::builder::{Found, Routes};
use super::counters::{Counters, OfPrincipal};
use super::readiness::Readiness;
use super::replies::{Ended, Gathered, Hands, RefuseOnDrop, ReplyTo, WaitingRoom};
use crate::call::deadline::within;
use crate::call::raw::{after, deadline_after};
use crate::call::{RawRequest, ReplyFuture};
use crate::message::{Limits, MessageError};
use crate::once::Keeper;
use crate::security::{AccessList, Principal, Tally};
use crate::transport::{
    Endpoint, Form, Frames, Peer, Received, Requests, RouterReceiver, RouterSender,
};
use crate::wire::{Code, HeaderError, RequestHeader, Status, Work};

#[derive(Debug)]
pub(super) struct Shared {
    pub sender: RouterSender,
    pub endpoint: Endpoint,
    pub routes: Routes,
    pub once: Option<Box<dyn Keeper>>,
    pub counters: Counters,
    pub by_principal: Tally<OfPrincipal>,
    pub limits: Limits,
    /// Asked for every request, where there are keys.
    pub access: Option<AccessList>,
    pub concurrency_max: usize,
    pub concurrency_per_connection_max: usize,
    pub drain_max: Duration,
    pub send_wait_max: Duration,
    pub waiting_room: WaitingRoom,
    /// Whether clients may send the compact form.
    pub takes_compact: bool,
    pub readiness: Readiness,
}

#[derive(Debug)]
pub(super) struct Drive {
    pub shared: Arc<Shared>,
    pub receiver: RouterReceiver,
}

/// What became of a handler with its first poll.
enum Begun {
    Ended(Ended),
    Waits(ReplyFuture),
}

impl Drive {
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut batch = Requests::default();
        let mut hands = Hands {
            handlers: JoinSet::new(),
            gathered: Gathered::default(),
            since: Instant::now(),
        };
        tokio::pin!(shutdown);
        let ready = self.shared.readiness.begin();
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                received = self.receiver.receive(&mut batch) => {
                    if received.is_err() {
                        return;
                    }
                    hands.since = Instant::now();
                    batch.hand_over(|peer, received| self.shared.accept(peer, received, &mut hands));
                    self.shared.send_gathered(&mut hands);
                }
                Some(_) = hands.handlers.join_next(), if !hands.handlers.is_empty() => {}
            }
        }
        drop(ready);
        self.drain(hands.handlers).await;
    }

    async fn drain(mut self, mut handlers: JoinSet<()>) {
        self.shared.sender.stop_accepting().await;
        let stop = deadline_after(self.shared.drain_max);
        let mut batch = Requests::default();
        while !handlers.is_empty() {
            tokio::select! {
                _ = handlers.join_next() => {}
                received = self.receiver.receive(&mut batch) => {
                    if received.is_err() {
                        break;
                    }
                    self.shared.refuse(&mut batch);
                }
                () = tokio::time::sleep_until(stop) => break,
            }
        }
        if let Some(once) = &self.shared.once {
            once.drain(stop).await;
        }
        handlers.shutdown().await;
        // What arrived while the last handler ended is told so too.
        while let Ok(Ok(())) = timeout(Duration::ZERO, self.receiver.receive(&mut batch)).await {
            self.shared.refuse(&mut batch);
        }
        self.shared.sender.close().await;
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, peer: &Peer, received: Received, hands: &mut Hands) {
        let handlers = &mut hands.handlers;
        while !handlers.is_empty() && handlers.try_join_next().is_some() {}
        let (to, mut request) = match self.read(peer, received, hands.since) {
            Ok(read) => read,
            Err((to, status)) => return self.reply(to, Err(status), hands),
        };
        let Some(found) = self.routes.find(request.interface, request.method) else {
            self.counters.unknown.count_and_log(|count| {
                tracing::warn!(endpoint = %self.endpoint, count, "unknown method");
            });
            let status = Status::unknown_method(request.interface, request.method);
            return self.reply(to, Err(status), hands);
        };
        if let Some(status) = self.denied(peer, &found, &request) {
            return self.reply(to, Err(status), hands);
        }
        if hands.handlers.len() >= self.concurrency_max {
            let status = self.too_many(peer, "the server has too many requests at once");
            return self.reply(to, Err(status), hands);
        }
        if peer.is_busy(self.concurrency_per_connection_max) {
            let status = self.too_many(peer, "this connection has too many requests at once");
            return self.reply(to, Err(status), hands);
        }
        self.counters.handled.count();
        self.count_of(peer, |of| &of.handled);
        let deadline = request.deadline;
        request.effect = found.method.effect;
        let begin = || {
            let mut future = found.route.call(request);
            // The waker of this first poll is lost. That is sound: whoever polls next asks again.
            let mut nobody = Context::from_waker(Waker::noop());
            match future.as_mut().poll(&mut nobody) {
                Poll::Ready(ended) => Begun::Ended(ended),
                Poll::Pending => Begun::Waits(future),
            }
        };
        match catch_unwind(AssertUnwindSafe(|| within(deadline, begin))) {
            Err(_) => self.reply(to, Err(self.panicked()), hands),
            Ok(Begun::Ended(ended)) => self.reply(to, ended, hands),
            Ok(Begun::Waits(future)) => {
                // Counted from here on: all that comes before is in this task, which is the only one
                // that asks.
                let in_flight = peer.enter();
                let shared = Arc::clone(self);
                let peer = peer.clone();
                let ReplyTo {
                    correlation, form, ..
                } = to;
                hands.handlers.spawn(async move {
                    let to = ReplyTo {
                        peer: &peer,
                        correlation,
                        form,
                    };
                    shared.finish(to, future, deadline).await;
                    drop(in_flight);
                });
            }
        }
    }

    /// What to answer where no rule allows the request to who sent it. The log says which.
    fn denied(&self, peer: &Peer, found: &Found<'_>, request: &RawRequest) -> Option<Status> {
        let access = self.access.as_ref()?;
        let principal = peer.principal().map_or("", Principal::as_str);
        let (service, method) = (found.service, found.method.name);
        let queue = match (found.queue_of)(request) {
            Ok(queue) => queue,
            Err(status) => return Some(status),
        };
        let may = match &queue {
            None => access.may_call(principal, service, method),
            Some((queue, rights)) => rights
                .iter()
                .any(|right| access.may_use_queue(principal, queue, *right)),
        };
        if may {
            return None;
        }
        self.count_of(peer, |of| &of.denied);
        self.counters.denied.count_and_log(|count| {
            let queue = queue.map(|(queue, _)| queue);
            tracing::warn!(endpoint = %self.endpoint, principal, service, method, ?queue, count, "no rule allows the call");
        });
        let reason = "the access list does not allow it";
        Some(Status::new(Code::PermissionDenied, Work::NotDone, reason))
    }

    fn too_many(&self, peer: &Peer, of: &'static str) -> Status {
        self.count_of(peer, |of| &of.refused);
        self.counters.refused.count_and_log(|count| {
            let principal = peer.principal().map(Principal::as_str);
            tracing::warn!(endpoint = %self.endpoint, principal, count, "{of}");
        });
        Status::resource_exhausted(of)
    }

    /// Counts what happened to a request of whoever has proved a key.
    fn count_of(&self, peer: &Peer, counter: impl Fn(&OfPrincipal) -> &AtomicU64) {
        if let Some(principal) = peer.principal() {
            self.by_principal.count(principal, |of| {
                counter(of).fetch_add(1, Relaxed);
            });
        }
    }

    /// Runs a handler that was not ready at once.
    async fn finish(
        self: Arc<Self>,
        to: ReplyTo<'_>,
        mut future: ReplyFuture,
        deadline: Option<Instant>,
    ) {
        let unless_dropped = RefuseOnDrop {
            shared: &self,
            to: Some(to),
        };
        let handler = std::future::poll_fn(|cx| self.poll(&mut future, deadline, cx));
        let in_time = async {
            match deadline {
                None => handler.await,
                Some(deadline) => timeout_at(deadline, handler).await.unwrap_or_else(|_| {
                    self.counters.timed_out.count();
                    Err(Status::deadline_exceeded(Work::OutcomeUnknown))
                }),
            }
        };
        let ended = tokio::select! {
            biased;
            ended = in_time => Some(ended),
            () = self.sender.gone(to.peer) => None,
        };
        unless_dropped.disarm();
        let Some(ended) = ended else {
            // Nobody is there to hear of it. What must go on in spite of that is not in this task.
            return self.counters.abandoned.count();
        };
        self.reply_alone(to, ended).await;
    }

    fn poll(
        &self,
        future: &mut ReplyFuture,
        deadline: Option<Instant>,
        cx: &mut Context<'_>,
    ) -> Poll<Ended> {
        let poll = || within(deadline, || future.as_mut().poll(cx));
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(poll) => poll,
            Err(_) => Poll::Ready(Err(self.panicked())),
        }
    }

    fn panicked(&self) -> Status {
        self.counters.panicked.count_and_log(|count| {
            tracing::error!(endpoint = %self.endpoint, count, "a handler panicked");
        });
        Status::internal("the handler panicked")
    }

    fn read<'a>(
        &self,
        peer: &'a Peer,
        received: Received,
        now: Instant,
    ) -> Result<(ReplyTo<'a>, RawRequest), (ReplyTo<'a>, Status)> {
        let invalid = |correlation, form, reason: String| {
            self.counters.malformed.count_and_log(|count| {
                tracing::warn!(endpoint = %self.endpoint, count, reason, "no request");
            });
            let to = ReplyTo {
                peer,
                correlation,
                form,
            };
            (to, Status::invalid_argument(reason))
        };
        let (form, Frames { header, body }) = match received {
            Ok(received) => received,
            Err(malformed) => return Err(invalid(0, Form::Classic, malformed.to_string())),
        };
        let header = match RequestHeader::decode(&header) {
            Ok(header) => header,
            Err(error) => {
                let correlation = match error {
                    HeaderError::Version { correlation, .. } => correlation,
                    _ => 0,
                };
                return Err(invalid(correlation, form, error.to_string()));
            }
        };
        let principal = peer.principal().cloned();
        let to = ReplyTo {
            peer,
            correlation: header.correlation,
            form,
        };
        if body.len() > self.limits.message_bytes_max {
            let too_large = MessageError::TooLarge {
                bytes: body.len(),
                max: self.limits.message_bytes_max,
            };
            // Not by `From`, which is for what a reader finds.
            let status = Status::invalid_argument(too_large.to_string());
            self.counters.too_large.count_and_log(|count| {
                let principal = peer.principal().map(Principal::as_str);
                tracing::warn!(endpoint = %self.endpoint, principal, count, bytes = body.len(), "a body over the limit");
            });
            return Err((to, status));
        }
        let request = RawRequest {
            interface: header.interface,
            method: header.method,
            effect: crate::schema::Effect::Unsafe,
            principal,
            id: header.id,
            attempt: header.attempt,
            deadline: header.remaining.map(|remaining| after(now, remaining)),
            outcome_only: header.outcome_only,
            wait_for_ready: false,
            trace: header.trace,
            metadata: header.metadata,
            body,
            limits: self.limits,
            tried: None,
            transaction: None,
        };
        Ok((to, request))
    }

    /// Tells all of a batch that the server is leaving.
    fn refuse(self: &Arc<Self>, batch: &mut Requests) {
        batch.hand_over(|peer, received| {
            let (to, status) = match self.read(peer, received, Instant::now()) {
                Ok((to, _)) => {
                    self.counters.refused.count();
                    (to, Status::unavailable("the server is shutting down"))
                }
                Err(invalid) => invalid,
            };
            self.reply_once(to, status);
        });
    }
}
