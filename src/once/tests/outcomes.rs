//! What is an outcome, and what a retry is told of it.

use super::*;

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

#[tokio::test(start_paused = true)]
async fn the_same_id_with_other_parameters_is_refused_whatever_became_of_it() {
    let (once, count) = (once(), Arc::default());
    let ends = [Ok(reply("one")), Err(Status::internal("who knows"))];
    for (name, end) in ["done", "in doubt"].into_iter().zip(ends) {
        let _ = call(&once, request(id(name), "x"), &count, end).await;
    }
    let running = takes(60, "three");
    let running = call_with(
        &once,
        request(id("running"), "x"),
        Recovery::InDoubt,
        &count,
        running,
    );
    assert!(timeout(Duration::from_secs(1), running).await.is_err());
    for name in ["done", "in doubt", "running"] {
        let reused = call(&once, request(id(name), "y"), &count, Ok(reply("two"))).await;
        assert_eq!(reason(&reused), Some(Reason::KeyReused), "{name}");
        assert_eq!(reused.map(|_| ()).unwrap_err().work(), Work::NotDone);
    }
    assert_eq!(count.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn the_header_is_no_part_of_what_makes_two_requests_the_same() {
    let (once, count) = (once(), Arc::default());
    let first = call(&once, request(id("a"), "x"), &count, Ok(reply("one"))).await;
    first.expect("done");
    let mut again = request(id("a"), "x");
    again.attempt = 7;
    again.deadline = Some(Instant::now() + HOUR);
    again.metadata.insert("trace", "another").expect("short");
    let second = call(&once, again, &count, Ok(reply("two"))).await;
    assert!(second.expect("the same").replayed);
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
async fn a_reply_of_one_mebibyte_is_kept_and_of_a_byte_more_is_not() {
    let (once, count) = (once(), Arc::default());
    for (name, bytes, kept) in [("fits", 1 << 20, true), ("does not", (1 << 20) + 1, false)] {
        let large = RawReply::new(Outcome::Success, Bytes::from(vec![7; bytes]));
        let first = call(&once, request(id(name), "x"), &count, Ok(large)).await;
        let first = first.expect("the first gets it").body;
        let second = call(&once, request(id(name), "x"), &count, Ok(reply("two"))).await;
        match kept {
            true => assert_eq!(second.expect("kept").body, first),
            false => assert_eq!(reason(&second), Some(Reason::ReplyNotRetained)),
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
