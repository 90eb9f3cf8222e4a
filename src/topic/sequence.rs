//! Numbers of events: given by a publisher, checked by a subscriber. State machines, without
//! clock, socket or task.
//!
//! Numbers count per full topic and publisher epoch, from 1. One count for a whole publisher
//! would tell a subscriber nothing, since it does not get all topics.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;

use super::prefixes::covers;

/// The publisher's side.
#[derive(Debug)]
pub(super) struct Outgoing<I> {
    /// By their names: where they are in `given`. A topic is never forgotten.
    topics: HashMap<Bytes, usize>,
    given: Vec<Given<I>>,
    /// Of the names in `topics`.
    topic_bytes: usize,
    /// The topic that was published last, which is often the next one's too.
    latest: usize,
    /// Where to look next for what should be announced.
    announced: usize,
    topics_max: usize,
    topic_bytes_max: usize,
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

/// Topics with their last numbers, in the order in which they began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tails {
    pub tails: Vec<(Bytes, u64)>,
    /// Where the topics go on that were not looked at; `None` where there are none.
    pub rest: Option<usize>,
}

impl<I: Copy + Ord + std::ops::Add<Duration, Output = I>> Outgoing<I> {
    pub fn new(topics_max: usize, topic_bytes_max: usize, quiet: Duration) -> Self {
        Self {
            topics: HashMap::new(),
            given: Vec::new(),
            topic_bytes: 0,
            latest: 0,
            announced: 0,
            topics_max,
            topic_bytes_max,
            quiet,
        }
    }

    /// What the next event of a topic would be.
    pub fn next(&mut self, topic: &[u8]) -> Result<Next, TooManyTopics> {
        let is_latest = |given: &Given<I>| given.topic == topic;
        let index = match self.given.get(self.latest).is_some_and(is_latest) {
            true => Some(self.latest),
            false => self.topics.get(topic).copied(),
        };
        match index {
            Some(index) => {
                self.latest = index;
                Ok(Next {
                    topic: self.given[index].topic.clone(),
                    number: self.given[index].last + 1,
                    index: Some(index),
                })
            }
            None if self.topics.len() >= self.topics_max
                || self.topic_bytes + topic.len() > self.topic_bytes_max =>
            {
                Err(TooManyTopics)
            }
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
                self.topic_bytes += given.topic.len();
                self.topics.insert(given.topic.clone(), self.given.len());
                self.given.push(given);
            }
        }
    }

    /// The topics that begin with `prefix`, with their last numbers: of at most so many that are looked at from a place
    /// on, and, each with `beside` more, of at most so many bytes, but one at least.
    pub fn tails(
        &self,
        prefix: &[u8],
        from: usize,
        topics_max: usize,
        bytes_max: usize,
        beside: usize,
    ) -> Tails {
        let mut found = Tails::default();
        let mut bytes = 0;
        for (at, given) in self.given.iter().enumerate().skip(from) {
            let is_wanted = given.topic.starts_with(prefix);
            bytes += if is_wanted {
                given.topic.len() + beside
            } else {
                0
            };
            if at - from >= topics_max || bytes > bytes_max && !found.tails.is_empty() {
                found.rest = Some(at);
                return found;
            }
            if is_wanted {
                found.tails.push((given.topic.clone(), given.last));
            }
        }
        found
    }

    /// The last numbers that should be announced now, of at most so many topics that are looked at, and whether those
    /// were the last of all.
    pub fn due(&mut self, now: I, topics_max: usize) -> (Vec<(Bytes, u64)>, bool) {
        let quiet = self.quiet;
        let from = self.announced;
        let to = self.given.len().min(from.saturating_add(topics_max));
        let is_last = to == self.given.len();
        self.announced = if is_last { 0 } else { to };
        let due = self.given[from..to]
            .iter_mut()
            .filter(|given| given.announce_at <= now)
            .map(|given| {
                given.announcements = (given.announcements * 2).min(ANNOUNCEMENT_MAX);
                given.announce_at = now + quiet * given.announcements;
                (given.topic.clone(), given.last)
            })
            .collect();
        (due, is_last)
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
    confirmed: BTreeMap<Bytes, ()>,
    /// Prefixes about which a part of the answer has come: what it said is not forgotten before the rest has come.
    answering: BTreeMap<Bytes, ()>,
    /// Prefixes that were taken back, with when, among what was asked and taken back. Until the publisher has answered what
    /// was asked later, events under them may still come, and those after them were not subscribed to.
    taken_back: VecDeque<(u64, Bytes)>,
    topics_max: usize,
    topic_bytes_max: usize,
    /// Topics whose numbers were forgotten since there were too many.
    forgotten: u64,
}

/// Prefixes taken back that are known at once; past them the oldest are forgotten.
const TAKEN_BACK_MAX: usize = 1024;

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
        if connection != self.connection {
            self.may_go_back = true;
            self.connection = connection;
            self.answering.clear();
        }
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
        let known = self.expected(topic);
        let expected = known.unwrap_or(number);
        if number >= expected && (known.is_some() || !self.is_taken_back(topic)) {
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
        let known = self.expected(topic);
        let missed = match known.is_some() || !self.is_taken_back(topic) {
            true => self.up_to(topic, known, last),
            false => None,
        };
        Arrival {
            restarted,
            missed,
            is_new: true,
        }
    }

    /// Notes that the last event of the topic has this number; returns what was missed of it.
    fn up_to(
        &mut self,
        topic: &Bytes,
        known: Option<u64>,
        last: u64,
    ) -> Option<RangeInclusive<u64>> {
        let next = last.saturating_add(1);
        let expected = known.unwrap_or(next);
        if next >= expected {
            self.expect(topic, next);
        }
        (next > expected).then_some(expected..=last)
    }

    /// A part of the answer about the subscription to `prefix`: the last numbers of some of its topics.
    ///
    /// Returns the epoch if it is a new one, and what was missed while the subscription was
    /// interrupted.
    pub fn part(
        &mut self,
        epoch: u64,
        prefix: &Bytes,
        tails: impl IntoIterator<Item = (Bytes, u64)>,
    ) -> (Option<u64>, Vec<(Bytes, RangeInclusive<u64>)>) {
        self.answering.insert(prefix.clone(), ());
        self.tails(epoch, tails)
    }

    fn tails(
        &mut self,
        epoch: u64,
        tails: impl IntoIterator<Item = (Bytes, u64)>,
    ) -> (Option<u64>, Vec<(Bytes, RangeInclusive<u64>)>) {
        let Some(restarted) = self.enter(epoch) else {
            return (None, Vec::new());
        };
        let mut missed = Vec::new();
        for (topic, last) in tails {
            let known = self.expected(&topic);
            let range = self.up_to(&topic, known, last);
            missed.extend(range.map(|range| (topic, range)));
        }
        (restarted, missed)
    }

    /// The publisher has the subscription to `prefix`, which was asked at `order`; these are the last numbers of its
    /// topics, or the last of them. Returns the same as [`part`](Self::part).
    pub fn confirmed(
        &mut self,
        epoch: u64,
        prefix: &Bytes,
        order: u64,
        tails: impl IntoIterator<Item = (Bytes, u64)>,
    ) -> (Option<u64>, Vec<(Bytes, RangeInclusive<u64>)>) {
        let found = self.tails(epoch, tails);
        self.answering.remove(prefix);
        if self.epoch == Some(epoch) {
            // After its tails: those are where a subscription begins, unless it was there before.
            self.confirmed.insert(prefix.clone(), ());
            self.settle(order);
        }
        found
    }

    /// A subscription was taken back.
    pub fn taken_back(&mut self, prefix: &Bytes, order: u64, is_asked: bool) {
        let Self {
            expected,
            confirmed,
            answering,
            expected_bytes,
            ..
        } = self;
        confirmed.remove(prefix);
        answering.remove(prefix);
        expected.retain(|topic, _| {
            let stays =
                !topic.starts_with(prefix) || covers(confirmed, topic) || covers(answering, topic);
            *expected_bytes -= if stays { 0 } else { topic.len() };
            stays
        });
        if is_asked {
            if self.taken_back.len() >= TAKEN_BACK_MAX {
                self.taken_back.pop_front();
            }
            self.taken_back.push_back((order, prefix.clone()));
        }
    }

    /// What was asked at `order` is answered: nothing comes any more of what was taken back before.
    fn settle(&mut self, order: u64) {
        while self.taken_back.front().is_some_and(|(at, _)| *at < order) {
            self.taken_back.pop_front();
        }
    }

    /// Whether what comes of a topic of which nothing is known may be of a subscription that was taken back. Its number
    /// says nothing then about what comes of a later one, until the answer about that one has come.
    fn is_taken_back(&self, topic: &Bytes) -> bool {
        let mut taken_back = self.taken_back.iter();
        taken_back.any(|(_, prefix)| topic.starts_with(prefix))
    }

    /// Topics whose numbers were forgotten since there were too many: what was missed of them meanwhile is not known.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
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
        let known = self.expected.get(topic).copied();
        known.or_else(|| covers(&self.confirmed, topic).then_some(1))
    }

    fn expect(&mut self, topic: &Bytes, next: u64) {
        match self.expected.get_mut(topic) {
            Some(expected) => *expected = next,
            None => {
                let is_full = self.expected.len() >= self.topics_max
                    || self.expected_bytes + topic.len() > self.topic_bytes_max;
                if is_full {
                    // Better to know less than to report what was not missed.
                    self.forgotten += self.expected.len() as u64;
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

    fn tails(publisher: &Outgoing<Duration>) -> Vec<(Bytes, u64)> {
        publisher.tails(b"t/", 0, usize::MAX, usize::MAX, 0).tails
    }

    fn due(publisher: &mut Outgoing<Duration>, now: Duration) -> Vec<(Bytes, u64)> {
        publisher.due(now, usize::MAX).0
    }

    proptest! {
        /// Delivered and reported missed are together what was published, each number once.
        #[test]
        fn every_number_is_delivered_or_reported_missed(
            before in prop::collection::vec(0..3u8, 0..5),
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let prefix = Bytes::from_static(b"t/");
            let mut publisher = Outgoing::new(100, 10_000, Duration::from_secs(1));
            let mut subscriber = Incoming::new(100, 10_000);
            let now = Duration::ZERO;
            let mut epoch = 1;
            // Per epoch and topic: published since the subscription, and accounted for.
            let mut first: HashMap<(u64, Bytes), u64> = HashMap::new();
            let mut accounted: HashMap<(u64, Bytes), Vec<u64>> = HashMap::new();
            for topic in before {
                publish(&mut publisher, now, &name(topic));
            }
            for (topic, last) in tails(&publisher) {
                first.insert((epoch, topic), last + 1);
            }
            let (restarted, missed) = subscriber.confirmed(epoch, &prefix, 1, tails(&publisher));
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
                            subscriber.confirmed(epoch, &prefix, 1, tails(&publisher));
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
                        publisher = Outgoing::new(100, 10_000, Duration::from_secs(1));
                        for topic in before {
                            let topic = name(topic);
                            let number = publish(&mut publisher, now, &topic);
                            lasts.insert((epoch, topic), number);
                        }
                        let (restarted, missed) =
                            subscriber.confirmed(epoch, &prefix, 1, tails(&publisher));
                        prop_assert_eq!(restarted, Some(epoch));
                        for (topic, range) in missed {
                            accounted.entry((epoch, topic)).or_default().extend(range);
                        }
                    }
                }
            }
            // With the faults off, the next announcement tells the rest.
            for (topic, last) in tails(&publisher) {
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
        let mut publisher = Outgoing::new(10, 1000, second);
        let topic = name(0);
        publish(&mut publisher, Duration::ZERO, &topic);
        assert!(due(&mut publisher, second / 2).is_empty());
        assert_eq!(due(&mut publisher, second), [(topic.clone(), 1)]);
        assert!(due(&mut publisher, second * 2).is_empty());
        assert_eq!(due(&mut publisher, second * 3), [(topic.clone(), 1)]);
        assert!(due(&mut publisher, second * 6).is_empty());
        publish(&mut publisher, second * 6, &topic);
        assert_eq!(due(&mut publisher, second * 7), [(topic, 2)]);
    }

    #[test]
    fn one_topic_more_than_the_limit_is_refused() {
        let mut publisher = Outgoing::new(1, 1000, Duration::from_secs(1));
        publish(&mut publisher, Duration::ZERO, &name(0));
        assert_eq!(publisher.next(&name(0)).map(|next| next.number), Ok(2));
        assert_eq!(publisher.next(&name(1)), Err(TooManyTopics));
    }

    #[test]
    fn what_was_not_subscribed_to_is_not_reported_missed() {
        let prefix = Bytes::from_static(b"t/");
        let mut subscriber = Incoming::new(10, 1000);
        subscriber.confirmed(1, &prefix, 1, [(name(0), 1)]);
        assert!(subscriber.event(1, &name(0), 2).is_new);
        subscriber.taken_back(&prefix, 2, true);
        // On its way when the subscription was taken back.
        assert!(subscriber.event(1, &name(0), 3).is_new);
        assert_eq!(subscriber.tail(1, &name(0), 3).missed, None);
        // Subscribed to again, and not yet confirmed.
        assert_eq!(subscriber.event(1, &name(0), 50).missed, None);
        let (_, missed) = subscriber.confirmed(1, &prefix, 3, [(name(0), 51), (name(1), 7)]);
        assert_eq!(missed, []);
        assert_eq!(subscriber.event(1, &name(0), 53).missed, Some(52..=52));
        assert_eq!(subscriber.event(1, &name(1), 9).missed, Some(8..=8));
        assert!(subscriber.taken_back.is_empty());
    }

    #[test]
    fn a_wider_subscription_goes_on_counting() {
        let mut subscriber = Incoming::new(10, 1000);
        let (wide, narrow) = (Bytes::from_static(b"t/"), name(0));
        subscriber.confirmed(1, &wide, 1, []);
        subscriber.confirmed(1, &narrow, 2, []);
        subscriber.event(1, &name(0), 1);
        subscriber.taken_back(&narrow, 3, true);
        assert_eq!(subscriber.event(1, &name(0), 3).missed, Some(2..=2));
        assert_eq!(subscriber.event(1, &name(1), 2).missed, Some(1..=1));
        // Another answer, which was asked before, says nothing about it.
        subscriber.confirmed(1, &wide, 2, []);
        assert_eq!(subscriber.taken_back.len(), 1);
        subscriber.confirmed(1, &wide, 4, []);
        assert_eq!(subscriber.taken_back.len(), 0);
    }

    #[test]
    fn a_part_of_an_answer_is_not_forgotten_where_another_subscription_is_taken_back() {
        let mut subscriber = Incoming::new(10, 1000);
        let (wide, narrow) = (Bytes::from_static(b"t/"), name(0));
        subscriber.confirmed(1, &narrow, 1, []);
        subscriber.event(1, &name(0), 1);
        subscriber.part(1, &wide, [(name(0), 1)]);
        subscriber.taken_back(&narrow, 3, true);
        subscriber.confirmed(1, &wide, 2, [(name(1), 4)]);
        assert_eq!(subscriber.event(1, &name(0), 2).missed, None);
        assert_eq!(subscriber.event(1, &name(1), 6).missed, Some(5..=5));
    }

    #[test]
    fn answers_are_cut_by_topics_and_by_bytes_and_go_on_where_they_were_cut() {
        let mut publisher = Outgoing::new(100, 1000, Duration::from_secs(1));
        for topic in 0..7 {
            publish(&mut publisher, Duration::ZERO, &name(topic));
        }
        let by_bytes = publisher.tails(b"t/", 0, 100, 30, 10);
        assert_eq!((by_bytes.tails.len(), by_bytes.rest), (2, Some(2)));
        let by_topics = publisher.tails(b"t/6", 2, 3, 30, 10);
        assert_eq!((by_topics.tails.len(), by_topics.rest), (0, Some(5)));
        let last = publisher.tails(b"t/6", 5, 3, 0, 10);
        assert_eq!((last.tails, last.rest), (vec![(name(6), 1)], None));
    }

    #[test]
    fn announcements_look_at_few_topics_at_a_time_and_at_all_in_turn() {
        let second = Duration::from_secs(1);
        let mut publisher = Outgoing::new(100, 1000, second);
        for topic in 0..5 {
            publish(&mut publisher, Duration::ZERO, &name(topic));
        }
        let parts: Vec<_> = (0..3).map(|_| publisher.due(second, 2)).collect();
        let counts = parts.iter().map(|(due, is_last)| (due.len(), *is_last));
        assert!(counts.eq([(2, false), (2, false), (1, true)]));
        assert_eq!(publisher.due(second, 2), (vec![], false));
    }

    #[test]
    fn names_of_a_publishers_topics_take_no_more_than_their_bytes() {
        let mut publisher = Outgoing::new(100, 9, Duration::from_secs(1));
        for topic in 0..3 {
            publish(&mut publisher, Duration::ZERO, &name(topic));
        }
        assert_eq!(publisher.next(&name(3)), Err(TooManyTopics));
        assert!(publisher.next(&name(2)).is_ok());
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
        subscriber.confirmed(1, &prefix, 1, []);
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
