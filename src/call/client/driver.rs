//! The driver: the one task of a client that reads. It hands replies to their callers, sends the
//! requests that wait for company, ends calls whose deadline has passed, and those whose connection
//! is lost.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::task::Waker;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};

use super::shared::{Calls, Ended, NotBegun, Over, Shared};
use crate::call::{Outcome, RawReply};
use crate::message::Limits;
use crate::transport::{DealerReceiver, Received};
use crate::wire::{Code, Reason, ReplyHeader, ReplyStatus, SizesMax, Status, Work};

/// How exactly deadlines are kept: a call ends at most this much after its own.
const DEADLINE_TICK: Duration = Duration::from_millis(10);
/// Ticks without a call in flight before the clock rests.
const IDLE_TICKS: u32 = 100;
/// Of a reply to nobody: the server could not read what it was sent.
const NOBODY: u64 = 0;

pub(super) async fn drive(shared: Arc<Shared>, mut receiver: DealerReceiver) {
    let _end = EndOnDrop(Arc::clone(&shared));
    let mut batch = Vec::new();
    let mut wake = Vec::new();
    let seen = shared.sender.connection_generation();
    shared.set_connected(shared.sender.is_connected());
    let mut ticking = true;
    let mut idle_ticks = 0;
    // Requests wait until the socket has room again.
    let mut is_blocked = false;
    tokio::pin! {
        let changed = shared.sender.connection_changed(seen);
        let tick = sleep_until(Instant::now() + DEADLINE_TICK);
        let woken = shared.woken.notified();
        let writable = shared.sender.writable();
    }
    loop {
        tokio::select! {
            biased;
            received = receiver.receive(&mut batch) => {
                if received.is_err() {
                    break;
                }
                is_blocked = accept(&shared, &mut batch, &mut wake);
                // Replies that pour in must not keep the clock waiting.
                if ticking && tick.is_elapsed() {
                    drop(expire(&shared, &mut wake));
                    restart(tick.as_mut());
                }
            }
            now = &mut changed => match now {
                Ok(generation) => {
                    changed.set(shared.sender.connection_changed(generation));
                    if shared.is_connected() {
                        shared.set_connected(false);
                        shared.end_all(|| shared.connection_lost());
                    }
                    is_blocked = false;
                    shared.set_connected(shared.sender.is_connected());
                }
                Err(_) => break,
            },
            () = &mut tick, if ticking => {
                let calls = expire(&shared, &mut wake);
                idle_ticks = if calls.correlation.is_empty() { idle_ticks + 1 } else { 0 };
                if idle_ticks > IDLE_TICKS {
                    // Under the lock: a caller that begins after this sees that it must wake.
                    shared.resting.store(true, Ordering::Release);
                    ticking = false;
                }
                drop(calls);
                restart(tick.as_mut());
            }
            () = &mut woken => {
                woken.set(shared.woken.notified());
                while is_early(&shared) {
                    yield_now().await;
                }
                is_blocked = flush(&shared, &mut wake);
                if !ticking {
                    shared.resting.store(false, Ordering::Release);
                    ticking = true;
                    idle_ticks = 0;
                    restart(tick.as_mut());
                }
            }
            () = &mut writable, if is_blocked => {
                writable.set(shared.sender.writable());
                is_blocked = flush(&shared, &mut wake);
            }
        }
        wake.drain(..).for_each(Waker::wake);
    }
}

/// Ends all calls when the driver does, also where that is dropped with its runtime: nobody else would.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(match std::thread::panicking() {
            true => Over::DriverPanicked,
            false => Over::RuntimeShutDown,
        });
    }
}

/// Ends the calls whose deadline has passed.
fn expire<'a>(shared: &'a Shared, wake: &mut Vec<Waker>) -> MutexGuard<'a, Calls> {
    let mut calls = shared.lock();
    let timed_out = || Err(Status::deadline_exceeded(Work::OutcomeUnknown));
    calls.correlation.expire(Instant::now(), timed_out, wake);
    calls
}

fn restart(tick: Pin<&mut Sleep>) {
    tick.reset(Instant::now() + DEADLINE_TICK);
}

/// Hands replies to their callers, and sends what waits; whether it has to wait on.
fn accept(shared: &Shared, batch: &mut Vec<Received>, wake: &mut Vec<Waker>) -> bool {
    let mut calls = shared.lock();
    for received in batch.drain(..) {
        let reply = match read(received, &shared.limits) {
            Ok(reply) => reply,
            Err(unreadable) => {
                let ended = unreadable.count(shared);
                if let Some(number) = unreadable.correlation {
                    wake.extend(calls.correlation.end_waiting(number, Err(ended)));
                }
                continue;
            }
        };
        if reply.takes_compact {
            calls.departures.server_takes();
        }
        for number in calls.server.answered(reply.cancels, reply.takes) {
            shared.send_cancel(&mut calls, number, wake);
        }
        if reply.is_announcement() {
            continue;
        }
        if reply.correlation == NOBODY && reply.is_invalid() {
            // There may be a server of another kind behind the one that said so.
            calls.departures.stop();
        }
        wake.extend(calls.correlation.end(reply.correlation, reply.ended));
    }
    if calls.departures.turn(wake.len()) {
        shared.woken.notify_one();
        return false;
    }
    matches!(shared.flush(&mut calls, wake), Err(NotBegun::Full))
}

fn is_early(shared: &Shared) -> bool {
    shared.lock().departures.is_early()
}

/// Sends what waits; whether it has to wait on.
fn flush(shared: &Shared, wake: &mut Vec<Waker>) -> bool {
    let mut calls = shared.lock();
    calls.departures.woken();
    matches!(shared.flush(&mut calls, wake), Err(NotBegun::Full))
}

struct Reply {
    correlation: u64,
    takes_compact: bool,
    cancels: bool,
    takes: Option<SizesMax>,
    ended: Ended,
}

impl Reply {
    /// It only says what the server takes.
    fn is_announcement(&self) -> bool {
        self.correlation == NOBODY && self.ended.is_ok()
    }

    fn is_invalid(&self) -> bool {
        matches!(&self.ended, Err(status) if status.code() == Code::InvalidArgument)
    }
}

/// A message that is no reply, and whose call it ends, where that can be told.
struct UnreadableReply {
    correlation: Option<u64>,
    cause: String,
}

impl UnreadableReply {
    /// Counts it. Returns what its call ends with.
    fn count(&self, shared: &Shared) -> Status {
        let cause = &self.cause;
        shared.malformed.count_and_log(|count| {
            tracing::warn!(endpoint = %shared.endpoint, %cause, count, "unreadable reply");
        });
        Status::internal(format!("the reply cannot be read: {cause}"))
            .with_reason(Reason::Unreadable)
    }
}

fn read(received: Received, limits: &Limits) -> Result<Reply, UnreadableReply> {
    let (_, frames) = received.map_err(|malformed| UnreadableReply {
        correlation: None,
        cause: malformed.to_string(),
    })?;
    let header = ReplyHeader::decode(&frames.header).map_err(|error| UnreadableReply {
        correlation: ReplyHeader::peek_correlation(&frames.header),
        cause: error.to_string(),
    })?;
    let outcome = match header.status {
        ReplyStatus::Ok => Ok(Outcome::Success),
        ReplyStatus::ApplicationError => Ok(Outcome::ApplicationError),
        ReplyStatus::Failed(status) => Err(status),
    };
    Ok(Reply {
        correlation: header.correlation,
        takes_compact: header.compact,
        cancels: header.cancels,
        takes: header.takes,
        ended: outcome.map(|outcome| RawReply {
            outcome,
            replayed: header.replayed,
            metadata: header.metadata,
            body: frames.body,
            limits: *limits,
        }),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::time::timeout;

    use super::*;
    use crate::call::TIMEOUT_DEFAULT;
    use crate::call::client::shared::Own;
    use crate::transport::{self, Endpoint, Frames, Outgoing, TransportOptions};
    use crate::wire::HeaderBytes;

    fn reply(correlation: u64) -> HeaderBytes {
        let header = ReplyHeader {
            correlation,
            status: ReplyStatus::Ok,
            replayed: false,
            compact: false,
            cancels: false,
            takes: None,
            metadata: Default::default(),
        };
        header.encode()
    }

    /// A client of a server that sends what the test has it send, as fast as that is taken.
    async fn driven(
        name: &str,
    ) -> (
        Arc<Shared>,
        transport::RouterSender,
        transport::RouterReceiver,
    ) {
        let endpoint: Endpoint = format!("inproc://{name}").parse().unwrap();
        let options = TransportOptions::default();
        let (sender, router, _) = transport::bind_router(&endpoint, &options).await.unwrap();
        let (dealer, replies) = transport::connect_dealer(&endpoint, &options)
            .await
            .unwrap();
        let own = Own {
            compact: false,
            sizes: SizesMax::DEFAULT,
        };
        let limits = Limits::default();
        let shared = Arc::new(Shared::new(
            dealer,
            endpoint,
            100,
            own,
            TIMEOUT_DEFAULT,
            limits,
        ));
        tokio::spawn(drive(Arc::clone(&shared), replies));
        shared.connected().await;
        (shared, sender, router)
    }

    fn begin(shared: &Shared, time: Duration) -> u64 {
        let method = crate::schema::MethodInfo {
            service: "service",
            name: "method",
            interface: 1,
            ordinal: 0,
            effect: crate::schema::Effect::Unsafe,
            timeout: None,
            params: 0,
            results: 0,
            fails: None,
        };
        let mut request = crate::call::RawRequest::new(&method, Bytes::from_static(&[0; 8]));
        let now = Instant::now();
        let begun = shared.begin(&mut request, now + time, now);
        begun.unwrap_or_else(|_| panic!("it is connected"))
    }

    async fn ended(shared: &Shared, number: u64) -> Status {
        let poll = std::future::poll_fn(|cx| shared.lock().correlation.poll(number, cx.waker()));
        let ended = timeout(Duration::from_secs(60), poll).await;
        ended.expect("it ends").unwrap().unwrap_err()
    }

    #[tokio::test]
    async fn a_call_ends_by_its_deadline_while_replies_pour_in() {
        let (shared, sender, mut router) = driven("pour-in").await;
        let number = begin(&shared, Duration::from_millis(50));
        let mut batch = transport::Requests::default();
        router.receive(&mut batch).await.unwrap();
        let (place, _) = batch.next().unwrap();
        let peer = batch.peer(place).clone();
        // Late replies, without an end.
        let pouring = tokio::spawn(async move {
            let _router = router;
            loop {
                let (header, body) = (reply(77), Bytes::new());
                let late = Outgoing::Classic(Frames { header, body });
                if sender.try_send(&peer, late).is_err() {
                    tokio::task::yield_now().await;
                }
            }
        });
        let status = ended(&shared, number).await;
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(!pouring.is_finished());
        pouring.abort();
    }

    #[tokio::test]
    async fn an_unreadable_reply_ends_its_call_and_no_other() {
        let (shared, sender, mut router) = driven("unreadable").await;
        let number = begin(&shared, TIMEOUT_DEFAULT);
        let other = begin(&shared, TIMEOUT_DEFAULT);
        let mut batch = transport::Requests::default();
        router.receive(&mut batch).await.unwrap();
        let (place, _) = batch.next().unwrap();
        let peer = batch.peer(place).clone();
        // Its version is another one, and then there is none at all to be seen in it.
        let mut newer = reply(number).to_vec();
        newer[16] = 1 ^ 2;
        let mut broken = reply(number).to_vec();
        broken[4] = 99;
        for bytes in [Bytes::from_static(b"nothing"), newer.into(), broken.into()] {
            let frames = Frames {
                header: bytes.into(),
                body: Bytes::new(),
            };
            sender.try_send(&peer, Outgoing::Classic(frames)).unwrap();
        }
        let status = ended(&shared, number).await;
        assert_eq!(
            (status.code(), status.reason(), status.work()),
            (
                Code::Internal,
                Some(Reason::Unreadable),
                Work::OutcomeUnknown
            )
        );
        while shared.malformed.read() < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(shared.lock().correlation.len(), 1);
        shared.lock().correlation.cancel(other);
    }
}
