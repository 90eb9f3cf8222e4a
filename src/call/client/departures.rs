//! Which requests leave alone and which together: a state machine, without clock, socket or task.
//!
//! A request that is the first since the driver's last turn leaves at once, from its caller's task:
//! a call that is alone waits for nobody. Those after it wait for the driver's next turn and leave
//! in one message. Where that turn has woken several callers, who may all call again, the first
//! waits as well: else it would split off a message of its own each time, and calls that came
//! together would not stay together. The driver may have its next turn before all of them had theirs
//! (a set of local tasks lets others go first after each 61): then it lets them, a few times at most.
//! Where few calls end while many others wait, these wait once for the few. Only small requests wait,
//! and only where the server has said that it takes them.

use crate::wire::{Packed, Packer, is_compactable};

/// How often others have their turns before those that wait leave, while more come.
const LOOKS_MAX: u32 = 3;
/// Those that wait are held back for others where these are at most one for so many of them.
const FEW: usize = 4;

/// Those of one connection.
#[derive(Debug)]
pub(super) struct Departures {
    server: Server,
    /// Requests wait for company until the driver's next turn.
    gathers: bool,
    /// As many as may wait soon: callers that the last turn woke may call again.
    expected: usize,
    /// As many as waited when the driver last looked, and how often it has.
    seen: usize,
    looks: u32,
    /// What waits has been held back once for a few more.
    has_held: bool,
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
            expected: 0,
            seen: 0,
            looks: 0,
            has_held: false,
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
    /// Whether those that wait should wait for the few that may join them, until the driver is woken.
    pub fn turn(&mut self, ended: usize) -> bool {
        let waiting = self.waiting.calls();
        let holds = !self.has_held && self.unsent.is_none() && (1..=waiting / FEW).contains(&ended);
        if holds {
            self.has_held = true;
            self.expect(waiting + ended);
        } else {
            self.gathers = ended > 1;
            self.expect(ended);
        }
        holds
    }

    /// The driver is about to have a turn because some wait. Whether it should let others have theirs
    /// first: more come, or may come of those that it woke.
    pub fn is_early(&mut self) -> bool {
        let waiting = self.waiting.calls();
        let all_are_there = self.expected > 0 && waiting >= self.expected;
        let is_early = self.unsent.is_none()
            && !all_are_there
            && waiting > self.seen
            && self.looks < LOOKS_MAX;
        if is_early {
            self.seen = waiting;
            self.looks += 1;
        }
        is_early
    }

    fn expect(&mut self, calls: usize) {
        self.expected = calls;
        self.seen = 0;
        self.looks = 0;
    }

    /// The driver has a turn because some wait. Where a turn before has sent them already, what that
    /// one said of the next request stays.
    pub fn woken(&mut self) {
        if self.unsent.is_some() || !self.waiting.is_empty() {
            self.gathers = false;
            self.expect(0);
        }
    }

    /// What is to leave now. Then it [has left](Self::left), is [put back](Self::put_back), or
    /// [given up](Self::give_up).
    pub fn take(&mut self) -> Option<Packed> {
        self.unsent.take().or_else(|| self.waiting.take())
    }

    pub fn left(&mut self) {
        self.numbers.clear();
        self.has_held = false;
    }

    pub fn put_back(&mut self, packed: Packed) {
        self.unsent = Some(packed);
    }

    /// The calls that have not left and will not.
    pub fn give_up(&mut self) -> std::vec::Drain<'_, u64> {
        self.has_held = false;
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
        fn every_request_leaves_once_or_is_given_up_and_waits_no_longer_than_it_may(
            steps in prop::collection::vec(step(), 1..400),
        ) {
            let mut departures = Departures::new(true);
            let mut next = 0;
            // What a list would say: those that wait, and whether the next waits as well.
            let (mut waits, mut gathers, mut is_blocked) = (Vec::new(), false, false);
            let (mut takes, mut refused) = (false, false);
            // How many may come soon, how many had when the driver last looked, how often it has, and
            // whether it has held some back.
            let (mut may_come, mut had_come, mut looked, mut has_held) = (0, 0, 0, false);
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
                                let are_few = ended > 0 && ended * FEW <= waits.len();
                                let holds = are_few && !is_blocked && !has_held;
                                prop_assert_eq!(departures.turn(ended), holds);
                                (may_come, had_come, looked) = (ended, 0, 0);
                                if holds {
                                    has_held = true;
                                    may_come += waits.len();
                                    continue;
                                }
                                gathers = ended > 1;
                            }
                            None => {
                                let all_have_come = may_come > 0 && waits.len() >= may_come;
                                let is_early = !(is_blocked || all_have_come)
                                    && waits.len() > had_come
                                    && looked < LOOKS_MAX;
                                prop_assert_eq!(departures.is_early(), is_early);
                                if is_early {
                                    (had_come, looked) = (waits.len(), looked + 1);
                                    continue;
                                }
                                departures.woken();
                                if !waits.is_empty() {
                                    gathers = false;
                                    (may_come, had_come, looked) = (0, 0, 0);
                                }
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
                                (is_blocked, has_held) = (false, false);
                            }
                        }
                    }
                    Step::Lost => {
                        let given_up: Vec<u64> = departures.give_up().collect();
                        prop_assert_eq!(&given_up, &waits);
                        waits.clear();
                        departures = Departures::new(true);
                        (gathers, is_blocked, takes, refused) = (false, false, false, false);
                        (may_come, had_come, looked, has_held) = (0, 0, 0, false);
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

    /// Those that wait, once so many have come.
    fn waiting(requests: u64) -> Departures {
        let mut departures = Departures::new(true);
        departures.server_takes();
        departures.turn(requests as usize);
        for number in 0..requests {
            departures.way(number, &header(number), &framed(0));
        }
        departures
    }

    #[test]
    fn others_have_their_turns_first_while_more_come_of_those_that_were_woken() {
        let mut departures = waiting(4);
        assert!(!departures.is_early(), "all have come");
        departures.turn(8);
        assert!(departures.is_early(), "four more may come");
        departures.way(5, &header(5), &framed(0));
        assert!(departures.is_early(), "one has");
        assert!(!departures.is_early(), "no others have");
        for more in 0..=u64::from(LOOKS_MAX) {
            departures.way(more, &header(more), &framed(0));
            assert_eq!(departures.is_early(), more + 2 < LOOKS_MAX.into());
        }
    }

    #[test]
    fn many_that_wait_are_held_once_for_few_that_end() {
        let mut departures = waiting(8);
        assert!(
            !departures.turn(3),
            "as many would be a message of their own"
        );
        assert!(departures.turn(2));
        assert!(!departures.turn(2), "once");
        departures.take();
        departures.left();
        assert!(!departures.turn(0) && !departures.turn(1), "none wait");
    }

    #[test]
    fn a_client_that_takes_no_compact_replies_sends_no_compact_requests() {
        let mut departures = Departures::new(false);
        departures.server_takes();
        assert_eq!(departures.way(1, &header(1), &framed(0)), Way::Classic);
    }
}
