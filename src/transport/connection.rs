//! Whether the other side is connected, and why not, for connecting sockets.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::transport::{Closed, ConnectionFailure};

/// Counts up whenever the peer comes (to an odd number) or goes (to an even one).
#[derive(Debug)]
pub(in crate::transport) struct Connection {
    generation: watch::Sender<u64>,
    closed: watch::Sender<bool>,
    failure: Mutex<Failure>,
}

#[derive(Debug)]
struct Failure {
    last: ConnectionFailure,
    /// How the last connection ended, whatever failed since.
    lost: Option<String>,
    /// Whether an attempt has failed or a connection has ended; until then, how far the first
    /// attempt has come is all that can be said.
    is_known: bool,
}

impl Connection {
    pub fn new() -> Self {
        Self {
            generation: watch::Sender::new(0),
            closed: watch::Sender::new(false),
            failure: Mutex::new(Failure {
                last: ConnectionFailure::connecting(),
                lost: None,
                is_known: false,
            }),
        }
    }

    /// Says that the peer is connected, or not any more.
    pub fn set(&self, is_connected: bool) {
        self.generation.send_if_modified(|generation| {
            let changed = (*generation % 2 == 1) != is_connected;
            *generation += u64::from(changed);
            changed
        });
    }

    /// Says why an attempt has failed.
    pub fn failed(&self, failure: ConnectionFailure) {
        let mut known = self.lock();
        known.last = failure;
        known.is_known = true;
    }

    /// Says why the connection has ended. To be called before it is [`set`](Self::set), so that
    /// who sees the change finds the reason.
    pub fn lost(&self, why: impl Into<String>) {
        let why = why.into();
        self.failed(ConnectionFailure::lost(&why));
        self.lock().lost = Some(why);
    }

    /// Says how far the first attempt has come. After a failure, that failure says more.
    pub fn progress(&self, so_far: ConnectionFailure) {
        let mut known = self.lock();
        if !known.is_known {
            known.last = so_far;
        }
    }

    /// Returns why there is no connection, where there is none.
    pub fn failure(&self) -> ConnectionFailure {
        self.lock().last.clone()
    }

    /// Returns why the last connection ended, where one has.
    pub fn last_lost(&self) -> Option<String> {
        self.lock().lost.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_connected(&self) -> bool {
        self.generation() % 2 == 1
    }

    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    pub async fn changed(&self, seen: u64) -> Result<u64, Closed> {
        let mut generation = self.generation.subscribe();
        tokio::select! {
            changed = generation.wait_for(|generation| *generation != seen) => {
                changed.map(|generation| *generation).map_err(|_| Closed)
            }
            () = self.closed() => Err(Closed),
        }
    }

    pub fn close(&self) {
        self.closed.send_replace(true);
        self.set(false);
    }

    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Returns when it is closed.
    pub async fn closed(&self) {
        // The sender is in `self`, so it does not go away.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }
}
