//! A connecting socket's one connection: made, kept alive, and made again.
//!
//! A task makes it and watches over it. Whoever receives reads from it, whoever sends writes to it.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use omq_proto::MechanismSetup;
use omq_proto::proto::{ConnectionConfig, Role, SocketType};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use super::door::{LOOK_AT_LISTS, lock};
use super::link::{Heard, Incoming, Limits, Link};
use super::outbox::Total;
use super::stream::{PeerAddress, Stream};
use super::{curve, keypair, message_size_max};
use crate::counter::Counter;
use crate::security::{self, AccessList, AllowedKeys, PublicKey};
use crate::transport::connection::Connection;
use crate::transport::failure::RepeatedFailure;
use crate::transport::{Closed, ConnectionFailure, Endpoint, TransportOptions};
use crate::wire::Reason;

/// What a new connection begins with: a subscriber's subscriptions, say.
pub(super) type Begin = Arc<dyn Fn(&Link) + Send + Sync>;

/// For sending and controlling.
#[derive(Debug)]
pub(super) struct Reach {
    shared: Arc<Shared>,
    linger: Duration,
    tasks: Vec<JoinHandle<()>>,
}

/// For receiving.
#[derive(Debug)]
pub(super) struct Reached {
    shared: Arc<Shared>,
    incoming: Option<(Incoming, Option<PublicKey>)>,
    /// How many connections have been read from.
    connections: u64,
}

#[derive(Debug)]
struct Shared {
    connection: Connection,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    link: Option<Arc<Link>>,
    /// Until who receives takes it, with the key that the server has proved.
    incoming: Option<(Incoming, Option<PublicKey>)>,
    receiver: Option<Waker>,
}

/// Begins to connect, in the background and for ever.
pub(super) fn connect(
    kind: SocketType,
    endpoint: &Endpoint,
    options: &TransportOptions,
    begin: Begin,
) -> (Reach, Reached) {
    let shared = Arc::new(Shared {
        connection: Connection::new(),
        current: Mutex::default(),
    });
    let keeping = Keeping {
        shared: Arc::clone(&shared),
        kind,
        endpoint: endpoint.clone(),
        options: options.clone(),
        begin,
    };
    let mut tasks = vec![tokio::spawn(keeping.keep())];
    let publishers = options
        .client_security
        .as_ref()
        .and_then(|of| of.publishers.clone());
    if let Some((allowed, access)) = publishers {
        tasks.push(tokio::spawn(look_at_lists(allowed, access)));
    }
    let reached = Reached {
        shared: Arc::clone(&shared),
        incoming: None,
        connections: 0,
    };
    let reach = Reach {
        shared,
        linger: options.linger,
        tasks,
    };
    (reach, reached)
}

async fn look_at_lists(allowed: AllowedKeys, access: AccessList) {
    let mut look = tokio::time::interval(LOOK_AT_LISTS);
    loop {
        look.tick().await;
        security::refresh(&allowed, &access);
    }
}

impl Drop for Reach {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.shared.close();
    }
}

impl Reach {
    /// The connection, where there is one.
    pub fn link(&self) -> Option<Arc<Link>> {
        lock(&self.shared.current).link.clone()
    }

    /// Does something with the connection, where there is one. A new one begins before or after it.
    pub fn with_link<T>(&self, what: impl FnOnce(Option<&Arc<Link>>) -> T) -> T {
        what(lock(&self.shared.current).link.as_ref())
    }

    pub fn is_closed(&self) -> bool {
        self.shared.connection.is_closed()
    }

    pub fn is_connected(&self) -> bool {
        self.shared.connection.is_connected()
    }

    pub fn generation(&self) -> u64 {
        self.shared.connection.generation()
    }

    /// Why there is no connection, where there is none.
    pub fn failure(&self) -> ConnectionFailure {
        self.shared.connection.failure()
    }

    /// Why the last connection ended, where one has.
    pub fn last_lost(&self) -> Option<String> {
        self.shared.connection.last_lost()
    }

    pub async fn changed(&self, seen: u64) -> Result<u64, Closed> {
        self.shared.connection.changed(seen).await
    }

    /// Writes what waits, in no more than the linger time, and closes.
    pub async fn close(&self) {
        if let Some(link) = self.link() {
            // What has not left by then does not leave.
            let _ = timeout(self.linger, link.drained()).await;
        }
        self.tasks.iter().for_each(JoinHandle::abort);
        self.shared.close();
    }
}

impl Shared {
    fn close(&self) {
        self.connection.close();
        self.give_up();
        // Once more: a connection may have come in between, and none does from here on.
        self.connection.set(false);
    }

    /// There is no connection any more.
    fn give_up(&self) {
        let mut current = lock(&self.current);
        let link = current.link.take();
        let incoming = current.incoming.take();
        let receiver = current.receiver.take();
        drop(current);
        drop(incoming);
        if let Some(link) = link {
            link.close();
        }
        if let Some(receiver) = receiver {
            receiver.wake();
        }
    }
}

impl Reached {
    /// The number of the connection that is read from, from 1.
    pub fn connection(&self) -> u64 {
        self.connections
    }

    /// Waits for something that the server says; with the key that it has proved. Cancel safe.
    pub async fn receive(&mut self, heard: &mut Vec<Heard>) -> Result<Option<PublicKey>, Closed> {
        std::future::poll_fn(|cx| self.poll(cx, heard)).await
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        heard: &mut Vec<Heard>,
    ) -> Poll<Result<Option<PublicKey>, Closed>> {
        loop {
            let Some((incoming, key)) = &mut self.incoming else {
                let mut current = lock(&self.shared.current);
                self.incoming = current.incoming.take();
                if self.incoming.is_some() {
                    self.connections += 1;
                    continue;
                }
                if self.shared.connection.is_closed() {
                    return Poll::Ready(Err(Closed));
                }
                current.receiver = Some(cx.waker().clone());
                return Poll::Pending;
            };
            match ready!(incoming.poll(cx, heard)) {
                Ok(()) => return Poll::Ready(Ok(*key)),
                // The link is closed by it, and the keeping task makes another.
                Err(_) => self.incoming = None,
            }
        }
    }
}

struct Keeping {
    shared: Arc<Shared>,
    kind: SocketType,
    endpoint: Endpoint,
    options: TransportOptions,
    begin: Begin,
}

/// After a connection that lasted so long, failures are logged anew.
const LASTED: Duration = Duration::from_secs(1);

impl Keeping {
    async fn keep(self) {
        let keys = self.servers();
        let mut tries = keys.iter().cycle();
        let mut last_good = None;
        let mut wait = self.options.reconnect_min;
        let mut failed: usize = 0;
        let mut failure: Option<ConnectionFailure> = None;
        let mut logged = RepeatedFailure::default();
        let (opened, lost) = (Counter::default(), Counter::default());
        loop {
            // The key that was right the last time, or each in its turn.
            let key = last_good.take().or_else(|| tries.next().copied()).flatten();
            match self.connect(key).await {
                Ok((link, incoming, peer)) => {
                    let endpoint = &self.endpoint;
                    opened.count_and_log(|count| {
                        tracing::info!(%endpoint, %peer, count, "connected");
                    });
                    let since = Instant::now();
                    failed = 0;
                    last_good = Some(key);
                    self.stay(&link, incoming, key).await;
                    let error = self.shared.connection.failure();
                    if !self.shared.connection.is_closed() {
                        lost.count_and_log(|count| {
                            tracing::warn!(%endpoint, %peer, %error, count, "connection lost");
                        });
                    }
                    // One that ends at once is not made again at once, for ever.
                    let lasted = since.elapsed();
                    if lasted >= wait {
                        wait = self.options.reconnect_min;
                    }
                    if lasted >= LASTED {
                        logged = RepeatedFailure::default();
                    }
                }
                Err(error) => {
                    failed += 1;
                    let error = match failure.take() {
                        // With one of the keys that the server may have, it came further.
                        Some(further) if error.reason() == Reason::WrongServerKey => further,
                        _ => error,
                    };
                    if !failed.is_multiple_of(keys.len()) {
                        failure = Some(error);
                        continue;
                    }
                    if logged.is_due(error.reason(), Instant::now()) {
                        let (endpoint, attempts) = (&self.endpoint, failed);
                        tracing::warn!(%endpoint, %error, attempts, "cannot connect");
                    }
                    self.shared.connection.failed(error);
                }
            }
            sleep(wait.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            wait = (wait * 2).min(self.options.reconnect_max);
        }
    }

    /// The keys that the server may have.
    fn servers(&self) -> Vec<Option<PublicKey>> {
        match &self.options.client_security {
            None => vec![None],
            Some(security) => std::iter::once(Some(security.server))
                .chain(security.server_also.map(Some))
                .collect(),
        }
    }

    async fn connect(
        &self,
        server: Option<PublicKey>,
    ) -> Result<(Arc<Link>, Incoming, PeerAddress), ConnectionFailure> {
        let within = self.options.handshake_timeout;
        let stream = Stream::connect(&self.endpoint, within).await?;
        let peer = stream.peer;
        self.shared
            .connection
            .progress(ConnectionFailure::unfinished());
        let mechanism = match (&self.options.client_security, server) {
            (Some(security), Some(server)) => MechanismSetup::CurveClient {
                our_keypair: keypair(&security.keys),
                server_public: curve(server),
            },
            _ => MechanismSetup::Null,
        };
        let config = ConnectionConfig::new(Role::Client, self.kind)
            .max_message_size(message_size_max(self.options.message_bytes_max))
            .mechanism(mechanism);
        let limits = Limits::from(&self.options);
        let (link, incoming, _) =
            Link::shake_hands(stream, config, limits, Total::default(), within).await?;
        Ok((link, incoming, peer))
    }

    /// Hands the connection over, and returns when it is lost.
    async fn stay(&self, link: &Arc<Link>, incoming: Incoming, key: Option<PublicKey>) {
        {
            // Under the lock, so that what is asked for meanwhile is asked for once.
            let mut current = lock(&self.shared.current);
            if self.shared.connection.is_closed() {
                return link.close();
            }
            (self.begin)(link);
            current.link = Some(Arc::clone(link));
            current.incoming = Some((incoming, key));
            // Before anything is received over it.
            self.shared.connection.set(true);
            if let Some(receiver) = current.receiver.take() {
                receiver.wake();
            }
        }
        let (every, patience) = (
            self.options.heartbeat_interval,
            self.options.heartbeat_timeout,
        );
        let mut tick = interval_at(Instant::now() + every, every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = link.ended() => break,
                now = tick.tick() => if let Err(lost) = link.tick(now, every, patience, false) {
                    link.end(lost);
                    break;
                },
            }
        }
        self.shared
            .connection
            .lost(link.cause().unwrap_or_default());
        self.shared.give_up();
        self.shared.connection.set(false);
    }
}
