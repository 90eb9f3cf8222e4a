//! Records against a model, and attempts against a store that fails when it is told to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::call::{Outcome, RawReply, RawRequest, ReplyFuture};
use crate::schema::{Effect, MethodInfo, Recovery};
use crate::wire::{Code, Metadata, Reason, RequestId, RequestKey, Status, Work};

const HOUR: Duration = Duration::from_secs(3600);

fn id(text: &str) -> RequestId {
    RequestKey::new(text.to_owned()).expect("short").into()
}

fn body(text: &str) -> Bytes {
    use crate::message::Plain;
    text.to_owned().to_bytes().expect("it has an encoding")
}

fn request(id: RequestId, text: &str) -> RawRequest {
    static METHOD: MethodInfo = MethodInfo {
        service: "test",
        name: "test",
        interface: 1,
        ordinal: 2,
        effect: Effect::Once(Recovery::InDoubt),
        timeout: None,
        params: 0,
        results: 0,
        fails: None,
    };
    let mut request = RawRequest::new(&METHOD, body(text));
    request.id = id;
    request
}

fn reply(text: &str) -> RawReply {
    RawReply::new(Outcome::Success, Bytes::from(text.to_owned()))
}

fn once() -> Once {
    Once::builder()
        .build(MemoryStore::new())
        .expect("good terms")
}

/// Calls with a handler that counts and answers at once.
async fn call<S: Store>(
    once: &Once<S>,
    request: RawRequest,
    count: &Arc<AtomicU64>,
    ended: Result<RawReply, Status>,
) -> Result<RawReply, Status> {
    call_with(
        once,
        request,
        Recovery::InDoubt,
        count,
        async move { ended },
    )
    .await
}

async fn call_with<S: Store>(
    once: &Once<S>,
    request: RawRequest,
    recovery: Recovery,
    count: &Arc<AtomicU64>,
    ended: impl Future<Output = Result<RawReply, Status>> + Send + 'static,
) -> Result<RawReply, Status> {
    let count = Arc::clone(count);
    let work = move |_| -> ReplyFuture {
        count.fetch_add(1, Ordering::Relaxed);
        Box::pin(ended)
    };
    once.answer("", request, recovery, work).await
}

fn reason(ended: &Result<RawReply, Status>) -> Option<Reason> {
    ended.as_ref().err().and_then(Status::reason)
}

#[tokio::test]
async fn a_retry_gets_the_stored_reply_marked_as_replayed() {
    let (once, count) = (once(), Arc::default());
    let first = call(&once, request(id("a"), "x"), &count, Ok(reply("one"))).await;
    let second = call(&once, request(id("a"), "x"), &count, Ok(reply("two"))).await;
    let (first, second) = (first.expect("done"), second.expect("replayed"));
    assert_eq!((&first.body, first.replayed), (&second.body, false));
    assert!(second.replayed);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert_eq!(once.counters().replayed, 1);
}

#[tokio::test]
async fn the_same_id_with_other_parameters_is_refused_whatever_became_of_it() {
    let (once, count) = (once(), Arc::default());
    let ends = [Ok(reply("one")), Err(Status::internal("who knows"))];
    for (name, end) in ["done", "in doubt"].into_iter().zip(ends) {
        let _ = call(&once, request(id(name), "x"), &count, end).await;
        let reused = call(&once, request(id(name), "y"), &count, Ok(reply("two"))).await;
        assert_eq!(reason(&reused), Some(Reason::KeyReused));
        assert_eq!(reused.map(|_| ()).unwrap_err().work(), Work::NotDone);
    }
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_application_error_is_an_outcome_and_is_kept() {
    let (once, count) = (once(), Arc::default());
    let refused = RawReply::new(Outcome::ApplicationError, Bytes::from_static(b"no"));
    for replayed in [false, true] {
        let ended = call(&once, request(id("a"), "x"), &count, Ok(refused.clone())).await;
        let ended = ended.expect("an outcome");
        assert_eq!(
            (ended.outcome, ended.replayed),
            (Outcome::ApplicationError, replayed)
        );
    }
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_was_not_done_frees_the_key() {
    let (once, count) = (once(), Arc::default());
    for status in [
        Status::permission_denied("no"),
        Status::invalid_argument("no"),
        Status::resource_exhausted("no"),
        Status::unavailable("no"),
    ] {
        let ended = call(&once, request(id("a"), "x"), &count, Err(status.clone())).await;
        assert_eq!(ended.unwrap_err(), status);
    }
    let ended = call(&once, request(id("a"), "x"), &count, Ok(reply("yes"))).await;
    assert!(!ended.expect("it ran").replayed);
    assert_eq!(count.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn a_request_that_is_late_on_arrival_is_neither_run_nor_kept() {
    let (once, count) = (once(), Arc::default());
    let mut late = request(id("a"), "x");
    late.deadline = Some(Instant::now());
    let ended = call(&once, late, &count, Ok(reply("one"))).await;
    let status = ended.unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::DeadlineExceeded, Work::NotDone)
    );
    assert_eq!(once.store().records(), 0);
}

#[tokio::test]
async fn an_unknown_end_is_in_doubt_until_somebody_resolves_it() {
    let (once, count) = (once(), Arc::default());
    let unknown = Err(Status::internal("the disk made a noise"));
    let _ = call(&once, request(id("a"), "x"), &count, unknown.clone()).await;
    let _ = call(&once, request(id("b"), "x"), &count, unknown).await;
    for name in ["a", "b"] {
        let ended = call(&once, request(id(name), "x"), &count, Ok(reply("two"))).await;
        assert_eq!(reason(&ended), Some(Reason::InDoubt));
        assert_eq!(ended.unwrap_err().work(), Work::OutcomeUnknown);
    }
    let mut doubted = once.in_doubt(10).await.expect("memory");
    doubted.sort();
    let [a, b] = &doubted[..] else {
        panic!("{doubted:?}")
    };

    let done = Resolution::Done {
        outcome: Recorded::new(&reply("as found in the ledger"), 100),
        retention: HOUR,
    };
    assert_eq!(
        once.resolve(a, done).await.expect("memory"),
        Verdict::Applied
    );
    assert_eq!(
        once.resolve(b, Resolution::NotDone).await.expect("memory"),
        Verdict::Applied
    );
    let a = call(&once, request(id("a"), "x"), &count, Ok(reply("two")))
        .await
        .expect("resolved");
    let b = call(&once, request(id("b"), "x"), &count, Ok(reply("two")))
        .await
        .expect("run");
    assert_eq!(&a.body[..], b"as found in the ledger");
    assert_eq!(&b.body[..], b"two");
    assert_eq!(count.load(Ordering::Relaxed), 3);
    assert_eq!(once.in_doubt(10).await.expect("memory"), []);
}

#[tokio::test]
async fn a_resolver_is_asked_before_a_retry_is_told_that_nobody_knows() {
    let count = Arc::default();
    let once = Once::builder()
        .resolve_with(|_| async { Some(Resolution::NotDone) })
        .build(MemoryStore::new())
        .expect("good terms");
    let _ = call(
        &once,
        request(id("a"), "x"),
        &count,
        Err(Status::internal("?")),
    )
    .await;
    let ended = call(&once, request(id("a"), "x"), &count, Ok(reply("two"))).await;
    assert_eq!(&ended.expect("it ran").body[..], b"two");
}

#[tokio::test]
async fn an_unknown_end_of_what_may_be_rerun_is_run_again() {
    let (once, count) = (once(), Arc::default());
    for recovery in [Recovery::Rerun, Recovery::Atomic] {
        let name = id(&format!("{recovery:?}"));
        let fails = async { Err(Status::internal("?")) };
        let _ = call_with(&once, request(name.clone(), "x"), recovery, &count, fails).await;
        let works = async { Ok(reply("two")) };
        let ended = call_with(&once, request(name, "x"), recovery, &count, works).await;
        assert!(!ended.expect("it ran").replayed);
    }
    assert_eq!(count.load(Ordering::Relaxed), 4);
}

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
    let slow = || async {
        sleep(Duration::from_secs(5)).await;
        Ok(reply("in the end"))
    };
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
    let work = async {
        sleep(Duration::from_secs(5)).await;
        Ok(reply("in the end"))
    };
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
async fn a_duplicate_is_told_to_come_back_where_that_was_chosen() {
    let count = Arc::default();
    let once = Once::builder()
        .duplicates(Duplicates::Refuse(Duration::from_millis(50)))
        .build(MemoryStore::new())
        .expect("good terms");
    let work = async {
        sleep(Duration::from_secs(5)).await;
        Ok(reply("one"))
    };
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

#[tokio::test]
async fn a_handler_that_panics_leaves_its_request_in_doubt_and_harms_nobody() {
    let (once, count) = (once(), Arc::default());
    let at_once = once.answer("", request(id("a"), "x"), Recovery::InDoubt, |_| panic!());
    assert_eq!(at_once.await.unwrap_err().code(), Code::Internal);
    let later = async {
        tokio::task::yield_now().await;
        panic!()
    };
    let later = call_with(
        &once,
        request(id("b"), "x"),
        Recovery::InDoubt,
        &count,
        later,
    )
    .await;
    assert_eq!(later.unwrap_err().code(), Code::Internal);
    for name in ["a", "b"] {
        let ended = call(&once, request(id(name), "x"), &count, Ok(reply("two"))).await;
        assert_eq!(reason(&ended), Some(Reason::InDoubt));
    }
}

#[tokio::test]
async fn the_outcome_can_be_asked_for_without_the_parameters() {
    let (once, count) = (once(), Arc::default());
    let ask = || {
        let mut ask = request(id("a"), "");
        ask.outcome_only = true;
        ask.body = Bytes::new();
        ask
    };
    let unknown = call(&once, ask(), &count, Ok(reply("never"))).await;
    assert_eq!(reason(&unknown), Some(Reason::KeyUnknown));
    call(&once, request(id("a"), "x"), &count, Ok(reply("one")))
        .await
        .expect("run");
    let known = call(&once, ask(), &count, Ok(reply("never")))
        .await
        .expect("recorded");
    assert_eq!((&known.body[..], known.replayed), (&b"one"[..], true));
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_reply_over_the_limit_is_known_to_be_done_and_not_run_again() {
    let count = Arc::default();
    let once = Once::builder()
        .reply_bytes_max(4)
        .build(MemoryStore::new())
        .expect("good terms");
    for (name, text, kept) in [("fits", "four", true), ("does not", "fives", false)] {
        let first = call(&once, request(id(name), "x"), &count, Ok(reply(text))).await;
        assert_eq!(&first.expect("the first gets it").body[..], text.as_bytes());
        let second = call(&once, request(id(name), "x"), &count, Ok(reply("two"))).await;
        if kept {
            assert!(second.expect("kept").replayed);
        } else {
            assert_eq!(reason(&second), Some(Reason::ReplyNotRetained));
            assert_eq!(second.unwrap_err().work(), Work::Done);
        }
    }
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_request_without_an_id_is_refused() {
    let (once, count) = (once(), Arc::default());
    let nil = RequestId::from(uuid::Uuid::nil());
    let ended = call(&once, request(nil, "x"), &count, Ok(reply("one"))).await;
    assert_eq!(ended.unwrap_err().code(), Code::InvalidArgument);
}

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
        let store = MemoryStore::with_bounds(bounds);
        let once = Once::builder().build(store).expect("good terms");
        for name in ["a", "b"] {
            call(&once, request(id(name), "x"), &count, Ok(reply("one")))
                .await
                .expect("room");
        }
        let full = call(&once, request(id("c"), "x"), &count, Ok(reply("one"))).await;
        let status = full.unwrap_err();
        assert_eq!(
            (status.code(), status.work()),
            (Code::ResourceExhausted, Work::NotDone)
        );
        for name in ["a", "b"] {
            let kept = call(&once, request(id(name), "x"), &count, Ok(reply("two"))).await;
            assert!(kept.expect("kept").replayed);
        }
    }
}

#[tokio::test]
async fn a_full_store_forgets_the_oldest_where_that_was_chosen() {
    let count = Arc::default();
    let bounds = Bounds::default()
        .with_records_max(100)
        .with_when_full(WhenFull::ForgetOldest);
    let once = Once::builder()
        .build(MemoryStore::with_bounds(bounds))
        .expect("good terms");
    for number in 0..5_000 {
        let ended = call(
            &once,
            request(id(&number.to_string()), "x"),
            &count,
            Ok(reply("one")),
        );
        // A shard that has nothing old to give refuses, and that is no loss.
        let _ = ended.await;
        assert!(once.store().records() <= 100);
    }
    assert!(count.load(Ordering::Relaxed) > 4_900, "{count:?}");
}

#[tokio::test]
async fn work_outside_calls_is_done_once_too() {
    let once = once();
    let count = Arc::new(AtomicU64::new(0));
    let task = || Task::new("mail", id("ann")).parameters(b"hello");
    for _ in 0..2 {
        let count = Arc::clone(&count);
        let sent: String = once
            .run(task(), move || async move {
                Ok(format!("message {}", count.fetch_add(1, Ordering::Relaxed)))
            })
            .await
            .expect("sent");
        assert_eq!(sent, "message 0");
    }
    assert_eq!(
        once.result::<String>(task()).await.expect("known"),
        "message 0"
    );
    let other = Task::new("mail", id("ann")).parameters(b"goodbye");
    let reused = once.run(other, || async { Ok("never".to_owned()) }).await;
    assert_eq!(reused.unwrap_err().reason(), Some(Reason::KeyReused));
}

/// A store that is gone when it is told to be.
struct Fragile {
    memory: MemoryStore,
    gone: Arc<AtomicBool>,
}

impl Store for Fragile {
    type Transaction = NoTransaction;

    async fn apply(&self, key: &Key, change: Change) -> Result<Verdict, StoreError> {
        match self.gone.load(Ordering::Relaxed) {
            true => Err(StoreError::new("gone")),
            false => self.memory.apply(key, change).await,
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
    let work = async {
        sleep(Duration::from_secs(200)).await;
        Ok(reply("slow"))
    };
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

#[tokio::test]
async fn a_key_is_the_same_for_parameters_that_mean_the_same() {
    use crate::message::{Limits, Link, Plain};
    let limits = Limits::default();
    let link = Link::<String>::default();
    let plain = Fingerprint::of_parameters(&link.to_bytes().expect("encoded"), &limits);
    // The same, from a program whose schema has a word and a pointer more, which nobody set.
    let mut longer = vec![0u8; 8 * 9];
    longer[4] = 8;
    longer[8..16].copy_from_slice(&[0, 0, 0, 0, 3, 0, 4, 0]);
    let newer = Fingerprint::of_parameters(&Bytes::from(longer), &limits);
    assert_eq!(plain.expect("a message"), newer.expect("a message"));
}

proptest! {
    #[test]
    fn any_bytes_have_a_fingerprint_or_are_refused(
        bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..200), words in 0..24u32
    ) {
        let mut framed = [0, 0, 0, 0].to_vec();
        framed.extend(words.to_le_bytes());
        framed.extend(bytes);
        let _ = Fingerprint::of_parameters(&Bytes::from(framed), &crate::message::Limits::default());
    }
}

#[derive(Clone, Debug)]
enum Do {
    Begin { attempt: u8, body: u8, recovery: u8 },
    Renew { attempt: u8 },
    Complete { attempt: u8, outcome: u8 },
    Release { attempt: u8 },
    Doubt { attempt: u8 },
    Resolve { attempt: u8, outcome: Option<u8> },
    Look,
    Wait { seconds: u8 },
}

fn do_() -> impl Strategy<Value = Do> {
    let attempt = || 0..4u8;
    prop_oneof![
        4 => (attempt(), 0..2u8, 0..3u8).prop_map(|(attempt, body, recovery)| Do::Begin { attempt, body, recovery }),
        1 => attempt().prop_map(|attempt| Do::Renew { attempt }),
        3 => (attempt(), any::<u8>()).prop_map(|(attempt, outcome)| Do::Complete { attempt, outcome }),
        1 => attempt().prop_map(|attempt| Do::Release { attempt }),
        1 => attempt().prop_map(|attempt| Do::Doubt { attempt }),
        1 => (attempt(), any::<Option<u8>>()).prop_map(|(attempt, outcome)| Do::Resolve { attempt, outcome }),
        2 => Just(Do::Look),
        2 => (0..40u8).prop_map(|seconds| Do::Wait { seconds }),
    ]
}

fn outcome(byte: u8) -> Recorded {
    Recorded::Reply {
        outcome: Outcome::Success,
        metadata: Metadata::new(),
        body: Bytes::from(vec![byte]),
    }
}

proptest! {
    /// What was promised, checked from outside over any history of one key.
    #[test]
    fn a_record_keeps_its_promises(steps in prop::collection::vec(do_(), 1..60)) {
        const LEASE: Duration = Duration::from_secs(30);
        let mut now = Timestamp::from_milliseconds(1);
        let mut record: Option<Record> = None;
        let mut told: Option<Recorded> = None;
        let mut running: HashMap<u8, (Timestamp, Recovery)> = HashMap::new();
        let recoveries = [Recovery::InDoubt, Recovery::Rerun, Recovery::Atomic];
        let epoch = |attempt| Epoch { owner: 1, number: u64::from(attempt) };
        for step_ in steps {
            let change = match step_.clone() {
                Do::Wait { seconds } => { now = now + Duration::from_secs(seconds.into()); continue }
                Do::Begin { attempt, body, recovery } => Change::Begin(Claim {
                    epoch: epoch(attempt),
                    fingerprint: Fingerprint::of_bytes(&[body]),
                    recovery: recoveries[usize::from(recovery)],
                    lease: LEASE,
                    age: Age { created: None, retention: 24 * HOUR, clock_skew_max: Duration::ZERO },
                }),
                Do::Renew { attempt } => Change::Renew { epoch: epoch(attempt), lease: LEASE },
                Do::Complete { attempt, outcome: byte } => Change::Complete { epoch: epoch(attempt), outcome: outcome(byte), retention: 24 * HOUR },
                Do::Release { attempt } => Change::Release { epoch: epoch(attempt) },
                Do::Doubt { attempt } => Change::Doubt { epoch: epoch(attempt) },
                Do::Resolve { attempt, outcome: byte } => Change::Resolve {
                    // The last of them is whoever has it.
                    epoch: (attempt != 3).then(|| epoch(attempt)),
                    resolution: match byte {
                        Some(byte) => Resolution::Done { outcome: outcome(byte), retention: 24 * HOUR },
                        None => Resolution::NotDone,
                    },
                },
                Do::Look => Change::Look(Age { created: None, retention: 24 * HOUR, clock_skew_max: Duration::ZERO }),
            };
            let before = record.clone();
            let (verdict, write) = step(record.as_ref(), now, change);
            match write {
                Write::Nothing => {}
                Write::Put(put) => record = Some(put),
                Write::Remove => record = None,
            }
            match (&step_, &verdict) {
                (Do::Begin { attempt, .. }, Verdict::Run) => {
                    for (other, (until, recovery)) in &running {
                        prop_assert!(other == attempt || *until <= now, "two run at once");
                        prop_assert!(other == attempt || *recovery != Recovery::InDoubt, "silently run again");
                    }
                    prop_assert!(told.is_none(), "run again after it was done");
                    let recovery = record.as_ref().map(|record| record.recovery).unwrap_or_default();
                    running = HashMap::from([(*attempt, (now + LEASE, recovery))]);
                }
                (Do::Renew { attempt }, Verdict::Applied) => {
                    running.get_mut(attempt).expect("only who runs renews").0 = now + LEASE;
                }
                (Do::Complete { attempt, outcome: byte }, Verdict::Applied) => {
                    let late = told.is_some();
                    prop_assert!(
                        matches!(&record, Some(Record { state: State::Done { outcome: recorded, .. }, .. }) if *recorded == outcome(*byte)),
                        "it may tell what is not recorded"
                    );
                    prop_assert!(late || running.contains_key(attempt), "fencing");
                    if let (None, Some(Record { state: State::Done { outcome, .. }, .. })) = (&told, &record) {
                        told = Some(outcome.clone());
                    }
                    running.clear();
                }
                (Do::Resolve { attempt, .. }, Verdict::Applied) => {
                    let of = before.map(|before| before.epoch);
                    prop_assert!(*attempt == 3 || of == Some(epoch(*attempt)), "a doubt that nobody looked into");
                    prop_assert!(running.values().all(|(until, _)| *until <= now), "it was running");
                    running.clear();
                    if let Some(Record { state: State::Done { outcome, .. }, .. }) = &record {
                        told = Some(outcome.clone());
                    }
                }
                (Do::Release { attempt }, Verdict::Applied) => { running.remove(attempt); }
                // It has ended, and can still say the truth.
                (Do::Doubt { attempt }, Verdict::Applied) => {
                    running.get_mut(attempt).expect("only who ran doubts").0 = now;
                }
                (_, Verdict::Done(outcome)) => {
                    prop_assert_eq!(Some(outcome), told.as_ref(), "everyone is told the same");
                }
                (Do::Begin { body, .. }, Verdict::KeyReused) => {
                    let before = before.expect("there is one to clash with");
                    prop_assert_ne!(before.fingerprint, Fingerprint::of_bytes(&[*body]));
                }
                _ => {}
            }
        }
    }
}
