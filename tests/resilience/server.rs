//! What a server does of itself: lets in what it can do, and drops what nobody waits for.

use super::*;

#[tokio::test]
async fn a_call_made_in_a_handler_inherits_what_is_left_of_its_callers_time() {
    let leaf = Moody::slow(Duration::from_secs(3600));
    let leaf_server = leaf.start().await;
    let to_leaf = Client::connect(leaf_server.endpoint().to_string())
        .await
        .expect("there");
    let front = Moody::new(move |request| {
        let to_leaf = to_leaf.clone();
        async move {
            let request = RawRequest::new(IDEMPOTENT, request.body);
            let ended = to_leaf.oneshot(request).await;
            // It still has the time to say so.
            let status = ended.expect_err("the leaf never answers");
            let message = format!("leaf: {:?}", status.code());
            Err(Status::new(
                Code::FailedPrecondition,
                Work::NotDone,
                message,
            ))
        }
    });
    let server = front.start().await;
    let client = Client::connect(server.endpoint().to_string())
        .await
        .expect("there");
    let mut request = RawRequest::new(IDEMPOTENT, body());
    request.deadline = Some(tokio::time::Instant::now() + Duration::from_millis(400));
    let status = client.oneshot(request).await.unwrap_err();
    assert_eq!(status.message(), "leaf: DeadlineExceeded");
}

/// Calls as fast as it may for a while, and returns how many succeeded, were refused, and the slowest refusal.
async fn flood(endpoint: String, callers: usize, time: Duration) -> (u64, u64, Duration) {
    let client = Client::connect(endpoint).await.expect("there");
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let client = client.clone();
        tasks.spawn(async move {
            let (mut done, mut refused, mut slowest) = (0, 0, Duration::ZERO);
            let begun = Instant::now();
            while begun.elapsed() < time {
                let call = Instant::now();
                match client
                    .clone()
                    .oneshot(RawRequest::new(UNSAFE, body()))
                    .await
                {
                    Ok(_) => done += 1,
                    Err(status) => {
                        assert_eq!(status.reason(), Some(Reason::Overloaded), "{status}");
                        assert_eq!(status.work(), Work::NotDone);
                        refused += 1;
                        slowest = slowest.max(call.elapsed());
                        let wait = status.retry_after().expect("it says when");
                        tokio::time::sleep(wait).await;
                    }
                }
            }
            (done, refused, slowest)
        });
    }
    let ended = tasks.join_all().await.into_iter();
    ended.fold((0, 0, Duration::ZERO), |sum, one| {
        (sum.0 + one.0, sum.1 + one.1, sum.2.max(one.2))
    })
}

#[tokio::test]
async fn a_server_with_a_door_does_what_it_can_and_refuses_the_rest_at_once() {
    // Eight at a time, 20 ms each: little enough that a busy machine has the time for all who are refused.
    let hands = Arc::new(tokio::sync::Semaphore::new(8));
    let moody = Moody::new(move |request| {
        let hands = Arc::clone(&hands);
        async move {
            let _hand = hands.acquire().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(RawReply::new(Outcome::Success, request.body))
        }
    });
    for limit in [Limit::Fixed(8), Limit::Adaptive(AdaptivePolicy::default())] {
        let server = Server::builder()
            .service(moody.clone())
            .layer(ShedLayer::new(limit))
            .bind(endpoint())
            .await
            .expect("it binds")
            .spawn();
        let endpoint = server.endpoint().to_string();
        let time = Duration::from_secs(1);
        let (capacity, _, _) = flood(endpoint.clone(), 8, time).await;
        let (done, refused, slowest) = flood(endpoint, 80, time).await;
        println!(
            "{limit:?}: capacity {capacity}, done {done}, refused {refused} in {slowest:?} at most"
        );
        assert!(refused > 0, "there was no overload");
        assert!(done * 10 >= capacity * 8, "{done} of {capacity}");
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_slow_method_behind_a_bulkhead_leaves_room_for_the_others() {
    let moody = Moody::new(|request| async move {
        if request.method == UNSAFE.ordinal {
            std::future::pending::<()>().await;
        }
        Ok(RawReply::new(Outcome::Success, request.body))
    });
    let server = Server::builder()
        .service(moody)
        .layer(ShedLayer::new(Limit::Fixed(20)).bulkhead(UNSAFE, Limit::Fixed(4)))
        .bind(endpoint())
        .await
        .expect("it binds")
        .spawn();
    let client = Client::connect(server.endpoint().to_string())
        .await
        .expect("there");
    let mut stuck = JoinSet::new();
    for _ in 0..100 {
        stuck.spawn(client.clone().oneshot(RawRequest::new(UNSAFE, body())));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..50 {
        let request = RawRequest::new(IDEMPOTENT, body());
        client
            .clone()
            .oneshot(request)
            .await
            .expect("there is room");
    }
}

#[tokio::test]
async fn what_is_refused_leaves_no_record_and_its_id_is_free() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let opens = Arc::clone(&gate);
    let moody = Moody::new(move |request| {
        let gate = Arc::clone(&opens);
        async move {
            let _permit = gate.acquire().await;
            Ok(RawReply::new(Outcome::Success, request.body))
        }
    });
    let store = MemoryStore::new();
    let once = Once::builder().build(store.clone()).expect("good terms");
    let server = Server::builder()
        .service(moody.clone())
        .layer(ShedLayer::with_queue(Limit::Fixed(1), 0, Duration::ZERO))
        .once(once)
        .bind(endpoint())
        .await
        .expect("it binds")
        .spawn();
    let client = Client::connect(server.endpoint().to_string())
        .await
        .expect("there");
    let request = |name: &'static str, body| {
        let mut request = RawRequest::new(ONCE, body);
        request.id = RequestKey::new(name).expect("short").into();
        request
    };
    let invalid = request("refused", Bytes::from_static(b"no message"));
    let status = client.clone().oneshot(invalid).await.unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::InvalidArgument, Work::NotDone)
    );
    assert_eq!(store.records(), 0, "invalid");

    let first = tokio::spawn(client.clone().oneshot(request("first", body())));
    wait_until(|| moody.calls() == 1).await;
    let status = client.clone().oneshot(request("refused", body())).await;
    let status = status.unwrap_err();
    assert_eq!(
        (status.reason(), status.work()),
        (Some(Reason::Overloaded), Work::NotDone)
    );
    assert_eq!(store.records(), 1, "overloaded: only the first has one");

    gate.add_permits(1);
    first.await.expect("no panic").expect("done");
    let reply = client.oneshot(request("refused", body())).await;
    assert!(!reply.expect("it runs now").replayed);
    assert_eq!((store.records(), moody.calls()), (2, 2));
    server.shutdown().await;
}

/// Counts when it is dropped.
struct Dropped(Arc<AtomicU64>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_handler_is_ended_when_its_caller_is_lost_unless_its_outcome_is_kept() {
    let (ended, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (ends, does) = (Arc::clone(&ended), Arc::clone(&done));
    let moody = Moody::new(move |request| {
        let (ends, does) = (Arc::clone(&ends), Arc::clone(&does));
        async move {
            let _dropped = Dropped(ends);
            let time = if request.method == ONCE.ordinal {
                1
            } else {
                3600
            };
            tokio::time::sleep(Duration::from_secs(time)).await;
            does.fetch_add(1, Ordering::Relaxed);
            Ok(RawReply::new(Outcome::Success, request.body))
        }
    });
    for endpoint in [endpoint(), "tcp://127.0.0.1:0".to_owned()] {
        let server = Server::builder().service(moody.clone());
        let server = server.bind(&endpoint).await.expect("it binds").spawn();
        let (ended_before, done_before) =
            (ended.load(Ordering::Relaxed), done.load(Ordering::Relaxed));
        let calls_before = moody.calls();
        let client = Client::connect(server.endpoint().to_string())
            .await
            .expect("there");
        let mut lost = JoinSet::new();
        for method in [IDEMPOTENT, UNSAFE, ONCE] {
            let mut request = RawRequest::new(method, body());
            request.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(600));
            lost.spawn(client.clone().oneshot(request));
        }
        wait_until(|| moody.calls() == calls_before + 3).await;
        lost.shutdown().await;
        drop(client);
        let gone = || server.counters().abandoned + server.counters().cancelled;
        wait_until(|| gone() == 3).await;
        wait_until(|| ended.load(Ordering::Relaxed) == ended_before + 3).await;
        assert_eq!(done.load(Ordering::Relaxed), done_before + 1, "{endpoint}");
        server.shutdown().await;
    }
}

#[tokio::test]
async fn whoever_gives_up_while_waiting_at_the_door_is_not_let_in() {
    let moody = Moody::slow(Duration::from_millis(500));
    let door = ShedLayer::with_queue(Limit::Fixed(1), 10, Duration::from_secs(60));
    let server = Server::builder().service(moody.clone()).layer(door);
    let server = server.bind(endpoint()).await.expect("it binds").spawn();
    let client = Client::connect(server.endpoint().to_string())
        .await
        .expect("there");
    let first = tokio::spawn(client.clone().oneshot(RawRequest::new(UNSAFE, body())));
    wait_until(|| moody.calls() == 1).await;
    let mut request = RawRequest::new(UNSAFE, body());
    request.deadline = Some(tokio::time::Instant::now() + Duration::from_millis(100));
    let late = client.clone().oneshot(request).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    first.await.expect("no panic").expect("it is done");
    client
        .oneshot(RawRequest::new(UNSAFE, body()))
        .await
        .expect("there is room again");
    assert_eq!(moody.calls(), 2);
}

#[tokio::test]
async fn parked_calls_take_no_places_behind_a_concurrency_limit() {
    const PARKED: usize = 12;
    let (wake, woken) = tokio::sync::watch::channel(false);
    let moody = Moody::new(move |request| {
        let mut woken = woken.clone();
        async move {
            if request.method == UNSAFE.ordinal {
                let woken = woken.wait_for(|is_awake| *is_awake);
                assert!(bowline::call::park(woken).await.is_ok());
            }
            Ok(RawReply::new(Outcome::Success, request.body))
        }
    });
    let server = Server::builder()
        .service(moody.clone())
        .layer(
            ShedLayer::with_queue(Limit::Fixed(2), 1, Duration::ZERO)
                .bulkhead(UNSAFE, Limit::Fixed(1)),
        )
        .bind(endpoint())
        .await
        .expect("it binds")
        .spawn();
    let client = Client::connect(server.endpoint().to_string())
        .await
        .expect("there");
    let mut parked = JoinSet::new();
    for number in 0..PARKED as u64 {
        let client = client.clone();
        parked.spawn(client.oneshot(RawRequest::new(UNSAFE, body())));
        // One after the other: the first poll of each is its own work.
        while moody.calls.load(Ordering::Relaxed) <= number {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    for _ in 0..20 {
        let ended = client
            .clone()
            .oneshot(RawRequest::new(IDEMPOTENT, body()))
            .await;
        ended.expect("there is room");
    }
    wake.send_replace(true);
    let ended = parked.join_all().await;
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    server.shutdown().await;
}
