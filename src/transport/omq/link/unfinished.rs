//! Bytes of a message of which only a part has come, counted for their peer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use crate::security::{Pool, Share};

/// Less than this is not counted: it is no more than a connection costs anyway.
pub(super) const COUNTED_MIN: usize = 16 << 10;

/// How long a connection may wait for room for the rest of a message.
pub(super) const ROOM_WAIT_MAX: Duration = Duration::from_secs(30);

/// What one connection has sent of a message that is not whole.
///
/// Where its peer has its share, one of the peer's connections at a time may go on: so all end at last, though each
/// holds what others wait for.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    bytes: usize,
    /// Of these, what its peer's share is charged with: not what comes of a message that goes on past it, or there would be
    /// no room for others.
    counted: usize,
    counted_for: Option<(Arc<Pool>, Arc<Share>)>,
    /// Whether it is the one that may go on.
    may_finish: bool,
    /// When it was found to have no room.
    waits_since: Option<Instant>,
}

impl Unfinished {
    pub fn count_for(&mut self, pool: Arc<Pool>, share: Arc<Share>) {
        self.set(0);
        self.counted_for = Some((pool, share));
    }

    /// Says how much there is now.
    pub fn set(&mut self, bytes: usize) {
        let Some((pool, share)) = &self.counted_for else {
            return;
        };
        let held = &share.received_bytes;
        if bytes < self.bytes && std::mem::take(&mut self.may_finish) {
            share.finishes.store(false, Relaxed);
        }
        self.bytes = if bytes < COUNTED_MIN { 0 } else { bytes };
        if self.bytes < self.counted {
            pool.give_back(held, self.counted - self.bytes);
            self.counted = self.bytes;
        } else if !self.may_finish {
            pool.take(held, self.bytes - self.counted);
            self.counted = self.bytes;
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether more may be received. A peer of which nothing waits is always read once more, and the rest of messages has half
    /// of the room: however many others have begun messages, it can send one.
    pub fn has_room(&mut self) -> bool {
        let Some((pool, share)) = &self.counted_for else {
            return true;
        };
        let held = &share.received_bytes;
        if self.may_finish || held.load(Relaxed) == 0 {
            return true;
        }
        if self.bytes == 0 {
            return pool.may_take(held, 1);
        }
        if pool.may_take_of_half(held, 1) {
            return true;
        }
        self.may_finish = !share.finishes.swap(true, Relaxed);
        self.may_finish
    }

    /// Whether a message has been waiting for room for too long.
    pub fn has_waited(&mut self, now: Instant) -> bool {
        if self.bytes == 0 || self.has_room() {
            self.waits_since = None;
            return false;
        }
        now - *self.waits_since.get_or_insert(now) >= ROOM_WAIT_MAX
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::{Address, Holder, Shares};

    const KIB: usize = 1 << 10;

    fn of(pool: &Arc<Pool>, share: &Arc<Share>) -> Unfinished {
        let mut unfinished = Unfinished::default();
        unfinished.count_for(Arc::clone(pool), Arc::clone(share));
        unfinished
    }

    fn share(shares: &Shares, last: u8) -> Arc<Share> {
        shares.of(Holder::Address(Address::V4([127, 0, 0, last])))
    }

    #[test]
    fn what_is_given_back_is_what_was_taken() {
        let (pool, shares) = (
            Arc::new(Pool::new(1024 * KIB, usize::MAX)),
            Shares::default(),
        );
        let share = share(&shares, 1);
        let mut one = of(&pool, &share);
        one.set(COUNTED_MIN - 1);
        assert_eq!(pool.used(), 0);
        one.set(COUNTED_MIN);
        one.set(100 * KIB);
        let mut two = of(&pool, &share);
        two.set(50 * KIB);
        assert_eq!(pool.used(), 150 * KIB);
        one.set(20 * KIB);
        assert_eq!(share.received_bytes.load(Relaxed), 70 * KIB);
        drop((one, two));
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn a_peer_with_its_share_finishes_one_message_at_a_time_and_others_have_room() {
        let (pool, shares) = (
            Arc::new(Pool::new(1024 * KIB, usize::MAX)),
            Shares::default(),
        );
        let (greedy, other) = (share(&shares, 1), share(&shares, 2));
        let mut connections: Vec<_> = (0..4).map(|_| of(&pool, &greedy)).collect();
        connections.iter_mut().for_each(|it| it.set(100 * KIB));
        let now = Instant::now();
        let may: Vec<_> = connections.iter_mut().map(Unfinished::has_room).collect();
        assert_eq!(may, [true, false, false, false]);
        assert!(of(&pool, &other).has_room());
        // What it has past its share takes no room from others.
        connections[0].set(2048 * KIB);
        assert_eq!(pool.used(), 400 * KIB);
        assert!(connections[0].has_room());
        // It comes no further: the others have waited long enough.
        assert!(!connections[1].has_waited(now));
        assert!(connections[1].has_waited(now + ROOM_WAIT_MAX));
        assert!(!connections[0].has_waited(now + ROOM_WAIT_MAX));
        // It has come to its end: there is room for the others.
        connections[0].set(0);
        assert!(connections[1].has_room());
        assert!(!connections[1].has_waited(now + ROOM_WAIT_MAX));
        drop(connections);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn a_peer_of_which_nothing_waits_is_read_though_all_is_taken() {
        let (pool, shares) = (
            Arc::new(Pool::new(1024 * KIB, usize::MAX)),
            Shares::default(),
        );
        let mut others: Vec<_> = (1..=20).map(|n| of(&pool, &share(&shares, n))).collect();
        others.iter_mut().for_each(|it| it.set(100 * KIB));
        let newcomer = share(&shares, 21);
        let mut its = of(&pool, &newcomer);
        assert!(its.has_room());
        its.set(COUNTED_MIN);
        assert!(its.has_room(), "the first message of each comes to its end");
        assert!(!of(&pool, &newcomer).has_room());
    }
}
