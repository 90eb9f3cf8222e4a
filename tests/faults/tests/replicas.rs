//! Three replicas, one of which is killed every three seconds: hardly anybody notices.

use std::time::Duration;

use bowline::{Client, Code, Status, Work};
use bowline_test_faults::faults::WorkClient;
use bowline_test_faults::load::{open_loop, percentile};
use bowline_test_faults::process::Service;
use bowline_test_faults::{by_form, is_long};
use tokio::time::{Instant, interval_at};

const KILL_EVERY: Duration = Duration::from_secs(3);
const DEAD_FOR: Duration = Duration::from_millis(500);
/// The schema's.
const DEADLINE: Duration = Duration::from_secs(1);
const LATE_MAX: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread")]
async fn of_three_replicas_one_dies_now_and_then_and_hardly_anybody_notices() {
    let time = Duration::from_secs(by_form(10, 60));
    let mut replicas = Vec::new();
    for _ in 0..3 {
        let arguments = ["worker", "1000", "2", "open"];
        replicas.push(Service::start(env!("CARGO_BIN_EXE_service"), &arguments).await);
    }
    let endpoints: Vec<String> = replicas.iter().map(|it| it.endpoint().to_owned()).collect();
    let client = Client::builder().resilient().connect(endpoints).await;
    let client = client.expect("endpoints");
    let killing = tokio::spawn(async move {
        let mut ticks = interval_at(Instant::now() + KILL_EVERY, KILL_EVERY);
        for killed in 0.. {
            ticks.tick().await;
            if (killed + 1) * KILL_EVERY >= time {
                return killed;
            }
            let victim = killed as usize % replicas.len();
            replicas[victim].kill().await;
            tokio::time::sleep(DEAD_FOR).await;
            replicas[victim].restart().await;
        }
        0
    });
    let calls = open_loop(500, time, |number| {
        let client = WorkClient::new(client.clone());
        async move {
            let reply = client.work(|mut params| params.set_number(number)).await?;
            assert_eq!(
                reply.get()?.get_number(),
                number,
                "the reply to another call"
            );
            Ok(())
        }
    });
    let ended = calls.await;
    let killed = killing.await.expect("no panic");

    let good = ended
        .iter()
        .filter(|it| it.how.is_ok() && it.took <= DEADLINE);
    let share = good.count() as f64 / ended.len() as f64;
    let failed = ended.iter().filter_map(|it| it.how.as_ref().err());
    let failed: Vec<&Status> = failed.collect();
    let latest = ended.iter().map(|it| it.took).max().unwrap_or_default();
    let took = |share| percentile(ended.iter().map(|it| it.took), share);
    println!(
        "{killed} kills, {} calls, {:.3} % in time, p50 {:?}, p99 {:?}, latest {latest:?}; {:?}; {} failed",
        ended.len(),
        share * 100.0,
        took(0.5),
        took(0.99),
        client.counters(),
        failed.len(),
    );
    for status in failed {
        println!("  {status}");
        let is_typed = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
        assert!(is_typed && status.work() != Work::Done, "{status}");
    }
    assert!(killed >= by_form(2, 18), "{killed} kills are too few");
    assert!(share >= 0.99, "{share}");
    if is_long() {
        let late = ended.iter().filter(|it| it.took > DEADLINE + LATE_MAX);
        assert_eq!(late.count(), 0, "{latest:?}");
    }
}
