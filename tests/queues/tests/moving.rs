//! From a queue on disk to another engine and back. To Kafka it is in `kafka.rs`, where its brokers are.

use std::sync::Arc;

use bowline::queue::{Durable, Engine, QueueOptions};
use bowline_test_queues::moving::there_and_back;

fn on_disk(folder: &std::path::Path) -> Arc<dyn Engine> {
    let engine = Durable::open(folder, QueueOptions::default());
    Arc::new(engine.expect("it opens"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_disk_to_a_queue_in_another_process_and_back() {
    use bowline::Server;
    use bowline::queue::{Memory, QueueService, Remote};
    let folder = tempfile::tempdir().expect("a directory");
    let memory: Arc<dyn Engine> = Arc::new(Memory::new(QueueOptions::default()));
    let service = QueueService::new().engine("notes", memory);
    let server = Server::builder().service(service);
    let server = server.bind("tcp://127.0.0.1:0").await.expect("it binds");
    let server = server.spawn();
    let endpoint = server.endpoint().to_string();
    let remote = Remote::builder().connect(endpoint, "notes").await;
    let remote = Arc::new(remote.expect("it is there"));
    there_and_back(on_disk(folder.path()), remote).await;
    server.shutdown().await;
}

#[cfg(any(feature = "nats", feature = "rabbitmq"))]
fn name() -> String {
    let identity = bowline::queue::Producer::ephemeral().identity();
    format!("test-{}", identity.producer)
}

#[cfg(feature = "rabbitmq")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_disk_to_rabbitmq_and_back() {
    let uri = std::env::var("BOWLINE_RABBITMQ").expect("run this by tests/queues/servers");
    let folder = tempfile::tempdir().expect("a directory");
    let queue = bowline::queue::engines::RabbitMq::queue(name());
    let queue = queue.open(uri).await.expect("RabbitMQ takes a queue");
    there_and_back(on_disk(folder.path()), Arc::new(queue)).await;
}

#[cfg(feature = "nats")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_disk_to_nats_and_back() {
    let servers = std::env::var("BOWLINE_NATS").expect("run this by tests/queues/servers");
    let folder = tempfile::tempdir().expect("a directory");
    let options = QueueOptions::default().with_bytes_max(8 << 20);
    let queue = bowline::queue::engines::Nats::queue(name()).options(options);
    let queue = queue.open(servers).await.expect("NATS takes a queue");
    there_and_back(on_disk(folder.path()), Arc::new(queue)).await;
}
