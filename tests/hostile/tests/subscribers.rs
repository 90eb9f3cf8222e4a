//! Subscribers that come and go, or stand still: the others and the publisher should see nothing of it.
//!
//! Longer: `BOWLINE_HOSTILE_SECONDS=60 cargo test --release -p bowline-test-hostile --test subscribers -- --nocapture`

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bowline::Subscriber;
use bowline::topic::Keys;
use bowline_test_hostile::good::{self, Watched};
use bowline_test_hostile::process::Victim;
use bowline_test_hostile::target::Tick;
use rustix::process::{Signal, kill_process};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// One at a time: they share the processor.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Of the long form; the short one is not held to times.
fn seconds() -> Option<u64> {
    let seconds = std::env::var("BOWLINE_HOSTILE_SECONDS").ok()?;
    Some(seconds.parse().unwrap())
}

fn service(arguments: &[&str]) -> Victim {
    let program = Path::new(env!("CARGO_BIN_EXE_besieged"));
    Victim::start(program, arguments, 2, Stdio::inherit()).unwrap()
}

async fn subscribe(service: &Victim) -> Subscriber<Tick> {
    let endpoint = format!("tcp://{}", service.address("topics"));
    let subscriber = Subscriber::<Tick>::connect(endpoint).await.unwrap();
    subscriber.subscribe(Keys::All).await.unwrap();
    subscriber
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_subscriber_never_waits_for_those_that_come_and_go() {
    const CLIENTS: usize = 4;
    const TOPICS: usize = 50;
    let _alone = ALONE.lock().await;
    let time = Duration::from_secs(seconds().unwrap_or(6));
    let service = service(&["rate=100"]);
    let mut steady = subscribe(&service).await;
    let end = Instant::now() + time;
    let connects = Arc::new(AtomicU64::new(0));
    for client in 0..CLIENTS {
        let endpoint = format!("tcp://{}", service.address("topics"));
        let connects = Arc::clone(&connects);
        tokio::spawn(async move {
            while Instant::now() < end {
                let passing = Subscriber::<Tick>::connect(&endpoint).await.unwrap();
                for topic in 1..TOPICS {
                    let keys = format!("{client}/{topic}");
                    let keys = Keys::Prefix(&keys);
                    passing.subscribe_unconfirmed(keys).await.unwrap();
                }
                // It goes only once it is there.
                passing.subscribe(Keys::All).await.unwrap();
                connects.fetch_add(1, Relaxed);
            }
        });
    }
    let watched = good::watch(&mut steady, u64::MAX, end).await;
    let connects = connects.load(Relaxed);
    println!(
        "{connects} connects of {TOPICS} topics; the steady one had {} events, missed {}, waited {:?} at most",
        watched.delivered, watched.missed, watched.longest_wait
    );
    assert_eq!(watched.missed, 0);
    if seconds().is_some() {
        assert!(watched.longest_wait < Duration::from_secs(1));
        assert!(connects >= 5000 * time.as_secs() / 60);
    } else {
        assert!(watched.longest_wait < Duration::from_secs(3));
        assert!(connects >= 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_subscriber_delays_nobody_costs_little_and_counts_what_it_missed() {
    const RATE: u64 = 10_000;
    const PUBLISHER_BYTES_MORE: u64 = 16 << 20;
    let _alone = ALONE.lock().await;
    let time = Duration::from_secs(seconds().map_or(5, |seconds| seconds / 3));
    // As long before it is frozen, while it is, and after.
    let events = RATE * time.as_secs() * 3;
    let events_argument = format!("events={events}");
    let rate_argument = format!("rate={RATE}");
    let mut service = service(&["subscribers=4", &events_argument, &rate_argument]);
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(subscribe(&service).await);
    }
    let topics = format!("topics={}", service.address("topics"));
    let program = Path::new(env!("CARGO_BIN_EXE_subscriber"));
    let mut frozen =
        Victim::start(program, &[&topics, &events_argument], 1, Stdio::inherit()).unwrap();
    let begun = Instant::now();
    let thaws = begun + time * 2;
    let gives_up = begun + time * 10;
    let watching = others.into_iter().map(|mut subscriber| {
        tokio::spawn(async move {
            // What it costs to begin is in neither figure.
            let begin = good::watch(&mut subscriber, u64::MAX, begun + time / 4).await;
            let before = good::watch(&mut subscriber, u64::MAX, begun + time).await;
            let during = good::watch(&mut subscriber, u64::MAX, thaws).await;
            let so_far = [&begin, &before, &during];
            let so_far: u64 = so_far.iter().map(|part| part.delivered + part.missed).sum();
            let after = good::watch(&mut subscriber, events - so_far, gives_up).await;
            [begin, before, during, after]
        })
    });
    let watching: Vec<_> = watching.collect();
    sleep_until(begun + time).await;
    let memory_before = service.resident();
    kill_process(frozen.pid(), Signal::STOP).unwrap();
    sleep_until(thaws).await;
    let memory_frozen = service.resident();
    kill_process(frozen.pid(), Signal::CONT).unwrap();
    let mut before = Vec::new();
    let mut during = Vec::new();
    for watched in watching {
        let parts = watched.await.unwrap();
        let delivered: u64 = parts.iter().map(|part| part.delivered).sum();
        let missed: u64 = parts.iter().map(|part| part.missed).sum();
        println!("another: {delivered} delivered, {missed} missed");
        assert_eq!(delivered + missed, events);
        let [_, first, second, _] = parts;
        before.push(first);
        during.push(second);
    }
    let said = tokio::task::spawn_blocking(move || frozen.line());
    let said = tokio::time::timeout_at(gives_up, said).await;
    let said = said.expect("it has counted all").unwrap().unwrap();
    let counted: Vec<u64> = said.split(' ').map(|n| n.parse().unwrap()).collect();
    let (before, during) = (p99(&before), p99(&during));
    println!(
        "the frozen one: {} delivered, {} missed of {events}; the others' p99 {during:?} (before: {before:?}); publisher {} MiB (before: {})",
        counted[0],
        counted[1],
        memory_frozen >> 20,
        memory_before >> 20
    );
    assert_eq!(counted[0] + counted[1], events);
    assert_ne!(counted[1], 0, "it was not frozen for long enough");
    assert!(memory_frozen <= memory_before + PUBLISHER_BYTES_MORE);
    if seconds().is_some() {
        assert!(during <= before.mul_f64(1.5));
    }
    assert_eq!(service.ended(), None);
}

fn p99(watched: &[Watched]) -> Duration {
    let mut all = watched[0].latencies.clone();
    for more in &watched[1..] {
        all.add(&more.latencies).unwrap();
    }
    Duration::from_micros(all.value_at_quantile(0.99))
}
