//! Bits are flipped in a queue's log, and its files cut off: nothing that was damaged is served as good, and what
//! was not damaged is served.
//!
//! `BOWLINE_FLIPS=10000 cargo test --release -p bowline-test-queues --test damage` is the long form.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use bowline::queue::{Answer, Credit, Identity, NewJob, QueueOptions, SimulatedQueue, Storage};
use bytes::Bytes;
use fastrand::Rng;
use uuid::Uuid;

const JOBS: u64 = 60;
/// Damages, where the environment does not say.
const ROUNDS: u64 = 1_000;
const SEGMENT: u64 = 4 << 10;

/// Files in memory.
#[derive(Clone, Debug, Default)]
struct Files(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Files {
    fn with<R>(&self, name: &str, work: impl FnOnce(&mut Vec<u8>) -> R) -> io::Result<R> {
        let mut files = self.0.lock().expect("no panic under it");
        let file = files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(work(file))
    }

    fn copy(&self) -> Self {
        let files = self.0.lock().expect("no panic under it").clone();
        Self(Arc::new(Mutex::new(files)))
    }
}

impl Storage for Files {
    fn list(&self) -> io::Result<Vec<String>> {
        let files = self.0.lock().expect("no panic under it");
        Ok(files.keys().cloned().collect())
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<()> {
        let mut files = self.0.lock().expect("no panic under it");
        files.insert(name.to_owned(), vec![0; bytes as usize]);
        Ok(())
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.with(name, |file| {
            let from = (offset as usize).min(file.len());
            let to = (from + into.len()).min(file.len());
            into[..to - from].copy_from_slice(&file[from..to]);
            to - from
        })
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(name, |file| {
            let end = offset as usize + bytes.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            file[offset as usize..end].copy_from_slice(bytes);
        })
    }

    fn sync(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, name: &str, bytes: u64) -> io::Result<()> {
        self.with(name, |file| file.resize(bytes as usize, 0))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().expect("no panic under it").remove(name);
        Ok(())
    }
}

fn body(index: u64) -> Bytes {
    // Each says who it is, and fills itself so that any change shows.
    let text = format!("{index} ").repeat(4 + (index % 40) as usize);
    Bytes::from(text)
}

fn open(files: &Files) -> SimulatedQueue {
    let storage = Arc::new(files.clone());
    SimulatedQueue::open(storage, &QueueOptions::default(), SEGMENT, 0, 314).expect("it opens")
}

const ALL: Credit = Credit {
    jobs: usize::MAX,
    bytes: usize::MAX,
    takes_any_first: true,
};

/// A log of a few segments, of which every fourth job is done.
fn log() -> (Files, Vec<u64>) {
    let files = Files::default();
    let mut queue = open(&files);
    for index in 0..JOBS {
        let identity = Identity {
            producer: Uuid::nil(),
            epoch: 0,
            sequence: index,
        };
        queue
            .push(0, &NewJob::new(identity, body(index)))
            .expect("there is room");
    }
    queue.flush().expect("it writes");
    let mut left = Vec::new();
    for job in queue.lease(0, 1, ALL).expect("it reads") {
        let answer = match job.number.0.is_multiple_of(4) {
            true => Answer::Done,
            false => Answer::Release,
        };
        if answer == Answer::Release {
            left.push(job.number.0);
        }
        queue
            .answer(0, job.number, job.token, answer)
            .expect("it has the lease");
    }
    queue.flush().expect("it writes");
    let names = files.list().expect("names");
    assert!(names.iter().any(|name| name.ends_with(".index")));
    (files, left)
}

#[test]
fn nothing_damaged_is_served_as_good() {
    let (whole, left) = log();
    let asked = std::env::var("BOWLINE_FLIPS").ok();
    let rounds = asked.and_then(|asked| asked.parse().ok()).unwrap_or(ROUNDS);
    let mut random = Rng::with_seed(314);
    let (mut missing, mut again, mut reported) = (0, 0, 0u64);
    for round in 0..rounds {
        let files = whole.copy();
        let names = files.list().expect("names");
        let name = &names[random.usize(0..names.len())];
        let is_cut = round.is_multiple_of(10);
        files
            .with(name, |file| {
                let used = file.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
                let at = random.usize(0..used);
                match is_cut {
                    true => file.truncate(at),
                    false => file[at] ^= 1 << random.u8(0..8),
                }
            })
            .expect("it is there");
        let mut queue = open(&files);
        let recovery = queue.recovery().clone();
        let mut served = Vec::new();
        // Leases from before begin anew: they are over after that.
        for now in [0, 31_000, 62_000] {
            for job in queue.lease(now, 2, ALL).expect("it reads") {
                let index = job.identity.sequence;
                assert_eq!(job.body, body(index), "round {round}: damaged, and served");
                served.push(job.number.0);
            }
        }
        served.sort_unstable();
        served.dedup();
        let lost = left
            .iter()
            .filter(|number| !served.contains(number))
            .count();
        missing += lost;
        again += served.len() + lost - left.len();
        // Of a segment with an index a job is read when it is to be sent.
        let is_set_aside = queue.counters(62_000).damaged > 0;
        let is_reported = !recovery.damage.is_empty() || recovery.torn_bytes > 0 || is_set_aside;
        reported += u64::from(is_reported);
        assert!(
            lost == 0 || is_reported || is_cut,
            "round {round}: {lost} jobs are gone, and nothing was said"
        );
        assert!(
            lost <= 1 || is_cut,
            "round {round}: one bit takes {lost} jobs"
        );
        // The queue goes on.
        let identity = Identity {
            producer: Uuid::nil(),
            epoch: 1,
            sequence: 0,
        };
        let more = NewJob::new(identity, body(0));
        queue.push(100_000, &more).expect("there is room");
        queue.flush().expect("it writes");
    }
    println!(
        "{rounds} rounds: {reported} reported, {missing} jobs missing, {again} done ones served again"
    );
}
