//! The settings of a client, and opening its socket.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout_at;

use super::driver::drive;
use super::shared::{Own, Shared};
use super::{Client, Inner};
use crate::call::TIMEOUT_DEFAULT;
use crate::call::raw::deadline_after;
use crate::message::Limits;
use crate::security::ClientSecurity;
use crate::transport::{self, Endpoint, TransportError, TransportOptions};
use crate::wire::SizesMax;

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    timeout: Duration,
    in_flight_max: usize,
    connect_wait: Duration,
    limits: Limits,
    transport: TransportOptions,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            timeout: TIMEOUT_DEFAULT,
            in_flight_max: 4096,
            connect_wait: Duration::from_secs(1),
            limits: Limits::default(),
            transport: TransportOptions::default(),
        }
    }
}

impl ClientBuilder {
    /// How long a call waits for its reply where the schema does not say. Default: 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Calls that may wait for their replies at once; one more fails with
    /// [`Code::ResourceExhausted`](crate::Code::ResourceExhausted), not done. Default: 4,096.
    pub fn in_flight_max(mut self, calls: usize) -> Self {
        self.in_flight_max = calls;
        self
    }

    /// How long [`connect`](Self::connect) waits for the server to be there. Default: 1 s.
    pub fn connect_wait(mut self, wait: Duration) -> Self {
        self.connect_wait = wait;
        self
    }

    /// Limits what reading a reply may cost. The server is told the largest body, and sends no larger one.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who this client is, and the key of the server that it talks to.
    pub fn security(mut self, security: ClientSecurity) -> Self {
        self.transport.client_security = Some(security);
        self
    }

    /// Settings of the socket. Keys that were given before stay where these have none.
    pub fn transport(mut self, mut options: TransportOptions) -> Self {
        let before = self.transport.client_security.take();
        options.client_security = options.client_security.or(before);
        self.transport = options;
        self
    }

    pub(crate) fn timeout_default(&self) -> Duration {
        self.timeout
    }

    /// Opens the socket, and waits a little for the server. A server that is not there yet is no
    /// error: it is looked for in the background.
    ///
    /// # Errors
    /// For what is no endpoint.
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub async fn connect(self, endpoint: impl AsRef<str>) -> Result<Client, TransportError> {
        let endpoint: Endpoint = endpoint.as_ref().parse()?;
        let (sender, receiver) = transport::connect_dealer(&endpoint, &self.transport).await?;
        let own = Own {
            compact: transport::takes_compact(&endpoint, &self.transport),
            sizes: SizesMax::new(&self.limits, self.transport.message_bytes_max),
        };
        let shared = Arc::new(Shared::new(
            sender,
            endpoint,
            self.in_flight_max,
            own,
            self.timeout,
            self.limits,
        ));
        let driver = tokio::spawn(drive(Arc::clone(&shared), receiver));
        let client = Client(Arc::new(Inner { shared, driver }));
        let waited = deadline_after(self.connect_wait);
        // Whether or not it is there by then: calls find out for themselves.
        let _ = timeout_at(waited, client.0.shared.connected()).await;
        Ok(client)
    }
}
