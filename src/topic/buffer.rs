//! What waits for a subscriber: bounded by count and bytes, with a policy for when it is full.
//! A state machine: no socket, no task.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

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
    /// The publisher has the subscription to `topic`, a prefix here.
    Confirmed {
        tails: Vec<(Bytes, u64)>,
    },
}

/// What a notice takes besides its topic: a tail, or one of those in a confirmation.
const NOTICE_BYTES: usize = 64;

#[derive(Debug)]
pub(super) struct Buffer {
    order: VecDeque<Slot>,
    /// With [`SlowPolicy::Latest`]: the one that waits of each topic.
    latest: HashMap<Bytes, Arrived>,
    events: usize,
    bytes: usize,
    /// Of tails and confirmations.
    notices_bytes: usize,
    events_max: usize,
    bytes_max: usize,
    policy: SlowPolicy,
    dropped: u64,
    overflowed: bool,
}

#[derive(Debug)]
enum Slot {
    Here(Arrived),
    Latest(Bytes),
}

impl Buffer {
    pub fn new(events_max: usize, bytes_max: usize, policy: SlowPolicy) -> Self {
        Self {
            order: VecDeque::new(),
            latest: HashMap::new(),
            events: 0,
            bytes: 0,
            notices_bytes: 0,
            events_max,
            bytes_max,
            policy,
            dropped: 0,
            overflowed: false,
        }
    }

    pub fn push(&mut self, arrived: Arrived) {
        if self.overflowed {
            return;
        }
        let bytes = match &arrived.content {
            Content::Event { body, .. } => body.len() + arrived.topic.len(),
            // Few and small, and what they say is not to be lost; unless the publisher means harm.
            Content::Tail { .. } | Content::Confirmed { .. } => {
                let bytes = bytes_of(&arrived);
                if self.notices_bytes + bytes <= self.bytes_max {
                    self.notices_bytes += bytes;
                    self.order.push_back(Slot::Here(arrived));
                }
                return;
            }
        };
        let replaced = match self.policy {
            SlowPolicy::Latest => self.latest.get(&arrived.topic).map(bytes_of),
            _ => None,
        };
        let events_left = self.events_max > self.events || replaced.is_some();
        if !events_left || self.bytes - replaced.unwrap_or(0) + bytes > self.bytes_max {
            self.dropped += 1;
            self.overflowed = self.policy == SlowPolicy::Disconnect;
            return;
        }
        self.bytes = self.bytes - replaced.unwrap_or(0) + bytes;
        match (self.policy, replaced) {
            (SlowPolicy::Latest, Some(_)) => {
                self.dropped += 1;
                self.latest.insert(arrived.topic.clone(), arrived);
            }
            (SlowPolicy::Latest, None) => {
                self.events += 1;
                self.order.push_back(Slot::Latest(arrived.topic.clone()));
                self.latest.insert(arrived.topic.clone(), arrived);
            }
            _ => {
                self.events += 1;
                self.order.push_back(Slot::Here(arrived));
            }
        }
    }

    pub fn pop(&mut self) -> Option<Arrived> {
        loop {
            let arrived = match self.order.pop_front()? {
                Slot::Here(arrived) => arrived,
                Slot::Latest(topic) => match self.latest.remove(&topic) {
                    Some(arrived) => arrived,
                    None => continue,
                },
            };
            match arrived.content {
                Content::Event { .. } => {
                    self.events -= 1;
                    self.bytes -= bytes_of(&arrived);
                }
                _ => self.notices_bytes -= bytes_of(&arrived),
            }
            return Some(arrived);
        }
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

fn bytes_of(arrived: &Arrived) -> usize {
    match &arrived.content {
        Content::Event { body, .. } => body.len() + arrived.topic.len(),
        Content::Tail { .. } => NOTICE_BYTES + arrived.topic.len(),
        Content::Confirmed { tails } => {
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

    fn numbers(buffer: &mut Buffer) -> Vec<u64> {
        std::iter::from_fn(|| buffer.pop())
            .filter_map(|arrived| match arrived.content {
                Content::Event { number, .. } => Some(number),
                _ => None,
            })
            .collect()
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
        buffer.pop();
        assert!(matches!(
            buffer.pop().map(|a| a.content),
            Some(Content::Tail { last: 7 })
        ));
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
        while buffer.pop().is_some() {}
        assert_eq!((buffer.bytes, buffer.notices_bytes), (0, 0));
        buffer.push(Arrived {
            content: Content::Confirmed {
                tails: vec![(Bytes::from_static(b"e"), 1)],
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
