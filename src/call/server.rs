//! The server: several services on one endpoint.
//!
//! One task reads requests and gives each handler its first poll: replies that are ready at once
//! leave from there, those to one client together where it has asked together. A handler that has to wait goes on in a task of its own, up to the server's
//! concurrency limit; beyond that, requests are refused, not done.

mod builder;
mod counters;
mod drive;
mod readiness;
mod replies;

pub use builder::{BindError, ServerBuilder};
pub use counters::{PrincipalCounters, ServerCounters};
pub use readiness::Readiness;

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::transport::{DoorCounters, Endpoint};
use drive::Drive;

/// A server that has its endpoint and waits to be run.
#[derive(Debug)]
#[must_use = "a server answers nothing before it is run"]
pub struct Server {
    drive: Drive,
}

impl Server {
    /// To say which services it has.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// Where it can be reached, with the port that it really has.
    pub fn endpoint(&self) -> &Endpoint {
        &self.drive.shared.endpoint
    }

    /// Whether it takes requests, also while it [runs](Self::run_until).
    pub fn readiness(&self) -> Readiness {
        self.drive.shared.readiness.clone()
    }

    /// Serves for ever.
    pub async fn run(self) {
        self.run_until(std::future::pending()).await;
    }

    /// Serves until `shutdown` is ready, then drains: is [not ready](Readiness) any more, accepts no more
    /// connections, refuses new requests with a status that says *not done*, lets running handlers finish
    /// within the [drain time](ServerBuilder::drain_max), ends those that do not, and closes its socket.
    ///
    /// Dropping this future ends the handlers at once and closes the socket.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) {
        self.drive.run(shutdown).await;
    }

    /// Serves in a task of its own, until it is told to stop.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(self) -> ServerHandle {
        let (stop, stopped) = oneshot::channel::<()>();
        ServerHandle {
            endpoint: self.drive.shared.endpoint.clone(),
            counters: Arc::clone(&self.drive.shared),
            stop,
            task: tokio::spawn(self.run_until(async {
                // A handle that is dropped stops its server too.
                let _ = stopped.await;
            })),
        }
    }
}

/// A server that runs in a task of its own. Dropping the handle shuts it down.
#[derive(Debug)]
pub struct ServerHandle {
    endpoint: Endpoint,
    counters: Arc<drive::Shared>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl ServerHandle {
    /// Where it can be reached.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether it takes requests, also during its [shutdown](Self::shutdown).
    pub fn readiness(&self) -> Readiness {
        self.counters.readiness.clone()
    }

    /// What it has counted.
    pub fn counters(&self) -> ServerCounters {
        self.counters.counters.read()
    }

    /// What it has counted of each [principal](crate::security::Principal), by name. Empty without keys.
    pub fn by_principal(&self) -> Vec<PrincipalCounters> {
        self.counters.by_principal.read(counters::OfPrincipal::read)
    }

    /// What it has counted of those who came to its door.
    pub fn door(&self) -> DoorCounters {
        self.counters.sender.door()
    }

    /// Drains it; returns when its socket is closed.
    pub async fn shutdown(self) {
        let _ = self.stop.send(());
        // It ends by itself; handlers that panic do not reach it.
        let _ = self.task.await;
    }
}
