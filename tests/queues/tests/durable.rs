//! The queue on disk, under the suite of all engines.

use std::sync::Arc;

use bowline::queue::{Durable, Engine, QueueOptions};
use bowline_test_queues::conformance;
use bowline_test_queues::suite::Setup;

/// Each in a directory of its own, which is left to the system's temporary files.
struct OnDisk;

impl Setup for OnDisk {
    async fn engine(&self, options: QueueOptions) -> Arc<dyn Engine> {
        let directory = tempfile::tempdir().expect("a directory").keep();
        let builder = Durable::builder(options).segment_bytes(256 << 10);
        Arc::new(builder.open(directory).expect("it opens"))
    }
}

conformance!(OnDisk);

#[tokio::test]
async fn it_says_that_it_survives_its_machine() {
    let engine = OnDisk.engine(QueueOptions::default()).await;
    assert!(engine.capabilities().is_durable);
}
