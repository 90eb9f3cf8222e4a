//! What one worker has: its partitions, the jobs that it was given of them, and how far each is told to Kafka. Locked for
//! moments only; nothing here waits.
//!
//! The worker's task writes down what comes and tells Kafka what is done; the worker takes and answers. `telling` is what
//! Kafka is told, `dead` what is known of dead letters.

mod dead;
mod telling;

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::queue::{Credit, JobNumber, LeasedJob, Token};

use super::super::envelope::Envelope;
use super::super::held::{Held, Lease};
use super::WindowLimits;
use super::record::{Partition, Record};
use super::window::{Milliseconds, Window};

use telling::Telling;
pub(super) use telling::{Change, Told};

#[derive(Debug, Default)]
pub(super) struct Board {
    state: Mutex<State>,
    /// There may be something to take.
    pub changed: Notify,
    /// More is told to Kafka, or partitions are gone.
    pub told: Notify,
    /// There is something for the worker's task to do.
    pub work: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    limits: WindowLimits,
    partitions: BTreeMap<Partition, Assigned>,
    held: Held<Place>,
    assigned: u64,
    tokens: u64,
    /// The partition that was taken from last: the next has its turn.
    served: Partition,
    /// Of each partition, what is on its way to Kafka.
    telling: Option<Vec<Telling>>,
    /// Kafka did not take it, and is to be told again then.
    tell_again: Option<Instant>,
    parked: HashSet<Bytes>,
    /// Grows when a key is parked here or a partition comes: what was read of dead letters before then is old.
    parkings: u64,
    dead_known: Option<Instant>,
    error: Option<String>,
    counted: Counts,
}

#[derive(Debug)]
struct Assigned {
    assignment: u64,
    window: Window,
    /// Of the window's changes, those that Kafka knows.
    told: u64,
    told_before: Option<i64>,
    is_paused: bool,
}

/// Where a job is, as long as the partition is assigned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub partition: Partition,
    pub assignment: u64,
    pub offset: i64,
}

/// What a worker adds to the counters of its group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub leased: usize,
    pub leased_again: usize,
    pub postponed: usize,
}

impl Board {
    pub fn new(limits: WindowLimits) -> Self {
        let board = Self::default();
        {
            let mut state = board.lock();
            state.limits = limits;
            state.tokens = fastrand::u64(..);
        }
        board
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// These partitions are this worker's from now on.
    pub fn gain(&mut self, partitions: impl Iterator<Item = Partition>) {
        for partition in partitions {
            self.assigned += 1;
            let assigned = Assigned {
                assignment: self.assigned,
                window: Window::default(),
                told: 0,
                told_before: None,
                is_paused: false,
            };
            self.partitions.insert(partition, assigned);
        }
        self.parkings += 1;
        self.dead_known = None;
    }

    /// These partitions are another's: what was taken of them is over.
    pub fn lose(&mut self, partitions: impl Iterator<Item = Partition>) {
        for partition in partitions {
            self.partitions.remove(&partition);
        }
        let Self {
            held, partitions, ..
        } = self;
        held.retain(|place| is_current(partitions, place));
    }

    pub fn lose_all(&mut self) {
        self.partitions.clear();
        self.held.retain(|_| false);
    }

    /// A record has come. Says whether its partition is to be fetched no further for now.
    pub fn note(
        &mut self,
        partition: Partition,
        offset: i64,
        record: Option<Record>,
        now: Milliseconds,
    ) -> bool {
        // Of one that is not assigned, nothing can be told to be done.
        let Some(assigned) = self.partitions.get_mut(&partition) else {
            return false;
        };
        assigned.told_before.get_or_insert(offset);
        match record {
            Some(Record { envelope, due, .. }) => {
                assigned.window.arrive(offset, envelope, due, now);
            }
            None => drop(assigned.window.pass(offset)),
        }
        let is_full = assigned.is_full(&self.limits);
        is_full && !std::mem::replace(&mut assigned.is_paused, true)
    }

    /// Partitions that can be fetched again.
    pub fn resume(&mut self) -> Vec<Partition> {
        let limits = self.limits;
        let resume = |(partition, assigned): (&Partition, &mut Assigned)| {
            let has_room = assigned.is_paused && !assigned.is_full(&limits);
            assigned.is_paused &= !has_room;
            has_room.then_some(*partition)
        };
        self.partitions.iter_mut().filter_map(resume).collect()
    }

    /// What has waited its time is ready. Says when the next is due.
    pub fn wake(&mut self, now: Milliseconds) -> Option<Milliseconds> {
        let wake = |assigned: &mut Assigned| {
            assigned.window.wake(now);
            assigned.window.next_due()
        };
        self.partitions.values_mut().filter_map(wake).min()
    }

    /// Takes what the credit allows, one of each partition after another. Counts those that have expired.
    pub fn take(&mut self, credit: Credit, now: Milliseconds, expired: &mut u64) -> Vec<LeasedJob> {
        self.wake(now);
        // What is held and was not given out did not fit before.
        let mut wanted = if self.held.has_waiting() {
            0
        } else {
            credit.jobs
        };
        while wanted > 0
            && let Some((place, envelope)) = self.take_next()
        {
            if envelope.has_expired(now) {
                self.finish(&place);
                *expired += 1;
                continue;
            }
            self.tokens = self.tokens.wrapping_add(1);
            let lease = Lease {
                token: Token(self.tokens),
                envelope,
                message: place,
            };
            self.held.note(number(&place, &lease.envelope), lease);
            wanted -= 1;
        }
        let Self {
            held, partitions, ..
        } = self;
        held.take(credit, |place| !is_current(partitions, place))
    }

    /// Takes the next job of the partitions after the one that was served last.
    fn take_next(&mut self) -> Option<(Place, Envelope)> {
        let Self {
            partitions,
            held,
            parked,
            served,
            ..
        } = self;
        let rounds = [
            (Bound::Excluded(*served), Bound::Unbounded),
            (Bound::Unbounded, Bound::Included(*served)),
        ];
        for round in rounds {
            for (partition, assigned) in partitions.range_mut(round) {
                let (partition, assignment) = (*partition, assigned.assignment);
                let place = |offset| Place {
                    partition,
                    assignment,
                    offset,
                };
                let is_parked = |key: &Bytes| parked.contains(key);
                let may = |offset, envelope: &Envelope| {
                    // One of two copies at a time.
                    !held.contains(number(&place(offset), envelope))
                        && !envelope.key.as_ref().is_some_and(is_parked)
                };
                if let Some((offset, envelope)) = assigned.window.take(may) {
                    *served = partition;
                    return Some((place(offset), envelope));
                }
            }
        }
        None
    }

    pub fn held(&mut self) -> &mut Held<Place> {
        &mut self.held
    }

    pub fn is_current(&self, place: &Place) -> bool {
        is_current(&self.partitions, place)
    }

    fn window(&mut self, place: &Place) -> Option<&mut Window> {
        let assigned = self.partitions.get_mut(&place.partition)?;
        (assigned.assignment == place.assignment).then_some(&mut assigned.window)
    }

    /// It was not begun.
    pub fn put_back(&mut self, place: &Place) {
        if let Some(window) = self.window(place) {
            window.put_back(place.offset);
        }
    }

    /// It is tried again from then on, here, and holds its key until then.
    pub fn postpone(&mut self, place: &Place, envelope: Envelope, due: Milliseconds) {
        if let Some(window) = self.window(place) {
            window.postpone(place.offset, envelope, due);
        }
    }

    /// Jobs that have waited here since then for their first time, at most so many.
    pub fn waiting_since(
        &self,
        then: Milliseconds,
        max: usize,
    ) -> Vec<(Place, Envelope, Milliseconds)> {
        let of = |(partition, assigned): (&Partition, &Assigned)| {
            let (partition, assignment) = (*partition, assigned.assignment);
            let waiting = assigned.window.waiting_since(then).into_iter();
            let with_place = move |(offset, envelope, due)| {
                let place = Place {
                    partition,
                    assignment,
                    offset,
                };
                (place, envelope, due)
            };
            waiting.map(with_place).collect::<Vec<_>>()
        };
        self.partitions.iter().flat_map(of).take(max).collect()
    }

    pub fn fail(&mut self, error: String) {
        self.error = Some(error);
    }

    pub fn take_error(&mut self) -> Option<String> {
        self.error.take()
    }

    /// Brings a group's counters up to date with what is here.
    pub fn count(
        &mut self,
        leased: &AtomicUsize,
        leased_again: &AtomicUsize,
        postponed: &AtomicUsize,
    ) {
        let (mut now, before) = (Counts::default(), self.counted);
        for place in self.held.messages() {
            now.leased += 1;
            now.leased_again += usize::from(place.partition.is_of_group);
        }
        for (partition, assigned) in &self.partitions {
            if !partition.is_of_group {
                now.postponed += assigned.window.count_waiting();
            }
        }
        let change = |counter: &AtomicUsize, now: usize, before: usize| {
            // Never below what this worker has added.
            counter.fetch_add(now, Ordering::Relaxed);
            counter.fetch_sub(before, Ordering::Relaxed);
        };
        change(leased, now.leased, before.leased);
        change(leased_again, now.leased_again, before.leased_again);
        change(postponed, now.postponed, before.postponed);
        self.counted = now;
    }
}

impl Assigned {
    fn is_full(&self, limits: &WindowLimits) -> bool {
        self.window.len() >= limits.jobs_max || self.window.bytes() >= limits.bytes_max
    }
}

/// The one that it brought, or the one that its place gives it.
pub(super) fn number(place: &Place, envelope: &Envelope) -> JobNumber {
    let of_place = place.partition.number(place.offset);
    envelope.number.unwrap_or(of_place)
}

fn is_current(partitions: &BTreeMap<Partition, Assigned>, place: &Place) -> bool {
    let assigned = partitions.get(&place.partition);
    assigned.is_some_and(|assigned| assigned.assignment == place.assignment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{NewJob, Producer};

    const PARTITION: Partition = Partition {
        is_of_group: false,
        index: 0,
    };

    fn board(jobs_max: usize, bytes_max: usize) -> Board {
        let limits = WindowLimits {
            jobs_max,
            bytes_max,
            ..WindowLimits::default()
        };
        let board = Board::new(limits);
        board.lock().gain([PARTITION].into_iter());
        board
    }

    /// A job of ten bytes comes. Says whether its partition is full with it.
    fn come(board: &Board, offset: i64) -> bool {
        let body = Bytes::from_static(&[7; 10]);
        let job = NewJob::new(Producer::ephemeral().identity(), body);
        let record = Record {
            envelope: Envelope::new(job, 0),
            due: 0,
            only_for: None,
        };
        board.lock().note(PARTITION, offset, Some(record), 0)
    }

    fn finish_first(board: &Board) {
        let mut state = board.lock();
        let credit = Credit {
            jobs: 1,
            bytes: 100,
            takes_any_first: true,
        };
        let leased = state.take(credit, 0, &mut 0);
        let job = leased.first().expect("a job");
        let lease = state.held().remove(job.number, job.token);
        let place = lease.expect("it is held").message;
        state.finish(&place).expect("it is assigned");
    }

    #[test]
    fn a_partition_with_as_many_jobs_as_it_may_have_is_fetched_no_further_until_one_is_done() {
        let board = board(3, 1 << 20);
        assert!(!come(&board, 0) && !come(&board, 1));
        assert_eq!(board.lock().resume(), [], "it was never full");
        assert!(come(&board, 2), "the last that it may have");
        assert!(!come(&board, 3), "that was said already");
        finish_first(&board);
        assert_eq!(board.lock().resume(), [], "three are left");
        finish_first(&board);
        assert_eq!(board.lock().resume(), [PARTITION]);
        assert!(come(&board, 4), "it is full again");
    }

    #[test]
    fn a_partition_with_as_many_bytes_as_it_may_have_is_fetched_no_further() {
        let one_less = board(100, 31);
        assert!(!(0..3).any(|offset| come(&one_less, offset)));
        let full = board(100, 30);
        assert!(!come(&full, 0) && !come(&full, 1) && come(&full, 2));
        let single = board(100, 5);
        assert!(come(&single, 0), "a single job may have more");
    }
}
