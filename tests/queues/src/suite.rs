//! What every engine does, as far as it says that it can.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bowline::RequestKey;
use bowline::queue::{
    Capabilities, Engine, FailureKind, Groups, Job, JobState, Jobs, Poison, Priority, Pushed,
    Queue, QueueError, QueueOptions, Refusal,
};
use tokio::time::{Instant, sleep, timeout};

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
            a_poison_job_lets_its_key_go_on_or_parks_or_blocks_it
            a_full_queue_makes_a_push_wait_and_then_says_so
            a_worker_has_no_more_than_its_credit
            groups_of_workers_are_independent
            a_worker_that_leaves_gives_back_and_uses_up_no_attempt
            a_drained_worker_finishes_what_it_has
            a_handler_that_panics_refuses_its_job
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

pub async fn what_is_pushed_is_leased_once_and_then_done(setup: &impl Setup) {
    let (queue, _) = notes(setup, options()).await;
    let pushed = queue.push(&note(314)).await.expect("there is room");
    assert!(!pushed.is_duplicate());
    let counters = queue.counters().await.expect("counters");
    assert_eq!((counters.ready, counters.leased), (1, 0));

    let mut jobs = queue.jobs().start().await.expect("the group is there");
    let job = next(&mut jobs).await;
    assert_eq!(job.plain().expect("a note").number, 314);
    let counters = queue.counters().await.expect("counters");
    assert_eq!((counters.ready, counters.leased), (0, 1));
    nothing(&mut jobs, 50 * MILLISECOND).await;

    job.ack().await.expect("it has the lease");
    let counters = queue.counters().await.expect("counters");
    assert_eq!((counters.ready, counters.leased), (0, 0));
    nothing(&mut jobs, 50 * MILLISECOND).await;
}

pub async fn pushes_come_in_their_order(setup: &impl Setup) {
    let (queue, _) = notes(setup, options()).await;
    let all: Vec<Note> = (0..500).map(note).collect();
    for result in queue.push_all(&all).await.expect("the queue answers") {
        result.expect("there is room");
    }
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    for number in 0..500 {
        assert_eq!(self::number(&mut jobs).await, number);
    }
}

pub async fn a_refused_job_comes_again_and_counts(setup: &impl Setup) {
    let (queue, _) = notes(setup, options()).await;
    queue.push(&note(1)).await.expect("there is room");
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    refuse(&mut jobs, 2).await;
    let job = next(&mut jobs).await;
    assert_eq!(job.earlier().refused, 2);
    assert_eq!(job.earlier().used(), 2);
    job.ack().await.expect("it has the lease");
}

pub async fn after_its_attempts_a_job_is_a_dead_letter_with_its_causes(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    if !can.dead_letters {
        return;
    }
    let id = RequestKey::new("poison").expect("a key");
    let id = can.deduplicates.then_some(id);
    let push = queue.push(&note(13));
    let push = match id.clone() {
        Some(id) => push.id(id),
        None => push,
    };
    push.await.expect("there is room");
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    refuse(&mut jobs, 3).await;
    nothing(&mut jobs, 100 * MILLISECOND).await;
    let dead = queue.dead_letters();
    let letters = dead.list(None, 10).await.expect("they can be listed");
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!(letter.id, id);
    assert_eq!(letter.attempts.refused, 3);
    assert_eq!(letter.failures.len(), 3);
    assert!(
        letter
            .failures
            .iter()
            .all(|failure| failure.cause == "cannot")
    );
    assert!(
        letter
            .failures
            .iter()
            .all(|f| f.kind == FailureKind::Refused)
    );
    let job = dead.open(letter).expect("a message");
    assert_eq!(job.plain().expect("a note").number, 13);
    assert_eq!(queue.counters().await.expect("counters").dead, 1);

    queue.push(&note(14)).await.expect("there is room");
    next(&mut jobs)
        .await
        .bury("never")
        .await
        .expect("it has the lease");
    let rest = dead.list(Some(letter.number), 10).await.expect("a list");
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].failures[0].cause, "never");
}

pub async fn a_dead_letter_can_be_sent_back_and_deleted(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    if !can.dead_letters {
        return;
    }
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    for number in 0..2 {
        queue.push(&note(number)).await.expect("there is room");
        next(&mut jobs)
            .await
            .bury("never")
            .await
            .expect("it has the lease");
    }
    let dead = queue.dead_letters();
    let letters = dead.list(None, 10).await.expect("they can be listed");
    let numbers: Vec<_> = letters.iter().map(|letter| letter.number).collect();
    assert_eq!(dead.delete(vec![numbers[0]]).await.expect("it answers"), 1);
    assert_eq!(dead.delete(vec![numbers[0]]).await.expect("it answers"), 0);
    assert_eq!(
        dead.send_back(vec![numbers[1]]).await.expect("it answers"),
        1
    );
    let job = next(&mut jobs).await;
    assert_eq!(job.plain().expect("a note").number, 1);
    assert_eq!(job.earlier().used(), 0);
    job.ack().await.expect("it has the lease");
    assert_eq!(queue.counters().await.expect("counters").dead, 0);
}

pub async fn full_dead_letters_block_and_lose_nothing(setup: &impl Setup) {
    let (queue, can) = notes(setup, options().with_dead_max(2)).await;
    if !can.dead_letters {
        return;
    }
    let all: Vec<Note> = (0..3).map(note).collect();
    queue.push_all(&all).await.expect("the queue answers");
    let jobs = queue.jobs().jobs_max(1).start().await;
    let mut jobs = jobs.expect("the group is there");
    for _ in 0..2 {
        next(&mut jobs)
            .await
            .bury("never")
            .await
            .expect("it has the lease");
    }
    nothing(&mut jobs, 100 * MILLISECOND).await;
    assert!(queue.counters().await.expect("counters").is_blocked);
    let dead = queue.dead_letters();
    let letters = dead.list(None, 1).await.expect("they can be listed");
    dead.delete(vec![letters[0].number])
        .await
        .expect("it answers");
    assert_eq!(number(&mut jobs).await, 2);
}

pub async fn a_job_put_off_comes_later_and_counts_nothing(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    if !can.delays {
        return;
    }
    queue.push(&note(1)).await.expect("there is room");
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    let mut job = next(&mut jobs).await;
    for times in 0..5 {
        assert_eq!((job.earlier().postponed, job.earlier().used()), (times, 0));
        let put_off = Instant::now();
        job.retry_after(60 * MILLISECOND)
            .await
            .expect("it has the lease");
        job = next(&mut jobs).await;
        assert!(put_off.elapsed() >= 60 * MILLISECOND);
    }
    job.ack().await.expect("it has the lease");
}

pub async fn a_delayed_job_is_not_early(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    if !can.delays {
        return;
    }
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    let began = Instant::now();
    let delay = 1500 * MILLISECOND;
    queue
        .push(&note(2))
        .delay(delay)
        .await
        .expect("there is room");
    queue.push(&note(1)).await.expect("there is room");
    assert_eq!(number(&mut jobs).await, 1);
    assert_eq!(queue.counters().await.expect("counters").delayed, 1);
    assert_eq!(number(&mut jobs).await, 2);
    assert!(began.elapsed() >= delay);
}

pub async fn an_expired_job_is_not_sent(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    if !can.expires {
        return;
    }
    let soon = 20 * MILLISECOND;
    queue
        .push(&note(1))
        .expires_after(soon)
        .await
        .expect("there is room");
    queue
        .push(&note(2))
        .expires_after(LONG)
        .await
        .expect("there is room");
    sleep(60 * MILLISECOND).await;
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    assert_eq!(number(&mut jobs).await, 2);
    let counters = queue.counters().await.expect("counters");
    assert_eq!((counters.expired, counters.jobs), (1, 0));
}

pub async fn urgent_jobs_go_first_and_nothing_starves(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    if !can.priorities {
        return;
    }
    for priority in [Priority::Low, Priority::Normal, Priority::High] {
        for _ in 0..30 {
            let push = queue.push(&note(priority as u64)).priority(priority);
            push.await.expect("there is room");
        }
    }
    let jobs = queue.jobs().jobs_max(1).start().await;
    let mut jobs = jobs.expect("the group is there");
    let mut counts = BTreeMap::<u64, u32>::new();
    assert_eq!(number(&mut jobs).await, Priority::High as u64);
    for _ in 1..30 {
        *counts.entry(number(&mut jobs).await).or_default() += 1;
    }
    assert!(counts[&0] > counts[&1] && counts[&1] > counts[&2]);
}

pub async fn a_known_job_id_is_no_second_job(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    if !can.deduplicates {
        return;
    }
    let id = RequestKey::new("order-314").expect("a key");
    let push = async || {
        queue
            .push(&note(1))
            .id(id.clone())
            .await
            .expect("an answer")
    };
    let Pushed::Accepted(original) = push().await else {
        panic!("it was not there before");
    };
    let duplicate = |state| Pushed::Duplicate {
        number: original,
        state,
    };
    assert_eq!(push().await, duplicate(JobState::Ready));
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    let job = next(&mut jobs).await;
    assert_eq!(push().await, duplicate(JobState::Leased));
    job.ack().await.expect("it has the lease");
    assert_eq!(push().await, duplicate(JobState::Finished));
    if can.finds {
        let found = queue.find(&id).await.expect("an answer");
        assert_eq!(found, Some((original, JobState::Finished)));
    }
    nothing(&mut jobs, 50 * MILLISECOND).await;
}

pub async fn a_redelivery_is_no_duplicate(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    if !can.deduplicates {
        return;
    }
    let id = RequestKey::new("order-315").expect("a key");
    queue.push(&note(1)).id(id).await.expect("there is room");
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    refuse(&mut jobs, 2).await;
    assert_eq!(number(&mut jobs).await, 1);
}

pub async fn a_push_made_again_is_no_second_job(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    if !can.recognises_pushes {
        return;
    }
    use bowline::message::Plain;
    use bowline::queue::{NewJob, Producer};
    let producer = Producer::ephemeral();
    let body = note(1).to_bytes().expect("an encoding");
    let job = NewJob::new(producer.identity(), body);
    let push = async || {
        let deadline = Instant::now() + LONG;
        let pushed = queue.engine().push(vec![job.clone()], deadline).await;
        let pushed = pushed.expect("an answer").pop().expect("one result");
        pushed.expect("there is room")
    };
    assert!(!push().await.is_duplicate());
    assert!(push().await.is_duplicate());
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    assert_eq!(number(&mut jobs).await, 1);
    assert!(push().await.is_duplicate());
    nothing(&mut jobs, 50 * MILLISECOND).await;
}

pub async fn a_lease_ends_and_its_late_answer_is_refused(setup: &impl Setup) {
    use bowline::queue::{Answer, Credit};
    let (queue, can) = notes(setup, options()).await;
    if !can.leases {
        return;
    }
    queue.push(&note(1)).await.expect("there is room");
    let credit = Credit {
        jobs: 1,
        bytes: 1 << 20,
        takes_any_first: true,
    };
    // One that is sent a job and then hears and says nothing.
    let stopped = queue.engine().worker("workers").await.expect("the group");
    let leased = stopped.lease(credit, Instant::now() + LONG).await;
    let leased = leased.expect("an answer").pop().expect("a job");
    let other = queue.engine().worker("workers").await.expect("the group");
    let again = other.lease(credit, Instant::now() + LONG).await;
    let again = again.expect("an answer").pop().expect("the same job");
    assert_eq!(again.number, leased.number);
    assert_eq!((again.earlier.lost, again.earlier.used()), (1, 0));
    let done = async |worker: &dyn bowline::queue::EngineWorker, token| {
        let answer = vec![(leased.number, token, Answer::Done)];
        let mut results = worker.answer(answer).await.expect("an answer");
        results.pop().expect("one result")
    };
    if can.fences {
        assert!(done(&*stopped, leased.token).await.is_err());
        let renewed = stopped.renew(vec![(leased.number, leased.token)]).await;
        assert!(renewed.expect("an answer")[0].is_err());
    }
    assert!(done(&*other, again.token).await.is_ok());
}

pub async fn a_lease_is_renewed_while_the_job_runs_and_while_it_waits(setup: &impl Setup) {
    let (queue, _) = notes(setup, options()).await;
    queue
        .push_all(&[note(1), note(2)])
        .await
        .expect("the queue answers");
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    let running = next(&mut jobs).await;
    // Blocks a thread of the runtime, as handlers should not.
    std::thread::sleep(1500 * MILLISECOND);
    running.extend().await.expect("it still has the lease");
    running.ack().await.expect("it still has the lease");
    let waited = next(&mut jobs).await;
    assert_eq!(waited.earlier(), Default::default());
    waited.ack().await.expect("it still has the lease");
}

pub async fn jobs_of_a_key_are_done_one_at_a_time_and_in_order(setup: &impl Setup) {
    let (queue, can) = steps(setup, options()).await;
    if !can.orders_keys {
        return;
    }
    let works = ["a", "b", "c"];
    let all: Vec<Step> = (0..20)
        .flat_map(|number| works.map(|work| step(work, number)))
        .collect();
    queue.push_all(&all).await.expect("the queue answers");
    let seen = Arc::new(std::sync::Mutex::new(BTreeMap::<String, Vec<u64>>::new()));
    let running: Arc<[AtomicUsize; 3]> = Arc::default();
    let handler = {
        let (seen, running) = (Arc::clone(&seen), Arc::clone(&running));
        move |job: Arc<Job<Step>>| {
            let (seen, running) = (Arc::clone(&seen), Arc::clone(&running));
            async move {
                let step = job.plain()?;
                let of_key = &running[works.iter().position(|w| *w == step.work).unwrap_or(0)];
                assert_eq!(of_key.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                sleep(MILLISECOND).await;
                of_key.fetch_sub(1, Ordering::SeqCst);
                if step.number == 7 && job.earlier().used() == 0 {
                    return Err(Refusal::because("again, and still in order"));
                }
                let mut seen = seen.lock().expect("no test panics with it");
                seen.entry(step.work).or_default().push(step.number);
                Ok(())
            }
        }
    };
    let worker = queue.worker(8, handler).start().await.expect("the group");
    eventually(async || queue.counters().await.expect("counters").jobs == 0).await;
    worker.drain(LONG).await;
    let seen = seen.lock().expect("no test panics with it");
    for work in works {
        assert!(
            seen[work].iter().copied().eq(0..20),
            "{work}: {:?}",
            seen[work]
        );
    }
}

pub async fn a_poison_job_lets_its_key_go_on_or_parks_or_blocks_it(setup: &impl Setup) {
    for poison in [Poison::Skip, Poison::Park, Poison::Block] {
        let (queue, can) = steps(setup, options().with_poison(poison)).await;
        if !can.orders_keys {
            return;
        }
        let all = [step("a", 0), step("a", 1), step("b", 2)];
        queue.push_all(&all).await.expect("the queue answers");
        let done: Arc<std::sync::Mutex<Vec<u64>>> = Arc::default();
        let tried = Arc::new(AtomicUsize::new(0));
        let handler = {
            let (done, tried) = (Arc::clone(&done), Arc::clone(&tried));
            move |job: Arc<Job<Step>>| {
                let (done, tried) = (Arc::clone(&done), Arc::clone(&tried));
                async move {
                    let step = job.plain()?;
                    if step.number == 0 {
                        tried.fetch_add(1, Ordering::SeqCst);
                        return Err(Refusal::because("poison"));
                    }
                    done.lock()
                        .expect("no test panics with it")
                        .push(step.number);
                    Ok(())
                }
            }
        };
        let worker = queue.worker(4, handler).start().await.expect("the group");
        let done = || {
            let mut done = done.lock().expect("no test panics with it").clone();
            done.sort_unstable();
            done
        };
        let dead = async || queue.counters().await.expect("counters").dead;
        match poison {
            Poison::Skip => eventually(async || done() == [1, 2] && dead().await == 1).await,
            Poison::Park => {
                eventually(async || done() == [2] && dead().await == 1).await;
                sleep(100 * MILLISECOND).await;
                assert_eq!(done(), [2], "the key stands still");
                let letters = queue.dead_letters().list(None, 10).await.expect("a list");
                let numbers = vec![letters[0].number];
                queue
                    .dead_letters()
                    .delete(numbers)
                    .await
                    .expect("it answers");
                eventually(async || done() == [1, 2]).await;
            }
            Poison::Block => {
                eventually(async || tried.load(Ordering::SeqCst) > 5).await;
                assert_eq!((done(), dead().await), (vec![2], 0));
            }
        }
        worker.drain(LONG).await;
    }
}

pub async fn a_full_queue_makes_a_push_wait_and_then_says_so(setup: &impl Setup) {
    let (queue, can) = notes(setup, options().with_jobs_max(2)).await;
    if !can.bounds {
        return;
    }
    queue
        .push_all(&[note(0), note(1)])
        .await
        .expect("the queue answers");
    let began = Instant::now();
    let full = queue.push(&note(2)).wait_max(80 * MILLISECOND).await;
    assert!(matches!(full, Err(QueueError::Full)), "{full:?}");
    assert!(began.elapsed() >= 80 * MILLISECOND);

    let waiting = {
        let queue = queue.clone();
        tokio::spawn(async move { queue.push(&note(3)).wait_max(LONG).await })
    };
    sleep(50 * MILLISECOND).await;
    assert!(!waiting.is_finished());
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    assert_eq!(number(&mut jobs).await, 0);
    let pushed = waiting.await.expect("no panic").expect("there is room now");
    assert!(!pushed.is_duplicate());
    assert_eq!(number(&mut jobs).await, 1);
    assert_eq!(number(&mut jobs).await, 3, "what was refused is not there");

    let large = Note {
        number: 4,
        text: "x".repeat(2 << 20),
    };
    let refused = queue.push(&large).await;
    assert!(
        matches!(refused, Err(QueueError::TooLarge { .. })),
        "{refused:?}"
    );
}

pub async fn a_worker_has_no_more_than_its_credit(setup: &impl Setup) {
    let (queue, _) = notes(setup, options()).await;
    let all: Vec<Note> = (0..20).map(note).collect();
    queue.push_all(&all).await.expect("the queue answers");
    let jobs = queue.jobs().jobs_max(3).start().await;
    let mut jobs = jobs.expect("the group is there");
    let held = [
        next(&mut jobs).await,
        next(&mut jobs).await,
        next(&mut jobs).await,
    ];
    nothing(&mut jobs, 50 * MILLISECOND).await;
    assert_eq!(queue.counters().await.expect("counters").leased, 3);
    for job in held {
        job.ack().await.expect("it has the lease");
    }
    next(&mut jobs).await.ack().await.expect("it has the lease");
    drop(jobs);
    eventually(async || queue.counters().await.expect("counters").leased == 0).await;

    let large = |number| Note {
        number,
        text: "x".repeat(1000),
    };
    let (queue, _) = notes(setup, options()).await;
    queue
        .push_all(&[large(0), large(1), large(2)])
        .await
        .expect("the queue answers");
    let jobs = queue.jobs().bytes_max(2500).start().await;
    let mut jobs = jobs.expect("the group is there");
    let held = [next(&mut jobs).await, next(&mut jobs).await];
    nothing(&mut jobs, 50 * MILLISECOND).await;
    for job in held {
        job.ack().await.expect("it has the lease");
    }
    assert_eq!(number(&mut jobs).await, 2);
}

pub async fn groups_of_workers_are_independent(setup: &impl Setup) {
    let groups = Groups::new(["workers", "audit"]).expect("names");
    let options = options().with_groups(groups);
    let (queue, _) = notes(setup, options).await;
    queue
        .push_all(&[note(1), note(2)])
        .await
        .expect("the queue answers");
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    assert_eq!(number(&mut jobs).await, 1);
    assert_eq!(number(&mut jobs).await, 2);
    let audit = queue.jobs().group("audit").start().await;
    let mut audit = audit.expect("the group is there");
    assert_eq!(number(&mut audit).await, 1);
    assert_eq!(number(&mut audit).await, 2);
    let unknown = queue.jobs().group("nobody").start().await;
    assert!(matches!(unknown, Err(QueueError::NoSuchGroup(_))));
}

pub async fn a_worker_that_leaves_gives_back_and_uses_up_no_attempt(setup: &impl Setup) {
    let (queue, _) = notes(setup, options()).await;
    queue
        .push_all(&[note(1), note(2), note(3)])
        .await
        .expect("the queue answers");
    for _ in 0..10 {
        let mut jobs = queue.jobs().start().await.expect("the group is there");
        let taken = next(&mut jobs).await;
        drop(jobs);
        // As when a deployment ends a process that has not begun with it.
        taken
            .retry_after(Duration::ZERO)
            .await
            .expect("it has the lease");
        eventually(async || queue.counters().await.expect("counters").leased == 0).await;
    }
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    for _ in 0..3 {
        let job = next(&mut jobs).await;
        assert_eq!((job.earlier().used(), job.earlier().lost), (0, 0));
        job.ack().await.expect("it has the lease");
    }
}

pub async fn a_drained_worker_finishes_what_it_has(setup: &impl Setup) {
    let (queue, _) = notes(setup, options()).await;
    let all: Vec<Note> = (0..100).map(note).collect();
    queue.push_all(&all).await.expect("the queue answers");
    let (begun, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (begun, done) = (Arc::clone(&begun), Arc::clone(&done));
        move |_: Arc<Job<Note>>| {
            let (begun, done) = (Arc::clone(&begun), Arc::clone(&done));
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                sleep(30 * MILLISECOND).await;
                done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        }
    };
    let worker = queue.worker(4, handler).start().await.expect("the group");
    eventually(async || begun.load(Ordering::SeqCst) >= 6).await;
    worker.drain(LONG).await;
    let begun = begun.load(Ordering::SeqCst);
    assert_eq!(done.load(Ordering::SeqCst), begun);
    eventually(async || {
        let counters = queue.counters().await.expect("counters");
        counters.leased == 0 && counters.jobs == 100 - begun
    })
    .await;
}

pub async fn a_handler_that_panics_refuses_its_job(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    if !can.dead_letters {
        return;
    }
    queue
        .push_all(&[note(0), note(1)])
        .await
        .expect("the queue answers");
    let handler = |job: Arc<Job<Note>>| async move {
        assert!(job.plain()?.number > 0, "a bug of the handler's");
        Ok(())
    };
    let worker = queue.worker(2, handler).start().await.expect("the group");
    eventually(async || queue.counters().await.expect("counters").dead == 1).await;
    let letters = queue.dead_letters().list(None, 10).await.expect("a list");
    assert_eq!(letters[0].attempts.refused, 3);
    worker.drain(LONG).await;
}

pub async fn what_an_engine_does_not_claim_it_refuses(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    let refused = |pushed| matches!(pushed, Err(QueueError::Unsupported(_)));
    let id = RequestKey::new("order-316").expect("a key");
    if !can.deduplicates {
        assert!(refused(queue.push(&note(1)).id(id.clone()).await));
    }
    if !can.delays {
        assert!(refused(queue.push(&note(1)).delay(LONG).await));
    }
    if !can.expires {
        assert!(refused(queue.push(&note(1)).expires_after(LONG).await));
    }
    if !can.priorities {
        let urgent = queue.push(&note(1)).priority(Priority::High);
        assert!(refused(urgent.await));
    }
    if !can.orders_keys {
        let (queue, _) = steps(setup, options()).await;
        assert!(refused(queue.push(&step("a", 1)).await));
    }
    if !can.finds {
        let found = queue.find(&id).await;
        assert!(matches!(found, Err(QueueError::Unsupported(_))));
    }
    if !can.dead_letters {
        let dead = queue.dead_letters();
        let listed = dead.list(None, 1).await;
        assert!(matches!(listed, Err(QueueError::Unsupported(_))));
        for changed in [dead.send_back(vec![]).await, dead.delete(vec![]).await] {
            assert!(matches!(changed, Err(QueueError::Unsupported(_))));
        }
    }
    assert_eq!(queue.counters().await.expect("counters").jobs, 0);
}
