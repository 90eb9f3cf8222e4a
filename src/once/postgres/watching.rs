//! Waits for another replica's outcome: a notification of the database, or a look once a second.
//!
//! Who waits marks the row; whoever changes a marked row notifies. A row that nobody waits for
//! costs no notification, which would make commits queue behind each other.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::AsyncMessage;

use super::super::waiters::Waiters;
use super::super::{Fingerprint, Key, StoreError};
use super::Inner;
use super::connections::{Connector, Driver, failed, late};

/// A notification that was lost is not waited for longer.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How soon the listening connection is made again, at first and at last.
const CONNECT_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Who waits, and the task that listens for them.
pub struct Watching {
    waiters: Arc<Waiters>,
    listener: AbortHandle,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Watching {
    pub fn start(connector: Arc<Connector>) -> Self {
        let waiters = Arc::new(Waiters::default());
        let listener = tokio::spawn(listen(connector, Arc::clone(&waiters)));
        Self {
            waiters,
            listener: listener.abort_handle(),
        }
    }
}

/// What a notification says of a key, which itself may be too long for one.
pub fn payload(key: &Key) -> String {
    let hash = Fingerprint::of_bytes(key.as_bytes());
    let half = hash.to_bytes().first_chunk().copied().unwrap_or([0; 16]);
    format!("{:032x}", u128::from_be_bytes(half))
}

/// Waiters know a key by what a notification says of it.
fn told(payload: &str) -> Key {
    Key::from_bytes(payload.as_bytes())
}

impl Inner {
    pub async fn watch(&self, key: &Key) -> Result<(), StoreError> {
        let is_in_flight = async {
            let until = self.common.until();
            let connection = self.shared.get(&self.connector, until).await?;
            let key = key.as_bytes();
            // Sent together, done one after the other: what is done by the second is not missed.
            let (client, statements) = (&connection.client, &connection.statements);
            let ask = async {
                let wait = async { client.execute(&statements.wait, &[&key]).await };
                let look = async { client.query_opt(&statements.is_in_flight, &[&key]).await };
                tokio::try_join!(wait, look)
            };
            let (_, found) = connection.answer(until, ask).await?;
            Ok(found.is_some())
        };
        let waiter = told(&payload(key));
        // Returning early is allowed, and is the look.
        timeout(
            LOOK_EVERY,
            self.watching.waiters.wait(&waiter, is_in_flight),
        )
        .await
        .unwrap_or(Ok(()))
    }
}

/// Listens until it is aborted.
async fn listen(connector: Arc<Connector>, waiters: Arc<Waiters>) {
    let mut wait = CONNECT_AGAIN.0;
    loop {
        let heard = {
            let waiters = Arc::clone(&waiters);
            move |message| {
                if let AsyncMessage::Notification(notification) = message {
                    waiters.wake(&told(notification.payload()));
                }
            }
        };
        let connect = connect(&connector, heard);
        let connected = timeout(connector.operation_timeout, connect).await;
        match connected.unwrap_or_else(|_| Err(late())) {
            Ok(listening) => {
                wait = CONNECT_AGAIN.0;
                listening.ended().await;
            }
            Err(error) => tracing::debug!(%error, "cannot listen for outcomes"),
        }
        // At random by half, so that replicas which lost the server together do not come back together.
        sleep(wait.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        wait = (wait * 2).min(CONNECT_AGAIN.1);
    }
}

struct Listening {
    client: tokio_postgres::Client,
    _driver: Driver,
}

impl Listening {
    async fn ended(&self) {
        while !self.client.is_closed() {
            sleep(LOOK_EVERY).await;
        }
    }
}

async fn connect(
    connector: &Connector,
    heard: impl Fn(AsyncMessage) + Send + 'static,
) -> Result<Listening, StoreError> {
    let (client, _driver) = connector.connect(heard).await?;
    let listen = format!("listen {}", connector.table);
    client.batch_execute(&listen).await.map_err(failed)?;
    Ok(Listening { client, _driver })
}
