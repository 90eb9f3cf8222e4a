//! What Kafka is told: of each partition, the offset before which all is done. One telling at a time is on its way.

use std::time::Duration;

use tokio::time::Instant;

use super::super::record::Partition;
use super::{Place, State};

/// How long to wait before telling again what Kafka did not take.
const TELL_AGAIN: Duration = Duration::from_millis(100);

/// On its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Telling {
    partition: Partition,
    assignment: u64,
    changes: u64,
    before: i64,
}

/// A change that Kafka is to know of.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Change {
    partition: Partition,
    assignment: u64,
    changes: u64,
}

/// Whether Kafka knows of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Told {
    Yes,
    NotYet,
    /// The partition is another's now.
    Never,
}

impl State {
    /// It is done, or kept elsewhere: Kafka is to know. None where the partition is another's.
    pub fn finish(&mut self, place: &Place) -> Option<Change> {
        let window = self.window(place)?;
        window.finish(place.offset);
        Some(Change {
            partition: place.partition,
            assignment: place.assignment,
            changes: window.changes(),
        })
    }

    pub fn is_told(&self, change: &Change) -> Told {
        match self.partitions.get(&change.partition) {
            Some(assigned) if assigned.assignment == change.assignment => {
                match assigned.told >= change.changes {
                    true => Told::Yes,
                    false => Told::NotYet,
                }
            }
            _ => Told::Never,
        }
    }

    /// What Kafka is to be told now: of each partition, the offset before which all is done.
    pub fn untold(&mut self) -> Vec<(Partition, i64)> {
        let waits = |again: Instant| Instant::now() < again;
        if self.telling.is_some() || self.tell_again.is_some_and(waits) {
            return Vec::new();
        }
        self.tell_again = None;
        let mut telling = Vec::new();
        for (partition, assigned) in &mut self.partitions {
            let changes = assigned.window.changes();
            let Some(before) = assigned.window.done_before() else {
                continue;
            };
            if assigned.told_before == Some(before) {
                assigned.told = changes;
            } else {
                telling.push(Telling {
                    partition: *partition,
                    assignment: assigned.assignment,
                    changes,
                    before,
                });
            }
        }
        let list = telling.iter().map(|t| (t.partition, t.before)).collect();
        self.telling = (!telling.is_empty()).then_some(telling);
        list
    }

    /// Kafka has taken what it was told, or has not.
    pub fn was_told(&mut self, is_taken: bool) {
        self.tell_again = (!is_taken).then(|| Instant::now() + TELL_AGAIN);
        for telling in self.telling.take().into_iter().flatten() {
            let assigned = self.partitions.get_mut(&telling.partition);
            let assigned = assigned.filter(|a| a.assignment == telling.assignment);
            if let Some(assigned) = assigned.filter(|_| is_taken) {
                assigned.told = assigned.told.max(telling.changes);
                assigned.told_before = Some(telling.before);
            }
        }
    }

    /// When Kafka is to be told again.
    pub fn tell_again(&self) -> Option<Instant> {
        self.tell_again
    }
}
