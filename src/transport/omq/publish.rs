//! The publisher's socket.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use omq_tokio::{
    Message, MessagePool, MonitorEvent, MonitorRecvError, MonitorStream, OnMute, Payload, Socket,
    SocketType, TrySendError,
};

use super::door::{Door, Keeper};
use super::{TABLES_KEPT, actual, header_part, options, to_error};
use crate::transport::{
    Admit, Closed, DoorCounters, Endpoint, PublishRefused, SubscriptionChange, TopicMessage,
    TransportError, TransportOptions,
};

/// Subscription changes that may wait for the watch; past them it starts again from a snapshot.
const CHANGES_MAX: usize = 4096;
/// A subscriber says nothing that is longer than a subscription, but for its handshake. Of what it may say, omq
/// keeps copies for its monitor; and it goes down one level of recursion for each 255 bytes.
const MESSAGE_BYTES_MIN: usize = 512;

pub(in crate::transport) async fn bind_publish(
    endpoint: &Endpoint,
    from: &TransportOptions,
    admit: Admit,
) -> Result<(PublishSender, SubscriptionWatch, Endpoint), TransportError> {
    let failed = |error| to_error(endpoint, error);
    let (door, left) = Door::new(from, Some(admit));
    let options = door.guard(
        options(from)
            .on_mute(OnMute::DropNewest)
            .max_message_size(from.subscription_bytes_max.max(MESSAGE_BYTES_MIN) * 2)
            .monitor_capacity(CHANGES_MAX),
    );
    let socket = Socket::try_new(SocketType::Pub, options).map_err(failed)?;
    let keeper = door.keep(&socket, socket.monitor(), left);
    let mut watch = SubscriptionWatch {
        socket: socket.clone_shared(),
        events: socket.monitor(),
        ready: VecDeque::new(),
    };
    watch
        .reset()
        .await
        .map_err(|Closed| TransportError::Refused {
            endpoint: endpoint.clone(),
            reason: "the socket is closed".to_owned(),
        })?;
    let bound = socket.bind(endpoint.to_string()).await.map_err(failed)?;
    let sender = PublishSender {
        socket,
        pool: MessagePool::new(TABLES_KEPT, 4),
        door,
        _keeper: keeper,
    };
    Ok((sender, watch, actual(endpoint, &bound)?))
}

#[derive(Debug)]
pub(crate) struct PublishSender {
    socket: Socket,
    pool: MessagePool,
    door: Arc<Door>,
    _keeper: Keeper,
}

impl PublishSender {
    pub fn try_send(&self, message: TopicMessage) -> Result<(), PublishRefused> {
        let message = match message {
            TopicMessage::Classic(frames) => self.pool.multipart_payloads([
                Payload::from_slice(&frames.topic),
                header_part(frames.header),
                Payload::from_bytes(frames.body),
            ]),
            TopicMessage::Compact(events) => Message::single(events),
        };
        match self.socket.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(PublishRefused::Full),
            Err(_) => Err(PublishRefused::Closed),
        }
    }

    pub fn counters(&self) -> DoorCounters {
        self.door.counters()
    }

    pub async fn writable(&self) {
        self.socket.wait_send_ready().await;
    }

    pub async fn close(&self) {
        // The only error is that the socket is closed already.
        let _ = self.socket.clone_shared().close().await;
    }
}

#[derive(Debug)]
pub(crate) struct SubscriptionWatch {
    socket: Socket,
    events: MonitorStream,
    ready: VecDeque<SubscriptionChange>,
}

impl SubscriptionWatch {
    pub async fn next(&mut self) -> Result<SubscriptionChange, Closed> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            let change = match self.events.recv().await {
                Ok(MonitorEvent::SubscribeReceived {
                    connection_id,
                    prefix,
                }) => SubscriptionChange::Added {
                    peer: connection_id,
                    prefix,
                },
                Ok(MonitorEvent::UnsubscribeReceived {
                    connection_id,
                    prefix,
                }) => SubscriptionChange::Removed {
                    peer: connection_id,
                    prefix,
                },
                Ok(MonitorEvent::Disconnected { peer, .. }) => SubscriptionChange::Gone {
                    peer: peer.connection_id,
                },
                Ok(MonitorEvent::Closed) | Err(MonitorRecvError::Closed) => return Err(Closed),
                Err(MonitorRecvError::Lagged(_)) => {
                    self.reset().await?;
                    continue;
                }
                Ok(_) => continue,
                Err(_) => return Err(Closed),
            };
            return Ok(change);
        }
    }

    async fn reset(&mut self) -> Result<(), Closed> {
        let (events, peers) = self
            .socket
            .monitor_with_subscriptions()
            .await
            .map_err(|_| Closed)?;
        self.events = events;
        let peers: Vec<(u64, Vec<Bytes>)> = peers
            .into_iter()
            .map(|peer| (peer.peer.connection_id, peer.prefixes))
            .collect();
        self.ready.push_back(SubscriptionChange::Reset(peers));
        Ok(())
    }
}
