//! What is known of a client's connection, for layers that choose between several.

use tokio::sync::watch;
use tokio::time::Instant;

use crate::transport::Endpoint;

/// Tells whether a [`Client`](crate::Client) is connected, without keeping it open.
#[derive(Clone, Debug)]
pub struct Connection {
    endpoint: Endpoint,
    state: watch::Receiver<State>,
}

/// The connection as the client's driver knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    is_up: bool,
    /// There will be no other.
    is_over: bool,
    made: u64,
    since: Instant,
}

impl State {
    pub fn down() -> Self {
        Self {
            is_up: false,
            is_over: false,
            made: 0,
            since: Instant::now(),
        }
    }

    pub fn is_up(&self) -> bool {
        self.is_up
    }

    pub fn end(&mut self) {
        self.is_over = true;
    }

    pub fn set(&mut self, is_up: bool) {
        if is_up != self.is_up {
            self.is_up = is_up;
            self.made += u64::from(is_up);
            self.since = Instant::now();
        }
    }
}

impl Connection {
    pub(super) fn new(endpoint: Endpoint, state: watch::Receiver<State>) -> Self {
        Self { endpoint, state }
    }

    /// Returns the endpoint that the client connects to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns whether the server is there now.
    pub fn is_connected(&self) -> bool {
        self.state.borrow().is_up
    }

    /// Returns how many connections there have been, the one that is there now included.
    pub fn made(&self) -> u64 {
        self.state.borrow().made
    }

    /// Returns when the connection was made, or lost.
    pub fn since(&self) -> Instant {
        self.state.borrow().since
    }

    /// Returns whether the client is closed or its runtime has shut down: there will be no other connection.
    pub fn is_over(&self) -> bool {
        self.state.borrow().is_over || self.state.has_changed().is_err()
    }

    /// Waits until the server is there, or there will be no other connection. Cancel safe.
    pub async fn connected(&self) {
        // Without a client there is no connection to wait for: what is called then says so.
        let mut state = self.state.clone();
        let _ = state.wait_for(|state| state.is_up || state.is_over).await;
    }
}
