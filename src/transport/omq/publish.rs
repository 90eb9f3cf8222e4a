//! The publisher's socket: what each peer has subscribed to, and messages to those whom they match.
//!
//! Whoever publishes writes to each peer's stream. What a peer's stream does not take waits for that
//! peer, within limits; past them a message is dropped for it, and counted. So nobody waits for it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use omq_proto::Message;
use omq_proto::proto::{Command, SocketType};
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;

use super::door::{self, Door, Host, Keeper, ShownOut, Who, lock};
use super::frames::Parts;
use super::index::Index;
use super::link::{Heard, Link, NotSent};
use crate::security::Subscriptions;
use crate::transport::{
    Admit, Closed, ConnectedSubscriber, DoorCounters, Endpoint, PublishRefused, SubscriptionChange,
    TopicMessage, TransportError, TransportOptions,
};

/// Subscription changes that may wait for the watch; past them it starts again from a snapshot.
const CHANGES_MAX: usize = 4096;
/// A subscriber says nothing that is longer than a subscription.
const MESSAGE_BYTES_MIN: usize = 512;

pub(in crate::transport) async fn bind_publish(
    endpoint: &Endpoint,
    options: &TransportOptions,
    admit: Admit,
) -> Result<(PublishSender, SubscriptionWatch, Endpoint), TransportError> {
    let subscribers = Subscribers {
        admit,
        prefix_bytes_max: options.subscription_bytes_max,
        state: Mutex::new(State {
            index: Index::new(),
            room: Subscriptions::new(
                options.subscriptions_max,
                options.subscription_bytes_total_max,
                options.connections_max,
            ),
            changes: Changes::default(),
            published: 0,
            is_closed: false,
        }),
        changed: Notify::new(),
        dropped: AtomicU64::new(0),
    };
    let prefix_bytes_max = options.subscription_bytes_max;
    let (door, keeper, actual) = door::open(
        subscribers,
        SocketType::Pub,
        endpoint,
        options,
        prefix_bytes_max.max(MESSAGE_BYTES_MIN).saturating_mul(2),
    )
    .await?;
    let watch = SubscriptionWatch {
        door: Arc::clone(&door),
    };
    let sender = PublishSender {
        door,
        keeper,
        matched: Mutex::default(),
    };
    Ok((sender, watch, actual))
}

/// What is known of all subscribers.
struct Subscribers {
    admit: Admit,
    prefix_bytes_max: usize,
    state: Mutex<State>,
    /// Wakes the watch.
    changed: Notify,
    /// Events, for all subscribers that there have been.
    dropped: AtomicU64,
}

struct State {
    index: Index<Arc<Subscriber>>,
    room: Subscriptions,
    changes: Changes,
    /// Messages that have been published.
    published: u64,
    is_closed: bool,
}

/// One connection.
#[derive(Debug)]
struct Subscriber {
    link: Arc<Link>,
    who: Who,
    /// Events.
    dropped: AtomicU64,
    /// The last message that it was found for.
    found: AtomicU64,
}

/// What the watch has not seen yet.
#[derive(Debug, Default)]
struct Changes {
    waiting: VecDeque<SubscriptionChange>,
    /// There were too many: it starts again from all that is known.
    is_behind: bool,
}

impl Changes {
    fn push(&mut self, change: SubscriptionChange) {
        if self.waiting.len() >= CHANGES_MAX {
            self.waiting = VecDeque::new();
            self.is_behind = true;
        }
        if !self.is_behind {
            self.waiting.push_back(change);
        }
    }
}

/// What a subscriber says.
enum Asked {
    Subscribe(Bytes),
    Cancel(Bytes),
}

impl Host for Subscribers {
    type Guest = Subscriber;

    fn welcome(&self, _: &Door<Self>, link: &Arc<Link>, who: Who) -> Arc<Subscriber> {
        let subscriber = Arc::new(Subscriber {
            link: Arc::clone(link),
            who,
            dropped: AtomicU64::new(0),
            found: AtomicU64::new(0),
        });
        let mut state = lock(&self.state);
        state.index.join(who.number, Arc::clone(&subscriber));
        subscriber
    }

    async fn hear(
        &self,
        door: &Door<Self>,
        guest: &Arc<Subscriber>,
        heard: &mut Vec<Heard>,
    ) -> Result<(), ShownOut> {
        for heard in heard.drain(..) {
            match asked(&heard) {
                Some(Asked::Subscribe(prefix)) => self.subscribe(door, guest, &prefix)?,
                Some(Asked::Cancel(prefix)) => self.cancel(guest, &prefix),
                // It has nothing else to say to a socket of this kind.
                None => {}
            }
            // One that says much at once lets others have their turn.
            consume_budget().await;
        }
        Ok(())
    }

    fn may_stay(&self, door: &Door<Self>, guest: &Subscriber) -> bool {
        let prefixes = lock(&self.state).index.prefixes(guest.who.number);
        let may = |prefix: &Bytes| match door.principal(guest.who.key) {
            Ok(principal) => (self.admit)(principal.as_ref(), prefix).is_some(),
            Err(ShownOut) => false,
        };
        prefixes.iter().all(may)
    }

    fn left(&self, guest: &Arc<Subscriber>) {
        let peer = guest.who.number;
        let mut state = lock(&self.state);
        state.room.release(peer);
        if state.index.leave(peer) {
            self.tell(&mut state, SubscriptionChange::Gone { peer });
        }
    }
}

impl Subscribers {
    /// Takes a subscription, if the peer may have it.
    fn subscribe(
        &self,
        door: &Door<Self>,
        guest: &Subscriber,
        prefix: &[u8],
    ) -> Result<(), ShownOut> {
        let peer = guest.who.number;
        // Under the lock, so that who looks through the subscriptions after a list has changed finds
        // all that were taken by the list before.
        let mut state = lock(&self.state);
        let principal = door.principal(guest.who.key)?;
        let is_short = prefix.len() <= self.prefix_bytes_max;
        let wanted = match is_short {
            true => (self.admit)(principal.as_ref(), prefix),
            false => None,
        };
        if !wanted.is_some_and(|wanted| state.room.admit(peer, prefix.len(), wanted)) {
            door.subscription_refused();
            return Ok(());
        }
        // In memory of its own: it stays, and what was read with it does not have to.
        let prefix = Bytes::copy_from_slice(prefix);
        state.index.add(peer, prefix.clone());
        self.tell(&mut state, SubscriptionChange::Added { peer, prefix });
        Ok(())
    }

    fn cancel(&self, guest: &Subscriber, prefix: &[u8]) {
        let peer = guest.who.number;
        let mut state = lock(&self.state);
        if state.index.remove(peer, prefix) {
            state.room.give_back(peer, prefix.len());
            let prefix = Bytes::copy_from_slice(prefix);
            self.tell(&mut state, SubscriptionChange::Removed { peer, prefix });
        }
    }

    /// Tells the watch; under the lock that the index is under, so that it sees the same.
    fn tell(&self, state: &mut State, change: SubscriptionChange) {
        state.changes.push(change);
        self.changed.notify_one();
    }

    fn close(&self) {
        lock(&self.state).is_closed = true;
        self.changed.notify_one();
    }

    /// Appends those who have subscribed to the topic that begins the message, each once.
    fn find(
        &self,
        message: &[u8],
        matched: &mut Vec<Arc<Subscriber>>,
    ) -> Result<(), PublishRefused> {
        let mut state = lock(&self.state);
        if state.is_closed {
            return Err(PublishRefused::Closed);
        }
        state.published += 1;
        let number = state.published;
        state.index.find(message, |subscriber| {
            if subscriber.found.swap(number, Relaxed) != number {
                matched.push(Arc::clone(subscriber));
            }
        });
        Ok(())
    }
}

/// What a subscriber asks for, as a command or, up to ZMTP 3.0, as a message.
fn asked(heard: &Heard) -> Option<Asked> {
    match heard {
        Heard::Command(Command::Subscribe(prefix)) => Some(Asked::Subscribe(prefix.clone())),
        Heard::Command(Command::Cancel(prefix)) => Some(Asked::Cancel(prefix.clone())),
        Heard::Command(_) => None,
        Heard::Message(message) => asked_in(message),
    }
}

fn asked_in(message: &Message) -> Option<Asked> {
    let mut prefix = match message.len() {
        1 => message.part_bytes(0)?,
        _ => return None,
    };
    let kind = match prefix.is_empty() {
        true => return None,
        false => prefix.split_to(1),
    };
    match kind[0] {
        1 => Some(Asked::Subscribe(prefix)),
        0 => Some(Asked::Cancel(prefix)),
        _ => None,
    }
}

#[derive(Debug)]
pub(crate) struct PublishSender {
    door: Arc<Door<Subscribers>>,
    keeper: Keeper,
    /// Whom the message goes to that is being published; kept for the next.
    matched: Mutex<Vec<Arc<Subscriber>>>,
}

impl PublishSender {
    pub fn try_send(&self, message: TopicMessage) -> Result<(), PublishRefused> {
        // Locked to the end, so that messages come to every peer in one order.
        let mut matched = lock(&self.matched);
        let subscribers = &self.door.host;
        subscribers.find(message.first_part(), &mut matched)?;
        let parts = Parts::from(&message);
        let mut events = None;
        for subscriber in matched.drain(..) {
            // One whose connection is lost misses it, as it would a moment later.
            if let Err(NotSent::Full) = subscriber.link.try_send(parts) {
                let events = *events.get_or_insert_with(|| message.events());
                subscriber.dropped.fetch_add(events, Relaxed);
                subscribers.dropped.fetch_add(events, Relaxed);
            }
        }
        Ok(())
    }

    /// Never full as a whole: a subscriber without room is passed over.
    pub async fn writable(&self) {}

    pub fn dropped(&self) -> u64 {
        self.door.host.dropped.load(Relaxed)
    }

    pub fn subscribers(&self) -> Vec<ConnectedSubscriber> {
        let state = lock(&self.door.host.state);
        let subscribers = state.index.peers().map(|of| ConnectedSubscriber {
            // One that is not let in any more is on its way out.
            principal: self.door.principal(of.who.key).unwrap_or_default(),
            address: of.who.address,
            dropped: of.dropped.load(Relaxed),
        });
        subscribers.collect()
    }

    pub fn counters(&self) -> DoorCounters {
        self.door.counters()
    }

    pub async fn close(&self) {
        self.keeper.stop_accepting().await;
        self.door.host.close();
        self.door.close().await;
    }
}

impl Drop for PublishSender {
    fn drop(&mut self) {
        self.door.host.close();
    }
}

#[derive(Debug)]
pub(crate) struct SubscriptionWatch {
    door: Arc<Door<Subscribers>>,
}

impl SubscriptionWatch {
    pub async fn next(&mut self) -> Result<SubscriptionChange, Closed> {
        let subscribers = &self.door.host;
        loop {
            {
                let mut state = lock(&subscribers.state);
                if state.is_closed {
                    return Err(Closed);
                }
                if std::mem::take(&mut state.changes.is_behind) {
                    return Ok(SubscriptionChange::Reset(state.index.all()));
                }
                if let Some(change) = state.changes.waiting.pop_front() {
                    return Ok(change);
                }
            }
            // One that was told between the look and the wait is told by the permit it left.
            subscribers.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(peer: u64) -> SubscriptionChange {
        SubscriptionChange::Gone { peer }
    }

    #[test]
    fn the_watch_sees_changes_in_their_order_and_starts_again_where_one_more_waits_than_may() {
        let mut changes = Changes::default();
        for peer in 0..CHANGES_MAX as u64 {
            changes.push(change(peer));
        }
        assert_eq!(changes.waiting.len(), CHANGES_MAX);
        assert!(!changes.is_behind);
        assert!(
            (0..)
                .zip(&changes.waiting)
                .all(|(peer, of)| *of == change(peer))
        );

        // What all has become says more than the last of it.
        changes.push(change(7));
        assert!(changes.is_behind && changes.waiting.is_empty());
        changes.push(change(8));
        assert!(changes.waiting.is_empty());
        changes.is_behind = false;
        changes.push(change(9));
        assert_eq!(changes.waiting, [change(9)]);
    }
}
