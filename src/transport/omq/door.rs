//! The door of a bound socket: who is let in, who is shown out, and what is known of who is in.
//!
//! One task accepts connections, each of which is a task of its own that ends with it. It also
//! looks at the lists that may have changed, and closes the connections of those who may not be in
//! any more.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::mem::Discriminant;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use omq_proto::proto::{ConnectionConfig, Role, SocketType};
use omq_proto::{
    AuthenticationResult, AuthenticationStatus, Authenticator, CurveServerOptions,
    MechanismPeerInfo, MechanismSetup, PeerPublicKey,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep, timeout};

use super::link::{HandshakeFailure, Heard, Incoming, Limits, Link, Lost};
use super::outbox::Total;
use super::stream::{Listener, PeerAddress, Stream};
use super::{keypair, message_size_max, to_error};
use crate::counter::{Counter, LogBurst, LogPerKind};
use crate::security::{
    self, AdmissionRefused, Admissions, Handshakes, Principal, PublicKey, ServerSecurity,
};
use crate::transport::{DoorCounters, Endpoint, TransportError, TransportOptions};
use crate::wire::Reason;

/// How often lists are looked at, which may change. A second is promised.
pub(super) const LOOK_AT_LISTS: Duration = Duration::from_millis(400);
/// How long nobody is accepted after the system could not: it has no more files, say.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What a bound socket does with those who are in.
pub(super) trait Host: Send + Sync + Sized + 'static {
    /// What is known of one connection.
    type Guest: Send + Sync + 'static;

    fn welcome(&self, door: &Door<Self>, link: &Arc<Link>, who: Who) -> Arc<Self::Guest>;

    /// Takes what a guest has said; `Err` shows it out.
    fn hear(
        &self,
        door: &Door<Self>,
        guest: &Arc<Self::Guest>,
        heard: &mut Vec<Heard>,
    ) -> impl Future<Output = Result<(), ShownOut>> + Send;

    /// Returns when more may be read from a guest. Meanwhile what waits for it is written, and it is
    /// told that this side lives.
    fn may_read(&self, guest: &Arc<Self::Guest>) -> impl Future<Output = ()> + Send;

    /// Whether it may stay after a list has changed; it is still on the list of keys.
    fn may_stay(&self, door: &Door<Self>, guest: &Self::Guest) -> bool;

    /// It has gone, for whatever reason.
    fn left(&self, guest: &Arc<Self::Guest>);
}

/// Why a connection is closed from this side: its peer broke a rule or passed a limit.
#[derive(Debug)]
pub(super) struct ShownOut(pub &'static str);

/// Why the connection of a peer is closed whose key is not on the list any more.
pub(super) const KEY_REVOKED: &str = "its key was revoked";
/// Lines about connections made and closed in a second.
const LOG_LINES_MAX: u32 = 20;

/// Who is let in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who {
    /// Of this connection alone.
    pub number: u64,
    /// The key that it has proved.
    pub key: Option<PublicKey>,
    /// Where it connects from, over tcp.
    pub address: Option<IpAddr>,
}

/// What connections, the socket's halves and the accepting task share.
pub(super) struct Door<H: Host> {
    pub host: H,
    kind: SocketType,
    endpoint: Endpoint,
    options: TransportOptions,
    /// What a peer may say at once, in bytes.
    message_bytes_max: usize,
    /// Bytes that wait to be sent, to all.
    pub waiting: Total,
    admissions: Arc<Mutex<Admissions>>,
    handshakes: Mutex<Handshakes<(AbortHandle, PeerAddress)>>,
    inside: Mutex<HashMap<u64, Inside<H::Guest>>>,
    counters: Counters,
    logs: Logs,
}

/// Somebody who is in.
struct Inside<G> {
    who: Who,
    link: Arc<Link>,
    guest: Arc<G>,
}

/// What is logged of connections, and how often.
struct Logs {
    failed: LogPerKind<Reason>,
    lost: LogPerKind<Discriminant<Lost>>,
    opened: LogBurst,
    closed: LogBurst,
}

#[derive(Debug, Default)]
struct Counters {
    refused: AtomicU64,
    failed: AtomicU64,
    shown_out: AtomicU64,
    broken: AtomicU64,
    subscriptions_refused: AtomicU64,
    handshakes_ended: Counter,
}

/// Ends the accepting task, and with it all connections, when it is dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    task: JoinHandle<()>,
    stop: mpsc::Sender<oneshot::Sender<()>>,
}

impl Keeper {
    /// Returns when nobody is accepted any more.
    pub async fn stop_accepting(&self) {
        let (stopped, has_stopped) = oneshot::channel();
        // Where the task has ended, nobody is accepted either.
        if self.stop.send(stopped).await.is_ok() {
            let _ = has_stopped.await;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a peer that has finished its part of the handshake is not admitted.
#[derive(Debug, thiserror::Error)]
enum NotAdmitted {
    #[error("the key {0} is not allowed")]
    Key(PublicKey),
    #[error("{0}")]
    Limit(AdmissionRefused, Option<Principal>),
}

impl NotAdmitted {
    fn reason(&self) -> Reason {
        match self {
            Self::Key(_) => Reason::KeyRejected,
            Self::Limit(..) => Reason::Overloaded,
        }
    }
}

/// A place among those who are in, given back when it is dropped.
struct Admitted {
    admissions: Arc<Mutex<Admissions>>,
    number: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        lock(&self.admissions).release(self.number);
    }
}

impl<H: Host> std::fmt::Debug for Door<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door")
            .field("security", &self.options.server_security)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Binds, and begins to let peers in.
pub(super) async fn open<H: Host>(
    host: H,
    kind: SocketType,
    (endpoint, addresses): (&Endpoint, &[SocketAddr]),
    options: &TransportOptions,
    message_bytes_max: usize,
) -> Result<(Arc<Door<H>>, Keeper, Endpoint), TransportError> {
    let bound = Listener::bind(endpoint, addresses, options.ipc_mode).await;
    let (listener, actual) = bound.map_err(|error| to_error(endpoint, error))?;
    let door = Arc::new(Door {
        host,
        kind,
        endpoint: actual.clone(),
        options: options.clone(),
        message_bytes_max,
        waiting: Total::default(),
        admissions: Arc::new(Mutex::new(Admissions::new(
            options.connections_max,
            options.connections_per_address_max,
        ))),
        handshakes: Mutex::new(Handshakes::new(options.handshakes_max)),
        inside: Mutex::default(),
        counters: Counters::default(),
        logs: Logs {
            failed: LogPerKind::default(),
            lost: LogPerKind::default(),
            opened: LogBurst::new(LOG_LINES_MAX),
            closed: LogBurst::new(LOG_LINES_MAX),
        },
    });
    let (stop, stopped) = mpsc::channel(1);
    let task = tokio::spawn(keep(Arc::clone(&door), listener, stopped));
    Ok((door, Keeper { task, stop }, actual))
}

impl<H: Host> Door<H> {
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

    pub fn subscription_refused(&self) {
        self.counters.subscriptions_refused.fetch_add(1, Relaxed);
    }

    /// Closes a connection, and says why in the log.
    pub fn show_out(&self, link: &Link, why: &'static str) {
        if !link.is_closed() {
            self.counters.shown_out.fetch_add(1, Relaxed);
            link.end(Lost::Disconnected(why));
        }
    }

    /// Changes whenever a principal may have changed.
    pub fn generation(&self) -> u64 {
        match self.security() {
            Some(security) => security.allowed.generation(),
            None => 0,
        }
    }

    /// Whose key it is; `Err` for one that is not to be let in, or no more.
    pub fn principal(&self, key: Option<PublicKey>) -> Result<Option<Principal>, ShownOut> {
        match (self.security(), key) {
            (None, _) => Ok(None),
            (Some(_), None) => Err(ShownOut(KEY_REVOKED)),
            (Some(security), Some(key)) => {
                let principal = security.allowed.principal(&key);
                principal.map(Some).ok_or(ShownOut(KEY_REVOKED))
            }
        }
    }

    fn security(&self) -> Option<&ServerSecurity> {
        self.options.server_security.as_ref()
    }

    fn generations(&self) -> (u64, u64) {
        match self.security() {
            Some(security) => (security.allowed.generation(), security.access.generation()),
            None => (0, 0),
        }
    }

    /// Writes what waits, for as long as that may take, and closes all connections.
    pub async fn close(&self) {
        let links = self.links();
        let _ = timeout(self.options.linger, async {
            for link in &links {
                link.drained().await;
            }
        })
        .await;
        self.links().iter().for_each(|link| link.close());
    }

    fn links(&self) -> Vec<Arc<Link>> {
        let inside = lock(&self.inside);
        inside.values().map(|one| Arc::clone(&one.link)).collect()
    }

    /// Closes the connections of those who are not on the list any more, and of those who have
    /// what they may not have any more: these come again, and ask again.
    fn expel(&self) {
        let wrong = |one: &Inside<H::Guest>| {
            if let Err(ShownOut(why)) = self.principal(one.who.key) {
                return Some((Arc::clone(&one.link), why));
            }
            let may_stay = self.host.may_stay(self, &one.guest);
            let why = "the access rules do not allow its subscriptions any more";
            (!may_stay).then(|| (Arc::clone(&one.link), why))
        };
        let inside = lock(&self.inside);
        let wrong: Vec<_> = inside.values().filter_map(wrong).collect();
        drop(inside);
        for (link, why) in wrong {
            self.show_out(&link, why);
        }
    }

    /// Admits a peer that has proved its key; an error says why not, to the log alone.
    fn admit(
        &self,
        peer: &MechanismPeerInfo,
        stream: Option<IpAddr>,
    ) -> Result<Admitted, NotAdmitted> {
        let mut principal = None;
        if let Some(security) = self.security() {
            let key = PublicKey::from_bytes(peer.public_key);
            principal = security.allowed.principal(&key);
            if principal.is_none() {
                self.counters.refused.fetch_add(1, Relaxed);
                return Err(NotAdmitted::Key(key));
            }
        }
        let admitted = lock(&self.admissions).admit(principal.as_ref(), stream);
        match admitted {
            Ok(number) => Ok(Admitted {
                admissions: Arc::clone(&self.admissions),
                number,
            }),
            Err(limit) => {
                self.counters.refused.fetch_add(1, Relaxed);
                Err(NotAdmitted::Limit(limit, principal))
            }
        }
    }

    /// One connection, from its handshake to its end.
    async fn attend(self: Arc<Self>, stream: Stream, handshake: u64) {
        let handshake = InHandshake {
            door: &self,
            number: handshake,
        };
        let admission = Arc::new(Mutex::new(None));
        let config = self.config(&stream, &admission);
        let (address, peer) = (stream.address, stream.peer);
        let within = self.options.handshake_timeout;
        let total = Arc::clone(&self.waiting);
        let limits = Limits::from(&self.options);
        let shaken = Link::shake_hands(stream, config, limits, total, within).await;
        drop(handshake);
        // Out of what the codec holds on to: that may outlive the connection.
        let admission = lock(&admission).take();
        let (link, incoming, properties, admitted) = match (shaken, admission) {
            (Ok((link, incoming, properties)), Some(Ok(admitted))) => {
                (link, incoming, properties, admitted)
            }
            (shaken, admission) => {
                self.counters.failed.fetch_add(1, Relaxed);
                self.log_failed(peer, shaken.err(), admission.and_then(Result::err));
                return;
            }
        };
        let key = match properties.authentication.public_key {
            Some(PeerPublicKey::Curve(key)) => Some(PublicKey::from_bytes(key)),
            _ => None,
        };
        let who = Who {
            number: admitted.number,
            key,
            address,
        };
        let guest = self.host.welcome(&self, &link, who);
        let inside = Inside {
            who,
            link: Arc::clone(&link),
            guest: Arc::clone(&guest),
        };
        lock(&self.inside).insert(who.number, inside);
        let here = Here {
            door: &self,
            number: who.number,
            guest: &guest,
        };
        // It may have been struck off the list while it was on its way in.
        let principal = match self.principal(who.key) {
            Ok(principal) => principal,
            Err(ShownOut(why)) => {
                self.show_out(&link, why);
                None
            }
        };
        let principal = principal.as_ref().map(Principal::as_str);
        self.logs.opened.log(|suppressed| {
            tracing::info!(endpoint = %self.endpoint, %peer, principal, suppressed, "connection opened");
        });
        let lost = self.stay(&link, incoming, &guest).await;
        self.log_closed(peer, principal, &lost);
        drop(here);
    }

    /// Says why a peer has not come in. It is told nothing: it may be a stranger.
    fn log_failed(
        &self,
        peer: PeerAddress,
        failure: Option<HandshakeFailure>,
        not_admitted: Option<NotAdmitted>,
    ) {
        let (endpoint, count) = (&self.endpoint, self.counters.failed.load(Relaxed));
        if let Some(error) = not_admitted {
            let principal = match &error {
                NotAdmitted::Limit(_, principal) => principal.as_ref().map(Principal::as_str),
                NotAdmitted::Key(_) => None,
            };
            self.logs.failed.log(error.reason(), || {
                tracing::warn!(%endpoint, %peer, principal, %error, count, "connection refused");
            });
        } else if let Some(error) = failure {
            if error.is_wordless {
                return tracing::debug!(%endpoint, %peer, %error, count, "handshake failed");
            }
            self.logs.failed.log(error.reason, || {
                tracing::warn!(%endpoint, %peer, %error, count, "handshake failed");
            });
        }
    }

    fn log_closed(&self, peer: PeerAddress, principal: Option<&str>, lost: &Lost) {
        let endpoint = &self.endpoint;
        if matches!(lost, Lost::ByPeer | Lost::ByUs) {
            return self.logs.closed.log(|suppressed| {
                tracing::info!(%endpoint, %peer, principal, cause = %lost, suppressed, "connection closed");
            });
        }
        if !matches!(lost, Lost::Disconnected(_)) {
            self.counters.broken.fetch_add(1, Relaxed);
        }
        self.logs.lost.log(std::mem::discriminant(lost), || {
            let counters = self.counters();
            let (broken, disconnected) = (counters.broken, counters.disconnected);
            tracing::warn!(%endpoint, %peer, principal, error = %lost, broken, disconnected, "connection lost");
        });
    }

    async fn stay(&self, link: &Link, mut incoming: Incoming, guest: &Arc<H::Guest>) -> Lost {
        let (every, patience) = (
            self.options.heartbeat_interval,
            self.options.heartbeat_timeout,
        );
        let mut tick = interval_at(Instant::now() + every, every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Vec::new();
        let mut is_paused = false;
        loop {
            if is_paused {
                tokio::select! {
                    biased;
                    () = self.host.may_read(guest) => is_paused = false,
                    () = std::future::poll_fn(|cx| incoming.poll_paused(cx)) => is_paused = false,
                    now = tick.tick() => if let Err(lost) = link.tick(now, every, patience, true) {
                        return lost;
                    },
                }
                continue;
            }
            let polled = std::future::poll_fn(|cx| incoming.poll(cx, &mut heard));
            tokio::select! {
                biased;
                polled = polled => match polled {
                    Ok(()) => {
                        if let Err(ShownOut(why)) = self.host.hear(self, guest, &mut heard).await {
                            self.show_out(link, why);
                            return Lost::Disconnected(why);
                        }
                        is_paused = true;
                    }
                    Err(lost) => return lost,
                },
                now = tick.tick() => if let Err(lost) = link.tick(now, every, patience, false) {
                    return lost;
                },
            }
        }
    }

    fn config(
        self: &Arc<Self>,
        stream: &Stream,
        admission: &Arc<Mutex<Option<Result<Admitted, NotAdmitted>>>>,
    ) -> ConnectionConfig {
        // The codec keeps it, and may outlive the door.
        let door = Arc::downgrade(self);
        let (admission, address) = (Arc::clone(admission), stream.address);
        let authenticator = Authenticator::new_with_result(move |peer| {
            let admitted = door.upgrade().map(|door| door.admit(peer, address));
            let is_admitted = matches!(admitted, Some(Ok(_)));
            *lock(&admission) = admitted;
            match is_admitted {
                true => AuthenticationResult::allow(),
                // The peer may be right tomorrow, so it is not told to stop: no ERROR, and it
                // tries again.
                false => AuthenticationResult {
                    status: AuthenticationStatus::TemporaryFailure,
                    user_id: None,
                    metadata: Vec::new(),
                },
            }
        });
        let mechanism = match self.security() {
            Some(security) => {
                let mut options = CurveServerOptions::new();
                options.authenticator = Some(authenticator);
                MechanismSetup::CurveServer {
                    our_keypair: keypair(&security.keys),
                    options,
                }
            }
            None => MechanismSetup::NullServer { authenticator },
        };
        ConnectionConfig::new(Role::Server, self.kind)
            .max_message_size(message_size_max(self.message_bytes_max))
            .mechanism(mechanism)
    }
}

/// A handshake that is not over, until it is dropped.
struct InHandshake<'a, H: Host> {
    door: &'a Door<H>,
    number: u64,
}

impl<H: Host> Drop for InHandshake<'_, H> {
    fn drop(&mut self) {
        lock(&self.door.handshakes).finish(self.number);
    }
}

/// Takes a guest off the list when it has gone, or when its task is ended.
struct Here<'a, H: Host> {
    door: &'a Door<H>,
    number: u64,
    guest: &'a Arc<H::Guest>,
}

impl<H: Host> Drop for Here<'_, H> {
    fn drop(&mut self) {
        lock(&self.door.inside).remove(&self.number);
        self.door.host.left(self.guest);
    }
}

pub(super) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep<H: Host>(
    door: Arc<Door<H>>,
    listener: Listener,
    mut stop: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let mut listener = Some(listener);
    let mut attended = JoinSet::new();
    let mut look = interval(LOOK_AT_LISTS);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = door.generations();
    loop {
        tokio::select! {
            stream = accept(listener.as_ref()) => {
                let (address, peer) = (stream.address, stream.peer);
                // Under the lock, so that it is not over before it is known.
                let mut handshakes = lock(&door.handshakes);
                let number = handshakes.number();
                let task = attended.spawn(Arc::clone(&door).attend(stream, number));
                if let Some((oldest, peer)) = handshakes.begin(number, address, (task, peer)) {
                    oldest.abort();
                    door.counters.failed.fetch_add(1, Relaxed);
                    door.counters.handshakes_ended.count_and_log(|count| {
                        tracing::warn!(
                            endpoint = %door.endpoint,
                            %peer,
                            max = door.options.handshakes_max,
                            count,
                            "too many handshakes at once: the oldest of the address with most of them is closed"
                        );
                    });
                }
            }
            Some(_) = attended.join_next(), if !attended.is_empty() => {}
            Some(stopped) = stop.recv() => {
                listener = None;
                // Whoever asked may have gone.
                let _ = stopped.send(());
            }
            _ = look.tick(), if door.security().is_some() => {
                if let Some(security) = door.security() {
                    security::refresh(&security.allowed, &security.access);
                }
                let now = door.generations();
                if std::mem::replace(&mut seen, now) != now {
                    door.expel();
                }
            }
        }
    }
}

/// Waits for a connection, for ever where nobody listens.
async fn accept(listener: Option<&Listener>) -> Stream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok(stream) => return stream,
            Err(error) => match error.kind() {
                // That one has gone already.
                ErrorKind::ConnectionAborted
                | ErrorKind::ConnectionReset
                | ErrorKind::NotConnected => {}
                _ => {
                    tracing::warn!(%error, "connections cannot be accepted for a moment");
                    sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
}
