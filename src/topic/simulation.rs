//! A publisher, a subscriber and the network between them as one seeded history, without sockets or clock: many topics,
//! restarts, lost connections, a slow reader with each policy, subscriptions that come and go at any moment. What is
//! delivered and what is reported missed must be together what was published while it was subscribed to, and nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

use super::buffer::{Arrived, Buffer, Content, SlowPolicy};
use super::confirmations::Confirmations;
use super::names::is_confirmation;
use super::sequence::{Incoming, Outgoing};
use super::subscriptions::{Say, Subscriptions};

/// The faults that a history must show, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    None,
    /// An answer has all topics in one message, which may be larger than a message may be.
    WholeAnswer,
    /// A part of an answer that has no room is dropped, and the subscriber does not count them.
    AnswerLost,
    /// The latest event takes the place of one of another epoch.
    ReplacesOverEpochs,
    /// A subscription that is taken back is forgotten before what came before it is taken.
    ForgetsAtOnce,
    /// A question reaches the publisher before the subscription that it is about.
    QuestionFirst,
}

const TOPICS: usize = 40;
/// Topics of one part of an answer; a message with more than `ANSWER_MAX` breaks the connection.
const PART: usize = 6;
const ANSWER_MAX: usize = 12;
/// Messages on their way to the subscriber; events past them are dropped.
const WAY_MAX: usize = 12;
const QUIET: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
enum Message {
    Event {
        topic: Bytes,
        number: u64,
    },
    Tail {
        topic: Bytes,
        last: u64,
    },
    Tails {
        question: Bytes,
        part: u64,
        tails: Vec<(Bytes, u64)>,
    },
    Confirmed {
        question: Bytes,
        parts: u64,
        tails: Vec<(Bytes, u64)>,
    },
    Refused {
        question: Bytes,
    },
}

struct Published {
    /// Whether it was subscribed to.
    wanted: bool,
    /// The confirmed subscriptions that it was published under, but those that were taken back since: of those nothing has
    /// to be told any more.
    promised: BTreeSet<Bytes>,
}

struct World {
    random: Rng,
    mutant: Mutant,
    now: Duration,
    // The publisher.
    epoch: u64,
    outgoing: Outgoing<Duration>,
    confirmations: Confirmations,
    prefixes: Vec<Bytes>,
    // The network.
    connection: u64,
    is_connected: bool,
    up: VecDeque<Say>,
    down: VecDeque<(u64, Message)>,
    // The subscriber.
    subscriptions: Subscriptions<(), Duration>,
    transport: Vec<Bytes>,
    buffer: Buffer,
    held: VecDeque<Arrived>,
    drops: bool,
    incoming: Incoming,
    nonce: u128,
    // What is true.
    wanted: BTreeSet<Bytes>,
    confirmed: BTreeSet<Bytes>,
    /// By epoch and topic: each number.
    published: BTreeMap<(u64, Bytes), Vec<Published>>,
    delivered: BTreeMap<(u64, Bytes), BTreeSet<u64>>,
    reported: BTreeMap<(u64, Bytes), BTreeSet<u64>>,
    seen_epoch: u64,
    /// Where the last history of this world went wrong.
    wrong: Option<String>,
}

fn topic(number: usize) -> Bytes {
    Bytes::from(format!("t/{}{}", ["a", "b"][number % 2], number / 2))
}

fn prefix(number: usize) -> Bytes {
    Bytes::from_static([&b"t/"[..], b"t/a", b"t/b", b"t/a1", b"t/b2"][number])
}

impl World {
    fn new(seed: u64, mutant: Mutant) -> Self {
        let mut random = Rng::with_seed(seed);
        let policy = [SlowPolicy::Report, SlowPolicy::Latest][random.usize(0..2)];
        let mut buffer = Buffer::new(random.usize(1..20), 10_000, policy);
        buffer.replaces_over_epochs = mutant == Mutant::ReplacesOverEpochs;
        Self {
            random,
            mutant,
            now: Duration::ZERO,
            epoch: 1,
            outgoing: Outgoing::new(1000, 100_000, QUIET),
            confirmations: Confirmations::default(),
            prefixes: Vec::new(),
            connection: 1,
            is_connected: true,
            up: VecDeque::new(),
            down: VecDeque::new(),
            subscriptions: Subscriptions::new(100, 100),
            transport: Vec::new(),
            buffer,
            held: VecDeque::new(),
            drops: false,
            incoming: Incoming::new(10_000, 1_000_000),
            nonce: 0,
            wanted: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            published: BTreeMap::new(),
            delivered: BTreeMap::new(),
            reported: BTreeMap::new(),
            seen_epoch: 0,
            wrong: None,
        }
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }

    // ---- the publisher ----

    fn publish(&mut self, topic: &Bytes) {
        let next = self.outgoing.next(topic).unwrap();
        let number = next.number;
        self.outgoing.sent(self.now, next);
        let covers = |prefix: &&Bytes| topic.starts_with(prefix);
        let published = Published {
            wanted: self.wanted.iter().any(|prefix| covers(&prefix)),
            promised: self.confirmed.iter().filter(covers).cloned().collect(),
        };
        let of = (self.epoch, topic.clone());
        self.published.entry(of).or_default().push(published);
        let topic = topic.clone();
        self.send(Message::Event { topic, number });
    }

    /// Sends what goes by a topic to the subscriber, if it is subscribed to and has room.
    fn send(&mut self, message: Message) {
        let topic = match &message {
            Message::Event { topic, .. } | Message::Tail { topic, .. } => topic,
            _ => return,
        };
        let is_subscribed = self.prefixes.iter().any(|prefix| topic.starts_with(prefix));
        if self.is_connected && is_subscribed && self.down.len() < WAY_MAX {
            self.down.push_back((self.epoch, message));
        }
    }

    fn hear(&mut self) {
        match self.up.pop_front() {
            Some(Say::Subscribe(prefix)) => match is_confirmation(&prefix) {
                Some(_) => self.confirmations.ask(1, prefix),
                None => self.prefixes.push(prefix),
            },
            Some(Say::Unsubscribe(prefix)) => match is_confirmation(&prefix) {
                Some(_) => self.confirmations.cancel(1, &prefix),
                None => self.prefixes.retain(|of| *of != prefix),
            },
            None => {}
        }
    }

    fn answer(&mut self) {
        let Some(mut asked) = self.confirmations.next() else {
            return;
        };
        let question = asked.topic.clone();
        let (_, prefix) = is_confirmation(&question).unwrap();
        if !self.prefixes.iter().any(|of| prefix.starts_with(of)) {
            if self.down.len() < WAY_MAX {
                return self
                    .down
                    .push_back((self.epoch, Message::Refused { question }));
            }
            return self.confirmations.later(asked);
        }
        let (topics, bytes) = match self.mutant {
            Mutant::WholeAnswer => (usize::MAX, usize::MAX),
            _ => (PART * 2, PART * 6),
        };
        let tails = self.outgoing.tails(prefix, asked.from, topics, bytes, 0);
        let has_room = self.down.len() < WAY_MAX;
        if !has_room && self.mutant != Mutant::AnswerLost {
            return self.confirmations.later(asked);
        }
        if tails.tails.len() > ANSWER_MAX {
            return self.cut();
        }
        let (part, rest) = (asked.parts, tails.rest);
        let is_sent = rest.is_none() || !tails.tails.is_empty();
        if is_sent {
            asked.parts += 1;
        }
        let tails = tails.tails;
        let message = match rest {
            Some(_) => Message::Tails {
                question,
                part,
                tails,
            },
            None => Message::Confirmed {
                question,
                parts: part,
                tails,
            },
        };
        if is_sent && has_room {
            self.down.push_back((self.epoch, message));
        }
        if let Some(from) = rest {
            asked.from = from;
            self.confirmations.later(asked);
        }
    }

    fn announce(&mut self) {
        for (topic, last) in self.outgoing.due(self.now, 7).0 {
            self.send(Message::Tail { topic, last });
        }
    }

    fn restart(&mut self) {
        self.cut();
        self.epoch += 1;
        self.outgoing = Outgoing::new(1000, 100_000, QUIET);
    }

    // ---- the network ----

    fn cut(&mut self) {
        self.is_connected = false;
        self.up.clear();
        self.down.clear();
        self.prefixes.clear();
        self.confirmations.clear();
    }

    fn connect(&mut self) {
        if self.is_connected {
            return;
        }
        self.is_connected = true;
        self.connection += 1;
        // The transport begins with all that it was told.
        self.up = self.transport.iter().cloned().map(Say::Subscribe).collect();
        let says = self.subscriptions.connected();
        self.say(says);
        self.ask();
    }

    // ---- the subscriber ----

    fn say(&mut self, mut says: Vec<Say>) {
        if self.mutant == Mutant::QuestionFirst {
            says.reverse();
        }
        for say in says {
            match &say {
                Say::Subscribe(prefix) => self.transport.push(prefix.clone()),
                Say::Unsubscribe(prefix) => self.transport.retain(|of| of != prefix),
            }
            if self.is_connected {
                self.up.push_back(say);
            }
        }
    }

    fn ask(&mut self) {
        let nonce = &mut self.nonce;
        let says = self.subscriptions.ask(self.now, || {
            *nonce += 1;
            *nonce
        });
        self.say(says);
    }

    fn subscribe(&mut self, prefix: Bytes) {
        self.wanted.insert(prefix.clone());
        let first = self
            .subscriptions
            .subscribe(prefix, Some(()), |()| true)
            .unwrap();
        let nonce = &mut self.nonce;
        let asked = self.subscriptions.ask(self.now, || {
            *nonce += 1;
            *nonce
        });
        self.say(first.into_iter().chain(asked).collect());
    }

    fn unsubscribe(&mut self, prefix: &Bytes) {
        self.wanted.remove(prefix);
        self.confirmed.remove(prefix);
        for published in self.published.values_mut().flatten() {
            published.promised.remove(prefix);
        }
        let Some((says, taken_back)) = self.subscriptions.unsubscribe(prefix) else {
            return;
        };
        if self.mutant == Mutant::ForgetsAtOnce {
            self.incoming.taken_back(prefix, 0, false);
        } else {
            // Behind what has arrived before.
            self.held.push_back(taken_back.into());
            self.put();
        }
        self.say(says);
    }

    /// What the driver does with the next message.
    fn receive(&mut self) {
        if !self.held.is_empty() {
            return; // it reads nothing
        }
        let Some((epoch, message)) = self.down.pop_front() else {
            return;
        };
        let (topic, content) = match message {
            Message::Event { topic, .. } | Message::Tail { topic, .. }
                if !self.subscriptions.wants(&topic) =>
            {
                return;
            }
            Message::Event { topic, number } => {
                let (metadata, body) = Default::default();
                (
                    topic,
                    Content::Event {
                        number,
                        metadata,
                        body,
                    },
                )
            }
            Message::Tail { topic, last } => (topic, Content::Tail { last }),
            Message::Tails {
                question,
                part,
                tails,
            } => {
                let (nonce, prefix) = is_confirmation(&question).unwrap();
                if !self.subscriptions.part(prefix, nonce, part)
                    && self.mutant != Mutant::AnswerLost
                {
                    return;
                }
                (question.slice_ref(prefix), Content::Tails { tails })
            }
            Message::Confirmed {
                question,
                parts,
                tails,
            } => {
                let (nonce, prefix) = is_confirmation(&question).unwrap();
                let parts = match self.mutant {
                    // It takes what came for all.
                    Mutant::AnswerLost => (0..1000)
                        .find(|parts| !self.subscriptions.part(prefix, nonce, *parts))
                        .map_or(parts, |_| parts),
                    _ => parts,
                };
                let (says, answered) = self.subscriptions.confirmed(prefix, nonce, parts);
                self.say(says);
                self.ask();
                let Some(answered) = answered else { return };
                let prefix = question.slice_ref(prefix);
                if self.wanted.contains(&prefix) {
                    self.confirmed.insert(prefix.clone());
                }
                let order = answered.order;
                (prefix, Content::Confirmed { tails, order })
            }
            Message::Refused { question } => {
                let (nonce, prefix) = is_confirmation(&question).unwrap();
                let refused = self.subscriptions.refused(prefix, nonce).is_some();
                return self.require(!refused, || "refused, though it may".to_owned());
            }
        };
        let connection = self.connection;
        let arrived = Arrived {
            topic,
            epoch,
            connection,
            content,
        };
        self.held.push_back(arrived);
        self.put();
    }

    fn put(&mut self) {
        self.drops &= !self.buffer.is_half_empty();
        while let Some(arrived) = self.held.pop_front() {
            let may_drop = matches!(
                arrived.content,
                Content::Event { .. } | Content::Tail { .. }
            );
            if self.drops && may_drop || self.buffer.has_room(&arrived) {
                self.buffer.push(arrived);
            } else {
                return self.held.push_front(arrived);
            }
        }
    }

    fn take(&mut self) {
        let mut taken = VecDeque::new();
        self.buffer.take(&mut taken);
        for arrived in taken {
            self.accept(arrived);
        }
        self.put();
    }

    fn accept(&mut self, arrived: Arrived) {
        let Arrived {
            topic,
            epoch,
            connection,
            content,
        } = arrived;
        if let Content::TakenBack { order, is_asked } = content {
            return self.incoming.taken_back(&topic, order, is_asked);
        }
        self.incoming.over(connection);
        let (restarted, missed) = match content {
            Content::Event { number, .. } => {
                let arrival = self.incoming.event(epoch, &topic, number);
                if arrival.is_new {
                    let is_first = self
                        .delivered
                        .entry((epoch, topic.clone()))
                        .or_default()
                        .insert(number);
                    self.require(is_first, || format!("{topic:?} {number} twice"));
                }
                let missed = arrival.missed.map(|range| (topic, range));
                (arrival.restarted, missed.into_iter().collect())
            }
            Content::Tail { last } => {
                let arrival = self.incoming.tail(epoch, &topic, last);
                let missed = arrival.missed.map(|range| (topic, range));
                (arrival.restarted, missed.into_iter().collect())
            }
            Content::Tails { tails } => self.incoming.part(epoch, &topic, tails),
            Content::Confirmed { tails, order } => {
                self.incoming.confirmed(epoch, &topic, order, tails)
            }
            Content::TakenBack { .. } => unreachable!("above"),
        };
        if let Some(epoch) = restarted {
            let seen = std::mem::replace(&mut self.seen_epoch, epoch);
            self.require(epoch > seen, || format!("epoch {epoch} after {seen}"));
        }
        for (topic, range) in missed {
            for number in range {
                let of = (epoch, topic.clone());
                let published = self
                    .published
                    .get(&of)
                    .and_then(|all| all.get(number as usize - 1));
                let was_wanted = published.is_some_and(|of| of.wanted);
                let is_first = self.reported.entry(of.clone()).or_default().insert(number);
                let delivered = self
                    .delivered
                    .get(&of)
                    .is_some_and(|all| all.contains(&number));
                self.require(was_wanted, || {
                    format!("{of:?} {number} was not subscribed to")
                });
                self.require(is_first && !delivered, || format!("{of:?} {number} twice"));
            }
        }
    }

    // ---- the history ----

    fn step(&mut self) {
        self.now += Duration::from_millis(self.random.u64(0..200));
        let prefix = prefix(self.random.usize(0..5));
        match self.random.u32(0..100) {
            0..30 => {
                let topic = topic(self.random.usize(0..TOPICS));
                self.publish(&topic);
            }
            30..45 => self.hear(),
            45..60 => self.receive(),
            60..70 => self.answer(),
            70..76 => self.announce(),
            76..86 => self.take(),
            86..88 => {
                self.drops = true;
                self.put();
            }
            88..92 => self.subscribe(prefix),
            92..95 => self.unsubscribe(&prefix),
            95..97 => self.connect(),
            97 => self.cut(),
            98 => self.ask_again(),
            _ if self.random.u32(0..3) == 0 => self.restart(),
            _ => {}
        }
    }

    fn ask_again(&mut self) {
        let nonce = &mut self.nonce;
        let says = self.subscriptions.ask_again(self.now, || {
            *nonce += 1;
            *nonce
        });
        self.say(says);
    }

    /// With the faults off, all is answered, announced and taken.
    fn settle(&mut self) {
        for _ in 0..600 {
            self.now += Duration::from_secs(1);
            self.connect();
            self.ask_again();
            for _ in 0..4 {
                self.hear();
                self.answer();
                self.announce();
                self.receive();
                self.receive();
                self.take();
            }
        }
        while !self.buffer.is_half_empty() || !self.held.is_empty() {
            self.take();
        }
        (0..30).for_each(|_| self.take());
        let unanswered = self.wanted.difference(&self.confirmed).count();
        let is_answered = unanswered == 0 && !self.subscriptions.is_asking();
        self.require(is_answered, || "not all is confirmed at the end".to_owned());
        for (of, all) in &self.published {
            let none = BTreeSet::new();
            let delivered = self.delivered.get(of).unwrap_or(&none);
            let reported = self.reported.get(of).unwrap_or(&none);
            // What a publisher lost at its very end can not be told after it began anew.
            let last = match of.0 == self.epoch {
                true => all.len() as u64,
                false => delivered.union(reported).copied().max().unwrap_or(0),
            };
            for (number, published) in (1..=last).zip(all) {
                let is_known = delivered.contains(&number) || reported.contains(&number);
                if !published.promised.is_empty() && !is_known && self.wrong.is_none() {
                    self.wrong = Some(format!("{of:?} {number} is neither delivered nor reported"));
                }
            }
        }
    }

    fn history(seed: u64, mutant: Mutant) -> Option<String> {
        let mut world = Self::new(seed, mutant);
        for _ in 0..600 {
            world.step();
            if world.wrong.is_some() {
                return world.wrong;
            }
        }
        world.settle();
        world.wrong
    }
}

/// As many as `BOWLINE_SIMULATION_SEEDS` says.
fn seeds() -> u64 {
    let seeds = std::env::var("BOWLINE_SIMULATION_SEEDS").ok();
    seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(300)
}

#[test]
fn delivered_and_reported_is_what_was_published_while_subscribed() {
    for seed in 0..seeds() {
        let wrong = World::history(seed, Mutant::None);
        assert_eq!(wrong, None, "seed {seed}");
    }
}

#[test]
fn each_mutant_is_caught() {
    for mutant in [
        Mutant::WholeAnswer,
        Mutant::AnswerLost,
        Mutant::ReplacesOverEpochs,
        Mutant::ForgetsAtOnce,
        Mutant::QuestionFirst,
    ] {
        let caught = (0..seeds()).find_map(|seed| World::history(seed, mutant));
        assert!(caught.is_some(), "{mutant:?}");
    }
}
