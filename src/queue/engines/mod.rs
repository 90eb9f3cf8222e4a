//! Queues on servers that a team already runs, each behind a cargo feature.
//!
//! What is here makes our jobs of their messages and our answers of their acknowledgements. It keeps nothing itself:
//! what an engine cannot do, its [`Capabilities`](super::Capabilities) do not claim, and a job that asks
//! for it is refused with [`Unsupported`](super::QueueError::Unsupported). `docs/queue-engines.md` has the table.

#[cfg_attr(
    not(all(feature = "kafka", feature = "nats", feature = "rabbitmq")),
    allow(dead_code, reason = "no server needs all of it")
)]
mod envelope;
#[cfg_attr(
    not(all(feature = "kafka", feature = "nats", feature = "rabbitmq")),
    allow(dead_code, reason = "no server needs all of it")
)]
mod held;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(any(feature = "kafka", feature = "nats", feature = "rabbitmq"))]
#[cfg_attr(
    not(all(feature = "kafka", feature = "nats", feature = "rabbitmq")),
    allow(dead_code, reason = "no server needs all of it")
)]
mod room;
#[cfg(any(feature = "kafka", feature = "nats", feature = "rabbitmq"))]
#[cfg_attr(
    not(all(feature = "kafka", feature = "nats", feature = "rabbitmq")),
    allow(dead_code, unused_imports, reason = "no server needs all of it")
)]
mod server;
#[cfg(any(feature = "kafka", feature = "nats", feature = "rabbitmq"))]
#[cfg_attr(
    not(all(feature = "kafka", feature = "nats", feature = "rabbitmq")),
    allow(dead_code, unused_imports, reason = "no server needs all of it")
)]
mod terms;
mod thread;

use super::QueueError;
use crate::wire::Work;

#[cfg(feature = "kafka")]
pub use kafka::{Kafka, KafkaBuilder};
#[cfg(feature = "nats")]
pub use nats::{Nats, NatsBuilder};
#[cfg(feature = "rabbitmq")]
pub use rabbitmq::{RabbitMq, RabbitMqBuilder};
#[cfg(any(feature = "kafka", feature = "nats", feature = "rabbitmq"))]
pub use server::OnServer;

fn unavailable(reason: impl ToString, work: Work) -> QueueError {
    let reason = reason.to_string();
    QueueError::Unavailable { reason, work }
}

#[cfg(fuzzing)]
pub(super) fn read_any(text: &str) {
    envelope::read_any(text);
}
