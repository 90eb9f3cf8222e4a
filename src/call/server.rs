//! The server: several services on one endpoint.
//!
//! One task reads requests and gives each handler its first poll: replies that are ready at once
//! leave from there, those to one client together where it has asked together. A handler that has to wait goes on in a task of its own, up to the server's
//! concurrency limit; beyond that, requests are refused, not done.

mod builder;
mod counters;
mod desk;
mod drive;
mod handlers;
mod in_flight;
mod pace;
mod readiness;
mod replies;
mod running;
mod watchdog;

pub use builder::{BindError, ServerBuilder};
pub use counters::{PrincipalCounters, ServerCounters};
pub use readiness::Readiness;

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

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

    /// Returns its counters, its readiness and its endpoint, also for while it [runs](Self::run_until).
    pub fn stats(&self) -> ServerStats {
        ServerStats(Arc::clone(&self.drive.shared))
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
            stats: self.stats(),
            stop,
            task: tokio::spawn(self.run_until(async {
                // A handle that is dropped stops its server too.
                let _ = stopped.await;
            })),
        }
    }
}

/// What can be seen of a server from outside, before, while and after it runs. Cheap to clone.
///
/// ```
/// # async fn f(server: bowline::Server, signal: impl Future<Output = ()>) {
/// let stats = server.stats();
/// tokio::spawn(async move {
///     loop {
///         tokio::time::sleep(std::time::Duration::from_secs(60)).await;
///         println!("{:?}", stats.counters());
///     }
/// });
/// server.run_until(signal).await;
/// # }
/// ```
#[derive(Clone)]
pub struct ServerStats(Arc<drive::Shared>);

impl ServerStats {
    /// Returns where the server can be reached.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// Returns whether the server takes requests.
    pub fn readiness(&self) -> Readiness {
        self.0.readiness.clone()
    }

    /// Returns what the server has counted.
    pub fn counters(&self) -> ServerCounters {
        ServerCounters {
            parked: self.0.pools.parked.used(),
            ..self.0.counters.read()
        }
    }

    /// Returns what it has counted of each [principal](crate::security::Principal), by name. Empty without keys.
    pub fn by_principal(&self) -> Vec<PrincipalCounters> {
        self.0.by_principal.read(counters::OfPrincipal::read)
    }

    /// Returns what it has counted of connections.
    pub fn door(&self) -> DoorCounters {
        self.0.sender.door()
    }
}

impl std::fmt::Debug for ServerStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerStats")
            .field("endpoint", self.endpoint())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

/// A server that runs in a task of its own. Dropping the handle shuts it down.
#[derive(Debug)]
pub struct ServerHandle {
    stats: ServerStats,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl ServerHandle {
    /// Where it can be reached.
    pub fn endpoint(&self) -> &Endpoint {
        self.stats.endpoint()
    }

    /// Returns its counters, its readiness and its endpoint, also for after its [shutdown](Self::shutdown).
    pub fn stats(&self) -> ServerStats {
        self.stats.clone()
    }

    /// Whether it takes requests, also during its [shutdown](Self::shutdown).
    pub fn readiness(&self) -> Readiness {
        self.stats.readiness()
    }

    /// What it has counted.
    pub fn counters(&self) -> ServerCounters {
        self.stats.counters()
    }

    /// What it has counted of each [principal](crate::security::Principal), by name. Empty without keys.
    pub fn by_principal(&self) -> Vec<PrincipalCounters> {
        self.stats.by_principal()
    }

    /// What it has counted of those who came to its door.
    pub fn door(&self) -> DoorCounters {
        self.stats.door()
    }

    /// Drains it; returns when its socket is closed.
    ///
    /// Returns also where the runtime that it was spawned in has shut down, or stands still: then after the
    /// [drain time](ServerBuilder::drain_max), the linger time and a second.
    pub async fn shutdown(mut self) {
        let time = self.stats.0.shutdown_max();
        let _ = self.stop.send(());
        // It ends by itself; handlers that panic do not reach it.
        if timeout(time, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}
