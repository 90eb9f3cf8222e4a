//! Settings of a publisher, and its beginning.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::driver::{Ending, drive};
use super::shared::{Shared, Sizes};
use super::{Inner, OfPrincipal, Publisher};
use crate::counter::Counter;
use crate::message::Limits;
use crate::security::{Known, ServerSecurity, Tally, Wanted};
use crate::topic::Topic;
use crate::topic::departures::Departures;
use crate::topic::names::is_confirmation;
use crate::topic::sequence::Outgoing;
use crate::transport::{self, Admit, Endpoint, TransportError, TransportOptions};
use crate::wire::EVENTS_BYTES_MAX;

/// Settings of a [`Publisher`].
#[derive(Clone, Debug)]
#[must_use]
pub struct PublisherBuilder {
    topics_max: usize,
    topic_bytes_max: usize,
    event_bytes_max: usize,
    principals_max: usize,
    announce_after: Duration,
    transport: TransportOptions,
}

impl Default for PublisherBuilder {
    fn default() -> Self {
        Self {
            topics_max: 65_536,
            topic_bytes_max: 16 << 20,
            event_bytes_max: Limits::default().message_bytes_max,
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

    /// Bytes of the names of these topics. Default: 16 MiB.
    pub fn topic_bytes_max(mut self, bytes: usize) -> Self {
        self.topic_bytes_max = bytes;
        self
    }

    /// Largest event in bytes, without topic and header; a larger one is refused before it is sent. It should be no more
    /// than subscribers [read](Limits::message_bytes_max). Default: 1 MiB.
    pub fn event_bytes_max(mut self, bytes: usize) -> Self {
        self.event_bytes_max = bytes;
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
    /// [`send_queue_max`](TransportOptions::send_queue_max), in messages. Events that are published at once share them, up to
    /// 16 KiB in one, where [`message_bytes_max`](TransportOptions::message_bytes_max) is 64 KiB or more: set it
    /// lower where a subscriber takes only smaller messages.
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
        let known = Arc::new(Known {
            endpoint: endpoint.to_string(),
            topics: Some(vec![T::NAME.to_owned()]),
            ..Known::default()
        });
        let admit = admit(
            self.transport.server_security.as_ref(),
            &by_principal,
            known,
        );
        let (sender, watch, endpoint) =
            transport::bind_publish(&endpoint, &self.transport, admit).await?;
        let outgoing = Outgoing::new(self.topics_max, self.topic_bytes_max, self.announce_after);
        let sizes = Sizes {
            event_max: self.event_bytes_max,
            message_max: self.transport.message_bytes_max,
        };
        let departures =
            Departures::new(match transport::takes_compact(&endpoint, &self.transport) {
                true => EVENTS_BYTES_MAX,
                false => 0,
            });
        let shared = Arc::new(Shared::new(
            sender,
            endpoint,
            self.transport.linger,
            new_epoch(),
            sizes,
            by_principal,
            outgoing,
            departures,
        ));
        let ending = Ending(Arc::clone(&shared));
        let driver = tokio::spawn(drive(ending, watch, self.announce_after));
        Ok(Publisher {
            inner: Arc::new(Inner { shared, driver }),
            type_: PhantomData,
        })
    }
}

/// Bytes of a prefix that are logged.
const LOGGED_BYTES_MAX: usize = 128;

/// What the socket asks of each subscription. One that only asks for a confirmation is taken from
/// everybody: what it confirms was asked about by itself.
///
/// The access list is compared with what is `known` for as long as the socket asks.
fn admit(
    security: Option<&ServerSecurity>,
    by_principal: &Arc<Tally<OfPrincipal>>,
    known: Arc<Known>,
) -> Admit {
    let access = security.map(|security| security.access.clone());
    if let Some(access) = &access {
        access.compare_with(&known);
    }
    let by_principal = Arc::clone(by_principal);
    let denied = Counter::default();
    Arc::new(move |principal, prefix| {
        let _ = &known;
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
            denied.count_and_log(|count| {
                let prefix = prefix[..prefix.len().min(LOGGED_BYTES_MAX)].escape_ascii();
                tracing::warn!(%principal, %prefix, count, "no rule allows the subscription");
            });
        }
        may.then_some(Wanted::Events)
    })
}

/// Later than any epoch before: microseconds since 1970, of which a process has one.
fn new_epoch() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| since.as_micros() as u64)
}
