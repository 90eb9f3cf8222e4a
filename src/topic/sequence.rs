//! Numbers of events: given by a publisher, checked by a subscriber. State machines, without
//! clock, socket or task.
//!
//! Numbers count per full topic and publisher epoch, from 1. One count for a whole publisher
//! would tell a subscriber nothing, since it does not get all topics.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;

/// The publisher's side.
#[derive(Debug)]
pub(super) struct Outgoing<I> {
    /// By their names: where they are in `given`. A topic is never forgotten.
    topics: HashMap<Bytes, usize>,
    given: Vec<Given<I>>,
    topics_max: usize,
    /// A topic that is quiet for this long has its last number announced; then again, each time
    /// after twice as long, up to `ANNOUNCEMENT_MAX` times as long.
    quiet: Duration,
}

const ANNOUNCEMENT_MAX: u32 = 32;

#[derive(Debug)]
struct Given<I> {
    topic: Bytes,
    last: u64,
    announce_at: I,
    announcements: u32,
}

/// The event that a topic has next, if it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Next {
    pub topic: Bytes,
    pub number: u64,
    /// Where the topic is, unless this is its first.
    index: Option<usize>,
}

/// A publisher counts for no more topics than its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyTopics;

impl<I: Copy + Ord + std::ops::Add<Duration, Output = I>> Outgoing<I> {
    pub fn new(topics_max: usize, quiet: Duration) -> Self {
        Self {
            topics: HashMap::new(),
            given: Vec::new(),
            topics_max,
            quiet,
        }
    }

    /// What the next event of a topic would be.
    pub fn next(&self, topic: &[u8]) -> Result<Next, TooManyTopics> {
        match self.topics.get(topic) {
            Some(&index) => Ok(Next {
                topic: self.given[index].topic.clone(),
                number: self.given[index].last + 1,
                index: Some(index),
            }),
            None if self.topics.len() >= self.topics_max => Err(TooManyTopics),
            None => Ok(Next {
                topic: Bytes::copy_from_slice(topic),
                number: 1,
                index: None,
            }),
        }
    }

    /// That event was sent.
    pub fn sent(&mut self, now: I, next: Next) {
        let given = Given {
            topic: next.topic,
            last: next.number,
            announce_at: now + self.quiet,
            announcements: 1,
        };
        match next.index {
            Some(index) => self.given[index] = given,
            None => {
                self.topics.insert(given.topic.clone(), self.given.len());
                self.given.push(given);
            }
        }
    }

    /// The topics that begin with `prefix`, with their last numbers.
    pub fn tails(&self, prefix: &[u8]) -> Vec<(Bytes, u64)> {
        self.given
            .iter()
            .filter(|given| given.topic.starts_with(prefix))
            .map(|given| (given.topic.clone(), given.last))
            .collect()
    }

    /// The last numbers that should be announced now.
    pub fn due(&mut self, now: I) -> Vec<(Bytes, u64)> {
        let quiet = self.quiet;
        self.given
            .iter_mut()
            .filter(|given| given.announce_at <= now)
            .map(|given| {
                given.announcements = (given.announcements * 2).min(ANNOUNCEMENT_MAX);
                given.announce_at = now + quiet * given.announcements;
                (given.topic.clone(), given.last)
            })
            .collect()
    }
}

/// The subscriber's side.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    epoch: Option<u64>,
    connection: u64,
    /// Since the last epoch began there has been another connection: the next epoch may be an
    /// earlier one, of a publisher whose clock is behind, or was wrong before.
    may_go_back: bool,
    /// The number that is expected next.
    expected: HashMap<Bytes, u64>,
    /// Of the names in `expected`.
    expected_bytes: usize,
    /// Prefixes of which everything that is published is expected here.
    confirmed: HashSet<Bytes>,
    topics_max: usize,
    topic_bytes_max: usize,
}

/// What an arrival means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arrival {
    /// The publisher began anew, in this epoch.
    pub restarted: Option<u64>,
    /// Events that were lost before it.
    pub missed: Option<RangeInclusive<u64>>,
    /// Whether it is new, and not a repetition or of an epoch that is over.
    pub is_new: bool,
}

impl Incoming {
    pub fn new(topics_max: usize, topic_bytes_max: usize) -> Self {
        Self {
            topics_max,
            topic_bytes_max,
            ..Self::default()
        }
    }

    /// What comes next came over this connection.
    pub fn over(&mut self, connection: u64) {
        self.may_go_back |= connection != self.connection;
        self.connection = connection;
    }

    /// An event has come.
    pub fn event(&mut self, epoch: u64, topic: &Bytes, number: u64) -> Arrival {
        let Some(restarted) = self.enter(epoch) else {
            return Arrival::default();
        };
        if let Some(next) = self.expected.get_mut(topic) {
            // As nearly always: one look-up.
            let expected = *next;
            *next = expected.max(number.saturating_add(1));
            return Arrival {
                restarted,
                missed: (number > expected).then(|| expected..=number - 1),
                is_new: number >= expected,
            };
        }
        let expected = self.expected(topic).unwrap_or(number);
        if number >= expected {
            self.expect(topic, number.saturating_add(1));
        }
        Arrival {
            restarted,
            missed: (number > expected).then(|| expected..=number - 1),
            is_new: number >= expected,
        }
    }

    /// The last number of a topic is announced.
    pub fn tail(&mut self, epoch: u64, topic: &Bytes, last: u64) -> Arrival {
        let Some(restarted) = self.enter(epoch) else {
            return Arrival::default();
        };
        let next = last.saturating_add(1);
        let expected = self.expected(topic).unwrap_or(next);
        if next >= expected {
            self.expect(topic, next);
        }
        Arrival {
            restarted,
            missed: (next > expected).then_some(expected..=last),
            is_new: true,
        }
    }

    /// The publisher has the subscription to `prefix`; these are the last numbers of its topics.
    ///
    /// Returns the epoch if it is a new one, and what was missed while the subscription was
    /// interrupted.
    pub fn confirmed(
        &mut self,
        epoch: u64,
        prefix: &Bytes,
        tails: impl IntoIterator<Item = (Bytes, u64)>,
    ) -> (Option<u64>, Vec<(Bytes, RangeInclusive<u64>)>) {
        let Some(restarted) = self.enter(epoch) else {
            return (None, Vec::new());
        };
        let mut missed = Vec::new();
        for (topic, last) in tails {
            let arrival = self.tail(epoch, &topic, last);
            missed.extend(arrival.missed.map(|range| (topic, range)));
        }
        // After its tails: those are where a subscription begins, unless it was there before.
        self.confirmed.insert(prefix.clone());
        (restarted, missed)
    }

    pub fn forget(&mut self, prefix: &Bytes) {
        self.confirmed.remove(prefix);
        let confirmed = &self.confirmed;
        self.expected
            .retain(|topic, _| confirmed.iter().any(|prefix| topic.starts_with(prefix)));
        self.expected_bytes = self.expected.keys().map(Bytes::len).sum();
    }

    /// `None` for an epoch that is over; `Some(Some(_))` for one that begins.
    fn enter(&mut self, epoch: u64) -> Option<Option<u64>> {
        match self.epoch {
            Some(current) if epoch == current => Some(None),
            Some(current) if epoch < current && !self.may_go_back => None,
            before => {
                self.epoch = Some(epoch);
                self.may_go_back = false;
                self.forget_numbers();
                Some(before.map(|_| epoch))
            }
        }
    }

    /// The number that is next, if anything is known: a topic that was not among the tails of a
    /// confirmed subscription begins with 1.
    fn expected(&self, topic: &Bytes) -> Option<u64> {
        self.expected.get(topic).copied().or_else(|| {
            let is_confirmed = self
                .confirmed
                .iter()
                .any(|prefix| topic.starts_with(prefix));
            is_confirmed.then_some(1)
        })
    }

    fn expect(&mut self, topic: &Bytes, next: u64) {
        match self.expected.get_mut(topic) {
            Some(expected) => *expected = next,
            None => {
                let is_full = self.expected.len() >= self.topics_max
                    || self.expected_bytes + topic.len() > self.topic_bytes_max;
                if is_full {
                    // Better to know less than to report what was not missed.
                    self.forget_numbers();
                    self.confirmed.clear();
                }
                if topic.len() <= self.topic_bytes_max {
                    self.expected_bytes += topic.len();
                    // A copy of its own: what it came with is not to be kept for its sake.
                    let topic = Bytes::copy_from_slice(topic);
                    self.expected.insert(topic, next);
                }
            }
        }
    }

    fn forget_numbers(&mut self) {
        self.expected.clear();
        self.expected_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What one publisher does, and what the network does to it.
    #[derive(Clone, Debug)]
    enum Step {
        Publish {
            topic: u8,
            lost: bool,
        },
        Announce {
            topic: u8,
            lost: bool,
        },
        /// The connection breaks and comes back; these events go by in between.
        Reconnect {
            meanwhile: Vec<u8>,
        },
        Restart {
            before: Vec<u8>,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let topic = || 0..3u8;
        prop_oneof![
            8 => (topic(), any::<bool>()).prop_map(|(topic, lost)| Step::Publish { topic, lost }),
            2 => (topic(), any::<bool>()).prop_map(|(topic, lost)| Step::Announce { topic, lost }),
            1 => prop::collection::vec(topic(), 0..4).prop_map(|meanwhile| Step::Reconnect { meanwhile }),
            1 => prop::collection::vec(topic(), 0..4).prop_map(|before| Step::Restart { before }),
        ]
    }

    fn name(topic: u8) -> Bytes {
        Bytes::from(format!("t/{topic}"))
    }

    fn publish(publisher: &mut Outgoing<Duration>, now: Duration, topic: &Bytes) -> u64 {
        let next = publisher.next(topic).unwrap();
        let number = next.number;
        publisher.sent(now, next);
        number
    }

    proptest! {
        /// Delivered and reported missed are together what was published, each number once.
        #[test]
        fn every_number_is_delivered_or_reported_missed(
            before in prop::collection::vec(0..3u8, 0..5),
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let prefix = Bytes::from_static(b"t/");
            let mut publisher = Outgoing::new(100, Duration::from_secs(1));
            let mut subscriber = Incoming::new(100, 10_000);
            let now = Duration::ZERO;
            let mut epoch = 1;
            // Per epoch and topic: published since the subscription, and accounted for.
            let mut first: HashMap<(u64, Bytes), u64> = HashMap::new();
            let mut accounted: HashMap<(u64, Bytes), Vec<u64>> = HashMap::new();
            for topic in before {
                publish(&mut publisher, now, &name(topic));
            }
            for (topic, last) in publisher.tails(&prefix) {
                first.insert((epoch, topic), last + 1);
            }
            let (restarted, missed) = subscriber.confirmed(epoch, &prefix, publisher.tails(&prefix));
            prop_assert_eq!((restarted, missed), (None, Vec::new()));
            let mut lasts: HashMap<(u64, Bytes), u64> = HashMap::new();
            for step in steps {
                match step {
                    Step::Publish { topic, lost } => {
                        let topic = name(topic);
                        let number = publish(&mut publisher, now, &topic);
                        lasts.insert((epoch, topic.clone()), number);
                        if !lost {
                            let arrival = subscriber.event(epoch, &topic, number);
                            prop_assert!(arrival.is_new && arrival.restarted.is_none());
                            let seen = accounted.entry((epoch, topic)).or_default();
                            seen.extend(arrival.missed.into_iter().flatten());
                            seen.push(number);
                        }
                    }
                    Step::Announce { topic, lost } => {
                        let topic = name(topic);
                        let last = publisher.next(&topic).unwrap().number - 1;
                        if !lost && last > 0 {
                            let arrival = subscriber.tail(epoch, &topic, last);
                            let seen = accounted.entry((epoch, topic)).or_default();
                            seen.extend(arrival.missed.into_iter().flatten());
                        }
                    }
                    Step::Reconnect { meanwhile } => {
                        for topic in meanwhile {
                            let topic = name(topic);
                            let number = publish(&mut publisher, now, &topic);
                            lasts.insert((epoch, topic), number);
                        }
                        let (restarted, missed) =
                            subscriber.confirmed(epoch, &prefix, publisher.tails(&prefix));
                        prop_assert_eq!(restarted, None);
                        for (topic, range) in missed {
                            accounted.entry((epoch, topic)).or_default().extend(range);
                        }
                    }
                    Step::Restart { before } => {
                        // What the old epoch lost at its very end nobody can tell any more.
                        for ((of, topic), last) in &mut lasts {
                            if *of == epoch {
                                let seen = accounted.get(&(epoch, topic.clone()));
                                *last = seen.and_then(|s| s.last().copied())
                                    .unwrap_or(first.get(&(epoch, topic.clone())).map_or(0, |f| f - 1));
                            }
                        }
                        epoch += 1;
                        publisher = Outgoing::new(100, Duration::from_secs(1));
                        for topic in before {
                            let topic = name(topic);
                            let number = publish(&mut publisher, now, &topic);
                            lasts.insert((epoch, topic), number);
                        }
                        let (restarted, missed) =
                            subscriber.confirmed(epoch, &prefix, publisher.tails(&prefix));
                        prop_assert_eq!(restarted, Some(epoch));
                        for (topic, range) in missed {
                            accounted.entry((epoch, topic)).or_default().extend(range);
                        }
                    }
                }
            }
            // With the faults off, the next announcement tells the rest.
            for (topic, last) in publisher.tails(&prefix) {
                let arrival = subscriber.tail(epoch, &topic, last);
                accounted.entry((epoch, topic)).or_default().extend(arrival.missed.into_iter().flatten());
            }
            for ((epoch, topic), last) in lasts {
                let first = first.get(&(epoch, topic.clone())).copied().unwrap_or(1);
                let expected: Vec<u64> = (first..=last).collect();
                let seen = accounted.get(&(epoch, topic.clone())).cloned().unwrap_or_default();
                prop_assert_eq!(seen, expected, "epoch {} {:?}", epoch, topic);
            }
        }
    }

    #[test]
    fn a_quiet_topic_is_announced_after_a_while_then_less_and_less() {
        let second = Duration::from_secs(1);
        let mut publisher = Outgoing::new(10, second);
        let topic = name(0);
        publish(&mut publisher, Duration::ZERO, &topic);
        assert!(publisher.due(second / 2).is_empty());
        assert_eq!(publisher.due(second), [(topic.clone(), 1)]);
        assert!(publisher.due(second * 2).is_empty());
        assert_eq!(publisher.due(second * 3), [(topic.clone(), 1)]);
        assert!(publisher.due(second * 6).is_empty());
        publish(&mut publisher, second * 6, &topic);
        assert_eq!(publisher.due(second * 7), [(topic, 2)]);
    }

    #[test]
    fn one_topic_more_than_the_limit_is_refused() {
        let mut publisher = Outgoing::new(1, Duration::from_secs(1));
        publish(&mut publisher, Duration::ZERO, &name(0));
        assert_eq!(publisher.next(&name(0)).map(|next| next.number), Ok(2));
        assert_eq!(publisher.next(&name(1)), Err(TooManyTopics));
    }

    #[test]
    fn what_comes_late_from_an_epoch_that_is_over_is_not_new() {
        let mut subscriber = Incoming::new(10, 1000);
        subscriber.event(2, &name(0), 1);
        assert_eq!(subscriber.event(1, &name(0), 9), Arrival::default());
    }

    #[test]
    fn another_connection_may_bring_an_earlier_epoch_once() {
        let mut subscriber = Incoming::new(10, 1000);
        subscriber.over(1);
        subscriber.event(u64::MAX, &name(0), u64::MAX);
        assert_eq!(subscriber.event(7, &name(0), 1), Arrival::default());
        subscriber.over(2);
        // What the connection before had still to say.
        assert!(!subscriber.event(u64::MAX, &name(0), 1).is_new);
        let arrival = subscriber.event(7, &name(0), 1);
        assert_eq!((arrival.restarted, arrival.is_new), (Some(7), true));
        assert_eq!(subscriber.event(6, &name(0), 1), Arrival::default());
        assert!(subscriber.event(7, &name(0), 2).is_new);
    }

    #[test]
    fn names_of_topics_take_no_more_than_their_bytes() {
        let mut subscriber = Incoming::new(100, 10);
        let prefix = Bytes::from_static(b"t/");
        subscriber.confirmed(1, &prefix, []);
        for topic in 0..3 {
            subscriber.event(1, &name(topic), 1); // three bytes each
        }
        assert_eq!(
            (subscriber.expected.len(), subscriber.expected_bytes),
            (3, 9)
        );
        // One more has no room: it is known, and the others are not any more.
        subscriber.event(1, &name(3), 1);
        assert_eq!(
            (subscriber.expected.len(), subscriber.expected_bytes),
            (1, 3)
        );
        assert_eq!(subscriber.event(1, &name(0), 5).missed, None);
        subscriber.event(1, &Bytes::from(vec![b't'; 11]), 1);
        assert!(subscriber.expected_bytes <= 10);
    }

    #[test]
    fn one_topic_too_many_makes_a_subscriber_forget_the_others() {
        let mut subscriber = Incoming::new(2, 1000);
        for topic in 0..2 {
            subscriber.event(1, &name(topic), 1);
        }
        assert_eq!(subscriber.event(1, &name(1), 3).missed, Some(2..=2));
        subscriber.event(1, &name(2), 1);
        assert_eq!(subscriber.event(1, &name(1), 7).missed, None);
    }
}
