//! Moving a queue from one engine to another, as docs/queue-engines.md says it: nothing is lost, and no push is refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bowline::queue::{Engine, Job, Queue, Refusal, Worker};
use tokio::time::{Instant, sleep};

use crate::jobs::Note;

/// Longer than anything that happens here takes, on a machine that does other things too.
const LONG: Duration = Duration::from_secs(60);
/// Jobs of each producer.
const EACH: u64 = 60;

/// Moves from one engine to the other, and back.
pub async fn there_and_back(one: Arc<dyn Engine>, other: Arc<dyn Engine>) {
    let (one, other) = (Queue::<Note>::shared(one), Queue::<Note>::shared(other));
    moved(&one, &other).await;
    moved(&other, &one).await;
}

/// How often each job was done, and whether the bug of its handler is corrected.
#[derive(Clone, Default)]
struct Done {
    jobs: Arc<Mutex<BTreeMap<u64, u32>>>,
    is_corrected: Arc<AtomicBool>,
}

async fn work(queue: &Queue<Note>, done: &Done) -> Worker {
    let done = done.clone();
    let handler = move |job: Arc<Job<Note>>| {
        let done = done.clone();
        async move {
            let number = job.plain()?.number;
            if number % 20 == 13 && !done.is_corrected.load(Ordering::SeqCst) {
                return Err(Refusal::because("a bug").for_good());
            }
            sleep(Duration::from_millis(1)).await;
            let mut jobs = done.jobs.lock().expect("no test panics with it");
            *jobs.entry(number).or_default() += 1;
            Ok(())
        }
    };
    queue.worker(4, handler).start().await.expect("the group")
}

async fn push(queue: &Queue<Note>, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let text = String::new();
        queue.push(&Note { number, text }).await.expect("taken");
    }
}

async fn moved(old: &Queue<Note>, new: &Queue<Note>) {
    let done = Done::default();
    push(old, 0..EACH).await;
    // Both are worked; the producers are changed meanwhile, one after the other.
    let (of_old, of_new) = (work(old, &done).await, work(new, &done).await);
    tokio::join!(push(old, EACH..2 * EACH), push(new, 2 * EACH..3 * EACH));
    push(new, 3 * EACH..4 * EACH).await;
    until_done(old).await;
    until_done(new).await;
    // What could not be done stays where it is, and is done there when the handler is corrected.
    done.is_corrected.store(true, Ordering::SeqCst);
    for queue in [old, new] {
        let dead = queue.dead_letters();
        let letters = dead.list(None, 100).await.expect("a list");
        assert_eq!(letters.len() as u64, 2 * EACH / 20);
        let numbers: Vec<_> = letters.iter().map(|letter| letter.number).collect();
        let sent_back = dead.send_back(numbers).await.expect("an answer");
        assert_eq!(sent_back, letters.len());
        until_done(queue).await;
        let jobs = queue.counters().await.expect("counters").jobs;
        assert_eq!(jobs, 0, "it can be taken away");
    }
    of_old.drain(LONG).await;
    of_new.drain(LONG).await;
    let jobs = done.jobs.lock().expect("no test panics with it");
    assert!(jobs.keys().copied().eq(0..4 * EACH), "{jobs:?}");
}

/// What is left are dead letters.
async fn until_done(queue: &Queue<Note>) {
    let until = Instant::now() + LONG;
    loop {
        let counters = queue.counters().await.expect("counters");
        if counters.jobs == counters.dead {
            return;
        }
        assert!(Instant::now() < until, "{counters:?}");
        sleep(Duration::from_millis(10)).await;
    }
}
