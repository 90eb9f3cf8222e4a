//! A queue in another process, as far as its callers can tell, under the suite of all engines.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bowline::Server;
use bowline::queue::{Engine, Memory, QueueOptions, QueueService, Remote};
use bowline_test_queues::conformance;
use bowline_test_queues::suite::Setup;

struct OverTheWire;

impl Setup for OverTheWire {
    async fn engine(&self, options: QueueOptions) -> Arc<dyn Engine> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let memory: Arc<dyn Engine> = Arc::new(Memory::new(options));
        let name = format!("bowline-queue-{}-{number}", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let server = Server::builder()
            .service(QueueService::new().engine("any", memory))
            .bind(format!("ipc://{}", socket.display()))
            .await
            .expect("it binds")
            .spawn();
        let endpoint = server.endpoint().to_string();
        let remote = Remote::builder().connect(endpoint, "any").await;
        // It serves as long as the test runs.
        std::mem::forget(server);
        Arc::new(remote.expect("it is there"))
    }
}

conformance!(OverTheWire);
