//! Handlers that wait, by the calls that they answer: what a caller can cancel.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::transport::Peer;

/// A connection, and the correlation number of one of its calls.
type Key = (u64, u64);

/// As many as handlers wait at most.
#[derive(Debug, Default)]
pub(super) struct Running {
    handlers: Mutex<HashMap<Key, Arc<Notify>>>,
    hash: RandomState,
}

impl Running {
    /// A handler begins to wait. Where the caller has used the number twice, the later one can be cancelled.
    pub fn enter(self: &Arc<Self>, peer: &Peer, correlation: u64) -> Entry {
        let key = (peer.key(&self.hash), correlation);
        let cancelled = Arc::new(Notify::new());
        self.lock().insert(key, Arc::clone(&cancelled));
        Entry {
            running: Arc::clone(self),
            key,
            cancelled,
        }
    }

    /// The caller no longer waits. A call that has ended meanwhile is not here any more.
    pub fn cancel(&self, peer: &Peer, correlation: u64) {
        let key = (peer.key(&self.hash), correlation);
        if let Some(handler) = self.lock().get(&key) {
            handler.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Notify>>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handler that waits, until this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    running: Arc<Running>,
    key: Key,
    cancelled: Arc<Notify>,
}

impl Entry {
    /// Returns when the caller has cancelled the call.
    pub async fn cancelled(&self) {
        self.cancelled.notified().await;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut handlers = self.running.lock();
        let is_own = |of: &Arc<Notify>| Arc::ptr_eq(of, &self.cancelled);
        if handlers.get(&self.key).is_some_and(is_own) {
            handlers.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_is_cancelled_once_by_its_own_connection_only() {
        let running = Arc::new(Running::default());
        let [one, other] = [Peer::Memory(1), Peer::Memory(2)];
        let entry = running.enter(&one, 7);
        running.cancel(&other, 7);
        running.cancel(&one, 8);
        let mut cancelled = std::pin::pin!(entry.cancelled());
        let pending =
            std::future::poll_fn(|cx| std::task::Poll::Ready(cancelled.as_mut().poll(cx)));
        assert!(pending.await.is_pending());
        running.cancel(&one, 7);
        cancelled.await;
    }

    #[tokio::test]
    async fn what_has_ended_leaves_nothing_behind() {
        let running = Arc::new(Running::default());
        let peer = Peer::Memory(1);
        let (first, second) = (running.enter(&peer, 7), running.enter(&peer, 7));
        drop(first);
        running.cancel(&peer, 7);
        second.cancelled().await;
        drop(second);
        running.cancel(&peer, 7);
        assert!(running.lock().is_empty());
    }
}
