//! Replies on their way: in which form, alone or together, and where the client does not read.

use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::drive::Shared;
use crate::call::raw::deadline_after;
use crate::call::{Outcome, RawReply};
use crate::security::{Pool, Principal};
use crate::transport::{Form, Frames, Outgoing, Peer, Refused};
use crate::wire::{
    Code, Oversize, Packer, Reason, ReplyHeader, ReplyStatus, SizesMax, Status, Work,
    is_compactable, pack_one,
};

/// How often a reply is offered again to a client whose queue is full.
pub(super) const SEND_RETRY: Duration = Duration::from_millis(5);
/// What a reply that waits takes besides its bytes.
const EACH: usize = 256;
/// Replies that wait for those behind them: with so many, a client on another core has something to
/// do while this one goes on, and there are still few messages.
const GATHER_CALLS: usize = 16;
/// How long they wait, where handlers are slow...
const GATHER_MAX: Duration = Duration::from_micros(500);
/// ...which is looked at for one in so many.
const LOOK_EVERY: usize = 8;

/// Where a reply goes, and in the form of its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyTo<'a> {
    pub peer: &'a Peer,
    pub correlation: u64,
    pub form: Form,
    /// The largest replies that its caller takes.
    pub takes: SizesMax,
    /// The caller wants to know what this server takes.
    pub announce: bool,
}

pub(super) type Ended = Result<RawReply, Status>;

/// Replies to one peer that are ready within one batch of requests, and leave together.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    peer: Option<Peer>,
    waiting: Packer,
}

/// What the reading task has in its hands.
#[derive(Debug)]
pub(super) struct Hands {
    pub handlers: JoinSet<()>,
    pub gathered: Gathered,
    /// When the batch was received that it works on.
    pub since: Instant,
}

impl Gathered {
    fn has_room(&self, peer: &Peer, bytes: usize) -> bool {
        let is_its = self.peer.as_ref().is_some_and(|own| own.is(peer));
        self.waiting.is_empty() || is_its && self.waiting.has_room(bytes)
    }

    fn push(&mut self, peer: &Peer, frames: &Frames) {
        if self.waiting.is_empty() {
            self.peer = Some(peer.clone());
        }
        self.waiting.push(&frames.header, &frames.body);
    }

    /// Whether those that wait have waited long enough.
    fn is_due(&self, since: Instant) -> bool {
        let calls = self.waiting.calls();
        let is_slow = || calls.is_multiple_of(LOOK_EVERY) && since.elapsed() >= GATHER_MAX;
        calls >= GATHER_CALLS || is_slow()
    }
}

impl Shared {
    /// Gathers a reply, or sends it from this task where the socket takes it, and otherwise waits
    /// in another.
    pub fn reply(self: &Arc<Self>, to: ReplyTo<'_>, ended: Ended, hands: &mut Hands) {
        let frames = self.encode(to, ended);
        if to.form == Form::Classic || !is_compactable(&frames.header, &frames.body) {
            let message = Outgoing::Classic(frames);
            return self.send_or_wait(to.peer, message);
        }
        let bytes = frames.header.len() + frames.body.len();
        if !hands.gathered.has_room(to.peer, bytes) {
            self.send_gathered(hands);
        }
        hands.gathered.push(to.peer, &frames);
        if hands.gathered.is_due(hands.since) {
            self.send_gathered(hands);
        }
    }

    /// At the end of a batch at the latest.
    pub fn send_gathered(self: &Arc<Self>, hands: &mut Hands) {
        let gathered = &mut hands.gathered;
        if let (Some(packed), Some(peer)) = (gathered.waiting.take(), gathered.peer.take()) {
            self.send_or_wait(&peer, Outgoing::Compact(packed));
        }
    }

    fn send_or_wait(self: &Arc<Self>, peer: &Peer, message: Outgoing) {
        let Err(Refused::Full(message)) = self.send(peer, message) else {
            return;
        };
        let calls = message.calls();
        match self.backlog.push(peer, *message) {
            Ok(Pushed::First) => {
                let (shared, peer) = (Arc::clone(self), peer.clone());
                self.backlog.spawn(async move { shared.offer(&peer).await });
            }
            Ok(Pushed::Behind) => {}
            // It is told that its connection is lost, which is sooner than that its time is up.
            Err(NoRoom) => {
                self.dropped(peer, calls);
                self.sender.show_out(peer);
            }
        }
    }

    /// Sends the reply of a handler that had to wait.
    pub fn reply_alone(self: &Arc<Self>, to: ReplyTo<'_>, ended: Ended) {
        let message = self.alone(to, ended);
        self.send_or_wait(to.peer, message);
    }

    /// Sends a last word to a client that will not be waited for.
    pub fn reply_once(&self, to: ReplyTo<'_>, status: Status) {
        let message = self.alone(to, Err(status));
        // Nothing is left to do where it does not reach it.
        let _ = self.send(to.peer, message);
    }

    fn alone(&self, to: ReplyTo<'_>, ended: Ended) -> Outgoing {
        let frames = self.encode(to, ended);
        match to.form {
            Form::Compact if is_compactable(&frames.header, &frames.body) => {
                Outgoing::Compact(pack_one(&frames.header, &frames.body))
            }
            _ => Outgoing::Classic(frames),
        }
    }

    /// Offers what waits for a client that does not read, until nothing does, or it has not read for so long.
    async fn offer(&self, of: &Peer) {
        while let Some((peer, mut message)) = self.backlog.next(of) {
            let peer = &peer;
            let calls = message.calls();
            let give_up = deadline_after(self.send_wait_max);
            loop {
                sleep(SEND_RETRY).await;
                match self.send(peer, message) {
                    Err(Refused::Full(back)) if Instant::now() < give_up => message = *back,
                    Err(Refused::Full(_)) => {
                        // It has more unread than may wait for it.
                        let waiting = self.backlog.forget(peer);
                        self.dropped(peer, calls + waiting);
                        return self.sender.show_out(peer);
                    }
                    _ => break,
                }
            }
        }
    }

    /// Sends once; counts replies that nobody will ever get.
    fn send(&self, peer: &Peer, message: Outgoing) -> Result<(), Refused> {
        let calls = message.calls();
        let sent = self.sender.try_send(peer, message);
        if let Err(Refused::NoPeer | Refused::Closed) = sent {
            self.counters.replies_dropped.add(calls);
        }
        sent
    }

    fn dropped(&self, peer: &Peer, replies: usize) {
        self.counters.replies_dropped.add_and_log(replies, |count| {
            tracing::warn!(endpoint = %self.endpoint, %peer, count, "disconnecting a client that does not read its replies");
        });
    }

    /// Readers find out about most bodies only while they read, wherever that is. All of it comes by here.
    fn unreadable(&self, peer: &Peer, status: &Status) {
        self.counters.unreadable.count_and_log(|count| {
            let principal = peer.principal().map(Principal::as_str);
            let reason = status.message();
            tracing::warn!(endpoint = %self.endpoint, principal, count, reason, "a body that cannot be read");
        });
    }

    /// Tells a caller that has not heard from this server yet, and whose reply takes time, what it takes.
    pub fn announce(&self, to: ReplyTo<'_>) {
        let header = ReplyHeader {
            correlation: 0,
            status: ReplyStatus::Ok,
            replayed: false,
            compact: self.takes_compact,
            cancels: true,
            takes: Some(self.sizes),
            metadata: Default::default(),
        };
        let (header, body) = (header.encode(), Bytes::new());
        // Its reply says the same.
        let _ = self.send(to.peer, Outgoing::Classic(Frames { header, body }));
    }

    fn encode(&self, to: ReplyTo<'_>, ended: Ended) -> Frames {
        let frames = self.encode_any(to, ended);
        match to.takes.check(frames.header.len(), frames.body.len()) {
            Ok(()) => frames,
            Err(oversize) => self.encode_any(to, Err(self.too_large(to, &frames, oversize))),
        }
    }

    /// The caller could not take the reply.
    fn too_large(&self, to: ReplyTo<'_>, frames: &Frames, oversize: Oversize) -> Status {
        let Oversize { bytes, max } = oversize;
        self.counters.replies_too_large.count_and_log(|count| {
            let principal = to.peer.principal().map(Principal::as_str);
            tracing::warn!(endpoint = %self.endpoint, principal, bytes, max, count, "reply too large");
        });
        // A status by itself says nothing of the work; it is its metadata that is too large.
        let work = match frames.body.is_empty() {
            true => Work::OutcomeUnknown,
            false => Work::Done,
        };
        let message = format!("a reply of {bytes} bytes is over the caller's limit of {max}");
        Status::new(Code::ResourceExhausted, work, message).with_reason(Reason::TooLarge)
    }

    fn encode_any(&self, to: ReplyTo<'_>, ended: Ended) -> Frames {
        let (status, replayed, metadata, body) = match ended {
            Ok(reply) => {
                let status = match reply.outcome {
                    Outcome::Success => ReplyStatus::Ok,
                    Outcome::ApplicationError => ReplyStatus::ApplicationError,
                };
                (status, reply.replayed, reply.metadata, reply.body)
            }
            Err(status) => {
                if status.is_of_unreadable() {
                    self.unreadable(to.peer, &status);
                }
                let failed = ReplyStatus::Failed(status);
                (failed, false, Default::default(), Bytes::new())
            }
        };
        let header = ReplyHeader {
            correlation: to.correlation,
            status,
            replayed,
            // A compact message has no envelope to come back in.
            compact: self.takes_compact && !to.peer.has_envelope(),
            cancels: true,
            takes: to.announce.then_some(self.sizes),
            metadata,
        };
        Frames {
            header: header.encode(),
            body,
        }
    }
}

/// Replies whose clients have no room for them: so many bytes in all, of which a client has its share. They take no
/// places of handlers. One task for each client offers them.
#[derive(Debug)]
pub(super) struct ReplyBacklog {
    bytes: Pool,
    /// By connection; behind one there may be several peers.
    of: Mutex<HashMap<u64, VecDeque<(Peer, Outgoing)>>>,
    hash: RandomState,
    tasks: Mutex<JoinSet<()>>,
}

/// A server that runs. When it no longer does, nothing is offered.
#[must_use]
pub(super) struct Open<'a>(&'a ReplyBacklog);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        lock(&self.0.tasks).abort_all();
        lock(&self.0.of).clear();
    }
}

/// Whether a client has replies waiting already, and with them a task.
enum Pushed {
    First,
    Behind,
}

struct NoRoom;

/// Bytes that a reply counts for.
fn bytes(message: &Outgoing) -> usize {
    message.payload().len() + EACH
}

impl ReplyBacklog {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes: Pool::new(bytes_max, usize::MAX),
            of: Mutex::default(),
            hash: RandomState::new(),
            tasks: Mutex::default(),
        }
    }

    fn push(&self, peer: &Peer, message: Outgoing) -> Result<Pushed, NoRoom> {
        // A peer without a share has what there is.
        let nothing = AtomicUsize::new(0);
        let held = peer.share().map_or(&nothing, |share| &share.backlog_bytes);
        if !self.bytes.try_take(held, bytes(&message)) {
            return Err(NoRoom);
        }
        let mut of = lock(&self.of);
        let key = peer.key(&self.hash);
        let is_first = !of.contains_key(&key);
        of.entry(key)
            .or_default()
            .push_back((peer.clone(), message));
        Ok(if is_first {
            Pushed::First
        } else {
            Pushed::Behind
        })
    }

    /// The next to be offered; after `None` the next that is pushed is the first again.
    fn next(&self, peer: &Peer) -> Option<(Peer, Outgoing)> {
        let mut of = lock(&self.of);
        let key = peer.key(&self.hash);
        let waiting = of.get_mut(&key);
        let next = waiting.and_then(VecDeque::pop_front);
        match &next {
            Some((_, message)) => self.give_back(peer, bytes(message)),
            None => drop(of.remove(&key)),
        }
        next
    }

    /// Forgets what waits for a client; says how many replies that was.
    fn forget(&self, peer: &Peer) -> usize {
        let waiting = lock(&self.of).remove(&peer.key(&self.hash));
        let waiting = waiting.unwrap_or_default();
        self.give_back(
            peer,
            waiting.iter().map(|(_, message)| bytes(message)).sum(),
        );
        waiting.iter().map(|(_, message)| message.calls()).sum()
    }

    fn give_back(&self, peer: &Peer, bytes: usize) {
        let unshared = AtomicUsize::new(bytes);
        let held = peer.share().map_or(&unshared, |share| &share.backlog_bytes);
        self.bytes.give_back(held, bytes);
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    pub fn is_empty(&self) -> bool {
        lock(&self.of).is_empty()
    }

    /// Offers what waits until this is dropped.
    pub fn open(&self) -> Open<'_> {
        Open(self)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers the caller of a handler that is ended before it is done, at the end of a drain.
pub(super) struct RefuseOnDrop<'a> {
    pub shared: &'a Shared,
    pub to: Option<ReplyTo<'a>>,
}

impl RefuseOnDrop<'_> {
    pub fn disarm(mut self) {
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
            )
            .with_reason(Reason::ShuttingDown);
            self.shared.reply_once(to, status);
        }
    }
}
