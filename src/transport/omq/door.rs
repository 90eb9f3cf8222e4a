//! The door of a bound socket: who is let in, who is shown out, and what is known of who is in.
//!
//! omq asks the [`Door`] at each handshake and each subscription. Its keeper, a task, hears of
//! those who went, looks at the lists that may have changed, and closes connections.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use omq_tokio::{
    AuthenticationResult, AuthenticationStatus, Authenticator, CurveKeypair, CurvePublicKey,
    CurveSecretKey, CurveServerOptions, DisconnectReason, MechanismPeerInfo, MechanismSetup,
    MonitorEvent, MonitorRecvError, MonitorStream, Options, PeerAuthentication, PeerInfo,
    PeerPublicKey, Socket,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::security::{
    self, Admissions, Keys, Principal, PublicKey, ServerSecurity, Subscriptions, Wanted,
};
use crate::transport::{Admit, DoorCounters, TransportOptions};

/// How often lists are looked at, which may change. A second is promised.
pub(super) const LOOK_AT_LISTS: Duration = Duration::from_millis(400);
/// How often the count of connections is compared with those that are there.
const COMPARE: Duration = Duration::from_secs(5);
/// How soon subscriptions are counted again: whoever takes many back costs one count in this time.
const COUNT_AGAIN: Duration = Duration::from_millis(50);
/// So often, each time: what was admitted just before one count is found by the next.
const COUNTS: u32 = 2;
/// Connections that may wait to be closed; one that finds no room is found again.
const LEAVING_MAX: usize = 1024;

/// What omq's tasks, the socket's halves and the keeper share.
pub(super) struct Door {
    admissions: Mutex<Admissions>,
    security: Option<ServerSecurity>,
    /// Whether a subscription is taken, for a publisher.
    admit: Option<Admit>,
    /// By the number of the connection's admission, for a publisher.
    subscriptions: Mutex<Subscriptions>,
    subscription_bytes_max: usize,
    recount: Notify,
    leaving: mpsc::Sender<u64>,
    handshake_timeout: Duration,
    counters: Counters,
    /// Bytes of replies that wait, of all peers.
    pub queued: AtomicUsize,
    /// Of a server, by connection: dropped when that is lost, for those who work for it.
    connected: Mutex<HashMap<u64, watch::Sender<()>>>,
}

#[derive(Debug, Default)]
struct Counters {
    refused: AtomicU64,
    failed: AtomicU64,
    shown_out: AtomicU64,
    broken: AtomicU64,
    subscriptions_refused: AtomicU64,
}

/// Ends the keeper with the socket that it keeps.
#[derive(Debug)]
pub(super) struct Keeper(JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door")
            .field("security", &self.security)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

pub(super) fn keypair(keys: &Keys) -> CurveKeypair {
    CurveKeypair {
        public: curve(keys.public()),
        secret: CurveSecretKey::from_bytes(*keys.secret_bytes()),
    }
}

pub(super) fn curve(key: PublicKey) -> CurvePublicKey {
    CurvePublicKey::from_bytes(*key.as_bytes())
}

/// The key that a peer has proved.
pub(super) fn key_of(authentication: &PeerAuthentication) -> Option<PublicKey> {
    match authentication.public_key {
        Some(PeerPublicKey::Curve(key)) => Some(PublicKey::from_bytes(key)),
        _ => None,
    }
}

/// The number of a connection's admission, which omq keeps as its user.
fn number_of(peer: &PeerInfo) -> u64 {
    number(&peer.authentication)
}

fn number(authentication: &PeerAuthentication) -> u64 {
    let number = authentication.user_id.as_deref().unwrap_or_default();
    <[u8; 8]>::try_from(number).map_or(0, u64::from_be_bytes)
}

impl Door {
    /// A door before the socket, with what its keeper waits for.
    pub fn new(from: &TransportOptions, admit: Option<Admit>) -> (Arc<Self>, mpsc::Receiver<u64>) {
        let (leaving, left) = mpsc::channel(LEAVING_MAX);
        let door = Arc::new(Self {
            admissions: Mutex::new(Admissions::new(
                from.connections_max,
                from.connections_per_address_max,
            )),
            security: from.server_security.clone(),
            admit,
            subscriptions: Mutex::new(Subscriptions::new(
                from.subscriptions_max,
                from.subscription_bytes_total_max,
                from.connections_max,
            )),
            subscription_bytes_max: from.subscription_bytes_max,
            recount: Notify::new(),
            leaving,
            handshake_timeout: from.handshake_timeout,
            counters: Counters::default(),
            queued: AtomicUsize::new(0),
            connected: Mutex::default(),
        });
        (door, left)
    }

    /// Sets a socket's options so that it asks this door.
    pub fn guard(self: &Arc<Self>, options: Options) -> Options {
        let door = Arc::clone(self);
        let authenticator = Authenticator::new_with_result(move |peer| door.admit(peer));
        let mut options = match &self.security {
            Some(security) => {
                let mut server = CurveServerOptions::new();
                server.authenticator = Some(authenticator);
                options.curve_server_with_options(keypair(&security.keys), server)
            }
            None => {
                let mut options = options;
                options.mechanism = MechanismSetup::NullServer { authenticator };
                options
            }
        };
        if self.admit.is_some() {
            let door = Arc::clone(self);
            options = options.subscription_admission(move |request| {
                door.admit_subscription(&request.peer.authentication, request.prefix)
            });
        }
        options
    }

    pub fn keep(
        self: &Arc<Self>,
        socket: &Socket,
        events: MonitorStream,
        left: mpsc::Receiver<u64>,
    ) -> Keeper {
        let keeping = keep(Arc::clone(self), socket.clone_shared(), events, left);
        Keeper(tokio::spawn(keeping))
    }

    pub fn counters(&self) -> DoorCounters {
        DoorCounters {
            connections: lock(&self.admissions).len(),
            connections_refused: self.counters.refused.load(Relaxed),
            handshakes_failed: self.counters.failed.load(Relaxed),
            disconnected: self.counters.shown_out.load(Relaxed),
            broken: self.counters.broken.load(Relaxed),
            subscriptions_refused: self.counters.subscriptions_refused.load(Relaxed),
        }
    }

    /// Has a connection closed, in the background.
    pub fn show_out(&self, connection: u64) {
        // One that finds no room gives another reason soon enough.
        let _ = self.leaving.try_send(connection);
    }

    /// Changes whenever a principal may have changed.
    pub fn generation(&self) -> u64 {
        match &self.security {
            Some(security) => security.allowed.generation(),
            None => 0,
        }
    }

    /// Whose key it is; `Err` for one that is not to be let in, or no more.
    pub fn principal(&self, key: Option<PublicKey>) -> Result<Option<Principal>, ()> {
        match (&self.security, key) {
            (None, _) => Ok(None),
            (Some(_), None) => Err(()),
            (Some(security), Some(key)) => security.allowed.principal(&key).map(Some).ok_or(()),
        }
    }

    fn admit(&self, peer: &MechanismPeerInfo) -> AuthenticationResult {
        // The peer may be right tomorrow, so it is not told to stop: no ERROR, and it tries again.
        let refused = AuthenticationResult {
            status: AuthenticationStatus::TemporaryFailure,
            user_id: None,
            metadata: Vec::new(),
        };
        if let Some(security) = &self.security {
            let key = PublicKey::from_bytes(peer.public_key);
            if security.allowed.principal(&key).is_none() {
                self.counters.refused.fetch_add(1, Relaxed);
                tracing::debug!(%key, address = ?peer.peer_address, "a key that is not allowed");
                return refused;
            }
        }
        let address = peer.peer_address.as_ref();
        let address = address.and_then(|address| address.parse::<IpAddr>().ok());
        match lock(&self.admissions).admit(Instant::now(), address) {
            // Each has a user of its own, so none can take the ZeroMQ identity of another.
            Ok(number) => AuthenticationResult::allow().with_user_id(number.to_be_bytes().to_vec()),
            Err(reason) => {
                self.counters.refused.fetch_add(1, Relaxed);
                tracing::debug!(?address, %reason, "a connection is refused");
                refused
            }
        }
    }

    fn admit_subscription(&self, peer: &PeerAuthentication, prefix: &[u8]) -> bool {
        let wanted = self.wanted(peer, prefix);
        let is_admitted = wanted.is_some_and(|wanted| {
            let mut subscriptions = lock(&self.subscriptions);
            let number = number(peer);
            let fits = subscriptions.admit(number, prefix.len(), wanted);
            // What was taken back is found by counting; in time, before the limit is reached.
            if subscriptions.is_much(number) {
                self.recount.notify_one();
            }
            fits
        });
        if !is_admitted {
            self.counters.subscriptions_refused.fetch_add(1, Relaxed);
        }
        is_admitted
    }

    /// What a subscription is for; `None` for one that this peer may not have.
    fn wanted(&self, peer: &PeerAuthentication, prefix: &[u8]) -> Option<Wanted> {
        let is_short = prefix.len() <= self.subscription_bytes_max;
        let principal = self.principal(key_of(peer)).ok().filter(|_| is_short)?;
        self.admit.as_ref()?(principal.as_ref(), prefix)
    }

    fn released(&self, peer: &PeerInfo) {
        let number = number_of(peer);
        lock(&self.admissions).release(number);
        lock(&self.subscriptions).release(number);
        lock(&self.connected).remove(&peer.connection_id);
    }

    /// A connection has sent something. What is returned is closed when it is lost.
    pub fn arrived(&self, connection: u64) -> watch::Receiver<()> {
        let mut connected = lock(&self.connected);
        let sender = connected.entry(connection);
        sender.or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    fn generations(&self) -> (u64, u64) {
        match &self.security {
            Some(security) => (security.allowed.generation(), security.access.generation()),
            None => (0, 0),
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep(
    door: Arc<Door>,
    socket: Socket,
    mut events: MonitorStream,
    mut left: mpsc::Receiver<u64>,
) {
    let mut look = interval(LOOK_AT_LISTS);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut compare = interval(COMPARE);
    compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = door.generations();
    let (mut counts_left, mut counted) = (0, Instant::now());
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(MonitorEvent::Disconnected { peer, reason, .. }) => {
                    if let DisconnectReason::Error(_) = reason {
                        door.counters.broken.fetch_add(1, Relaxed);
                    }
                    door.released(&peer);
                }
                Ok(MonitorEvent::HandshakeFailed { .. }) => {
                    door.counters.failed.fetch_add(1, Relaxed);
                }
                Ok(MonitorEvent::Closed) | Err(MonitorRecvError::Closed) => return,
                // It may have been refused room for another, or soon be.
                Ok(MonitorEvent::UnsubscribeReceived { .. }) => {
                    if lock(&door.subscriptions).is_crowded() {
                        counts_left = COUNTS;
                    }
                }
                // What was missed is found by comparing.
                Err(MonitorRecvError::Lagged(_)) => compare.reset_after(LOOK_AT_LISTS),
                Ok(_) | Err(_) => {}
            },
            connection = left.recv() => if let Some(connection) = connection {
                show_out(&door, &socket, connection).await;
            },
            () = door.recount.notified() => counts_left = COUNTS,
            () = tokio::time::sleep_until(counted + COUNT_AGAIN), if counts_left > 0 => {
                recount(&door, &socket, false).await;
                (counts_left, counted) = (counts_left - 1, Instant::now());
            }
            _ = look.tick(), if door.security.is_some() => {
                if let Some(security) = &door.security {
                    security::refresh(&security.allowed, &security.access);
                }
                let now = door.generations();
                if std::mem::replace(&mut seen, now) != now {
                    expel(&door, &socket).await;
                }
            }
            _ = compare.tick() => {
                // One that arrives from here on is not compared.
                let known: Vec<u64> = lock(&door.connected).keys().copied().collect();
                let Ok(open) = socket.connections().await else { return };
                let peers = || open.iter().filter_map(|open| open.peer_info.as_ref());
                let ids: HashSet<u64> = peers().map(|peer| peer.connection_id).collect();
                let lost = known.iter().filter(|id| !ids.contains(id));
                lost.for_each(|id| drop(lock(&door.connected).remove(id)));
                let open: HashSet<u64> = peers().map(number_of).collect();
                let (now, grace) = (Instant::now(), door.handshake_timeout);
                lock(&door.admissions).compare(now, grace, |number| open.contains(&number));
                lock(&door.subscriptions).retain(|number| open.contains(&number));
            }
        }
    }
}

async fn show_out(door: &Door, socket: &Socket, connection: u64) {
    if socket.disconnect_peer(connection).await.is_ok() {
        door.counters.shown_out.fetch_add(1, Relaxed);
    }
}

/// Closes the connections of those who are not on the list any more, and of those who have
/// subscriptions that they may not have any more: these come again, and ask again.
async fn expel(door: &Door, socket: &Socket) {
    let Ok(open) = socket.connections().await else {
        return;
    };
    for peer in open.iter().filter_map(|open| open.peer_info.as_ref()) {
        if door.principal(key_of(&peer.authentication)).is_err() {
            show_out(door, socket, peer.connection_id).await;
        }
    }
    if door.admit.is_some() {
        recount(door, socket, true).await;
    }
}

/// Counts the subscriptions that there are.
async fn recount(door: &Door, socket: &Socket, and_check: bool) {
    lock(&door.subscriptions).look();
    let Ok((_, peers)) = socket.monitor_with_subscriptions().await else {
        return;
    };
    for peer in peers {
        let number = number_of(&peer.peer);
        let lengths = peer.prefixes.iter().map(Bytes::len);
        lock(&door.subscriptions).recount(number, lengths);
        let may = |prefix: &Bytes| match (
            &door.admit,
            door.principal(key_of(&peer.peer.authentication)),
        ) {
            (Some(admit), Ok(principal)) => admit(principal.as_ref(), prefix).is_some(),
            _ => false,
        };
        if and_check && !peer.prefixes.iter().all(may) {
            show_out(door, socket, peer.peer.connection_id).await;
        }
    }
}
