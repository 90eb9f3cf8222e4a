//! The publisher: numbers events, hands them to the socket, confirms subscriptions, announces tails.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use capnp::traits::Owned;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Topic;
use super::names::{TopicName, is_confirmation, join};
use super::sequence::{Outgoing, TooManyTopics};
use crate::message::{self, MessageError};
use crate::security::{Principal, ServerSecurity, Tally, Wanted};
use crate::transport::{
    self, Admit, DoorCounters, Endpoint, PublishRefused, PublishSender, SubscriptionChange,
    SubscriptionWatch, TopicFrames, TransportError, TransportOptions,
};
use crate::wire::{EventHeader, EventKind, Metadata};
use crate::wire_capnp::tails;

/// A subscription that no rule allows is logged at most once in this time; the counters have all.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Publishes events of one topic.
///
/// ```
/// # async fn f<Progress: bowline::topic::Topic>(event: Progress) -> Result<(), Box<dyn std::error::Error>> {
/// let publisher = bowline::Publisher::<Progress>::bind("tcp://127.0.0.1:5556").await?;
/// let published = publisher.publish(&event).await?;
/// println!("number {} went to {} subscribers", published.sequence, published.matched);
/// # Ok(()) }
/// ```
///
/// A subscriber that is slow or gone costs a bounded queue and delays nobody; what it misses it
/// sees in the numbers of what it gets. Cheap to clone; dropping the last clone closes the socket.
#[derive(Debug)]
pub struct Publisher<T> {
    inner: Arc<Inner>,
    type_: PhantomData<fn() -> T>,
}

impl<T> Clone for Publisher<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            type_: PhantomData,
        }
    }
}

/// Settings of a [`Publisher`].
#[derive(Clone, Debug)]
#[must_use]
pub struct PublisherBuilder {
    topics_max: usize,
    principals_max: usize,
    announce_after: Duration,
    transport: TransportOptions,
}

/// What became of an event. It says nothing about its arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// Its number in its topic.
    pub sequence: u64,
    /// How many subscribers it matched.
    pub matched: usize,
}

/// What a publisher has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherCounters {
    /// Subscribers that are connected and have a subscription.
    pub subscribers: usize,
    /// Events dropped for single subscribers that had no room. `None` where the transport does not
    /// count them; the subscribers do.
    pub dropped: Option<u64>,
}

/// What a publisher has counted of one principal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrincipalSubscriptions {
    /// Whose they are; `None` for all together that came after the first
    /// [`principals_max`](PublisherBuilder::principals_max).
    pub principal: Option<Principal>,
    /// Subscriptions that a rule allows.
    pub allowed: u64,
    /// Subscriptions refused because no rule allows them.
    pub denied: u64,
}

#[derive(Debug, Default)]
struct OfPrincipal {
    allowed: AtomicU64,
    denied: AtomicU64,
}

/// Why an event was not published: it went to nobody, and its number goes to the next.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The plain struct has no encoding.
    #[error("the event has no encoding: {0}")]
    Message(#[from] MessageError),
    /// The event would begin a topic beyond [`PublisherBuilder::topics_max`].
    #[error("the publisher has as many topics as it may")]
    TooManyTopics,
    /// The publisher is closed.
    #[error("the publisher is closed")]
    Closed,
}

impl Default for PublisherBuilder {
    fn default() -> Self {
        Self {
            topics_max: 65_536,
            principals_max: 1024,
            announce_after: Duration::from_secs(1),
            transport: TransportOptions::default(),
        }
    }
}

impl PublisherBuilder {
    /// Full topics (a topic's name and a key) that are counted. Default: 65,536.
    pub fn topics_max(mut self, topics: usize) -> Self {
        self.topics_max = topics;
        self
    }

    /// How long a topic is quiet before the number of its last event is announced. Default: 1 s.
    pub fn announce_after(mut self, quiet: Duration) -> Self {
        self.announce_after = quiet.max(Duration::from_millis(1));
        self
    }

    /// Principals that are [counted](Publisher::by_principal) each by itself; those that come later are
    /// counted together. Default: 1,024.
    pub fn principals_max(mut self, principals: usize) -> Self {
        self.principals_max = principals;
        self
    }

    /// Keys, who is let in, and what they may subscribe to; without, the publisher binds only where
    /// no other machine can reach it.
    pub fn security(mut self, security: ServerSecurity) -> Self {
        self.transport.server_security = Some(security);
        self
    }

    /// Settings of the socket. Keys that were given before stay where these have none. What waits for each subscriber is at most its
    /// [`send_queue_max`](TransportOptions::send_queue_max).
    pub fn transport(mut self, mut options: TransportOptions) -> Self {
        let before = self.transport.server_security.take();
        options.server_security = options.server_security.or(before);
        self.transport = options;
        self
    }

    /// Opens the socket.
    ///
    /// # Errors
    /// As [`ServerBuilder::bind`](crate::ServerBuilder::bind).
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub async fn bind<T: Topic>(
        self,
        endpoint: impl AsRef<str>,
    ) -> Result<Publisher<T>, TransportError> {
        let endpoint: Endpoint = endpoint.as_ref().parse()?;
        let by_principal = Arc::new(Tally::new(self.principals_max));
        let admit = admit(self.transport.server_security.as_ref(), &by_principal);
        let (sender, watch, endpoint) =
            transport::bind_publish(&endpoint, &self.transport, admit).await?;
        let shared = Arc::new(Shared {
            sender,
            endpoint,
            epoch: new_epoch(),
            by_principal,
            state: Mutex::new(State {
                outgoing: Outgoing::new(self.topics_max, self.announce_after),
                subscriptions: HashMap::new(),
                full: Vec::new(),
            }),
        });
        let driver = tokio::spawn(drive(Arc::clone(&shared), watch, self.announce_after));
        Ok(Publisher {
            inner: Arc::new(Inner { shared, driver }),
            type_: PhantomData,
        })
    }
}

/// What the socket asks of each subscription. One that only asks for a confirmation is taken from
/// everybody: what it confirms was asked about by itself.
fn admit(security: Option<&ServerSecurity>, by_principal: &Arc<Tally<OfPrincipal>>) -> Admit {
    let access = security.map(|security| security.access.clone());
    let by_principal = Arc::clone(by_principal);
    let logged = Mutex::new(None);
    Arc::new(move |principal, prefix| {
        if is_confirmation(prefix).is_some() {
            return Some(Wanted::Answer);
        }
        let (Some(access), Some(principal)) = (&access, principal) else {
            // Nobody has a name where there are no keys, and everybody where there are.
            return access.is_none().then_some(Wanted::Events);
        };
        let may = access.may_subscribe(principal.as_str(), prefix);
        by_principal.count(principal, |of| {
            let counter = if may { &of.allowed } else { &of.denied };
            counter.fetch_add(1, Relaxed);
        });
        if !may {
            log_denied(&logged, principal, prefix);
        }
        may.then_some(Wanted::Events)
    })
}

/// A peer may ask as often as it likes.
fn log_denied(logged: &Mutex<Option<Instant>>, principal: &Principal, prefix: &[u8]) {
    let now = Instant::now();
    let mut logged = logged.lock().unwrap_or_else(PoisonError::into_inner);
    if logged.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL) {
        *logged = Some(now);
        let prefix = prefix.escape_ascii();
        tracing::warn!(%principal, %prefix, "no rule allows the subscription");
    }
}

/// Later than any epoch before: microseconds since 1970, of which a process has one.
fn new_epoch() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| since.as_micros() as u64)
}

impl Publisher<()> {
    /// To set more than the endpoint.
    pub fn builder() -> PublisherBuilder {
        PublisherBuilder::default()
    }
}

impl<T: Topic> Publisher<T> {
    /// With default settings; see [`PublisherBuilder::bind`].
    ///
    /// # Errors
    /// As [`PublisherBuilder::bind`].
    pub async fn bind(endpoint: impl AsRef<str>) -> Result<Self, TransportError> {
        PublisherBuilder::default().bind(endpoint).await
    }

    /// Publishes another topic from the same endpoint.
    pub fn also<U: Topic>(&self) -> Publisher<U> {
        Publisher {
            inner: Arc::clone(&self.inner),
            type_: PhantomData,
        }
    }

    /// Where it can be reached, with the port that it really has.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.shared.endpoint
    }

    /// Publishes a plain struct, under the key that it has.
    ///
    /// Waits only for the socket's own queue, never for a subscriber. Cancel safe: an event is
    /// published whole or not at all.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish(&self, event: &T) -> Result<Published, PublishError> {
        let body = event.to_bytes()?;
        let key = event.key();
        let key = key.as_deref().unwrap_or_default();
        self.inner.shared.publish(T::NAME, key, body).await
    }

    /// Publishes an event built in place. `key` is that of the field with `$key`, empty where the
    /// struct has none.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish_with(
        &self,
        key: &str,
        build: impl FnOnce(<T::Capnp as Owned>::Builder<'_>),
    ) -> Result<Published, PublishError> {
        let body = message::build::<T::Capnp, capnp::Error>(|to| {
            build(to);
            Ok(())
        })
        .map_err(MessageError::from)?;
        self.inner.shared.publish(T::NAME, key, body).await
    }

    /// How many subscribers an event with this key would match now.
    pub fn matching(&self, key: &str) -> usize {
        let topic = TopicName::new(T::NAME, key);
        self.inner.shared.lock().matching(&topic.0)
    }

    /// What it has counted.
    pub fn counters(&self) -> PublisherCounters {
        PublisherCounters {
            subscribers: self.inner.shared.lock().subscriptions.len(),
            dropped: self.inner.shared.sender.dropped(),
        }
    }

    /// What it has counted of each principal, by name. Empty without keys.
    pub fn by_principal(&self) -> Vec<PrincipalSubscriptions> {
        let read = |principal: Option<&Principal>, of: &OfPrincipal| PrincipalSubscriptions {
            principal: principal.cloned(),
            allowed: of.allowed.load(Relaxed),
            denied: of.denied.load(Relaxed),
        };
        self.inner.shared.by_principal.read(read)
    }

    /// What it has counted of those who came to its door.
    pub fn door(&self) -> DoorCounters {
        self.inner.shared.sender.door()
    }

    /// Closes the socket, in no more than its linger time.
    pub async fn close(self) {
        self.inner.shared.sender.close().await;
        self.inner.driver.abort();
    }
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[derive(Debug)]
struct Shared {
    sender: PublishSender,
    endpoint: Endpoint,
    epoch: u64,
    by_principal: Arc<Tally<OfPrincipal>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    outgoing: Outgoing<Instant>,
    /// The prefixes of each subscriber.
    subscriptions: HashMap<u64, Vec<Bytes>>,
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

    fn matching(&self, topic: &Bytes) -> usize {
        self.subscriptions
            .values()
            .filter(|prefixes| prefixes.iter().any(|prefix| topic.starts_with(prefix)))
            .count()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn publish(&self, name: &str, key: &str, body: Bytes) -> Result<Published, PublishError> {
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
    fn send(&self, topic: Bytes, kind: EventKind, sequence: u64, body: Bytes) -> bool {
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
    async fn confirm(&self, peer: u64, asked: &Bytes, prefix: &[u8]) {
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

async fn drive(shared: Arc<Shared>, mut watch: SubscriptionWatch, announce_after: Duration) {
    let mut tick = interval(announce_after);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = watch.next() => match change {
                Ok(change) => apply(&shared, change).await,
                Err(transport::Closed) => return,
            },
            _ = tick.tick() => {
                let due = shared.lock().outgoing.due(Instant::now());
                for (topic, last) in due {
                    // The lock again, so that no event of the topic passes its own tail.
                    let state = shared.lock();
                    let next = state.outgoing.next(&topic);
                    if next.is_ok_and(|next| next.number == last + 1) {
                        shared.send(topic, EventKind::Tail, last, Bytes::new());
                    }
                }
            }
        }
    }
}

async fn apply(shared: &Shared, change: SubscriptionChange) {
    match change {
        SubscriptionChange::Reset(peers) => {
            let asked: Vec<(u64, Bytes)> = peers
                .iter()
                .flat_map(|(peer, prefixes)| prefixes.iter().map(|of| (*peer, of.clone())))
                .collect();
            let subscriptions = peers
                .into_iter()
                .map(|(peer, mut prefixes)| {
                    prefixes.retain(|prefix| is_confirmation(prefix).is_none());
                    (peer, prefixes)
                })
                .filter(|(_, prefixes)| !prefixes.is_empty())
                .collect();
            shared.lock().subscriptions = subscriptions;
            // Confirmed once more where it was before: harmless, and nobody waits in vain.
            for (peer, topic) in asked {
                if let Some((_, prefix)) = is_confirmation(&topic) {
                    shared.confirm(peer, &topic, prefix).await;
                }
            }
        }
        SubscriptionChange::Added { peer, prefix } => match is_confirmation(&prefix) {
            Some((_, of)) => shared.confirm(peer, &prefix, of).await,
            None => {
                let mut state = shared.lock();
                state.subscriptions.entry(peer).or_default().push(prefix);
            }
        },
        SubscriptionChange::Removed { peer, prefix } => {
            let mut state = shared.lock();
            if let Some(prefixes) = state.subscriptions.get_mut(&peer) {
                if let Some(index) = prefixes.iter().position(|p| *p == prefix) {
                    prefixes.swap_remove(index);
                }
                if prefixes.is_empty() {
                    state.subscriptions.remove(&peer);
                }
            }
        }
        SubscriptionChange::Gone { peer } => {
            shared.lock().subscriptions.remove(&peer);
        }
    }
}
