//! What a caller is told of the work of a call that was sent more than once.

use super::*;
use bowline::resilience::HedgeLayer;
use tokio::time::sleep;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn success() -> Result<RawReply, Status> {
    Ok(RawReply::new(Outcome::Success, Bytes::new()))
}

fn hedged<F>(
    attempt: impl FnMut(RawRequest) -> F + Clone + Send + 'static,
) -> impl Service<RawRequest, Response = RawReply, Error = Status>
where
    F: Future<Output = Result<RawReply, Status>> + Send + 'static,
{
    let layer = HedgeLayer::new(HedgeAfter::Fixed(ms(50)), SharedBudget::default());
    layer.layer(tower::service_fn(attempt))
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_waited_for_where_the_first_attempt_fails() {
    let mut service = hedged(|request| async move {
        if request.attempt == 0 {
            sleep(ms(100)).await;
            return Err(Status::unavailable("not now"));
        }
        sleep(ms(70)).await;
        success()
    });
    let request = RawRequest::new(IDEMPOTENT, body());
    service.call(request).await.expect("the hedge succeeds");
}

#[tokio::test(start_paused = true)]
async fn a_failed_hedge_makes_the_outcome_unknown() {
    let lost = || Status::unavailable("lost").with_work(Work::OutcomeUnknown);
    for first_is_lost in [true, false] {
        let mut service = hedged(move |request| async move {
            let is_first = request.attempt == 0;
            sleep(ms(if is_first { 100 } else { 20 })).await;
            match is_first == first_is_lost {
                true => Err(lost()),
                false => Err(Status::unavailable("not now")),
            }
        });
        let ended = service.call(RawRequest::new(IDEMPOTENT, body())).await;
        let status = ended.expect_err("both fail");
        assert_eq!(status.work(), Work::OutcomeUnknown, "{status}");
        assert_eq!(
            status
                .message()
                .starts_with("another attempt may have been done"),
            !first_is_lost,
            "{status}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_final_failure_of_the_first_attempt_is_unknown_while_its_hedge_runs() {
    let mut service = hedged(|request| async move {
        if request.attempt > 0 {
            std::future::pending::<()>().await;
        }
        sleep(ms(60)).await;
        Err(Status::invalid_argument("never right"))
    });
    let begun = tokio::time::Instant::now();
    let ended = service.call(RawRequest::new(IDEMPOTENT, body())).await;
    let status = ended.expect_err("it fails");
    assert_eq!(
        (status.code(), status.work()),
        (Code::InvalidArgument, Work::OutcomeUnknown)
    );
    assert!(begun.elapsed() < ms(100), "no hedge can cure it");
}

fn waiting(method: &'static MethodInfo, time: Duration) -> RawRequest {
    let mut request = RawRequest::new(method, body());
    request.deadline = Some(tokio::time::Instant::now() + time);
    request.wait_for_ready = true;
    request
}

#[tokio::test]
async fn wait_for_ready_returns_what_a_handler_answers() {
    let moody = Moody::failing(|| {
        Status::unavailable("the database is away").with_retry_after(Duration::from_secs(1))
    });
    let server = moody.start().await;
    let mut client = Client::connect(server.endpoint().to_string())
        .await
        .expect("an endpoint");
    let status = client
        .call(waiting(IDEMPOTENT, Duration::from_secs(30)))
        .await
        .expect_err("the handler fails");
    assert_eq!(moody.calls(), 1);
    assert_eq!(status.message(), "the database is away");
    assert_eq!(status.retry_after(), Some(Duration::from_secs(1)));
}

/// A service that never answers, on a runtime of its own, which goes as a killed process does.
fn dying(moody: &Moody) -> (tokio::runtime::Runtime, ServerHandle) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let server = Server::builder().service(moody.clone());
    let server = std::thread::scope(|scope| {
        let started = scope.spawn(|| {
            runtime.block_on(async {
                server
                    .bind("tcp://127.0.0.1:0")
                    .await
                    .expect("it binds")
                    .spawn()
            })
        });
        started.join().expect("no panic")
    });
    (runtime, server)
}

async fn start_at(endpoint: &str, moody: &Moody) -> ServerHandle {
    loop {
        match Server::builder()
            .service(moody.clone())
            .bind(endpoint)
            .await
        {
            Ok(server) => return server.spawn(),
            Err(_) => sleep(ms(5)).await,
        }
    }
}

#[tokio::test]
async fn wait_for_ready_merges_what_is_known_of_the_work() {
    let hangs = Moody::new(|_| std::future::pending());
    let (runtime, server) = dying(&hangs);
    let endpoint = server.endpoint().to_string();
    let mut client = Client::connect(&endpoint).await.expect("an endpoint");
    let call = client.call(waiting(IDEMPOTENT, Duration::from_secs(60)));
    let call = tokio::spawn(call);
    wait_until(|| hangs.calls() > 0).await;
    runtime.shutdown_background();
    let full = Moody::failing(|| Status::resource_exhausted("full"));
    let _second = start_at(&endpoint, &full).await;
    let status = call.await.expect("no panic").expect_err("it is refused");
    assert_eq!(
        (status.code(), status.work()),
        (Code::ResourceExhausted, Work::OutcomeUnknown)
    );
    assert_eq!(
        status.message(),
        "another attempt may have been done; this one: full"
    );
}

#[tokio::test]
async fn wait_for_ready_sends_a_request_again_three_times_at_most() {
    let hangs = Moody::new(|_| std::future::pending());
    let (mut runtime, mut server) = dying(&hangs);
    let endpoint = server.endpoint().to_string();
    let mut client = Client::connect(&endpoint).await.expect("an endpoint");
    let call = client.call(waiting(IDEMPOTENT, Duration::from_secs(60)));
    let mut call = tokio::spawn(call);
    for lives in 1..=4 {
        tokio::select! {
            _ = &mut call => panic!("it ends in life {lives}"),
            () = wait_until(|| hangs.calls() == lives) => {}
        }
        std::mem::replace(
            &mut runtime,
            tokio::runtime::Runtime::new().expect("a runtime"),
        )
        .shutdown_background();
        if lives < 4 {
            let handle = runtime.handle().clone();
            let (endpoint, hangs) = (endpoint.clone(), hangs.clone());
            let started = handle.spawn(async move { start_at(&endpoint, &hangs).await });
            server = started.await.expect("no panic");
        }
    }
    let status = call.await.expect("no panic").expect_err("it is lost");
    assert_eq!(status.work(), Work::OutcomeUnknown);
    // By the client, or by the server as it goes.
    assert!(
        matches!(
            status.reason(),
            Some(Reason::ConnectionLost | Reason::ShuttingDown)
        ),
        "{status}"
    );
    assert_eq!(hangs.calls(), 4);
    drop(server);
    runtime.shutdown_background();
}

#[tokio::test]
async fn an_unanswered_question_for_an_outcome_says_nothing_of_the_work() {
    let nothing_listens = "inproc://nothing-listens-here";
    let client = Client::builder().connect_wait(Duration::ZERO);
    let client = client.connect(nothing_listens).await.expect("an endpoint");
    let question = || {
        let mut request = RawRequest::new(ONCE, Bytes::new());
        request.outcome_only = true;
        request
    };
    let status = client
        .clone()
        .oneshot(question())
        .await
        .expect_err("no server");
    assert_eq!(status.work(), Work::OutcomeUnknown, "{status}");
    let call = client.oneshot(RawRequest::new(ONCE, body())).await;
    assert_eq!(call.expect_err("no server").work(), Work::NotDone);
    let resilient = Client::builder().connect_wait(Duration::ZERO).resilient();
    let resilient = resilient
        .connect([nothing_listens])
        .await
        .expect("an endpoint");
    let status = resilient.oneshot(question()).await.expect_err("no server");
    assert_eq!(status.work(), Work::OutcomeUnknown, "{status}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_method_succeeds_as_it_would_without_the_stack() {
    let slow = Moody::slow(Duration::from_secs(8));
    let servers = [slow.start().await, slow.start().await];
    let client = connect(&[&servers[0], &servers[1]]).await;
    let begun = tokio::time::Instant::now();
    call(&client, IDEMPOTENT).await.expect("within ten seconds");
    assert_eq!(begun.elapsed().as_secs(), 8);
}
