//! What a subscriber and its driver share: the subscriptions, and what has arrived for whoever takes it.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::SubscribeError;
use crate::counter::Counter;
use crate::message::{Limits, MessageError};
use crate::topic::buffer::{Arrived, Buffer, Content};
use crate::topic::names::{confirmation_of, is_confirmation};
use crate::transport::{self, Closed, Endpoint, SubscribeSender, TopicFrames};
use crate::wire::{EventHeader, EventKind, RequestId};
use crate::wire_capnp::tails;

#[derive(Debug)]
pub(super) struct Shared {
    pub sender: SubscribeSender,
    /// Messages of publishers that may not publish under their topic.
    pub denied: Arc<AtomicU64>,
    /// Messages that were no events.
    pub malformed: Counter,
    endpoint: Endpoint,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub buffer: Buffer,
    pub waker: Option<Waker>,
    /// By their prefixes.
    subscriptions: HashMap<Bytes, Subscription>,
    pub refused: u64,
    pub closed: bool,
}

#[derive(Debug)]
struct Subscription {
    /// Of the confirmation that is asked for; none is for a publisher that cannot.
    nonce: Option<u128>,
    /// Whether it was answered: what else comes under this nonce says nothing.
    is_answered: bool,
    waiting: Vec<oneshot::Sender<Confirmed>>,
}

impl Subscription {
    /// Asks under another nonce; what was answered under the one before counts no more.
    fn renew(&mut self, nonce: u128) -> Option<u128> {
        self.is_answered = false;
        self.nonce.replace(nonce)
    }
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
    ) -> Self {
        Self {
            sender,
            denied,
            malformed: Counter::default(),
            endpoint,
            state: Mutex::new(State {
                buffer,
                waker: None,
                subscriptions: HashMap::new(),
                refused: 0,
                closed: false,
            }),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn subscribe(
        &self,
        prefix: Bytes,
        confirm: Option<oneshot::Sender<Confirmed>>,
    ) -> Result<(), SubscribeError> {
        let closed = |Closed| SubscribeError::Closed;
        let nonce = confirm.is_some().then(nonce);
        let (is_first, before) = {
            let mut state = self.lock();
            let is_first = !state.subscriptions.contains_key(&prefix);
            let subscription = state
                .subscriptions
                .entry(prefix.clone())
                .or_insert(Subscription {
                    nonce: None,
                    is_answered: false,
                    waiting: Vec::new(),
                });
            subscription.waiting.extend(confirm);
            let before = nonce.and_then(|nonce| subscription.renew(nonce));
            (is_first, before)
        };
        if is_first {
            self.sender
                .subscribe(prefix.clone())
                .await
                .map_err(closed)?;
        }
        self.ask(&prefix, before, nonce).await.map_err(closed)
    }

    /// Asks for a confirmation, instead of one that was asked for before.
    async fn ask(
        &self,
        prefix: &Bytes,
        before: Option<u128>,
        nonce: Option<u128>,
    ) -> Result<(), Closed> {
        if let Some(before) = before {
            self.sender
                .unsubscribe(confirmation_of(before, prefix))
                .await?;
        }
        if let Some(nonce) = nonce {
            self.sender
                .subscribe(confirmation_of(nonce, prefix))
                .await?;
        }
        Ok(())
    }

    pub async fn unsubscribe(&self, prefix: Bytes) -> Result<(), SubscribeError> {
        let Some(subscription) = self.lock().subscriptions.remove(&prefix) else {
            return Ok(());
        };
        let closed = |Closed| SubscribeError::Closed;
        self.ask(&prefix, subscription.nonce, None)
            .await
            .map_err(closed)?;
        self.sender.unsubscribe(prefix).await.map_err(closed)
    }

    /// After a new connection, which has the subscriptions again: what was missed in between?
    pub async fn ask_again(&self) -> Result<(), Closed> {
        let mut again = Vec::new();
        for (prefix, subscription) in &mut self.lock().subscriptions {
            if let Some(before) = subscription.nonce {
                let nonce = nonce();
                subscription.renew(nonce);
                again.push((prefix.clone(), before, nonce));
            }
        }
        for (prefix, before, nonce) in again {
            self.ask(&prefix, Some(before), Some(nonce)).await?;
        }
        Ok(())
    }

    /// Takes in what has arrived; wakes whoever waits for it.
    pub fn accept(&self, batch: &mut Vec<Result<TopicFrames, transport::Malformed>>) {
        let connection = self.sender.connection_generation();
        let mut state = self.lock();
        for received in batch.drain(..) {
            let arrived = match received {
                Ok(frames) => state.read(frames, connection),
                Err(_) => Err(NoEvent),
            };
            match arrived {
                Ok(Some(arrived)) => state.buffer.push(arrived),
                Ok(None) => {}
                Err(NoEvent) => self.malformed.count_and_log(|count| {
                    tracing::warn!(endpoint = %self.endpoint, count, "no event");
                }),
            }
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub fn end(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.subscriptions.clear();
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A message that is none of what a publisher sends.
struct NoEvent;

impl State {
    /// `None` for what only the subscriber itself has to know.
    fn read(&mut self, frames: TopicFrames, connection: u64) -> Result<Option<Arrived>, NoEvent> {
        let header = EventHeader::decode(&frames.header).map_err(|_| NoEvent)?;
        let (topic, content) = match (header.kind, is_confirmation(&frames.topic)) {
            (EventKind::Confirmed, Some((nonce, prefix))) => {
                let prefix = frames.topic.slice_ref(prefix);
                let tails = read_tails(frames.body).map_err(|_| NoEvent)?;
                if !self.answered(&prefix, nonce, Confirmed::Yes) {
                    return Ok(None);
                }
                (prefix, Content::Confirmed { tails })
            }
            (EventKind::Refused, Some((nonce, prefix))) => {
                self.answered(prefix, nonce, Confirmed::Refused);
                return Ok(None);
            }
            (EventKind::Event, None) => {
                let content = Content::Event {
                    number: header.sequence,
                    metadata: header.metadata,
                    body: frames.body,
                };
                (frames.topic, content)
            }
            (EventKind::Tail, None) => {
                let last = header.sequence;
                (frames.topic, Content::Tail { last })
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

    /// Whether this was asked, and is answered for the first time.
    fn answered(&mut self, prefix: &[u8], nonce: u128, confirmed: Confirmed) -> bool {
        let Some(subscription) = self.subscriptions.get_mut(prefix) else {
            return false;
        };
        if subscription.nonce != Some(nonce) || subscription.is_answered {
            return false;
        }
        subscription.is_answered = true;
        if confirmed == Confirmed::Refused {
            self.refused += 1;
            let prefix = prefix.escape_ascii();
            tracing::warn!(%prefix, "the publisher refuses a subscription");
        }
        for waiting in subscription.waiting.drain(..) {
            // Whoever gave up waiting does not need to know.
            let _ = waiting.send(confirmed);
        }
        true
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
