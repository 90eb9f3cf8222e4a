//! A shop under everything that goes wrong now and then: a network that loses, repeats, swaps and delays a hundredth of the
//! messages and is cut every few seconds, handlers that fail in every way, workers that are killed and stopped, clients and
//! subscribers that come and go. At the end every count adds up, and what the shop holds is what it held before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bowline::queue::Queue;
use bowline::resilience::{Resilient, TryTimeout};
use bowline::topic::{Event, Keys};
use bowline::{Client, Reason, RequestId, RequestKey, Subscriber, Work};
use bowline_test_faults::proxy::{Plan, Proxy};
use bowline_test_soak::soak::{Parcel, Placed, ShopClient, Usage};
use bowline_test_soak::{SECONDS_DEFAULT, SECONDS_JUDGED};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

#[path = "soak/processes.rs"]
mod processes;
use processes::{Shop, Worker};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const ATTEMPT: Duration = Duration::from_millis(250);
const CALLS: Plan = Plan {
    lost: 1,
    repeated: 1,
    swapped: 1,
    delayed: 1,
    delay: Duration::from_millis(300),
};
const EVENTS: Plan = Plan {
    lost: 0,
    repeated: 0,
    swapped: 0,
    delayed: 1,
    delay: Duration::from_millis(50),
};

/// What the callers know of what they did.
#[derive(Debug, Default)]
struct Known {
    stop: AtomicBool,
    ordered: AtomicU64,
    quoted: AtomicU64,
    failed: AtomicU64,
    pushed: AtomicU64,
    delivered: AtomicU64,
    missed: AtomicU64,
    came_and_went: AtomicU64,
}

impl Known {
    fn goes_on(&self) -> bool {
        !self.stop.load(Relaxed)
    }
}

async fn resilient(endpoint: &str) -> ShopClient<Resilient> {
    let client = Client::builder().resilient().try_timeout(TryTimeout {
        share: 0.0,
        at_least: ATTEMPT,
    });
    ShopClient::new(client.connect([endpoint]).await.expect("an endpoint"))
}

/// Places one order after the other, and finds out of each what became of it.
async fn order(endpoint: String, first: u64, known: Arc<Known>) {
    let shop = resilient(&endpoint).await;
    let mut number = first;
    while known.goes_on() {
        number += 1;
        let id = RequestId::new();
        let order = shop.order(|mut params| params.set_number(number));
        let mut is_ordered = match order.request_id(id.clone()).await {
            Ok(_) => Some(true),
            Err(status) if status.work() == Work::NotDone => Some(false),
            Err(_) => None,
        };
        if is_ordered.is_none() {
            // A request that is still held up in the network would run after it was asked for.
            sleep(CALLS.delay * 2 + Duration::from_secs(1)).await;
        }
        let asked = Instant::now();
        while is_ordered.is_none() {
            assert!(
                asked.elapsed() < PATIENCE,
                "the outcome of {id} stays unknown"
            );
            is_ordered = match shop.order_outcome(id.clone()).await {
                Ok(_) => Some(true),
                Err(status) if status.reason() == Some(Reason::KeyUnknown) => Some(false),
                Err(_) => None,
            };
        }
        known
            .ordered
            .fetch_add(u64::from(is_ordered == Some(true)), Relaxed);
        sleep(Duration::from_millis(20)).await;
    }
}

async fn quote(endpoint: String, first: u64, known: Arc<Known>) {
    let shop = resilient(&endpoint).await;
    let mut number = first;
    while known.goes_on() {
        number += 1;
        match shop.quote(|mut params| params.set_number(number)).await {
            Ok(reply) => {
                let quoted = reply.get().expect("readable").get_number();
                assert_eq!(quoted, number, "the reply to another call");
                known.quoted.fetch_add(1, Relaxed);
            }
            Err(_) => {
                known.failed.fetch_add(1, Relaxed);
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn push(endpoint: String, known: Arc<Known>) {
    let parcels = Queue::<Parcel>::connect(endpoint)
        .await
        .expect("an endpoint");
    for number in 0.. {
        let text = "x".repeat(number as usize % 2000);
        let parcel = Parcel { number, text };
        let id = RequestKey::new(format!("parcel-{number}")).expect("short");
        let begun = Instant::now();
        while let Err(error) = parcels.push(&parcel).id(id.clone()).await {
            assert!(begun.elapsed() < PATIENCE, "parcel {number}: {error}");
            sleep(Duration::from_millis(10)).await;
        }
        known.pushed.fetch_add(1, Relaxed);
        if !known.goes_on() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Counts every event as delivered or as missed, for as long as the subscriber lives.
async fn listen(mut placed: Subscriber<Placed>, known: Arc<Known>) {
    while let Some(event) = placed.next().await {
        match event {
            Event::Message(_) => known.delivered.fetch_add(1, Relaxed),
            Event::Missed { from, to, .. } => known.missed.fetch_add(to - from + 1, Relaxed),
            Event::Restarted { .. } => panic!("the publisher has not been restarted"),
        };
    }
}

/// Clients and subscribers that stay for a moment.
async fn come_and_go(calls: String, topic: String, known: Arc<Known>) {
    while known.goes_on() {
        let shop = ShopClient::connect(calls.as_str())
            .await
            .expect("an endpoint");
        // Dropped in the middle, now and then.
        let wait = Duration::from_millis(fastrand::u64(1..100));
        let quote = shop.quote(|mut params| params.set_number(fastrand::u64(..)));
        let _ = timeout(wait, quote).await;
        let placed = Subscriber::<Placed>::connect(topic.as_str()).await;
        let mut placed = placed.expect("an endpoint");
        let key = format!("shelf-{}", fastrand::u8(..16));
        let _ = timeout(wait, placed.subscribe(Keys::Prefix(&key))).await;
        let _ = timeout(wait, placed.next()).await;
        known.came_and_went.fetch_add(1, Relaxed);
        sleep(Duration::from_millis(100)).await;
    }
}

/// Kills a worker, and stops another for longer than its lease, by turns.
async fn harm(workers: &mut [Worker], known: &Known) -> u32 {
    let mut harmed = 0;
    while known.goes_on() {
        sleep(Duration::from_millis(1500)).await;
        let at = harmed as usize % workers.len();
        match harmed % 2 {
            0 => workers[at].kill_and_restart().await,
            _ => workers[at].stop_for(Duration::from_millis(2500)).await,
        }
        harmed += 1;
    }
    harmed
}

/// Waits until both are equal.
async fn settle(what: &str, mut counts: impl AsyncFnMut() -> (u64, u64)) {
    let begun = Instant::now();
    loop {
        let (left, right) = counts().await;
        if left == right {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: {left} of {right}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// What the shop held at one of the samples' times, from 0 to 1: the most of each within a fifth of the run.
fn most(samples: &[Usage], from: f64) -> Usage {
    let at = |share: f64| (samples.len() as f64 * share) as usize;
    let samples = &samples[at(from)..at(from + 0.2)];
    samples.iter().fold(Usage::default(), |most, it| Usage {
        resident_bytes: most.resident_bytes.max(it.resident_bytes),
        descriptors: most.descriptors.max(it.descriptors),
        tasks: most.tasks.max(it.tasks),
        disk_bytes: most.disk_bytes.max(it.disk_bytes),
        ..most
    })
}

fn is_flat(what: &str, early: u64, late: u64, slack: u64) {
    let max = early + early / 10 + slack;
    assert!(
        late <= max,
        "{what} grew from {early} to {late}, over {max}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_under_faults_loses_nothing_and_stays_flat() {
    let seconds = std::env::var("BOWLINE_SOAK_SECONDS").ok();
    let seconds = seconds.map_or(SECONDS_DEFAULT, |it| it.parse().expect("seconds"));
    let folder = tempfile::tempdir().expect("a folder");
    let shop = Shop::start(folder.path()).await;
    let seed = fastrand::u64(..);
    println!("seed {seed}, {seconds} s");
    let calls = Proxy::start(shop.calls_address(), CALLS, seed)
        .await
        .expect("a port");
    let events = Proxy::start(shop.topic_address(), EVENTS, seed)
        .await
        .expect("a port");
    let (calls_at, events_at) = (calls.endpoint().to_owned(), events.endpoint().to_owned());
    let known = Arc::new(Known::default());
    let direct = ShopClient::connect(shop.calls())
        .await
        .expect("an endpoint");
    let usage = async || {
        let usage = direct.usage(|_| {}).wait_for_ready().await;
        usage.expect("answered").plain().expect("readable")
    };

    let placed = Subscriber::<Placed>::connect(events_at.as_str())
        .await
        .expect("an endpoint");
    placed.subscribe(Keys::All).await.expect("confirmed");
    let listening = tokio::spawn(listen(placed, Arc::clone(&known)));
    let mut callers = JoinSet::new();
    for first in [0, 1 << 32] {
        callers.spawn(order(calls_at.clone(), first, Arc::clone(&known)));
        callers.spawn(quote(calls_at.clone(), first, Arc::clone(&known)));
    }
    callers.spawn(push(calls_at.clone(), Arc::clone(&known)));
    callers.spawn(come_and_go(calls_at.clone(), events_at, Arc::clone(&known)));
    let mut workers = [
        Worker::start(&calls_at).await,
        Worker::start(&calls_at).await,
    ];

    let run = async {
        let (begun, mut samples) = (Instant::now(), Vec::new());
        while begun.elapsed() < Duration::from_secs(seconds) {
            sleep(Duration::from_secs(1)).await;
            samples.push(usage().await);
            if samples.len() % 5 == 0 {
                calls.cut();
                events.cut();
            }
        }
        known.stop.store(true, Relaxed);
        samples
    };
    let (samples, harmed) = tokio::join!(run, harm(&mut workers, &known));
    while let Some(ended) = callers.join_next().await {
        ended.expect("no panic");
    }
    println!(
        "{known:?}; workers harmed {harmed} times; calls: {}",
        calls.injected()
    );

    let get = |count: &AtomicU64| count.load(Relaxed);
    assert_eq!(
        usage().await.orders,
        get(&known.ordered),
        "orders counted and known"
    );
    settle("parcels delivered", async || {
        (usage().await.deliveries, get(&known.pushed))
    })
    .await;
    settle("events delivered or reported missed", async || {
        let accounted = get(&known.delivered) + get(&known.missed);
        (accounted, usage().await.published)
    })
    .await;
    listening.abort();
    let parcels = Queue::<Parcel>::connect(shop.calls())
        .await
        .expect("an endpoint");
    let counters = async || parcels.counters().await.expect("counted");
    settle("jobs left in the queue", async || {
        (counters().await.jobs as u64, 0)
    })
    .await;
    assert_eq!(counters().await.dead, 0);
    assert!(harmed > 1 && get(&known.quoted) > 0 && get(&known.failed) > 0);

    let (early, late) = (most(&samples, 0.4), most(&samples, 0.8));
    println!("held from 40 % on: {early:?}\nheld at the end: {late:?}");
    if seconds >= SECONDS_JUDGED {
        is_flat(
            "resident bytes",
            early.resident_bytes,
            late.resident_bytes,
            4 << 20,
        );
        is_flat(
            "descriptors",
            early.descriptors.into(),
            late.descriptors.into(),
            16,
        );
        is_flat("tasks", early.tasks.into(), late.tasks.into(), 16);
        is_flat("bytes on disk", early.disk_bytes, late.disk_bytes, 4 << 20);
    }
}
