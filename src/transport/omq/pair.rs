//! One connection, or two where a client accepts two keys of its server: at most one of them is
//! ready, and stands for both.

use std::time::Duration;

use omq_tokio::{Message, MonitorEvent, MonitorRecvError, Options, Socket, SocketType};
use tokio::task::JoinHandle;

use super::door::{LOOK_AT_LISTS, curve, keypair};
use super::{options, receive, to_error};
use crate::security::{self, AccessList, AllowedKeys, PublicKey};
use crate::transport::{BATCH_MAX, Closed, Endpoint, TransportError, TransportOptions};

/// The sockets, for sending and controlling.
#[derive(Debug)]
pub(super) struct Pair {
    first: Socket,
    second: Option<Socket>,
    /// Connect again where omq would not, and look at lists; end with the pair.
    tasks: Vec<JoinHandle<()>>,
}

/// The sockets, for receiving.
#[derive(Debug)]
pub(super) struct PairReceiver {
    first: Socket,
    second: Option<Socket>,
    messages: Vec<Message>,
    /// Of the second, so that neither's are lost when the other is quicker.
    messages_second: Vec<Message>,
    /// Whose the two are.
    keys: Option<(PublicKey, PublicKey)>,
}

pub(super) async fn connect(
    kind: SocketType,
    endpoint: &Endpoint,
    from: &TransportOptions,
) -> Result<(Pair, PairReceiver), TransportError> {
    let mut tasks = Vec::new();
    let (first, second) = match &from.client_security {
        None => (open(kind, endpoint, options(from)).await?, None),
        Some(security) => {
            let with = |server| options(from).curve_client(keypair(&security.keys), curve(server));
            let first = open(kind, endpoint, with(security.server)).await?;
            let second = match security.server_also {
                Some(server) => Some(open(kind, endpoint, with(server)).await?),
                None => None,
            };
            for socket in [Some(&first), second.as_ref()].into_iter().flatten() {
                let watched = socket.clone_shared();
                let wait = from.reconnect_max;
                tasks.push(tokio::spawn(connect_again(watched, endpoint.clone(), wait)));
            }
            if let Some((allowed, access)) = security.publishers.clone() {
                tasks.push(tokio::spawn(look_at_lists(allowed, access)));
            }
            (first, second)
        }
    };
    let receiver = PairReceiver {
        first: first.clone_shared(),
        second: second.as_ref().map(Socket::clone_shared),
        messages: Vec::with_capacity(BATCH_MAX),
        messages_second: Vec::new(),
        keys: from.client_security.as_ref().map(|security| {
            let second = security.server_also.unwrap_or(security.server);
            (security.server, second)
        }),
    };
    let pair = Pair {
        first,
        second,
        tasks,
    };
    Ok((pair, receiver))
}

async fn open(
    kind: SocketType,
    endpoint: &Endpoint,
    options: Options,
) -> Result<Socket, TransportError> {
    let failed = |error| to_error(endpoint, error);
    let socket = Socket::try_new(kind, options).map_err(failed)?;
    socket.connect(endpoint.to_string()).await.map_err(failed)?;
    Ok(socket)
}

/// omq takes the refusal of a handshake for final. It is not: a key may be let in later.
async fn connect_again(socket: Socket, endpoint: Endpoint, wait: Duration) {
    let mut events = socket.monitor();
    loop {
        match events.recv().await {
            Ok(MonitorEvent::ConnectStopped { .. }) => {
                tokio::time::sleep(wait).await;
                if socket.connect(endpoint.to_string()).await.is_err() {
                    return;
                }
            }
            Ok(MonitorEvent::Closed) | Err(MonitorRecvError::Closed) => return,
            _ => {}
        }
    }
}

async fn look_at_lists(allowed: AllowedKeys, access: AccessList) {
    let mut look = tokio::time::interval(LOOK_AT_LISTS);
    loop {
        look.tick().await;
        security::refresh(&allowed, &access);
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Pair {
    /// The socket that is connected, or the first where none is.
    pub fn current(&self) -> &Socket {
        match &self.second {
            Some(second) if self.first.ready_peer_count() == 0 && is_ready(second) => second,
            _ => &self.first,
        }
    }

    pub fn each(&self) -> impl Iterator<Item = &Socket> {
        std::iter::once(&self.first).chain(&self.second)
    }

    pub fn is_connected(&self) -> bool {
        self.each().any(is_ready)
    }

    pub fn generation(&self) -> u64 {
        self.each().map(Socket::connections_generation).sum()
    }

    pub async fn changed(&self, seen: u64) -> Result<u64, Closed> {
        let Some(second) = &self.second else {
            let changed = self.first.connections_changed(seen).await;
            return changed.map_err(|_| Closed);
        };
        loop {
            let (one, other) = (
                self.first.connections_generation(),
                second.connections_generation(),
            );
            if one + other != seen {
                return Ok(one + other);
            }
            let changed = tokio::select! {
                changed = self.first.connections_changed(one) => changed,
                changed = second.connections_changed(other) => changed,
            };
            changed.map_err(|_| Closed)?;
        }
    }

    pub async fn close(&self) {
        for socket in self.each() {
            // The only error is that the socket is closed already.
            let _ = socket.clone_shared().close().await;
        }
    }
}

fn is_ready(socket: &Socket) -> bool {
    socket.ready_peer_count() > 0
}

impl PairReceiver {
    /// Waits for messages, and says which key their sender has proved; cancel safe.
    pub async fn receive(
        &mut self,
    ) -> Result<(Option<PublicKey>, std::vec::Drain<'_, Message>), Closed> {
        let first = self.keys.map(|(first, _)| first);
        let Some(second) = &self.second else {
            receive(&self.first, &mut self.messages).await?;
            return Ok((first, self.messages.drain(..)));
        };
        tokio::select! {
            received = receive(&self.first, &mut self.messages) => {
                received.map(|()| (first, self.messages.drain(..)))
            }
            received = receive(second, &mut self.messages_second) => {
                let second = self.keys.map(|(_, second)| second);
                received.map(|()| (second, self.messages_second.drain(..)))
            }
        }
    }
}
