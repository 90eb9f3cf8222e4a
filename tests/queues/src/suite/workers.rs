//! What a worker has, for how long, and how it leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bowline::queue::{Answer, Credit, EngineWorker, Groups, Job, QueueError};
use tokio::time::{Instant, sleep};

use super::{LONG, MILLISECOND, Setup, eventually, next, note, notes, nothing, number, options};
use crate::jobs::Note;

pub async fn a_lease_ends_and_its_late_answer_is_refused(setup: &impl Setup) {
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
    let done = async |worker: &dyn EngineWorker, token| {
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

pub async fn a_job_is_read_in_place_or_as_a_plain_struct(setup: &impl Setup) {
    let (queue, _) = notes(setup, options()).await;
    let text = "a text of some length ".repeat(40);
    let note = Note { number: 314, text };
    queue.push(&note).await.expect("there is room");
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    let job = next(&mut jobs).await;
    assert_eq!(job.plain().expect("a note"), note);
    let read = job.read(|note| -> Result<_, bowline::MessageError> {
        Ok((note.get_number(), note.get_text()?.len()))
    });
    assert_eq!(read.expect("a note"), (314, note.text.len()));
    job.ack().await.expect("it has the lease");
}

pub async fn a_worker_does_as_many_at_once_as_it_was_told(setup: &impl Setup) {
    const AT_ONCE: usize = 3;
    let (queue, _) = notes(setup, options()).await;
    let all: Vec<Note> = (0..30).map(note).collect();
    queue.push_all(&all).await.expect("the queue answers");
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        move |_: Arc<Job<Note>>| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                // The first wait for the others.
                let until = Instant::now() + LONG;
                while most.load(Ordering::SeqCst) < AT_ONCE && Instant::now() < until {
                    sleep(5 * MILLISECOND).await;
                }
                sleep(2 * MILLISECOND).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        }
    };
    let worker = queue.worker(AT_ONCE, handler).start().await;
    let worker = worker.expect("the group is there");
    eventually(async || queue.counters().await.expect("counters").jobs == 0).await;
    worker.drain(LONG).await;
    assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
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
    let (queue, can) = notes(setup, options()).await;
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
        let earlier = job.earlier();
        assert_eq!(earlier.used(), 0);
        // A server without leases may count one as lost that was on its way to who left.
        assert!(earlier.lost == 0 || !can.leases, "{earlier:?}");
        job.ack().await.expect("it has the lease");
    }
}

pub async fn a_handler_that_is_not_done_in_time_is_ended_and_uses_up_no_attempt(
    setup: &impl Setup,
) {
    let (queue, _) = notes(setup, options()).await;
    queue.push(&note(1)).await.expect("there is room");
    let begun = Arc::new(AtomicUsize::new(0));
    let handler = {
        let begun = Arc::clone(&begun);
        move |_: Arc<Job<Note>>| {
            begun.fetch_add(1, Ordering::SeqCst);
            std::future::pending()
        }
    };
    let worker = queue.worker(1, handler).start().await.expect("the group");
    eventually(async || begun.load(Ordering::SeqCst) > 0).await;
    let draining = Instant::now();
    worker.drain(100 * MILLISECOND).await;
    assert!(draining.elapsed() >= 100 * MILLISECOND && draining.elapsed() < LONG);
    let mut jobs = queue.jobs().start().await.expect("the group is there");
    let job = next(&mut jobs).await;
    assert_eq!(job.earlier().used(), 0);
    assert!(job.earlier().lost > 0, "{:?}", job.earlier());
    job.ack().await.expect("it has the lease");
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
