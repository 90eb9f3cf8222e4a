//! What a subscriber asks its publisher for: subscriptions, and the question whether each was taken. A state machine,
//! without clock, socket or task; what it returns has to be sent to the publisher in that order.
//!
//! A question is a subscription too (see [`names`](super::names)), and is taken back once it is answered. Few are asked
//! at once, since a publisher has little room for them; one that is not answered is asked again, ever more rarely.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Add;
use std::time::Duration;

use bytes::Bytes;

use super::names::confirmation_of;
use super::prefixes::covers;

/// Questions that are asked at once.
pub(super) const QUESTIONS_MAX: usize = 64;
/// How long a question may remain unanswered before it is asked again; the time doubles up to `AGAIN_MAX`.
pub(super) const AGAIN_MIN: Duration = Duration::from_secs(5);
const AGAIN_MAX: Duration = Duration::from_secs(320);

/// Subscriptions by their prefixes. `W` is told how a question was answered, `I` is an instant.
#[derive(Debug)]
pub(super) struct Subscriptions<W, I> {
    by_prefix: BTreeMap<Bytes, Subscription<W, I>>,
    /// Those whose question waits for its turn.
    to_ask: VecDeque<Bytes>,
    /// Questions that count towards `QUESTIONS_MAX`.
    asked: usize,
    /// All questions that are asked and not answered.
    unanswered: usize,
    /// Counts what was asked and taken back.
    order: u64,
    /// Whether a subscription was taken back: events under it may still arrive.
    has_taken_back: bool,
    subscriptions_max: usize,
    prefix_bytes_max: usize,
}

#[derive(Debug)]
struct Subscription<W, I> {
    question: Question<I>,
    waiting: Vec<W>,
}

#[derive(Debug)]
enum Question<I> {
    /// None is asked: the publisher may be one that answers none.
    None,
    /// It waits in `to_ask`.
    Waits {
        again: Duration,
    },
    Asked(Asked<I>),
    Answered,
}

#[derive(Clone, Copy, Debug)]
struct Asked<I> {
    nonce: u128,
    order: u64,
    /// Parts of the answer so far; `None` where one was lost.
    parts: Option<u64>,
    again_at: I,
    again: Duration,
    is_counted: bool,
}

/// What has to be sent to the publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Say {
    Subscribe(Bytes),
    Unsubscribe(Bytes),
}

/// Why a subscription is not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotAsked {
    TooLong { bytes: usize, bytes_max: usize },
    TooMany { max: usize },
}

/// A subscription that was taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TakenBack {
    pub prefix: Bytes,
    /// When, among what was asked and taken back.
    pub order: u64,
    /// Whether a confirmation was asked for.
    pub is_asked: bool,
}

/// An answer that was asked for.
#[derive(Debug)]
pub(super) struct Answered<W> {
    /// When it was asked, among what was asked and taken back.
    pub order: u64,
    /// Who waits for the answer.
    pub waiting: Vec<W>,
}

impl<W, I: Copy + Ord + Add<Duration, Output = I>> Subscriptions<W, I> {
    pub fn new(subscriptions_max: usize, prefix_bytes_max: usize) -> Self {
        Self {
            by_prefix: BTreeMap::new(),
            to_ask: VecDeque::new(),
            asked: 0,
            unanswered: 0,
            order: 0,
            has_taken_back: false,
            subscriptions_max,
            prefix_bytes_max,
        }
    }

    /// Adds a subscription. Where there is one who waits for its confirmation, [`ask`](Self::ask) is next. `is_waiting`
    /// says which of those who wait still do.
    pub fn subscribe(
        &mut self,
        prefix: Bytes,
        waits: Option<W>,
        is_waiting: impl Fn(&W) -> bool,
    ) -> Result<Option<Say>, NotAsked> {
        let (bytes, bytes_max) = (prefix.len(), self.prefix_bytes_max);
        if bytes > bytes_max {
            return Err(NotAsked::TooLong { bytes, bytes_max });
        }
        let is_new = !self.by_prefix.contains_key(&prefix);
        if is_new && self.by_prefix.len() >= self.subscriptions_max {
            let max = self.subscriptions_max;
            return Err(NotAsked::TooMany { max });
        }
        let subscription = self.by_prefix.entry(prefix.clone());
        let subscription = subscription.or_insert_with(|| Subscription {
            question: Question::None,
            waiting: Vec::new(),
        });
        if let Some(waits) = waits {
            subscription.waiting.retain(is_waiting);
            subscription.waiting.push(waits);
            if matches!(subscription.question, Question::None | Question::Answered) {
                subscription.question = Question::Waits { again: AGAIN_MIN };
                self.to_ask.push_back(prefix.clone());
            }
        }
        Ok(is_new.then_some(Say::Subscribe(prefix)))
    }

    /// Removes a subscription, if it is there.
    pub fn unsubscribe(&mut self, prefix: &Bytes) -> Option<(Vec<Say>, TakenBack)> {
        let subscription = self.by_prefix.remove(prefix)?;
        let mut says = Vec::new();
        match &subscription.question {
            Question::Asked(asked) => {
                self.asked -= usize::from(asked.is_counted);
                self.unanswered -= 1;
                says.push(Say::Unsubscribe(confirmation_of(asked.nonce, prefix)));
            }
            Question::Waits { .. } => self.to_ask.retain(|of| of != prefix),
            Question::None | Question::Answered => {}
        }
        says.push(Say::Unsubscribe(prefix.clone()));
        self.has_taken_back = true;
        self.order += 1;
        let taken_back = TakenBack {
            prefix: prefix.clone(),
            order: self.order,
            is_asked: !matches!(subscription.question, Question::None),
        };
        Some((says, taken_back))
    }

    /// There is a new connection, which begins with all subscriptions: the questions are asked again.
    pub fn connected(&mut self) -> Vec<Say> {
        let mut says = Vec::new();
        self.to_ask.clear();
        (self.asked, self.unanswered) = (0, 0);
        // What arrives over this connection was subscribed to over it.
        self.has_taken_back = false;
        for (prefix, subscription) in &mut self.by_prefix {
            match subscription.question {
                Question::None => continue,
                Question::Asked(Asked { nonce, .. }) => {
                    says.push(Say::Unsubscribe(confirmation_of(nonce, prefix)));
                }
                Question::Waits { .. } | Question::Answered => {}
            }
            subscription.question = Question::Waits { again: AGAIN_MIN };
            self.to_ask.push_back(prefix.clone());
        }
        says
    }

    /// Asks what waits to be asked, as far as more may be.
    pub fn ask(&mut self, now: I, mut nonce: impl FnMut() -> u128) -> Vec<Say> {
        let mut says = Vec::new();
        while self.asked < QUESTIONS_MAX
            && let Some(prefix) = self.to_ask.pop_front()
        {
            if let Some(subscription) = self.by_prefix.get_mut(&prefix)
                && let Question::Waits { again } = subscription.question
            {
                self.asked += 1;
                self.unanswered += 1;
                self.order += 1;
                let asked = Asked {
                    nonce: nonce(),
                    order: self.order,
                    parts: Some(0),
                    again_at: now + again,
                    again,
                    is_counted: true,
                };
                subscription.question = Question::Asked(asked);
                says.push(Say::Subscribe(confirmation_of(asked.nonce, &prefix)));
            }
        }
        says
    }

    /// Asks again what has not been answered for long.
    pub fn ask_again(&mut self, now: I, mut nonce: impl FnMut() -> u128) -> Vec<Say> {
        let mut says = Vec::new();
        for (prefix, subscription) in &mut self.by_prefix {
            if let Question::Asked(asked) = &mut subscription.question
                && asked.again_at <= now
            {
                says.push(Say::Unsubscribe(confirmation_of(asked.nonce, prefix)));
                // It leaves its place to others.
                self.asked -= usize::from(std::mem::take(&mut asked.is_counted));
                self.order += 1;
                asked.nonce = nonce();
                asked.order = self.order;
                asked.parts = Some(0);
                asked.again = (asked.again * 2).min(AGAIN_MAX);
                asked.again_at = now + asked.again;
                says.push(Say::Subscribe(confirmation_of(asked.nonce, prefix)));
            }
        }
        says.extend(self.ask(now, nonce));
        says
    }

    /// Whether a question is unanswered.
    pub fn is_asking(&self) -> bool {
        self.unanswered > 0
    }

    /// A part of an answer has come, the first with number 0; returns whether it is what was asked for.
    pub fn part(&mut self, prefix: &[u8], nonce: u128, number: u64) -> bool {
        let Some(asked) = self.asked_as(prefix, nonce) else {
            return false;
        };
        match asked.parts {
            Some(parts) if parts == number => asked.parts = Some(parts + 1),
            _ => asked.parts = None,
        }
        asked.parts.is_some()
    }

    /// The publisher has the subscription, after an answer of so many parts. `None` where this was not asked, or a part
    /// was lost: then it is asked again.
    pub fn confirmed(
        &mut self,
        prefix: &[u8],
        nonce: u128,
        parts: u64,
    ) -> (Vec<Say>, Option<Answered<W>>) {
        let Some(asked) = self.asked_as(prefix, nonce).copied() else {
            return (Vec::new(), None);
        };
        self.asked -= usize::from(asked.is_counted);
        self.unanswered -= 1;
        let says = vec![Say::Unsubscribe(confirmation_of(nonce, prefix))];
        let Some((prefix, subscription)) = self.with_key(prefix) else {
            return (says, None);
        };
        if asked.parts != Some(parts) {
            subscription.question = Question::Waits { again: asked.again };
            self.to_ask.push_back(prefix);
            return (says, None);
        }
        subscription.question = Question::Answered;
        let waiting = std::mem::take(&mut subscription.waiting);
        let order = asked.order;
        (says, Some(Answered { order, waiting }))
    }

    /// The publisher does not take the subscription. It is given up where someone waits for it; one that was in force
    /// before is asked for again with the next connection.
    pub fn refused(
        &mut self,
        prefix: &[u8],
        nonce: u128,
    ) -> Option<(Vec<Say>, Vec<W>, Option<TakenBack>)> {
        self.asked_as(prefix, nonce)?;
        let (prefix, subscription) = self.with_key(prefix)?;
        if !subscription.waiting.is_empty() {
            let waiting = std::mem::take(&mut subscription.waiting);
            let (says, taken_back) = self.unsubscribe(&prefix)?;
            return Some((says, waiting, Some(taken_back)));
        }
        if let Question::Asked(asked) = &subscription.question {
            self.asked -= usize::from(asked.is_counted);
            self.unanswered -= 1;
        }
        let (_, subscription) = self.with_key(&prefix)?;
        subscription.question = Question::Answered;
        let says = vec![Say::Unsubscribe(confirmation_of(nonce, &prefix))];
        Some((says, Vec::new(), None))
    }

    /// Whether an event of the topic is subscribed to; sure only after one was taken back, and asked for only then.
    pub fn wants(&self, topic: &[u8]) -> bool {
        !self.has_taken_back || covers(&self.by_prefix, topic)
    }

    /// Ends all of them; those who wait are dropped.
    pub fn clear(&mut self) {
        self.by_prefix.clear();
        self.to_ask.clear();
        (self.asked, self.unanswered) = (0, 0);
    }

    fn asked_as(&mut self, prefix: &[u8], nonce: u128) -> Option<&mut Asked<I>> {
        match &mut self.by_prefix.get_mut(prefix)?.question {
            Question::Asked(asked) if asked.nonce == nonce => Some(asked),
            _ => None,
        }
    }

    /// With the key in memory of its own.
    fn with_key(&mut self, prefix: &[u8]) -> Option<(Bytes, &mut Subscription<W, I>)> {
        let (key, _) = self.by_prefix.get_key_value(prefix)?;
        let key = key.clone();
        let subscription = self.by_prefix.get_mut(prefix)?;
        Some((key, subscription))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::names::is_confirmation;

    type Under = Subscriptions<u32, Duration>;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn nonces() -> impl FnMut() -> u128 {
        let mut last = 0;
        move || {
            last += 1;
            last
        }
    }

    fn subscribe(of: &mut Under, prefix: Bytes, waits: u32) -> Result<Option<Say>, NotAsked> {
        of.subscribe(prefix, Some(waits), |_| true)
    }

    #[test]
    fn a_subscription_is_said_before_its_question_and_once_for_two_who_ask() {
        let mut of = Under::new(10, 100);
        let mut nonce = nonces();
        let first = subscribe(&mut of, bytes("t/"), 1).unwrap();
        assert_eq!(first, Some(Say::Subscribe(bytes("t/"))));
        let asked = of.ask(Duration::ZERO, &mut nonce);
        assert_eq!(asked, [Say::Subscribe(confirmation_of(1, b"t/"))]);
        assert_eq!(subscribe(&mut of, bytes("t/"), 2), Ok(None));
        assert_eq!(of.ask(Duration::ZERO, &mut nonce), []);
        let (says, answered) = of.confirmed(b"t/", 1, 0);
        assert_eq!(says, [Say::Unsubscribe(confirmation_of(1, b"t/"))]);
        assert_eq!(answered.unwrap().waiting, [1, 2]);
        assert!(of.confirmed(b"t/", 1, 0).1.is_none(), "once");
    }

    #[test]
    fn a_prefix_too_long_and_one_too_many_are_refused_and_change_nothing() {
        let mut of = Under::new(2, 4);
        let too_long = subscribe(&mut of, bytes("t/abc"), 1);
        let expected = NotAsked::TooLong {
            bytes: 5,
            bytes_max: 4,
        };
        assert_eq!(too_long, Err(expected));
        for prefix in ["t/ab", "t/b"] {
            assert!(subscribe(&mut of, bytes(prefix), 1).is_ok());
        }
        let too_many = subscribe(&mut of, bytes("t/c"), 1);
        assert_eq!(too_many, Err(NotAsked::TooMany { max: 2 }));
        assert_eq!(subscribe(&mut of, bytes("t/b"), 1), Ok(None), "it is there");
        of.unsubscribe(&bytes("t/b")).unwrap();
        assert!(subscribe(&mut of, bytes("t/c"), 1).is_ok());
    }

    #[test]
    fn few_questions_are_asked_at_once_and_an_unanswered_one_leaves_its_place() {
        let mut of = Under::new(1000, 100);
        let mut nonce = nonces();
        for number in 0..QUESTIONS_MAX + 10 {
            subscribe(&mut of, Bytes::from(format!("t/{number:03}")), 0).unwrap();
        }
        assert_eq!(of.ask(Duration::ZERO, &mut nonce).len(), QUESTIONS_MAX);
        assert_eq!(of.ask(Duration::ZERO, &mut nonce).len(), 0);
        of.confirmed(b"t/000", 1, 0).1.unwrap();
        assert_eq!(of.ask(Duration::ZERO, &mut nonce).len(), 1);
        let again = of.ask_again(AGAIN_MIN, &mut nonce);
        assert_eq!(again.len(), 2 * QUESTIONS_MAX + 9, "and those that waited");
        // Those are asked again after twice the time, and the others after the first time.
        assert_eq!(of.ask_again(AGAIN_MIN * 2, &mut nonce).len(), 2 * 9);
        assert_eq!(
            of.ask_again(AGAIN_MIN * 3, &mut nonce).len(),
            2 * QUESTIONS_MAX
        );
    }

    #[test]
    fn an_answer_of_which_a_part_is_lost_is_asked_for_again() {
        let mut of = Under::new(10, 100);
        let mut nonce = nonces();
        subscribe(&mut of, bytes("t/"), 1).unwrap();
        of.ask(Duration::ZERO, &mut nonce);
        assert!(of.part(b"t/", 1, 0));
        assert!(!of.part(b"t/", 1, 2), "1 was lost");
        assert!(!of.part(b"t/", 1, 1), "too late");
        assert!(of.confirmed(b"t/", 1, 3).1.is_none());
        let again = of.ask(Duration::ZERO, &mut nonce);
        assert_eq!(again, [Say::Subscribe(confirmation_of(2, b"t/"))]);
        assert!((0..3).all(|number| of.part(b"t/", 2, number)));
        assert!(of.confirmed(b"t/", 2, 3).1.is_some());
    }

    #[test]
    fn a_new_connection_asks_what_was_answered_and_forgets_what_was_not() {
        let mut of = Under::new(10, 100);
        let mut nonce = nonces();
        for prefix in ["t/a", "t/b"] {
            subscribe(&mut of, bytes(prefix), 1).unwrap();
        }
        of.subscribe(bytes("t/c"), None, |_| true).unwrap();
        of.ask(Duration::ZERO, &mut nonce);
        of.confirmed(b"t/a", 1, 0).1.unwrap();
        let says = of.connected();
        assert_eq!(says, [Say::Unsubscribe(confirmation_of(2, b"t/b"))]);
        let asked = of.ask(Duration::ZERO, &mut nonce);
        let asked = asked.iter().map(|say| match say {
            Say::Subscribe(topic) => is_confirmation(topic).unwrap(),
            Say::Unsubscribe(_) => panic!("{say:?}"),
        });
        assert!(asked.eq([(3, &b"t/a"[..]), (4, b"t/b")]));
        assert!(of.confirmed(b"t/b", 2, 0).1.is_none(), "of the one before");
    }

    #[test]
    fn a_refused_subscription_is_given_up_where_someone_waits_for_it() {
        let mut of = Under::new(10, 100);
        let mut nonce = nonces();
        subscribe(&mut of, bytes("t/"), 1).unwrap();
        of.ask(Duration::ZERO, &mut nonce);
        let (says, waiting, taken_back) = of.refused(b"t/", 1).unwrap();
        let question = Say::Unsubscribe(confirmation_of(1, b"t/"));
        assert_eq!(says, [question, Say::Unsubscribe(bytes("t/"))]);
        assert_eq!(waiting, [1]);
        assert!(taken_back.is_some_and(|of| of.is_asked) && !of.is_asking());
        assert!(of.unsubscribe(&bytes("t/")).is_none());
    }
}
