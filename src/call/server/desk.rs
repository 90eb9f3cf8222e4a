//! Where the task that reads leaves its work while it gives a handler its first poll: another task takes it up
//! where the handler computes for long, and gives it back once it is wanted again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use super::drive::Shared;
use super::replies::{Gathered, Hands};
use crate::transport::{Peer, Requests, RouterReceiver};

/// The watchdog looks so often at a server with nothing to do before it rests.
const LOOKS_IDLE: u32 = 100;
/// Of what the watchdog sees, the part that says which method is polled; 0 for none.
const METHOD_BITS: u32 = 16;

/// The work of the task that reads.
#[derive(Debug)]
pub(super) struct Reader {
    pub receiver: RouterReceiver,
    pub batch: Requests,
    pub hands: Hands,
    /// The place of the peer whose handler has its first poll.
    place: usize,
}

impl Reader {
    pub fn new(receiver: RouterReceiver) -> Self {
        Self {
            receiver,
            batch: Requests::default(),
            hands: Hands {
                handlers: JoinSet::new(),
                gathered: Gathered::default(),
                since: tokio::time::Instant::now(),
            },
            place: 0,
        }
    }
}

/// A reader during a first poll: kept where no other task could run meanwhile.
pub(super) enum Lent {
    Kept(Box<Reader>),
    OnDesk,
}

#[derive(Debug, Default)]
pub(super) struct Desk {
    /// Counts first polls, and says which method has one.
    polling: AtomicU64,
    /// The watchdog looks.
    is_awake: AtomicBool,
    /// Another task could read while this one is blocked.
    has_others: AtomicBool,
    reader: Mutex<Option<Box<Reader>>>,
    /// The caller of the handler in whose first poll another task has taken over.
    peer: Mutex<Option<Peer>>,
    wanted: Notify,
    returned: Notify,
    watched: Mutex<WatchedDesk>,
}

/// What only the watchdog and the start and end of a server look at.
#[derive(Debug, Default)]
struct WatchedDesk {
    runtime: Option<Handle>,
    stand_in: Option<AbortHandle>,
    /// What was seen last, since when, and how often.
    seen: u64,
    since: Option<Instant>,
    looks: u32,
    is_reported: bool,
}

/// A server that runs. When it no longer does, nobody reads.
#[must_use]
pub(super) struct Open<'a>(&'a Desk);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let stand_in = lock(&self.0.watched).stand_in.take();
        if let Some(stand_in) = stand_in {
            stand_in.abort();
        }
        drop(self.0.take());
    }
}

impl Desk {
    /// The server runs, in this runtime.
    pub fn open(&self) -> Open<'_> {
        let runtime = Handle::current();
        let is_multi = runtime.runtime_flavor() == RuntimeFlavor::MultiThread;
        self.has_others
            .store(is_multi && runtime.metrics().num_workers() > 1, Relaxed);
        lock(&self.watched).runtime = Some(runtime);
        self.is_awake.store(true, Relaxed);
        Open(self)
    }

    /// Whether the watchdog has to be woken; it is taken to be.
    pub fn is_resting(&self) -> bool {
        !self.is_awake.load(Relaxed) && !self.is_awake.swap(true, Relaxed)
    }

    /// A handler of this method is about to have its first poll.
    pub fn begin(&self, method: usize, place: usize, mut reader: Box<Reader>) -> Lent {
        let turn = (self.polling.load(Relaxed) >> METHOD_BITS).wrapping_add(1);
        let method = (method as u64 + 1) & ((1 << METHOD_BITS) - 1);
        self.polling.store(turn << METHOD_BITS | method, Relaxed);
        if !self.has_others.load(Relaxed) {
            return Lent::Kept(reader);
        }
        reader.place = place;
        *lock(&self.reader) = Some(reader);
        Lent::OnDesk
    }

    /// It has had it. `None` where another task has taken over.
    pub fn end(&self, lent: Lent) -> Option<Box<Reader>> {
        let polling = self.polling.load(Relaxed);
        self.polling
            .store(polling >> METHOD_BITS << METHOD_BITS, Relaxed);
        match lent {
            Lent::Kept(reader) => Some(reader),
            Lent::OnDesk => self.take(),
        }
    }

    fn take(&self) -> Option<Box<Reader>> {
        lock(&self.reader).take()
    }

    /// Takes the work of a task that is blocked.
    pub fn take_over(&self) -> Option<Box<Reader>> {
        // Both or neither, for the one that is blocked.
        let mut peer = lock(&self.peer);
        let reader = self.take()?;
        *peer = Some(reader.batch.peer(reader.place).clone());
        Some(reader)
    }

    /// Takes it back from the other task, with the caller of the handler that was polled.
    pub async fn regain(&self) -> (Box<Reader>, Peer) {
        let peer = lock(&self.peer).take();
        self.wanted.notify_one();
        loop {
            let returned = self.returned.notified();
            if let (Some(reader), Some(peer)) = (self.take(), peer.clone()) {
                return (reader, peer);
            }
            returned.await;
        }
    }

    /// Returns when the task that was blocked wants to read again.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    pub fn give_back(&self, reader: Box<Reader>) {
        *lock(&self.reader) = Some(reader);
        self.returned.notify_one();
    }

    /// Looks whether a first poll lasts too long: which method's, the first time that this is seen.
    fn look(&self, watched: &mut WatchedDesk, limit: std::time::Duration) -> Option<usize> {
        let now = self.polling.load(Relaxed);
        if now != watched.seen {
            *watched = WatchedDesk {
                seen: now,
                since: Some(Instant::now()),
                looks: 0,
                is_reported: false,
                ..std::mem::take(watched)
            };
            return None;
        }
        let method = now & ((1 << METHOD_BITS) - 1);
        let Some(method) = (method as usize).checked_sub(1) else {
            watched.looks += 1;
            if watched.looks >= LOOKS_IDLE {
                watched.looks = 0;
                self.is_awake.store(false, Relaxed);
            }
            return None;
        };
        let is_slow = watched.since.is_some_and(|since| since.elapsed() >= limit);
        (is_slow && !std::mem::replace(&mut watched.is_reported, true)).then_some(method)
    }
}

impl Shared {
    /// The watchdog looks at it. Returns whether there is something to look at.
    pub fn look(self: &Arc<Self>) -> bool {
        let mut watched = lock(&self.desk.watched);
        if let Some(method) = self.desk.look(&mut watched, self.slow_poll) {
            // One that has not begun yet takes over as well; there is never a second one.
            let is_alone = watched
                .stand_in
                .as_ref()
                .is_none_or(AbortHandle::is_finished);
            let has_others = is_alone && self.desk.has_others.load(Relaxed);
            if let (true, Some(runtime)) = (has_others, &watched.runtime) {
                let stand_in = runtime.spawn(Arc::clone(self).stand_in());
                watched.stand_in = Some(stand_in.abort_handle());
            }
            drop(watched);
            self.is_slow(method);
        }
        self.desk.is_awake.load(Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
