//! A store that is away, or goes away in between.

use super::*;

/// A store that is gone when it is told to be.
struct Fragile {
    memory: MemoryStore,
    gone: Arc<AtomicBool>,
    /// What is to be begun is begun all the same, and only the answer is lost.
    hears: bool,
}

impl Store for Fragile {
    type Transaction = NoTransaction;

    async fn apply(&self, key: &Key, change: Change) -> Result<Verdict, StoreError> {
        let gone = self.gone.load(Ordering::Relaxed);
        if gone && !(self.hears && matches!(change, Change::Begin(_))) {
            return Err(StoreError::new("gone"));
        }
        let verdict = self.memory.apply(key, change).await;
        match gone {
            true => Err(StoreError::new("gone")),
            false => verdict,
        }
    }

    async fn watch(&self, key: &Key) -> Result<(), StoreError> {
        self.memory.watch(key).await
    }

    async fn expire(&self, max: usize) -> Result<usize, StoreError> {
        self.memory.expire(max).await
    }

    async fn in_doubt(&self, max: usize) -> Result<Vec<Key>, StoreError> {
        self.memory.in_doubt(max).await
    }
}

#[tokio::test(start_paused = true)]
async fn without_its_store_nothing_is_begun_and_nothing_is_said_to_be_done() {
    let count = Arc::default();
    let gone = Arc::new(AtomicBool::new(true));
    let store = Fragile {
        memory: MemoryStore::new(),
        gone: Arc::clone(&gone),
        hears: false,
    };
    let once = Once::builder().build(store).expect("good terms");
    let ended = call(&once, request(id("a"), "x"), &count, Ok(reply("one"))).await;
    assert_eq!(reason(&ended), Some(Reason::StoreUnavailable));
    assert_eq!(ended.unwrap_err().work(), Work::NotDone);
    assert_eq!(count.load(Ordering::Relaxed), 0);

    // It goes away while the handler runs, and comes back: the outcome is said again until it is recorded.
    gone.store(false, Ordering::Relaxed);
    let goes = Arc::clone(&gone);
    let work = async move {
        goes.store(true, Ordering::Relaxed);
        Ok(reply("one"))
    };
    let comes_back = async {
        sleep(Duration::from_secs(2)).await;
        gone.store(false, Ordering::Relaxed);
    };
    let call_ = call_with(
        &once,
        request(id("b"), "x"),
        Recovery::InDoubt,
        &count,
        work,
    );
    let (ended, ()) = tokio::join!(call_, comes_back);
    assert!(!ended.expect("recorded in the end").replayed);

    // It stays away: the caller is told that nobody knows.
    let goes = Arc::clone(&gone);
    let work = async move {
        goes.store(true, Ordering::Relaxed);
        Ok(reply("one"))
    };
    let ended = call_with(
        &once,
        request(id("c"), "x"),
        Recovery::InDoubt,
        &count,
        work,
    )
    .await;
    let status = ended.unwrap_err();
    assert_eq!(status.reason(), Some(Reason::StoreUnavailable));
    assert_eq!(status.work(), Work::OutcomeUnknown);
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_a_store_that_is_away_is_told_at_once_and_what_was_begun_unheard_is_given_back()
 {
    let count = Arc::default();
    let gone = Arc::new(AtomicBool::new(true));
    let store = Fragile {
        memory: MemoryStore::new(),
        gone: Arc::clone(&gone),
        hears: true,
    };
    let once = Once::builder().build(store).expect("good terms");
    let begun = Instant::now();
    let ended = call(&once, request(id("a"), "x"), &count, Ok(reply("one"))).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(reason(&ended), Some(Reason::StoreUnavailable));
    assert_eq!(ended.unwrap_err().work(), Work::NotDone);

    gone.store(false, Ordering::Relaxed);
    let ended = call(&once, request(id("a"), "x"), &count, Ok(reply("one"))).await;
    assert!(!ended.expect("it is run now").replayed);
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "before the lease of the first has run out"
    );
    assert_eq!(count.load(Ordering::Relaxed), 1);
}
