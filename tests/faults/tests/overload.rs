//! More is asked than can be done: what can be done is done, and what was broken comes back.

use std::time::Duration;

use bowline::resilience::{RetryPolicy, ShedLayer};
use bowline::{Client, Reason, Work};
use bowline_test_faults::faults::WorkClient;
use bowline_test_faults::load::{Ended, goodput, open_loop, percentile};
use bowline_test_faults::process::Service;
use bowline_test_faults::{by_form, is_long};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const HANDS: u32 = 4;
/// A hand does fifty in a second.
const MILLISECONDS: &str = "20";
const CAPACITY: u32 = HANDS * 50;
const REFUSED_WITHIN: Duration = Duration::from_millis(10);

async fn service(arguments: &[&str]) -> Service {
    Service::start(env!("CARGO_BIN_EXE_service"), arguments).await
}

async fn connect(service: &Service) -> WorkClient {
    WorkClient::connect(service.endpoint())
        .await
        .expect("an endpoint")
}

/// What the service really does in a second when as many call as it has hands.
async fn capacity(client: &WorkClient) -> f64 {
    let (begun, time) = (Instant::now(), Duration::from_secs(2));
    let mut callers = JoinSet::new();
    for _ in 0..HANDS {
        let client = client.clone();
        callers.spawn(async move {
            let mut done = 0;
            while begun.elapsed() < time {
                client.work(|_| {}).await.expect("there is room");
                done += 1;
            }
            done
        });
    }
    let done: u32 = callers.join_all().await.into_iter().sum();
    f64::from(done) / begun.elapsed().as_secs_f64()
}

/// How late this machine wakes up who slept as long as one may wait at the door: the 99th percentile.
async fn lateness(time: Duration) -> Duration {
    let (begun, mut late) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let slept = Instant::now();
        sleep(ShedLayer::WAIT_MAX_DEFAULT).await;
        late.push(slept.elapsed() - ShedLayer::WAIT_MAX_DEFAULT);
    }
    percentile(late.into_iter(), 0.99)
}

#[tokio::test(flavor = "multi_thread")]
async fn under_three_times_its_load_a_service_does_what_it_can_and_refuses_the_rest_at_once() {
    let time = Duration::from_secs(by_form(5, 60));
    for door in ["fixed", "adaptive"] {
        let service = service(&["worker", &HANDS.to_string(), MILLISECONDS, door]).await;
        let client = connect(&service).await;
        let capacity = capacity(&client).await;
        let calls = open_loop(3 * CAPACITY, time, |number| {
            let client = client.clone();
            async move {
                client.work(|mut params| params.set_number(number)).await?;
                Ok(())
            }
        });
        let memory = async {
            sleep(time / 4).await;
            let early = service.resident_bytes();
            sleep(time * 5 / 8).await;
            (early, service.resident_bytes())
        };
        let (ended, (early, late), noise) = tokio::join!(calls, memory, lateness(time));

        let done = ended.iter().filter(|it| it.how.is_ok()).count();
        let per_second = done as f64 / time.as_secs_f64();
        let refused = |it: &&Ended| {
            let status = it.how.as_ref().err();
            status.is_some_and(|status| status.reason() == Some(Reason::Overloaded))
        };
        let refusals: Vec<&Ended> = ended.iter().filter(refused).collect();
        let took = |share| percentile(refusals.iter().map(|it| it.took), share);
        println!(
            "{door} door: {} calls in {time:?}; capacity {capacity:.0}/s, done {per_second:.0}/s; \
             {} refused, p50 {:?}, p99 {:?}, on a machine that wakes up {noise:?} late; \
             resident {} KiB, later {} KiB",
            ended.len(),
            refusals.len(),
            took(0.5),
            took(0.99),
            early / 1024,
            late / 1024,
        );
        for it in &refusals {
            let status = it.how.as_ref().expect_err("refused");
            assert_eq!(status.work(), Work::NotDone);
            assert!(status.retry_after().is_some(), "it says when to come back");
        }
        assert!(refusals.len() > done / 2, "there was no overload");
        assert!(per_second >= 0.8 * capacity, "{per_second} of {capacity}");
        assert!(
            late <= early + early / 5 + (2 << 20),
            "{early}, then {late} bytes"
        );
        if is_long() {
            // What a busy machine adds, to the client and to the server, is not the door's.
            let within = REFUSED_WITHIN + noise * 2;
            assert!(took(0.99) <= within, "{:?}, over {within:?}", took(0.99));
        }
    }
}

/// How a chain fared whose last service stood still for a while.
struct Fared {
    /// Calls of the last service for each call of the first, from the stall on.
    amplified: f64,
    /// From the end of the stall until all is well again.
    back_after: Option<Duration>,
}

/// Calls front, which calls middle, which calls one of the leaves, at four fifths of what these can do together.
async fn chain(name: &str, stack: &str, attempts: [&str; 2], leaves: u32) -> Fared {
    let seconds = |short, long| Duration::from_secs_f64(by_form(short, long));
    let (before, stall, after) = (seconds(2.0, 5.0), seconds(2.0, 8.0), seconds(6.5, 12.0));
    let rate = CAPACITY / 2 * 4 / 5;
    let hands = (HANDS / 2 / leaves).to_string();
    let mut last = Vec::new();
    for _ in 0..leaves {
        last.push(service(&["worker", &hands, MILLISECONDS, "open"]).await);
    }
    let endpoints: Vec<_> = last.iter().map(Service::endpoint).collect();
    let middle = service(&["relay", &endpoints.join(","), stack, attempts[1]]).await;
    let front = service(&["relay", middle.endpoint(), stack, attempts[0]]).await;
    let client = connect(&front).await;
    let mut controls = Vec::new();
    for leaf in &last {
        controls.push(connect(leaf).await);
    }
    let seen = async || {
        let mut calls = 0;
        for control in &controls {
            let seen = control.seen(|_| {}).await.expect("seen");
            calls += seen.plain().expect("readable").calls;
        }
        calls
    };

    let calls = open_loop(rate, before + stall + after, |number| {
        let client = client.clone();
        async move {
            let call = client.work(|mut params| params.set_number(number));
            let reply = call.timeout(Duration::from_millis(1000)).await?;
            assert_eq!(reply.get()?.get_number(), number);
            Ok(())
        }
    });
    let stalling = async {
        sleep(before).await;
        let calls = seen().await;
        for control in &controls {
            let milliseconds = stall.as_millis() as u32;
            let stalled = control.stall(|mut params| params.set_milliseconds(milliseconds));
            stalled.await.expect("it stalls");
        }
        calls
    };
    let (ended, calls_before) = tokio::join!(calls, stalling);
    let since = ended.iter().filter(|it| it.begun >= before).count();
    let amplified = (seen().await - calls_before) as f64 / since as f64;
    let window = Duration::from_millis(500);
    let (over, end) = (before + stall, before + stall + after);
    // The first half second from which on, up to the end, 95 % are answered.
    let steps = (0..).map(|step| over + window * step);
    let back_at = steps
        .take_while(|at| *at + window <= end)
        .find(|at| goodput(&ended, *at, end) >= 0.95 && goodput(&ended, *at, *at + window) >= 0.95);
    let during = goodput(&ended, before, over);
    let fared = Fared {
        amplified,
        back_after: back_at.map(|at| at - over),
    };
    let in_the_end = goodput(&ended, end - seconds(1.5, 2.0), end);
    println!(
        "{name}: {} calls, stalled {stall:?}; goodput {:.3} before, {during:.3} while it stalls, \
         {:.3} in the end; back after {:?}; {amplified:.2} calls of the last service for each",
        ended.len(),
        goodput(&ended, Duration::ZERO, before),
        in_the_end,
        fared.back_after,
    );
    assert!(during < 0.9, "there was no stall");
    fared
}

/// When another attempt begins beside one that has no answer, of the first and the second service of a chain.
const ATTEMPTS: [&str; 2] = ["400", "100"];
/// What two tiers may add that each may send a fifth and ten a second again, an eighth at this rate, and what they had
/// saved up.
const AMPLIFIED_MAX: f64 = 1.33 * 1.33 + 0.3;

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_whose_last_service_stood_still_recovers_within_its_budget() {
    let back_within = Duration::from_secs(by_form(5, 10));
    for (name, attempts) in [
        ("whole stack", ["-", "-"]),
        ("whole stack, attempts of a fixed time", ATTEMPTS),
    ] {
        let fared = chain(name, "whole", attempts, 1).await;
        assert!(fared.amplified <= AMPLIFIED_MAX, "{}", fared.amplified);
        let back = fared.back_after.is_some_and(|after| after <= back_within);
        assert!(back, "{:?}", fared.back_after);
    }
}

/// Of two that stand still, one is always asked.
#[tokio::test(flavor = "multi_thread")]
async fn budgets_bound_what_a_stalled_pair_is_asked() {
    let whole = chain("a pair, whole stack", "whole", ATTEMPTS, 2).await;
    let unbounded = chain("a pair, without budgets and breakers", "none", ATTEMPTS, 2).await;
    let (with, without) = (whole.amplified, unbounded.amplified);
    assert!(with <= AMPLIFIED_MAX, "{with}");
    assert!(
        without > 1.5 * with,
        "{without} without budgets, {with} with"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_told_to_come_back_later_does_and_is_served_in_the_end() {
    let service = service(&["worker", "2", "5", "fixed"]).await;
    let client = Client::builder()
        .resilient()
        .budget(None)
        .retry(RetryPolicy {
            attempts_max: u16::MAX,
            ..Default::default()
        });
    let client = client.connect([service.endpoint()]).await.expect("there");
    let mut callers = JoinSet::new();
    for _ in 0..40 {
        let client = WorkClient::new(client.clone());
        callers.spawn(async move {
            let call = client.work(|_| {}).timeout(Duration::from_secs(30));
            call.await.map(drop)
        });
    }
    for done in callers.join_all().await {
        done.expect("in the end");
    }
    println!("{:?}", client.counters());
    assert!(client.counters().sent_again > 0, "nobody was refused");
}
