//! Publish and subscribe.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeromq::{Socket, SocketEvent, SocketRecv, SocketSend, SubSocket, XPubSocket};

use super::{actual, linger, message, options, to_error};
use crate::transport::connection::Connection;
use crate::transport::{
    BATCH_MAX, Closed, Endpoint, Malformed, PublishRefused, SubscriptionChange, TopicFrames,
    TopicMessage, TransportError, TransportOptions, unpack_events,
};

/// Subscriptions that may wait for the watch.
const CHANGES_MAX: usize = 4096;

// ---- publish ----

pub(in crate::transport) async fn bind_publish(
    endpoint: &Endpoint,
    from: &TransportOptions,
) -> Result<(PublishSender, SubscriptionWatch, Endpoint), TransportError> {
    let mut socket = XPubSocket::with_options(options(from));
    let bound = socket
        .bind(&endpoint.to_string())
        .await
        .map_err(|error| to_error(endpoint, error))?;
    let (outgoing, to_send) = mpsc::channel(from.send_queue_max.max(1) as usize);
    let (changed, changes) = mpsc::channel(CHANGES_MAX);
    let sender = PublishSender {
        outgoing,
        task: tokio::spawn(publish_all(socket, to_send, changed)),
        linger: from.linger,
    };
    Ok((
        sender,
        SubscriptionWatch { changes },
        actual(endpoint, &bound),
    ))
}

/// Owns the socket: sends what is to be sent, and passes on what it hears of subscriptions.
async fn publish_all(
    mut socket: XPubSocket,
    mut to_send: mpsc::Receiver<TopicMessage>,
    changed: mpsc::Sender<SubscriptionChange>,
) {
    loop {
        tokio::select! {
            next = to_send.recv() => {
                let parts = match next {
                    Some(TopicMessage::Classic(frames)) => {
                        vec![frames.topic, frames.header.into(), frames.body]
                    }
                    Some(TopicMessage::Compact(events)) => vec![events],
                    None => return,
                };
                // An error is that of one subscriber, who is gone with it.
                let _ = socket.send(message(parts)).await;
            }
            received = socket.recv() => {
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
    outgoing: mpsc::Sender<TopicMessage>,
    task: JoinHandle<()>,
    linger: Duration,
}

impl PublishSender {
    pub fn try_send(&self, message: TopicMessage) -> Result<(), PublishRefused> {
        self.outgoing
            .try_send(message)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => PublishRefused::Full,
                mpsc::error::TrySendError::Closed(_) => PublishRefused::Closed,
            })
    }

    pub async fn writable(&self) {
        // Either outcome makes another try worth while.
        let _ = self.outgoing.reserve().await;
    }

    pub async fn close(&self) {
        linger(&self.outgoing, self.linger).await;
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

#[derive(Debug)]
enum Command {
    Subscribe(Bytes),
    Unsubscribe(Bytes),
}

/// Commands that may wait for the socket's task.
const COMMANDS_MAX: usize = 64;

pub(in crate::transport) async fn connect_subscribe(
    endpoint: &Endpoint,
    options: &TransportOptions,
) -> Result<(SubscribeSender, SubscribeReceiver), TransportError> {
    let (commands, to_do) = mpsc::channel(COMMANDS_MAX);
    let (received, incoming) = mpsc::channel(options.receive_queue_max.max(1) as usize);
    let connection = Arc::new(Connection::new());
    let task = tokio::spawn(subscribe_all(
        endpoint.to_string(),
        options.clone(),
        Arc::clone(&connection),
        to_do,
        received,
    ));
    let receiver = SubscribeReceiver {
        incoming,
        connection: Arc::clone(&connection),
    };
    let sender = SubscribeSender {
        commands,
        connection,
        task,
    };
    Ok((sender, receiver))
}

/// Owns the socket, which connects again by itself once it was connected, with its subscriptions.
async fn subscribe_all(
    endpoint: String,
    from: TransportOptions,
    connection: Arc<Connection>,
    mut to_do: mpsc::Receiver<Command>,
    received: mpsc::Sender<Result<TopicFrames, Malformed>>,
) {
    let mut wait = from.reconnect_min;
    let (mut socket, mut events) = loop {
        let mut socket = SubSocket::with_options(options(&from));
        let events = socket.monitor();
        match socket.connect(&endpoint).await {
            Ok(()) => break (socket, events),
            Err(_) => tokio::time::sleep(wait).await,
        }
        wait = (wait * 2).min(from.reconnect_max);
    };
    connection.set(true);
    let mut last_topic = Bytes::new();
    loop {
        tokio::select! {
            command = to_do.recv() => {
                // The crate takes text; a prefix that is none selects nothing that Bowline publishes.
                let done = match &command {
                    Some(Command::Subscribe(prefix)) => {
                        socket.subscribe(&String::from_utf8_lossy(prefix)).await
                    }
                    Some(Command::Unsubscribe(prefix)) => {
                        socket.unsubscribe(&String::from_utf8_lossy(prefix)).await
                    }
                    None => return,
                };
                // It is remembered, and asked for again with the next connection.
                let _ = done;
            }
            message = socket.recv() => {
                let Ok(message) = message else { continue };
                let parts = message.into_vec();
                if let [events] = &parts[..] {
                    for frames in unpack_events(events, &mut last_topic) {
                        if received.send(frames).await.is_err() {
                            return;
                        }
                    }
                    continue;
                }
                let frames = match <[Bytes; 3]>::try_from(parts) {
                    Ok([topic, header, body]) => Ok(TopicFrames { topic, header: header.into(), body }),
                    Err(parts) => Err(Malformed { parts: parts.len() }),
                };
                if received.send(frames).await.is_err() {
                    return;
                }
            }
            event = std::future::poll_fn(|cx| std::pin::Pin::new(&mut events).poll_next(cx)) => {
                match event {
                    Some(SocketEvent::Connected(..)) => connection.set(true),
                    Some(SocketEvent::Disconnected(_)) => connection.set(false),
                    Some(_) => {}
                    None => return,
                }
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct SubscribeSender {
    commands: mpsc::Sender<Command>,
    connection: Arc<Connection>,
    task: JoinHandle<()>,
}

impl SubscribeSender {
    pub async fn subscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        let command = Command::Subscribe(prefix);
        self.commands.send(command).await.map_err(|_| Closed)
    }

    pub async fn unsubscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        let command = Command::Unsubscribe(prefix);
        self.commands.send(command).await.map_err(|_| Closed)
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
        self.connection.close();
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
    connection: Arc<Connection>,
}

impl SubscribeReceiver {
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
            () = self.connection.closed() => Err(Closed),
        }
    }
}
