//! Opening a queue on disk: what it costs, in bytes, and what it finds: segments that are damaged, missing, of another
//! version, or cannot be read; options that are not those of the last time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bowline::queue::{
    Answer, Credit, Directory, Durable, Engine, Groups, Identity, NewJob, QueueError, QueueOptions,
    SimulatedQueue, Storage,
};
use bowline_test_queues::failing::{Failing, Fault};
use bytes::Bytes;
use uuid::Uuid;

const SEGMENT: u64 = 256 << 10;
const BODY: usize = 1000;
const JOBS: u64 = 2000;

/// A directory that counts.
#[derive(Debug)]
struct Counting {
    directory: Directory,
    read: AtomicU64,
    made: AtomicU64,
}

impl Counting {
    fn open(path: &std::path::Path) -> Arc<Self> {
        Arc::new(Self {
            directory: Directory::open(path).expect("nobody else has it"),
            read: AtomicU64::new(0),
            made: AtomicU64::new(0),
        })
    }
}

impl Storage for Counting {
    fn list(&self) -> io::Result<Vec<String>> {
        self.directory.list()
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<()> {
        self.made.fetch_add(bytes, Ordering::Relaxed);
        self.directory.create(name, bytes)
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let read = self.directory.read(name, offset, into)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.directory.write(name, offset, bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.directory.sync(name)
    }

    fn truncate(&self, name: &str, bytes: u64) -> io::Result<()> {
        self.directory.truncate(name, bytes)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.directory.remove(name)
    }
}

fn open(storage: &Arc<Counting>) -> SimulatedQueue {
    let storage: Arc<dyn Storage> = Arc::clone(storage) as _;
    SimulatedQueue::open(storage, &QueueOptions::default(), SEGMENT, 0, 314).expect("it opens")
}

/// A log of several segments in this directory, all but the last of which have an index.
fn fill(path: &std::path::Path) {
    let storage = Counting::open(path);
    let mut queue = open(&storage);
    for sequence in 0..JOBS {
        let identity = Identity {
            producer: Uuid::nil(),
            epoch: 0,
            sequence,
        };
        let job = NewJob::new(identity, Bytes::from(vec![sequence as u8; BODY]));
        queue.push(0, &job).expect("there is room");
        queue.flush().expect("it writes");
    }
}

fn files(path: &std::path::Path, ending: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(path).expect("a directory");
    let paths = entries.map(|entry| entry.expect("a file").path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect();
    paths.sort_unstable();
    paths
}

const ALL: Credit = Credit {
    jobs: usize::MAX,
    bytes: usize::MAX,
    takes_any_first: true,
};

#[test]
fn opening_a_small_queue_makes_a_short_segment_first() {
    let path = tempfile::tempdir().expect("a directory");
    let storage = Counting::open(path.path());
    let opened = Durable::builder(QueueOptions::default()).open_on(Arc::clone(&storage) as _);
    let first = &files(path.path(), "0000000001.log")[0];
    let length = std::fs::metadata(first).expect("it is there").len();
    assert_eq!(length, 256 << 10);
    drop(opened.expect("it opens"));
    // The next, if it was begun: not that of 64 MiB.
    assert!(storage.made.load(Ordering::Relaxed) <= (256 << 10) + (1 << 20));
}

#[test]
fn a_segment_with_an_index_is_not_read() {
    let path = tempfile::tempdir().expect("a directory");
    fill(path.path());
    let indexes = files(path.path(), ".index");
    assert!(indexes.len() > 4, "{indexes:?}");
    let opening_reads = || {
        let storage = Counting::open(path.path());
        let mut queue = open(&storage);
        assert_eq!(queue.counters(0).ready as u64, JOBS);
        assert!(queue.recovery().damage.is_empty());
        storage.read.load(Ordering::Relaxed)
    };
    let with = opening_reads();
    for index in indexes {
        std::fs::remove_file(index).expect("it is there");
    }
    let without = opening_reads();
    let bodies = JOBS * BODY as u64;
    assert!(without > bodies, "{without}");
    // The last three segments are read whole, and of the others only their ends.
    assert!(with < 4 * SEGMENT, "{with}");
}

#[test]
fn damage_behind_an_index_is_found_when_the_job_is_sent() {
    let path = tempfile::tempdir().expect("a directory");
    fill(path.path());
    let segment = &files(path.path(), "0000000001.log")[0];
    let mut bytes = std::fs::read(segment).expect("it is there");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(segment, bytes).expect("written");
    {
        let mut queue = open(&Counting::open(path.path()));
        assert!(queue.recovery().damage.is_empty(), "no body was read");
        // A step sends so many, and no more.
        let mut sent = 0;
        loop {
            match queue.lease(0, 1, ALL).expect("it reads").len() {
                0 => break,
                some => sent += some,
            }
        }
        assert_eq!(sent as u64, JOBS - 1);
        assert_eq!(queue.counters(0).damaged, 1);
    }
    std::fs::remove_file(&files(path.path(), "0000000001.index")[0]).expect("it is there");
    let queue = open(&Counting::open(path.path()));
    assert_eq!(queue.recovery().damage.len(), 1);
}

/// What a process sees that opens this queue now.
fn opened(storage: &Arc<Failing>) -> std::io::Result<SimulatedQueue> {
    let storage: Arc<dyn Storage> = Arc::clone(storage) as _;
    SimulatedQueue::open(storage, &QueueOptions::default(), SHORT, 0, 315)
}

const SHORT: u64 = 4 << 10;

/// Pushes the job of this sequence number, whose body says which it is.
fn push(queue: &mut SimulatedQueue, sequence: u64) {
    let identity = Identity {
        producer: Uuid::nil(),
        epoch: 0,
        sequence,
    };
    let job = NewJob::new(identity, Bytes::from(vec![sequence as u8; 500]));
    queue.push(0, &job).expect("there is room");
    queue.flush().expect("it writes");
}

/// A log of many short segments, whose jobs say who they are.
fn fill_short(storage: &Arc<Failing>, jobs: u64) -> SimulatedQueue {
    let mut queue = opened(storage).expect("it opens");
    for sequence in 0..jobs {
        push(&mut queue, sequence);
    }
    queue
}

fn bodies(queue: &mut SimulatedQueue, now: u64) -> Vec<u64> {
    let leased = queue.lease(now, 1, ALL).expect("it reads");
    let sequences = leased.iter().map(|job| {
        let sequence = job.identity.sequence;
        assert_eq!(job.body, vec![sequence as u8; 500]);
        sequence
    });
    sequences.collect()
}

#[test]
fn a_disk_that_fails_at_any_step_of_opening_loses_nothing() {
    const JOBS: u64 = 12;
    const BROKEN: u64 = 6;
    let path = tempfile::tempdir().expect("a directory");
    let storage = Failing::open(path.path()).expect("nobody else has it");
    drop(fill_short(&storage, JOBS));
    let body_at = |bytes: &[u8]| {
        bytes
            .windows(500)
            .position(|part| part == [BROKEN as u8; 500])
    };
    // Without indexes, so that all of it is read; and one job is to be set aside.
    let log = files(path.path(), ".log").into_iter().map(|file| {
        let mut bytes = std::fs::read(&file).expect("it is there");
        if let Some(body) = body_at(&bytes) {
            bytes[body + 100] ^= 1;
        }
        (file.file_name().expect("a name").to_owned(), bytes)
    });
    let log: Vec<_> = log.collect();
    let left: Vec<u64> = (0..JOBS).filter(|sequence| *sequence != BROKEN).collect();
    for fault in [Fault::Nth, Fault::FromNth] {
        let mut failed = 0;
        for nth in 0.. {
            let path = tempfile::tempdir().expect("a directory");
            for (name, bytes) in &log {
                std::fs::write(path.path().join(name), bytes).expect("written");
            }
            let storage = Failing::open(path.path()).expect("nobody else has it");
            storage.fail(fault(nth));
            let is_refused = opened(&storage).is_err();
            let asked = storage.mend();
            failed += u64::from(is_refused);
            // As the next process finds it.
            let mut queue = opened(&storage).expect("all is well again");
            assert_eq!(queue.recovery().damage.len(), 1, "after {nth}");
            assert_eq!(bodies(&mut queue, 0), left, "after {nth}");
            let mut copies = files(path.path(), "").into_iter();
            let is_whole = |path: std::path::PathBuf| {
                let is_copy = path.to_string_lossy().contains("damaged-");
                let bytes = std::fs::read(path).expect("it is there");
                is_copy && bytes.windows(399).any(|part| part == [BROKEN as u8; 399])
            };
            assert!(copies.any(is_whole), "not set aside: {nth}");
            if asked <= nth {
                assert!(!is_refused, "nothing failed");
                break;
            }
        }
        assert!(failed > 10, "only {failed} openings failed");
    }
}

#[test]
fn a_segment_that_is_missing_is_reported() {
    let path = tempfile::tempdir().expect("a directory");
    let storage = Failing::open(path.path()).expect("nobody else has it");
    drop(fill_short(&storage, 40));
    let segments = files(path.path(), ".log");
    assert!(segments.len() > 4, "{segments:?}");
    std::fs::remove_file(&segments[2]).expect("it is there");
    for _ in 0..2 {
        let mut queue = opened(&storage).expect("the others are there");
        let damage = &queue.recovery().damage;
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert_eq!((damage[0].segment, damage[0].bytes), (3, 0));
        let left = queue.counters(0).ready;
        assert!((20..40).contains(&left), "{left}");
    }
}

#[test]
fn an_old_segment_that_cannot_be_removed_brings_no_job_back() {
    let path = tempfile::tempdir().expect("a directory");
    let storage = Failing::open(path.path()).expect("nobody else has it");
    let mut queue = fill_short(&storage, 40);
    storage.fail(Fault::Stays("0000000001.log"));
    for job in queue.lease(0, 1, ALL).expect("it reads") {
        let told = queue.answer(0, job.number, job.token, Answer::Done);
        told.expect("it has the lease");
    }
    queue.flush().expect("all but one can be removed");
    assert_eq!(queue.counters(0).jobs, 0);
    assert!(files(path.path(), ".log")[0].ends_with("0000000001.log"));
    drop(queue);
    // Every job of it is done, as later segments say; so they stay as well.
    let mut queue = opened(&storage).expect("it opens");
    assert!(queue.recovery().damage.is_empty());
    assert_eq!(queue.counters(0).jobs, 0, "what is done stays done");
    // Once it can be removed, all of them are.
    storage.mend();
    drop(fill_and_do(queue, 40));
    let segments = files(path.path(), ".log");
    assert!(segments.len() < 5, "{segments:?}");
}

/// Pushes a job from this sequence number on, and does it.
fn fill_and_do(mut queue: SimulatedQueue, sequence: u64) -> SimulatedQueue {
    for sequence in sequence..sequence + 10 {
        push(&mut queue, sequence);
        for job in queue.lease(0, 1, ALL).expect("it reads") {
            let told = queue.answer(0, job.number, job.token, Answer::Done);
            told.expect("it has the lease");
        }
        queue.flush().expect("it writes");
    }
    queue
}

#[test]
fn a_log_of_another_version_is_refused_and_left_as_it_is() {
    let path = tempfile::tempdir().expect("a directory");
    let storage = Failing::open(path.path()).expect("nobody else has it");
    drop(fill_short(&storage, 40));
    let segments = files(path.path(), ".log");
    let newest = segments.last().expect("some");
    let mut bytes = std::fs::read(newest).expect("it is there");
    let mut half = bytes[..32].to_vec();
    half[12] = 2;
    let checksum = twox_hash::XxHash3_64::oneshot(&half[..24]);
    half[24..].copy_from_slice(&checksum.to_le_bytes());
    bytes[..64].copy_from_slice(&[half.clone(), half].concat());
    std::fs::write(newest, bytes).expect("written");
    let contents = || {
        let files = files(path.path(), "").into_iter();
        let with_bytes = files.map(|file| (std::fs::read(&file).expect("it is there"), file));
        with_bytes.collect::<Vec<_>>()
    };
    let before = contents();
    let refused = opened(&storage).expect_err("it cannot be read");
    assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    assert!(refused.to_string().contains("version 2"), "{refused}");
    assert!(contents() == before, "nothing was changed");
}

#[test]
fn a_queue_is_open_once_and_says_what_is_wrong_with_its_options() {
    let path = tempfile::tempdir().expect("a directory");
    let directory = path.path().join("made/with/all/that/it/is/in");
    let queue = Durable::open(&directory, QueueOptions::default()).expect("it opens");
    let again = Durable::open(&directory, QueueOptions::default());
    let again = again.expect_err("it is open").to_string();
    assert!(again.contains("has this queue open"), "{again}");
    drop(queue);
    let groups = |names: &[&str]| {
        let groups = Groups::new(names.iter().copied()).expect("names");
        QueueOptions::default().with_groups(groups)
    };
    let more = Durable::open(&directory, groups(&["workers", "audit"]));
    drop(more.expect("one behind those that were there"));
    for fewer in [groups(&["workers"]), groups(&["audit", "workers"])] {
        let refused = Durable::open(&directory, fewer).expect_err("one is taken away");
        let refused = refused.to_string();
        assert!(refused.contains("none taken away"), "{refused}");
    }
    drop(Durable::open(&directory, groups(&["workers", "audit"])).expect("it is as it was"));
}

#[tokio::test]
async fn a_smaller_limit_keeps_what_is_there_and_takes_no_more() {
    let path = tempfile::tempdir().expect("a directory");
    let new = |sequence, bytes| {
        let identity = Identity {
            producer: Uuid::nil(),
            epoch: 0,
            sequence,
        };
        NewJob::new(identity, Bytes::from(vec![1; bytes]))
    };
    let queue = Durable::open(path.path(), QueueOptions::default()).expect("it opens");
    let now = tokio::time::Instant::now;
    let pushed = queue.push(vec![new(0, 5000), new(1, 10)], now()).await;
    assert!(pushed.expect("it is safe").iter().all(Result::is_ok));
    queue.close().await.expect("it is safe");
    drop(queue);
    let smaller = QueueOptions::default()
        .with_job_bytes_max(1000)
        .with_jobs_max(1);
    let queue = Durable::open(path.path(), smaller).expect("it opens");
    let pushed = queue.push(vec![new(2, 1001)], now()).await.expect("told");
    let is_too_large = |error| matches!(error, QueueError::TooLarge { max: 1000, .. });
    assert!(
        pushed[0]
            .as_ref()
            .is_err_and(|error| is_too_large(error.clone()))
    );
    let pushed = queue.push(vec![new(3, 1)], now()).await.expect("told");
    assert!(matches!(pushed[0], Err(QueueError::Full)));
    let worker = queue.worker("workers").await.expect("the group");
    let until = now() + std::time::Duration::from_secs(30);
    let leased = worker.lease(ALL, until).await.expect("jobs");
    let bytes: Vec<usize> = leased.iter().map(|job| job.body.len()).collect();
    assert_eq!(bytes, [5000, 10]);
}

#[tokio::test]
async fn a_job_is_no_larger_than_a_record_can_be() {
    const LARGEST: usize = (256 << 20) - (4 << 10);
    let path = tempfile::tempdir().expect("a directory");
    let options = QueueOptions::default()
        .with_job_bytes_max(usize::MAX)
        .with_bytes_max(u64::MAX);
    let queue = Durable::open(path.path(), options).expect("it opens");
    assert_eq!(queue.capabilities().job_bytes_max, LARGEST);
    let identity = Identity {
        producer: Uuid::nil(),
        epoch: 0,
        sequence: 0,
    };
    let job = NewJob::new(identity, Bytes::from(vec![0; LARGEST + 1]));
    let pushed = queue.push(vec![job], tokio::time::Instant::now()).await;
    let pushed = pushed.expect("told");
    assert!(matches!(
        pushed[0],
        Err(QueueError::TooLarge { max: LARGEST, .. })
    ));
}
