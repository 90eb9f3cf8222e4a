//! When each worker was last heard of.

use std::collections::HashMap;
use std::time::Duration;

use super::fact::Moment;

#[derive(Debug, Default)]
pub(super) struct Sessions {
    heard: HashMap<u64, Moment>,
    /// None was heard of before this: until it is long ago, nothing is looked through.
    oldest: Option<Moment>,
}

impl Sessions {
    pub fn heard(&mut self, session: u64, now: Moment) {
        self.heard.insert(session, now);
        self.oldest.get_or_insert(now);
    }

    pub fn last_heard(&self, session: u64) -> Option<Moment> {
        self.heard.get(&session).copied()
    }

    /// Every worker was heard of now.
    pub fn hear_all(&mut self, now: Moment) {
        self.heard.values_mut().for_each(|heard| *heard = now);
    }

    pub fn end(&mut self, session: u64) {
        self.heard.remove(&session);
    }

    /// Forgets those of whom nothing was heard for longer than this.
    pub fn forget(&mut self, now: Moment, after: Duration) {
        if self.oldest.is_none_or(|oldest| now.since(oldest) <= after) {
            return;
        }
        self.heard.retain(|_, heard| now.since(*heard) <= after);
        self.oldest = self.heard.values().min().copied();
    }
}
