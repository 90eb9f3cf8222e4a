//! What a subscriber and its driver share: the subscriptions, and what has arrived for the one who takes it.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::{SubscribeError, SubscriberEnd};
use crate::counter::Counter;
use crate::message::{Limits, MessageError};
use crate::topic::buffer::{Arrived, Buffer, Content};
use crate::topic::names::is_confirmation;
use crate::topic::subscriptions::{NotAsked, Say, Subscriptions, TakenBack};
use crate::transport::{self, Endpoint, SubscribeSender, TopicFrames};
use crate::wire::{EventHeader, EventKind, RequestId};
use crate::wire_capnp::tails;

/// Subscriptions that may be taken back before an event is taken.
const TAKEN_BACK_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Shared {
    pub sender: SubscribeSender,
    /// Messages of publishers that may not publish under their topic.
    pub denied: Arc<AtomicU64>,
    /// Messages that were no events.
    pub malformed: Counter,
    /// Wakes the driver where it waits for room.
    pub room: Notify,
    /// Wakes the driver where a question was asked.
    pub asked: Notify,
    endpoint: Endpoint,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub buffer: Buffer,
    /// What has arrived and has no room in the buffer yet. While there is anything, the driver reads nothing.
    held: VecDeque<Arrived>,
    pub waker: Option<Waker>,
    subscriptions: Subscriptions<oneshot::Sender<Confirmed>, Instant>,
    pub refused: u64,
    pub end: Option<SubscriberEnd>,
}

/// What the publisher says to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confirmed {
    Yes,
    Refused,
}

impl Shared {
    pub fn new(
        sender: SubscribeSender,
        endpoint: Endpoint,
        buffer: Buffer,
        denied: Arc<AtomicU64>,
        subscriptions_max: usize,
        prefix_bytes_max: usize,
    ) -> Self {
        Self {
            sender,
            denied,
            malformed: Counter::default(),
            room: Notify::new(),
            asked: Notify::new(),
            endpoint,
            state: Mutex::new(State {
                buffer,
                held: VecDeque::new(),
                waker: None,
                subscriptions: Subscriptions::new(subscriptions_max, prefix_bytes_max),
                refused: 0,
                end: None,
            }),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a subscription, and asks for its confirmation where it is waited for.
    pub fn subscribe(
        &self,
        prefix: Bytes,
        waits: Option<oneshot::Sender<Confirmed>>,
    ) -> Result<(), SubscribeError> {
        // Recorded and sent under one lock, so that no question reaches the publisher before what it is about.
        let mut state = self.open()?;
        let State { subscriptions, .. } = &mut *state;
        let is_waiting = |waits: &oneshot::Sender<_>| !waits.is_closed();
        let first = subscriptions.subscribe(prefix, waits, is_waiting)?;
        let asked = subscriptions.ask(Instant::now(), nonce);
        if subscriptions.is_asking() {
            self.asked.notify_one();
        }
        self.say(first.into_iter().chain(asked))
    }

    /// Why a subscription was not confirmed in time.
    pub fn unconfirmed(&self) -> SubscribeError {
        match self.sender.is_connected() {
            true => SubscribeError::Unconfirmed,
            false => SubscribeError::NotConnected {
                endpoint: self.endpoint.clone(),
                failure: self.sender.failure(),
            },
        }
    }

    pub fn unsubscribe(&self, prefix: &Bytes) -> Result<(), SubscribeError> {
        let mut state = self.open()?;
        if state.taken_back() >= TAKEN_BACK_MAX {
            let max = TAKEN_BACK_MAX;
            return Err(SubscribeError::TooMany { max });
        }
        let Some((says, taken_back)) = state.subscriptions.unsubscribe(prefix) else {
            return Ok(());
        };
        state.put(taken_back.into(), false);
        self.say(says)
    }

    /// There is another connection, which has the subscriptions: what was missed in between?
    pub fn connected_again(&self) -> Result<(), SubscribeError> {
        let mut state = self.open()?;
        let before = state.subscriptions.connected();
        let asked = state.subscriptions.ask(Instant::now(), nonce);
        self.say(before.into_iter().chain(asked))
    }

    /// Asks again what is not answered; returns whether there is anything.
    pub fn ask_again(&self) -> Result<bool, SubscribeError> {
        let mut state = self.open()?;
        let says = state.subscriptions.ask_again(Instant::now(), nonce);
        self.say(says)?;
        Ok(state.subscriptions.is_asking())
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, SubscribeError> {
        let state = self.lock();
        match state.end {
            None => Ok(state),
            Some(end) => Err(end.into()),
        }
    }

    /// Why what waited for an answer waits no more.
    pub fn ended(&self) -> SubscribeError {
        let end = self.lock().end;
        end.map_or(SubscribeError::Closed, SubscribeError::from)
    }

    /// Sends what is to be said; under the lock, so that all is said in one order.
    fn say(&self, says: impl IntoIterator<Item = Say>) -> Result<(), SubscribeError> {
        for say in says {
            let said = match say {
                Say::Subscribe(prefix) => self.sender.subscribe(prefix),
                Say::Unsubscribe(prefix) => self.sender.unsubscribe(prefix),
            };
            said.map_err(|transport::Closed| SubscribeError::Closed)?;
        }
        Ok(())
    }

    /// Takes in what has arrived over a connection, and wakes the one who waits for it. What has no room is held, or
    /// dropped where `drops` says so, until there is some again. Returns whether any is held, and whether a question is
    /// unanswered.
    pub fn accept(
        &self,
        connection: u64,
        batch: &mut Vec<Result<TopicFrames, transport::Malformed>>,
        drops: &mut bool,
    ) -> (bool, bool) {
        let mut state = self.lock();
        *drops &= !state.buffer.is_half_empty();
        let mut says = Vec::new();
        for received in batch.drain(..) {
            let arrived = match received {
                Ok(frames) => state.read(frames, connection, &mut says),
                Err(_) => Err(NoEvent),
            };
            match arrived {
                Ok(Some(arrived)) => state.put(arrived, *drops),
                Ok(None) => {}
                Err(NoEvent) => self.malformed.count_and_log(|count| {
                    tracing::warn!(endpoint = %self.endpoint, count, "no event");
                }),
            }
        }
        if !says.is_empty() {
            says.extend(state.subscriptions.ask(Instant::now(), nonce));
            // Where the socket is closed, the driver learns it next.
            let _ = self.say(says);
        }
        let (is_holding, is_asking) = (state.is_holding(), state.subscriptions.is_asking());
        wake(state);
        (is_holding, is_asking)
    }

    /// Takes in what was held, as far as there is room for it now, or all that may be dropped; returns whether any is
    /// still held.
    pub fn put_held(&self, drops: bool) -> bool {
        let mut state = self.lock();
        while let Some(arrived) = state.held.pop_front() {
            if let Some(arrived) = state.try_put(arrived, drops) {
                state.held.push_front(arrived);
                break;
            }
        }
        let is_holding = state.is_holding();
        wake(state);
        is_holding
    }

    /// Ends it, unless it has ended: what has arrived can still be taken.
    pub fn end(&self, end: SubscriberEnd) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.end = Some(end);
            if end == SubscriberEnd::RuntimeShutDown {
                tracing::warn!(endpoint = %self.endpoint, "subscriber ended: its runtime has shut down");
            }
        }
        state.subscriptions.clear();
        wake(state);
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl From<TakenBack> for Arrived {
    fn from(of: TakenBack) -> Self {
        Self {
            topic: of.prefix,
            epoch: 0,
            connection: 0,
            content: Content::TakenBack {
                order: of.order,
                is_asked: of.is_asked,
            },
        }
    }
}

impl From<SubscriberEnd> for SubscribeError {
    fn from(end: SubscriberEnd) -> Self {
        match end {
            SubscriberEnd::RuntimeShutDown => Self::RuntimeShutDown,
            SubscriberEnd::Closed | SubscriberEnd::TooSlow => Self::Closed,
        }
    }
}

impl From<NotAsked> for SubscribeError {
    fn from(error: NotAsked) -> Self {
        match error {
            NotAsked::TooLong { bytes, bytes_max } => Self::TooLong { bytes, bytes_max },
            NotAsked::TooMany { max } => Self::TooMany { max },
        }
    }
}

/// A message that is none of what a publisher sends.
struct NoEvent;

impl State {
    /// Subscriptions taken back of which the one who takes events has not heard yet.
    fn taken_back(&self) -> usize {
        let held = self.held.iter();
        let held = held.filter(|of| matches!(of.content, Content::TakenBack { .. }));
        self.buffer.taken_back() + held.count()
    }

    /// Whether the driver waits for room.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Adds what has arrived behind what arrived before.
    fn put(&mut self, arrived: Arrived, drops: bool) {
        let arrived = match self.is_holding() {
            true => Some(arrived),
            false => self.try_put(arrived, drops),
        };
        self.held.extend(arrived);
    }

    /// Adds it to the buffer; gives it back where it has no room and is not to be dropped.
    fn try_put(&mut self, arrived: Arrived, drops: bool) -> Option<Arrived> {
        let may_drop = drops
            && matches!(
                arrived.content,
                Content::Event { .. } | Content::Tail { .. }
            );
        if may_drop || self.buffer.has_room(&arrived) {
            self.buffer.push(arrived);
            return None;
        }
        Some(arrived)
    }

    /// `None` for what only the subscriber itself has to know.
    fn read(
        &mut self,
        frames: TopicFrames,
        connection: u64,
        says: &mut Vec<Say>,
    ) -> Result<Option<Arrived>, NoEvent> {
        let header = EventHeader::decode(&frames.header).map_err(|_| NoEvent)?;
        let (topic, content) = match (header.kind, is_confirmation(&frames.topic)) {
            (EventKind::Event, None) if self.subscriptions.wants(&frames.topic) => {
                let content = Content::Event {
                    number: header.sequence,
                    metadata: header.metadata,
                    body: frames.body,
                };
                (frames.topic, content)
            }
            (EventKind::Tail, None) if self.subscriptions.wants(&frames.topic) => {
                let last = header.sequence;
                (frames.topic, Content::Tail { last })
            }
            // It was taken back, or was never asked for.
            (EventKind::Event | EventKind::Tail, None) => return Ok(None),
            (EventKind::Tails, Some((nonce, prefix))) => {
                let tails = read_tails(frames.body).map_err(|_| NoEvent)?;
                if !self.subscriptions.part(prefix, nonce, header.sequence) {
                    return Ok(None);
                }
                (frames.topic.slice_ref(prefix), Content::Tails { tails })
            }
            (EventKind::Confirmed, Some((nonce, prefix))) => {
                let tails = read_tails(frames.body).map_err(|_| NoEvent)?;
                let parts = header.sequence;
                let (says_next, answered) = self.subscriptions.confirmed(prefix, nonce, parts);
                says.extend(says_next);
                let Some(answered) = answered else {
                    return Ok(None);
                };
                for waits in answered.waiting {
                    // One that gave up waiting does not need to know.
                    let _ = waits.send(Confirmed::Yes);
                }
                let order = answered.order;
                let prefix = frames.topic.slice_ref(prefix);
                (prefix, Content::Confirmed { tails, order })
            }
            (EventKind::Refused, Some((nonce, prefix))) => {
                let Some((says_next, waiting, taken_back)) =
                    self.subscriptions.refused(prefix, nonce)
                else {
                    return Ok(None);
                };
                says.extend(says_next);
                self.refused += 1;
                let prefix = prefix.escape_ascii();
                tracing::warn!(%prefix, "subscription refused by the publisher");
                for waits in waiting {
                    let _ = waits.send(Confirmed::Refused);
                }
                return Ok(taken_back.map(Arrived::from));
            }
            _ => return Err(NoEvent),
        };
        Ok(Some(Arrived {
            topic,
            epoch: header.epoch,
            connection,
            content,
        }))
    }
}

/// As fresh as a request ID, and made the same way.
fn nonce() -> u128 {
    match RequestId::new() {
        RequestId::Uuid(uuid) => uuid.as_u128(),
        RequestId::Key(_) => 0, // never fresh
    }
}

fn read_tails(body: Bytes) -> Result<Vec<(Bytes, u64)>, MessageError> {
    let message = crate::message::open(body, &Limits::default())?;
    let root = message.get_root::<tails::Reader<'_>>()?;
    let mut tails = Vec::new();
    for tail in root.get_tails()? {
        let topic = Bytes::copy_from_slice(tail.get_topic()?);
        tails.push((topic, tail.get_sequence()));
    }
    Ok(tails)
}

/// For fuzzing: any bytes as the numbers of the last events.
#[cfg(fuzzing)]
pub(crate) fn read_any(bytes: &[u8]) {
    let _ = read_tails(Bytes::copy_from_slice(bytes));
}
