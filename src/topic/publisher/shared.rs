//! What the clones of a publisher and its driver share: the numbers, and who has subscribed to what.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{OfPrincipal, PublishEnd, PublishError, Published};
use crate::message::{self, Built};
use crate::security::Tally;
use crate::topic::confirmations::{Confirmations, Question};
use crate::topic::departures::{Departures, Way};
use crate::topic::names::{is_confirmation, join};
use crate::topic::sequence::{Outgoing, Tails, TooManyTopics};
use crate::transport::{
    Endpoint, Index, PublishRefused, PublishSender, SendToRefused, TopicFrames, TopicMessage,
};
use crate::wire::{EventHeader, EventKind, Metadata};
use crate::wire_capnp::tails;

/// Topics that are looked at in one step for an answer, and for announcements.
const ANSWER_TOPICS_MAX: usize = 1024;
const ANNOUNCE_TOPICS_MAX: usize = 256;
/// Bytes of one part of an answer, its topic aside.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// What a topic takes in an answer besides its name, at most.
const TAIL_BYTES: usize = 32;
/// What a message has besides the topic it goes by and a body: its header, and that of an answer of one topic.
pub(super) const BESIDE_BYTES: usize = 128;
/// Subscribers without room that are passed over in one step.
const ANSWER_PEERS_MAX: usize = 16;
/// Longest full topic.
const TOPIC_BYTES_MAX: usize = 64 << 10;
/// Different prefixes that are known where the transport does not say whose they are.
const PREFIXES_MAX: usize = 65_536;

#[derive(Debug)]
pub(super) struct Shared {
    pub sender: PublishSender,
    pub endpoint: Endpoint,
    pub linger: Duration,
    epoch: u64,
    sizes: Sizes,
    pub by_principal: Arc<Tally<OfPrincipal>>,
    /// Wakes the driver to its next turn.
    pub woken: Notify,
    state: Mutex<State>,
}

/// How large what is published may be, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub event_max: usize,
    pub message_max: usize,
}

#[derive(Debug)]
pub(super) struct State {
    pub outgoing: Outgoing<Instant>,
    departures: Departures,
    /// The prefixes of each subscriber.
    subscriptions: Index<Arc<AtomicU64>>,
    /// Counts what was looked for in `subscriptions`.
    looked: u64,
    /// The topic that was looked for last, and how many subscribers it matched.
    matched: Option<(Bytes, usize)>,
    pub confirmations: Confirmations,
    /// The full topic of the event that is published, in memory that every event uses again.
    full: Vec<u8>,
    /// As late as the driver's last turn.
    now: Instant,
    pub end: Option<PublishEnd>,
}

/// How far the questions are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answering {
    Done,
    Goes,
    /// Those who ask have no room.
    Waits,
}

impl State {
    /// Whether a subscriber has all topics with a prefix; or, without one, whether any has.
    fn has(&self, peer: Option<u64>, prefix: &[u8]) -> bool {
        self.subscriptions.has(peer, prefix)
    }

    pub fn subscribers(&self) -> usize {
        self.subscriptions.len()
    }

    pub fn matching(&mut self, topic: &Bytes) -> usize {
        match &self.matched {
            Some((of, count)) if of == topic => return *count,
            _ => {}
        }
        self.looked += 1;
        let looked = self.looked;
        let mut count = 0;
        self.subscriptions.find(topic, |mark| {
            count += usize::from(mark.swap(looked, Relaxed) != looked);
        });
        self.matched = Some((topic.clone(), count));
        count
    }

    pub fn subscribed(&mut self, peer: u64, prefix: Bytes) {
        self.matched = None;
        if self.subscriptions.peer(peer).is_none() {
            if self.subscriptions.len() >= PREFIXES_MAX {
                return;
            }
            self.subscriptions.join(peer, Arc::default());
        }
        self.subscriptions.add(peer, prefix);
    }

    pub fn unsubscribed(&mut self, peer: u64, prefix: &[u8]) {
        self.matched = None;
        self.subscriptions.remove(peer, prefix);
        if !self.subscriptions.has_any(peer) {
            self.subscriptions.leave(peer);
        }
    }

    pub fn gone(&mut self, peer: u64) {
        self.matched = None;
        self.subscriptions.leave(peer);
        self.confirmations.gone(peer);
    }

    pub fn forget_subscriptions(&mut self) {
        self.matched = None;
        self.subscriptions = Index::new();
        self.confirmations.clear();
    }
}

impl State {
    /// The socket is closed; where that was not by this side, the runtime has ended its task.
    fn closed(&self) -> PublishError {
        self.end.unwrap_or(PublishEnd::RuntimeShutDown).into()
    }
}

impl Shared {
    #[allow(clippy::too_many_arguments, reason = "called once, by the builder")]
    pub fn new(
        sender: PublishSender,
        endpoint: Endpoint,
        linger: Duration,
        epoch: u64,
        sizes: Sizes,
        by_principal: Arc<Tally<OfPrincipal>>,
        outgoing: Outgoing<Instant>,
        departures: Departures,
    ) -> Self {
        Self {
            sender,
            endpoint,
            linger,
            epoch,
            sizes,
            by_principal,
            woken: Notify::new(),
            state: Mutex::new(State {
                outgoing,
                departures,
                subscriptions: Index::new(),
                looked: 0,
                matched: None,
                confirmations: Confirmations::default(),
                full: Vec::new(),
                now: Instant::now(),
                end: None,
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
        mut body: Body,
    ) -> Result<Published, PublishError> {
        self.check_sizes(name.len() + 1 + key.len(), body.len())?;
        loop {
            if let Some(published) = self.try_publish(name, key, &mut body)? {
                return Ok(published);
            }
            self.sender.writable().await;
        }
    }

    fn check_sizes(&self, topic: usize, body: usize) -> Result<(), PublishError> {
        let Sizes {
            event_max,
            message_max,
        } = self.sizes;
        // A question names the topic, and its answer too.
        let topic_max = (message_max.saturating_sub(BESIDE_BYTES) / 2).min(TOPIC_BYTES_MAX);
        if topic > topic_max {
            return Err(PublishError::TopicTooLong {
                bytes: topic,
                bytes_max: topic_max,
            });
        }
        let body_max = event_max.min(message_max.saturating_sub(topic + BESIDE_BYTES));
        if body > body_max {
            return Err(PublishError::TooLarge {
                bytes: body,
                bytes_max: body_max,
            });
        }
        Ok(())
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
        if let Some(end) = state.end {
            return Err(end.into());
        }
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
            Way::WaitsFirst => self.woken.notify_one(),
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
                    Err(PublishRefused::Closed) => return Err(state.closed()),
                }
            }
            Way::NoRoom => return Ok(None),
        }
        let published = Published {
            sequence: next.number,
            matched: state.matching(&next.topic),
        };
        let now = state.now;
        state.outgoing.sent(now, next);
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

    /// Whether more events are about to join those that wait.
    pub fn is_early(&self) -> bool {
        self.lock().departures.is_early()
    }

    pub fn look_at_clock(&self) {
        self.lock().now = Instant::now();
    }

    /// The driver's turn: sends what waits. Whether the socket had room for it.
    pub fn turn(&self) -> bool {
        let mut state = self.lock();
        state.now = Instant::now();
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
                    return Err(state.closed());
                }
            }
        }
        Ok(true)
    }

    /// Announces the last numbers of some topics that are quiet; returns whether those were the last that are to be now.
    pub fn announce(&self, now: Instant) -> bool {
        let (due, is_last) = self.lock().outgoing.due(now, ANNOUNCE_TOPICS_MAX);
        for (topic, last) in due {
            // The lock again, so that no event of the topic passes its own tail.
            let mut state = self.lock();
            let next = state.outgoing.next(&topic);
            // Where there is no room, the next time will do.
            if next.is_ok_and(|next| next.number == last + 1)
                && matches!(self.flush(&mut state), Ok(true))
            {
                let message = self.message(topic, EventKind::Tail, last, Bytes::new());
                let _ = self.sender.try_send(message);
            }
        }
        is_last
    }

    /// Sends a part of an answer to one who asks: that its subscription is here, with the last numbers of its topics, or
    /// that it is not taken: it came before, if it came at all.
    ///
    /// Under the lock, so that the numbers are exactly what was sent before.
    pub fn answer(&self) -> Answering {
        let mut state = self.lock();
        let mut is_full = false;
        // One who has no room leaves its turn to the next.
        for _ in 0..state.confirmations.len().min(ANSWER_PEERS_MAX) {
            let Some(mut question) = state.confirmations.next() else {
                return Answering::Done;
            };
            match self.answer_to(&mut state, &mut question) {
                Ok(true) => {}
                Ok(false) => {
                    state.confirmations.later(question);
                    return Answering::Goes;
                }
                Err(SendToRefused::Full) => {
                    state.confirmations.later(question);
                    is_full = true;
                    continue;
                }
                Err(SendToRefused::Gone) => {}
            }
            break;
        }
        match (state.confirmations.len(), is_full) {
            (0, _) => Answering::Done,
            (_, true) => Answering::Waits,
            (_, false) => Answering::Goes,
        }
    }

    /// Returns whether it was the last part.
    fn answer_to(&self, state: &mut State, question: &mut Question) -> Result<bool, SendToRefused> {
        let Some((_, prefix)) = is_confirmation(&question.topic) else {
            return Ok(true);
        };
        // Where the transport does not say whose a subscription is, it is here if any subscriber has it.
        let peer = self.sender.knows_peers().then_some(question.peer);
        let from = question.from;
        let bytes_max = ANSWER_BYTES_MAX.min(self.sizes.message_max);
        let (kind, number, tails) = match state.has(peer, prefix) {
            false => (EventKind::Refused, 0, Tails::default()),
            true => {
                let outgoing = &state.outgoing;
                let tails = outgoing.tails(prefix, from, ANSWER_TOPICS_MAX, bytes_max, TAIL_BYTES);
                match tails.rest {
                    Some(_) => (EventKind::Tails, question.parts, tails),
                    None => (EventKind::Confirmed, question.parts, tails),
                }
            }
        };
        if !matches!(self.flush(state), Ok(true)) {
            return Err(SendToRefused::Full);
        }
        let is_last = tails.rest.is_none();
        if is_last || !tails.tails.is_empty() {
            let body = match kind {
                EventKind::Refused => Bytes::new(),
                _ => encode_tails(&tails.tails),
            };
            let message = self.message(question.topic.clone(), kind, number, body);
            self.sender.try_send_to(question.peer, message)?;
            question.parts += 1;
        }
        question.from = tails.rest.unwrap_or(from);
        Ok(is_last)
    }

    fn message(&self, topic: Bytes, kind: EventKind, sequence: u64, body: Bytes) -> TopicMessage {
        TopicMessage::Classic(TopicFrames {
            topic,
            header: self.header(kind, sequence).encode(),
            body,
        })
    }

    /// Ends it, unless it has ended.
    pub fn end(&self, end: PublishEnd) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.end = Some(end);
            if end == PublishEnd::RuntimeShutDown {
                tracing::warn!(endpoint = %self.endpoint, "publisher ended: its runtime has shut down");
            }
        }
    }
}

/// A body that is to be sent: first where it was built, since it may be copied from there.
pub(super) enum Body {
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
    message::build_with::<tails::Owned>(|to| {
        let mut list = to.init_tails(tails.len() as u32); // at most `ANSWER_TOPICS_MAX`
        for (i, (topic, last)) in (0u32..).zip(tails) {
            let mut tail = list.reborrow().get(i);
            tail.set_topic(topic);
            tail.set_sequence(*last);
        }
    })
}
