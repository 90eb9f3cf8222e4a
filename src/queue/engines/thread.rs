//! A thread with a runtime, on which an engine's connection lives: a program whose handlers block all threads of
//! its own runtime still renews its leases.

use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::queue::QueueError;
use crate::wire::Work;

use super::unavailable;

/// Ends, with all that was spawned on it, when it is dropped.
#[derive(Debug)]
pub(super) struct EngineThread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    pub fn start(name: &str) -> Result<Self, QueueError> {
        let failed = |error| unavailable(error, Work::NotDone);
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            // An error says that it was dropped, which is what it is told.
            let _ = runtime.block_on(stopped);
            // Tasks end here. What blocks a thread ends by its own time limit, which nobody is to wait for.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread.map_err(failed)?),
        })
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs this there. RabbitMQ's client does so by itself.
    #[cfg(any(feature = "kafka", feature = "nats"))]
    pub async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, QueueError>> + Send + 'static,
    ) -> Result<T, QueueError> {
        let done = self.handle.spawn(future).await;
        done.unwrap_or_else(|error| Err(unavailable(error, Work::OutcomeUnknown)))
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // It ends at its next turn: nothing that runs on it blocks.
            let _ = thread.join();
        }
    }
}
