//! Reading requests, running handlers, sending replies, and stopping.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::builder::{Found, Routes};
use super::counters::{Counters, OfPrincipal};
use crate::call::deadline::within;
use crate::call::raw::{after, deadline_after};
use crate::call::{Outcome, RawReply, RawRequest, ReplyFuture};
use crate::message::Limits;
use crate::once::Keeper;
use crate::security::{AccessList, Principal, Tally};
use crate::transport::{Endpoint, Frames, Peer, Received, Refused, RouterReceiver, RouterSender};
use crate::wire::{Code, HeaderError, ReplyHeader, ReplyStatus, RequestHeader, Status, Work};

/// How often a reply is offered again to a client whose queue is full.
const SEND_RETRY: Duration = Duration::from_millis(5);

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
}

#[derive(Debug)]
pub(super) struct Drive {
    pub shared: Arc<Shared>,
    pub receiver: RouterReceiver,
}

/// Where a reply goes.
#[derive(Clone, Debug)]
struct ReplyTo {
    peer: Peer,
    correlation: u64,
}

type Ended = Result<RawReply, Status>;

/// What became of a handler with its first poll.
enum Begun {
    Ended(Ended),
    Waits(ReplyFuture),
}

impl Drive {
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut batch = Vec::new();
        let mut handlers = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                received = self.receiver.receive(&mut batch) => {
                    if received.is_err() {
                        return;
                    }
                    let now = Instant::now();
                    for (peer, received) in batch.drain(..) {
                        self.shared.accept(peer, received, now, &mut handlers);
                    }
                }
                Some(_) = handlers.join_next(), if !handlers.is_empty() => {}
            }
        }
        self.drain(handlers).await;
    }

    async fn drain(mut self, mut handlers: JoinSet<()>) {
        self.shared.sender.stop_accepting().await;
        let stop = deadline_after(self.shared.drain_max);
        let mut batch = Vec::new();
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
    fn accept(
        self: &Arc<Self>,
        peer: Peer,
        received: Received,
        now: Instant,
        handlers: &mut JoinSet<()>,
    ) {
        while !handlers.is_empty() && handlers.try_join_next().is_some() {}
        let (to, mut request) = match self.read(peer, received, now) {
            Ok(read) => read,
            Err((to, status)) => return self.reply(&to, Err(status), handlers),
        };
        let Some(found) = self.routes.find(request.interface, request.method) else {
            self.counters.unknown.count_and_log(|count| {
                tracing::warn!(endpoint = %self.endpoint, count, "unknown method");
            });
            let status = Status::unknown_method(request.interface, request.method);
            return self.reply(&to, Err(status), handlers);
        };
        if let Some(status) = self.denied(&to.peer, &found, &request) {
            return self.reply(&to, Err(status), handlers);
        }
        if handlers.len() >= self.concurrency_max {
            let status = self.too_many(&to.peer, "the server has too many requests at once");
            return self.reply(&to, Err(status), handlers);
        }
        let Ok(in_flight) = to.peer.enter(self.concurrency_per_connection_max) else {
            let status = self.too_many(&to.peer, "this connection has too many requests at once");
            return self.reply(&to, Err(status), handlers);
        };
        self.counters.handled.count();
        self.count_of(&to.peer, |of| &of.handled);
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
            Err(_) => self.reply(&to, Err(self.panicked()), handlers),
            Ok(Begun::Ended(ended)) => self.reply(&to, ended, handlers),
            Ok(Begun::Waits(future)) => {
                let shared = Arc::clone(self);
                handlers.spawn(async move {
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
        to: ReplyTo,
        mut future: ReplyFuture,
        deadline: Option<Instant>,
    ) {
        let unless_dropped = RefuseOnDrop {
            shared: &self,
            to: Some(to.clone()),
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
            () = self.sender.gone(&to.peer) => None,
        };
        unless_dropped.disarm();
        let Some(ended) = ended else {
            // Nobody is there to hear of it. What must go on in spite of that is not in this task.
            return self.counters.abandoned.count();
        };
        let frames = encode(to.correlation, ended);
        if let Err(Refused::Full(frames)) = self.send(&to.peer, frames) {
            match self.waiting_room.enter(frames.body.len()) {
                Some(_place) => self.offer(&to.peer, *frames).await,
                None => self.dropped(),
            }
        }
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

    fn read(
        &self,
        peer: Peer,
        received: Received,
        now: Instant,
    ) -> Result<(ReplyTo, RawRequest), (ReplyTo, Status)> {
        let invalid = |peer, correlation, reason: String| {
            self.counters.malformed.count_and_log(|count| {
                tracing::warn!(endpoint = %self.endpoint, count, reason, "no request");
            });
            let to = ReplyTo { peer, correlation };
            (to, Status::invalid_argument(reason))
        };
        let Frames { header, body } = match received {
            Ok(frames) => frames,
            Err(malformed) => {
                let parts = malformed.parts;
                let reason =
                    format!("expected [empty][header][body], got a message of {parts} parts");
                return Err(invalid(peer, 0, reason));
            }
        };
        let header = match RequestHeader::decode(&header) {
            Ok(header) => header,
            Err(error) => {
                let correlation = match error {
                    HeaderError::Version { correlation, .. } => correlation,
                    _ => 0,
                };
                return Err(invalid(peer, correlation, error.to_string()));
            }
        };
        let principal = peer.principal().cloned();
        let to = ReplyTo {
            peer,
            correlation: header.correlation,
        };
        if body.len() > self.limits.message_bytes_max {
            let status = Status::from(crate::message::MessageError::TooLarge {
                bytes: body.len(),
                max: self.limits.message_bytes_max,
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
    fn refuse(self: &Arc<Self>, batch: &mut Vec<(Peer, Received)>) {
        for (peer, received) in batch.drain(..) {
            let (to, status) = match self.read(peer, received, Instant::now()) {
                Ok((to, _)) => {
                    self.counters.refused.count();
                    (to, Status::unavailable("the server is shutting down"))
                }
                Err(invalid) => invalid,
            };
            // A client that does not read now will not be waited for.
            let _ = self.send(&to.peer, encode(to.correlation, Err(status)));
        }
    }

    /// Sends from this task where the socket takes it, and otherwise waits in another.
    fn reply(self: &Arc<Self>, to: &ReplyTo, ended: Ended, handlers: &mut JoinSet<()>) {
        let frames = encode(to.correlation, ended);
        let Err(Refused::Full(frames)) = self.send(&to.peer, frames) else {
            return;
        };
        if handlers.len() >= self.concurrency_max {
            return self.dropped();
        }
        let Some(place) = self.waiting_room.enter(frames.body.len()) else {
            return self.dropped();
        };
        let shared = Arc::clone(self);
        let peer = to.peer.clone();
        handlers.spawn(async move {
            shared.offer(&peer, *frames).await;
            drop(place);
        });
    }

    /// Offers a reply again and again to a client that does not read, for a while.
    async fn offer(&self, peer: &Peer, mut frames: Frames) {
        let give_up = deadline_after(self.send_wait_max);
        while Instant::now() < give_up {
            sleep(SEND_RETRY).await;
            match self.send(peer, frames) {
                Err(Refused::Full(back)) => frames = *back,
                _ => return,
            }
        }
        self.dropped();
        // It has more unread than may wait for it.
        self.sender.show_out(peer);
    }

    /// Sends once; counts a reply that nobody will ever get.
    fn send(&self, peer: &Peer, frames: Frames) -> Result<(), Refused> {
        let sent = self.sender.try_send(peer, frames);
        if let Err(Refused::NoPeer | Refused::Closed) = sent {
            self.counters.replies_dropped.count();
        }
        sent
    }

    fn dropped(&self) {
        self.counters.replies_dropped.count_and_log(|count| {
            tracing::warn!(endpoint = %self.endpoint, count, "a client does not read its replies");
        });
    }
}

/// Where replies wait whose clients have no room for them: so many bytes in all, and one reply alone always.
#[derive(Clone, Debug)]
pub(super) struct WaitingRoom {
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl WaitingRoom {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes: Arc::default(),
            bytes_max,
        }
    }

    /// A place until it is dropped; `None` where there is none.
    fn enter(&self, bytes: usize) -> Option<Place> {
        let before = self.bytes.fetch_add(bytes, Relaxed);
        let place = Place {
            room: Arc::clone(&self.bytes),
            bytes,
        };
        (before == 0 || before + bytes <= self.bytes_max).then_some(place)
    }
}

struct Place {
    room: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.fetch_sub(self.bytes, Relaxed);
    }
}

fn encode(correlation: u64, ended: Ended) -> Frames {
    let (status, replayed, metadata, body) = match ended {
        Ok(reply) => {
            let status = match reply.outcome {
                Outcome::Success => ReplyStatus::Ok,
                Outcome::ApplicationError => ReplyStatus::ApplicationError,
            };
            (status, reply.replayed, reply.metadata, reply.body)
        }
        Err(status) => (
            ReplyStatus::Failed(status),
            false,
            Default::default(),
            Bytes::new(),
        ),
    };
    let header = ReplyHeader {
        correlation,
        status,
        replayed,
        metadata,
    };
    Frames {
        header: header.encode(),
        body,
    }
}

/// Answers the caller of a handler that is ended before it is done, at the end of a drain.
struct RefuseOnDrop<'a> {
    shared: &'a Shared,
    to: Option<ReplyTo>,
}

impl RefuseOnDrop<'_> {
    fn disarm(mut self) {
        self.to = None;
    }
}

impl Drop for RefuseOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            let status = Status::new(
                Code::Unavailable,
                Work::OutcomeUnknown,
                "the server shut down before the handler was done",
            );
            // The last word to this client; nothing is left to do where it does not reach it.
            let _ = self
                .shared
                .send(&to.peer, encode(to.correlation, Err(status)));
        }
    }
}
