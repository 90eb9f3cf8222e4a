//! A disk that cannot be read for a while, whole or in part: that is no damage. Whoever asks is told, nothing is lost or
//! set aside or counted as an attempt, and all is well again as soon as the disk is.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline::Work;
use bowline::queue::{
    Answer, Attempts, Credit, Durable, Engine, EngineWorker, Identity, LeasedJob, NewJob,
    QueueError, QueueOptions,
};
use bowline_test_queues::failing::{Failing, Fault};
use bytes::Bytes;
use tokio::time::sleep;
use uuid::Uuid;

const MILLISECOND: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(60);
const SEGMENT: u64 = 64 << 10;

const ALL: Credit = Credit {
    jobs: 1000,
    bytes: 64 << 20,
    takes_any_first: true,
};

/// The queue on this disk, of which nothing is in memory.
async fn open(storage: &Arc<Failing>) -> Durable {
    let builder = Durable::builder(QueueOptions::default()).segment_bytes(SEGMENT);
    builder.open_on(Arc::clone(storage) as _).expect("it opens")
}

/// A disk that nobody else has any more.
async fn disk(path: &Path) -> Arc<Failing> {
    let until = Instant::now() + LONG;
    loop {
        match Failing::open(path) {
            Ok(storage) => return storage,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        sleep(10 * MILLISECOND).await;
    }
}

/// A job that says which it is. The first two have the same key.
fn job(sequence: u64) -> NewJob {
    let identity = Identity {
        producer: Uuid::nil(),
        epoch: 0,
        sequence,
    };
    let mut job = NewJob::new(identity, Bytes::from(vec![sequence as u8; 1000]));
    job.key = (sequence < 2).then(|| Bytes::from_static(b"key"));
    job
}

async fn push(engine: &Durable, jobs: Range<u64>) {
    for sequence in jobs {
        let until = tokio::time::Instant::now() + LONG;
        let pushed = engine.push(vec![job(sequence)], until).await;
        pushed.expect("it is safe")[0].as_ref().expect("it is new");
    }
}

async fn lease(worker: &dyn EngineWorker) -> Result<Vec<LeasedJob>, QueueError> {
    let until = tokio::time::Instant::now() + 100 * MILLISECOND;
    worker.lease(ALL, until).await
}

fn assert_not_done<T: std::fmt::Debug>(told: Result<T, QueueError>) {
    match told {
        Err(QueueError::Unavailable { work, reason }) => {
            assert_eq!(work, Work::NotDone);
            assert!(reason.contains("cannot be read"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

fn copies(path: &Path) -> usize {
    let files = std::fs::read_dir(path).expect("a directory");
    let names = files.map(|file| file.expect("a file").file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("damaged-"))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_cannot_be_read_is_no_damage_and_is_read_again() {
    const JOBS: u64 = 20;
    let folder = tempfile::tempdir().expect("a directory");
    let storage = disk(folder.path()).await;
    let engine = open(&storage).await;
    push(&engine, 0..JOBS).await;
    let worker = engine.worker("workers").await.expect("the group");
    let leased = lease(&*worker).await.expect("all is well");
    let dead = &leased[leased.len() - 1];
    let bury = (dead.number, dead.token, Answer::Bury("never".into()));
    let others = leased[..leased.len() - 1].iter();
    let release = others.map(|job| (job.number, job.token, Answer::Release));
    let answers = std::iter::once(bury).chain(release).collect();
    let told = worker.answer(answers).await.expect("all is well");
    assert!(told.iter().all(Result::is_ok));
    engine.close().await.expect("it is safe");
    drop((worker, engine, storage));

    let storage = disk(folder.path()).await;
    let engine = open(&storage).await;
    let worker = engine.worker("workers").await.expect("the group");
    storage.fail(Fault::Unreadable(".log"));
    assert_not_done(lease(&*worker).await);
    let letters = engine.dead_letters("workers", None, 10).await;
    assert_not_done(letters);
    let counters = engine.counters("workers").await.expect("they are known");
    assert_eq!((counters.damaged, counters.jobs as u64), (0, JOBS));
    assert_eq!(counters.dead, 1);
    // Pushing needs no reading.
    push(&engine, JOBS..JOBS + 1).await;

    storage.mend();
    let until = Instant::now() + LONG;
    let mut found = BTreeSet::new();
    // The first of a key is done before the next is sent.
    while found.len() < JOBS as usize {
        for job in lease(&*worker).await.expect("it can be read") {
            assert_eq!(job.earlier, Attempts::default(), "no attempt was made");
            let sequence = job.identity.sequence;
            assert_eq!(job.body, vec![sequence as u8; 1000]);
            assert!(found.insert(sequence), "{sequence} is sent once");
            let answer = vec![(job.number, job.token, Answer::Done)];
            let told = worker.answer(answer).await.expect("it can be written");
            assert_eq!(told, [Ok(())]);
        }
        assert!(Instant::now() < until, "only {found:?} came back");
    }
    let letters = engine.dead_letters("workers", None, 10).await;
    let letters = letters.expect("they can be read");
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].body.len(), 1000);
    assert_eq!(engine.damage(), []);
    assert_eq!(copies(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_disk_that_cannot_be_read_holds_back_what_is_there_and_its_keys() {
    const JOBS: u64 = 150;
    let folder = tempfile::tempdir().expect("a directory");
    let storage = disk(folder.path()).await;
    let engine = open(&storage).await;
    // The first of the key is in segment 1, the next of it in another.
    push(&engine, 0..1).await;
    engine.close().await.expect("it is safe");
    drop((engine, storage));
    let storage = disk(folder.path()).await;
    let engine = open(&storage).await;
    push(&engine, 1..JOBS).await;
    engine.close().await.expect("it is safe");
    drop((engine, storage));

    let storage = disk(folder.path()).await;
    let engine = open(&storage).await;
    let worker = engine.worker("workers").await.expect("the group");
    storage.fail(Fault::Unreadable("0000000001.log"));
    let until = Instant::now() + LONG;
    let (mut found, mut refused) = (Vec::new(), 0);
    // Until it has been tried again: with the others, and then alone.
    while found.len() as u64 + 2 < JOBS || refused == 0 {
        match lease(&*worker).await {
            Ok(jobs) => found.extend(jobs.iter().map(|job| job.identity.sequence)),
            refusal => {
                assert_not_done(refusal);
                refused += 1;
            }
        }
        assert!(Instant::now() < until, "{found:?}, {refused} refusals");
    }
    assert_eq!(found, (2..JOBS).collect::<Vec<_>>());

    storage.mend();
    for sequence in 0..2 {
        let leased = loop {
            let leased = lease(&*worker).await.expect("it can be read");
            assert!(Instant::now() < until, "{sequence} is not back");
            if !leased.is_empty() {
                break leased;
            }
        };
        assert_eq!(leased.len(), 1, "one of a key at a time");
        assert_eq!(leased[0].identity.sequence, sequence);
        let answer = vec![(leased[0].number, leased[0].token, Answer::Done)];
        worker.answer(answer).await.expect("it can be written");
    }
    assert_eq!(engine.damage(), []);
    assert_eq!(copies(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_job_that_is_damaged_is_set_aside_whole_once_there_is_room() {
    const BODY: usize = 300_000;
    let folder = tempfile::tempdir().expect("a directory");
    let storage = disk(folder.path()).await;
    let engine = open(&storage).await;
    let identity = Identity {
        producer: Uuid::nil(),
        epoch: 0,
        sequence: 0,
    };
    let job = NewJob::new(identity, Bytes::from(vec![7; BODY]));
    let until = tokio::time::Instant::now() + LONG;
    let pushed = engine.push(vec![job], until).await.expect("all is well");
    assert!(pushed[0].is_ok());
    engine.close().await.expect("it is safe");
    drop((engine, storage));

    let storage = disk(folder.path()).await;
    let engine = open(&storage).await;
    let worker = engine.worker("workers").await.expect("the group");
    // After it was opened, so that it is found when it is to be sent.
    let is_its = |path: &std::path::PathBuf| {
        let bytes = std::fs::read(path).expect("it is there");
        bytes.windows(BODY).any(|window| window == vec![7; BODY])
    };
    let files = std::fs::read_dir(folder.path()).expect("a directory");
    let mut paths = files.map(|file| file.expect("a file").path());
    let segment = paths.find(is_its).expect("a segment has it");
    let mut bytes = std::fs::read(&segment).expect("it is there");
    let at = bytes.iter().position(|byte| *byte == 7).expect("its body") + BODY / 2;
    bytes[at] ^= 1;
    std::fs::write(&segment, &bytes).expect("written");

    storage.fail(Fault::Full);
    assert_not_done(lease(&*worker).await);
    let counters = engine.counters("workers").await.expect("they are known");
    assert_eq!((counters.damaged, counters.jobs), (0, 1));
    storage.mend();
    let until = Instant::now() + LONG;
    while engine.damage().is_empty() {
        let leased = lease(&*worker).await.expect("it can be read");
        assert!(leased.is_empty(), "damaged, and sent");
        assert!(Instant::now() < until, "never found");
    }
    let counters = engine.counters("workers").await.expect("they are known");
    assert_eq!((counters.damaged, counters.jobs), (1, 0));
    let damage = &engine.damage()[0];
    let name = format!("damaged-{:010}-{:010}", damage.segment, damage.offset);
    let copy = std::fs::read(folder.path().join(name)).expect("a copy");
    let from = damage.offset as usize;
    assert_eq!(copy, bytes[from..from + damage.bytes as usize]);
    assert!(copy.len() > BODY, "all of it");
}
