//! A disk that fails beneath the embedded store.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bowline::once::{Age, Bounds, Change, Claim, Key, RedbStore, Store, Timestamp, Verdict};
use bowline::{Reason, RequestId, Work};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use crate::service::Service;
use crate::subjects::*;

/// Fails once it is told to.
#[derive(Debug)]
struct Failing {
    memory: InMemoryBackend,
    is_broken: Arc<AtomicBool>,
}

impl Failing {
    fn check(&self) -> io::Result<()> {
        match self.is_broken.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the disk is broken")),
            false => Ok(()),
        }
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.memory.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.memory.write(offset, data)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_disk_fails_begins_nothing_and_goes_on_with_the_rest() {
    let is_broken = Arc::new(AtomicBool::new(false));
    let backend = Failing {
        memory: InMemoryBackend::new(),
        is_broken: Arc::clone(&is_broken),
    };
    let database = redb::Database::builder().create_with_backend(backend);
    let database = Arc::new(database.expect("in memory"));
    let store = RedbStore::with_database(database, Bounds::default()).expect("opened");
    let service = Service::start(store).await;
    assert_eq!(service.add("before").await.expect("the disk is well"), 1);
    is_broken.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let refused = service.add("after").await.expect_err("it is broken");
        assert_eq!(
            (refused.reason(), refused.work()),
            (Some(Reason::StoreUnavailable), Work::NotDone)
        );
    }
    assert_eq!(service.total().await.expect("that keeps nothing"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_before_a_restart_may_run_again_and_is_not_called_not_done() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("outcomes");
    let id = RequestId::new();
    let key = Key::of_call("ann", 7, 1, &id);
    let age = Age {
        created: Some(Timestamp::now()),
        ..age()
    };
    let begin = |attempt| {
        Change::Begin(Claim {
            age,
            ..rerun(attempt)
        })
    };
    for attempt in 1..4 {
        let store = RedbStore::open(&file).expect("opened");
        if attempt > 1 {
            // Others come, and have it forget what is over.
            apply(&store, &attempt.to_string(), Change::Begin(claim(attempt))).await;
            store.expire(100).await.expect("there");
            let look = store.apply(&key, Change::Look(age)).await.expect("there");
            assert_eq!(
                look,
                Verdict::InDoubt {
                    epoch: epoch(attempt - 1)
                }
            );
        }
        let begun = store.apply(&key, begin(attempt)).await.expect("there");
        assert_eq!(begun, Verdict::Run);
    }
}
