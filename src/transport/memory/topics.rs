//! Topics in process: publish and subscribe.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{Notify, watch};

use super::{Registry, lock};
use crate::transport::changes::Changes;
use crate::transport::connection::Connection;
use crate::transport::wanted::{Change, Wanted};
use crate::transport::{
    BATCH_MAX, Closed, ConnectedSubscriber, ConnectionFailure, Index, Malformed, PublishRefused,
    SendToRefused, SubscriptionChange, TopicFrames, TopicMessage, TransportError, TransportOptions,
    unpack_events,
};

static PUBLISHERS: LazyLock<Registry<Publisher>> = LazyLock::new(Registry::new);

// ---- publish ----

#[derive(Debug)]
struct Publisher {
    name: String,
    subscribers: Mutex<Subscribers>,
    /// Wakes the watch.
    changed: Notify,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Subscribers {
    index: Index<Arc<Subscribed>>,
    changes: Changes,
    last: u64,
    /// Messages that have been published.
    published: u64,
    closed: bool,
}

#[derive(Debug)]
struct Subscribed {
    /// Events.
    dropped: AtomicU64,
    /// The last message that it was found for.
    found: AtomicU64,
    messages: mpsc::Sender<TopicFrames>,
}

impl Publisher {
    fn attach<'a>(
        &self,
        messages: mpsc::Sender<TopicFrames>,
        prefixes: impl Iterator<Item = &'a Bytes>,
    ) -> Option<u64> {
        let mut subscribers = lock(&self.subscribers);
        if subscribers.closed {
            return None;
        }
        subscribers.last += 1;
        let id = subscribers.last;
        let subscribed = Subscribed {
            dropped: AtomicU64::new(0),
            found: AtomicU64::new(0),
            messages,
        };
        subscribers.index.join(id, Arc::new(subscribed));
        drop(subscribers);
        for prefix in prefixes {
            self.add(id, prefix.clone());
        }
        Some(id)
    }

    fn add(&self, peer: u64, prefix: Bytes) {
        let mut subscribers = lock(&self.subscribers);
        if subscribers.index.peer(peer).is_some() {
            subscribers.index.add(peer, prefix.clone());
            self.tell(subscribers, SubscriptionChange::Added { peer, prefix });
        }
    }

    fn remove(&self, peer: u64, prefix: Bytes) {
        let mut subscribers = lock(&self.subscribers);
        if subscribers.index.remove(peer, &prefix) {
            self.tell(subscribers, SubscriptionChange::Removed { peer, prefix });
        }
    }

    fn detach(&self, peer: u64) {
        let mut subscribers = lock(&self.subscribers);
        if subscribers.index.leave(peer) {
            self.tell(subscribers, SubscriptionChange::Gone { peer });
        }
    }

    /// Tells the watch, under the lock that the index is under, so that it sees the same.
    fn tell(&self, mut subscribers: MutexGuard<'_, Subscribers>, change: SubscriptionChange) {
        subscribers.changes.push(change);
        self.changed.notify_one();
    }

    fn close(&self) {
        PUBLISHERS.unbind(&self.name, self);
        let mut subscribers = lock(&self.subscribers);
        subscribers.closed = true;
        subscribers.index = Index::new();
        self.changed.notify_one();
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        PUBLISHERS.unbind(&self.name, self);
    }
}

pub(in crate::transport) fn bind_publish(
    name: &str,
    _: &TransportOptions,
) -> Result<(PublishSender, SubscriptionWatch), TransportError> {
    let publisher = Arc::new(Publisher {
        name: name.to_owned(),
        subscribers: Mutex::new(Subscribers {
            index: Index::new(),
            changes: Changes::default(),
            last: 0,
            published: 0,
            closed: false,
        }),
        changed: Notify::new(),
        dropped: AtomicU64::new(0),
    });
    PUBLISHERS.bind(name, &publisher)?;
    let watch = SubscriptionWatch {
        publisher: Arc::clone(&publisher),
    };
    Ok((PublishSender { publisher }, watch))
}

#[derive(Debug)]
pub(crate) struct PublishSender {
    publisher: Arc<Publisher>,
}

impl PublishSender {
    pub fn try_send(&self, message: TopicMessage) -> Result<(), PublishRefused> {
        let mut subscribers = lock(&self.publisher.subscribers);
        if subscribers.closed {
            return Err(PublishRefused::Closed);
        }
        match message {
            TopicMessage::Classic(frames) => self.offer(&mut subscribers, frames),
            // Never sent here but by tests: a publisher in process has nothing to save.
            TopicMessage::Compact(message) => unpack_events(&message, &mut Bytes::new())
                .flatten()
                .for_each(|frames| self.offer(&mut subscribers, frames)),
        }
        Ok(())
    }

    pub fn try_send_to(&self, peer: u64, message: TopicMessage) -> Result<(), SendToRefused> {
        let subscribers = lock(&self.publisher.subscribers);
        let subscribed = subscribers.index.peer(peer).ok_or(SendToRefused::Gone)?;
        let TopicMessage::Classic(frames) = message else {
            return Ok(()); // nothing but an answer is for one
        };
        let sent = subscribed.messages.try_send(frames);
        sent.map_err(|error| match error {
            TrySendError::Full(_) => SendToRefused::Full,
            TrySendError::Closed(_) => SendToRefused::Gone,
        })
    }

    fn offer(&self, subscribers: &mut Subscribers, frames: TopicFrames) {
        subscribers.published += 1;
        let number = subscribers.published;
        subscribers.index.find(&frames.topic, |subscribed| {
            if subscribed.found.swap(number, Relaxed) == number {
                return; // it has several prefixes of the topic
            }
            let sent = subscribed.messages.try_send(frames.clone());
            if let Err(TrySendError::Full(dropped)) = sent {
                let events = u64::from(dropped.is_event());
                subscribed.dropped.fetch_add(events, Relaxed);
                self.publisher.dropped.fetch_add(events, Relaxed);
            }
        });
    }

    pub fn subscribers(&self) -> Vec<ConnectedSubscriber> {
        let subscribers = lock(&self.publisher.subscribers);
        let subscribers = subscribers.index.peers().map(|of| ConnectedSubscriber {
            principal: None,
            address: None,
            dropped: of.dropped.load(Relaxed),
        });
        subscribers.collect()
    }

    pub fn dropped(&self) -> u64 {
        self.publisher.dropped.load(Relaxed)
    }

    /// Never full as a whole: a subscriber without room is passed over.
    pub async fn writable(&self) {}

    pub async fn close(&self) {
        self.publisher.close();
    }
}

impl Drop for PublishSender {
    fn drop(&mut self) {
        self.publisher.close();
    }
}

#[derive(Debug)]
pub(crate) struct SubscriptionWatch {
    publisher: Arc<Publisher>,
}

impl SubscriptionWatch {
    pub async fn next(&mut self) -> Result<SubscriptionChange, Closed> {
        loop {
            {
                let mut subscribers = lock(&self.publisher.subscribers);
                let Subscribers { index, changes, .. } = &mut *subscribers;
                if let Some(change) = changes.next(|| index.all()) {
                    return Ok(change);
                }
                if subscribers.closed {
                    return Err(Closed);
                }
            }
            // A change between the look and the wait leaves a permit.
            self.publisher.changed.notified().await;
        }
    }
}

// ---- subscribe ----

/// What the two halves of a subscriber share.
#[derive(Debug)]
struct Subscriber {
    name: String,
    messages_max: usize,
    state: Mutex<State>,
    connection: Connection,
}

#[derive(Debug, Default)]
struct State {
    wanted: Wanted,
    link: Option<(u64, Weak<Publisher>)>,
}

impl Subscriber {
    /// Finds the publisher of the name, if there is one now.
    fn attach(&self) -> Option<mpsc::Receiver<TopicFrames>> {
        let publisher = PUBLISHERS.find(&self.name)?;
        let (messages, received) = mpsc::channel(self.messages_max);
        let mut state = lock(&self.state);
        let id = publisher.attach(messages, state.wanted.all())?;
        state.link = Some((id, Arc::downgrade(&publisher)));
        drop(state);
        self.connection.set(true);
        Some(received)
    }

    fn detach(&self) {
        if let Some((id, publisher)) = lock(&self.state).link.take() {
            if let Some(publisher) = publisher.upgrade() {
                publisher.detach(id);
            }
            self.connection.failed(ConnectionFailure::not_bound());
            self.connection.set(false);
        }
    }
}

pub(in crate::transport) fn connect_subscribe(
    name: &str,
    options: &TransportOptions,
) -> (SubscribeSender, SubscribeReceiver) {
    let subscriber = Arc::new(Subscriber {
        name: name.to_owned(),
        messages_max: options.send_queue_max.max(1) as usize,
        state: Mutex::default(),
        connection: Connection::new(),
    });
    subscriber.connection.failed(ConnectionFailure::not_bound());
    let bound = PUBLISHERS.bound.subscribe();
    let messages = subscriber.attach();
    let receiver = SubscribeReceiver {
        messages,
        bound,
        connections: 1,
        subscriber: Arc::clone(&subscriber),
    };
    (SubscribeSender { subscriber }, receiver)
}

#[derive(Debug)]
pub(crate) struct SubscribeSender {
    subscriber: Arc<Subscriber>,
}

impl SubscribeSender {
    pub fn subscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.change(|wanted| wanted.add(prefix))
    }

    pub fn unsubscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.change(|wanted| wanted.remove(prefix))
    }

    fn change(&self, change: impl FnOnce(&mut Wanted) -> Option<Change>) -> Result<(), Closed> {
        if self.subscriber.connection.is_closed() {
            return Err(Closed);
        }
        let mut state = lock(&self.subscriber.state);
        let change = change(&mut state.wanted);
        if let Some((id, publisher)) = &state.link
            && let Some(publisher) = publisher.upgrade()
        {
            match change {
                Some(Change::Subscribe(prefix)) => publisher.add(*id, prefix),
                Some(Change::Cancel(prefix)) => publisher.remove(*id, prefix),
                None => {}
            }
        }
        Ok(())
    }

    pub fn is_connected(&self) -> bool {
        self.subscriber.connection.is_connected()
    }

    pub fn failure(&self) -> ConnectionFailure {
        self.subscriber.connection.failure()
    }

    pub fn connection_generation(&self) -> u64 {
        self.subscriber.connection.generation()
    }

    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        self.subscriber.connection.changed(seen).await
    }

    pub async fn close(&self) {
        self.subscriber.detach();
        self.subscriber.connection.close();
    }
}

#[derive(Debug)]
pub(crate) struct SubscribeReceiver {
    subscriber: Arc<Subscriber>,
    messages: Option<mpsc::Receiver<TopicFrames>>,
    bound: watch::Receiver<()>,
    /// How many publishers it has had.
    connections: u64,
}

impl SubscribeReceiver {
    pub fn connection(&self) -> u64 {
        self.connections
    }

    pub async fn receive(
        &mut self,
        batch: &mut Vec<Result<TopicFrames, Malformed>>,
    ) -> Result<(), Closed> {
        loop {
            if self.subscriber.connection.is_closed() {
                return Err(Closed);
            }
            let Some(messages) = &mut self.messages else {
                self.messages = self.subscriber.attach();
                self.connections += u64::from(self.messages.is_some());
                if self.messages.is_none() {
                    tokio::select! {
                        _ = self.bound.changed() => {}
                        () = self.subscriber.connection.closed() => {}
                    }
                }
                continue;
            };
            let mut next = tokio::select! {
                next = messages.recv() => next,
                () = self.subscriber.connection.closed() => continue,
            };
            while let Some(frames) = next {
                batch.push(Ok(frames));
                if batch.len() >= BATCH_MAX {
                    return Ok(());
                }
                next = messages.try_recv().ok();
            }
            if !batch.is_empty() {
                return Ok(());
            }
            self.messages = None;
            self.subscriber.detach();
        }
    }
}

impl Drop for SubscribeReceiver {
    fn drop(&mut self) {
        self.subscriber.detach();
    }
}
