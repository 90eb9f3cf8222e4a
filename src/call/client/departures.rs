//! Which requests leave alone and which together: a state machine, without clock, socket or task.
//!
//! A request that is the first since the driver's last turn leaves at once, from its caller's task:
//! a call that is alone waits for nobody. Those after it wait for the driver's next turn and leave
//! in one message. Where that turn has woken several callers, who may all call again, the first
//! waits as well: else it would split off a message of its own each time, and calls that came
//! together would not stay together. Only small requests wait, and only where the server has said
//! that it takes them.

use crate::wire::{Packed, Packer, is_compactable};

/// Those of one connection.
#[derive(Debug)]
pub(super) struct Departures {
    server: Server,
    /// Requests wait for company until the driver's next turn.
    gathers: bool,
    waiting: Packer,
    /// What the socket had no room for. Nothing waits behind it.
    unsent: Option<Packed>,
    /// The calls of what waits or is unsent.
    numbers: Vec<u64>,
}

/// What is known of the compact form on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    /// It has not said.
    Unknown,
    Takes,
    /// It has refused a message, or this client would not take its replies.
    Never,
}

/// How a request leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By itself, in the classic form.
    Classic,
    /// By itself, in the compact form.
    Alone,
    /// It waits for the driver's next turn, who has to be woken for the first.
    Waits { is_first: bool },
    /// Those that wait must leave before it can.
    NoRoom,
}

impl Departures {
    /// `takes_replies`: whether this side takes compact messages.
    pub fn new(takes_replies: bool) -> Self {
        Self {
            server: match takes_replies {
                true => Server::Unknown,
                false => Server::Never,
            },
            gathers: false,
            waiting: Packer::default(),
            unsent: None,
            numbers: Vec::new(),
        }
    }

    /// A request is there. One that waits has been taken.
    pub fn way(&mut self, number: u64, header: &[u8], body: &[u8]) -> Way {
        if self.server != Server::Takes || !is_compactable(header, body) {
            return Way::Classic;
        }
        if self.unsent.is_none() && self.waiting.is_empty() && !self.gathers {
            self.gathers = true;
            return Way::Alone;
        }
        if self.unsent.is_some() || !self.waiting.has_room(header.len() + body.len()) {
            return Way::NoRoom;
        }
        let is_first = self.waiting.is_empty();
        self.waiting.push(header, body);
        self.numbers.push(number);
        Way::Waits { is_first }
    }

    /// The driver has its turn, in which it ends so many calls: the next request is the first again.
    pub fn turn(&mut self, ended: usize) {
        self.gathers = ended > 1;
    }

    /// The driver has a turn because some wait. Where a turn before has sent them already, what that
    /// one said of the next request stays.
    pub fn woken(&mut self) {
        if self.unsent.is_some() || !self.waiting.is_empty() {
            self.turn(0);
        }
    }

    /// What is to leave now. Then it [has left](Self::left), is [put back](Self::put_back), or
    /// [given up](Self::give_up).
    pub fn take(&mut self) -> Option<Packed> {
        self.unsent.take().or_else(|| self.waiting.take())
    }

    pub fn left(&mut self) {
        self.numbers.clear();
    }

    pub fn put_back(&mut self, packed: Packed) {
        self.unsent = Some(packed);
    }

    /// The calls that have not left and will not.
    pub fn give_up(&mut self) -> std::vec::Drain<'_, u64> {
        self.take();
        self.numbers.drain(..)
    }

    /// The server says that it takes the compact form.
    pub fn server_takes(&mut self) {
        if self.server == Server::Unknown {
            self.server = Server::Takes;
        }
    }

    /// It has refused a message, or the client is closing: no more of them.
    pub fn stop(&mut self) {
        self.server = Server::Never;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::unpack;
    use proptest::prelude::*;

    /// A message of one segment, of so many words.
    fn framed(words: u32) -> Vec<u8> {
        let table = u64::from(words) << 32;
        [&table.to_le_bytes()[..], &vec![0; words as usize * 8]].concat()
    }

    /// A header that says which call it is.
    fn header(number: u64) -> Vec<u8> {
        [(1u64 << 32).to_le_bytes(), number.to_le_bytes()].concat()
    }

    fn numbers(packed: &Packed) -> Vec<u64> {
        let read = |header: &[u8]| u64::from_le_bytes(header[8..].try_into().unwrap());
        unpack(&packed.bytes)
            .map(|call| read(call.unwrap().0))
            .collect()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Request {
            words: u32,
        },
        /// The driver's turn, with how many calls it has ended if replies were what it is for, and
        /// whether the socket has room.
        Turn {
            ended: Option<usize>,
            has_room: bool,
        },
        Lost,
        Announced,
        Refused,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0..600u32).prop_map(|words| Step::Request { words }),
            20 => (0..8u32).prop_map(|words| Step::Request { words }),
            4 => (prop::option::of(0..4usize), any::<bool>()).prop_map(|(ended, has_room)| Step::Turn { ended, has_room }),
            1 => Just(Step::Lost),
            2 => Just(Step::Announced),
            1 => Just(Step::Refused),
        ]
    }

    proptest! {
        #[test]
        fn every_request_leaves_once_or_is_given_up_and_none_waits_longer_than_a_turn(
            steps in prop::collection::vec(step(), 1..400),
        ) {
            let mut departures = Departures::new(true);
            let mut next = 0;
            // What a list would say: those that wait, and whether the next waits as well.
            let (mut waits, mut gathers, mut is_blocked) = (Vec::new(), false, false);
            let (mut takes, mut refused) = (false, false);
            for step in steps {
                match step {
                    Step::Request { words } => {
                        next += 1;
                        let body = framed(words);
                        let way = departures.way(next, &header(next), &body);
                        match way {
                            Way::Classic => prop_assert!(!takes || 16 + body.len() > 4096),
                            Way::Alone => {
                                prop_assert!(waits.is_empty() && !gathers);
                                gathers = true;
                            }
                            Way::Waits { is_first } => {
                                prop_assert_eq!(is_first, waits.is_empty());
                                prop_assert!(!is_blocked && (gathers || !is_first));
                                waits.push(next);
                            }
                            Way::NoRoom => prop_assert!(!waits.is_empty()),
                        }
                    }
                    Step::Turn { ended, has_room } => {
                        match ended {
                            Some(ended) => {
                                departures.turn(ended);
                                gathers = ended > 1;
                            }
                            None => {
                                departures.woken();
                                gathers &= waits.is_empty();
                            }
                        }
                        let packed = departures.take();
                        prop_assert_eq!(packed.as_ref().map(numbers).unwrap_or_default(), &waits[..]);
                        match packed {
                            Some(packed) if !has_room => {
                                departures.put_back(packed);
                                is_blocked = true;
                            }
                            _ => {
                                departures.left();
                                waits.clear();
                                is_blocked = false;
                            }
                        }
                    }
                    Step::Lost => {
                        let given_up: Vec<u64> = departures.give_up().collect();
                        prop_assert_eq!(&given_up, &waits);
                        waits.clear();
                        departures = Departures::new(true);
                        (gathers, is_blocked, takes, refused) = (false, false, false, false);
                    }
                    Step::Announced => {
                        departures.server_takes();
                        takes = !refused;
                    }
                    Step::Refused => {
                        departures.stop();
                        (takes, refused) = (false, true);
                    }
                }
            }
        }
    }

    #[test]
    fn calls_that_were_answered_together_leave_together_again() {
        let mut departures = Departures::new(true);
        departures.server_takes();
        for (ended, first) in [
            (2, Way::Waits { is_first: true }),
            (1, Way::Alone),
            (0, Way::Alone),
        ] {
            departures.turn(ended);
            assert_eq!(departures.way(1, &header(1), &framed(0)), first);
            let second = Way::Waits {
                is_first: first == Way::Alone,
            };
            assert_eq!(departures.way(2, &header(2), &framed(0)), second);
            departures.take();
            departures.left();
        }
    }

    #[test]
    fn a_client_that_takes_no_compact_replies_sends_no_compact_requests() {
        let mut departures = Departures::new(false);
        departures.server_takes();
        assert_eq!(departures.way(1, &header(1), &framed(0)), Way::Classic);
    }
}
