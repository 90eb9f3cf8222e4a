//! Each limit of a queue at its edge: what is just within it, and what is just over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bowline::RequestKey;
use bowline::queue::{
    Answer, Credit, Engine, EngineWorker, Groups, LeasedJob, Memory, NewJob, Producer, Pushed,
    QueueClock, QueueError, QueueOptions,
};
use bytes::Bytes;
use tokio::time::Instant;

const CREDIT: Credit = Credit {
    jobs: 100,
    bytes: 1 << 20,
    takes_any_first: true,
};

/// A queue whose time the test sets.
struct Timed {
    time: Arc<AtomicU64>,
    engine: Memory,
    producer: Producer,
}

impl Timed {
    fn new(options: QueueOptions) -> Self {
        let time = Arc::new(AtomicU64::new(0));
        let clock = QueueClock::manual(Arc::clone(&time));
        let engine = Memory::with_clock(options, clock);
        let producer = Producer::ephemeral();
        Self {
            time,
            engine,
            producer,
        }
    }

    fn pass(&self, time: Duration) {
        let milliseconds = time.as_millis() as u64;
        self.time.fetch_add(milliseconds, Ordering::SeqCst);
    }

    fn job(&self, bytes: usize) -> NewJob {
        NewJob::new(self.producer.identity(), Bytes::from(vec![7; bytes]))
    }

    fn named(&self, id: &str) -> NewJob {
        let mut job = self.job(0);
        job.id = Some(RequestKey::new(id.to_owned()).expect("an ID"));
        job
    }

    /// Without waiting for room.
    async fn push(&self, job: NewJob) -> Result<Pushed, QueueError> {
        let pushed = self.engine.push(vec![job], Instant::now()).await;
        pushed.expect("an answer").pop().expect("one result")
    }

    async fn worker(&self) -> Box<dyn EngineWorker> {
        self.engine.worker("workers").await.expect("the group")
    }
}

async fn lease(worker: &dyn EngineWorker) -> Vec<LeasedJob> {
    let leased = worker.lease(CREDIT, Instant::now()).await;
    leased.expect("an answer")
}

async fn answer(worker: &dyn EngineWorker, job: &LeasedJob, answer: Answer) {
    let answer = vec![(job.number, job.token, answer)];
    let told = worker.answer(answer).await.expect("an answer");
    assert_eq!(told, [Ok(())]);
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_queue_has_as_many_jobs_and_bytes_as_it_may() {
    let queue = Timed::new(QueueOptions::default().with_jobs_max(2));
    assert!(queue.push(queue.job(0)).await.is_ok());
    assert!(queue.push(queue.job(0)).await.is_ok());
    let over = queue.push(queue.job(0)).await;
    assert!(matches!(over, Err(QueueError::Full)), "{over:?}");

    let queue = Timed::new(QueueOptions::default().with_bytes_max(100));
    assert!(queue.push(queue.job(60)).await.is_ok());
    let over = queue.push(queue.job(41)).await;
    assert!(matches!(over, Err(QueueError::Full)), "{over:?}");
    assert!(queue.push(queue.job(40)).await.is_ok());
    let counters = queue.engine.counters("workers").await;
    assert_eq!(counters.expect("counters").bytes, 100);
}

#[tokio::test]
async fn body_id_and_key_count_together() {
    let queue = Timed::new(QueueOptions::default().with_job_bytes_max(100));
    let job = |key: usize| {
        let mut job = queue.job(60);
        job.id = Some(RequestKey::new("ten bytes!").expect("an ID"));
        job.key = Some(Bytes::from(vec![7; key]));
        job
    };
    let over = queue.push(job(31)).await;
    let is_over = matches!(
        over,
        Err(QueueError::TooLarge {
            bytes: 101,
            max: 100
        })
    );
    assert!(is_over, "{over:?}");
    assert!(queue.push(job(30)).await.is_ok());
}

#[tokio::test]
async fn so_many_refusals_or_lost_workers_bury_a_job_and_no_fewer() {
    let options = QueueOptions::default()
        .with_attempts_max(3)
        .with_lost_max(2);
    for (kind, times) in [("refused", 3), ("lost", 2)] {
        let queue = Timed::new(options.clone());
        queue.push(queue.job(0)).await.expect("there is room");
        let worker = queue.worker().await;
        for time in 1..=times {
            let job = lease(&*worker).await.pop().expect("it comes again");
            let failed = match kind {
                "refused" => Answer::Refuse("no".into()),
                _ => Answer::Abandon("no".into()),
            };
            answer(&*worker, &job, failed).await;
            let counters = queue.engine.counters("workers").await.expect("counters");
            assert_eq!(counters.dead, usize::from(time == times), "{kind} {time}");
            queue.pass(HOUR);
        }
    }
}

#[tokio::test]
async fn of_causes_and_failures_as_much_is_kept_as_may_be() {
    let options = QueueOptions::default()
        .with_cause_bytes_max(5)
        .with_failures_max(2);
    let queue = Timed::new(options);
    queue.push(queue.job(0)).await.expect("there is room");
    let worker = queue.worker().await;
    // Five bytes, six, and a letter that would end in the seventh.
    for cause in ["12345", "123456", "1234é"] {
        let job = lease(&*worker).await.pop().expect("it comes again");
        answer(&*worker, &job, Answer::Refuse(cause.into())).await;
        queue.pass(HOUR);
    }
    let job = lease(&*worker).await.pop().expect("it comes again");
    answer(&*worker, &job, Answer::Bury("12345".into())).await;
    let letters = queue.engine.dead_letters("workers", None, 10).await;
    let letters = letters.expect("a list");
    let causes: Vec<&str> = letters[0].failures.iter().map(|f| &*f.cause).collect();
    assert_eq!(causes, ["1234", "12345"]);
    assert_eq!(letters[0].attempts.refused, 4, "and all are counted");
}

#[tokio::test]
async fn dead_letters_block_when_there_are_as_many_as_may_be() {
    let queue = Timed::new(QueueOptions::default().with_dead_max(2));
    for _ in 0..3 {
        queue.push(queue.job(0)).await.expect("there is room");
    }
    let worker = queue.worker().await;
    let jobs = lease(&*worker).await;
    assert_eq!(jobs.len(), 3);
    for (dead, job) in (1..).zip(&jobs[..2]) {
        answer(&*worker, job, Answer::Bury("no".into())).await;
        let counters = queue.engine.counters("workers").await.expect("counters");
        assert_eq!((counters.dead, counters.is_blocked), (dead, dead == 2));
    }
    // What was sent before can be one more: it is not dropped.
    answer(&*worker, &jobs[2], Answer::Bury("no".into())).await;
    let counters = queue.engine.counters("workers").await.expect("counters");
    assert_eq!((counters.dead, counters.is_blocked), (3, true));
}

#[tokio::test]
async fn a_finished_jobs_id_is_known_for_an_hour_and_not_longer() {
    for (passed, is_known) in [(HOUR - Duration::from_millis(1), true), (HOUR, false)] {
        let queue = Timed::new(QueueOptions::default());
        queue.push(queue.named("a")).await.expect("there is room");
        let worker = queue.worker().await;
        let job = lease(&*worker).await.pop().expect("it is ready");
        // As long as it is not finished it is known anyway.
        queue.pass(Duration::from_secs(20));
        let again = queue.push(queue.named("a")).await.expect("an answer");
        assert!(again.is_duplicate());
        answer(&*worker, &job, Answer::Done).await;
        queue.pass(passed);
        let again = queue.push(queue.named("a")).await.expect("an answer");
        assert_eq!(again.is_duplicate(), is_known, "after {passed:?}");
    }
}

#[tokio::test]
async fn of_finished_jobs_the_last_ids_are_known() {
    let queue = Timed::new(QueueOptions::default().with_ids_max(2));
    let worker = queue.worker().await;
    for id in ["a", "b", "c"] {
        queue.push(queue.named(id)).await.expect("there is room");
        let job = lease(&*worker).await.pop().expect("it is ready");
        answer(&*worker, &job, Answer::Done).await;
    }
    for (id, is_known) in [("b", true), ("c", true), ("a", false)] {
        let again = queue.push(queue.named(id)).await.expect("an answer");
        assert_eq!(again.is_duplicate(), is_known, "{id}");
    }
}

#[tokio::test]
async fn a_producer_that_says_nothing_for_a_week_is_forgotten() {
    let week = 7 * 24 * HOUR;
    for (passed, is_known) in [(week - Duration::from_millis(1), true), (week, false)] {
        let queue = Timed::new(QueueOptions::default());
        let job = queue.job(0);
        queue.push(job.clone()).await.expect("there is room");
        queue.pass(passed);
        let again = queue.push(job).await.expect("an answer");
        assert_eq!(again.is_duplicate(), is_known, "after {passed:?}");
    }
}

#[test]
fn a_queue_has_one_to_sixteen_groups_with_names_of_one_to_255_bytes() {
    let groups = |count: usize| Groups::new((0..count).map(|n| n.to_string()));
    assert!(groups(0).is_err() && groups(1).is_ok());
    assert!(groups(16).is_ok() && groups(17).is_err());
    let name = |bytes: usize| Groups::new(["x".repeat(bytes)]);
    assert!(name(0).is_err() && name(1).is_ok());
    assert!(name(255).is_ok() && name(256).is_err());
    assert!(Groups::new(["a", "a"]).is_err());
}

#[tokio::test]
async fn producers_are_known_up_to_their_limit_and_the_last_of_them_stay() {
    let queue = Timed::new(QueueOptions::default().with_producers_max(100));
    let mut pushed = Vec::new();
    for _ in 0..1_000 {
        queue.pass(Duration::from_millis(1));
        let job = NewJob::new(Producer::ephemeral().identity(), Bytes::new());
        queue.push(job.clone()).await.expect("there is room");
        pushed.push(job);
    }
    let counters = queue.engine.counters("workers").await.expect("counters");
    assert!(
        (900..=913).contains(&counters.producers_forgotten),
        "{counters:?}"
    );
    for job in pushed.into_iter().rev().take(80) {
        let again = queue.push(job).await.expect("an answer");
        assert_eq!(again, Pushed::Again);
    }
}

#[tokio::test]
async fn what_a_step_brings_is_bounded_and_nothing_is_left_behind() {
    const JOBS: usize = 10_000;
    let queue = Timed::new(QueueOptions::default());
    let jobs = (0..JOBS).map(|_| {
        let mut job = queue.job(0);
        job.expires_after = Some(Duration::from_secs(1));
        job
    });
    let pushed = queue.engine.push(jobs.collect(), Instant::now()).await;
    assert!(pushed.expect("an answer").iter().all(Result::is_ok));
    queue.pass(Duration::from_secs(2));
    let counters = async || queue.engine.counters("workers").await.expect("counters");
    let first = counters().await;
    assert!(first.expired < JOBS as u64 / 2, "in parts: {first:?}");
    // One that has expired is not sent, though it was not dropped yet.
    let worker = queue.worker().await;
    assert!(lease(&*worker).await.is_empty());
    let last = counters().await;
    assert_eq!((last.expired, last.jobs), (JOBS as u64, 0));
}
