//! Queues on NATS JetStream, under the suite of all engines. Run by `tests/queues/servers`.

use std::sync::Arc;

use bowline::queue::engines::Nats;
use bowline::queue::{Engine, Producer, QueueOptions};
use bowline_test_queues::conformance;
use bowline_test_queues::suite::{Setup, refusals};

struct OnNats;

impl Setup for OnNats {
    async fn engine(&self, options: QueueOptions) -> Arc<dyn Engine> {
        let servers = std::env::var("BOWLINE_NATS").expect("run this by tests/queues/servers");
        let name = format!("test-{}", Producer::ephemeral().identity().producer);
        // The server sets aside what a queue may have.
        let options = options.with_bytes_max(8 << 20);
        let queue = Nats::queue(name).options(options).open(servers).await;
        Arc::new(queue.expect("NATS takes a queue"))
    }
}

conformance!(OnNats);

/// The table of docs/queue-engines.md says the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nats_cannot_keep_is_refused_and_all_else_is_not() {
    let engine = OnNats.engine(QueueOptions::default()).await;
    let refused = ["order per key", "priorities", "finding a job by its ID"];
    assert_eq!(refusals(engine).await, refused);
}
