//! Which events leave alone and which together: a state machine, without clock, socket or task.
//!
//! An event that is the first since the driver's last turn leaves at once, from its publisher's task:
//! one that is alone does not wait. Those of the same topic after it wait for the driver's next turn
//! and leave in one message; where several left together the last time, the first waits for the others too. Only small events do; the others, and all that is no event, leave by
//! themselves, once those that wait have left.

use bytes::Bytes;

use crate::wire::{EventPacker, is_packable};

/// How often the driver lets others go first.
const LOOKS_MAX: u32 = 3;

#[derive(Debug)]
pub(super) struct Departures {
    /// Largest message that is made of several events; 0 where none may share one.
    bytes_max: usize,
    /// An event has left since the driver's last turn.
    has_left: bool,
    /// Several have left together in the driver's last turn.
    gathers: bool,
    /// How many waited when the driver looked last, and how often it has looked since its last turn.
    seen: usize,
    looks: u32,
    waiting: EventPacker,
    /// What the socket had no room for. Nothing waits behind it.
    unsent: Option<Bytes>,
}

/// How an event leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By itself, in the classic form.
    Classic,
    /// At once, with what [`take`](Departures::take) gives. The driver has to be woken for those after it.
    AtOnce,
    /// It waits for the driver's next turn.
    Waits,
    /// The same, and the driver has to be woken.
    WaitsFirst,
    /// Those that wait must leave before it can.
    NoRoom,
}

impl Departures {
    /// Events share messages of at most so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            has_left: false,
            gathers: false,
            seen: 0,
            looks: 0,
            waiting: EventPacker::default(),
            unsent: None,
        }
    }

    /// Whether an event may share a message with others.
    pub fn may_share(&self, topic: &[u8], header: &[u8], body: &[u8]) -> bool {
        self.bytes_max > 0 && is_packable(topic, header, body)
    }

    /// An event is there. One that leaves at once or waits has been taken.
    pub fn way(&mut self, topic: &Bytes, header: &[u8], body: &[u8]) -> Way {
        if !self.may_share(topic, header, body) {
            return match self.is_empty() {
                true => Way::Classic,
                false => Way::NoRoom,
            };
        }
        let bytes = header.len() + body.len();
        if self.unsent.is_some() || !self.waiting.has_room(topic, bytes, self.bytes_max) {
            return Way::NoRoom;
        }
        let is_alone = self.waiting.is_empty();
        self.waiting.push(topic, header, body);
        match (is_alone, self.gathers) {
            (true, true) => Way::WaitsFirst,
            (true, false) if !self.has_left => {
                self.has_left = true;
                Way::AtOnce
            }
            _ => Way::Waits,
        }
    }

    /// Whether nothing is to leave.
    pub fn is_empty(&self) -> bool {
        self.unsent.is_none() && self.waiting.is_empty()
    }

    /// The driver has its turn: the next event is the first again.
    pub fn turn(&mut self) {
        self.gathers = self.waiting.len() > 1;
        self.has_left = false;
        (self.seen, self.looks) = (0, 0);
    }

    /// Whether the driver should look again before its turn: several wait, and more of them than when it looked last.
    pub fn is_early(&mut self) -> bool {
        let waiting = self.waiting.len();
        let is_early =
            self.unsent.is_none() && waiting > 1 && waiting > self.seen && self.looks < LOOKS_MAX;
        if is_early {
            self.seen = waiting;
            self.looks += 1;
        }
        is_early
    }

    /// What is to leave now; it has left, or is [put back](Self::put_back).
    pub fn take(&mut self) -> Option<Bytes> {
        self.unsent.take().or_else(|| self.waiting.take())
    }

    /// The socket has no room for it.
    pub fn put_back(&mut self, message: Bytes) {
        self.unsent = Some(message);
    }

    /// The publisher is closing: from now on every event leaves by itself, or hears that it cannot.
    pub fn stop(&mut self) {
        self.bytes_max = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::unpack_events;
    use proptest::prelude::*;

    const BYTES_MAX: usize = 160;

    /// A message of one segment, of so many words, the last of which says which event it is.
    fn framed(words: u32, number: u64) -> Vec<u8> {
        let table = u64::from(words) << 32;
        let mut bytes = [&table.to_le_bytes()[..], &vec![0; words as usize * 8 - 8]].concat();
        bytes.extend(number.to_le_bytes());
        bytes
    }

    #[derive(Clone, Debug)]
    enum Step {
        Event {
            topic: u8,
            words: u32,
            has_room: bool,
        },
        Turn {
            has_room: bool,
        },
        Stop,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..3u8, prop_oneof![9 => 1..6u32, 1 => Just(600)], prop::bool::weighted(0.8))
                .prop_map(|(topic, words, has_room)| Step::Event { topic, words, has_room }),
            3 => prop::bool::weighted(0.7).prop_map(|has_room| Step::Turn { has_room }),
            1 => Just(Step::Stop),
        ]
    }

    /// What a publisher and its driver do with it; `sent` is what the socket took, in order.
    struct Publisher {
        departures: Departures,
        sent: Vec<(u8, u64)>,
        messages: usize,
    }

    impl Publisher {
        fn flush(&mut self, has_room: bool) -> bool {
            while let Some(message) = self.departures.take() {
                if !has_room {
                    self.departures.put_back(message);
                    return false;
                }
                let (topic, events) = unpack_events(&message).unwrap();
                let before = self.sent.len();
                for event in events {
                    let (header, _) = event.unwrap();
                    let number = u64::from_le_bytes(header[8..].try_into().unwrap());
                    self.sent.push((topic[0], number));
                }
                assert!(message.len() <= BYTES_MAX || self.sent.len() == before + 1);
                self.messages += 1;
            }
            true
        }

        /// Whether the event was taken.
        fn publish(&mut self, topic: u8, number: u64, words: u32, has_room: bool) -> bool {
            let (header, body) = (framed(1, number), framed(words, 0));
            let name = Bytes::from(vec![topic]);
            let mut way = self.departures.way(&name, &header, &body);
            if way == Way::NoRoom && self.flush(has_room) {
                way = self.departures.way(&name, &header, &body);
                assert_ne!(way, Way::NoRoom, "all have left");
            }
            match way {
                Way::Classic if has_room => self.sent.push((topic, number)),
                Way::Classic | Way::NoRoom => return false,
                Way::Waits | Way::WaitsFirst => {}
                Way::AtOnce => {
                    self.flush(has_room);
                }
            }
            true
        }
    }

    proptest! {
        #[test]
        fn every_event_leaves_once_and_in_order(steps in prop::collection::vec(step(), 0..60)) {
            let mut publisher = Publisher {
                departures: Departures::new(BYTES_MAX),
                sent: Vec::new(),
                messages: 0,
            };
            let mut taken = Vec::new();
            for (number, step) in (0..).zip(steps) {
                match step {
                    Step::Event { topic, words, has_room } => {
                        if publisher.publish(topic, number, words, has_room) {
                            taken.push((topic, number));
                        }
                    }
                    Step::Turn { has_room } => {
                        publisher.departures.turn();
                        prop_assert!(publisher.flush(has_room) || !has_room);
                    }
                    Step::Stop => publisher.departures.stop(),
                }
                prop_assert!(taken.starts_with(&publisher.sent));
            }
            publisher.flush(true);
            prop_assert!(publisher.departures.is_empty());
            prop_assert_eq!(publisher.sent, taken);
        }
    }

    #[test]
    fn an_event_alone_leaves_at_once_and_those_after_it_together() {
        let mut publisher = Publisher {
            departures: Departures::new(BYTES_MAX),
            sent: Vec::new(),
            messages: 0,
        };
        let header = framed(1, 0);
        let topic = Bytes::from_static(b"a");
        assert_eq!(
            publisher.departures.way(&topic, &header, &header),
            Way::AtOnce
        );
        publisher.flush(true);
        for _ in 0..4 {
            assert_eq!(
                publisher.departures.way(&topic, &header, &header),
                Way::Waits
            );
        }
        publisher.departures.turn();
        publisher.flush(true);
        assert_eq!((publisher.messages, publisher.sent.len()), (2, 5));
        // Others may come after the next one too.
        for expected in [Way::WaitsFirst, Way::Waits, Way::Waits] {
            assert_eq!(publisher.departures.way(&topic, &header, &header), expected);
        }
        assert!(publisher.departures.is_early() && !publisher.departures.is_early());
        publisher.departures.turn();
        publisher.flush(true);
        assert_eq!(
            publisher.departures.way(&topic, &header, &header),
            Way::WaitsFirst
        );
        // It was alone.
        publisher.departures.turn();
        publisher.flush(true);
        assert_eq!(
            publisher.departures.way(&topic, &header, &header),
            Way::AtOnce
        );
    }
}
