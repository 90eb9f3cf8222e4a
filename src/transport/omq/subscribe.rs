//! The subscriber's socket.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use omq_proto::Message;
use omq_proto::proto::{Command, SocketType};

use super::PARTS;
use super::door::lock;
use super::link::{Heard, Link};
use super::reach::{self, Reach, Reached};
use crate::transport::{
    Closed, Endpoint, Malformed, Take, TopicFrames, TransportError, TransportOptions, remembered,
    unpack_events,
};

pub(in crate::transport) async fn connect_subscribe(
    endpoint: &Endpoint,
    options: &TransportOptions,
    take: Option<Take>,
) -> Result<(SubscribeSender, SubscribeReceiver), TransportError> {
    let wanted = Arc::new(Mutex::new(Wanted::default()));
    let begin = {
        let wanted = Arc::clone(&wanted);
        Arc::new(move |link: &Link| lock(&wanted).send_all(link))
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

/// The subscriptions that every connection has.
#[derive(Debug, Default)]
struct Wanted {
    /// How many times each is wanted, and its place in the order in which they came.
    prefixes: HashMap<Bytes, (usize, u64)>,
    /// A publisher hears them in this order: what asks about another one comes after it.
    in_order: BTreeMap<u64, Bytes>,
    last: u64,
}

impl Wanted {
    /// What to say to the publisher, if anything.
    fn add(&mut self, prefix: Bytes) -> Option<Command> {
        if let Some((times, _)) = self.prefixes.get_mut(&prefix) {
            *times += 1;
            return None;
        }
        self.last += 1;
        self.prefixes.insert(prefix.clone(), (1, self.last));
        self.in_order.insert(self.last, prefix.clone());
        Some(Command::Subscribe(prefix))
    }

    fn remove(&mut self, prefix: Bytes) -> Option<Command> {
        let (times, place) = self.prefixes.get_mut(&prefix)?;
        *times -= 1;
        if *times > 0 {
            return None;
        }
        self.in_order.remove(place);
        self.prefixes.remove(&prefix);
        Some(Command::Cancel(prefix))
    }

    fn send_all(&self, link: &Link) {
        for prefix in self.in_order.values() {
            if link.command(&Command::Subscribe(prefix.clone())).is_err() {
                // The next connection begins with them again.
                return;
            }
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
    pub async fn subscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.change(|wanted| wanted.add(prefix)).await
    }

    pub async fn unsubscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.change(|wanted| wanted.remove(prefix)).await
    }

    /// Says it to the publisher where there is one; it is said to every later one at the beginning.
    async fn change(
        &self,
        change: impl FnOnce(&mut Wanted) -> Option<Command>,
    ) -> Result<(), Closed> {
        if self.reach.is_closed() {
            return Err(Closed);
        }
        let said_over = self.reach.with_link(|link| {
            let command = change(&mut lock(&self.wanted))?;
            let link = link?;
            link.command(&command).ok()?;
            Some(Arc::clone(link))
        });
        if let Some(link) = said_over
            && link.waiting_bytes() > self.waiting_bytes_max
        {
            // The publisher does not read. Whoever receives may be who waits here.
            tokio::select! {
                () = link.drained() => {}
                () = link.ended() => {}
            }
        }
        Ok(())
    }

    pub fn is_connected(&self) -> bool {
        self.reach.is_connected()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn said(command: Option<Command>) -> Option<(char, Bytes)> {
        command.map(|command| match command {
            Command::Subscribe(prefix) => ('+', prefix),
            Command::Cancel(prefix) => ('-', prefix),
            _ => panic!("nothing else is said"),
        })
    }

    #[test]
    fn a_prefix_is_said_once_however_often_it_is_wanted_and_in_the_order_of_the_first_time() {
        let mut wanted = Wanted::default();
        let (a, b) = (Bytes::from_static(b"b"), Bytes::from_static(b"a"));
        assert_eq!(said(wanted.remove(a.clone())), None);
        assert_eq!(said(wanted.add(a.clone())), Some(('+', a.clone())));
        assert_eq!(said(wanted.add(b.clone())), Some(('+', b.clone())));
        assert_eq!(said(wanted.add(a.clone())), None);
        assert_eq!(said(wanted.remove(a.clone())), None);
        assert!(wanted.in_order.values().eq([&a, &b]));
        assert_eq!(said(wanted.remove(a.clone())), Some(('-', a.clone())));
        assert_eq!(said(wanted.add(a.clone())), Some(('+', a.clone())));
        assert!(wanted.in_order.values().eq([&b, &a]));
    }
}
