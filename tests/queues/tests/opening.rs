//! What opening a queue on disk costs, in bytes: little is made, and of a segment with an index little is read.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bowline::queue::{
    Credit, Directory, Durable, Identity, NewJob, QueueOptions, SimulatedQueue, Storage,
};
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
        let sent = queue.lease(0, 1, ALL).expect("it reads");
        assert_eq!(sent.len() as u64, JOBS - 1);
        assert_eq!(queue.counters(0).damaged, 1);
    }
    std::fs::remove_file(&files(path.path(), "0000000001.index")[0]).expect("it is there");
    let queue = open(&Counting::open(path.path()));
    assert_eq!(queue.recovery().damage.len(), 1);
}
