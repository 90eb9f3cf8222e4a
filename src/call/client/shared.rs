//! What callers and the driver share: the calls in flight, and sending.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::departures::{Departures, Way};
use super::no_server;
use crate::call::correlation::{Correlation, TooMany};
use crate::call::{RawReply, RawRequest};
use crate::counter::Counter;
use crate::message::Limits;
use crate::transport::{DealerSender, Endpoint, Frames, Outgoing, Refused};
use crate::wire::{RequestHeader, Status, Work, pack_one};

#[derive(Debug)]
pub(super) struct Shared {
    pub sender: DealerSender,
    calls: Mutex<Calls>,
    /// As the driver knows it, who ends the calls of a connection before it says that there is
    /// another: so no call is taken for one of a connection that came after it.
    connected: watch::Sender<bool>,
    /// The same, for those who do not wait.
    is_connected: AtomicBool,
    /// The driver's clock does not tick, and has to be woken.
    pub resting: AtomicBool,
    /// The driver has something to do: requests wait for it, or its clock rests.
    pub woken: Notify,
    /// Messages that were no replies.
    pub malformed: Counter,
    pub endpoint: Endpoint,
    /// Whether this side takes compact replies.
    takes_compact: bool,
    pub timeout: Duration,
    pub limits: Limits,
}

pub(super) type Ended = Result<RawReply, Status>;

#[derive(Debug)]
pub(super) struct Calls {
    pub correlation: Correlation<Ended, Instant>,
    pub departures: Departures,
}

/// Why a call has not begun.
pub(super) enum NotBegun {
    Full,
    NoServer,
    Never(Status),
}

impl Shared {
    pub fn new(
        sender: DealerSender,
        endpoint: Endpoint,
        in_flight_max: usize,
        takes_compact: bool,
        timeout: Duration,
        limits: Limits,
    ) -> Self {
        Self {
            sender,
            calls: Mutex::new(Calls {
                correlation: Correlation::new(in_flight_max),
                departures: Departures::new(takes_compact),
            }),
            connected: watch::Sender::new(false),
            is_connected: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            woken: Notify::new(),
            malformed: Counter::default(),
            endpoint,
            takes_compact,
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
        self.connected.send_replace(is);
    }

    /// Returns when the server is there.
    pub async fn connected(&self) {
        // The sender is in `self`, so it does not go away.
        let _ = self.connected.subscribe().wait_for(|is| *is).await;
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
            return Err(NotBegun::NoServer);
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
        };
        let mut wake = Vec::new();
        let mut calls = self.lock();
        let number = calls.correlation.begin(deadline).map_err(|TooMany| {
            NotBegun::Never(Status::resource_exhausted(
                "too many calls of this client are in flight",
            ))
        })?;
        header.correlation = number;
        let header = header.encode();
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
            Err(Refused::NoPeer) => Err(NotBegun::NoServer),
            Err(Refused::Closed) => Err(NotBegun::Never(closed())),
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
                give_up(calls, || no_server(&self.endpoint), wake);
                Err(NotBegun::NoServer)
            }
            Err(Refused::Closed) => {
                give_up(calls, closed, wake);
                Err(NotBegun::Never(closed()))
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
        calls.departures = Departures::new(self.takes_compact);
        drop(calls);
        wake.into_iter().for_each(Waker::wake);
    }
}

fn closed() -> Status {
    Status::unavailable("the client is closed")
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
    use crate::schema::{Effect, MethodInfo};
    use crate::transport::{self, DealerReceiver, RouterReceiver, TransportOptions};
    use crate::wire::Code;

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
        let shared = Shared::new(dealer, endpoint, 1000, true, TIMEOUT_DEFAULT, limits);
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
