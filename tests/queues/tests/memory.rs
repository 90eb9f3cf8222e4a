//! The queue in memory, under the suite of all engines.

use std::sync::Arc;

use bowline::MessageError;
use bowline::queue::{Engine, Memory, Queue, QueueOptions};
use bowline_test_queues::conformance;
use bowline_test_queues::jobs::Note;
use bowline_test_queues::suite::Setup;

struct InMemory;

impl Setup for InMemory {
    async fn engine(&self, options: QueueOptions) -> Arc<dyn Engine> {
        Arc::new(Memory::new(options))
    }
}

conformance!(InMemory);

#[tokio::test]
async fn what_is_read_of_a_job_lies_where_the_queue_has_it() {
    let queue = Queue::<Note>::memory(QueueOptions::default());
    let text = "a text that is not copied ".repeat(40);
    let pushed = queue.push(&Note { number: 1, text }).await;
    pushed.expect("there is room");
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    let job = jobs.next().await.expect("it is open").expect("a job");
    let place = || {
        let place = job.read(|note| -> Result<_, MessageError> {
            Ok(note.get_text()?.as_bytes().as_ptr() as usize)
        });
        place.expect("a note")
    };
    assert_eq!(place(), place(), "it was copied when it was opened again");
    job.ack().await.expect("it has the lease");
}

/// Nobody gets a queue in memory who has not named it, and it says what it is.
#[tokio::test]
async fn it_says_that_it_survives_nothing() {
    let engine = InMemory.engine(QueueOptions::default()).await;
    assert!(!engine.capabilities().is_durable);
}
