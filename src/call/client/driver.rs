//! The driver: the one task of a client that reads. It hands replies to their callers, sends the
//! requests that wait for company, ends calls whose deadline has passed, and those whose connection
//! is lost.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};

use super::shared::{Ended, NotBegun, Shared};
use crate::call::{Outcome, RawReply};
use crate::message::Limits;
use crate::transport::{DealerReceiver, Endpoint, Received};
use crate::wire::{Code, ReplyHeader, ReplyStatus, Status, Work};

/// How exactly deadlines are kept: a call ends at most this much after its own.
const DEADLINE_TICK: Duration = Duration::from_millis(10);
/// Ticks without a call in flight before the clock rests.
const IDLE_TICKS: u32 = 100;
/// Of a reply to nobody: the server could not read what it was sent.
const NOBODY: u64 = 0;

pub(super) async fn drive(shared: Arc<Shared>, mut receiver: DealerReceiver) {
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
            }
            now = &mut changed => match now {
                Ok(generation) => {
                    changed.set(shared.sender.connection_changed(generation));
                    if shared.is_connected() {
                        shared.set_connected(false);
                        shared.end_all(|| lost(&shared.endpoint));
                    }
                    is_blocked = false;
                    shared.set_connected(shared.sender.is_connected());
                }
                Err(_) => break,
            },
            () = &mut tick, if ticking => {
                let mut calls = shared.lock();
                let timed_out = || Err(Status::deadline_exceeded(Work::OutcomeUnknown));
                calls.correlation.expire(Instant::now(), timed_out, &mut wake);
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
    shared.set_connected(false);
    shared.end_all(|| lost(&shared.endpoint));
}

fn restart(tick: Pin<&mut Sleep>) {
    tick.reset(Instant::now() + DEADLINE_TICK);
}

fn lost(endpoint: &Endpoint) -> Status {
    let message = format!("the connection to {endpoint} was lost");
    Status::new(Code::Unavailable, Work::OutcomeUnknown, message)
}

/// Hands replies to their callers, and sends what waits; whether it has to wait on.
fn accept(shared: &Shared, batch: &mut Vec<Received>, wake: &mut Vec<Waker>) -> bool {
    let mut calls = shared.lock();
    for received in batch.drain(..) {
        let Some(reply) = read(received, &shared.limits) else {
            shared.malformed.count_and_log(|count| {
                tracing::warn!(endpoint = %shared.endpoint, count, "no reply");
            });
            continue;
        };
        if reply.takes_compact {
            calls.departures.server_takes();
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
    ended: Ended,
}

impl Reply {
    fn is_invalid(&self) -> bool {
        matches!(&self.ended, Err(status) if status.code() == Code::InvalidArgument)
    }
}

fn read(received: Received, limits: &Limits) -> Option<Reply> {
    let (_, frames) = received.ok()?;
    let header = ReplyHeader::decode(&frames.header).ok()?;
    let outcome = match header.status {
        ReplyStatus::Ok => Ok(Outcome::Success),
        ReplyStatus::ApplicationError => Ok(Outcome::ApplicationError),
        ReplyStatus::Failed(status) => Err(status),
    };
    Some(Reply {
        correlation: header.correlation,
        takes_compact: header.compact,
        ended: outcome.map(|outcome| RawReply {
            outcome,
            replayed: header.replayed,
            metadata: header.metadata,
            body: frames.body,
            limits: *limits,
        }),
    })
}
