//! The records of one partition between the offset up to which all are done and the last that came: which of them may be
//! done now, and where the first is that is not done. No Kafka here, no clock.
//!
//! Kafka knows one number for a partition and a group of workers: the offset before which all is done. So a job that takes
//! long holds that number back, while those behind it are done; what was done behind it is done again
//! where its worker dies before. The window is what this may be.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;

use super::super::envelope::Envelope;

/// Milliseconds since 1970: what is due is so by the machines' clocks.
pub(super) type Milliseconds = u64;

#[derive(Debug, Default)]
pub(super) struct Window {
    /// The offset after the last that came. None before the first.
    next: Option<i64>,
    entries: BTreeMap<i64, Entry>,
    ready: BTreeSet<i64>,
    waiting: BTreeSet<(Milliseconds, i64)>,
    /// Of each key, the jobs that are not done, in their order. Only the first may be.
    lines: HashMap<Bytes, VecDeque<i64>>,
    bytes: usize,
    changes: u64,
}

#[derive(Debug)]
struct Entry {
    envelope: Envelope,
    state: State,
    came: Milliseconds,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// It waits for the job of its key before it.
    InLine,
    Ready,
    Waiting {
        due: Milliseconds,
        /// It is the first of its key's line, and is tried again.
        is_in_line: bool,
    },
    Leased,
}

impl Window {
    /// A job has come, which may be done from `due` on. Offsets only grow: one that came before is the same record again.
    pub fn arrive(
        &mut self,
        offset: i64,
        envelope: Envelope,
        due: Milliseconds,
        now: Milliseconds,
    ) {
        if !self.pass(offset) {
            return;
        }
        self.bytes += envelope.bytes();
        let is_due = due <= now;
        let state = match is_due {
            true => State::InLine,
            false => State::Waiting {
                due,
                is_in_line: false,
            },
        };
        self.entries.insert(
            offset,
            Entry {
                envelope,
                state,
                came: now,
            },
        );
        match is_due {
            true => self.join(offset),
            false => drop(self.waiting.insert((due, offset))),
        }
    }

    /// A record has come that is no job for this group. Says whether it is new.
    pub fn pass(&mut self, offset: i64) -> bool {
        if self.next.is_some_and(|next| offset < next) {
            return false;
        }
        self.next = Some(offset + 1);
        self.changes += 1;
        true
    }

    /// What has waited its time is ready, or joins its key's line.
    pub fn wake(&mut self, now: Milliseconds) {
        while let Some((due, offset)) = self.waiting.first().copied()
            && due <= now
        {
            self.waiting.pop_first();
            match self.entries.get(&offset).map(|entry| entry.state) {
                Some(State::Waiting {
                    is_in_line: true, ..
                }) => self.make_ready(offset),
                _ => self.join(offset),
            }
        }
    }

    /// When the next of those that wait is due.
    pub fn next_due(&self) -> Option<Milliseconds> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// Takes the first that is ready and that `may` be done.
    pub fn take(&mut self, may: impl Fn(i64, &Envelope) -> bool) -> Option<(i64, Envelope)> {
        let entries = &mut self.entries;
        let is_wanted = |offset: &&i64| {
            entries
                .get(*offset)
                .is_some_and(|entry| may(**offset, &entry.envelope))
        };
        let offset = *self.ready.iter().find(is_wanted)?;
        let entry = entries.get_mut(&offset)?;
        entry.state = State::Leased;
        let envelope = entry.envelope.clone();
        self.ready.remove(&offset);
        Some((offset, envelope))
    }

    /// One that was taken was not begun.
    pub fn put_back(&mut self, offset: i64) {
        if self.is_leased(offset) {
            self.make_ready(offset);
        }
    }

    /// One that was taken is to be tried again, from `due` on, and holds its key's line until then.
    pub fn postpone(&mut self, offset: i64, envelope: Envelope, due: Milliseconds) {
        if !self.is_leased(offset) {
            return;
        }
        if let Some(entry) = self.entries.get_mut(&offset) {
            entry.envelope = envelope;
            let is_in_line = true;
            entry.state = State::Waiting { due, is_in_line };
            self.waiting.insert((due, offset));
        }
    }

    /// It is done, or is kept elsewhere. The next of its key may be done.
    pub fn finish(&mut self, offset: i64) {
        let Some(entry) = self.entries.remove(&offset) else {
            return;
        };
        self.changes += 1;
        self.bytes -= entry.envelope.bytes().min(self.bytes);
        self.ready.remove(&offset);
        if let State::Waiting { due, .. } = entry.state {
            self.waiting.remove(&(due, offset));
        }
        let Some(key) = entry.envelope.key else {
            return;
        };
        let Some(line) = self.lines.get_mut(&key) else {
            return;
        };
        let was_first = line.front() == Some(&offset);
        line.retain(|other| *other != offset);
        match line.front().copied() {
            None => drop(self.lines.remove(&key)),
            Some(first) if was_first => self.make_ready(first),
            Some(_) => {}
        }
    }

    /// The offset before which all is done. None before anything came.
    pub fn done_before(&self) -> Option<i64> {
        let first = self.entries.first_key_value().map(|(offset, _)| *offset);
        first.or(self.next)
    }

    /// Grows whenever [`done_before`](Self::done_before) may have.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Those that came before `then` and still wait for their first time: they would hold everything back.
    pub fn waiting_since(&self, then: Milliseconds) -> Vec<(i64, Envelope, Milliseconds)> {
        let of = |(due, offset): &(Milliseconds, i64)| {
            let entry = self.entries.get(offset)?;
            let is_first_time = matches!(
                entry.state,
                State::Waiting {
                    is_in_line: false,
                    ..
                }
            );
            (is_first_time && entry.came <= then).then(|| (*offset, entry.envelope.clone(), *due))
        };
        self.waiting.iter().filter_map(of).collect()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn count_waiting(&self) -> usize {
        self.waiting.len()
    }

    fn is_leased(&self, offset: i64) -> bool {
        let entry = self.entries.get(&offset);
        entry.is_some_and(|entry| entry.state == State::Leased)
    }

    fn make_ready(&mut self, offset: i64) {
        if let Some(entry) = self.entries.get_mut(&offset) {
            entry.state = State::Ready;
            self.ready.insert(offset);
        }
    }

    /// Stands behind the others of its key.
    fn join(&mut self, offset: i64) {
        let Some(entry) = self.entries.get_mut(&offset) else {
            return;
        };
        let Some(key) = entry.envelope.key.clone() else {
            return self.make_ready(offset);
        };
        entry.state = State::InLine;
        let line = self.lines.entry(key).or_default();
        line.push_back(offset);
        if line.len() == 1 {
            self.make_ready(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Identity, NewJob};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn job(key: Option<u8>) -> Envelope {
        let identity = Identity {
            producer: Uuid::nil(),
            epoch: 0,
            sequence: 0,
        };
        let mut job = NewJob::new(identity, Bytes::from_static(b"body"));
        job.key = key.map(|key| Bytes::copy_from_slice(&[key]));
        Envelope::new(job, 0)
    }

    /// What the window is to do, by looking at all that ever came.
    #[derive(Default)]
    struct Model(Vec<Known>);

    #[derive(Clone, Copy, PartialEq)]
    enum Now {
        Waits(Milliseconds),
        /// Since this many jobs of its key had their time.
        Stands(usize),
        Leased(usize),
        /// Tried again later; it keeps its place.
        Later(usize, Milliseconds),
        Done,
    }

    struct Known {
        key: Option<u8>,
        now: Now,
    }

    impl Model {
        fn wake(&mut self, stands: &mut usize, now: Milliseconds) {
            let mut due: Vec<(Milliseconds, usize)> = Vec::new();
            for (offset, known) in self.0.iter_mut().enumerate() {
                match known.now {
                    Now::Waits(at) if at <= now => due.push((at, offset)),
                    Now::Later(place, at) if at <= now => known.now = Now::Stands(place),
                    _ => {}
                }
            }
            due.sort_unstable();
            for (_, offset) in due {
                self.0[offset].now = Now::Stands(*stands);
                *stands += 1;
            }
        }

        fn may_be_taken(&self) -> Option<usize> {
            let place = |known: &Known| match known.now {
                Now::Stands(place) | Now::Leased(place) | Now::Later(place, _) => Some(place),
                Now::Waits(_) | Now::Done => None,
            };
            let is_first = |known: &Known| {
                known.key.is_none()
                    || self.0.iter().all(|other| {
                        other.key != known.key
                            || place(other) >= place(known)
                            || place(other).is_none()
                    })
            };
            let may = |known: &Known| matches!(known.now, Now::Stands(_)) && is_first(known);
            self.0.iter().position(may)
        }

        fn done_before(&self) -> usize {
            let is_open = |known: &Known| known.now != Now::Done;
            self.0.iter().position(is_open).unwrap_or(self.0.len())
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrive(Option<u8>, u64),
        Pass,
        Take,
        Finish(prop::sample::Index),
        PutBack(prop::sample::Index),
        Postpone(prop::sample::Index, u64),
        Later(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = || prop::option::of(0..3u8);
        let step = prop_oneof![
            6 => (key(), prop_oneof![3 => Just(0), 1 => 1..30u64]).prop_map(|(k, d)| Step::Arrive(k, d)),
            1 => Just(Step::Pass),
            5 => Just(Step::Take),
            3 => any::<prop::sample::Index>().prop_map(Step::Finish),
            1 => any::<prop::sample::Index>().prop_map(Step::PutBack),
            2 => (any::<prop::sample::Index>(), 1..20u64).prop_map(|(i, d)| Step::Postpone(i, d)),
            2 => (1..15u64).prop_map(Step::Later),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        #[test]
        fn what_may_be_done_and_what_all_is_done_before_are_as_in_the_model(steps in steps()) {
            let (mut window, mut model) = (Window::default(), Model::default());
            let (mut now, mut stands) = (0, 0);
            let mut leased: Vec<i64> = Vec::new();
            for step in steps {
                match step {
                    Step::Arrive(key, delay) => {
                        let offset = model.0.len() as i64;
                        window.arrive(offset, job(key), now + delay, now);
                        // Again: it is the same record.
                        window.arrive(offset, job(key), now + delay, now);
                        model.0.push(Known { key, now: Now::Waits(now + delay) });
                    }
                    Step::Pass => {
                        window.pass(model.0.len() as i64);
                        model.0.push(Known { key: None, now: Now::Done });
                    }
                    Step::Take => {
                        let expected = model.may_be_taken();
                        let taken = window.take(|_, _| true).map(|(offset, _)| offset);
                        prop_assert_eq!(taken, expected.map(|offset| offset as i64));
                        if let Some(offset) = expected
                            && let Now::Stands(place) = model.0[offset].now
                        {
                            model.0[offset].now = Now::Leased(place);
                            leased.push(offset as i64);
                        }
                    }
                    Step::Finish(index) if !leased.is_empty() => {
                        let offset = leased.swap_remove(index.index(leased.len()));
                        window.finish(offset);
                        model.0[offset as usize].now = Now::Done;
                    }
                    Step::PutBack(index) if !leased.is_empty() => {
                        let offset = leased.swap_remove(index.index(leased.len()));
                        window.put_back(offset);
                        if let Now::Leased(place) = model.0[offset as usize].now {
                            model.0[offset as usize].now = Now::Stands(place);
                        }
                    }
                    Step::Postpone(index, delay) if !leased.is_empty() => {
                        let offset = leased.swap_remove(index.index(leased.len()));
                        let key = model.0[offset as usize].key;
                        window.postpone(offset, job(key), now + delay);
                        if let Now::Leased(place) = model.0[offset as usize].now {
                            model.0[offset as usize].now = Now::Later(place, now + delay);
                        }
                    }
                    Step::Later(time) => now += time,
                    Step::Finish(_) | Step::PutBack(_) | Step::Postpone(..) => {}
                }
                model.wake(&mut stands, now);
                window.wake(now);
                if !model.0.is_empty() {
                    prop_assert_eq!(window.done_before(), Some(model.done_before() as i64));
                }
                let open = model.0.iter().filter(|known| known.now != Now::Done).count();
                prop_assert_eq!((window.len(), window.bytes()), (open, window.entries.values().map(|e| e.envelope.bytes()).sum()));
            }
        }
    }

    #[test]
    fn a_job_that_holds_everything_back_is_named() {
        let mut window = Window::default();
        window.arrive(0, job(None), 1_000, 10);
        window.arrive(1, job(None), 2_000, 20);
        window.arrive(2, job(None), 0, 20);
        let since: Vec<i64> = window.waiting_since(10).iter().map(|of| of.0).collect();
        assert_eq!(since, [0]);
        window.finish(0);
        assert_eq!(
            (window.done_before(), window.next_due()),
            (Some(1), Some(2_000))
        );
    }
}
