//! One suite over every engine, and what its tests need.
//!
//! An engine has a file in `tests/` that implements [`Setup`](suite::Setup) and calls
//! [`conformance!`](crate::conformance). Tests of whole processes start `src/bin/role.rs`.

use std::time::Duration;

#[cfg(any(feature = "nats", feature = "rabbitmq"))]
use bowline::queue::{QueueError, QueueOptions};
use redb::TableDefinition;

bowline::include_schemas!();

pub mod failing;
pub mod moving;
pub mod suite;

/// What the ledger of `role ledger` keeps: how often a note of each text was entered.
pub const ENTRIES: TableDefinition<'_, &str, u64> = TableDefinition::new("entries");

/// Whether a note is one that no worker of `role work` can do: 1 in 100.
pub fn is_poison(number: u64) -> bool {
    number % 100 == 13
}

/// Somebody who takes connections and says nothing, until it is dropped; and where.
pub fn silent() -> (std::net::TcpListener, std::net::SocketAddr) {
    // The system takes them, and nobody looks.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// The lease of queues on servers whose jobs `role hold` has.
pub const HELD_LEASE: Duration = Duration::from_secs(1);

#[cfg(any(feature = "nats", feature = "rabbitmq"))]
fn held() -> QueueOptions {
    QueueOptions::default()
        .with_lease(HELD_LEASE)
        .with_bytes_max(8 << 20)
        .with_backoff_min(Duration::from_millis(20))
        .with_backoff_max(Duration::from_millis(100))
}

/// A queue whose jobs `role hold nats <server> <name>` has.
#[cfg(feature = "nats")]
pub async fn held_on_nats(
    server: &str,
    name: &str,
) -> Result<bowline::queue::engines::Nats, QueueError> {
    let queue = bowline::queue::engines::Nats::queue(name).options(held());
    queue.open(server).await
}

/// A queue whose jobs `role hold rabbitmq <uri> <name>` has.
#[cfg(feature = "rabbitmq")]
pub async fn held_on_rabbitmq(
    uri: &str,
    name: &str,
) -> Result<bowline::queue::engines::RabbitMq, QueueError> {
    let queue = bowline::queue::engines::RabbitMq::queue(name).options(held());
    queue.open(uri).await
}
