//! Queues on NATS JetStream, under the suite of all engines. Run by `tests/queues/servers`.

use std::sync::Arc;

use bowline::queue::engines::Nats;
use bowline::queue::{Engine, Producer, QueueOptions};
use bowline_test_queues::conformance;
use bowline_test_queues::suite::Setup;

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
