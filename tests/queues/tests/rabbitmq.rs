//! Queues on RabbitMQ, under the suite of all engines. Run by `tests/queues/servers`.

use std::sync::Arc;

use bowline::queue::engines::RabbitMq;
use bowline::queue::{Engine, Producer, QueueOptions};
use bowline_test_queues::conformance;
use bowline_test_queues::suite::{Setup, refusals};

struct OnRabbitMq;

impl Setup for OnRabbitMq {
    async fn engine(&self, options: QueueOptions) -> Arc<dyn Engine> {
        let uri = std::env::var("BOWLINE_RABBITMQ").expect("run this by tests/queues/servers");
        let name = format!("test-{}", Producer::ephemeral().identity().producer);
        let queue = RabbitMq::queue(name).options(options).open(uri).await;
        Arc::new(queue.expect("RabbitMQ takes a queue"))
    }
}

conformance!(OnRabbitMq);

/// The table of docs/queue-engines.md says the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rabbitmq_cannot_keep_is_refused_and_all_else_is_not() {
    let engine = OnRabbitMq.engine(QueueOptions::default()).await;
    let refused = [
        "order per key",
        "job IDs",
        "priorities",
        "finding a job by its ID",
    ];
    assert_eq!(refusals(engine).await, refused);
}
