//! How much room is left in a queue whose server has to be asked, and whether there is some for dead letters. What was
//! answered holds for a moment: several producers together may go over a limit a little.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::queue::QueueError;

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

/// That there was lately room for dead letters.
#[derive(Debug, Default)]
pub(super) struct DeadRoom(Mutex<Look>);

#[derive(Debug, Default)]
struct Look {
    seen: Option<Instant>,
    /// How often it was forgotten: what was asked before does not hold.
    forgotten: u64,
}

impl DeadRoom {
    /// Whether there is room: by what is known, or else by how many `count` says that there are.
    pub async fn is_left(
        &self,
        max: usize,
        count: impl Future<Output = Result<usize, QueueError>>,
    ) -> Result<bool, QueueError> {
        let forgotten = {
            let look = self.lock();
            if look.seen.is_some_and(|seen| seen.elapsed() < KNOWN) {
                return Ok(true);
            }
            look.forgotten
        };
        let is_left = count.await? < max;
        let mut look = self.lock();
        if is_left && look.forgotten == forgotten {
            look.seen = Some(Instant::now());
        }
        Ok(is_left)
    }

    /// There may be more now.
    pub fn forget(&self) {
        let mut look = self.lock();
        look.seen = None;
        look.forgotten += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Look> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::ready;

    async fn is_left(room: &DeadRoom, count: usize) -> bool {
        let is_left = room.is_left(2, ready(Ok(count))).await;
        is_left.expect("it is counted")
    }

    #[tokio::test(start_paused = true)]
    async fn room_for_dead_letters_is_believed_for_a_moment_and_until_one_comes() {
        let room = DeadRoom::default();
        assert!(!is_left(&room, 2).await, "as many as there may be");
        assert!(is_left(&room, 1).await, "one less");
        assert!(is_left(&room, 2).await, "it is believed");
        room.forget();
        assert!(!is_left(&room, 2).await, "one has come");
        assert!(is_left(&room, 1).await);
        tokio::time::advance(KNOWN).await;
        assert!(!is_left(&room, 2).await, "it was long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_counted_before_a_dead_letter_came_is_not_believed() {
        let room = DeadRoom::default();
        let count = async {
            room.forget();
            Ok(1)
        };
        assert!(room.is_left(2, count).await.expect("it is counted"));
        assert!(!is_left(&room, 2).await);
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_taken_as_long_as_it_is_known() {
        let room = Room::default();
        assert!(!room.take(1), "nothing is known");
        assert_eq!(room.learn(3, 5), 3);
        assert!(!room.take(1), "all was taken");
        assert_eq!(room.learn(5, 3), 3);
        assert!(room.take(2));
        assert!(!room.take(1));
        room.learn(5, 0);
        tokio::time::advance(KNOWN).await;
        assert!(!room.take(1), "it was long ago");
    }
}
