//! Whether the other side is there, for carriers that do not keep count themselves.

use tokio::sync::watch;

use crate::transport::Closed;

/// Counts up whenever the peer comes (to an odd number) or goes (to an even one).
#[derive(Debug)]
pub(in crate::transport) struct Connection {
    generation: watch::Sender<u64>,
    closed: watch::Sender<bool>,
}

impl Connection {
    pub fn new() -> Self {
        Self {
            generation: watch::Sender::new(0),
            closed: watch::Sender::new(false),
        }
    }

    pub fn set(&self, is_connected: bool) {
        self.generation.send_if_modified(|generation| {
            let changed = (*generation % 2 == 1) != is_connected;
            *generation += u64::from(changed);
            changed
        });
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
