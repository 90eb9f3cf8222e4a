//! Changes of a publisher's subscriptions that its watch has not seen yet. No sockets.

use std::collections::VecDeque;

use bytes::Bytes;

use super::SubscriptionChange;

/// Changes that may wait; past them the watch starts again from a snapshot.
const CHANGES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Changes {
    waiting: VecDeque<SubscriptionChange>,
    /// There were too many: the watch starts again from all that is known.
    is_behind: bool,
}

impl Changes {
    pub fn push(&mut self, change: SubscriptionChange) {
        if self.waiting.len() >= CHANGES_MAX {
            self.waiting = VecDeque::new();
            self.is_behind = true;
        }
        if !self.is_behind {
            self.waiting.push_back(change);
        }
    }

    /// The next change; `all` is what all changes together have made.
    pub fn next(
        &mut self,
        all: impl FnOnce() -> Vec<(u64, Vec<Bytes>)>,
    ) -> Option<SubscriptionChange> {
        match std::mem::take(&mut self.is_behind) {
            true => Some(SubscriptionChange::Reset(all())),
            false => self.waiting.pop_front(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(peer: u64) -> SubscriptionChange {
        SubscriptionChange::Gone { peer }
    }

    #[test]
    fn the_watch_sees_changes_in_their_order_and_starts_again_where_one_more_waits_than_may() {
        let mut changes = Changes::default();
        for peer in 0..CHANGES_MAX as u64 {
            changes.push(change(peer));
        }
        assert_eq!(changes.waiting.len(), CHANGES_MAX);
        assert_eq!(changes.next(Vec::new), Some(change(0)));

        // What all has become says more than the last of it.
        changes.push(change(6));
        changes.push(change(7));
        assert!(changes.waiting.is_empty());
        changes.push(change(8));
        assert!(changes.waiting.is_empty());
        assert_eq!(
            changes.next(Vec::new),
            Some(SubscriptionChange::Reset(Vec::new()))
        );
        changes.push(change(9));
        assert_eq!(changes.next(Vec::new), Some(change(9)));
        assert_eq!(changes.next(Vec::new), None);
    }
}
