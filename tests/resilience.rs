//! The resilient client over real servers in this process, some of which fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bowline::call::{NamedService, Outcome, RawReply, RawRequest, ReplyFuture};
use bowline::resilience::{
    AdaptivePolicy, Balance, BudgetPolicy, HedgeAfter, Limit, Resilient, RetryLayer, RetryPolicy,
    SharedBudget, ShedLayer, TryTimeout,
};
use bowline::schema::{Effect, MethodInfo, Recovery, ServiceInfo};
use bowline::{Client, Code, Reason, Server, ServerHandle, Status, Work};
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

const fn method(name: &'static str, ordinal: u16, effect: Effect) -> MethodInfo {
    MethodInfo {
        service: "moody",
        name,
        interface: 0x700d,
        ordinal,
        effect,
        timeout: None,
        params: 0,
        results: 0,
        fails: None,
    }
}

static METHODS: [MethodInfo; 3] = [
    method("idempotent", 0, Effect::Idempotent),
    method("once", 1, Effect::Once(Recovery::InDoubt)),
    method("unsafe", 2, Effect::Unsafe),
];
static INFO: ServiceInfo = ServiceInfo {
    name: "moody",
    interface: 0x700d,
    methods: &METHODS,
};
static IDEMPOTENT: &MethodInfo = &METHODS[0];
static ONCE: &MethodInfo = &METHODS[1];
static UNSAFE: &MethodInfo = &METHODS[2];

type Mood = Arc<dyn Fn(RawRequest) -> ReplyFuture + Send + Sync>;

/// Does what its mood says, and counts.
#[derive(Clone)]
struct Moody {
    mood: Mood,
    calls: Arc<AtomicU64>,
}

impl Moody {
    fn new<F>(mood: impl Fn(RawRequest) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<RawReply, Status>> + Send + 'static,
    {
        Self {
            mood: Arc::new(move |request| Box::pin(mood(request))),
            calls: Arc::default(),
        }
    }

    fn good() -> Self {
        Self::new(|request| async move { Ok(RawReply::new(Outcome::Success, request.body)) })
    }

    fn slow(time: Duration) -> Self {
        Self::new(move |request| async move {
            tokio::time::sleep(time).await;
            Ok(RawReply::new(Outcome::Success, request.body))
        })
    }

    fn failing(status: impl Fn() -> Status + Send + Sync + 'static) -> Self {
        Self::new(move |_| std::future::ready(Err(status())))
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    async fn start(&self) -> ServerHandle {
        let server = Server::builder().service(self.clone());
        server.bind(endpoint()).await.expect("it binds").spawn()
    }
}

fn endpoint() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("inproc://resilience-{number}")
}

impl NamedService for Moody {
    const INFO: &'static ServiceInfo = &INFO;
}

impl Service<RawRequest> for Moody {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        self.calls.fetch_add(1, Ordering::Relaxed);
        (self.mood)(request)
    }
}

fn body() -> Bytes {
    use bowline::message::Plain;
    "hello".to_owned().to_bytes().expect("it has an encoding")
}

async fn call(client: &Resilient, method: &MethodInfo) -> Result<RawReply, Status> {
    client
        .clone()
        .oneshot(RawRequest::new(method, body()))
        .await
}

async fn connect(servers: &[&ServerHandle]) -> Resilient {
    let endpoints = servers.iter().map(|server| server.endpoint().to_string());
    let client = Client::builder().resilient().connect(endpoints).await;
    client.expect("endpoints")
}

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

#[tokio::test(start_paused = true)]
async fn a_lone_endpoint_that_keeps_failing_is_left_alone_and_asked_again_later() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_broken = Arc::clone(&broken);
    let moody = Moody::new(move |request| {
        std::future::ready(match is_broken.load(Ordering::Relaxed) {
            true => Err(Status::internal("broken")),
            false => Ok(RawReply::new(Outcome::Success, request.body)),
        })
    });
    let server = moody.start().await;
    let client = Client::builder()
        .resilient()
        .retry(None)
        .connect([server.endpoint().to_string()])
        .await
        .expect("an endpoint");
    for _ in 0..5 {
        assert_eq!(
            call(&client, UNSAFE).await.unwrap_err().code(),
            Code::Internal
        );
    }
    let refused = call(&client, UNSAFE).await.unwrap_err();
    assert_eq!(
        (refused.reason(), refused.work()),
        (Some(Reason::CircuitOpen), Work::NotDone)
    );
    assert_eq!(moody.calls(), 5);
    broken.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    call(&client, UNSAFE).await.expect("the probe succeeds");
    call(&client, UNSAFE).await.expect("and it is closed");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_half_of_the_endpoints_are_left_out() {
    let broken = Moody::failing(|| Status::internal("broken"));
    let mut servers = Vec::new();
    for _ in 0..4 {
        servers.push(broken.start().await);
    }
    let client = connect(&servers.iter().collect::<Vec<_>>()).await;
    for _ in 0..200 {
        let status = call(&client, IDEMPOTENT).await.unwrap_err();
        assert_ne!(
            status.reason(),
            Some(Reason::CircuitOpen),
            "somebody is always asked"
        );
    }
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
    let mut failed = 0;
    for _ in 0..100 {
        failed += u32::from(call(&bare, IDEMPOTENT).await.is_err());
    }
    assert!((20..80).contains(&failed), "half of them: {failed}");

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
    // The reply is lost: the attempt's time is over before it is sent. The retry joins the work.
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
    let reply = call(&client, ONCE).await.expect("in the end");
    assert!(reply.replayed);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

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
        wait_until(|| server.counters().abandoned == 3).await;
        wait_until(|| ended.load(Ordering::Relaxed) == ended_before + 3).await;
        assert_eq!(done.load(Ordering::Relaxed), done_before + 1, "{endpoint}");
        server.shutdown().await;
    }
}

async fn wait_until(is_so: impl Fn() -> bool) {
    let waits = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waits).await;
    waited.expect("in time");
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
