//! Whether a server takes requests, for whoever is asked before some are sent to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Tells whether a server takes requests: what a health check answers with, for as long as it likes.
///
/// It is ready from the moment that it is run. Of a shutdown, that it is not ready any more is the first
/// thing to be seen; only then does it turn away connections and requests.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Whether it takes requests now.
    pub fn is_ready(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// It does from now on, until what is returned is dropped.
    pub(super) fn begin(&self) -> Ready {
        self.0.store(true, Relaxed);
        Ready(self.clone())
    }
}

/// A server that takes requests.
#[must_use]
pub(super) struct Ready(Readiness);

impl Drop for Ready {
    fn drop(&mut self) {
        self.0.0.store(false, Relaxed);
    }
}
