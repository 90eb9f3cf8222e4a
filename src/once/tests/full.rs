//! A store that is full, as it is by default: whose outcomes are forgotten, and what their callers are told.

use super::*;

/// A clock that tests set, and a store in memory by it.
fn store(bounds: Bounds) -> (Arc<AtomicU64>, MemoryStore) {
    let clock = Arc::new(AtomicU64::new(1_800_000_000_000));
    let store = MemoryStore::with_clock(bounds, Clock::Manual(Arc::clone(&clock)));
    (clock, store)
}

/// The ID of a call that was made then.
fn uuid(milliseconds: u64, number: u64) -> RequestId {
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    let random = [a, b, c, d, e, f, g, h, 0, 0];
    let uuid = uuid::Builder::from_unix_timestamp_millis(milliseconds, &random);
    uuid.into_uuid().into()
}

async fn call_as(
    once: &Once,
    principal: &str,
    id: RequestId,
    ended: Result<RawReply, Status>,
) -> Result<RawReply, Status> {
    let work = move |_| -> ReplyFuture { Box::pin(std::future::ready(ended)) };
    once.answer(principal, request(id, "x"), Recovery::InDoubt, work)
        .await
}

#[tokio::test]
async fn default_store_never_stops_a_service_that_outgrows_it() {
    const RECORDS: usize = 10_000;
    const CALLS_A_SECOND: u64 = 240;
    let (clock, store) = store(Bounds::default().with_records_max(RECORDS));
    let once = Once::builder().build(store).expect("good terms");
    let mut last = 0;
    for number in 0..30_000 {
        last = clock.fetch_add(1000 / CALLS_A_SECOND, Ordering::Relaxed);
        let ended = call_as(&once, "shop", uuid(last, number), Ok(reply("done"))).await;
        assert!(!ended.expect("there is room").replayed);
    }
    assert_eq!(once.store().records(), RECORDS);
    let counted = once.counters();
    assert_eq!((counted.forgotten_early, counted.refused), (20_000, 0));
    let retained = counted.retained.expect("some were forgotten");
    let expected = Duration::from_millis(RECORDS as u64 * (1000 / CALLS_A_SECOND));
    assert!(
        retained.abs_diff(expected) < Duration::from_millis(10),
        "{retained:?}"
    );
    let usage = once.usage_by_principal();
    assert_eq!(usage[0].principal.as_deref(), Some("shop"));
    assert_eq!(usage[0].forgotten_early, 20_000);

    // A retry of what was forgotten is not run again, and a question is not told that nothing was done.
    let first = 1_800_000_000_000;
    for outcome_only in [false, true] {
        let mut retry = request(uuid(first, 0), "x");
        retry.outcome_only = outcome_only;
        let work = |_| -> ReplyFuture { panic!("it was done") };
        let ended = once.answer("shop", retry, Recovery::InDoubt, work).await;
        let status = ended.expect_err("it is forgotten");
        assert_eq!(
            (status.reason(), status.work()),
            (Some(Reason::KeyExpired), Work::OutcomeUnknown)
        );
    }
    let kept = call_as(&once, "shop", uuid(last, 29_999), Ok(reply("again"))).await;
    assert_eq!(&kept.expect("kept").body[..], b"done");
    // What others have done was not forgotten: their old keys are not refused.
    let other = call_as(&once, "other", uuid(first, 0), Ok(reply("new"))).await;
    assert!(!other.expect("it was never done").replayed);
}

#[tokio::test]
async fn full_store_forgets_only_outcomes_of_the_principal_with_most() {
    let bounds = Bounds::default().with_records_max(1000);
    let (clock, store) = store(bounds);
    let once = Once::builder().build(store).expect("good terms");
    let mut ids = Vec::new();
    for number in 0..200 {
        let id = uuid(clock.fetch_add(1, Ordering::Relaxed), number);
        call_as(&once, "good", id.clone(), Ok(reply("good")))
            .await
            .expect("room");
        ids.push(id);
    }
    for number in 0..20_000 {
        let id = uuid(clock.load(Ordering::Relaxed), 1_000 + number);
        call_as(&once, "flood", id, Ok(reply("flood")))
            .await
            .expect("room");
    }
    for id in ids {
        let kept = call_as(&once, "good", id, Ok(reply("again"))).await;
        assert_eq!(&kept.expect("kept").body[..], b"good");
    }
    let usage = once.usage_by_principal();
    assert_eq!(usage.len(), 1, "{usage:?}");
    assert_eq!(usage[0].principal.as_deref(), Some("flood"));
}

#[tokio::test]
async fn principal_whose_records_cannot_be_forgotten_is_refused_alone() {
    let (clock, store) = store(Bounds::default().with_records_max(1000));
    let once = Once::builder().build(store).expect("good terms");
    let good = uuid(clock.load(Ordering::Relaxed), 0);
    call_as(&once, "good", good.clone(), Ok(reply("good")))
        .await
        .expect("room");
    let mut refused = 0;
    for number in 1..3_000 {
        let id = uuid(clock.load(Ordering::Relaxed), number);
        let ended = call_as(&once, "fails", id, Err(Status::internal("?"))).await;
        refused += u64::from(reason(&ended) == Some(Reason::StoreFull));
    }
    assert_eq!(refused, 2_999 - 999, "those in doubt stay");
    assert_eq!(once.counters().refused, refused);
    for number in 1..100 {
        let id = uuid(clock.load(Ordering::Relaxed), number);
        let ended = call_as(&once, "good", id, Ok(reply("good"))).await;
        let status = ended.err().and_then(|status| status.reason());
        assert_eq!(status, None, "its own outcomes make room for it");
    }
}

#[tokio::test]
async fn oldest_outcome_of_all_is_forgotten_whatever_its_key_looks_like() {
    let bounds = Bounds::default().with_records_max(1000);
    let (_, store) = store(bounds);
    let once = Once::builder().build(store).expect("good terms");
    for (number, kind) in (0..1500)
        .zip(std::iter::repeat("pay"))
        .chain((0..1000).zip(std::iter::repeat("refund")))
    {
        let id = id(&format!("order-{number}:{kind}"));
        call_as(&once, "", id, Ok(reply("done")))
            .await
            .expect("room");
    }
    for number in 0..1000 {
        let id = id(&format!("order-{number}:refund"));
        let kept = call_as(&once, "", id, Ok(reply("again"))).await;
        assert!(kept.expect("kept").replayed, "{number}");
    }
}

#[tokio::test]
async fn bytes_of_replies_stay_within_their_bound_and_cost_no_more_than_they_are() {
    const BYTES: usize = 100_000;
    let (_, store) = store(Bounds::default().with_reply_bytes_max(BYTES));
    let once = Once::builder().build(store).expect("good terms");
    let large = "x".repeat(1000);
    for number in 0..500 {
        let id = id(&number.to_string());
        call_as(&once, "", id, Ok(reply(&large)))
            .await
            .expect("room");
        assert!(once.store().reply_bytes() <= BYTES);
    }
    let before = once.store().records();
    call_as(&once, "", id("small"), Ok(reply("x")))
        .await
        .expect("room");
    assert!(
        once.store().records() >= before,
        "one more, and at most one less"
    );
}

#[tokio::test]
async fn callers_whose_clocks_are_ahead_take_nothing_from_the_others() {
    const AHEAD: u64 = 4 * 60 * 1000;
    let (clock, store) = store(Bounds::default().with_records_max(100));
    let once = Once::builder().build(store).expect("good terms");
    for number in 0..2_000 {
        let now = clock.fetch_add(10, Ordering::Relaxed);
        let ahead = uuid(now + AHEAD, number * 2);
        call_as(&once, "", ahead, Ok(reply("done")))
            .await
            .expect("room");
        // Made a little before it arrives.
        let right = uuid(now.saturating_sub(5), number * 2 + 1);
        let ended = call_as(&once, "", right, Ok(reply("done"))).await;
        assert!(ended.is_ok(), "{number}: {ended:?}");
    }
}

#[tokio::test]
async fn what_is_refused_or_given_back_leaves_nothing_in_memory() {
    let (clock, store) = store(Bounds::default());
    let once = Once::builder().build(store).expect("good terms");
    for number in 0..5_000 {
        let id = uuid(clock.load(Ordering::Relaxed), number);
        let refuses = move |_| -> ReplyFuture {
            Box::pin(std::future::ready(Err(Status::unavailable("not now"))))
        };
        let principal = format!("{}", number % 10);
        let ended = once.answer(&principal, request(id, "x"), Recovery::Rerun, refuses);
        assert_eq!(ended.await.expect_err("refused").work(), Work::NotDone);
    }
    assert_eq!(once.store().indexed(), (0, 0, 0));
    // Nor do outcomes when their time is over.
    for number in 0..1_000 {
        let id = uuid(clock.load(Ordering::Relaxed), number);
        call_as(&once, &format!("{}", number % 10), id, Ok(reply("x")))
            .await
            .expect("room");
    }
    let (records, _, principals) = once.store().indexed();
    assert_eq!((records, principals), (1_000, 10));
    clock.fetch_add(25 * HOUR.as_millis() as u64, Ordering::Relaxed);
    assert_eq!(once.store().expire(10_000).await.expect("memory"), 1_000);
    assert_eq!(once.store().indexed(), (0, 0, 0));
}

#[tokio::test]
async fn an_address_without_keys_fills_the_store_for_itself_alone() {
    use crate::security::Address;
    let bounds = Bounds::default().with_records_max(1000);
    let (clock, store) = store(bounds);
    let once = Once::builder().build(store).expect("good terms");
    let call = async |last: u8, id: RequestId, text: &str| {
        let mut request = request(id, "x");
        request.address = Some(Address::of(Some([10, 0, 0, last].into())));
        let ended = Ok(reply(text));
        let work = move |_| -> ReplyFuture { Box::pin(std::future::ready(ended)) };
        once.answer("", request, Recovery::InDoubt, work).await
    };
    let mut ids = Vec::new();
    for number in 0..200 {
        let id = uuid(clock.fetch_add(1, Ordering::Relaxed), number);
        call(1, id.clone(), "good").await.expect("room");
        ids.push(id);
    }
    let first = uuid(clock.fetch_add(1, Ordering::Relaxed), 1_000);
    call(2, first.clone(), "flood").await.expect("room");
    for number in 1..20_000 {
        let id = uuid(clock.load(Ordering::Relaxed), 1_000 + number);
        call(2, id, "flood").await.expect("room");
    }
    for id in ids {
        // A caller that comes again from another address finds its record.
        for from in [1, 3] {
            let kept = call(from, id.clone(), "again").await;
            assert_eq!(&kept.expect("kept").body[..], b"good");
        }
    }
    // What was forgotten is not done again, from wherever it is asked for.
    for from in [2, 3] {
        let ended = call(from, first.clone(), "again").await;
        assert_eq!(reason(&ended), Some(Reason::KeyExpired));
    }
}
