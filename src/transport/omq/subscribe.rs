//! The subscriber's socket.

use bytes::Bytes;
use omq_tokio::{Message, SocketType};

use super::PARTS;
use super::pair::{self, Pair, PairReceiver};
use crate::transport::{
    Closed, Endpoint, Malformed, Take, TopicFrames, TransportError, TransportOptions, remembered,
    unpack_events,
};

pub(in crate::transport) async fn connect_subscribe(
    endpoint: &Endpoint,
    from: &TransportOptions,
    take: Option<Take>,
) -> Result<(SubscribeSender, SubscribeReceiver), TransportError> {
    let (pair, receiver) = pair::connect(SocketType::Sub, endpoint, from).await?;
    let receiver = SubscribeReceiver {
        receiver,
        last_topic: Bytes::new(),
        take,
    };
    Ok((SubscribeSender { pair }, receiver))
}

#[derive(Debug)]
pub(crate) struct SubscribeSender {
    pair: Pair,
}

impl SubscribeSender {
    pub async fn subscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        for socket in self.pair.each() {
            let subscribed = socket.subscribe(prefix.clone()).await;
            subscribed.map_err(|_| Closed)?;
        }
        Ok(())
    }

    pub async fn unsubscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        for socket in self.pair.each() {
            let unsubscribed = socket.unsubscribe(prefix.clone()).await;
            unsubscribed.map_err(|_| Closed)?;
        }
        Ok(())
    }

    pub fn is_connected(&self) -> bool {
        self.pair.is_connected()
    }

    pub fn connection_generation(&self) -> u64 {
        self.pair.generation()
    }

    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        self.pair.changed(seen).await
    }

    pub async fn close(&self) {
        self.pair.close().await;
    }
}

pub(crate) struct SubscribeReceiver {
    receiver: PairReceiver,
    last_topic: Bytes,
    take: Option<Take>,
}

impl std::fmt::Debug for SubscribeReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.receiver.fmt(f)
    }
}

impl SubscribeReceiver {
    pub async fn receive(
        &mut self,
        batch: &mut Vec<Result<TopicFrames, Malformed>>,
    ) -> Result<(), Closed> {
        let (key, messages) = self.receiver.receive().await?;
        for message in messages {
            let before = batch.len();
            apart(&message, &mut self.last_topic, |received| {
                batch.push(received)
            });
            if let Some(take) = &self.take {
                // The topic of all of its events, or as much of one as there is.
                let topic = match batch.get(before) {
                    Some(Ok(frames)) => &frames.topic,
                    _ => message.part_slice(0).unwrap_or_default(),
                };
                if !key.is_some_and(|key| take(&key, topic)) {
                    batch.truncate(before);
                }
            }
        }
        Ok(())
    }
}

/// Takes a message apart.
fn apart(
    message: &Message,
    last_topic: &mut Bytes,
    take: impl FnMut(Result<TopicFrames, Malformed>),
) {
    match message.part_bytes(0) {
        Some(events) if message.len() == 1 => unpack_events(&events, last_topic).for_each(take),
        _ => std::iter::once(frames(message, last_topic)).for_each(take),
    }
}

fn frames(message: &Message, last_topic: &mut Bytes) -> Result<TopicFrames, Malformed> {
    let parts = message.len();
    if parts == PARTS
        && let (Some(topic), Some(header), Some(body)) = (
            message.part_slice(0),
            message.part_slice(1),
            message.part_bytes(2),
        )
    {
        Ok(TopicFrames {
            topic: remembered(last_topic, topic),
            header: header.into(),
            body,
        })
    } else {
        Err(Malformed { parts })
    }
}
