//! What callers and the driver share: the calls in flight, and sending.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::connection::{Connection, State};
use super::departures::{Departures, Way};
use crate::call::budget::SharedBudget;
use crate::call::correlation::{Correlation, TooMany};
use crate::call::{RawReply, RawRequest};
use crate::counter::Counter;
use crate::message::Limits;
use crate::schema::{Effect, MethodInfo};
use crate::transport::{DealerSender, Endpoint, Frames, Outgoing, Refused};
use crate::wire::{
    Code, HEADER_BYTES_MAX, Metadata, Origin, Oversize, Reason, RequestHeader, SizesMax, Status,
    Work, pack_one,
};

/// Calls that were dropped before it was known whether the server understands that; the others are not
/// cancelled there.
const CANCELS_WAITING_MAX: usize = 128;
/// The body of a message that needs none: an empty message of one segment.
const NO_BODY: &[u8] = &[0; 8];

#[derive(Debug)]
pub(super) struct Shared {
    pub sender: DealerSender,
    calls: Mutex<Calls>,
    /// As the driver knows it, who ends the calls of a connection before it says that there is
    /// another: so no call is taken for one of a connection that came after it.
    connection: watch::Sender<State>,
    /// The same, for those who do not wait.
    is_connected: AtomicBool,
    /// The driver's clock does not tick, and has to be woken.
    pub resting: AtomicBool,
    /// The driver has something to do: requests wait for it, or its clock rests.
    pub woken: Notify,
    /// Why the client can make no more calls.
    over: OnceLock<Over>,
    /// The runtime that drives this client.
    runtime: Option<runtime::Id>,
    /// What pays for sending again the calls that wait for their server.
    pub resends: SharedBudget,
    /// Messages that were no replies.
    pub malformed: Counter,
    /// Requests that the server would not take.
    pub too_large: Counter,
    pub endpoint: Endpoint,
    /// What this side takes.
    own: Own,
    pub timeout: Duration,
    pub limits: Limits,
}

/// What a client takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    /// Replies in the compact form.
    pub compact: bool,
    /// Sizes of replies; and of requests, until the server says what it takes.
    pub sizes: SizesMax,
}

/// Why a client can make no more calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Closed,
    RuntimeShutDown,
    DriverPanicked,
}

impl Over {
    fn status(self, code: Code, work: Work) -> Status {
        let (message, reason) = match self {
            Self::Closed => ("the client is closed", Reason::ClientClosed),
            Self::RuntimeShutDown => (
                "the tokio runtime that the client was made in has shut down",
                Reason::RuntimeShutDown,
            ),
            Self::DriverPanicked => {
                let message = "the client's task has panicked";
                return Status::new(Code::Internal, work, message);
            }
        };
        Status::new(code, work, message).with_reason(reason)
    }

    /// For a call that is to begin.
    fn refusal(self) -> Status {
        self.status(Code::Unavailable, Work::NotDone)
    }

    /// For a call in flight.
    pub fn ending(self) -> Status {
        let code = match self {
            Self::Closed => Code::Cancelled,
            _ => Code::Unavailable,
        };
        self.status(code, Work::OutcomeUnknown)
    }
}

pub(super) type Ended = Result<RawReply, Status>;

#[derive(Debug)]
pub(super) struct Calls {
    pub correlation: Correlation<Ended, Instant>,
    pub departures: Departures,
    pub server: Server,
}

/// What the server has said of itself on this connection.
#[derive(Debug)]
pub(super) struct Server {
    /// It has said something.
    has_answered: bool,
    /// It understands that a call is cancelled.
    cancels: bool,
    /// What it takes, as far as is known.
    takes: SizesMax,
    /// Calls to be cancelled once it is known that it understands.
    to_cancel: Vec<u64>,
}

impl Server {
    fn new(own: Own) -> Self {
        Self {
            has_answered: false,
            cancels: false,
            takes: own.sizes,
            to_cancel: Vec::new(),
        }
    }

    /// It has answered. Returns calls to be cancelled.
    pub fn answered(&mut self, cancels: bool, takes: Option<SizesMax>) -> Vec<u64> {
        self.has_answered = true;
        self.cancels |= cancels;
        if let Some(takes) = takes {
            self.takes = takes;
        }
        std::mem::take(&mut self.to_cancel)
    }
}

/// Why a call has not begun.
pub(super) enum NotBegun {
    Full,
    /// It is large, and the server has not said yet what it takes: that has to be [asked](question) first.
    Unasked,
    NoServer,
    Never(Status),
}

impl Shared {
    pub fn new(
        sender: DealerSender,
        endpoint: Endpoint,
        in_flight_max: usize,
        own: Own,
        timeout: Duration,
        limits: Limits,
    ) -> Self {
        Self {
            sender,
            calls: Mutex::new(Calls {
                correlation: Correlation::new(in_flight_max),
                departures: Departures::new(own.compact),
                server: Server::new(own),
            }),
            connection: watch::Sender::new(State::down()),
            is_connected: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            woken: Notify::new(),
            over: OnceLock::new(),
            runtime: runtime::Handle::try_current()
                .ok()
                .map(|handle| handle.id()),
            resends: SharedBudget::default(),
            malformed: Counter::default(),
            too_large: Counter::default(),
            endpoint,
            own,
            timeout,
            limits,
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Calls> {
        // Callers' wakers run only after the lock is released, so nothing of others panics under it.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Acquire)
    }

    pub fn set_connected(&self, is: bool) {
        self.is_connected.store(is, Ordering::Release);
        self.connection.send_modify(|state| state.set(is));
    }

    /// Returns when the server is there, or when it is no longer looked for.
    pub async fn connected(&self) {
        let mut connected = self.connection.subscribe();
        // The sender is in `self`, so it does not go away.
        let _ = connected
            .wait_for(|state| state.is_up() || self.over.get().is_some())
            .await;
    }

    /// Whether the current task runs in another runtime than the client's, whose clock may stand still.
    pub fn is_foreign(&self) -> bool {
        let here = runtime::Handle::try_current().map(|handle| handle.id());
        here.is_ok_and(|here| Some(here) != self.runtime)
    }

    /// Says why there will be no more calls, the first time that it is asked to.
    pub fn set_over(&self, over: Over) {
        let _ = self.over.set(over);
        self.connection.send_modify(State::end);
    }

    /// Ends all calls, and those that come: nothing drives the client any more.
    pub fn end(&self, over: Over) {
        self.set_over(over);
        self.set_connected(false);
        let over = self.over.get().copied().unwrap_or(over);
        self.end_all(|| over.ending());
    }

    fn not_connected(&self) -> NotBegun {
        match self.over.get() {
            Some(over) => NotBegun::Never(over.refusal()),
            None => NotBegun::NoServer,
        }
    }

    /// The status of a call that found no connection, with the reason why there is none.
    pub fn no_connection(&self) -> Status {
        let failure = self.sender.failure();
        let message = format!("no connection to {}: {failure}", self.endpoint);
        Status::unavailable(message)
            .with_reason(failure.reason())
            .with_origin(Origin::Connection)
    }

    /// The status of a call whose connection was lost.
    pub fn connection_lost(&self) -> Status {
        let mut message = format!("the connection to {} was lost", self.endpoint);
        if let Some(cause) = self.sender.last_lost() {
            message.push_str(": ");
            message.push_str(&cause);
        }
        Status::new(Code::Unavailable, Work::OutcomeUnknown, message)
            .with_reason(Reason::ConnectionLost)
            .with_origin(Origin::Connection)
    }

    pub fn connection(&self) -> Connection {
        Connection::new(self.endpoint.clone(), self.connection.subscribe())
    }

    /// Sends the request, or has it wait for the driver's next turn, and returns its correlation
    /// number.
    ///
    /// May take the body out of a request that will not be sent again, and puts it back where it
    /// was not sent but may be later.
    pub fn begin(
        &self,
        request: &mut RawRequest,
        deadline: Instant,
        now: Instant,
    ) -> Result<u64, NotBegun> {
        if !self.is_connected() {
            return Err(self.not_connected());
        }
        let remaining = deadline.saturating_duration_since(now);
        if remaining.is_zero() {
            return Err(NotBegun::Never(Status::deadline_exceeded(Work::NotDone)));
        }
        let mut header = RequestHeader {
            interface: request.interface,
            method: request.method,
            attempt: request.attempt,
            correlation: 0,
            id: request.id.clone(),
            remaining: Some(remaining),
            trace: request.trace.clone(),
            metadata: request.metadata.clone(),
            outcome_only: request.outcome_only,
            announce: false,
            cancel: false,
            takes: Some(self.own.sizes),
        };
        let mut wake = Vec::new();
        let mut calls = self.lock();
        let number = calls.correlation.begin(deadline).map_err(|TooMany| {
            NotBegun::Never(Status::resource_exhausted(
                "too many calls of this client are in flight",
            ))
        })?;
        if !calls.server.has_answered && SizesMax::DEFAULT.check(0, request.body.len()).is_err() {
            calls.correlation.cancel(number);
            return Err(NotBegun::Unasked);
        }
        header.correlation = number;
        header.announce = !calls.server.has_answered;
        let header = header.encode();
        if let Err(status) = self.check_sizes(calls.server.takes, &header, &request.body) {
            calls.correlation.cancel(number);
            return Err(NotBegun::Never(status));
        }
        let mut way = calls.departures.way(number, &header, &request.body);
        let mut made_room = Ok(());
        if way == Way::NoRoom {
            made_room = self.flush(&mut calls, &mut wake);
            if made_room.is_ok() {
                way = calls.departures.way(number, &header, &request.body);
            }
        }
        drop(calls);
        wake.into_iter().for_each(Waker::wake);
        let begun = made_room.and_then(|()| match way {
            Way::Waits { is_first } => {
                if is_first {
                    self.woken.notify_one();
                }
                Ok(())
            }
            Way::NoRoom => Err(NotBegun::Full),
            Way::Alone => self.send(Outgoing::Compact(pack_one(&header, &request.body)), request),
            Way::Classic => {
                let body = match request.wait_for_ready {
                    true => request.body.clone(),
                    false => std::mem::take(&mut request.body),
                };
                self.send(Outgoing::Classic(Frames { header, body }), request)
            }
        });
        match begun {
            Ok(()) => Ok(number),
            Err(not_begun) => {
                self.lock().correlation.cancel(number);
                Err(not_begun)
            }
        }
    }

    fn check_sizes(&self, takes: SizesMax, header: &[u8], body: &[u8]) -> Result<(), Status> {
        let header_bytes = header.len();
        let Err(Oversize { bytes, max }) =
            check_header(header_bytes).and_then(|()| takes.check(header_bytes, body.len()))
        else {
            return Ok(());
        };
        self.too_large.count_and_log(|count| {
            tracing::warn!(endpoint = %self.endpoint, bytes, max, count, "request too large");
        });
        let endpoint = &self.endpoint;
        let message =
            format!("a request of {bytes} bytes is over the limit of {max} of {endpoint}");
        Err(Status::resource_exhausted(message).with_reason(Reason::TooLarge))
    }

    /// The caller of a call has gone: frees its slot, and tells the server, where that understands it.
    pub fn cancel(&self, number: u64) {
        let mut wake = Vec::new();
        let mut calls = self.lock();
        if !calls.correlation.cancel(number) || !self.is_connected() {
            return;
        }
        if calls.server.cancels {
            self.send_cancel(&mut calls, number, &mut wake);
        } else if !calls.server.has_answered && calls.server.to_cancel.len() < CANCELS_WAITING_MAX {
            calls.server.to_cancel.push(number);
        }
        drop(calls);
        wake.into_iter().for_each(Waker::wake);
    }

    /// Sends that nobody waits for a call any more, behind its request. Where there is no room it is not sent:
    /// then its handler goes on until the deadline.
    pub fn send_cancel(&self, calls: &mut Calls, number: u64, wake: &mut Vec<Waker>) {
        if !calls.server.cancels {
            return;
        }
        let header = cancel_header(number).encode();
        let mut way = calls.departures.way(number, &header, NO_BODY);
        if way == Way::NoRoom && self.flush(calls, wake).is_ok() {
            way = calls.departures.way(number, &header, NO_BODY);
        }
        match way {
            Way::Waits { is_first: true } => self.woken.notify_one(),
            Way::Waits { is_first: false } | Way::NoRoom => {}
            Way::Alone => {
                let _ = self
                    .sender
                    .try_send(Outgoing::Compact(pack_one(&header, NO_BODY)));
            }
            Way::Classic => {
                let body = Bytes::from_static(NO_BODY);
                let _ = self
                    .sender
                    .try_send(Outgoing::Classic(Frames { header, body }));
            }
        }
    }

    /// Sends one request from the task of its caller.
    fn send(&self, message: Outgoing, request: &mut RawRequest) -> Result<(), NotBegun> {
        match self.sender.try_send(message) {
            Ok(()) => {
                if self.resting.load(Ordering::Acquire) {
                    self.woken.notify_one();
                }
                Ok(())
            }
            Err(Refused::Full(back)) => {
                if let Outgoing::Classic(frames) = *back {
                    request.body = frames.body;
                }
                Err(NotBegun::Full)
            }
            Err(Refused::NoPeer) => Err(self.not_connected()),
            Err(Refused::Closed) => Err(NotBegun::Never(Over::Closed.refusal())),
        }
    }

    /// Sends those that wait. They go on to wait where there is no room, and are ended, not done,
    /// where there is nobody to send them to.
    pub fn flush(&self, calls: &mut Calls, wake: &mut Vec<Waker>) -> Result<(), NotBegun> {
        let Some(packed) = calls.departures.take() else {
            return Ok(());
        };
        match self.sender.try_send(Outgoing::Compact(packed)) {
            Ok(()) => {
                calls.departures.left();
                Ok(())
            }
            Err(Refused::Full(back)) => {
                if let Outgoing::Compact(packed) = *back {
                    calls.departures.put_back(packed);
                }
                Err(NotBegun::Full)
            }
            Err(Refused::NoPeer) => {
                give_up(calls, || self.no_connection(), wake);
                Err(NotBegun::NoServer)
            }
            Err(Refused::Closed) => {
                give_up(calls, || Over::Closed.refusal(), wake);
                Err(NotBegun::Never(Over::Closed.refusal()))
            }
        }
    }

    /// Sends what waits, and lets nothing wait any more: nobody will send it.
    pub fn stop_gathering(&self) {
        let mut wake = Vec::new();
        let mut calls = self.lock();
        calls.departures.stop();
        // What has no room now is ended, not done, with all others.
        let _ = self.flush(&mut calls, &mut wake);
        drop(calls);
        wake.into_iter().for_each(Waker::wake);
    }

    /// Ends all calls of a connection: with `status`, and not done where they had not left.
    pub fn end_all(&self, status: impl Fn() -> Status) {
        let mut wake = Vec::new();
        let mut calls = self.lock();
        give_up(&mut calls, || status().with_work(Work::NotDone), &mut wake);
        calls.correlation.end_all(|| Err(status()), &mut wake);
        // In one with giving up: nothing comes to wait in between.
        calls.departures = Departures::new(self.own.compact);
        calls.server = Server::new(self.own);
        drop(calls);
        wake.into_iter().for_each(Waker::wake);
    }
}

/// A request that only asks what the server takes. One that does not understand it says that it has no such method,
/// which is an answer as well.
pub(super) fn question() -> RawRequest {
    let method = MethodInfo {
        service: "",
        name: "",
        interface: 0,
        ordinal: 0,
        effect: Effect::Idempotent,
        timeout: None,
        params: 0,
        results: 0,
        fails: None,
    };
    RawRequest::new(&method, Bytes::from_static(NO_BODY))
}

fn check_header(bytes: usize) -> Result<(), Oversize> {
    let max = HEADER_BYTES_MAX;
    match bytes > max {
        true => Err(Oversize { bytes, max }),
        false => Ok(()),
    }
}

fn cancel_header(number: u64) -> RequestHeader {
    RequestHeader {
        interface: 0,
        method: 0,
        attempt: 0,
        correlation: number,
        id: Uuid::nil().into(),
        remaining: None,
        trace: None,
        metadata: Metadata::new(),
        outcome_only: false,
        announce: false,
        cancel: true,
        takes: None,
    }
}

/// Ends those that have not left.
fn give_up(calls: &mut Calls, status: impl Fn() -> Status, wake: &mut Vec<Waker>) {
    for number in calls.departures.give_up() {
        wake.extend(calls.correlation.end_waiting(number, Err(status())));
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use bytes::Bytes;

    use super::*;
    use crate::call::TIMEOUT_DEFAULT;
    use crate::transport::{self, DealerReceiver, RouterReceiver, TransportOptions};

    static METHOD: MethodInfo = MethodInfo {
        service: "service",
        name: "method",
        interface: 1,
        ordinal: 0,
        effect: Effect::Unsafe,
        timeout: None,
        params: 0,
        results: 0,
        fails: None,
    };

    /// A connection to a server that has room for so many messages and takes many calls in one.
    async fn connected(name: &str, room: u32) -> (Shared, RouterReceiver, DealerReceiver) {
        let endpoint: Endpoint = format!("inproc://{name}").parse().unwrap();
        let options = TransportOptions::default().with_receive_queue_max(room);
        let (_, router, _) = transport::bind_router(&endpoint, &options).await.unwrap();
        let (dealer, replies) = transport::connect_dealer(&endpoint, &options)
            .await
            .unwrap();
        let limits = Limits::default();
        let own = Own {
            compact: true,
            sizes: SizesMax::DEFAULT,
        };
        let shared = Shared::new(dealer, endpoint, 1000, own, TIMEOUT_DEFAULT, limits);
        shared.set_connected(true);
        shared.lock().departures.server_takes();
        (shared, router, replies)
    }

    fn begin(shared: &Shared) -> Result<u64, NotBegun> {
        let now = Instant::now();
        let mut request = RawRequest::new(&METHOD, Bytes::from_static(&[0; 8]));
        let begun = shared.begin(&mut request, now + TIMEOUT_DEFAULT, now);
        assert_eq!(request.body.len(), 8, "it can be begun again");
        begun
    }

    async fn arrived(router: &mut RouterReceiver) -> usize {
        let mut batch = transport::Requests::default();
        router.receive(&mut batch).await.unwrap();
        batch.len()
    }

    #[tokio::test]
    async fn calls_that_have_not_left_when_the_connection_is_lost_were_not_done() {
        let (shared, mut router, _replies) = connected("not-left", 100).await;
        let numbers: Vec<u64> = (0..3).filter_map(|_| begin(&shared).ok()).collect();
        shared.end_all(|| Status::new(Code::Unavailable, Work::OutcomeUnknown, "lost"));
        let work = numbers.iter().map(|number| {
            let ended = shared.lock().correlation.poll(*number, Waker::noop());
            let Poll::Ready(Some(Err(status))) = ended else {
                panic!("it has not failed");
            };
            status.work()
        });
        let expected = [Work::OutcomeUnknown, Work::NotDone, Work::NotDone];
        assert_eq!(work.collect::<Vec<_>>(), expected);
        assert_eq!(arrived(&mut router).await, 1);
    }

    #[tokio::test]
    async fn calls_that_find_no_room_wait_on_and_leave_once_there_is() {
        let (shared, mut router, _replies) = connected("no-room", 1).await;
        assert!(begin(&shared).is_ok() && begin(&shared).is_ok());
        let mut wake = Vec::new();
        let flushed = shared.flush(&mut shared.lock(), &mut wake);
        assert!(matches!(flushed, Err(NotBegun::Full)));
        // None waits behind those that found no room.
        assert!(matches!(begin(&shared), Err(NotBegun::Full)));
        assert_eq!(shared.lock().correlation.len(), 2);
        assert_eq!(arrived(&mut router).await, 1);
        // Whoever comes next makes room, and waits itself.
        assert!(begin(&shared).is_ok());
        assert_eq!(arrived(&mut router).await, 1);
        assert!(shared.flush(&mut shared.lock(), &mut wake).is_ok());
        assert_eq!(arrived(&mut router).await, 1);
        assert!(wake.is_empty());
    }
}
