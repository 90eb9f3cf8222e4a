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

/// Nobody gets a queue in memory who has not named it, and it says what it is.
#[tokio::test]
async fn it_says_that_it_survives_nothing() {
    let engine = InMemory.engine(QueueOptions::default()).await;
    assert!(!engine.capabilities().is_durable);
}
