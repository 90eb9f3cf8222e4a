//! What a log on disk does to stay short, to be read quickly, and to tell damage from what was never finished.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as Monotonic};

use bowline::queue::{
    Answer, Credit, Durable, Engine, EngineWorker, Job, LeasedJob, NewJob, Producer, Queue,
    QueueOptions, Refusal,
};
use bowline_test_queues::jobs::Note;
use bytes::Bytes;
use tokio::time::{Instant, sleep};

const LONG: Duration = Duration::from_secs(60);
const CREDIT: Credit = Credit {
    jobs: 100,
    bytes: 1 << 20,
    takes_any_first: true,
};

fn open(folder: &Path, options: QueueOptions) -> Durable {
    let builder = Durable::builder(options).segment_bytes(256 << 10);
    builder.open(folder).expect("it opens")
}

fn jobs(producer: &Producer, count: usize, body: &[u8]) -> Vec<NewJob> {
    let job = || NewJob::new(producer.identity(), Bytes::copy_from_slice(body));
    (0..count).map(|_| job()).collect()
}

async fn push(queue: &Durable, jobs: Vec<NewJob>) {
    let pushed = queue.push(jobs, Instant::now() + LONG).await;
    assert!(pushed.expect("an answer").iter().all(Result::is_ok));
}

async fn lease(worker: &dyn EngineWorker) -> Vec<LeasedJob> {
    let leased = worker.lease(CREDIT, Instant::now() + LONG).await;
    leased.expect("an answer")
}

/// The segments, and their bytes.
fn segments(folder: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let files = std::fs::read_dir(folder).expect("a directory");
    let files = files.map(|file| file.expect("a file"));
    let logs = files.filter(|file| file.file_name().to_string_lossy().ends_with(".log"));
    let size = |file: std::fs::DirEntry| (file.path(), file.metadata().map_or(0, |of| of.len()));
    let mut segments: Vec<_> = logs.map(size).collect();
    segments.sort();
    segments
}

fn bytes(folder: &Path) -> u64 {
    segments(folder).iter().map(|(_, bytes)| bytes).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_stays_short_while_nothing_finishes() {
    const JOBS: usize = 100;
    let folder = tempfile::tempdir().expect("a directory");
    let queue = open(folder.path(), QueueOptions::default());
    push(&queue, jobs(&Producer::ephemeral(), JOBS, &[7; 100])).await;
    let worker = queue.worker("workers").await.expect("the group");
    let mut written = 0;
    // Each time that a job is put off takes more than 100 bytes.
    while written < 60_000 {
        let jobs = lease(&*worker).await;
        written += jobs.len();
        let put_off = |job: &LeasedJob| {
            let answer = Answer::RetryAfter(Duration::ZERO, "not yet".into());
            (job.number, job.token, answer)
        };
        let answers = jobs.iter().map(put_off).collect();
        worker.answer(answers).await.expect("an answer");
    }
    let bytes = bytes(folder.path());
    assert!(bytes < 3 << 20, "{bytes} bytes for {JOBS} jobs");
    let counters = queue.counters("workers").await.expect("counters");
    assert_eq!(counters.jobs, JOBS, "and none is lost");
    worker.leave().await.expect("an answer");
    drop(worker);
    queue.close().await.expect("it closes");
    let queue = open(folder.path(), QueueOptions::default());
    let counters = queue.counters("workers").await.expect("counters");
    assert_eq!(counters.jobs, JOBS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_producers_do_not_begin_a_segment_for_each_push() {
    let folder = tempfile::tempdir().expect("a directory");
    let queue = open(folder.path(), QueueOptions::default());
    let many = (0..5_000).flat_map(|_| jobs(&Producer::ephemeral(), 1, &[7; 40]));
    push(&queue, many.collect()).await;
    let newest = || {
        let (newest, _) = segments(folder.path()).pop().expect("a segment");
        let name = newest
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        name.parse::<u32>().expect("a number")
    };
    let (before, one) = (newest(), Producer::ephemeral());
    for _ in 0..50 {
        push(&queue, jobs(&one, 1, &[7; 40])).await;
    }
    assert!(
        newest() - before < 5,
        "{} segments for 50 pushes",
        newest() - before
    );
}

/// Flips a bit of what is stored of this body.
fn damage(folder: &Path, body: &[u8]) {
    for (path, _) in segments(folder) {
        let mut stored = std::fs::read(&path).expect("it is there");
        let at = stored.windows(body.len()).position(|window| window == body);
        if let Some(at) = at {
            stored[at] ^= 1;
            std::fs::write(path, stored).expect("written");
            return;
        }
    }
    panic!("it is in no segment");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_body_that_looks_like_records_is_read_past_quickly() {
    let folder = tempfile::tempdir().expect("a directory");
    let options = || QueueOptions::default().with_job_bytes_max(4 << 20);
    let queue = open(folder.path(), options());
    let producer = Producer::ephemeral();
    // Pairs of small numbers: what a record begins with, and what a list of structs is in a message.
    let pair = [(1u32 << 19).to_le_bytes(), 2u32.to_le_bytes()].concat();
    let body = pair.repeat(1 << 17);
    push(&queue, jobs(&producer, 1, &body)).await;
    push(&queue, jobs(&producer, 1, b"another")).await;
    queue.close().await.expect("it closes");
    drop(queue);
    damage(folder.path(), &body[..64]);
    let began = Monotonic::now();
    let queue = open(folder.path(), options());
    // Hashing all that each of them claims takes many times as long, in a debug build minutes.
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(queue.recovery().damage.len(), 1, "{:?}", queue.recovery());
    assert_eq!(queue.counters("workers").await.expect("counters").jobs, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_behind_an_orderly_end_or_a_pause_is_no_torn_end() {
    for closes in [true, false] {
        let folder = tempfile::tempdir().expect("a directory");
        let queue = open(folder.path(), QueueOptions::default());
        let producer = Producer::ephemeral();
        push(&queue, jobs(&producer, 1, b"the first of two")).await;
        push(&queue, jobs(&producer, 1, b"the last of them")).await;
        let copy = tempfile::tempdir().expect("a directory");
        if closes {
            queue.close().await.expect("it closes");
        } else {
            // As it stands on the disk a while after the last push.
            sleep(Duration::from_secs(2)).await;
        }
        for (path, _) in segments(folder.path()) {
            let name = path.file_name().expect("a name");
            std::fs::copy(&path, copy.path().join(name)).expect("copied");
        }
        damage(copy.path(), b"the last of them");
        let damaged = open(copy.path(), QueueOptions::default());
        let found = damaged.recovery();
        assert_eq!((found.damage.len(), found.torn_bytes), (1, 0), "{found:?}");
    }
}

#[test]
fn a_queue_stays_where_it_was_opened_when_the_working_directory_changes() {
    let (folder, other) = (tempfile::tempdir(), tempfile::tempdir());
    let (folder, other) = (folder.expect("a directory"), other.expect("a directory"));
    let before = std::env::current_dir().expect("it is somewhere");
    std::env::set_current_dir(folder.path()).expect("it is there");
    let builder = Durable::builder(QueueOptions::default()).segment_bytes(64 << 10);
    let queue = builder.open("queue").expect("it opens");
    std::env::set_current_dir(other.path()).expect("it is there");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let producer = Producer::ephemeral();
        for _ in 0..40 {
            push(&queue, jobs(&producer, 50, &[7; 100])).await;
        }
    });
    assert!(segments(&folder.path().join("queue")).len() > 2);
    std::env::set_current_dir(before).expect("it is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_large_jobs_are_stored_at_once_in_an_empty_queue() {
    for body in [400 << 10, 800 << 10] {
        let folder = tempfile::tempdir().expect("a directory");
        let queue = Durable::open(folder.path(), QueueOptions::default()).expect("it opens");
        let producer = Producer::ephemeral();
        for _ in 0..4 {
            let job = jobs(&producer, 1, &vec![7; body]);
            let pushed = queue.push(job, Instant::now()).await.expect("an answer");
            assert!(pushed[0].is_ok(), "{pushed:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_whose_own_process_was_stopped_ends_no_lease() {
    const JOBS: u64 = 10;
    let lease = Duration::from_secs(2);
    let options = QueueOptions::default()
        .with_lease(lease)
        .with_backoff_min(Duration::from_millis(10))
        .with_backoff_max(Duration::from_millis(20));
    let queue = Queue::<Note>::memory(options);
    let runs = Arc::new(AtomicU64::new(0));
    let worker = {
        let runs = Arc::clone(&runs);
        let handler = move |_: Arc<Job<Note>>| {
            runs.fetch_add(1, Ordering::SeqCst);
            async move {
                sleep(lease).await;
                Ok::<_, Refusal>(())
            }
        };
        queue.worker(20, handler).start().await.expect("the group")
    };
    for number in 0..JOBS {
        let text = String::new();
        queue
            .push(&Note { number, text })
            .await
            .expect("there is room");
    }
    while runs.load(Ordering::SeqCst) < JOBS {
        sleep(Duration::from_millis(5)).await;
    }
    // This process stands still for two leases.
    let own = std::process::id();
    let script = format!(
        "kill -STOP {own}; sleep {}; kill -CONT {own}",
        2 * lease.as_secs()
    );
    let mut stopping = std::process::Command::new("sh")
        .arg("-c")
        .arg(script)
        .spawn()
        .expect("it starts");
    while queue.counters().await.expect("counters").done < JOBS {
        sleep(Duration::from_millis(5)).await;
    }
    stopping.wait().expect("it ends");
    assert_eq!(runs.load(Ordering::SeqCst), JOBS, "each once");
    worker.drain(lease).await;
}
