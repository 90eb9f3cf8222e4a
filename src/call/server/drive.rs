//! Reading requests, running handlers, and stopping.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::builder::{Found, OnDrains, Routes};
use super::counters::{Counters, OfPrincipal};
use super::desk::{Desk, Reader};
use super::handlers::{Begun, Call, First};
use super::in_flight::{InFlight, NoRoom, Pools};
use super::readiness::Readiness;
use super::replies::{Hands, ReplyBacklog, ReplyTo, SEND_RETRY};
use super::running::Running;
use super::watchdog;
use crate::call::deadline::within;
use crate::call::park::watched;
use crate::call::raw::{after, deadline_after};
use crate::call::{Outcome, RawReply, RawRequest};
use crate::message::{Limits, MessageError};
use crate::once::Keeper;
use crate::security::{AccessList, Known, Principal, Tally};
use crate::transport::{
    Endpoint, Form, Frames, Peer, Received, Requests, RouterReceiver, RouterSender,
};
use crate::wire::{Code, HeaderError, Reason, RequestHeader, SizesMax, Status, Work};

#[derive(Debug)]
pub(super) struct Shared {
    pub sender: RouterSender,
    pub endpoint: Endpoint,
    pub routes: Routes,
    pub once: Option<Box<dyn Keeper>>,
    pub counters: Counters,
    pub by_principal: Tally<OfPrincipal>,
    pub limits: Limits,
    /// What it takes, and what is sent to clients that do not say what they take.
    pub sizes: SizesMax,
    /// Asked for every request, where there are keys.
    pub access: Option<AccessList>,
    /// What the access list is compared with, for as long as the server is there.
    pub _known: Arc<Known>,
    pub pools: Pools,
    pub drain_max: Duration,
    pub linger: Duration,
    /// Ends parked calls: no more are accepted, and these wait for something that need not come.
    pub draining: Notify,
    pub send_wait_max: Duration,
    pub slow_poll: Duration,
    pub backlog: ReplyBacklog,
    /// Whether clients may send the compact form.
    pub takes_compact: bool,
    pub readiness: Readiness,
    pub running: Arc<Running>,
    pub desk: Desk,
    pub on_drain: OnDrains,
}

#[derive(Debug)]
pub(super) struct Drive {
    pub shared: Arc<Shared>,
    pub receiver: RouterReceiver,
}

/// What a message says.
#[expect(
    clippy::large_enum_variant,
    reason = "taken apart at once; a box would be an allocation for each call"
)]
enum Read<'a> {
    Request(ReplyTo<'a>, RawRequest),
    /// The caller of this call no longer waits.
    Cancel(u64),
}

impl Drive {
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { shared, receiver } = self;
        let mut reader = Box::new(Reader::new(receiver));
        tokio::pin!(shutdown);
        let ready = shared.readiness.begin();
        let _open = shared.desk.open();
        let _backlog = shared.backlog.open();
        let _watched = watchdog::watch(&shared);
        loop {
            let Reader {
                receiver,
                batch,
                hands,
                ..
            } = &mut *reader;
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                received = receiver.receive(batch) => {
                    if received.is_err() {
                        return;
                    }
                    hands.since = Instant::now();
                    if shared.desk.is_resting() {
                        watchdog::wake();
                    }
                    reader = shared.serve(reader).await;
                }
                Some(_) = hands.handlers.join_next(), if !hands.handlers.is_empty() => {}
            }
        }
        drop(ready);
        shared.drain(*reader).await;
    }
}

impl Shared {
    /// The longest that a shutdown takes in a runtime that runs.
    pub fn shutdown_max(&self) -> Duration {
        const MARGIN: Duration = Duration::from_secs(1);
        self.drain_max
            .saturating_add(self.linger)
            .saturating_add(MARGIN)
    }

    async fn drain(self: &Arc<Self>, reader: Reader) {
        let Reader {
            mut receiver,
            mut batch,
            hands,
            ..
        } = reader;
        let mut handlers = hands.handlers;
        for drain in &self.on_drain.0 {
            drain();
        }
        self.sender.stop_accepting().await;
        self.draining.notify_waiters();
        let stop = deadline_after(self.drain_max);
        while !handlers.is_empty() || !self.backlog.is_empty() {
            tokio::select! {
                _ = handlers.join_next(), if !handlers.is_empty() => {}
                () = sleep(SEND_RETRY), if handlers.is_empty() => {}
                received = receiver.receive(&mut batch) => {
                    if received.is_err() {
                        break;
                    }
                    self.refuse(&mut batch);
                }
                () = tokio::time::sleep_until(stop) => break,
            }
        }
        if let Some(once) = &self.once {
            once.drain(stop).await;
        }
        handlers.shutdown().await;
        // What arrived while the last handler ended is told so too.
        while let Ok(Ok(())) = timeout(Duration::ZERO, receiver.receive(&mut batch)).await {
            self.refuse(&mut batch);
        }
        self.sender.close().await;
    }

    /// Serves a batch. Another task may have served a part of it, where a handler computed for long.
    async fn serve(self: &Arc<Self>, mut reader: Box<Reader>) -> Box<Reader> {
        while let Some((place, received)) = reader.batch.next() {
            reader = match self.accept(place, received, reader) {
                Ok(reader) => reader,
                Err((begun, call)) => {
                    let (mut reader, peer) = self.desk.regain().await;
                    self.conclude(begun, call, &peer, &mut reader.hands);
                    reader
                }
            };
        }
        self.send_gathered(&mut reader.hands);
        reader
    }

    /// Goes on reading while a handler computes in the task that reads, until that wants to read again. Gives no
    /// handler a poll of its own, so that it cannot be held up as well.
    pub async fn stand_in(self: Arc<Self>) {
        let Some(mut reader) = self.desk.take_over() else {
            return; // the handler has waited or ended meanwhile
        };
        loop {
            while let Some((place, received)) = reader.batch.next() {
                let Reader { batch, hands, .. } = &mut *reader;
                if let Some((call, request)) = self.admit(batch.peer(place), received, hands) {
                    self.spawn_elsewhere(batch.peer(place), call, request, hands);
                }
            }
            self.send_gathered(&mut reader.hands);
            let Reader {
                receiver,
                batch,
                hands,
                ..
            } = &mut *reader;
            tokio::select! {
                biased;
                () = self.desk.wanted() => break,
                received = receiver.receive(batch) => {
                    if received.is_err() {
                        break;
                    }
                    hands.since = Instant::now();
                }
                Some(_) = hands.handlers.join_next(), if !hands.handlers.is_empty() => {}
            }
        }
        self.desk.give_back(reader);
    }

    /// Gives one handler its first poll; where that took so long that another task reads now, returns what came
    /// of it.
    #[expect(
        clippy::result_large_err,
        reason = "not an error: what is returned is moved once, and a box would be an allocation"
    )]
    fn accept(
        self: &Arc<Self>,
        place: usize,
        received: Received,
        mut reader: Box<Reader>,
    ) -> Result<Box<Reader>, (Begun, Call)> {
        let Reader { batch, hands, .. } = &mut *reader;
        let Some((call, request)) = self.admit(batch.peer(place), received, hands) else {
            return Ok(reader);
        };
        if self.routes.pace(call.method).is_slow() {
            self.spawn_elsewhere(batch.peer(place), call, request, hands);
            return Ok(reader);
        }
        let lent = self.desk.begin(call.method, place, reader);
        let begun = self.begin(call, request);
        match self.desk.end(lent) {
            Some(mut reader) => {
                let Reader { batch, hands, .. } = &mut *reader;
                self.conclude(begun, call, batch.peer(place), hands);
                Ok(reader)
            }
            None => Err((begun, call)),
        }
    }

    /// Calls a handler, and polls it once.
    pub fn begin(&self, call: Call, request: RawRequest) -> Begun {
        let begin = || {
            let mut future = self.routes.route(call.method).call(request);
            // The waker of this first poll is lost. That is sound: whoever polls next asks again.
            let mut nobody = Context::from_waker(Waker::noop());
            match future.as_mut().poll(&mut nobody) {
                Poll::Ready(ended) => Begun::Ended(ended),
                Poll::Pending => Begun::Waits(future, false),
            }
        };
        match catch_unwind(AssertUnwindSafe(|| {
            within(call.deadline, || watched(begin))
        })) {
            Ok((Begun::Waits(future, _), is_parked)) => Begun::Waits(future, is_parked),
            Ok((begun, _)) => begun,
            Err(_) => Begun::Ended(Err(self.panicked())),
        }
    }

    fn conclude(self: &Arc<Self>, begun: Begun, call: Call, peer: &Peer, hands: &mut Hands) {
        match begun {
            Begun::Ended(ended) => self.reply(call.to(peer), ended, hands),
            Begun::Waits(future, is_parked) => {
                // Counted from here on: all that comes before is in the one task that asks.
                let mut in_flight = InFlight::new(self, peer, call.bytes);
                match in_flight.set_parked(is_parked) {
                    Ok(()) => self.spawn(peer, call, First::Done(future), in_flight, hands),
                    Err(no_room) => {
                        drop(future);
                        self.reply(call.to(peer), Err(self.too_many(peer, no_room)), hands);
                    }
                }
            }
        }
    }

    fn spawn_elsewhere(
        self: &Arc<Self>,
        peer: &Peer,
        call: Call,
        request: RawRequest,
        hands: &mut Hands,
    ) {
        let mut in_flight = InFlight::new(self, peer, call.bytes);
        // It was asked for, and is not parked.
        let _ = in_flight.set_parked(false);
        self.spawn(peer, call, First::Elsewhere(request), in_flight, hands);
    }

    /// Reads a request and decides whether it is served; answers it where it is not.
    fn admit(
        self: &Arc<Self>,
        peer: &Peer,
        received: Received,
        hands: &mut Hands,
    ) -> Option<(Call, RawRequest)> {
        let handlers = &mut hands.handlers;
        while !handlers.is_empty() && handlers.try_join_next().is_some() {}
        let (to, mut request) = match self.read(peer, received, hands.since) {
            Ok(Read::Request(to, request)) => (to, request),
            Ok(Read::Cancel(correlation)) => {
                self.running.cancel(peer, correlation);
                return None;
            }
            Err((to, status)) => {
                self.reply(to, Err(status), hands);
                return None;
            }
        };
        if to.announce && request.interface == 0 {
            // It only asks what this server takes, which the header of every reply to it says.
            let nothing = RawReply::new(Outcome::Success, Bytes::new());
            self.reply(to, Ok(nothing), hands);
            return None;
        }
        match self.admitted(to, &mut request) {
            Ok(method) => Some((Call::new(to, method, &request), request)),
            Err(status) => {
                self.reply(to, Err(status), hands);
                None
            }
        }
    }

    /// Finds the method of a request that may be served now.
    fn admitted(&self, to: ReplyTo<'_>, request: &mut RawRequest) -> Result<usize, Status> {
        let peer = to.peer;
        let Some(found) = self.routes.find(request.interface, request.method) else {
            self.counters.unknown.count_and_log(|count| {
                tracing::warn!(endpoint = %self.endpoint, count, "unknown method");
            });
            return Err(Status::unknown_method(request.interface, request.method));
        };
        if let Some(status) = self.denied(peer, &found, request) {
            return Err(status);
        }
        if let Err(no_room) = self.pools.has_room(peer, request.body.len()) {
            return Err(self.too_many(peer, no_room));
        }
        self.counters.handled.count();
        self.count_of(peer, |of| &of.handled);
        request.effect = found.method.effect;
        Ok(found.index)
    }

    /// What to answer where no rule allows the request to who sent it. The log says which.
    fn denied(&self, peer: &Peer, found: &Found, request: &RawRequest) -> Option<Status> {
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
        let status = Status::new(Code::PermissionDenied, Work::NotDone, reason);
        Some(status.with_reason(Reason::AccessDenied))
    }

    pub fn too_many(&self, peer: &Peer, no_room: NoRoom) -> Status {
        self.count_of(peer, |of| &of.refused);
        self.counters.refused.count_and_log(|count| {
            tracing::warn!(endpoint = %self.endpoint, %peer, reason = %no_room, count, "call refused");
        });
        no_room.into()
    }

    /// Counts what happened to a request of whoever has proved a key.
    fn count_of(&self, peer: &Peer, counter: impl Fn(&OfPrincipal) -> &AtomicU64) {
        if let Some(principal) = peer.principal() {
            self.by_principal.count(principal, |of| {
                counter(of).fetch_add(1, Relaxed);
            });
        }
    }

    fn read<'a>(
        &self,
        peer: &'a Peer,
        received: Received,
        now: Instant,
    ) -> Result<Read<'a>, (ReplyTo<'a>, Status)> {
        let invalid = |correlation, form, reason: String| {
            self.counters.malformed.count_and_log(|count| {
                tracing::warn!(endpoint = %self.endpoint, count, reason, "no request");
            });
            let to = ReplyTo {
                peer,
                correlation,
                form,
                takes: self.sizes,
                announce: false,
            };
            (
                to,
                Status::invalid_argument(reason).with_reason(Reason::Unreadable),
            )
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
                    _ => RequestHeader::peek_correlation(&header).unwrap_or(0),
                };
                return Err(invalid(correlation, form, error.to_string()));
            }
        };
        if header.cancel {
            return Ok(Read::Cancel(header.correlation));
        }
        let principal = peer.principal().cloned();
        let to = ReplyTo {
            peer,
            correlation: header.correlation,
            form,
            takes: header.takes.unwrap_or(self.sizes),
            announce: header.announce,
        };
        if body.len() > self.limits.message_bytes_max {
            let too_large = MessageError::TooLarge {
                bytes: body.len(),
                max: self.limits.message_bytes_max,
            };
            self.counters.too_large.count_and_log(|count| {
                let principal = peer.principal().map(Principal::as_str);
                tracing::warn!(endpoint = %self.endpoint, principal, count, bytes = body.len(), "a body over the limit");
            });
            // Not by `From`, which is for what a reader finds.
            let status = Status::resource_exhausted(too_large.to_string());
            return Err((to, status.with_reason(Reason::TooLarge)));
        }
        let request = RawRequest {
            interface: header.interface,
            method: header.method,
            effect: crate::schema::Effect::Unsafe,
            principal,
            address: peer.share().and_then(|share| share.address()),
            id: header.id,
            attempt: header.attempt,
            deadline: header.remaining.map(|remaining| after(now, remaining)),
            outcome_only: header.outcome_only,
            wait_for_ready: false,
            trace: header.trace,
            metadata: header.metadata,
            body,
            limits: self.limits,
            logical: None,
            transaction: None,
        };
        Ok(Read::Request(to, request))
    }

    /// Tells all of a batch that the server is leaving.
    fn refuse(self: &Arc<Self>, batch: &mut Requests) {
        while let Some((place, received)) = batch.next() {
            let peer = batch.peer(place);
            let (to, status) = match self.read(peer, received, Instant::now()) {
                Ok(Read::Request(to, _)) => {
                    self.counters.refused.count();
                    (to, shutting_down())
                }
                Ok(Read::Cancel(correlation)) => {
                    self.running.cancel(peer, correlation);
                    continue;
                }
                Err(invalid) => invalid,
            };
            self.reply_once(to, status);
        }
    }
}

/// What a call is told that is not begun, or has done nothing yet.
pub(super) fn shutting_down() -> Status {
    Status::unavailable("the server is shutting down").with_reason(Reason::ShuttingDown)
}
