//! The subscriber's socket.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use omq_proto::Message;
use omq_proto::proto::{Command, SocketType};

use super::PARTS;
use super::door::lock;
use super::link::{Heard, Link};
use super::reach::{self, Reach, Reached};
use crate::transport::wanted::{Change, Wanted};
use crate::transport::{
    Closed, ConnectionFailure, Endpoint, Malformed, Take, TopicFrames, TransportError,
    TransportOptions, remembered, unpack_events,
};

pub(in crate::transport) async fn connect_subscribe(
    endpoint: &Endpoint,
    options: &TransportOptions,
    take: Option<Take>,
) -> Result<(SubscribeSender, SubscribeReceiver), TransportError> {
    let wanted = Arc::new(Mutex::new(Wanted::default()));
    let begin = {
        let wanted = Arc::clone(&wanted);
        Arc::new(move |link: &Link| send_all(&lock(&wanted), link))
    };
    let (reach, reached) = reach::connect(SocketType::Sub, endpoint, options, begin);
    let sender = SubscribeSender {
        reach,
        wanted,
        waiting_bytes_max: options.send_bytes_max,
    };
    let receiver = SubscribeReceiver {
        reached,
        heard: Vec::new(),
        last_topic: Bytes::new(),
        take,
    };
    Ok((sender, receiver))
}

fn send_all(wanted: &Wanted, link: &Link) {
    for prefix in wanted.all() {
        if link.command(&Command::Subscribe(prefix.clone())).is_err() {
            // The next connection begins with them again.
            return;
        }
    }
}

#[derive(Debug)]
pub(crate) struct SubscribeSender {
    reach: Reach,
    /// Locked only under the lock of the connection: each is said once over each.
    wanted: Arc<Mutex<Wanted>>,
    waiting_bytes_max: usize,
}

impl SubscribeSender {
    pub fn subscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.change(|wanted| wanted.add(prefix))
    }

    pub fn unsubscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.change(|wanted| wanted.remove(prefix))
    }

    /// Sends the change to the publisher where there is one; each later connection begins with all of them.
    fn change(&self, change: impl FnOnce(&mut Wanted) -> Option<Change>) -> Result<(), Closed> {
        if self.reach.is_closed() {
            return Err(Closed);
        }
        self.reach.with_link(|link| {
            let Some(change) = change(&mut lock(&self.wanted)) else {
                return;
            };
            let Some(link) = link else { return };
            let command = match change {
                Change::Subscribe(prefix) => Command::Subscribe(prefix),
                Change::Cancel(prefix) => Command::Cancel(prefix),
            };
            // Where the link is closed, the next one begins with all that is wanted. So it does where the
            // publisher reads none of many changes.
            if link.command(&command).is_ok()
                && link.waiting_bytes() > self.waiting_bytes_max.saturating_mul(2)
            {
                link.close();
            }
        });
        Ok(())
    }

    /// Returns when few changes wait to be written.
    pub async fn flushed(&self) {
        let link = self.reach.link();
        if let Some(link) = link
            && link.waiting_bytes() > self.waiting_bytes_max
        {
            // The receiving task, which writes what waits, may be the one that waits here.
            tokio::select! {
                () = link.drained() => {}
                () = link.ended() => {}
            }
        }
    }

    /// Says whether the receiver holds back what the publisher sends: see [`Link::hold`].
    pub fn hold(&self, holds: bool) {
        if let Some(link) = self.reach.link() {
            link.hold(holds);
        }
    }

    pub fn is_connected(&self) -> bool {
        self.reach.is_connected()
    }

    pub fn failure(&self) -> ConnectionFailure {
        self.reach.failure()
    }

    pub fn connection_generation(&self) -> u64 {
        self.reach.generation()
    }

    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        self.reach.changed(seen).await
    }

    pub async fn close(&self) {
        self.reach.close().await;
    }
}

pub(crate) struct SubscribeReceiver {
    reached: Reached,
    heard: Vec<Heard>,
    last_topic: Bytes,
    take: Option<Take>,
}

impl std::fmt::Debug for SubscribeReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.reached.fmt(f)
    }
}

impl SubscribeReceiver {
    pub fn connection(&self) -> u64 {
        self.reached.connection()
    }

    pub async fn receive(
        &mut self,
        batch: &mut Vec<Result<TopicFrames, Malformed>>,
    ) -> Result<(), Closed> {
        let Self {
            reached,
            heard,
            last_topic,
            take,
        } = self;
        let key = reached.receive(heard).await?;
        for heard in heard.drain(..) {
            let Heard::Message(message) = heard else {
                continue; // a publisher has nothing else to say
            };
            let before = batch.len();
            apart(&message, last_topic, |received| batch.push(received));
            if let Some(take) = take {
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
