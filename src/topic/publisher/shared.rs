//! What the clones of a publisher and its driver share: the numbers, and who has subscribed to what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;

use super::{OfPrincipal, PublishError, Published};
use crate::message;
use crate::security::Tally;
use crate::topic::names::join;
use crate::topic::sequence::{Outgoing, TooManyTopics};
use crate::transport::{Endpoint, PublishRefused, PublishSender, TopicFrames};
use crate::wire::{EventHeader, EventKind, Metadata};
use crate::wire_capnp::tails;

#[derive(Debug)]
pub(super) struct Shared {
    pub sender: PublishSender,
    pub endpoint: Endpoint,
    epoch: u64,
    pub by_principal: Arc<Tally<OfPrincipal>>,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub outgoing: Outgoing<Instant>,
    /// The prefixes of each subscriber.
    pub subscriptions: HashMap<u64, Vec<Bytes>>,
    /// The full topic of the event that is published, in memory that every event uses again.
    full: Vec<u8>,
}

impl State {
    /// Whether a subscriber has all topics with a prefix; or, without one, whether any has.
    fn has(&self, peer: Option<u64>, prefix: &[u8]) -> bool {
        let covers = |has: &Vec<Bytes>| has.iter().any(|of| prefix.starts_with(of));
        match peer {
            Some(peer) => self.subscriptions.get(&peer).is_some_and(covers),
            None => self.subscriptions.values().any(covers),
        }
    }

    pub fn matching(&self, topic: &Bytes) -> usize {
        self.subscriptions
            .values()
            .filter(|prefixes| prefixes.iter().any(|prefix| topic.starts_with(prefix)))
            .count()
    }
}

impl Shared {
    pub fn new(
        sender: PublishSender,
        endpoint: Endpoint,
        epoch: u64,
        by_principal: Arc<Tally<OfPrincipal>>,
        outgoing: Outgoing<Instant>,
    ) -> Self {
        Self {
            sender,
            endpoint,
            epoch,
            by_principal,
            state: Mutex::new(State {
                outgoing,
                subscriptions: HashMap::new(),
                full: Vec::new(),
            }),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn publish(
        &self,
        name: &str,
        key: &str,
        body: Bytes,
    ) -> Result<Published, PublishError> {
        loop {
            if let Some(published) = self.try_publish(name, key, &body)? {
                return Ok(published);
            }
            self.sender.writable().await;
        }
    }

    /// `None` where the socket has no room.
    fn try_publish(
        &self,
        name: &str,
        key: &str,
        body: &Bytes,
    ) -> Result<Option<Published>, PublishError> {
        // Under one lock, so that events leave in the order of their numbers.
        let mut state = self.lock();
        let State { outgoing, full, .. } = &mut *state;
        join(full, name, key);
        let next = match outgoing.next(full) {
            Ok(next) => next,
            Err(TooManyTopics) => return Err(PublishError::TooManyTopics),
        };
        let header = EventHeader {
            kind: EventKind::Event,
            epoch: self.epoch,
            sequence: next.number,
            trace: None,
            metadata: Metadata::new(),
        };
        let frames = TopicFrames {
            topic: next.topic.clone(),
            header: header.encode(),
            body: body.clone(),
        };
        match self.sender.try_send(frames) {
            Ok(()) => {
                let published = Published {
                    sequence: next.number,
                    matched: state.matching(&next.topic),
                };
                state.outgoing.sent(Instant::now(), next);
                Ok(Some(published))
            }
            Err(PublishRefused::Full) => Ok(None),
            Err(PublishRefused::Closed) => Err(PublishError::Closed),
        }
    }

    /// Sends what only helps: where there is no room, the next time will do.
    pub fn send(&self, topic: Bytes, kind: EventKind, sequence: u64, body: Bytes) -> bool {
        let header = EventHeader {
            kind,
            epoch: self.epoch,
            sequence,
            trace: None,
            metadata: Metadata::new(),
        };
        let frames = TopicFrames {
            topic,
            header: header.encode(),
            body,
        };
        self.sender.try_send(frames).is_ok()
    }

    /// Tells who asked for it that its subscription is here, or that it is not taken: it came
    /// before, if it came at all.
    ///
    /// Under the lock, so that the tails are exactly what was sent before.
    pub async fn confirm(&self, peer: u64, asked: &Bytes, prefix: &[u8]) {
        loop {
            {
                let state = self.lock();
                // Where nobody knows whose a subscription is, it is here if anybody has it.
                let peer = self.sender.knows_peers().then_some(peer);
                let (kind, body) = if state.has(peer, prefix) {
                    let tails = encode_tails(&state.outgoing.tails(prefix));
                    (EventKind::Confirmed, tails)
                } else {
                    (EventKind::Refused, Bytes::new())
                };
                if self.send(asked.clone(), kind, 0, body) {
                    return;
                }
            }
            self.sender.writable().await;
        }
    }
}

fn encode_tails(tails: &[(Bytes, u64)]) -> Bytes {
    let built = message::build::<tails::Owned, std::convert::Infallible>(|to| {
        let mut list = to.init_tails(tails.len() as u32); // at most `topics_max`
        for (i, (topic, last)) in (0u32..).zip(tails) {
            let mut tail = list.reborrow().get(i);
            tail.set_topic(topic);
            tail.set_sequence(*last);
        }
        Ok(())
    });
    match built {
        Ok(bytes) => bytes,
        Err(never) => match never {},
    }
}
