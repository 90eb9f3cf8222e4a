//! What becomes of a push: its order, its time, its identity, and the room that there is for it.

use std::collections::BTreeMap;

use bowline::RequestKey;
use bowline::message::Plain;
use bowline::queue::{JobState, NewJob, Priority, Producer, Pushed, QueueError};
use tokio::time::{Instant, sleep};

use super::{LONG, MILLISECOND, Setup, next, note, notes, nothing, number, options, refuse};
use crate::jobs::Note;

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
    for expected in 0..500 {
        assert_eq!(number(&mut jobs).await, expected);
    }
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

pub async fn a_job_may_be_as_large_as_the_engine_says_and_no_larger(setup: &impl Setup) {
    const MAX: usize = 10_000;
    let (queue, can) = notes(setup, options().with_job_bytes_max(MAX)).await;
    assert_eq!(can.job_bytes_max, MAX);
    let producer = Producer::ephemeral();
    let jobs = [MAX, MAX + 1, 8].map(|bytes| {
        let body = bytes::Bytes::from(vec![7; bytes]);
        NewJob::new(producer.identity(), body)
    });
    let deadline = Instant::now() + LONG;
    let pushed = queue.engine().push(jobs.into(), deadline).await;
    let pushed = pushed.expect("an answer");
    assert!(pushed[0].is_ok() && pushed[2].is_ok(), "{pushed:?}");
    let refused = &pushed[1];
    let over = MAX + 1;
    assert!(
        matches!(refused, Err(QueueError::TooLarge { bytes, max: MAX }) if *bytes == over),
        "{refused:?}"
    );
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
