//! The subscriber: asks for topics, takes what comes off the socket at once, and gives it out in
//! order with what was missed in between.

use std::collections::{HashMap, VecDeque};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Topic;
use super::buffer::{Arrived, Buffer, Content, SlowPolicy};
use super::event::{Event, EventMessage};
use super::names::{Keys, TopicName, confirmation_of, is_confirmation};
use super::sequence::Incoming;
use crate::message::{Limits, MessageError};
use crate::security::ClientSecurity;
use crate::transport::{
    self, Closed, Endpoint, SubscribeReceiver, SubscribeSender, Take, TopicFrames, TransportError,
    TransportOptions,
};
use crate::wire::{EventHeader, EventKind, RequestId};
use crate::wire_capnp::tails;

/// Receives events of one topic, as a [`Stream`] of [`Event`]s.
///
/// ```
/// # async fn f<Progress: bowline::topic::Topic + std::fmt::Debug>() -> Result<(), Box<dyn std::error::Error>> {
/// use bowline::topic::{Event, Keys};
///
/// let mut progress = bowline::Subscriber::<Progress>::connect("tcp://127.0.0.1:5556").await?;
/// progress.subscribe(Keys::All).await?;
/// while let Some(event) = progress.next().await {
///     match event {
///         Event::Message(message) => println!("{:?}", message.plain()?),
///         Event::Missed { topic, from, to } => println!("missed {from} to {to} of {topic}"),
///         Event::Restarted { .. } => println!("the publisher is a new one"),
///     }
/// }
/// # Ok(()) }
/// ```
///
/// It connects, and connects again with its subscriptions, in the background and for ever.
/// Dropping it closes the socket.
#[derive(Debug)]
pub struct Subscriber<T> {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
    incoming: Incoming,
    ready: VecDeque<Event<T>>,
    limits: Limits,
    confirm_within: Duration,
}

/// Settings of a [`Subscriber`].
#[derive(Clone, Debug)]
#[must_use]
pub struct SubscriberBuilder {
    events_max: usize,
    bytes_max: usize,
    topics_max: usize,
    topic_bytes_max: usize,
    policy: SlowPolicy,
    confirm_within: Duration,
    limits: Limits,
    transport: TransportOptions,
}

/// What a subscriber has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriberCounters {
    /// Events dropped here because nobody took them; each is also reported as missed.
    pub dropped: u64,
    /// Messages that were no events.
    pub malformed: u64,
    /// Subscriptions that the publisher refused, also when they were asked for again after a new
    /// connection.
    pub refused: u64,
    /// Messages of a publisher that may not publish under their topic.
    pub denied: u64,
}

/// Why a subscription is not confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The publisher does not take it: its rules do not allow it to this subscriber, or it is one too
    /// many. It is not asked for any more.
    #[error("the publisher refuses the subscription")]
    Denied,
    /// No publisher has confirmed it in time. It stays asked for, and is in force once one is there.
    #[error("no publisher has confirmed the subscription in time; it stays asked for")]
    Unconfirmed,
    /// The subscriber is closed.
    #[error("the subscriber is closed")]
    Closed,
}

impl Default for SubscriberBuilder {
    fn default() -> Self {
        Self {
            events_max: 1024,
            bytes_max: 16 << 20,
            topics_max: 65_536,
            topic_bytes_max: 16 << 20,
            policy: SlowPolicy::default(),
            confirm_within: Duration::from_secs(10),
            limits: Limits::default(),
            transport: TransportOptions::default(),
        }
    }
}

impl SubscriberBuilder {
    /// Events that may wait to be taken. Default: 1,024.
    pub fn events_max(mut self, events: usize) -> Self {
        self.events_max = events;
        self
    }

    /// Bytes of events that may wait to be taken; of what else a publisher says, as much again.
    /// Default: 16 MiB.
    pub fn bytes_max(mut self, bytes: usize) -> Self {
        self.bytes_max = bytes;
        self
    }

    /// Full topics whose numbers are kept, to see what was missed. Past them all are forgotten, and what was
    /// missed of a topic is seen again from its next event on. Default: 65,536.
    pub fn topics_max(mut self, topics: usize) -> Self {
        self.topics_max = topics;
        self
    }

    /// Bytes of the names of these topics, past which the same happens. Default: 16 MiB.
    pub fn topic_bytes_max(mut self, bytes: usize) -> Self {
        self.topic_bytes_max = bytes;
        self
    }

    /// What happens at these limits. Default: [`SlowPolicy::Report`].
    pub fn slow(mut self, policy: SlowPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// How long [`Subscriber::subscribe`] waits for the publisher. Default: 10 s.
    pub fn confirm_within(mut self, time: Duration) -> Self {
        self.confirm_within = time;
        self
    }

    /// What reading an event may cost.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who this subscriber is, and the key of the publisher that it listens to.
    pub fn security(mut self, security: ClientSecurity) -> Self {
        self.transport.client_security = Some(security);
        self
    }

    /// Settings of the socket. Keys that were given before stay where these have none.
    pub fn transport(mut self, mut options: TransportOptions) -> Self {
        let before = self.transport.client_security.take();
        options.client_security = options.client_security.or(before);
        self.transport = options;
        self
    }

    /// Opens the socket, without a subscription yet and whether or not the publisher is there.
    ///
    /// # Errors
    /// For what is no endpoint.
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub async fn connect<T: Topic>(
        self,
        endpoint: impl AsRef<str>,
    ) -> Result<Subscriber<T>, TransportError> {
        let endpoint: Endpoint = endpoint.as_ref().parse()?;
        let denied = Arc::new(AtomicU64::new(0));
        let take = take(self.transport.client_security.as_ref(), &denied);
        let (sender, receiver) =
            transport::connect_subscribe(&endpoint, &self.transport, take).await?;
        let shared = Arc::new(Shared {
            sender,
            denied,
            state: Mutex::new(State {
                buffer: Buffer::new(self.events_max, self.bytes_max, self.policy),
                waker: None,
                subscriptions: HashMap::new(),
                malformed: 0,
                refused: 0,
                closed: false,
            }),
        });
        Ok(Subscriber {
            driver: tokio::spawn(drive(Arc::clone(&shared), receiver)),
            shared,
            incoming: Incoming::new(self.topics_max, self.topic_bytes_max),
            ready: VecDeque::new(),
            limits: self.limits,
            confirm_within: self.confirm_within,
        })
    }
}

/// What the socket asks of each message, where publishers have rules.
fn take(security: Option<&ClientSecurity>, denied: &Arc<AtomicU64>) -> Option<Take> {
    let (allowed, access) = security?.publishers.clone()?;
    let denied = Arc::clone(denied);
    Some(Arc::new(move |key, topic| {
        // A confirmation carries no event, and its prefix may be wider than what is published.
        let may = allowed.principal(key).is_some_and(|principal| {
            is_confirmation(topic).is_some() || access.may_publish(principal.as_str(), topic)
        });
        if !may {
            denied.fetch_add(1, Ordering::Relaxed);
        }
        may
    }))
}

impl Subscriber<()> {
    /// To set more than the endpoint.
    pub fn builder() -> SubscriberBuilder {
        SubscriberBuilder::default()
    }
}

impl<T: Topic> Subscriber<T> {
    /// With default settings; see [`SubscriberBuilder::connect`].
    ///
    /// # Errors
    /// For what is no endpoint.
    pub async fn connect(endpoint: impl AsRef<str>) -> Result<Self, TransportError> {
        SubscriberBuilder::default().connect(endpoint).await
    }

    /// Asks for the events with these keys; returns when the publisher has confirmed it. Every
    /// event that is published from then on is delivered or reported missed.
    ///
    /// Cancel safe: the subscription then stays asked for.
    ///
    /// # Errors
    /// [`SubscribeError::Denied`], and [`SubscribeError::Unconfirmed`] with no publisher there, or one that is not Bowline's (see
    /// [`subscribe_unconfirmed`](Self::subscribe_unconfirmed)).
    pub async fn subscribe(&self, keys: Keys<'_>) -> Result<(), SubscribeError> {
        let prefix = keys.prefix(T::NAME);
        let (confirm, confirmed) = oneshot::channel();
        self.shared.subscribe(prefix, Some(confirm)).await?;
        match timeout(self.confirm_within, confirmed).await {
            Ok(Ok(Confirmed::Yes)) => Ok(()),
            Ok(Ok(Confirmed::Refused)) => {
                self.shared.unsubscribe(keys.prefix(T::NAME)).await?;
                Err(SubscribeError::Denied)
            }
            Ok(Err(_)) => Err(SubscribeError::Closed),
            Err(_) => Err(SubscribeError::Unconfirmed),
        }
    }

    /// Asks for the events with these keys and does not wait: for a publisher that is a plain PUB
    /// socket in another language. Gaps between events are still reported; what was published
    /// before the first one is not.
    ///
    /// # Errors
    /// [`SubscribeError::Closed`].
    pub async fn subscribe_unconfirmed(&self, keys: Keys<'_>) -> Result<(), SubscribeError> {
        self.shared.subscribe(keys.prefix(T::NAME), None).await
    }

    /// Takes a subscription back. What has arrived before still comes.
    ///
    /// # Errors
    /// [`SubscribeError::Closed`].
    pub async fn unsubscribe(&mut self, keys: Keys<'_>) -> Result<(), SubscribeError> {
        let prefix = keys.prefix(T::NAME);
        self.incoming.forget(&prefix);
        self.shared.unsubscribe(prefix).await
    }

    /// The next event; `None` once the subscriber is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Event<T>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Whether the publisher is there now.
    pub fn is_connected(&self) -> bool {
        self.shared.sender.is_connected()
    }

    /// What it has counted.
    pub fn counters(&self) -> SubscriberCounters {
        let state = self.shared.lock();
        SubscriberCounters {
            dropped: state.buffer.dropped(),
            malformed: state.malformed,
            refused: state.refused,
            denied: self.shared.denied.load(Ordering::Relaxed),
        }
    }

    /// Closes the socket.
    pub async fn close(self) {
        self.shared.sender.close().await;
    }

    /// Turns an arrival into events: at most one of its own, after what it says was missed.
    fn accept(&mut self, arrived: Arrived) {
        let Arrived {
            topic,
            epoch,
            connection,
            content,
        } = arrived;
        self.incoming.over(connection);
        let (restarted, missed, is_new) = match &content {
            Content::Confirmed { tails } => {
                let (restarted, missed) =
                    self.incoming
                        .confirmed(epoch, &topic, tails.iter().cloned());
                (restarted, missed, false)
            }
            Content::Tail { last } => {
                let arrival = self.incoming.tail(epoch, &topic, *last);
                let missed = arrival.missed.map(|range| (topic.clone(), range));
                (arrival.restarted, missed.into_iter().collect(), false)
            }
            Content::Event { number, .. } => {
                let arrival = self.incoming.event(epoch, &topic, *number);
                let missed = arrival.missed.map(|range| (topic.clone(), range));
                (
                    arrival.restarted,
                    missed.into_iter().collect(),
                    arrival.is_new,
                )
            }
        };
        self.ready
            .extend(restarted.map(|epoch| Event::Restarted { epoch }));
        for (topic, range) in missed {
            self.ready.push_back(Event::Missed {
                topic: TopicName(topic),
                from: *range.start(),
                to: *range.end(),
            });
        }
        if let Content::Event {
            number,
            metadata,
            body,
        } = content
            && is_new
        {
            self.ready.push_back(Event::Message(EventMessage {
                body,
                limits: self.limits,
                topic: TopicName(topic),
                sequence: number,
                epoch,
                metadata,
                type_: PhantomData,
            }));
        }
    }
}

impl<T: Topic> Stream for Subscriber<T> {
    type Item = Event<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event<T>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            let arrived = {
                let mut state = self.shared.lock();
                match state.buffer.pop() {
                    Some(arrived) => arrived,
                    None if state.closed || state.buffer.is_overflowed() => {
                        return Poll::Ready(None);
                    }
                    None => {
                        state.waker = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                }
            };
            self.accept(arrived);
        }
    }
}

impl<T> Unpin for Subscriber<T> {}

impl<T> Drop for Subscriber<T> {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[derive(Debug)]
struct Shared {
    sender: SubscribeSender,
    denied: Arc<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    buffer: Buffer,
    waker: Option<Waker>,
    /// By their prefixes.
    subscriptions: HashMap<Bytes, Subscription>,
    malformed: u64,
    refused: u64,
    closed: bool,
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
enum Confirmed {
    Yes,
    Refused,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn subscribe(
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

    async fn unsubscribe(&self, prefix: Bytes) -> Result<(), SubscribeError> {
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
    async fn ask_again(&self) -> Result<(), Closed> {
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
    fn accept(&self, batch: &mut Vec<Result<TopicFrames, transport::Malformed>>) {
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
                Err(NoEvent) => state.malformed += 1,
            }
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn end(&self) {
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

async fn drive(shared: Arc<Shared>, mut receiver: SubscribeReceiver) {
    let mut batch = Vec::new();
    let mut seen = shared.sender.connection_generation();
    let mut was_connected = shared.sender.is_connected();
    loop {
        tokio::select! {
            biased;
            received = receiver.receive(&mut batch) => {
                if received.is_err() {
                    break;
                }
                shared.accept(&mut batch);
                if shared.lock().buffer.is_overflowed() {
                    shared.sender.close().await;
                    break;
                }
            }
            changed = shared.sender.connection_changed(seen) => {
                let Ok(generation) = changed else { break };
                let again = was_connected || generation > seen + 1;
                seen = generation;
                if shared.sender.is_connected() {
                    if again && shared.ask_again().await.is_err() {
                        break;
                    }
                    was_connected = true;
                }
            }
        }
    }
    shared.end();
}
