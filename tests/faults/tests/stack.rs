//! Services that are killed and start again, with the default resilient stack and without one: the stack helps.

use std::time::Duration;

use bowline::call::CallService;
use bowline::{Client, Code, Status, Work};
use bowline_test_faults::by_form;
use bowline_test_faults::faults::WorkClient;
use bowline_test_faults::load::{Ended, open_loop, percentile};
use bowline_test_faults::process::Service;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

const SERVICES: usize = 5;
const CLIENTS: u64 = 3;
const KILL_EVERY: Duration = Duration::from_millis(500);
const CALLS_PER_SECOND: u32 = 60;

fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_service")
}

/// How a chain of services fared one of which was killed every half second.
struct Fared {
    ended: Vec<Ended>,
    kills: usize,
}

impl Fared {
    fn failed(&self) -> impl Iterator<Item = &Status> {
        self.ended.iter().filter_map(|it| it.how.as_ref().err())
    }

    fn failed_share(&self) -> f64 {
        self.failed().count() as f64 / self.ended.len() as f64
    }
}

/// Has three clients call the first of five services, each of which calls the next. `stack` is that of all of them.
async fn chain(stack: &str, seed: u64, time: Duration) -> Fared {
    let mut services = vec![Service::start(binary(), &["worker", "1000", "2", "open"]).await];
    while services.len() < SERVICES {
        let next = services[services.len() - 1].endpoint().to_owned();
        services.push(Service::start(binary(), &["relay", &next, stack, "-"]).await);
    }
    let front = services[SERVICES - 1].endpoint().to_owned();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        match stack {
            "plain" => {
                let client = Client::connect(&front).await.expect("an endpoint");
                clients.spawn(calls(WorkClient::new(client), time));
            }
            _ => {
                let client = Client::builder().resilient().connect([&front]).await;
                let client = client.expect("an endpoint");
                clients.spawn(calls(WorkClient::new(client), time));
            }
        }
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut ticks = interval_at(Instant::now() + KILL_EVERY, KILL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (begun, mut kills) = (Instant::now(), 0);
    while begun.elapsed() + KILL_EVERY < time {
        ticks.tick().await;
        let victim = random.usize(..SERVICES);
        services[victim].kill().await;
        services[victim].restart().await;
        kills += 1;
    }
    let ended = clients.join_all().await.into_iter().flatten().collect();
    Fared { ended, kills }
}

async fn calls<S: CallService + Sync + 'static>(
    client: WorkClient<S>,
    time: Duration,
) -> Vec<Ended> {
    let calls = open_loop(CALLS_PER_SECOND, time, |number| {
        let client = client.clone();
        async move {
            let reply = client.work(|mut params| params.set_number(number)).await?;
            assert_eq!(reply.get()?.get_number(), number);
            Ok(())
        }
    });
    calls.await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_under_kill_9_fails_at_most_a_third_as_often_with_the_stack() {
    let time = Duration::from_secs(by_form(15, 60));
    let seed = std::env::var("BOWLINE_SEED").map_or(314, |seed| seed.parse().expect("a number"));
    let mut shares = Vec::new();
    for stack in ["plain", "whole"] {
        let fared = chain(stack, seed, time).await;
        let took = |share| percentile(fared.ended.iter().map(|it| it.took), share);
        println!(
            "{stack}: {} kills, {} calls, {} failed ({:.2} %), p50 {:?}, p99 {:?}",
            fared.kills,
            fared.ended.len(),
            fared.failed().count(),
            fared.failed_share() * 100.0,
            took(0.5),
            took(0.99),
        );
        for status in fared.failed() {
            assert!(
                matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
                    && status.work() != Work::Done,
                "{status}"
            );
        }
        shares.push(fared.failed_share());
    }
    let [plain, whole] = shares[..] else {
        panic!("two runs")
    };
    assert!(
        plain > 0.0,
        "without a stack nothing failed: it shows nothing"
    );
    assert!(
        whole <= plain / 3.0,
        "{whole} with the stack, {plain} without"
    );
}

/// Calls until one succeeds; returns how long after `since` that was.
async fn first_success<S: CallService>(client: WorkClient<S>, since: Instant) -> Duration {
    while client.work(|_| {}).await.is_err() {
        sleep(Duration::from_millis(2)).await;
    }
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stack_succeeds_as_soon_after_a_restart_as_a_plain_client() {
    let restarts = by_form(8, 60);
    let mut service = Service::start(binary(), &["worker", "1000", "0", "open"]).await;
    let client = Client::connect(service.endpoint())
        .await
        .expect("an endpoint");
    // Over the same connection, so that both have the same luck with it.
    let resilient = WorkClient::new(Client::builder().resilient().over([client.clone()]));
    let plain = WorkClient::new(client);
    let mut late = Vec::new();
    for restart in 0..restarts {
        first_success(resilient.clone(), Instant::now()).await;
        service.kill().await;
        // Down for a moment, for longer than calls wait, and for longer than that.
        let down = Duration::from_millis([0, 300, 1_200][restart % 3]);
        let killed = Instant::now();
        while killed.elapsed() < down {
            let _ = tokio::time::timeout(
                Duration::from_millis(20),
                resilient.work(|_| {}).into_future(),
            )
            .await;
        }
        service.restart().await;
        let since = Instant::now();
        let plain = tokio::spawn(first_success(plain.clone(), since));
        let resilient = tokio::spawn(first_success(resilient.clone(), since));
        let (plain, resilient) = tokio::join!(plain, resilient);
        let (plain, resilient) = (plain.expect("no panic"), resilient.expect("no panic"));
        println!("down {down:?}: plain after {plain:?}, with the stack after {resilient:?}");
        late.push(resilient.saturating_sub(plain));
    }
    let within = Duration::from_millis(50);
    let exceeded = late.iter().filter(|late| **late > within).count();
    // On a busy machine any one of them may have waited for the processor.
    assert!(exceeded <= restarts / 8, "{late:?}");
}
