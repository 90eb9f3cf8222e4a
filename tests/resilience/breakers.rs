//! Where calls go when an endpoint keeps failing, and when it is back.

use super::*;
use bowline::resilience::{BreakerPolicy, HedgeLayer};
use tokio::time::sleep;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[tokio::test]
async fn one_failing_method_leaves_the_others_alone() {
    for status in [
        Status::internal("a bug"),
        Status::unavailable("the database is away"),
        Status::new(Code::Unknown, Work::OutcomeUnknown, "?"),
        Status::invalid_argument("never right"),
        Status::resource_exhausted("full"),
    ] {
        let moody = Moody::new(move |request| {
            let fails = request.method == IDEMPOTENT.ordinal;
            std::future::ready(match fails {
                true => Err(status.clone()),
                false => Ok(RawReply::new(Outcome::Success, request.body)),
            })
        });
        let server = moody.start().await;
        let client = connect(&[&server]).await;
        for _ in 0..20 {
            call(&client, IDEMPOTENT).await.expect_err("it fails");
            call(&client, UNSAFE).await.expect("it works");
            call(&client, ONCE).await.expect("it works");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_endpoint_is_never_refused_and_sent_nothing_again_while_it_fails() {
    let is_broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    let moody = Moody::new(move |request| {
        std::future::ready(match broken.load(Ordering::Relaxed) {
            true => Err(Status::unavailable("broken")),
            false => Ok(RawReply::new(Outcome::Success, request.body)),
        })
    });
    let server = moody.start().await;
    let client = Client::builder()
        .resilient()
        .budget(None)
        .connect([server.endpoint().to_string()])
        .await
        .expect("an endpoint");
    for calls in 1..=5 {
        call(&client, IDEMPOTENT).await.expect_err("it is broken");
        assert_eq!(client.counters().left_out, 0);
        // Calls are counted, not attempts: the fifth opens the breaker with its first.
        assert_eq!(moody.calls(), if calls < 5 { calls * 4 } else { 17 });
    }
    for calls in 1..=10 {
        let status = call(&client, IDEMPOTENT).await.expect_err("it is broken");
        assert_eq!((status.message(), status.reason()), ("broken", None));
        assert_eq!(moody.calls(), 17 + calls);
    }
    is_broken.store(false, Ordering::Relaxed);
    call(&client, IDEMPOTENT)
        .await
        .expect("it is asked at once");
}

#[tokio::test(start_paused = true)]
async fn hedges_do_not_hide_an_endpoint_that_hangs() {
    let asked = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let endpoint = |index: usize| {
        let asked = Arc::clone(&asked);
        tower::util::BoxCloneSyncService::new(tower::service_fn(move |_: RawRequest| {
            let asked = Arc::clone(&asked);
            async move {
                asked[index].fetch_add(1, Ordering::Relaxed);
                if index == 1 {
                    std::future::pending::<()>().await;
                }
                sleep(ms(1)).await;
                Ok::<_, Status>(RawReply::new(Outcome::Success, Bytes::new()))
            }
        }))
    };
    let balance = Balance::new([endpoint(0), endpoint(1)], BreakerPolicy::default());
    let budget = SharedBudget::default();
    let mut stack = ServiceBuilder::new()
        .layer(RetryLayer::new(RetryPolicy::default(), budget.clone()))
        .layer(HedgeLayer::new(HedgeAfter::Fixed(ms(20)), budget))
        .service(balance.clone());
    let mut calls = 0;
    while balance.ejected() == 0 {
        calls += 1;
        assert!(calls < 100, "{asked:?}");
        let request = RawRequest::new(IDEMPOTENT, Bytes::new());
        stack.call(request).await.expect("the other answers");
        sleep(ms(60)).await;
    }
    assert_eq!(asked[1].load(Ordering::Relaxed), 5);
}

#[tokio::test(start_paused = true)]
async fn a_method_that_is_slow_everywhere_ejects_no_endpoint() {
    let slow = Moody::slow(ms(60));
    let servers = [slow.start().await, slow.start().await];
    let client = Client::builder()
        .resilient()
        .hedge(HedgeAfter::Fixed(ms(50)))
        .connect(servers.iter().map(|it| it.endpoint().to_string()))
        .await
        .expect("endpoints");
    for _ in 0..100 {
        call(&client, IDEMPOTENT).await.expect("it answers");
    }
    assert_eq!(client.counters().left_out, 0);
}

#[tokio::test]
async fn calls_wait_for_a_restart_and_fail_at_once_where_none_comes() {
    let moody = Moody::good();
    let server = moody.start().await;
    let endpoint = server.endpoint().to_string();
    let client = Client::builder()
        .resilient()
        .retry(None)
        .reconnect_wait(Duration::from_secs(60))
        .connect([&endpoint])
        .await
        .expect("an endpoint");
    server.shutdown().await;
    let waits = tokio::spawn(async move { call(&client, UNSAFE).await });
    tokio::task::yield_now().await;
    let server = Server::builder().service(moody.clone());
    let _server = server.bind(&endpoint).await.expect("it binds").spawn();
    waits
        .await
        .expect("no panic")
        .expect("it waits for the restart");

    let client = Client::builder()
        .connect_wait(Duration::ZERO)
        .resilient()
        .retry(None)
        .reconnect_wait(Duration::ZERO)
        .connect(["inproc://never-there"])
        .await
        .expect("an endpoint");
    let status = call(&client, UNSAFE).await.expect_err("there is no server");
    assert_eq!(
        (status.code(), status.work()),
        (Code::Unavailable, Work::NotDone)
    );
    assert_ne!(status.reason(), Some(Reason::CircuitOpen));
}

#[tokio::test]
async fn a_call_with_wait_for_ready_goes_to_the_endpoint_that_comes_first() {
    let client = Client::builder()
        .connect_wait(Duration::ZERO)
        .resilient()
        .connect(["inproc://comes-never", "inproc://comes-later"])
        .await
        .expect("endpoints");
    let mut request = RawRequest::new(UNSAFE, body());
    request.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(60));
    request.wait_for_ready = true;
    let waits = tokio::spawn(client.oneshot(request));
    tokio::task::yield_now().await;
    let server = Server::builder().service(Moody::good());
    let _server = server
        .bind("inproc://comes-later")
        .await
        .expect("it binds")
        .spawn();
    waits.await.expect("no panic").expect("it waits");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opens_and_closes_is_logged_with_its_cause() {
    let logged = listening::listen();
    let is_broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    let moody = Moody::new(move |request| {
        std::future::ready(match broken.load(Ordering::Relaxed) {
            true => Err(Status::unavailable("the database is away")),
            false => Ok(RawReply::new(Outcome::Success, request.body)),
        })
    });
    let server = moody.start().await;
    let client = connect(&[&server]).await;
    for _ in 0..10 {
        call(&client, UNSAFE).await.expect_err("it is broken");
    }
    is_broken.store(false, Ordering::Relaxed);
    call(&client, UNSAFE).await.expect("it works");
    let endpoint = format!("endpoint={} ", server.endpoint());
    let logged = logged.lock().expect("no panic").clone();
    let of_this = |line: &&str| line.contains("breaker") && line.contains(&endpoint);
    let lines: Vec<&str> = logged.lines().filter(of_this).collect();
    let [opened, closed] = lines[..] else {
        panic!("{lines:?}")
    };
    assert!(
        opened.contains("breaker opened") && opened.contains("the database is away"),
        "{opened}"
    );
    assert!(closed.contains("breaker closed"), "{closed}");
}
