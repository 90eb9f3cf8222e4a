//! What the clones of a publisher and its driver share: the numbers, and who has subscribed to what.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{OfPrincipal, PublishError, Published};
use crate::message::{self, Built};
use crate::security::Tally;
use crate::topic::departures::{Departures, Way};
use crate::topic::names::join;
use crate::topic::sequence::{Outgoing, TooManyTopics};
use crate::transport::{Endpoint, PublishRefused, PublishSender, TopicFrames, TopicMessage};
use crate::wire::{EventHeader, EventKind, Metadata};
use crate::wire_capnp::tails;

#[derive(Debug)]
pub(super) struct Shared {
    pub sender: PublishSender,
    pub endpoint: Endpoint,
    pub linger: Duration,
    epoch: u64,
    pub by_principal: Arc<Tally<OfPrincipal>>,
    /// Wakes the driver to its next turn.
    pub woken: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub outgoing: Outgoing<Instant>,
    departures: Departures,
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
        linger: Duration,
        epoch: u64,
        by_principal: Arc<Tally<OfPrincipal>>,
        outgoing: Outgoing<Instant>,
        departures: Departures,
    ) -> Self {
        Self {
            sender,
            endpoint,
            linger,
            epoch,
            by_principal,
            woken: Notify::new(),
            state: Mutex::new(State {
                outgoing,
                departures,
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
        body: Built,
    ) -> Result<Published, PublishError> {
        let mut body = Body::Built(body);
        loop {
            if let Some(published) = self.try_publish(name, key, &mut body)? {
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
        body: &mut Body,
    ) -> Result<Option<Published>, PublishError> {
        // Under one lock, so that events leave in the order of their numbers.
        let mut state = self.lock();
        let State { outgoing, full, .. } = &mut *state;
        join(full, name, key);
        let next = match outgoing.next(full) {
            Ok(next) => next,
            Err(TooManyTopics) => return Err(PublishError::TooManyTopics),
        };
        let header = self.header(EventKind::Event, next.number).encode();
        let mut way = state.departures.way(&next.topic, &header, body);
        if way == Way::NoRoom {
            if !self.flush(&mut state)? {
                return Ok(None);
            }
            way = state.departures.way(&next.topic, &header, body);
        }
        match way {
            Way::Waits => {}
            Way::AtOnce => {
                // Without room for it now, it waits for the driver like any other.
                self.flush(&mut state)?;
                self.woken.notify_one();
            }
            Way::Classic => {
                let frames = TopicFrames {
                    topic: next.topic.clone(),
                    header,
                    body: body.shared(),
                };
                match self.sender.try_send(TopicMessage::Classic(frames)) {
                    Ok(()) => {}
                    Err(PublishRefused::Full) => return Ok(None),
                    Err(PublishRefused::Closed) => return Err(PublishError::Closed),
                }
            }
            Way::NoRoom => return Ok(None),
        }
        let published = Published {
            sequence: next.number,
            matched: state.matching(&next.topic),
        };
        state.outgoing.sent(Instant::now(), next);
        Ok(Some(published))
    }

    fn header(&self, kind: EventKind, sequence: u64) -> EventHeader {
        EventHeader {
            kind,
            epoch: self.epoch,
            sequence,
            trace: None,
            metadata: Metadata::new(),
        }
    }

    /// The driver's turn: sends what waits. Whether the socket had room for it.
    pub fn turn(&self) -> bool {
        let mut state = self.lock();
        state.departures.turn();
        self.flush(&mut state).unwrap_or(true)
    }

    /// Sends what waits, and lets nothing wait any more.
    pub fn stop_gathering(&self) -> bool {
        let mut state = self.lock();
        state.departures.stop();
        self.flush(&mut state).unwrap_or(true)
    }

    /// Sends what waits. Whether the socket had room for it; it goes on to wait where it had none.
    fn flush(&self, state: &mut State) -> Result<bool, PublishError> {
        while let Some(message) = state.departures.take() {
            match self.sender.try_send(TopicMessage::Compact(message.clone())) {
                Ok(()) => {}
                Err(PublishRefused::Full) => {
                    state.departures.put_back(message);
                    return Ok(false);
                }
                Err(PublishRefused::Closed) => {
                    state.departures.stop();
                    return Err(PublishError::Closed);
                }
            }
        }
        Ok(true)
    }

    /// Sends what only helps, behind what waits: where there is no room, the next time will do.
    pub fn send(
        &self,
        state: &mut State,
        topic: Bytes,
        kind: EventKind,
        sequence: u64,
        body: Bytes,
    ) -> bool {
        if !matches!(self.flush(state), Ok(true)) {
            return false;
        }
        let frames = TopicFrames {
            topic,
            header: self.header(kind, sequence).encode(),
            body,
        };
        self.sender.try_send(TopicMessage::Classic(frames)).is_ok()
    }

    /// Tells who asked for it that its subscription is here, or that it is not taken: it came
    /// before, if it came at all.
    ///
    /// Under the lock, so that the tails are exactly what was sent before.
    pub async fn confirm(&self, peer: u64, asked: &Bytes, prefix: &[u8]) {
        loop {
            {
                let mut state = self.lock();
                // Where nobody knows whose a subscription is, it is here if anybody has it.
                let peer = self.sender.knows_peers().then_some(peer);
                let (kind, body) = if state.has(peer, prefix) {
                    let tails = encode_tails(&state.outgoing.tails(prefix));
                    (EventKind::Confirmed, tails)
                } else {
                    (EventKind::Refused, Bytes::new())
                };
                if self.send(&mut state, asked.clone(), kind, 0, body) {
                    return;
                }
            }
            self.sender.writable().await;
        }
    }
}

/// A body that is to be sent: first where it was built, since it may be copied from there.
enum Body {
    Built(Built),
    Shared(Bytes),
}

impl Body {
    /// To be sent by itself, perhaps more than once.
    fn shared(&mut self) -> Bytes {
        let bytes = match std::mem::replace(self, Self::Shared(Bytes::new())) {
            Self::Built(built) => built.into_bytes(),
            Self::Shared(bytes) => bytes,
        };
        *self = Self::Shared(bytes.clone());
        bytes
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Built(built) => built,
            Self::Shared(bytes) => bytes,
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
