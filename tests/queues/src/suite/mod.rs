//! What every engine does, as far as it says that it can.
//!
//! Each file has the tests of one idea. Here is what they share, and the list that an engine is run through.

mod attempts;
mod changes;
mod claims;
mod keys;
mod pushes;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use bowline::queue::{Capabilities, Engine, Job, Jobs, Queue, QueueOptions};
use tokio::time::{Instant, sleep, timeout};

pub use attempts::*;
pub use changes::*;
pub use claims::*;
pub use keys::*;
pub use pushes::*;
pub use workers::*;

use crate::jobs::{Note, Step};

/// Makes empty queues of one engine.
pub trait Setup: Send + Sync {
    /// A queue that nobody else uses.
    fn engine(&self, options: QueueOptions) -> impl Future<Output = Arc<dyn Engine>> + Send;
}

/// The whole suite for one engine: `conformance!(setup)`, where `setup` is an expression that gives a [`Setup`].
#[macro_export]
macro_rules! conformance {
    ($setup:expr) => {
        $crate::conformance! { @ $setup =>
            what_is_pushed_is_leased_once_and_then_done
            pushes_come_in_their_order
            a_refused_job_comes_again_and_counts
            after_its_attempts_a_job_is_a_dead_letter_with_its_causes
            a_dead_letter_can_be_sent_back_and_deleted
            a_dead_letter_keeps_all_that_was_known_of_its_job
            full_dead_letters_block_and_lose_nothing
            a_job_put_off_comes_later_and_counts_nothing
            a_delayed_job_is_not_early
            an_expired_job_is_not_sent
            urgent_jobs_go_first_and_nothing_starves
            a_known_job_id_is_no_second_job
            a_redelivery_is_no_duplicate
            a_push_made_again_is_no_second_job
            a_lease_ends_and_its_late_answer_is_refused
            a_lease_is_renewed_while_the_job_runs_and_while_it_waits
            jobs_of_a_key_are_done_one_at_a_time_and_in_order
            each_producer_of_a_key_is_done_in_its_order
            a_poison_job_lets_its_key_go_on_or_parks_or_blocks_it
            a_full_queue_makes_a_push_wait_and_then_says_so
            a_job_may_be_as_large_as_the_engine_says_and_no_larger
            a_worker_has_no_more_than_its_credit
            a_job_is_read_in_place_or_as_a_plain_struct
            a_worker_does_as_many_at_once_as_it_was_told
            groups_of_workers_are_independent
            a_worker_that_leaves_gives_back_and_uses_up_no_attempt
            a_drained_worker_finishes_what_it_has
            a_handler_that_is_not_done_in_time_is_ended_and_uses_up_no_attempt
            a_handler_that_panics_refuses_its_job
            a_job_that_waits_is_cancelled_by_its_id
            a_job_that_waits_is_rescheduled_by_its_id
            lists_of_dead_letters_say_whether_there_are_more
            what_an_engine_does_not_claim_it_refuses
        }
    };
    (@ $setup:expr => $($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                $crate::suite::$test(&$setup).await;
            }
        )*
    };
}

const MILLISECOND: Duration = Duration::from_millis(1);
/// Longer than anything that happens here takes, on a machine that does other things too.
const LONG: Duration = Duration::from_secs(20);

/// Short times, so that a test of leases takes a second.
fn options() -> QueueOptions {
    QueueOptions::default()
        .with_lease(600 * MILLISECOND)
        .with_backoff_min(20 * MILLISECOND)
        .with_backoff_max(40 * MILLISECOND)
        .with_attempts_max(3)
}

async fn notes(setup: &impl Setup, options: QueueOptions) -> (Queue<Note>, Capabilities) {
    let queue = Queue::shared(setup.engine(options).await);
    let capabilities = queue.capabilities();
    (queue, capabilities)
}

async fn steps(setup: &impl Setup, options: QueueOptions) -> (Queue<Step>, Capabilities) {
    let queue = Queue::shared(setup.engine(options).await);
    let capabilities = queue.capabilities();
    (queue, capabilities)
}

fn note(number: u64) -> Note {
    Note {
        number,
        text: String::new(),
    }
}

fn step(work: &str, number: u64) -> Step {
    Step {
        work: work.into(),
        number,
    }
}

async fn next<T>(jobs: &mut Jobs<T>) -> Job<T> {
    let job = timeout(LONG, jobs.next()).await.expect("a job comes");
    job.expect("the queue is open").expect("the queue answers")
}

/// Nothing comes in this time.
async fn nothing<T>(jobs: &mut Jobs<T>, time: Duration) {
    let job = timeout(time, jobs.next()).await;
    assert!(job.is_err(), "nothing was to come: {job:?}");
}

async fn number(jobs: &mut Jobs<Note>) -> u64 {
    let job = next(jobs).await;
    let number = job.plain().expect("a note").number;
    job.ack().await.expect("it has the lease");
    number
}

async fn refuse(jobs: &mut Jobs<Note>, times: usize) {
    for _ in 0..times {
        let job = next(jobs).await;
        job.reject("cannot").await.expect("it has the lease");
    }
}

async fn eventually(mut is: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !is().await {
        assert!(Instant::now() < until, "it never came about");
        sleep(5 * MILLISECOND).await;
    }
}
