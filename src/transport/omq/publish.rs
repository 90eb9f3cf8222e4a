//! The publisher's socket: what each peer has subscribed to, and messages to those whom they match.
//!
//! Whoever publishes writes to each peer's stream. What a peer's stream does not take waits for that
//! peer, within limits; past them a message is dropped for it, and counted. So nobody waits for it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use omq_proto::Message;
use omq_proto::proto::{Command, SocketType};
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;

use super::door::{self, Door, Host, Keeper, ShownOut, Who, lock};
use super::frames::Parts;
use super::link::{Heard, Link, NotSent};
use crate::counter::Counter;
use crate::security::{Holder, Subscriptions, Wanted};
use crate::transport::changes::Changes;
use crate::transport::index::Index;
use crate::transport::{
    Admit, Closed, ConnectedSubscriber, DoorCounters, Endpoint, PublishRefused,
    SUBSCRIPTION_BYTES_CEILING, SendToRefused, SubscriptionChange, TopicMessage, TransportError,
    TransportOptions,
};

/// Longest message that is read from a subscriber: the longest subscription that any subscriber of Bowline's sends, and
/// the question whether it was taken. So one that is too long for this publisher is refused, and its connection stays.
const MESSAGE_BYTES_MAX: usize = SUBSCRIPTION_BYTES_CEILING + 256;
/// Bytes of a prefix that are logged.
const LOGGED_BYTES_MAX: usize = 128;

pub(in crate::transport) async fn bind_publish(
    endpoint: &Endpoint,
    addresses: &[SocketAddr],
    options: &TransportOptions,
    admit: Admit,
) -> Result<(PublishSender, SubscriptionWatch, Endpoint), TransportError> {
    let subscribers = Subscribers {
        admit,
        prefix_bytes_max: options.subscription_bytes_max,
        refused: Counter::default(),
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
    let (door, keeper, actual) = door::open(
        subscribers,
        SocketType::Pub,
        (endpoint, addresses),
        options,
        MESSAGE_BYTES_MAX,
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
    /// Subscriptions that are too long, or too many.
    refused: Counter,
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
    /// What its subscriptions count for.
    holder: Holder,
    /// Events.
    dropped: AtomicU64,
    /// The last message that it was found for.
    found: AtomicU64,
}

/// What a subscriber says.
enum Asked {
    Subscribe(Bytes),
    Cancel(Bytes),
}

impl Host for Subscribers {
    type Guest = Subscriber;

    fn welcome(&self, door: &Door<Self>, link: &Arc<Link>, who: Who) -> Arc<Subscriber> {
        let principal = door.principal(who.key).ok().flatten();
        let subscriber = Arc::new(Subscriber {
            link: Arc::clone(link),
            who,
            holder: Holder::of(principal.as_ref(), who.address),
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

    async fn may_read(&self, _: &Arc<Subscriber>) {}

    fn may_stay(&self, door: &Door<Self>, guest: &Subscriber) -> bool {
        let prefixes = lock(&self.state).index.prefixes(guest.who.number);
        let may = |prefix: &Bytes| match door.principal(guest.who.key) {
            Ok(principal) => (self.admit)(principal.as_ref(), prefix).is_some(),
            Err(ShownOut(_)) => false,
        };
        prefixes.iter().all(may)
    }

    fn left(&self, guest: &Arc<Subscriber>) {
        let peer = guest.who.number;
        let mut state = lock(&self.state);
        state.room.release(peer, &guest.holder);
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
        let wanted = (self.admit)(principal.as_ref(), prefix);
        // A question may be longer than what it asks about.
        let is_too_long = wanted == Some(Wanted::Events) && prefix.len() > self.prefix_bytes_max;
        let Some(wanted) = wanted.filter(|_| !is_too_long) else {
            if is_too_long {
                self.log_refused(guest, prefix, "it is too long");
            }
            door.subscription_refused();
            return Ok(());
        };
        if !state.room.admit(peer, &guest.holder, prefix.len(), wanted) {
            self.log_refused(guest, prefix, "there are too many");
            door.subscription_refused();
            return Ok(());
        }
        // In memory of its own: it stays, and what was read with it does not have to.
        let prefix = Bytes::copy_from_slice(prefix);
        state.index.add(peer, prefix.clone());
        self.tell(&mut state, SubscriptionChange::Added { peer, prefix });
        Ok(())
    }

    fn log_refused(&self, guest: &Subscriber, prefix: &[u8], reason: &str) {
        self.refused.count_and_log(|count| {
            let address = guest.who.address;
            let begin = &prefix[..prefix.len().min(LOGGED_BYTES_MAX)];
            let (bytes, prefix) = (prefix.len(), begin.escape_ascii());
            tracing::warn!(?address, %prefix, bytes, count, "subscription refused: {reason}");
        });
    }

    fn cancel(&self, guest: &Subscriber, prefix: &[u8]) {
        let peer = guest.who.number;
        let mut state = lock(&self.state);
        if state.index.remove(peer, prefix) {
            state.room.give_back(peer, &guest.holder, prefix.len());
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

    pub fn try_send_to(&self, peer: u64, message: TopicMessage) -> Result<(), SendToRefused> {
        // In order with what is published.
        let _matched = lock(&self.matched);
        let subscriber = lock(&self.door.host.state).index.peer(peer).cloned();
        let link = &subscriber.ok_or(SendToRefused::Gone)?.link;
        let sent = link.try_send(Parts::from(&message));
        sent.map_err(|error| match error {
            NotSent::Full => SendToRefused::Full,
            NotSent::Closed => SendToRefused::Gone,
        })
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
                let State { changes, index, .. } = &mut *state;
                if let Some(change) = changes.next(|| index.all()) {
                    return Ok(change);
                }
            }
            // One that was told between the look and the wait is told by the permit it left.
            subscribers.changed.notified().await;
        }
    }
}
