//! Which caller a reply belongs to: a state machine, without clock, socket or task.
//!
//! Every call in flight has a slot. The correlation number on the wire is the slot's index and the
//! count of calls that the slot has seen, so that finding the caller is an index and not a lookup,
//! and a late reply cannot be taken for that of the slot's next call.

use std::task::{Poll, Waker};

use slab::Slab;

/// The calls in flight of one client. `R` is what a call ends with, `I` a point in time.
#[derive(Debug)]
pub(crate) struct Correlation<R, I> {
    slots: Slab<Slot<R, I>>,
    /// Tells the uses of one slot apart.
    uses: u32,
    in_flight_max: usize,
    late: u64,
}

#[derive(Debug)]
struct Slot<R, I> {
    uses: u32,
    deadline: I,
    state: State<R>,
}

#[derive(Debug)]
enum State<R> {
    /// The caller, once it has asked.
    Waiting(Option<Waker>),
    Ended(R),
}

/// There are as many calls in flight as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl<R, I: Ord + Copy> Correlation<R, I> {
    pub fn new(in_flight_max: usize) -> Self {
        Self {
            slots: Slab::new(),
            uses: 0,
            in_flight_max,
            late: 0,
        }
    }

    /// A call begins; the number goes into its header.
    pub fn begin(&mut self, deadline: I) -> Result<u64, TooMany> {
        if self.slots.len() >= self.in_flight_max {
            return Err(TooMany);
        }
        self.uses = self.uses.wrapping_add(1);
        let index = self.slots.insert(Slot {
            uses: self.uses,
            deadline,
            state: State::Waiting(None),
        });
        Ok(u64::from(self.uses) << 32 | index as u64)
    }

    /// A reply has come. Returns whom to wake; counts it where nobody waits for it any more.
    pub fn end(&mut self, number: u64, result: R) -> Option<Waker> {
        let Some(waiting) = self.waiting(number) else {
            self.late += 1;
            return None;
        };
        ended(waiting, result)
    }

    /// Ends a call that was not sent. Returns whom to wake.
    pub fn end_waiting(&mut self, number: u64, result: R) -> Option<Waker> {
        ended(self.waiting(number)?, result)
    }

    /// The caller asks. Once it is told how its call ended, the number means nothing any more.
    pub fn poll(&mut self, number: u64, waker: &Waker) -> Poll<Option<R>> {
        let Some(slot) = self.slot(number) else {
            return Poll::Ready(None);
        };
        match &mut slot.state {
            State::Waiting(Some(known)) => {
                known.clone_from(waker);
                Poll::Pending
            }
            State::Waiting(none) => {
                *none = Some(waker.clone());
                Poll::Pending
            }
            State::Ended(_) => match self.slots.remove(index_of(number)).state {
                State::Ended(result) => Poll::Ready(Some(result)),
                State::Waiting(_) => Poll::Ready(None),
            },
        }
    }

    /// The caller is gone. A reply that still comes is a late one. Returns whether one was still to come.
    pub fn cancel(&mut self, number: u64) -> bool {
        let was_waiting = self.waiting(number).is_some();
        if self.slot(number).is_some() {
            self.slots.remove(index_of(number));
        }
        was_waiting
    }

    /// Ends the calls whose deadline is not after `now`.
    pub fn expire(&mut self, now: I, result: impl Fn() -> R, wake: &mut Vec<Waker>) {
        self.end_where(|slot| slot.deadline <= now, result, wake);
    }

    /// Ends all calls.
    pub fn end_all(&mut self, result: impl Fn() -> R, wake: &mut Vec<Waker>) {
        self.end_where(|_| true, result, wake);
    }

    /// Whether no call is in flight.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Calls in flight.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Replies that came when nobody waited for them any more, or that nobody asked for.
    pub fn late(&self) -> u64 {
        self.late
    }

    fn end_where(
        &mut self,
        ends: impl Fn(&Slot<R, I>) -> bool,
        result: impl Fn() -> R,
        wake: &mut Vec<Waker>,
    ) {
        for (_, slot) in &mut self.slots {
            if matches!(slot.state, State::Waiting(_)) && ends(slot) {
                let waiting = std::mem::replace(&mut slot.state, State::Ended(result()));
                if let State::Waiting(Some(waker)) = waiting {
                    wake.push(waker);
                }
            }
        }
    }

    fn waiting(&mut self, number: u64) -> Option<&mut State<R>> {
        let state = &mut self.slot(number)?.state;
        matches!(state, State::Waiting(_)).then_some(state)
    }

    fn slot(&mut self, number: u64) -> Option<&mut Slot<R, I>> {
        self.slots
            .get_mut(index_of(number))
            .filter(|slot| slot.uses == (number >> 32) as u32)
    }
}

fn ended<R>(state: &mut State<R>, result: R) -> Option<Waker> {
    match std::mem::replace(state, State::Ended(result)) {
        State::Waiting(waker) => waker,
        State::Ended(_) => None,
    }
}

fn index_of(number: u64) -> usize {
    number as u32 as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Clone, Debug)]
    enum Step {
        Begin {
            deadline: u32,
        },
        End {
            call: prop::sample::Index,
            result: u32,
        },
        EndUnknown {
            number: u64,
        },
        Poll {
            call: prop::sample::Index,
        },
        Cancel {
            call: prop::sample::Index,
        },
        Expire {
            now: u32,
        },
        EndAll,
    }

    fn step() -> impl Strategy<Value = Step> {
        let call = any::<prop::sample::Index>;
        prop_oneof![
            4 => (0..100u32).prop_map(|deadline| Step::Begin { deadline }),
            4 => (call(), any::<u32>()).prop_map(|(call, result)| Step::End { call, result }),
            1 => any::<u64>().prop_map(|number| Step::EndUnknown { number }),
            4 => call().prop_map(|call| Step::Poll { call }),
            2 => call().prop_map(|call| Step::Cancel { call }),
            1 => (0..100u32).prop_map(|now| Step::Expire { now }),
            1 => Just(Step::EndAll),
        ]
    }

    /// What should be known of a call: its deadline, and how it ended.
    type Model = HashMap<u64, (u32, Option<u32>)>;
    const TIMED_OUT: u32 = 1_000_001;
    const LOST: u32 = 1_000_002;

    proptest! {
        #[test]
        fn behaves_like_a_map_from_numbers_to_calls(steps in prop::collection::vec(step(), 1..200)) {
            let mut correlation = Correlation::new(16);
            let mut model = Model::new();
            let mut begun: Vec<u64> = Vec::new();
            let mut late = 0;
            for step in steps {
                let pick = |call: prop::sample::Index| match begun.len() {
                    0 => None,
                    n => Some(begun[call.index(n)]),
                };
                match step {
                    Step::Begin { deadline } => match correlation.begin(deadline) {
                        Ok(number) => {
                            prop_assert!(!begun.contains(&number), "a number is used once");
                            begun.push(number);
                            model.insert(number, (deadline, None));
                        }
                        Err(TooMany) => prop_assert_eq!(model.len(), 16),
                    },
                    Step::End { call, result } => if let Some(number) = pick(call) {
                        correlation.end(number, result);
                        match model.get_mut(&number) {
                            Some((_, ended @ None)) => *ended = Some(result),
                            _ => late += 1,
                        }
                    },
                    Step::EndUnknown { number } => if !begun.contains(&number) {
                        correlation.end(number, 0);
                        late += 1;
                    },
                    Step::Poll { call } => if let Some(number) = pick(call) {
                        let expected = match model.get(&number) {
                            None => Poll::Ready(None),
                            Some((_, None)) => Poll::Pending,
                            Some((_, Some(result))) => Poll::Ready(Some(*result)),
                        };
                        if expected.is_ready() {
                            model.remove(&number);
                        }
                        prop_assert_eq!(correlation.poll(number, Waker::noop()), expected);
                    },
                    Step::Cancel { call } => if let Some(number) = pick(call) {
                        let was_waiting = matches!(model.remove(&number), Some((_, None)));
                        prop_assert_eq!(correlation.cancel(number), was_waiting);
                    },
                    Step::Expire { now } => {
                        correlation.expire(now, || TIMED_OUT, &mut Vec::new());
                        for (deadline, ended) in model.values_mut() {
                            if *deadline <= now && ended.is_none() {
                                *ended = Some(TIMED_OUT);
                            }
                        }
                    }
                    Step::EndAll => {
                        correlation.end_all(|| LOST, &mut Vec::new());
                        for (_, ended) in model.values_mut() {
                            *ended = ended.or(Some(LOST));
                        }
                    }
                }
                prop_assert_eq!(correlation.len(), model.len());
                prop_assert_eq!(correlation.late(), late);
            }
        }
    }
}
