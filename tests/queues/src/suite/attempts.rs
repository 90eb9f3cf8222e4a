//! How attempts end, and what is kept of a job that nobody can do.

use std::sync::Arc;

use bowline::RequestKey;
use bowline::queue::{FailureKind, Job, Priority, Queue};
use tokio::time::Instant;

use super::{
    LONG, MILLISECOND, Setup, eventually, next, note, notes, nothing, number, options, refuse,
    step, steps,
};
use crate::jobs::Note;

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

pub async fn a_dead_letter_keeps_all_that_was_known_of_its_job(setup: &impl Setup) {
    let (steps, can) = steps(setup, options()).await;
    if !can.dead_letters {
        return;
    }
    let notes = Queue::<Note>::shared(Arc::clone(steps.engine()));
    let id = RequestKey::new("order-318").expect("a key");
    let id = can.deduplicates.then_some(id);
    let priority = match can.priorities {
        true => Priority::High,
        false => Priority::Normal,
    };
    // With a key, where the engine knows what that is.
    let identity = if can.orders_keys {
        let step = step("a", 1);
        let mut push = steps.push(&step).priority(priority);
        if let Some(id) = id.clone() {
            push = push.id(id);
        }
        push.await.expect("there is room");
        let mut jobs = steps.jobs().start().await.expect("the group is there");
        refuse_one(next(&mut jobs).await, "not yet").await;
        let job = next(&mut jobs).await;
        let identity = job.identity();
        job.bury("never").await.expect("it has the lease");
        identity
    } else {
        let note = note(1);
        let mut push = notes.push(&note).priority(priority);
        if let Some(id) = id.clone() {
            push = push.id(id);
        }
        push.await.expect("there is room");
        let mut jobs = notes.jobs().start().await.expect("the group is there");
        refuse_one(next(&mut jobs).await, "not yet").await;
        let job = next(&mut jobs).await;
        let identity = job.identity();
        job.bury("never").await.expect("it has the lease");
        identity
    };
    let letters = steps.dead_letters().list(None, 10).await.expect("a list");
    let [letter] = &letters[..] else {
        panic!("there is one: {letters:?}");
    };
    assert_eq!(letter.identity, identity);
    assert_eq!((&letter.id, letter.priority), (&id, priority));
    let key = letter.key.as_deref();
    assert_eq!(key, can.orders_keys.then_some(&b"a"[..]));
    assert_eq!(letter.attempts.refused, 2);
    let causes = letter.failures.iter().map(|failure| &*failure.cause);
    assert!(causes.eq(["not yet", "never"]), "{:?}", letter.failures);
    assert!(letter.failures.iter().is_sorted_by_key(|f| f.age));
}

async fn refuse_one<T>(job: Job<T>, cause: &str) {
    job.reject(cause).await.expect("it has the lease");
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
