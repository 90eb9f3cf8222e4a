//! Topics in process: publish and subscribe.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, Weak};

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::watch;

use super::{Registry, lock};
use crate::transport::connection::Connection;
use crate::transport::{
    BATCH_MAX, Closed, ConnectedSubscriber, Malformed, PublishRefused, SubscriptionChange,
    TopicFrames, TopicMessage, TransportError, TransportOptions, unpack_events,
};

static PUBLISHERS: LazyLock<Registry<Publisher>> = LazyLock::new(Registry::new);

// ---- publish ----

#[derive(Debug)]
struct Publisher {
    name: String,
    subscribers: Mutex<Subscribers>,
    changes: mpsc::UnboundedSender<SubscriptionChange>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Subscribers {
    by_id: BTreeMap<u64, Subscribed>,
    last: u64,
    closed: bool,
}

#[derive(Debug)]
struct Subscribed {
    prefixes: Vec<Bytes>,
    /// Events.
    dropped: AtomicU64,
    messages: mpsc::Sender<TopicFrames>,
}

impl Publisher {
    fn attach(&self, messages: mpsc::Sender<TopicFrames>, prefixes: &[Bytes]) -> Option<u64> {
        let mut subscribers = lock(&self.subscribers);
        if subscribers.closed {
            return None;
        }
        subscribers.last += 1;
        let id = subscribers.last;
        let subscribed = Subscribed {
            prefixes: Vec::new(),
            dropped: AtomicU64::new(0),
            messages,
        };
        subscribers.by_id.insert(id, subscribed);
        drop(subscribers);
        for prefix in prefixes {
            self.add(id, prefix.clone());
        }
        Some(id)
    }

    fn add(&self, peer: u64, prefix: Bytes) {
        if let Some(subscribed) = lock(&self.subscribers).by_id.get_mut(&peer) {
            subscribed.prefixes.push(prefix.clone());
            self.tell(SubscriptionChange::Added { peer, prefix });
        }
    }

    fn remove(&self, peer: u64, prefix: &Bytes) {
        if let Some(subscribed) = lock(&self.subscribers).by_id.get_mut(&peer)
            && let Some(index) = subscribed.prefixes.iter().position(|p| p == prefix)
        {
            let prefix = subscribed.prefixes.swap_remove(index);
            self.tell(SubscriptionChange::Removed { peer, prefix });
        }
    }

    fn detach(&self, peer: u64) {
        if lock(&self.subscribers).by_id.remove(&peer).is_some() {
            self.tell(SubscriptionChange::Gone { peer });
        }
    }

    fn tell(&self, change: SubscriptionChange) {
        // A publisher whose watch is gone is closing.
        let _ = self.changes.send(change);
    }

    fn close(&self) {
        PUBLISHERS.unbind(&self.name, self);
        let mut subscribers = lock(&self.subscribers);
        subscribers.closed = true;
        subscribers.by_id.clear();
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
    // Not bounded, since those who subscribe are of this process: what they ask for is theirs already.
    let (changes, watched) = mpsc::unbounded_channel();
    let publisher = Arc::new(Publisher {
        name: name.to_owned(),
        subscribers: Mutex::default(),
        changes,
        dropped: AtomicU64::new(0),
    });
    PUBLISHERS.bind(name, &publisher)?;
    Ok((
        PublishSender { publisher },
        SubscriptionWatch { changes: watched },
    ))
}

#[derive(Debug)]
pub(crate) struct PublishSender {
    publisher: Arc<Publisher>,
}

impl PublishSender {
    pub fn try_send(&self, message: TopicMessage) -> Result<(), PublishRefused> {
        let subscribers = lock(&self.publisher.subscribers);
        if subscribers.closed {
            return Err(PublishRefused::Closed);
        }
        match message {
            TopicMessage::Classic(frames) => self.offer(&subscribers, frames),
            // Never sent here but by tests: a publisher in process has nothing to save.
            TopicMessage::Compact(message) => unpack_events(&message, &mut Bytes::new())
                .flatten()
                .for_each(|frames| self.offer(&subscribers, frames)),
        }
        Ok(())
    }

    fn offer(&self, subscribers: &Subscribers, frames: TopicFrames) {
        for subscribed in subscribers.by_id.values() {
            let is_wanted = |prefix: &Bytes| frames.topic.starts_with(prefix);
            if subscribed.prefixes.iter().any(is_wanted)
                && let Err(TrySendError::Full(dropped)) =
                    subscribed.messages.try_send(frames.clone())
            {
                let events = u64::from(dropped.is_event());
                subscribed.dropped.fetch_add(events, Relaxed);
                self.publisher.dropped.fetch_add(events, Relaxed);
            }
        }
    }

    pub fn subscribers(&self) -> Vec<ConnectedSubscriber> {
        let subscribers = lock(&self.publisher.subscribers);
        let subscribers = subscribers.by_id.values().map(|of| ConnectedSubscriber {
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
    changes: mpsc::UnboundedReceiver<SubscriptionChange>,
}

impl SubscriptionWatch {
    pub async fn next(&mut self) -> Result<SubscriptionChange, Closed> {
        self.changes.recv().await.ok_or(Closed)
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
    prefixes: Vec<Bytes>,
    link: Option<(u64, Weak<Publisher>)>,
}

impl Subscriber {
    /// Finds the publisher of the name, if there is one now.
    fn attach(&self) -> Option<mpsc::Receiver<TopicFrames>> {
        let publisher = PUBLISHERS.find(&self.name)?;
        let (messages, received) = mpsc::channel(self.messages_max);
        let mut state = lock(&self.state);
        let id = publisher.attach(messages, &state.prefixes)?;
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
    let bound = PUBLISHERS.bound.subscribe();
    let messages = subscriber.attach();
    let receiver = SubscribeReceiver {
        messages,
        bound,
        subscriber: Arc::clone(&subscriber),
    };
    (SubscribeSender { subscriber }, receiver)
}

#[derive(Debug)]
pub(crate) struct SubscribeSender {
    subscriber: Arc<Subscriber>,
}

impl SubscribeSender {
    pub async fn subscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.open()?;
        let mut state = lock(&self.subscriber.state);
        state.prefixes.push(prefix.clone());
        if let Some((id, publisher)) = &state.link
            && let Some(publisher) = publisher.upgrade()
        {
            publisher.add(*id, prefix);
        }
        Ok(())
    }

    pub async fn unsubscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.open()?;
        let mut state = lock(&self.subscriber.state);
        if let Some(index) = state.prefixes.iter().position(|p| *p == prefix) {
            state.prefixes.swap_remove(index);
        }
        if let Some((id, publisher)) = &state.link
            && let Some(publisher) = publisher.upgrade()
        {
            publisher.remove(*id, &prefix);
        }
        Ok(())
    }

    pub fn is_connected(&self) -> bool {
        self.subscriber.connection.is_connected()
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

    fn open(&self) -> Result<(), Closed> {
        match self.subscriber.connection.is_closed() {
            true => Err(Closed),
            false => Ok(()),
        }
    }
}

#[derive(Debug)]
pub(crate) struct SubscribeReceiver {
    subscriber: Arc<Subscriber>,
    messages: Option<mpsc::Receiver<TopicFrames>>,
    bound: watch::Receiver<()>,
}

impl SubscribeReceiver {
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
