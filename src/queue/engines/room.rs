//! How much room is left in a queue whose server has to be asked: several producers together may go over the limit a little.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long what is known holds, when there is some room.
const KNOWN: Duration = Duration::from_secs(1);

/// When the server was asked, and how much is left of the room that there was then.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Option<(Instant, usize)>>);

impl Room {
    /// Takes room for so many, if it is known that there is as much.
    pub fn take(&self, wanted: usize) -> bool {
        let mut room = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *room {
            Some((asked, left)) if *left >= wanted && asked.elapsed() < KNOWN => {
                *left -= wanted;
                true
            }
            _ => false,
        }
    }

    /// Notes how much there is, and takes of it what is wanted, as far as it goes.
    pub fn learn(&self, left: usize, wanted: usize) -> usize {
        let taken = wanted.min(left);
        let mut room = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *room = Some((Instant::now(), left - taken));
        taken
    }
}
