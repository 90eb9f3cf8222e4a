//! What runs is known to be alive: with many leases, slow stores, clocks that jump, runtimes that end.

use super::*;
use crate::call::CallService;
use std::sync::atomic::AtomicUsize;

/// A store whose operations take their time, counts what it is asked to begin, and may be unreachable.
#[derive(Default)]
struct Slow {
    memory: MemoryStore,
    apply: Duration,
    expire: Duration,
    begun: AtomicUsize,
    released: AtomicUsize,
    /// 1: nothing reaches it; 2: it does nothing, and nobody knows.
    away: AtomicU64,
}

impl Store for Slow {
    type Transaction = NoTransaction;

    async fn apply(&self, key: &Key, change: Change) -> Result<Verdict, StoreError> {
        let counter = match change {
            Change::Begin(_) => &self.begun,
            Change::Release { .. } => &self.released,
            _ => &AtomicUsize::new(0),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        sleep(self.apply).await;
        match self.away.load(Ordering::Relaxed) {
            0 => self.memory.apply(key, change).await,
            1 => Err(StoreError::not_applied("refused")),
            _ => Err(StoreError::new("away")),
        }
    }

    async fn watch(&self, key: &Key) -> Result<(), StoreError> {
        self.memory.watch(key).await
    }

    async fn expire(&self, max: usize) -> Result<usize, StoreError> {
        sleep(self.expire).await;
        self.memory.expire(max).await
    }

    async fn in_doubt(&self, max: usize) -> Result<Vec<Key>, StoreError> {
        self.memory.in_doubt(max).await
    }
}

fn task(name: &str, recovery: Recovery) -> Task {
    let key = RequestKey::new(name.to_owned()).expect("short");
    Task::new("t", key).recovery(recovery)
}

async fn works_for<S: Store>(
    once: Once<S>,
    name: String,
    recovery: Recovery,
    time: Duration,
    runs: Arc<AtomicUsize>,
) -> Result<String, Status> {
    let work = move || async move {
        let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
        sleep(time).await;
        Ok(format!("run {run}"))
    };
    once.run(task(&name, recovery), work).await
}

#[tokio::test(start_paused = true)]
async fn many_leases_are_renewed_in_time_by_a_slow_store() {
    let store = Slow {
        apply: Duration::from_millis(2),
        ..Slow::default()
    };
    let lease = Duration::from_secs(1);
    let once = Once::builder()
        .lease(lease)
        .build(store)
        .expect("good terms");
    let runs = Arc::new(AtomicUsize::new(0));
    let mut all = tokio::task::JoinSet::new();
    for number in 0..1000 {
        let (once, runs) = (once.clone(), Arc::clone(&runs));
        let (name, time) = (number.to_string(), Duration::from_secs(6));
        all.spawn(works_for(once, name, Recovery::InDoubt, time, runs));
    }
    for _ in 0..50 {
        sleep(Duration::from_millis(100)).await;
        let doubted = once.store().in_doubt(10_000).await.expect("memory");
        assert_eq!(doubted.len(), 0, "all of them live");
    }
    while let Some(ended) = all.join_next().await {
        ended.expect("no panic").expect("done");
    }
    assert_eq!(once.counters().running, 0);
}

#[tokio::test(start_paused = true)]
async fn leases_are_renewed_while_the_store_forgets_slowly() {
    let store = Slow {
        expire: Duration::from_millis(900),
        ..Slow::default()
    };
    let lease = Duration::from_millis(300);
    let once = Once::builder()
        .lease(lease)
        .build(store)
        .expect("good terms");
    let runs = Arc::new(AtomicUsize::new(0));
    let run = || {
        let (once, runs) = (once.clone(), Arc::clone(&runs));
        let time = Duration::from_millis(2500);
        tokio::spawn(works_for(once, "1".to_owned(), Recovery::Rerun, time, runs))
    };
    let first = run();
    sleep(Duration::from_millis(1000)).await;
    let second = run();
    for ended in [first, second] {
        assert_eq!(ended.await.expect("no panic").expect("done"), "run 1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_ends_no_live_attempt() {
    for recovery in [Recovery::Rerun, Recovery::InDoubt] {
        for hours in [1, -1] {
            let clock = Arc::new(AtomicU64::new(1_800_000_000_000));
            let manual = Clock::Manual(Arc::clone(&clock));
            let store = MemoryStore::with_clock(Bounds::default(), manual);
            let once = Once::builder().build(store).expect("good terms");
            let runs = Arc::new(AtomicUsize::new(0));
            let run = || {
                let (once, runs) = (once.clone(), Arc::clone(&runs));
                let time = Duration::from_millis(500);
                tokio::spawn(works_for(once, "1".to_owned(), recovery, time, runs))
            };
            let first = run();
            sleep(Duration::from_millis(100)).await;
            let jump = hours * HOUR.as_millis() as i64;
            let now = clock.load(Ordering::Relaxed);
            clock.store(now.saturating_add_signed(jump), Ordering::Relaxed);
            assert_eq!(once.in_doubt(10).await.expect("memory"), []);
            let second = run();
            for ended in [first, second] {
                assert_eq!(ended.await.expect("no panic").expect("done"), "run 1");
            }
        }
    }
}

#[test]
fn leases_in_this_process_do_not_see_the_time_of_day() {
    let clock = crate::once::store::SteadyClock::default();
    let begun = clock.now();
    let later = clock.now();
    assert!(later.steady >= begun.steady);
    let (wall, steady) = (begun.wall, begun.steady);
    assert!(wall.since(steady).max(steady.since(wall)) < Duration::from_secs(10));
    // A lease is compared by the one, the age of a key and an outcome by the other.
    let claim = |number| Claim {
        epoch: Epoch { owner: 1, number },
        fingerprint: Fingerprint::of_bytes(b""),
        recovery: Recovery::InDoubt,
        lease: Duration::from_secs(30),
        age: Age {
            created: Some(wall),
            retention: HOUR,
            clock_skew_max: Duration::ZERO,
        },
    };
    let (_, begun) = step(None, begun, Change::Begin(claim(1)));
    let Write::Put(record) = begun else {
        panic!("{begun:?}");
    };
    let jumped = Now {
        wall: wall + 10 * HOUR,
        steady,
    };
    let (verdict, _) = step(Some(&record), jumped, Change::Begin(claim(2)));
    assert!(matches!(verdict, Verdict::InFlight { .. }), "{verdict:?}");
    let (verdict, _) = step(None, jumped, Change::Begin(claim(2)));
    assert_eq!(verdict, Verdict::KeyExpired);
}

#[test]
fn leases_are_renewed_in_whichever_runtime_lives() {
    let lease = Duration::from_millis(300);
    let once = Once::builder().lease(lease).build(MemoryStore::new());
    let once = once.expect("good terms");
    let runtime = || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        runtime.expect("a runtime")
    };
    let runs = Arc::new(AtomicUsize::new(0));
    let run = |name: &str, time: u64| {
        let (once, runs) = (once.clone(), Arc::clone(&runs));
        let time = Duration::from_millis(time);
        works_for(once, name.to_owned(), Recovery::Rerun, time, runs)
    };
    let (first, second) = (runtime(), runtime());
    first.block_on(run("0", 10)).expect("done");
    // The attempt is begun in the second while the tasks are the first's, which then ends.
    let long = second.spawn(run("1", 1500));
    std::thread::sleep(Duration::from_millis(50));
    drop(first);
    let doubled = second.block_on(async {
        sleep(Duration::from_millis(900)).await;
        run("1", 10).await
    });
    assert_eq!(doubled.expect("joined"), "run 2");
    assert_eq!(
        second.block_on(long).expect("no panic").expect("done"),
        "run 2"
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drains_ends_only_its_own_attempts() {
    let once = once();
    let (first, second) = (once.with_own_jobs(), once.with_own_jobs());
    let runs = Arc::new(AtomicUsize::new(0));
    let time = Duration::from_secs(2);
    let of_second = works_for(
        second.clone(),
        "1".to_owned(),
        Recovery::InDoubt,
        time,
        runs,
    );
    let of_second = tokio::spawn(of_second);
    sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    first.drain(begun + Duration::from_millis(300)).await;
    assert_eq!(
        begun.elapsed(),
        Duration::ZERO,
        "it has nothing to wait for"
    );
    assert_eq!(
        of_second.await.expect("no panic").expect("not ended"),
        "run 1"
    );
    second.drain(Instant::now() + Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_call_that_is_never_polled_claims_nothing() {
    use tower_layer::Layer;
    use tower_service::Service;
    let once = once();
    let inner = tower::service_fn(|_: RawRequest| async {
        sleep(Duration::from_millis(10)).await;
        Ok::<_, Status>(reply("done"))
    });
    let mut service = once.layer(inner);
    fn is_service<S: CallService>(_: &S) {}
    is_service(&service);
    drop(service.call(request(id("1"), "x")));
    assert_eq!(once.store().records(), 0);
    let ended = service.call(request(id("1"), "x")).await;
    assert!(!ended.expect("it ran").replayed);
}

#[tokio::test(start_paused = true)]
async fn a_question_needs_no_place_and_never_says_not_done() {
    let store = Slow::default();
    let once = Once::builder()
        .running_max(1)
        .build(store)
        .expect("good terms");
    let runs = Arc::new(AtomicUsize::new(0));
    let soon = Duration::ZERO;
    let done = works_for(
        once.clone(),
        "a".to_owned(),
        Recovery::InDoubt,
        soon,
        Arc::clone(&runs),
    );
    assert_eq!(done.await.expect("done"), "run 1");
    let long = Duration::from_secs(60);
    let running = works_for(
        once.clone(),
        "b".to_owned(),
        Recovery::InDoubt,
        long,
        Arc::clone(&runs),
    );
    let running = tokio::spawn(running);
    sleep(Duration::from_secs(1)).await;
    let refused = works_for(once.clone(), "c".to_owned(), Recovery::InDoubt, soon, runs).await;
    assert_eq!(
        refused.expect_err("no place").code(),
        Code::ResourceExhausted
    );
    assert_eq!(once.counters().overloaded, 1);
    let looked = once.result::<String>(task("a", Recovery::InDoubt)).await;
    assert_eq!(looked.expect("known"), "run 1");
    for away in [1, 2] {
        once.store().away.store(away, Ordering::Relaxed);
        let looked = once.result::<String>(task("a", Recovery::InDoubt)).await;
        let status = looked.expect_err("it is away");
        assert_eq!(
            (status.reason(), status.work()),
            (Some(Reason::StoreUnavailable), Work::OutcomeUnknown)
        );
    }
    running.abort();
    assert_eq!(
        super::super::attempt::keeps_no_outcomes().work(),
        Work::OutcomeUnknown
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_takes_no_places_and_refuses_as_not_done() {
    for away in [1, 2] {
        let store = Slow {
            apply: Duration::from_millis(3),
            away: AtomicU64::new(away),
            ..Slow::default()
        };
        let once = Once::builder()
            .running_max(32)
            .build(store)
            .expect("good terms");
        let begun = Instant::now();
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..24 {
            let once = once.clone();
            callers.spawn(async move {
                let mut number = 0;
                while begun.elapsed() < Duration::from_secs(10) {
                    number += 1;
                    let (name, runs) = (format!("{caller}/{number}"), Arc::default());
                    let ended =
                        works_for(once.clone(), name, Recovery::InDoubt, Duration::ZERO, runs);
                    let status = ended.await.expect_err("it is away");
                    assert_eq!(
                        (status.reason(), status.work()),
                        (Some(Reason::StoreUnavailable), Work::NotDone)
                    );
                    sleep(Duration::from_millis(20)).await;
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended.expect("each was told the same");
        }
        let store = once.store();
        let released = store.released.load(Ordering::Relaxed);
        match away {
            // Nothing can have been begun.
            1 => assert_eq!(released, 0),
            // What may have been is given back when the store is there again.
            _ => {
                let begun = store.begun.load(Ordering::Relaxed);
                store.away.store(0, Ordering::Relaxed);
                let before = store.released.load(Ordering::Relaxed);
                while store.released.load(Ordering::Relaxed) < before + begun {
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn waiters_leave_no_entries_behind() {
    let once = once();
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..1000 {
        for _ in 0..4 {
            let (once, runs) = (once.clone(), Arc::default());
            let time = Duration::from_micros(number % 50);
            callers.spawn(works_for(
                once,
                number.to_string(),
                Recovery::InDoubt,
                time,
                runs,
            ));
        }
    }
    while let Some(ended) = callers.join_next().await {
        ended.expect("no panic").expect("done");
    }
    assert_eq!(once.store().waited_for(), 0);
}

#[test]
fn waiters_of_one_key_leave_no_entry_however_they_meet() {
    use crate::once::waiters::Waiters;
    let waiters = Arc::new(Waiters::default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .build();
    let runtime = runtime.expect("a runtime");
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..4 {
        let waiters = Arc::clone(&waiters);
        tasks.spawn_on(
            async move {
                for round in 0..20_000u32 {
                    let key = Key::named("w", &id(&(round % 3).to_string()));
                    if number == 0 {
                        waiters.wake(&key);
                    } else {
                        let at_once = async { Ok::<_, StoreError>(false) };
                        let _ = waiters.wait(&key, at_once).await;
                    }
                }
            },
            runtime.handle(),
        );
    }
    runtime.block_on(async { while tasks.join_next().await.is_some() {} });
    assert_eq!(waiters.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_joiner_asks_seldom_whatever_its_clock_shows() {
    // An hour behind this machine's, so that every lease looks over here.
    let behind = Timestamp::now().milliseconds() - HOUR.as_millis() as u64;
    let clock = Clock::Manual(Arc::new(AtomicU64::new(behind)));
    let store = Slow {
        memory: MemoryStore::with_clock(Bounds::default(), clock),
        ..Slow::default()
    };
    let once = Once::builder().build(store).expect("good terms");
    let key = Key::named("t", &id("1"));
    let claim = Claim {
        epoch: Epoch {
            owner: 7,
            number: 7,
        },
        fingerprint: Fingerprint::of_bytes(&[]),
        recovery: Recovery::InDoubt,
        lease: Duration::from_secs(30),
        age: Age {
            created: None,
            retention: HOUR,
            clock_skew_max: Duration::ZERO,
        },
    };
    // By another replica.
    let begun = once.store().memory.apply(&key, Change::Begin(claim)).await;
    assert_eq!(begun.expect("memory"), Verdict::Run);
    let soon = Duration::ZERO;
    let joins = works_for(
        once.clone(),
        "1".to_owned(),
        Recovery::InDoubt,
        soon,
        Arc::default(),
    );
    assert!(
        timeout(Duration::from_secs(20), joins).await.is_err(),
        "it waits"
    );
    let asked = once.store().begun.load(Ordering::Relaxed);
    assert!((10..40).contains(&asked), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn the_outcome_of_what_may_be_rerun_is_unknown_once_it_was_begun() {
    let ask = |once: &Once, name: &str| {
        let mut ask = request(id(name), "");
        ask.outcome_only = true;
        ask.body = Bytes::new();
        let once = once.clone();
        async move {
            let work = |_| -> ReplyFuture { panic!("it is a question") };
            once.answer("", ask, Recovery::Rerun, work).await
        }
    };
    let count = Arc::default();
    let once = once();
    // Its process died: the attempt is ended with its task.
    let own = once.with_own_jobs();
    let died = call_with(
        &own,
        request(id("died"), "x"),
        Recovery::Rerun,
        &count,
        takes(60, "x"),
    );
    assert!(timeout(Duration::from_secs(1), died).await.is_err());
    own.drain(Instant::now()).await;
    sleep(Duration::from_secs(31)).await;
    // Its handler knows nothing.
    let fails = async { Err(Status::internal("?")) };
    let _ = call_with(
        &once,
        request(id("fails"), "x"),
        Recovery::Rerun,
        &count,
        fails,
    )
    .await;
    for name in ["died", "fails"] {
        let status = ask(&once, name).await.expect_err("nobody knows");
        assert_eq!(status.work(), Work::OutcomeUnknown, "{name}: {status}");
        // The next attempt does nothing, and says so; the one before may have.
        let refuses = async { Err(Status::unavailable("not now")) };
        let refused = call_with(
            &once,
            request(id(name), "x"),
            Recovery::Rerun,
            &count,
            refuses,
        )
        .await;
        assert_eq!(
            refused.expect_err("refused").work(),
            Work::OutcomeUnknown,
            "{name}"
        );
        let status = ask(&once, name).await.expect_err("nobody knows");
        assert_eq!(status.work(), Work::OutcomeUnknown, "{name}: {status}");
        let works = async { Ok(reply("two")) };
        let ended = call_with(
            &once,
            request(id(name), "x"),
            Recovery::Rerun,
            &count,
            works,
        )
        .await;
        assert!(!ended.expect("it is run again").replayed);
        assert!(ask(&once, name).await.expect("known").replayed);
    }
}
