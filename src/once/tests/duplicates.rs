//! What comes while the first attempt runs.

use super::*;

#[tokio::test(start_paused = true)]
async fn duplicates_join_the_call_in_flight_and_get_the_same_bytes() {
    let (once, count) = (once(), Arc::default());
    let gate = Arc::new(Semaphore::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (once, count, gate) = (once.clone(), Arc::clone(&count), Arc::clone(&gate));
        callers.spawn(async move {
            let work = async move {
                let _ = gate.acquire().await;
                Ok(reply("the one"))
            };
            call_with(
                &once,
                request(id("a"), "x"),
                Recovery::InDoubt,
                &count,
                work,
            )
            .await
        });
    }
    sleep(Duration::from_secs(1)).await;
    gate.add_permits(1);
    let ended: Vec<_> = callers.join_all().await;
    let bodies: Vec<_> = ended
        .iter()
        .map(|ended| &ended.as_ref().expect("done").body)
        .collect();
    assert!(bodies.iter().all(|body| *body == "the one"));
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert_eq!(once.counters().joined, 19);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_too_many_is_neither_begun_nor_claimed() {
    let once = Once::builder().running_max(1).build(MemoryStore::new());
    let (once, count) = (once.expect("good terms"), Arc::default());
    let slow = || takes(5, "in the end");
    let call = |name| {
        call_with(
            &once,
            request(id(name), "x"),
            Recovery::InDoubt,
            &count,
            slow(),
        )
    };
    let (first, second) = tokio::join!(call("a"), call("b"));
    assert_eq!(first.expect("there was room").body, "in the end");
    let status = second.expect_err("there was none");
    assert_eq!(
        (status.code(), status.work()),
        (Code::ResourceExhausted, Work::NotDone)
    );
    assert_eq!(count.load(Ordering::Relaxed), 1, "it was not begun");
    let retried = call("b").await.expect("its key is free");
    assert!(!retried.replayed);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_gives_up_does_not_stop_the_work() {
    let (once, count) = (once(), Arc::default());
    let work = takes(5, "in the end");
    let first = call_with(
        &once,
        request(id("a"), "x"),
        Recovery::InDoubt,
        &count,
        work,
    );
    assert!(timeout(Duration::from_secs(1), first).await.is_err());
    let second = call(&once, request(id("a"), "x"), &count, Ok(reply("two")));
    assert!(
        timeout(Duration::from_secs(1), second).await.is_err(),
        "waits to its own deadline"
    );
    let third = call(&once, request(id("a"), "x"), &count, Ok(reply("three"))).await;
    assert_eq!(&third.expect("joined").body[..], b"in the end");
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_waits_to_its_own_deadline_and_no_longer() {
    let (once, count) = (once(), Arc::default());
    let running = {
        let (once, count) = (once.clone(), Arc::clone(&count));
        let first = request(id("a"), "x");
        let work = takes(60, "in the end");
        tokio::spawn(async move { call_with(&once, first, Recovery::InDoubt, &count, work).await })
    };
    tokio::task::yield_now().await;
    for outcome_only in [false, true] {
        let begun = Instant::now();
        let mut duplicate = request(id("a"), "x");
        duplicate.outcome_only = outcome_only;
        duplicate.deadline = Some(begun + Duration::from_secs(2));
        let ended = call(&once, duplicate, &count, Ok(reply("two"))).await;
        let status = ended.unwrap_err();
        assert_eq!(
            (status.code(), status.work()),
            (Code::DeadlineExceeded, Work::OutcomeUnknown)
        );
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_secs(2), "{waited:?}");
        assert!(waited < Duration::from_secs(3), "{waited:?}");
    }
    let first = running.await.expect("no panic").expect("nobody ended it");
    assert_eq!(
        (&first.body[..], first.replayed),
        (&b"in the end"[..], false)
    );
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_told_to_come_back_where_that_was_chosen() {
    let count = Arc::default();
    let once = Once::builder()
        .duplicates(Duplicates::Refuse(Duration::from_millis(50)))
        .build(MemoryStore::new())
        .expect("good terms");
    let work = takes(5, "one");
    let first = call_with(
        &once,
        request(id("a"), "x"),
        Recovery::InDoubt,
        &count,
        work,
    );
    assert!(timeout(Duration::from_secs(1), first).await.is_err());
    let ended = call(&once, request(id("a"), "x"), &count, Ok(reply("two"))).await;
    assert_eq!(reason(&ended), Some(Reason::InProgress));
    assert_eq!(
        ended.unwrap_err().retry_after(),
        Some(Duration::from_millis(50))
    );
}

#[tokio::test(start_paused = true)]
async fn a_running_attempt_keeps_its_lease() {
    let count = Arc::default();
    let clock = Arc::new(AtomicU64::new(1_000_000));
    let store = MemoryStore::with_clock(Bounds::default(), Clock::Manual(Arc::clone(&clock)));
    let once = Once::builder().build(store).expect("good terms");
    let ticking = tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(1)).await;
            clock.fetch_add(1_000, Ordering::Relaxed);
        }
    });
    let work = takes(200, "slow");
    let first = call_with(&once, request(id("a"), "x"), Recovery::Rerun, &count, work);
    let second = async {
        sleep(Duration::from_secs(100)).await;
        call(&once, request(id("a"), "x"), &count, Ok(reply("two"))).await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.expect("done").body, second.expect("joined").body);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    ticking.abort();
}
