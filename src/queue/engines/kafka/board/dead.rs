//! What a worker knows of its group's dead letters: whether there is room for more, and which keys stand still for one.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::State;

/// How long what is known of dead letters holds, when there is room for more.
const DEAD_KNOWN: Duration = Duration::from_secs(1);
impl State {
    /// A job of this key is dead: those behind it stand still.
    pub fn park(&mut self, key: Bytes) {
        self.parked.insert(key);
        self.parkings += 1;
    }

    pub fn forget_dead(&mut self) {
        self.dead_known = None;
    }

    pub fn parkings(&self) -> u64 {
        self.parkings
    }

    /// Whether it was lately seen that there is room for dead letters.
    pub fn knows_dead(&self) -> bool {
        self.dead_known
            .is_some_and(|when| when.elapsed() < DEAD_KNOWN)
    }

    /// There is room for dead letters, and these are their keys; unless more has come since it was looked.
    pub fn know_dead(&mut self, parked: HashSet<Bytes>, parkings: u64) {
        if self.parkings == parkings {
            self.parked = parked;
            self.dead_known = Some(Instant::now());
        }
    }
}
