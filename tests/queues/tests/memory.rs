//! The queue in memory, under the suite of all engines.

use std::sync::Arc;

use bowline::queue::{Engine, Memory, QueueOptions};
use bowline_test_queues::conformance;
use bowline_test_queues::suite::Setup;

struct InMemory;

impl Setup for InMemory {
    async fn engine(&self, options: QueueOptions) -> Arc<dyn Engine> {
        Arc::new(Memory::new(options))
    }
}

conformance!(InMemory);
