//! Dealer and router.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeromq::{DealerSocket, RouterSocket, Socket, SocketEvent, SocketRecv, SocketSend, ZmqMessage};

use super::{CAUSE_UNKNOWN, ConnectionLog, actual, bind, connect, linger, message, options};
use crate::transport::connection::Connection;
use crate::transport::{
    self, BATCH_MAX, Closed, ConnectionFailure, Endpoint, Envelope, Form, Frames, Malformed,
    Outgoing, Received, Refused, Requests, TransportError, TransportOptions, unpack,
};

async fn next_event(events: &mut (impl Stream<Item = SocketEvent> + Unpin)) -> Option<SocketEvent> {
    poll_fn(|cx| Pin::new(&mut *events).poll_next(cx)).await
}

fn to_message(outgoing: Outgoing) -> ZmqMessage {
    message(to_parts(outgoing).into())
}

fn to_parts(outgoing: Outgoing) -> VecDeque<Bytes> {
    match outgoing {
        Outgoing::Classic(frames) => [Bytes::new(), frames.header.into(), frames.body].into(),
        Outgoing::Compact(packed) => [packed.bytes].into(),
    }
}

/// Whom a message came from.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    identity: Bytes,
    envelope: Envelope,
    connection: watch::Receiver<()>,
}

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity && self.envelope == other.envelope
    }
}

impl Eq for Peer {}

impl Hash for Peer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity.hash(state);
        self.envelope.hash(state);
    }
}

impl Peer {
    /// Returns when the connection is lost.
    pub async fn gone(&self) {
        let mut connection = self.connection.clone();
        // Nothing is ever sent: an error says that the sender was dropped.
        while connection.changed().await.is_ok() {}
    }

    pub fn has_envelope(&self) -> bool {
        !self.envelope.is_empty()
    }

    /// What is for this peer.
    fn addressed(&self, outgoing: Outgoing) -> ZmqMessage {
        let mut parts = to_parts(outgoing);
        for part in self.envelope.parts().iter().rev() {
            parts.push_front(part.clone());
        }
        parts.push_front(self.identity.clone());
        message(parts.into())
    }
}

/// Takes a message apart.
fn apart(parts: Vec<Bytes>, take: impl FnMut(Received)) {
    let received = match <[Bytes; 3]>::try_from(parts) {
        Ok([delimiter, header, body]) if delimiter.is_empty() => {
            let header = header.into();
            Ok((Form::Classic, Frames { header, body }))
        }
        Ok(_) => Err(Malformed { parts: 3 }),
        Err(parts) => match &parts[..] {
            [message] => return unpack(message).for_each(take),
            parts => Err(Malformed { parts: parts.len() }),
        },
    };
    std::iter::once(received).for_each(take);
}

// ---- dealer ----

pub(in crate::transport) async fn connect_dealer(
    endpoint: &Endpoint,
    options: &TransportOptions,
) -> Result<(DealerSender, DealerReceiver), TransportError> {
    let (outgoing, to_send) = mpsc::channel(options.send_queue_max.max(1) as usize);
    let (received, incoming) = mpsc::channel(options.receive_queue_max.max(1) as usize);
    let connection = Arc::new(Connection::new());
    let supervisor = tokio::spawn(supervise(
        endpoint.clone(),
        options.clone(),
        Arc::clone(&connection),
        to_send,
        received,
    ));
    let receiver = DealerReceiver {
        incoming,
        connection: Arc::clone(&connection),
    };
    let sender = DealerSender {
        outgoing,
        connection,
        linger: options.linger,
        supervisor,
    };
    Ok((sender, receiver))
}

/// Connects, carries, and connects again.
async fn supervise(
    endpoint: Endpoint,
    from: TransportOptions,
    connection: Arc<Connection>,
    mut to_send: mpsc::Receiver<Outgoing>,
    received: mpsc::Sender<Vec<Bytes>>,
) {
    let mut wait = from.reconnect_min;
    let mut log = ConnectionLog::default();
    loop {
        let mut socket = DealerSocket::with_options(options(&from));
        let mut events = socket.monitor();
        if let Err(failure) =
            connect(&mut socket, &endpoint, from.handshake_timeout, &connection).await
        {
            log.failed(&endpoint, &failure);
            connection.failed(failure);
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(from.reconnect_max);
            continue;
        }
        wait = from.reconnect_min;
        log.connected(&endpoint);
        let (mut send, mut receive) = socket.split();
        connection.set(true);
        let sending = async {
            while let Some(outgoing) = to_send.recv().await {
                if send.send(to_message(outgoing)).await.is_err() {
                    return;
                }
            }
        };
        let receiving = async {
            while let Ok(message) = receive.recv().await {
                if received.send(message.into_vec()).await.is_err() {
                    return;
                }
            }
        };
        let gone = async {
            while let Some(event) = next_event(&mut events).await {
                if matches!(event, SocketEvent::Disconnected(_)) {
                    return;
                }
            }
        };
        tokio::select! {
            () = sending => {}
            () = receiving => {}
            () = gone => {}
        }
        connection.lost(CAUSE_UNKNOWN);
        log.lost(&endpoint);
        connection.set(false);
        // Their calls have ended with the connection: sending them now would be a second time.
        while to_send.try_recv().is_ok() {}
        if received.is_closed() {
            return;
        }
        // A server that is closing accepts for a moment longer, and then never answers.
        tokio::time::sleep(from.reconnect_min).await;
    }
}

#[derive(Debug)]
pub(crate) struct DealerSender {
    outgoing: mpsc::Sender<Outgoing>,
    connection: Arc<Connection>,
    linger: Duration,
    supervisor: JoinHandle<()>,
}

impl DealerSender {
    pub fn try_send(&self, message: Outgoing) -> Result<(), Refused> {
        if self.connection.is_closed() {
            return Err(Refused::Closed);
        }
        if !self.is_connected() {
            return Err(Refused::NoPeer);
        }
        self.outgoing
            .try_send(message)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(back) => Refused::Full(Box::new(back)),
                mpsc::error::TrySendError::Closed(_) => Refused::Closed,
            })
    }

    pub async fn writable(&self) {
        // Either outcome makes another try worth while.
        let _ = self.outgoing.reserve().await;
    }

    pub fn is_connected(&self) -> bool {
        self.connection.is_connected()
    }

    pub fn failure(&self) -> ConnectionFailure {
        self.connection.failure()
    }

    pub fn last_lost(&self) -> Option<String> {
        self.connection.last_lost()
    }

    pub fn connection_generation(&self) -> u64 {
        self.connection.generation()
    }

    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        self.connection.changed(seen).await
    }

    pub async fn close(&self) {
        if self.is_connected() {
            linger(&self.outgoing, self.linger).await;
        }
        self.connection.close();
        self.supervisor.abort();
    }
}

impl Drop for DealerSender {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

#[derive(Debug)]
pub(crate) struct DealerReceiver {
    incoming: mpsc::Receiver<Vec<Bytes>>,
    connection: Arc<Connection>,
}

impl DealerReceiver {
    pub async fn receive(&mut self, batch: &mut Vec<Received>) -> Result<(), Closed> {
        let first = tokio::select! {
            biased;
            first = self.incoming.recv() => first,
            () = self.connection.closed() => None,
        };
        let mut next = Some(first.ok_or(Closed)?);
        while let Some(parts) = next {
            apart(parts, |received| batch.push(received));
            next = match batch.len() < BATCH_MAX {
                true => self.incoming.try_recv().ok(),
                false => None,
            };
        }
        Ok(())
    }
}

// ---- router ----

/// How long a message may wait for room among the 100,000 that the crate keeps for a peer. Nothing is sent to others in
/// that time.
const ROOM_WAIT_MAX: Duration = Duration::from_millis(100);

pub(in crate::transport) async fn bind_router(
    endpoint: &Endpoint,
    addresses: &[SocketAddr],
    from: &TransportOptions,
) -> Result<(RouterSender, RouterReceiver, Endpoint), TransportError> {
    let mut socket = RouterSocket::with_options(options(from));
    let bound = bind(&mut socket, endpoint, addresses, from.ipc_mode).await?;
    let (commands, to_do) = mpsc::channel(from.send_queue_max.max(1) as usize);
    let (received, incoming) = mpsc::channel(from.receive_queue_max.max(1) as usize);
    let sender = RouterSender {
        task: Arc::new(Task(tokio::spawn(route(socket, to_do, received)))),
        commands,
        linger: from.linger,
    };
    let receiver = RouterReceiver {
        incoming,
        envelope_bytes_max: from.envelope_bytes_max,
    };
    Ok((sender, receiver, actual(endpoint, &bound)))
}

#[derive(Debug)]
enum Command {
    Send(Peer, Outgoing),
    StopAccepting(oneshot::Sender<()>),
}

/// The connections of a router that something was received from.
#[derive(Debug, Default)]
struct Connections {
    open: HashMap<Bytes, watch::Sender<()>>,
    /// Entries after which those that no request waits for are removed. The crate drops an event of a lost connection where
    /// 1,024 wait already: such an entry would stay otherwise.
    prune_at: usize,
}

impl Connections {
    const PRUNE_MIN: usize = 1024;

    fn receiver(&mut self, identity: &Bytes) -> watch::Receiver<()> {
        if let Some(connection) = self.open.get(identity) {
            return connection.subscribe();
        }
        if self.open.len() >= self.prune_at {
            self.open
                .retain(|_, connection| connection.receiver_count() > 0);
            self.prune_at = (2 * self.open.len()).max(Self::PRUNE_MIN);
        }
        let (connection, receiver) = watch::channel(());
        self.open.insert(identity.clone(), connection);
        receiver
    }

    fn lost(&mut self, event: SocketEvent) {
        if let SocketEvent::Disconnected(identity) = event {
            self.open.remove(&Bytes::from(identity));
        }
    }
}

/// Owns the socket, and finishes each send that it has begun. The crate queues what a peer does
/// not read; a peer that has no room left there is shown out, so that none holds up another.
async fn route(
    mut socket: RouterSocket,
    mut to_do: mpsc::Receiver<Command>,
    received: mpsc::Sender<FromPeer>,
) {
    let mut events = socket.monitor();
    let mut connections = Connections::default();
    loop {
        let has_room = received.capacity() > 0;
        tokio::select! {
            biased;
            command = to_do.recv() => match command {
                Some(Command::Send(peer, outgoing)) => {
                    // A peer that has gone does not need its reply any more.
                    let sent = timeout(ROOM_WAIT_MAX, socket.send(peer.addressed(outgoing))).await;
                    if sent.is_err() && let Ok(peer) = peer.identity.try_into() {
                        socket.backend().peer_disconnected(&peer);
                    }
                }
                Some(Command::StopAccepting(done)) => {
                    // An error is that of an endpoint that is unbound already.
                    let _ = socket.unbind_all().await;
                    let _ = done.send(());
                }
                None => return,
            },
            Some(event) = next_event(&mut events) => connections.lost(event),
            message = socket.recv(), if has_room => {
                // An error is that of one peer, who is gone with it.
                if let Ok(message) = message
                    && let Some(from_peer) = from_peer(message, &mut connections)
                    // Room there is; where nobody takes it any more, the commands end next.
                    && received.try_send(from_peer).is_err()
                {
                    return;
                }
            }
            room = received.reserve(), if !has_room => if room.is_err() {
                return;
            },
        }
    }
}

#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Clone, Debug)]
pub(crate) struct RouterSender {
    commands: mpsc::Sender<Command>,
    task: Arc<Task>,
    linger: Duration,
}

impl RouterSender {
    pub fn try_send(&self, peer: &Peer, message: Outgoing) -> Result<(), Refused> {
        self.commands
            .try_send(Command::Send(peer.clone(), message))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(Command::Send(_, back)) => {
                    Refused::Full(Box::new(back))
                }
                _ => Refused::Closed,
            })
    }

    pub async fn stop_accepting(&self) {
        let (done, stopped) = oneshot::channel();
        if self
            .commands
            .send(Command::StopAccepting(done))
            .await
            .is_ok()
        {
            // Where the task has ended, its endpoint is gone too.
            let _ = stopped.await;
        }
    }

    pub async fn close(&self) {
        linger(&self.commands, self.linger).await;
        self.stop_accepting().await;
        self.task.0.abort();
    }
}

#[derive(Debug)]
pub(crate) struct RouterReceiver {
    incoming: mpsc::Receiver<FromPeer>,
    envelope_bytes_max: usize,
}

impl RouterReceiver {
    pub async fn receive(&mut self, batch: &mut Requests) -> Result<(), Closed> {
        let mut next = Some(self.incoming.recv().await.ok_or(Closed)?);
        while let Some((identity, mut parts, connection)) = next {
            let slices = parts.iter().map(|part| &part[..]);
            let envelope = Envelope::of(slices, self.envelope_bytes_max);
            parts.drain(..envelope.parts().len());
            let peer = Peer {
                identity,
                envelope,
                connection,
            };
            apart(parts, batch.of(transport::Peer::Zeromq(peer)));
            next = match batch.len() < BATCH_MAX {
                true => self.incoming.try_recv().ok(),
                false => None,
            };
        }
        Ok(())
    }
}

/// A message, and whose it is.
type FromPeer = (Bytes, Vec<Bytes>, watch::Receiver<()>);

fn from_peer(message: ZmqMessage, connections: &mut Connections) -> Option<FromPeer> {
    let mut parts = message.into_vecdeque();
    let identity = parts.pop_front()?;
    let connection = connections.receiver(&identity);
    Some((identity, parts.into(), connection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lost_connections_end_their_waits_and_are_removed() {
        let mut connections = Connections::default();
        let identity = Bytes::from_static(b"a");
        let (mut first, mut second) = (
            connections.receiver(&identity),
            connections.receiver(&identity),
        );
        connections.lost(SocketEvent::Disconnected(
            identity.clone().try_into().unwrap(),
        ));
        assert!(first.changed().await.is_err() && second.changed().await.is_err());
        assert!(connections.open.is_empty());
        assert!(connections.receiver(&identity).has_changed().is_ok());
    }

    #[test]
    fn connections_without_requests_are_removed_where_many_are_kept() {
        let mut connections = Connections::default();
        let identity = |n: usize| Bytes::from(n.to_le_bytes().to_vec());
        let waiting = connections.receiver(&identity(0));
        for n in 1..5 * Connections::PRUNE_MIN {
            connections.receiver(&identity(n));
            assert!(connections.open.len() <= Connections::PRUNE_MIN);
        }
        assert!(waiting.has_changed().is_ok());
    }
}
