//! Dealer and router.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeromq::{
    DealerSocket, RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketEvent, SocketRecv,
    SocketSend, ZmqError, ZmqMessage,
};

use super::connection::Connection;
use super::{actual, linger, message, options, ready, to_error};
use crate::transport::{
    BATCH_MAX, Closed, Endpoint, Frames, Malformed, Peer, Received, Refused, TransportError,
    TransportOptions,
};

fn to_message(frames: Frames) -> ZmqMessage {
    message(vec![Bytes::new(), frames.header, frames.body])
}

fn to_frames(parts: Vec<Bytes>) -> Received {
    match <[Bytes; 3]>::try_from(parts) {
        Ok([delimiter, header, body]) if delimiter.is_empty() => Ok(Frames { header, body }),
        Ok(_) => Err(Malformed { parts: 3 }),
        Err(parts) => Err(Malformed { parts: parts.len() }),
    }
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
        endpoint.to_string(),
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
    endpoint: String,
    from: TransportOptions,
    connection: Arc<Connection>,
    mut to_send: mpsc::Receiver<Frames>,
    received: mpsc::Sender<Received>,
) {
    let mut wait = from.reconnect_min;
    loop {
        let mut socket = DealerSocket::with_options(options(&from));
        let mut events = socket.monitor();
        if socket.connect(&endpoint).await.is_err() {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(from.reconnect_max);
            continue;
        }
        wait = from.reconnect_min;
        let (mut send, mut receive) = socket.split();
        connection.set(true);
        let sending = async {
            while let Some(frames) = to_send.recv().await {
                if send.send(to_message(frames)).await.is_err() {
                    return;
                }
            }
        };
        let receiving = async {
            while let Ok(message) = receive.recv().await {
                if received.send(to_frames(message.into_vec())).await.is_err() {
                    return;
                }
            }
        };
        let gone = async {
            while let Some(event) =
                std::future::poll_fn(|cx| std::pin::Pin::new(&mut events).poll_next(cx)).await
            {
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
    outgoing: mpsc::Sender<Frames>,
    connection: Arc<Connection>,
    linger: Duration,
    supervisor: JoinHandle<()>,
}

impl DealerSender {
    pub fn try_send(&self, frames: Frames) -> Result<(), Refused> {
        if self.connection.is_closed() {
            return Err(Refused::Closed);
        }
        if !self.is_connected() {
            return Err(Refused::NoPeer);
        }
        self.outgoing.try_send(frames).map_err(|error| match error {
            mpsc::error::TrySendError::Full(frames) => Refused::Full(frames),
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
    incoming: mpsc::Receiver<Received>,
    connection: Arc<Connection>,
}

impl DealerReceiver {
    pub async fn receive(&mut self, batch: &mut Vec<Received>) -> Result<(), Closed> {
        tokio::select! {
            biased;
            received = self.incoming.recv_many(batch, BATCH_MAX) => match received {
                0 => Err(Closed),
                _ => Ok(()),
            },
            () = self.connection.closed() => Err(Closed),
        }
    }
}

// ---- router ----

pub(in crate::transport) async fn bind_router(
    endpoint: &Endpoint,
    from: &TransportOptions,
) -> Result<(RouterSender, RouterReceiver, Endpoint), TransportError> {
    let mut socket = RouterSocket::with_options(options(from));
    let bound = socket
        .bind(&endpoint.to_string())
        .await
        .map_err(|error| to_error(endpoint, error))?;
    let (send, receive) = socket.split();
    let (outgoing, to_send) = mpsc::channel(from.send_queue_max.max(1) as usize);
    let sender = RouterSender {
        task: Arc::new(SendTask(tokio::spawn(send_all(send, to_send)))),
        outgoing,
        linger: from.linger,
    };
    let receiver = RouterReceiver { socket: receive };
    Ok((sender, receiver, actual(endpoint, &bound)))
}

/// Owns the sends: one that is begun is finished, whoever stops waiting for it.
async fn send_all(mut socket: RouterSendHalf, mut to_send: mpsc::Receiver<(Bytes, Frames)>) {
    while let Some((peer, frames)) = to_send.recv().await {
        let mut message = to_message(frames);
        message.push_front(peer);
        // A peer that has gone does not need its reply any more.
        let _ = socket.send(message).await;
    }
}

#[derive(Debug)]
struct SendTask(JoinHandle<()>);

impl Drop for SendTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Clone, Debug)]
pub(crate) struct RouterSender {
    outgoing: mpsc::Sender<(Bytes, Frames)>,
    task: Arc<SendTask>,
    linger: Duration,
}

impl RouterSender {
    pub fn try_send(&self, peer: &Bytes, frames: Frames) -> Result<(), Refused> {
        self.outgoing
            .try_send((peer.clone(), frames))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full((_, frames)) => Refused::Full(frames),
                mpsc::error::TrySendError::Closed(_) => Refused::Closed,
            })
    }

    pub async fn close(&self) {
        linger(&self.outgoing, self.linger).await;
        self.task.0.abort();
    }
}

pub(crate) struct RouterReceiver {
    socket: RouterRecvHalf,
}

impl std::fmt::Debug for RouterReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RouterReceiver")
    }
}

impl RouterReceiver {
    pub async fn receive(&mut self, batch: &mut Vec<(Peer, Received)>) -> Result<(), Closed> {
        let mut next = Some(self.socket.recv().await);
        while let Some(received) = next {
            match received {
                Ok(message) => batch.extend(from_peer(message)),
                Err(ZmqError::NoMessage) if batch.is_empty() => return Err(Closed),
                // Of one peer, who is gone with it.
                Err(_) => {}
            }
            if batch.len() >= BATCH_MAX {
                return Ok(());
            }
            next = match batch.is_empty() {
                true => Some(self.socket.recv().await),
                false => ready(self.socket.recv()).await,
            };
        }
        Ok(())
    }
}

fn from_peer(message: ZmqMessage) -> Option<(Peer, Received)> {
    let mut parts = message.into_vecdeque();
    let peer = parts.pop_front()?;
    Some((Peer::Zeromq(peer), to_frames(parts.into())))
}
