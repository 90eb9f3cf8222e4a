//! Settings of a subscriber, and its beginning.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Subscriber;
use super::driver::{Ending, drive};
use super::shared::Shared;
use crate::message::Limits;
use crate::security::ClientSecurity;
use crate::topic::Topic;
use crate::topic::buffer::{Buffer, SlowPolicy};
use crate::topic::names::is_confirmation;
use crate::topic::sequence::Incoming;
use crate::transport::{
    self, Endpoint, SUBSCRIPTION_BYTES_CEILING, Take, TransportError, TransportOptions,
};

/// Settings of a [`Subscriber`].
#[derive(Clone, Debug)]
#[must_use]
pub struct SubscriberBuilder {
    events_max: usize,
    bytes_max: usize,
    topics_max: usize,
    topic_bytes_max: usize,
    policy: SlowPolicy,
    slow_after: Duration,
    confirm_within: Duration,
    limits: Limits,
    transport: TransportOptions,
}

impl Default for SubscriberBuilder {
    fn default() -> Self {
        Self {
            events_max: 1024,
            bytes_max: 16 << 20,
            topics_max: 65_536,
            topic_bytes_max: 16 << 20,
            policy: SlowPolicy::default(),
            slow_after: Duration::from_millis(200),
            confirm_within: Duration::from_secs(10),
            limits: Limits::default(),
            transport: TransportOptions::default(),
        }
    }
}

impl SubscriberBuilder {
    /// Events that may wait to be taken; as many again may have been taken out of the buffer at once and be given out one by
    /// one. Default: 1,024.
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

    /// How long the subscriber reads nothing where these limits are reached, so that the network and then the publisher
    /// hold events back; after that the [policy](Self::slow) applies, until half of the room is free again. So a
    /// subscriber that keeps up loses nothing when it is late for a moment. Default: 200 ms.
    pub fn slow_after(mut self, wait: Duration) -> Self {
        self.slow_after = wait;
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
        let buffer = Buffer::new(self.events_max, self.bytes_max, self.policy);
        let prefix_bytes_max = self.transport.subscription_bytes_max;
        let shared = Arc::new(Shared::new(
            sender,
            endpoint,
            buffer,
            denied,
            self.transport.subscriptions_max,
            prefix_bytes_max.min(SUBSCRIPTION_BYTES_CEILING),
        ));
        let ending = Ending(Arc::clone(&shared));
        Ok(Subscriber {
            driver: tokio::spawn(drive(ending, receiver, self.slow_after)),
            shared,
            incoming: Incoming::new(self.topics_max, self.topic_bytes_max),
            missed: 0,
            ready: VecDeque::new(),
            taken: VecDeque::new(),
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
