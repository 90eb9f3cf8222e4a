//! Publish and subscribe.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeromq::util::PeerIdentity;
use zeromq::{Socket, SocketEvent, SocketRecv, SocketSend, SubSocket, XPubSocket, ZmqError};

use super::{CAUSE_UNKNOWN, ConnectionLog, actual, bind, connect, linger, message, options};
use crate::transport::connection::Connection;
use crate::transport::wanted::{Change, Wanted};
use crate::transport::{
    BATCH_MAX, Closed, ConnectionFailure, Endpoint, Malformed, PublishRefused, SubscriptionChange,
    TopicFrames, TopicMessage, TransportError, TransportOptions, unpack_events,
};

/// How long closing waits for the socket's task.
const CLOSE_WAIT_MAX: Duration = Duration::from_millis(100);
/// Subscriptions that may wait for the watch.
const CHANGES_MAX: usize = 4096;

// ---- publish ----

pub(in crate::transport) async fn bind_publish(
    endpoint: &Endpoint,
    addresses: &[SocketAddr],
    from: &TransportOptions,
) -> Result<(PublishSender, SubscriptionWatch, Endpoint), TransportError> {
    let mut socket = XPubSocket::with_options(options(from));
    let accepted = socket.monitor();
    let bound = bind(&mut socket, endpoint, addresses, from.ipc_mode).await?;
    let (commands, to_do) = mpsc::channel(from.send_queue_max.max(1) as usize);
    let (changed, changes) = mpsc::channel(CHANGES_MAX);
    let sender = PublishSender {
        commands,
        task: tokio::spawn(publish_all(Peers::new(socket), accepted, to_do, changed)),
        linger: from.linger,
    };
    Ok((
        sender,
        SubscriptionWatch { changes },
        actual(endpoint, &bound),
    ))
}

#[derive(Debug)]
enum Command {
    Send(TopicMessage),
    Close(oneshot::Sender<()>),
}

/// Connections that are closed with the socket, the last that came.
const PEERS_MAX: usize = 8192;

/// The socket, and who is connected to it. The crate leaves connections open that were accepted by a socket which is gone,
/// and does not say when one has ended.
struct Peers {
    socket: XPubSocket,
    accepted: VecDeque<PeerIdentity>,
}

impl Peers {
    fn new(socket: XPubSocket) -> Self {
        let accepted = VecDeque::new();
        Self { socket, accepted }
    }

    fn accepted(&mut self, event: SocketEvent) {
        if let SocketEvent::Accepted(_, peer) = event {
            if self.accepted.len() >= PEERS_MAX {
                self.accepted.pop_front();
            }
            self.accepted.push_back(peer);
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let backend = self.socket.backend();
        for peer in &self.accepted {
            backend.peer_disconnected(peer);
        }
    }
}

/// Owns the socket: sends what is to be sent, and passes on what it hears of subscriptions.
async fn publish_all(
    mut peers: Peers,
    mut accepted: impl Stream<Item = SocketEvent> + Unpin,
    mut to_do: mpsc::Receiver<Command>,
    changed: mpsc::Sender<SubscriptionChange>,
) {
    loop {
        tokio::select! {
            event = std::future::poll_fn(|cx| std::pin::Pin::new(&mut accepted).poll_next(cx)) => {
                if let Some(event) = event {
                    peers.accepted(event);
                }
            }
            command = to_do.recv() => {
                let parts = match command {
                    Some(Command::Send(TopicMessage::Classic(frames))) => {
                        vec![frames.topic, frames.header.into(), frames.body]
                    }
                    Some(Command::Send(TopicMessage::Compact(events))) => vec![events],
                    Some(Command::Close(closed)) => {
                        // An error is that of an endpoint that is unbound already.
                        let _ = peers.socket.unbind_all().await;
                        drop(peers);
                        let _ = closed.send(());
                        return;
                    }
                    None => return,
                };
                // An error is that of one subscriber, who is gone with it.
                let _ = peers.socket.send(message(parts)).await;
            }
            received = peers.socket.recv() => {
                let Ok(Some(change)) = received.map(|m| change(&m.into_vec())) else { continue };
                if changed.send(change).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The crate does not say whose subscription it is: each prefix is taken for a peer of its own.
fn change(parts: &[Bytes]) -> Option<SubscriptionChange> {
    let [message] = parts else { return None };
    let (kind, prefix) = message.split_first()?;
    let prefix = message.slice_ref(prefix);
    let mut hasher = DefaultHasher::new();
    prefix.hash(&mut hasher);
    let peer = hasher.finish();
    match kind {
        1 => Some(SubscriptionChange::Added { peer, prefix }),
        0 => Some(SubscriptionChange::Removed { peer, prefix }),
        _ => None,
    }
}

#[derive(Debug)]
pub(crate) struct PublishSender {
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
    linger: Duration,
}

impl PublishSender {
    pub fn try_send(&self, message: TopicMessage) -> Result<(), PublishRefused> {
        let sent = self.commands.try_send(Command::Send(message));
        sent.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => PublishRefused::Full,
            mpsc::error::TrySendError::Closed(_) => PublishRefused::Closed,
        })
    }

    pub async fn writable(&self) {
        // Either outcome makes another try worth while.
        let _ = self.commands.reserve().await;
    }

    pub async fn close(&self) {
        linger(&self.commands, self.linger).await;
        let (closed, is_closed) = oneshot::channel();
        // Where a subscriber that does not read holds up the task, it is ended with what it has.
        let _ = timeout(CLOSE_WAIT_MAX, async {
            if self.commands.send(Command::Close(closed)).await.is_ok() {
                let _ = is_closed.await;
            }
        })
        .await;
        self.task.abort();
    }
}

impl Drop for PublishSender {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
pub(crate) struct SubscriptionWatch {
    changes: mpsc::Receiver<SubscriptionChange>,
}

impl SubscriptionWatch {
    pub async fn next(&mut self) -> Result<SubscriptionChange, Closed> {
        self.changes.recv().await.ok_or(Closed)
    }
}

// ---- subscribe ----

/// Changes that may wait to be sent to the publisher; with one more, the connection is made again and begins with all
/// subscriptions.
const COMMANDS_MAX: usize = 4096;

pub(in crate::transport) async fn connect_subscribe(
    endpoint: &Endpoint,
    options: &TransportOptions,
) -> Result<(SubscribeSender, SubscribeReceiver), TransportError> {
    let (received, incoming) = mpsc::channel(options.receive_queue_max.max(1) as usize);
    let shared = Arc::new(Subscriber {
        connection: Connection::new(),
        state: Mutex::default(),
        changed: Notify::new(),
    });
    let task = tokio::spawn(subscribe_all(
        endpoint.clone(),
        options.clone(),
        Arc::clone(&shared),
        received,
    ));
    let receiver = SubscribeReceiver {
        incoming,
        shared: Arc::clone(&shared),
    };
    Ok((SubscribeSender { shared, task }, receiver))
}

/// What a subscriber's halves and its task share.
#[derive(Debug)]
struct Subscriber {
    connection: Connection,
    state: Mutex<State>,
    /// Wakes the task: there are changes.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    wanted: Wanted,
    /// What a publisher that is connected has still to be told, at most `COMMANDS_MAX`.
    changes: VecDeque<Change>,
}

impl Subscriber {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Wanted) -> Option<Change>) -> Result<(), Closed> {
        if self.connection.is_closed() {
            return Err(Closed);
        }
        let mut state = self.lock();
        let change = change(&mut state.wanted);
        // Without a connection the next one begins with all; one more than may wait makes it begin again.
        if self.connection.is_connected() && state.changes.len() <= COMMANDS_MAX {
            state.changes.extend(change);
            self.changed.notify_one();
        }
        Ok(())
    }
}

/// Connects, and connects again when the publisher has gone. The crate would do so by itself, but only after two seconds.
async fn subscribe_all(
    endpoint: Endpoint,
    from: TransportOptions,
    shared: Arc<Subscriber>,
    received: mpsc::Sender<Result<TopicFrames, Malformed>>,
) {
    let mut wait = from.reconnect_min;
    let mut log = ConnectionLog::default();
    loop {
        let mut socket = SubSocket::with_options(options(&from));
        let events = socket.monitor();
        let within = from.handshake_timeout;
        match connect(&mut socket, &endpoint, within, &shared.connection).await {
            Ok(()) => {
                wait = from.reconnect_min;
                log.connected(&endpoint);
                let carried = carry(socket, events, &shared, &received).await;
                shared.connection.lost(CAUSE_UNKNOWN);
                shared.connection.set(false);
                if carried.is_err() {
                    return;
                }
                log.lost(&endpoint);
            }
            Err(failure) => {
                log.failed(&endpoint, &failure);
                shared.connection.failed(failure);
            }
        }
        tokio::time::sleep(wait.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        wait = (wait * 2).min(from.reconnect_max);
    }
}

/// Carries what one connection says, until it is lost; an error where there is none who receives any more.
async fn carry(
    mut socket: SubSocket,
    mut events: impl Stream<Item = SocketEvent> + Unpin,
    shared: &Subscriber,
    received: &mpsc::Sender<Result<TopicFrames, Malformed>>,
) -> Result<(), Closed> {
    let all: Vec<Bytes> = {
        let mut state = shared.lock();
        state.changes.clear();
        // Under the lock: what changes from here on waits for its turn.
        shared.connection.set(true);
        state.wanted.all().cloned().collect()
    };
    for prefix in all {
        if told(&mut socket, Change::Subscribe(prefix)).await.is_err() {
            return Ok(());
        }
    }
    let mut last_topic = Bytes::new();
    loop {
        tokio::select! {
            () = shared.changed.notified() => {
                if shared.lock().changes.len() > COMMANDS_MAX {
                    return Ok(());
                }
                loop {
                    let Some(change) = shared.lock().changes.pop_front() else { break };
                    if told(&mut socket, change).await.is_err() {
                        return Ok(());
                    }
                }
            }
            message = socket.recv() => {
                // An error is that of the connection, which is lost with it.
                let Ok(message) = message else { return Ok(()) };
                let parts = message.into_vec();
                if let [events] = &parts[..] {
                    for frames in unpack_events(events, &mut last_topic) {
                        received.send(frames).await.map_err(|_| Closed)?;
                    }
                    continue;
                }
                let frames = match <[Bytes; 3]>::try_from(parts) {
                    Ok([topic, header, body]) => Ok(TopicFrames { topic, header: header.into(), body }),
                    Err(parts) => Err(Malformed { parts: parts.len() }),
                };
                received.send(frames).await.map_err(|_| Closed)?;
            }
            event = std::future::poll_fn(|cx| std::pin::Pin::new(&mut events).poll_next(cx)) => {
                if matches!(event, None | Some(SocketEvent::Disconnected(_))) {
                    return Ok(());
                }
            }
        }
    }
}

/// Tells the publisher. The crate takes text; a prefix that is none selects nothing that Bowline publishes.
async fn told(socket: &mut SubSocket, change: Change) -> Result<(), ZmqError> {
    match change {
        Change::Subscribe(prefix) => socket.subscribe(&String::from_utf8_lossy(&prefix)).await,
        Change::Cancel(prefix) => socket.unsubscribe(&String::from_utf8_lossy(&prefix)).await,
    }
}

#[derive(Debug)]
pub(crate) struct SubscribeSender {
    shared: Arc<Subscriber>,
    task: JoinHandle<()>,
}

impl SubscribeSender {
    pub fn subscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.shared.change(|wanted| wanted.add(prefix))
    }

    pub fn unsubscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.shared.change(|wanted| wanted.remove(prefix))
    }

    pub fn is_connected(&self) -> bool {
        self.shared.connection.is_connected()
    }

    pub fn failure(&self) -> ConnectionFailure {
        self.shared.connection.failure()
    }

    pub fn connection_generation(&self) -> u64 {
        self.shared.connection.generation()
    }

    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        self.shared.connection.changed(seen).await
    }

    pub async fn close(&self) {
        self.shared.connection.close();
        self.task.abort();
    }
}

impl Drop for SubscribeSender {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
pub(crate) struct SubscribeReceiver {
    incoming: mpsc::Receiver<Result<TopicFrames, Malformed>>,
    shared: Arc<Subscriber>,
}

impl SubscribeReceiver {
    /// What a connection has left in the channel is taken for the next one's.
    pub fn connection(&self) -> u64 {
        self.shared.connection.generation()
    }

    pub async fn receive(
        &mut self,
        batch: &mut Vec<Result<TopicFrames, Malformed>>,
    ) -> Result<(), Closed> {
        tokio::select! {
            biased;
            received = self.incoming.recv_many(batch, BATCH_MAX) => match received {
                0 => Err(Closed),
                _ => Ok(()),
            },
            () = self.shared.connection.closed() => Err(Closed),
        }
    }
}
