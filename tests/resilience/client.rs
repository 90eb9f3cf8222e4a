//! The stack of a client: whom it asks, how often, and how long.

use super::*;

#[tokio::test]
async fn a_dead_endpoint_among_three_is_avoided() {
    let (good, gone) = (Moody::good(), Moody::good());
    let servers = [good.start().await, gone.start().await, good.start().await];
    let client = connect(&[&servers[0], &servers[1], &servers[2]]).await;
    let [a, dead, b] = servers;
    dead.shutdown().await;
    for _ in 0..200 {
        for method in &METHODS {
            call(&client, method).await.expect("the others do it");
        }
    }
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn a_retry_has_the_same_id_and_goes_to_another_endpoint() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let fails = |name: &'static str| {
        let seen = Arc::clone(&seen);
        Moody::new(move |request| {
            let seen = Arc::clone(&seen);
            async move {
                seen.lock().await.push((name, request.id, request.attempt));
                Err(Status::unavailable("not now"))
            }
        })
    };
    let (a, b, c) = (
        fails("a").start().await,
        fails("b").start().await,
        fails("c").start().await,
    );
    let client = connect(&[&a, &b, &c]).await;
    let status = call(&client, UNSAFE).await.unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::Unavailable, Work::NotDone)
    );
    let seen = seen.lock().await;
    assert_eq!(seen.len(), 4, "{seen:?}");
    let attempts: Vec<u16> = seen.iter().map(|(_, _, attempt)| *attempt).collect();
    assert_eq!(attempts, [0, 1, 2, 3]);
    assert!(seen.iter().all(|(_, id, _)| *id == seen[0].1));
    let mut first_three: Vec<_> = seen[..3].iter().map(|(name, ..)| *name).collect();
    first_three.sort();
    assert_eq!(first_three, ["a", "b", "c"]);
}

#[tokio::test]
async fn an_unsafe_method_is_not_sent_again_once_it_may_have_been_done() {
    let broken = Moody::failing(|| Status::unavailable("?").with_work(Work::OutcomeUnknown));
    let server = broken.start().await;
    let client = connect(&[&server]).await;
    assert_eq!(
        call(&client, UNSAFE).await.unwrap_err().work(),
        Work::OutcomeUnknown
    );
    assert_eq!(broken.calls(), 1);
    assert_eq!(
        call(&client, IDEMPOTENT).await.unwrap_err().work(),
        Work::OutcomeUnknown
    );
    assert_eq!(broken.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_budget_bounds_what_retries_add_to_a_storm() {
    let broken = Moody::failing(|| Status::unavailable("down"));
    let server = broken.start().await;
    let storm = async |budget: BudgetPolicy| {
        let client = Client::builder()
            .resilient()
            .breaker(None)
            .budget(budget)
            .connect([server.endpoint().to_string()])
            .await
            .expect("an endpoint");
        let before = broken.calls();
        let begun = tokio::time::Instant::now();
        for _ in 0..2_000 {
            let _ = call(&client, IDEMPOTENT).await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        ((broken.calls() - before) as f64, seconds)
    };
    let (attempts, seconds) = storm(BudgetPolicy::default()).await;
    assert!(
        attempts <= 2_000.0 * 1.2 + 10.0 * (seconds + 1.0),
        "{attempts} in {seconds} s"
    );
    let unlimited = BudgetPolicy {
        per_call: 10.0,
        saved_max: 1e9,
        ..Default::default()
    };
    let (attempts, _) = storm(unlimited).await;
    assert_eq!(attempts, 8_000.0, "without a budget it is a storm");
}

/// A client without retries of so many endpoints that fail and so many that do not. Calls until those that keep
/// failing are left out, and returns how often each is called after that: of 100 calls.
async fn after_a_while(failing: usize, good: usize) -> (Resilient, Vec<u64>, Vec<u64>) {
    let mut moods = Vec::new();
    for number in 0..failing + good {
        moods.push(match number < failing {
            true => Moody::failing(|| Status::unavailable("broken")),
            false => Moody::good(),
        });
    }
    let mut servers = Vec::new();
    for mood in &moods {
        servers.push(mood.start().await);
    }
    let endpoints = servers.iter().map(|it| it.endpoint().to_string());
    let client = Client::builder().resilient().retry(None);
    let client = client.connect(endpoints).await.expect("endpoints");
    // Enough for each to fail five times, whatever is picked.
    for _ in 0..400 {
        let _ = call(&client, UNSAFE).await;
    }
    let before: Vec<u64> = moods.iter().map(Moody::calls).collect();
    for _ in 0..100 {
        match call(&client, UNSAFE).await {
            Ok(_) => {}
            Err(status) => assert_eq!(status.message(), "broken", "one is asked: {status}"),
        }
    }
    let calls = moods
        .iter()
        .zip(before)
        .map(|(it, before)| it.calls() - before);
    let mut calls: Vec<u64> = calls.collect();
    let of_good = calls.split_off(failing);
    (client, calls, of_good)
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_keeps_failing_is_left_out_and_no_other() {
    let (client, failing, good) = after_a_while(1, 2).await;
    assert_eq!((client.counters().left_out, &failing[..]), (1, &[0][..]));
    assert!(good.iter().all(|calls| *calls > 20), "{good:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_half_of_the_endpoints_are_left_out() {
    let (client, failing, good) = after_a_while(3, 1).await;
    assert_eq!(client.counters().left_out, 2);
    let not_asked = failing.iter().filter(|calls| **calls == 0).count();
    assert_eq!(not_asked, 2, "{failing:?}");
    assert!(good.iter().all(|calls| *calls > 20), "{good:?}");
}

#[tokio::test(start_paused = true)]
async fn none_is_left_out_where_all_keep_failing() {
    for count in [4, 3, 2] {
        let (client, failing, _) = after_a_while(count, 0).await;
        assert_eq!(client.counters().left_out, 0);
        assert!(failing.iter().all(|calls| *calls > 0), "{failing:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_that_hang_open_the_breaker_of_their_endpoint_and_no_other() {
    let (hangs, good) = (Moody::slow(Duration::from_secs(3600)), Moody::good());
    let (a, b) = (hangs.start().await, good.start().await);
    let client = connect(&[&a, &b]).await;
    while client.counters().left_out == 0 {
        call(&client, IDEMPOTENT).await.expect("the other does it");
    }
    // Each call ended well. It is the attempts that count, and five of them were too slow.
    assert_eq!(hangs.calls(), 5);
    let good_before = good.calls();
    for _ in 0..50 {
        call(&client, UNSAFE).await.expect("the other does it");
    }
    assert_eq!((hangs.calls(), good.calls()), (5, good_before + 50));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_leaves_time_for_another() {
    let (hangs, good) = (Moody::slow(Duration::from_secs(3600)), Moody::good());
    let (a, b) = (hangs.start().await, good.start().await);
    let client = connect(&[&a, &b]).await;
    for _ in 0..20 {
        let begun = tokio::time::Instant::now();
        call(&client, IDEMPOTENT)
            .await
            .expect("the other one does it");
        assert!(begun.elapsed() <= Duration::from_secs(5));
    }
    assert!(hangs.calls() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_is_hedged_and_the_first_answer_wins() {
    let (slow, fast) = (Moody::slow(Duration::from_secs(2)), Moody::good());
    let (a, b) = (slow.start().await, fast.start().await);
    for retry in [Some(RetryPolicy::default()), None] {
        let client = Client::builder()
            .resilient()
            .retry(retry)
            .try_timeout(None)
            .hedge(HedgeAfter::Fixed(Duration::from_millis(50)))
            .connect([a.endpoint().to_string(), b.endpoint().to_string()])
            .await
            .expect("endpoints");
        let before = slow.calls() + fast.calls();
        for _ in 0..10 {
            let begun = tokio::time::Instant::now();
            call(&client, IDEMPOTENT).await.expect("somebody answers");
            // It went to the other one.
            let took = begun.elapsed();
            assert!(took < Duration::from_millis(200), "{took:?}");
        }
        let hedges = client.counters().sent_again;
        let calls = slow.calls() + fast.calls() - before;
        assert!(hedges > 0);
        assert_eq!(calls, 10 + hedges);
        for _ in 0..4 {
            call(&client, UNSAFE).await.expect("somebody answers");
            call(&client, ONCE).await.expect("somebody answers");
        }
        assert_eq!(
            client.counters().sent_again,
            hedges,
            "only where it is idempotent"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_paid_for_from_the_budget_of_retries() {
    let slow = Moody::slow(Duration::from_secs(2));
    let (a, b) = (slow.start().await, slow.start().await);
    let nothing = BudgetPolicy {
        per_call: 0.0,
        per_second: 0.0,
        saved_max: 0.0,
    };
    let client = Client::builder()
        .resilient()
        .budget(nothing)
        .hedge(HedgeAfter::Fixed(Duration::from_millis(50)))
        .connect([a.endpoint().to_string(), b.endpoint().to_string()])
        .await
        .expect("endpoints");
    for calls in 1..=5 {
        call(&client, IDEMPOTENT).await.expect("in its own time");
        assert_eq!(slow.calls(), calls);
    }
    let counters = client.counters();
    assert_eq!((counters.sent_again, counters.over_budget), (0, 5));
}

#[tokio::test(start_paused = true)]
async fn a_client_comes_back_no_sooner_than_the_server_says() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = Arc::clone(&seen);
    let full = Moody::new(move |request| {
        let sees = Arc::clone(&sees);
        async move {
            let mut seen = sees.lock().await;
            seen.push(tokio::time::Instant::now());
            match seen.len() {
                3 => Ok(RawReply::new(Outcome::Success, request.body)),
                _ => {
                    let wait = Duration::from_millis(700);
                    let full = Status::resource_exhausted("full").with_reason(Reason::Overloaded);
                    Err(full.with_retry_after(wait))
                }
            }
        }
    });
    let server = full.start().await;
    let client = connect(&[&server]).await;
    call(&client, UNSAFE).await.expect("the third time");
    let seen = seen.lock().await;
    for attempts in seen.windows(2) {
        let waited = attempts[1] - attempts[0];
        assert!(waited >= Duration::from_millis(700), "{waited:?}");
        assert!(waited < Duration::from_millis(800), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_has_the_id_of_its_call_and_a_number_of_its_own() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = Arc::clone(&seen);
    let slow = Moody::new(move |request| {
        let sees = Arc::clone(&sees);
        async move {
            sees.lock().await.push((request.id, request.attempt));
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(RawReply::new(Outcome::Success, request.body))
        }
    });
    let (a, b) = (slow.start().await, slow.start().await);
    let client = Client::builder()
        .resilient()
        .hedge(HedgeAfter::Fixed(Duration::from_millis(50)))
        .connect([a.endpoint().to_string(), b.endpoint().to_string()])
        .await
        .expect("endpoints");
    call(&client, IDEMPOTENT).await.expect("both answer");
    let seen = seen.lock().await;
    let [(first, 0), (second, 1)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(first, second);
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_the_client_holds_where_schema_and_call_say_nothing() {
    let server = Moody::slow(Duration::from_secs(3600)).start().await;
    let client = Client::builder()
        .timeout(Duration::from_millis(300))
        .resilient()
        .breaker(None)
        .connect([server.endpoint().to_string()])
        .await
        .expect("an endpoint");
    for method in &METHODS {
        let begun = tokio::time::Instant::now();
        let status = call(&client, method).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        assert!(begun.elapsed() <= Duration::from_millis(350));
    }
}

#[tokio::test]
async fn an_open_circuit_behind_a_service_does_not_open_that_of_the_service() {
    let refuses = Moody::failing(|| {
        Status::unavailable("somebody else is left alone").with_reason(Reason::CircuitOpen)
    });
    let server = refuses.start().await;
    let client = connect(&[&server]).await;
    for calls in 1..=50 {
        let status = call(&client, IDEMPOTENT).await.unwrap_err();
        assert_eq!(status.reason(), Some(Reason::CircuitOpen));
        assert_eq!(
            refuses.calls(),
            calls,
            "asked each time, and once each time"
        );
    }
}

#[tokio::test]
async fn each_part_can_be_left_out_and_others_put_in_its_place() {
    let (good, gone) = (Moody::good(), Moody::good());
    let (a, dead) = (good.start().await, gone.start().await);
    let endpoints = [a.endpoint().to_string(), dead.endpoint().to_string()];
    dead.shutdown().await;
    let bare = Client::builder()
        .resilient()
        .retry(None)
        .budget(None)
        .breaker(None)
        .try_timeout(None)
        .connect(&endpoints)
        .await
        .expect("endpoints");
    for _ in 0..100 {
        call(&bare, IDEMPOTENT)
            .await
            .expect("it goes to the one that is connected");
    }

    let mut clients = Vec::new();
    for endpoint in &endpoints {
        clients.push(TryTimeout::default().layer(Client::connect(endpoint).await.expect("one")));
    }
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(
            RetryPolicy::default(),
            SharedBudget::new(None),
        ))
        .concurrency_limit(3)
        .service(Balance::new(clients, None));
    for _ in 0..100 {
        let request = RawRequest::new(IDEMPOTENT, body());
        stack
            .clone()
            .oneshot(request)
            .await
            .expect("the other does it");
    }
}

#[tokio::test]
async fn a_duplicate_over_the_retries_of_one_call_is_done_once() {
    // The attempt's time is over before it is answered. The one beside it joins the work.
    let count = Arc::new(AtomicU64::new(0));
    let counts = Arc::clone(&count);
    let moody = Moody::new(move |request| {
        let counts = Arc::clone(&counts);
        async move {
            counts.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(RawReply::new(Outcome::Success, request.body))
        }
    });
    let server = moody.start().await;
    let client = Client::builder()
        .resilient()
        .try_timeout(TryTimeout {
            share: 0.0,
            at_least: Duration::from_millis(100),
        })
        .retry(RetryPolicy {
            attempts_max: 10,
            ..Default::default()
        })
        .connect([server.endpoint().to_string()])
        .await
        .expect("an endpoint");
    call(&client, ONCE).await.expect("in the end");
    assert!(client.counters().sent_again > 0);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}
