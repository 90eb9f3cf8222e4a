//! The connection to a broker: made when it is needed, made anew when it has gone.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{
    BasicAckOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{
    Acker, BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    PublisherConfirm,
};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::queue::QueueError;
use crate::wire::Work;

use super::super::envelope::Envelope;
use super::super::unavailable;

/// How long to wait before looking again whether a channel is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What is in the frame of a message's properties beside its headers, or less.
const FRAME_REST: usize = 64;

#[derive(Debug)]
pub(super) struct Link {
    uri: String,
    runtime: Handle,
    /// How long a broker has to accept a connection, and to answer anything.
    answer_max: Duration,
    opened: tokio::sync::Mutex<Option<Arc<Opened>>>,
    /// Queues that this connection knows to be there.
    declared: Mutex<HashSet<String>>,
}

/// A connection, and the channel on which all its messages are published and confirmed.
pub(super) struct Opened {
    connection: Connection,
    publisher: Channel,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opened")
    }
}

impl Link {
    pub fn new(uri: String, runtime: Handle, answer_max: Duration) -> Self {
        Self {
            uri,
            runtime,
            answer_max,
            opened: tokio::sync::Mutex::default(),
            declared: Mutex::default(),
        }
    }

    pub async fn opened(&self) -> Result<Arc<Opened>, QueueError> {
        let mut opened = self.opened.lock().await;
        if let Some(opened) = &*opened
            && opened.connection.status().connected()
            && opened.publisher.status().connected()
        {
            return Ok(Arc::clone(opened));
        }
        self.declared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        let uri = self.uri.clone();
        let open = async move {
            let properties = ConnectionProperties::default().with_connection_name("bowline".into());
            let connection = Connection::connect(&uri, properties).await?;
            let publisher = connection.create_channel().await?;
            publisher
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            Ok::<_, lapin::Error>(Opened {
                connection,
                publisher,
            })
        };
        // On the engine's own thread, with which it ends, and in time even where nobody waits for it any more.
        let open = self.runtime.spawn(timeout(self.answer_max, open));
        let late = |_| unavailable("the broker does not answer", Work::NotDone);
        let open = timeout(self.answer_max, open).await.map_err(late)?;
        let open = open.map_err(|error| unavailable(error, Work::NotDone))?;
        let open = open.map_err(late)?;
        let open = Arc::new(open.map_err(|error| unavailable(error, Work::NotDone))?);
        *opened = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Waits for an answer, as long as a broker has for it: lapin promises none where a connection dies meanwhile.
    pub async fn in_time<T>(
        &self,
        asked: impl Future<Output = lapin::Result<T>>,
        work: Work,
    ) -> Result<T, QueueError> {
        let answered = timeout(self.answer_max, asked).await;
        let answered = answered.map_err(|_| unavailable("the broker does not answer", work))?;
        answered.map_err(|error| unavailable(error, work))
    }

    /// Acknowledges a message. False where its channel has gone, and the message back with it.
    ///
    /// lapin 4.12 forgets what it is asked for at the moment in which it ends a connection, and whoever asked waits for
    /// ever. So this looks whether the channel is still there.
    pub async fn acknowledge(&self, acker: &Acker) -> Result<bool, QueueError> {
        let until = Instant::now() + self.answer_max;
        let mut sent = pin!(acker.ack(BasicAckOptions::default()));
        loop {
            match timeout(LOOK_AGAIN, &mut sent).await {
                Ok(Ok(is_sent)) => return Ok(is_sent),
                Ok(Err(_)) => return Ok(false),
                Err(_) if acker.poisoned() => return Ok(false),
                Err(_) if Instant::now() >= until => {
                    let reason = "an acknowledgement was not sent";
                    return Err(unavailable(reason, Work::OutcomeUnknown));
                }
                Err(_) => {}
            }
        }
    }

    /// A channel of its own.
    pub async fn channel(&self) -> Result<Channel, QueueError> {
        let opened = self.opened().await?;
        self.in_time(opened.connection.create_channel(), Work::NotDone)
            .await
    }

    /// Makes a queue that is not there.
    pub async fn declare(&self, name: &str, arguments: FieldTable) -> Result<(), QueueError> {
        let opened = self.opened().await?;
        if self.declared().contains(name) {
            return Ok(());
        }
        // A refusal closes the channel.
        let channel = self
            .in_time(opened.connection.create_channel(), Work::NotDone)
            .await?;
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let declare = channel.queue_declare(name.into(), options, arguments);
        self.in_time(declare, Work::NotDone).await?;
        self.declared().insert(name.to_owned());
        self.in_time(channel.close(200, "done".into()), Work::NotDone)
            .await
    }

    fn declared(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of the queues with this prefix that this process has made.
    pub fn declared_under(&self, prefix: &str) -> Vec<String> {
        let declared = self.declared();
        declared
            .iter()
            .filter(|name| name.starts_with(prefix))
            .cloned()
            .collect()
    }

    /// How many messages of these queues no worker has.
    pub async fn messages(&self, queues: &[String]) -> Result<usize, QueueError> {
        let channel = self.channel().await?;
        let mut messages = 0;
        for queue in queues {
            let options = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let asked =
                channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
            messages += self.in_time(asked, Work::NotDone).await?.message_count() as usize;
        }
        self.in_time(channel.close(200, "done".into()), Work::NotDone)
            .await?;
        Ok(messages)
    }

    /// Publishes. Messages of one caller arrive in the order in which this returns.
    ///
    /// # Errors
    /// [`QueueError::TooLarge`] for a new job whose ID and key have no room in a frame: nothing was sent.
    pub async fn send(
        &self,
        exchange: &str,
        routing_key: &str,
        envelope: &Envelope,
    ) -> Result<PublisherConfirm, QueueError> {
        let opened = self.opened().await?;
        // Properties have to be in one frame; the broker ends a connection that sends a larger one, or a part of one.
        let envelope = &*envelope.fitted(match opened.connection.configuration().frame_max() {
            0 => usize::MAX,
            bytes => (bytes as usize).saturating_sub(FRAME_REST),
        })?;
        let mut headers = FieldTable::default();
        for (name, value) in envelope.headers() {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        let mut properties = BasicProperties::default()
            .with_headers(headers)
            // Kept on disk.
            .with_delivery_mode(2);
        if let Some(number) = envelope.number {
            properties = properties.with_message_id(number.to_string().into());
        }
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let (exchange, routing_key) = (ShortString::from(exchange), ShortString::from(routing_key));
        let publisher = &opened.publisher;
        let sent =
            publisher.basic_publish(exchange, routing_key, options, &envelope.body, properties);
        self.in_time(sent, Work::OutcomeUnknown).await
    }

    /// Publishes, and returns when the broker has confirmed it.
    pub async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        envelope: &Envelope,
        until: Instant,
    ) -> Result<(), QueueError> {
        let sent = self.send(exchange, routing_key, envelope).await?;
        confirm(sent, until).await
    }
}

/// Waits for the broker to say that it has a message on its disks.
pub(super) async fn confirm(sent: PublisherConfirm, until: Instant) -> Result<(), QueueError> {
    let confirmed = timeout_at(until, sent).await;
    let unknown = |reason: String| unavailable(reason, Work::OutcomeUnknown);
    let confirmed = confirmed.map_err(|_| unknown("the broker did not confirm".into()))?;
    match confirmed.map_err(|error| unknown(error.to_string()))? {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Nack(None) => Err(QueueError::Full),
        Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => Err(unavailable(
            "the broker has no such queue any more",
            Work::NotDone,
        )),
        Confirmation::NotRequested => Err(unknown("the channel does not confirm".into())),
    }
}

/// Arguments of a quorum queue that refuses what is too much.
pub(super) fn quorum(max_length: usize, more: &[(&str, AMQPValue)]) -> FieldTable {
    let mut arguments = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(LongString::from(text));
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments.insert("x-max-length".into(), number(max_length as u64));
    // We count attempts ourselves, in headers. RabbitMQ 4 drops after 20 where nothing is said.
    arguments.insert("x-delivery-limit".into(), number(1_000_000));
    for (name, value) in more {
        arguments.insert((*name).into(), value.clone());
    }
    arguments
}

pub(super) fn number(number: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX))
}

/// A message's header as text.
pub(super) fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::LongLongInt(number) => Some(number.to_string()),
        AMQPValue::LongInt(number) => Some(number.to_string()),
        AMQPValue::ShortInt(number) => Some(number.to_string()),
        AMQPValue::ShortShortInt(number) => Some(number.to_string()),
        AMQPValue::ShortShortUInt(number) => Some(number.to_string()),
        AMQPValue::LongUInt(number) => Some(number.to_string()),
        _ => None,
    }
}
