//! How long and how much is kept.

use super::*;

#[test]
fn retention_must_be_twice_what_callers_may_retry_for() {
    let build = |retention| {
        Once::builder()
            .retention(retention)
            .retry_horizon(HOUR)
            .build(MemoryStore::new())
            .map(|_| ())
    };
    assert_eq!(build(2 * HOUR), Ok(()));
    let (retention, horizon) = (2 * HOUR - Duration::from_millis(1), HOUR);
    assert_eq!(
        build(retention),
        Err(OnceError::RetentionTooShort { retention, horizon })
    );
}

#[tokio::test]
async fn a_uuid_v7_older_than_retention_is_never_run_again() {
    let count = Arc::default();
    let clock = Arc::new(AtomicU64::new(Timestamp::now().milliseconds()));
    let store = MemoryStore::with_clock(Bounds::default(), Clock::Manual(Arc::clone(&clock)));
    let once = Once::builder().build(store).expect("good terms");
    let id = RequestId::new();
    let skew = Duration::from_secs(5 * 60);
    let forward = |time: Duration| clock.fetch_add(time.as_millis() as u64, Ordering::Relaxed);

    call(&once, request(id.clone(), "x"), &count, Ok(reply("one")))
        .await
        .expect("run");
    forward(24 * HOUR - Duration::from_secs(1));
    let ended = call(&once, request(id.clone(), "x"), &count, Ok(reply("two"))).await;
    assert!(ended.expect("kept to the end").replayed);
    forward(Duration::from_secs(2));
    let ended = call(&once, request(id.clone(), "x"), &count, Ok(reply("two"))).await;
    assert_eq!(reason(&ended), Some(Reason::KeyExpired));
    once.store().expire(100).await.expect("memory");
    assert_eq!(once.store().records(), 0);
    let ended = call(&once, request(id, "x"), &count, Ok(reply("two"))).await;
    assert_eq!(reason(&ended), Some(Reason::KeyExpired));
    assert_eq!(count.load(Ordering::Relaxed), 1);

    // A caller whose clock is ahead must not outlive its record.
    let future = clock.load(Ordering::Relaxed) + skew.as_millis() as u64 + 1;
    let future = uuid::Builder::from_unix_timestamp_millis(future, &[7; 10]).into_uuid();
    let ended = call(&once, request(future.into(), "x"), &count, Ok(reply("two"))).await;
    assert_eq!(ended.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_full_store_refuses_new_keys_and_forgets_none() {
    for bounds in [
        Bounds::default().with_records_max(2),
        Bounds::default().with_reply_bytes_max(6),
    ] {
        let count = Arc::default();
        let store = MemoryStore::with_bounds(bounds.with_when_full(WhenFull::Refuse));
        let once = Once::builder().build(store).expect("good terms");
        for name in ["a", "b"] {
            call(&once, request(id(name), "x"), &count, Ok(reply("one")))
                .await
                .expect("room");
        }
        let full = call(&once, request(id("c"), "x"), &count, Ok(reply("one"))).await;
        let status = full.unwrap_err();
        assert_eq!(
            (status.code(), status.work(), status.reason()),
            (
                Code::ResourceExhausted,
                Work::NotDone,
                Some(Reason::StoreFull)
            )
        );
        assert_eq!(once.counters().refused, 1);
        let [anonymous] = &once.usage_by_principal()[..] else {
            panic!("one principal was refused");
        };
        assert_eq!(anonymous.principal.as_deref(), Some("anonymous"));
        assert_eq!(anonymous.refused, 1);
        for name in ["a", "b"] {
            let kept = call(&once, request(id(name), "x"), &count, Ok(reply("two"))).await;
            assert!(kept.expect("kept").replayed);
        }
    }
}
