//! What waits for a subscriber: bounded by count and bytes, with a policy for when it is full.
//! A state machine: no socket, no task.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::message;

/// What happens when a subscriber is slower than its publisher, and its buffer is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlowPolicy {
    /// Drops what is new, and reports it as missed.
    #[default]
    Report,
    /// Keeps, of each topic, only the latest event, full or not; what it replaces is reported as missed.
    Latest,
    /// Ends the subscription.
    Disconnect,
}

/// An event as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    pub topic: Bytes,
    pub epoch: u64,
    /// Counts the connections over which something came.
    pub connection: u64,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Event {
        number: u64,
        metadata: crate::wire::Metadata,
        body: Bytes,
    },
    Tail {
        last: u64,
    },
    /// A part of the answer about the subscription to `topic`, a prefix here.
    Tails {
        tails: Vec<(Bytes, u64)>,
    },
    /// The publisher has the subscription to `topic`, a prefix here. It was asked with this number, among what was asked
    /// and taken back.
    Confirmed {
        tails: Vec<(Bytes, u64)>,
        order: u64,
    },
    /// The subscription to `topic`, a prefix here, was taken back: what came before belongs to it.
    TakenBack {
        order: u64,
        is_asked: bool,
    },
}

/// What a notice takes besides its topic: a tail, or one of those in a confirmation.
const NOTICE_BYTES: usize = 64;

#[derive(Debug)]
pub(super) struct Buffer {
    order: VecDeque<Arrived>,
    /// How many have been taken: the place of the first in `order`, counted from the beginning.
    taken: u64,
    /// With [`SlowPolicy::Latest`]: the place of the event of each topic that the next one replaces.
    latest: HashMap<Bytes, u64>,
    events: usize,
    bytes: usize,
    /// Of all that is no event.
    notices_bytes: usize,
    /// Subscriptions taken back, among those.
    taken_back: usize,
    events_max: usize,
    bytes_max: usize,
    policy: SlowPolicy,
    dropped: u64,
    overflowed: bool,
    #[cfg(test)]
    pub replaces_over_epochs: bool,
}

impl Buffer {
    pub fn new(events_max: usize, bytes_max: usize, policy: SlowPolicy) -> Self {
        Self {
            order: VecDeque::new(),
            taken: 0,
            latest: HashMap::new(),
            events: 0,
            bytes: 0,
            notices_bytes: 0,
            taken_back: 0,
            events_max,
            bytes_max,
            policy,
            dropped: 0,
            overflowed: false,
            #[cfg(test)]
            replaces_over_epochs: false,
        }
    }

    /// Whether it is worth while to wait for room for this one; what never has room is not waited for.
    pub fn has_room(&self, arrived: &Arrived) -> bool {
        let bytes = bytes_of(arrived);
        if !arrived.is_event() {
            return self.has_notice_room(bytes);
        }
        let (events, waiting) = match self.replaced(arrived) {
            Some(at) => (self.events - 1, self.bytes - bytes_of(&self.order[at])),
            None => (self.events, self.bytes),
        };
        let never = self.events_max == 0 || bytes > self.bytes_max;
        never || events < self.events_max && waiting + bytes <= self.bytes_max
    }

    /// Whether as little waits that what comes next has room for a while.
    pub fn is_half_empty(&self) -> bool {
        let is_half = |of: usize, max: usize| of <= max / 2;
        is_half(self.events, self.events_max)
            && is_half(self.bytes, self.bytes_max)
            && is_half(self.notices_bytes, self.bytes_max)
    }

    /// One alone always has room, however large.
    fn has_notice_room(&self, bytes: usize) -> bool {
        self.notices_bytes == 0 || self.notices_bytes + bytes <= self.bytes_max
    }

    /// Adds what has arrived, or drops it where the policy says so.
    pub fn push(&mut self, mut arrived: Arrived) {
        if self.overflowed {
            return;
        }
        let bytes = bytes_of(&arrived);
        if !arrived.is_event() {
            // A tail is announced again. An answer waits for its room before it is pushed, and what the subscriber has
            // done itself is not to be lost.
            if matches!(arrived.content, Content::Tail { .. }) && !self.has_notice_room(bytes) {
                return;
            }
            // What says where a subscription begins or ends stays between what came before and after it.
            match arrived.content {
                Content::TakenBack { .. } => {
                    self.latest.clear();
                    self.taken_back += 1;
                }
                Content::Tails { .. } | Content::Confirmed { .. } => self.latest.clear(),
                Content::Tail { .. } | Content::Event { .. } => {}
            }
            self.notices_bytes += bytes;
            self.order.push_back(arrived);
            return;
        }
        let replaced = self.replaced(&arrived);
        let waiting = replaced.map_or(self.bytes, |at| self.bytes - bytes_of(&self.order[at]));
        let has_place = replaced.is_some() || self.events < self.events_max;
        if !has_place || waiting + bytes > self.bytes_max {
            self.dropped += 1;
            self.overflowed = self.policy == SlowPolicy::Disconnect;
            return;
        }
        self.bytes = waiting + bytes;
        // It may stay for long while those around it go.
        if let (SlowPolicy::Latest, Content::Event { body, .. }) =
            (self.policy, &mut arrived.content)
        {
            *body = message::detached(body);
        }
        if let Some(at) = replaced {
            self.dropped += 1;
            self.order[at] = arrived;
            return;
        }
        self.events += 1;
        if self.policy == SlowPolicy::Latest {
            let place = self.taken + self.order.len() as u64;
            self.latest.insert(arrived.topic.clone(), place);
        }
        self.order.push_back(arrived);
    }

    /// Where in `order` the event is whose place this one takes. One of another epoch or connection keeps its place: it is
    /// before what the publisher has said since it began anew, or was connected again.
    fn replaced(&self, arrived: &Arrived) -> Option<usize> {
        if self.policy != SlowPolicy::Latest {
            return None;
        }
        let at = (*self.latest.get(&arrived.topic)? - self.taken) as usize;
        let of = &self.order[at];
        let is_same = (of.epoch, of.connection) == (arrived.epoch, arrived.connection);
        #[cfg(test)]
        let is_same = is_same || self.replaces_over_epochs;
        is_same.then_some(at)
    }

    /// Gives out what is next: all that waits, in exchange for what is empty, or one where the next event could still be
    /// replaced.
    pub fn take(&mut self, to: &mut VecDeque<Arrived>) {
        if self.policy != SlowPolicy::Latest {
            debug_assert!(to.is_empty());
            std::mem::swap(&mut self.order, to);
            (self.events, self.bytes) = (0, 0);
            (self.notices_bytes, self.taken_back) = (0, 0);
            return;
        }
        let Some(arrived) = self.order.pop_front() else {
            return;
        };
        match arrived.is_event() {
            true => {
                self.events -= 1;
                self.bytes -= bytes_of(&arrived);
                if self.latest.get(&arrived.topic) == Some(&self.taken) {
                    self.latest.remove(&arrived.topic);
                }
            }
            false => self.notices_bytes -= bytes_of(&arrived),
        }
        let is_taken_back = matches!(arrived.content, Content::TakenBack { .. });
        self.taken_back -= usize::from(is_taken_back);
        self.taken += 1;
        to.push_back(arrived);
    }

    /// Subscriptions taken back of which the one who takes events has not heard yet.
    pub fn taken_back(&self) -> usize {
        self.taken_back
    }

    /// Events that were dropped here, each of which is reported as missed.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether the policy says to end the subscription; what came before can still be taken.
    pub fn is_overflowed(&self) -> bool {
        self.overflowed
    }
}

impl Arrived {
    pub fn is_event(&self) -> bool {
        matches!(self.content, Content::Event { .. })
    }
}

fn bytes_of(arrived: &Arrived) -> usize {
    match &arrived.content {
        Content::Event { body, .. } => body.len() + arrived.topic.len(),
        Content::Tail { .. } | Content::TakenBack { .. } => NOTICE_BYTES + arrived.topic.len(),
        Content::Tails { tails } | Content::Confirmed { tails, .. } => {
            let tails = tails.iter().map(|(topic, _)| NOTICE_BYTES + topic.len());
            NOTICE_BYTES + arrived.topic.len() + tails.sum::<usize>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(topic: &'static str, number: u64) -> Arrived {
        Arrived {
            topic: Bytes::from_static(topic.as_bytes()),
            epoch: 1,
            connection: 1,
            content: Content::Event {
                number,
                metadata: Default::default(),
                body: Bytes::from_static(&[0; 9]),
            },
        }
    }

    /// Takes all that waits.
    fn all(buffer: &mut Buffer) -> Vec<Arrived> {
        let mut all = Vec::new();
        let mut taken = VecDeque::new();
        loop {
            buffer.take(&mut taken);
            if taken.is_empty() {
                return all;
            }
            all.extend(taken.drain(..));
        }
    }

    fn numbers(buffer: &mut Buffer) -> Vec<u64> {
        let all = all(buffer).into_iter();
        all.filter_map(|arrived| match arrived.content {
            Content::Event { number, .. } => Some(number),
            _ => None,
        })
        .collect()
    }

    #[test]
    fn latest_keeps_the_event_of_an_epoch_that_is_over() {
        let mut buffer = Buffer::new(10, 1000, SlowPolicy::Latest);
        let of = |epoch, topic, number| Arrived {
            epoch,
            ..event(topic, number)
        };
        for number in 1..=3 {
            buffer.push(of(1, "a", number));
            buffer.push(of(1, "b", number));
        }
        for number in 1..=2 {
            buffer.push(of(2, "a", number));
        }
        let order: Vec<_> = all(&mut buffer).iter().map(|of| of.epoch).collect();
        assert_eq!(order, [1, 1, 2], "no epoch comes back");
        assert_eq!(buffer.dropped(), 5);
        assert!(buffer.latest.is_empty());
    }

    #[test]
    fn latest_holds_nothing_of_what_was_read_beside_an_event() {
        let mut buffer = Buffer::new(10, 10_000, SlowPolicy::Latest);
        let read = Bytes::from(vec![7; 256 * 1024]);
        for number in 1..=2 {
            let content = Content::Event {
                number,
                metadata: Default::default(),
                body: read.slice(100..1500),
            };
            buffer.push(Arrived {
                content,
                ..event("a", number)
            });
            assert!(read.is_unique());
        }
        let kept = all(&mut buffer);
        assert!(
            matches!(&kept[..], [Arrived { content: Content::Event { body, .. }, .. }] if body[..] == read[100..1500])
        );
    }

    #[test]
    fn latest_replaces_nothing_from_before_a_subscription_was_taken_back() {
        let mut buffer = Buffer::new(10, 1000, SlowPolicy::Latest);
        buffer.push(event("a", 1));
        let content = Content::TakenBack {
            order: 1,
            is_asked: true,
        };
        buffer.push(Arrived {
            content,
            ..event("a", 0)
        });
        buffer.push(event("a", 7));
        buffer.push(event("a", 8));
        assert_eq!(numbers(&mut buffer), [1, 8]);
    }

    #[test]
    fn what_has_no_room_can_wait_unless_it_never_has_any() {
        let mut buffer = Buffer::new(2, 30, SlowPolicy::Report);
        assert!(buffer.has_room(&event("a", 1)));
        (1..=2).for_each(|number| buffer.push(event("a", number)));
        assert!(!buffer.has_room(&event("a", 3)));
        assert!(!buffer.is_half_empty());
        let large = Arrived {
            content: Content::Event {
                number: 3,
                metadata: Default::default(),
                body: Bytes::from_static(&[0; 30]),
            },
            ..event("a", 3)
        };
        assert!(buffer.has_room(&large), "waiting would not help");
        buffer.push(large);
        assert_eq!((numbers(&mut buffer), buffer.dropped()), (vec![1, 2], 1));
        assert!(buffer.is_half_empty());
    }

    #[test]
    fn a_full_buffer_drops_what_is_new_and_counts_it() {
        let mut buffer = Buffer::new(2, 1000, SlowPolicy::Report);
        (1..=5).for_each(|number| buffer.push(event("a", number)));
        assert_eq!(numbers(&mut buffer), [1, 2]);
        assert_eq!(buffer.dropped(), 3);
        buffer.push(event("a", 6));
        assert_eq!(numbers(&mut buffer), [6]);
    }

    #[test]
    fn bytes_count_as_well_to_the_last() {
        let mut buffer = Buffer::new(100, 20, SlowPolicy::Report);
        (1..=3).for_each(|number| buffer.push(event("a", number)));
        assert_eq!(numbers(&mut buffer), [1, 2]);
    }

    #[test]
    fn latest_keeps_one_event_of_each_topic() {
        let mut buffer = Buffer::new(2, 1000, SlowPolicy::Latest);
        for number in 1..=3 {
            buffer.push(event("a", number));
            buffer.push(event("b", 10 + number));
            buffer.push(event("c", 20 + number));
        }
        assert_eq!(numbers(&mut buffer), [3, 13]);
        assert_eq!(buffer.dropped(), 7);
    }

    #[test]
    fn disconnect_ends_at_the_first_event_too_many() {
        let mut buffer = Buffer::new(2, 1000, SlowPolicy::Disconnect);
        (1..=3).for_each(|number| buffer.push(event("a", number)));
        assert!(buffer.is_overflowed());
        assert_eq!(numbers(&mut buffer), [1, 2]);
        buffer.push(event("a", 4));
        assert_eq!(numbers(&mut buffer), Vec::<u64>::new());
    }

    #[test]
    fn a_tail_gets_through_a_full_buffer() {
        let mut buffer = Buffer::new(1, 1000, SlowPolicy::Report);
        buffer.push(event("a", 1));
        buffer.push(Arrived {
            content: Content::Tail { last: 7 },
            ..event("a", 0)
        });
        let all = all(&mut buffer);
        assert!(matches!(all[1].content, Content::Tail { last: 7 }));
    }

    #[test]
    fn notices_have_as_many_bytes_as_events_and_no_more() {
        let tail = |topic: &'static str| Arrived {
            content: Content::Tail { last: 7 },
            ..event(topic, 0)
        };
        let mut buffer = Buffer::new(10, 2 * (NOTICE_BYTES + 1), SlowPolicy::Report);
        for topic in ["a", "b", "c"] {
            buffer.push(tail(topic));
        }
        buffer.push(event("d", 1));
        assert_eq!(buffer.order.len(), 3);
        all(&mut buffer);
        assert_eq!((buffer.bytes, buffer.notices_bytes), (0, 0));
        buffer.push(Arrived {
            content: Content::Confirmed {
                tails: vec![(Bytes::from_static(b"e"), 1)],
                order: 1,
            },
            ..event("", 0)
        });
        buffer.push(tail("f"));
        assert_eq!(
            buffer.order.len(),
            1,
            "the confirmation and its tail took all"
        );
    }
}
