//! Changing a job that waits, by its ID; and lists that say whether there are more.

use std::time::Duration;

use bowline::RequestKey;
use bowline::queue::{JobChange, JobState, QueueError};

use super::{LONG, MILLISECOND, Setup, eventually, next, note, notes, nothing, options, steps};
use crate::jobs::Step;

fn id(name: &str) -> RequestKey {
    RequestKey::new(name.to_owned()).expect("an ID")
}

pub async fn a_job_that_waits_is_cancelled_by_its_id(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    if !can.cancels {
        let refused = queue.cancel(&id("order-1")).await;
        assert!(matches!(refused, Err(QueueError::Unsupported(_))));
        return;
    }
    for (number, delay) in [(1, Duration::ZERO), (2, LONG)] {
        let job = queue.push(&note(number)).id(id(&format!("order-{number}")));
        job.delay(delay).await.expect("there is room");
    }
    queue
        .push(&note(3))
        .id(id("order-3"))
        .await
        .expect("there is room");
    for order in ["order-1", "order-2"] {
        let told = queue.cancel(&id(order)).await.expect("an answer");
        assert!(matches!(told, JobChange::Done(_)), "{told:?}");
        let again = queue.cancel(&id(order)).await.expect("an answer");
        let is_over = matches!(
            again,
            JobChange::TooLate {
                state: JobState::Finished,
                ..
            }
        );
        assert!(is_over, "{again:?}");
    }
    let told = queue.cancel(&id("order-4")).await.expect("an answer");
    assert_eq!(told, JobChange::Unknown);
    let mut jobs = queue.jobs().start().await.expect("the group");
    let job = next(&mut jobs).await;
    assert_eq!(job.plain().expect("a note").number, 3);
    let told = queue.cancel(&id("order-3")).await.expect("an answer");
    let is_late = matches!(
        told,
        JobChange::TooLate {
            state: JobState::Leased,
            ..
        }
    );
    assert!(is_late, "a worker has it: {told:?}");
    job.ack().await.expect("it has the lease");
    let counters = queue.counters().await.expect("counters");
    assert_eq!(
        (counters.jobs, counters.done, counters.cancelled),
        (0, 1, 2)
    );
}

pub async fn a_job_that_waits_is_rescheduled_by_its_id(setup: &impl Setup) {
    let (queue, can) = steps(setup, options()).await;
    if !can.cancels {
        let refused = queue.reschedule(&id("order-1"), LONG).await;
        assert!(matches!(refused, Err(QueueError::Unsupported(_))));
        return;
    }
    let step = |number| Step {
        work: "a".into(),
        number,
    };
    // The first of its key is put off, and the next one goes in front of it.
    queue
        .push(&step(1))
        .id(id("first"))
        .await
        .expect("there is room");
    queue.push(&step(2)).await.expect("there is room");
    let told = queue.reschedule(&id("first"), LONG).await;
    assert!(matches!(told, Ok(JobChange::Done(_))), "{told:?}");
    let mut jobs = queue.jobs().start().await.expect("the group");
    let job = next(&mut jobs).await;
    assert_eq!(job.plain().expect("a step").number, 2);
    job.ack().await.expect("it has the lease");
    nothing(&mut jobs, 50 * MILLISECOND).await;
    let told = queue.reschedule(&id("first"), Duration::ZERO).await;
    assert!(matches!(told, Ok(JobChange::Done(_))), "{told:?}");
    let job = next(&mut jobs).await;
    assert_eq!(job.plain().expect("a step").number, 1);
    job.ack().await.expect("it has the lease");
}

pub async fn lists_of_dead_letters_say_whether_there_are_more(setup: &impl Setup) {
    const LETTERS: usize = 5;
    let (queue, can) = notes(setup, options()).await;
    if !can.dead_letters {
        return;
    }
    for number in 0..LETTERS as u64 {
        queue.push(&note(number)).await.expect("there is room");
    }
    let mut jobs = queue.jobs().start().await.expect("the group");
    for _ in 0..LETTERS {
        next(&mut jobs)
            .await
            .bury("never")
            .await
            .expect("it has the lease");
    }
    let dead = queue.dead_letters();
    eventually(async || queue.counters().await.expect("counters").dead == LETTERS).await;
    let (mut after, mut seen, mut pages) = (None, 0, 0);
    loop {
        let page = dead.list(after, 2).await.expect("a page");
        assert!(page.len() <= 2);
        seen += page.len();
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, LETTERS);
    assert!(pages >= 3, "{pages}");
}
