//! Questions of subscribers that a publisher has still to answer, in turns: an answer may have many parts. A state
//! machine, without clock, socket or task.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

/// Questions by their peers and topics. As many as there are subscriptions that ask, which the transport bounds.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    /// In the order in which they have their turns.
    turns: BTreeMap<u64, Question>,
    /// The turn of each.
    asked: HashMap<(u64, Bytes), u64>,
    last: u64,
}

/// A question, and how far it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub peer: u64,
    /// The topic that asks, on which the answer goes.
    pub topic: Bytes,
    /// From where on topics are still to be looked at.
    pub from: usize,
    /// Parts that were sent.
    pub parts: u64,
}

impl Confirmations {
    /// A subscriber asks; one that is being answered goes on.
    pub fn ask(&mut self, peer: u64, topic: Bytes) {
        if !self.asked.contains_key(&(peer, topic.clone())) {
            self.later(Question {
                peer,
                topic,
                from: 0,
                parts: 0,
            });
        }
    }

    /// It has taken its question back.
    pub fn cancel(&mut self, peer: u64, topic: &Bytes) {
        if let Some(turn) = self.asked.remove(&(peer, topic.clone())) {
            self.turns.remove(&turn);
        }
    }

    /// It is gone.
    pub fn gone(&mut self, peer: u64) {
        let Self { turns, asked, .. } = self;
        asked.retain(|(of, _), turn| {
            let stays = *of != peer;
            if !stays {
                turns.remove(turn);
            }
            stays
        });
    }

    /// All that was asked is asked again.
    pub fn clear(&mut self) {
        self.turns.clear();
        self.asked.clear();
    }

    pub fn len(&self) -> usize {
        self.turns.len()
    }

    /// Takes the question whose turn it is.
    pub fn next(&mut self) -> Option<Question> {
        let (_, question) = self.turns.pop_first()?;
        self.asked.remove(&(question.peer, question.topic.clone()));
        Some(question)
    }

    /// The rest of its answer has its turn after all others.
    pub fn later(&mut self, question: Question) {
        self.last += 1;
        let key = (question.peer, question.topic.clone());
        self.asked.insert(key, self.last);
        self.turns.insert(self.last, question);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    #[test]
    fn questions_have_their_turns_and_go_with_their_subscribers() {
        let mut of = Confirmations::default();
        for (peer, name) in [(1, "a"), (1, "b"), (2, "a"), (3, "c"), (1, "a")] {
            of.ask(peer, topic(name));
        }
        assert_eq!(of.len(), 4, "asked twice is asked once");
        let first = of.next().unwrap();
        assert_eq!((first.peer, &first.topic), (1, &topic("a")));
        of.later(Question {
            parts: 1,
            ..first.clone()
        });
        of.cancel(3, &topic("c"));
        of.cancel(3, &topic("c"));
        let second = of.next().unwrap();
        assert_eq!((second.peer, second.topic), (1, topic("b")));
        of.gone(2);
        assert_eq!(of.next().map(|of| of.parts), Some(1));
        assert_eq!((of.next(), of.len(), of.asked.len()), (None, 0, 0));
    }
}
