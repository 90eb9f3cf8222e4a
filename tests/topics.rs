//! Topics over each transport. Here: slow subscribers; what they cost is bounded, and what they miss is counted to the last
//! event.

#[path = "topics/ended.rs"]
mod ended;
#[path = "topics/exact.rs"]
mod exact;
#[path = "topics/keeps_up.rs"]
mod keeps_up;
#[path = "topics/refused.rs"]
mod refused;

use std::time::{Duration, Instant};

use bowline::topic::{ConnectedSubscriber, Event, Keys, SlowPolicy, SubscriberBuilder};
use bowline::{Publisher, Subscriber, TransportOptions};
use bowline_test_schemas::everything::Sample;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);

/// An endpoint of each kind, that nothing else has.
fn endpoints(name: &str) -> [String; 3] {
    let name = format!("bowline-topics-{}-{name}", std::process::id());
    let path = std::env::temp_dir().join(&name);
    [
        format!("inproc://{name}"),
        "tcp://127.0.0.1:0".to_owned(),
        format!("ipc://{}", path.display()),
    ]
}

/// An endpoint of each transport, with its options.
fn carriers(name: &str) -> Vec<(String, TransportOptions)> {
    let endpoints = endpoints(name).into_iter();
    #[allow(unused_mut, reason = "one more with the feature")]
    let mut all: Vec<_> = endpoints
        .map(|endpoint| (endpoint, TransportOptions::default()))
        .collect();
    #[cfg(feature = "zeromq")]
    all.push((
        "tcp://127.0.0.1:0".to_owned(),
        TransportOptions::default().with_carrier(bowline::Carrier::Zeromq),
    ));
    all
}

async fn bind(endpoint: &str, options: &TransportOptions) -> Publisher<Sample> {
    let builder = Publisher::builder()
        .announce_after(Duration::from_millis(50))
        .transport(options.clone());
    builder.bind(endpoint).await.unwrap()
}

async fn connect(publisher: &Publisher<Sample>, options: TransportOptions) -> Subscriber<Sample> {
    let builder = Subscriber::<()>::builder().transport(options);
    let endpoint = publisher.endpoint().to_string();
    builder.connect(endpoint).await.unwrap()
}

fn sample(series: &str, bytes: usize) -> Sample {
    Sample {
        series: series.to_owned(),
        payload: vec![7; bytes].into(),
    }
}

/// A publisher that soon says how many there were, and a subscriber to all of its topics that takes nothing yet.
async fn both(endpoint: &str, slow: SubscriberBuilder) -> (Publisher<Sample>, Subscriber<Sample>) {
    let publisher: Publisher<Sample> = Publisher::builder()
        .announce_after(Duration::from_millis(50))
        .bind(endpoint)
        .await
        .unwrap();
    let subscriber = slow.connect(publisher.endpoint().to_string()).await;
    let subscriber: Subscriber<Sample> = subscriber.unwrap();
    subscriber.subscribe(Keys::All).await.unwrap();
    (publisher, subscriber)
}

async fn publish(publisher: &Publisher<Sample>, series: &str, events: u64, bytes: usize) {
    for _ in 0..events {
        publisher.publish(&sample(series, bytes)).await.unwrap();
        // The subscriber's driver has its turn; nobody takes from it.
        tokio::task::yield_now().await;
    }
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LONG, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn next(subscriber: &mut Subscriber<Sample>) -> Option<Event<Sample>> {
    let next = timeout(LONG, subscriber.next()).await;
    next.expect("it says something")
}

/// Takes all that a subscriber has of one topic, up to a number: how many were delivered, how many missed.
async fn account(subscriber: &mut Subscriber<Sample>, events: u64) -> (u64, u64) {
    let (mut delivered, mut missed) = (0, 0);
    while delivered + missed < events {
        match next(subscriber).await.expect("it goes on") {
            Event::Message(message) => {
                delivered += 1;
                assert_eq!(message.sequence(), delivered + missed);
            }
            Event::Missed { from, to, .. } => {
                assert_eq!(from, delivered + missed + 1);
                missed += to - from + 1;
            }
            Event::Restarted { .. } => panic!("it did not"),
        }
    }
    assert_eq!(delivered + missed, events);
    (delivered, missed)
}

#[tokio::test]
async fn a_subscriber_that_is_full_by_count_is_told_what_it_missed_and_counts_it() {
    for endpoint in endpoints("count") {
        let slow = Subscriber::<()>::builder().events_max(10);
        let (publisher, mut subscriber) = both(&endpoint, slow).await;
        publish(&publisher, "a", 100, 10).await;
        eventually("they are dropped", || subscriber.counters().dropped > 0).await;
        let (delivered, missed) = account(&mut subscriber, 100).await;
        assert!(delivered >= 10, "{delivered}");
        let counters = subscriber.counters();
        assert_eq!(counters.missed, missed, "{endpoint}");
        assert!(counters.dropped <= missed, "the rest was lost on the way");
        publisher.close().await;
    }
}

#[tokio::test]
async fn a_subscriber_that_is_full_by_bytes_is_told_as_well() {
    for endpoint in endpoints("bytes") {
        let slow = Subscriber::<()>::builder().bytes_max(10_000);
        let (publisher, mut subscriber) = both(&endpoint, slow).await;
        publish(&publisher, "a", 100, 1000).await;
        eventually("they are dropped", || subscriber.counters().dropped > 0).await;
        let (delivered, missed) = account(&mut subscriber, 100).await;
        assert!((1..100).contains(&delivered), "{delivered}");
        assert_eq!(subscriber.counters().missed, missed, "{endpoint}");
        publisher.close().await;
    }
}

#[tokio::test]
async fn what_a_publisher_drops_for_a_subscriber_is_counted_and_is_what_that_one_misses() {
    const EVENTS: u64 = 20_000;
    for endpoint in endpoints("dropped") {
        // Far less than is published, with what the system holds on the way.
        let options = TransportOptions::default()
            .with_send_bytes_max(64 << 10)
            .with_send_queue_max(64);
        let publisher: Publisher<Sample> = Publisher::builder()
            .announce_after(Duration::from_millis(50))
            .transport(options.clone())
            .bind(&endpoint)
            .await
            .unwrap();
        let endpoint = publisher.endpoint().to_string();
        let slow = Subscriber::<()>::builder()
            .events_max(EVENTS as usize)
            .bytes_max(1 << 30)
            .transport(options);
        let mut slow: Subscriber<Sample> = slow.connect(&endpoint).await.unwrap();
        slow.subscribe(Keys::All).await.unwrap();
        let other = Subscriber::<Sample>::connect(&endpoint).await.unwrap();
        other.subscribe(Keys::Prefix("nothing")).await.unwrap();

        // On one thread, and without its turn: the subscriber reads nothing meanwhile.
        let sample = sample("a", 1000);
        for _ in 0..EVENTS {
            publisher.publish(&sample).await.unwrap();
        }
        let (delivered, missed) = account(&mut slow, EVENTS).await;
        assert!(delivered > 0 && missed > 0, "{delivered} and {missed}");
        assert_eq!(slow.counters().dropped, 0, "it had room itself");
        let subscribers = publisher.subscribers();
        let dropped: Vec<u64> = subscribers.iter().map(|of| of.dropped).collect();
        assert_eq!(dropped, [missed, 0], "{endpoint}");
        let has_address = |of: &ConnectedSubscriber| of.address.is_some();
        assert_eq!(
            subscribers.iter().all(has_address),
            endpoint.starts_with("tcp:")
        );
        slow.close().await;
        eventually("it is gone", || publisher.subscribers().len() == 1).await;
        assert_eq!(publisher.counters().dropped, Some(missed), "all the same");
        publisher.close().await;
    }
}

#[tokio::test]
async fn a_subscriber_that_wants_the_latest_gets_it_of_each_topic_and_is_told_of_the_others() {
    for endpoint in endpoints("latest") {
        let slow = Subscriber::<()>::builder().slow(SlowPolicy::Latest);
        let (publisher, mut subscriber) = both(&endpoint, slow).await;
        for _ in 0..50 {
            publish(&publisher, "a", 1, 10).await;
            publish(&publisher, "b", 1, 10).await;
        }
        eventually("all but the latest are replaced", || {
            subscriber.counters().dropped == 98
        })
        .await;
        let mut seen = Vec::new();
        while seen.len() < 4 {
            seen.push(match next(&mut subscriber).await.expect("it goes on") {
                Event::Message(message) => format!("{} {}", message.topic(), message.sequence()),
                Event::Missed { topic, from, to } => format!("{topic} missed {from} to {to}"),
                Event::Restarted { .. } => panic!("it did not"),
            });
        }
        seen.sort();
        let expected = [
            "sample/a 50",
            "sample/a missed 1 to 49",
            "sample/b 50",
            "sample/b missed 1 to 49",
        ];
        assert_eq!(seen, expected, "{endpoint}");
        assert_eq!(subscriber.counters().missed, 98);
        publisher.close().await;
    }
}

#[tokio::test]
async fn a_subscriber_that_would_rather_end_ends_after_what_it_has() {
    for endpoint in endpoints("disconnect") {
        let slow = Subscriber::<()>::builder()
            .slow(SlowPolicy::Disconnect)
            .slow_after(Duration::ZERO)
            .events_max(10);
        let (publisher, mut subscriber) = both(&endpoint, slow).await;
        assert_eq!(publisher.matching("a"), 1);
        publish(&publisher, "a", 100, 10).await;
        let mut delivered = 0;
        while let Some(event) = next(&mut subscriber).await {
            let Event::Message(message) = event else {
                panic!("{event:?}")
            };
            delivered += 1;
            assert_eq!(message.sequence(), delivered);
        }
        assert!((10..100).contains(&delivered), "{delivered}");
        drop(subscriber);
        eventually("it has gone", || publisher.matching("a") == 0).await;
        publisher.close().await;
    }
}

#[tokio::test]
async fn one_that_is_slow_takes_nothing_from_one_that_is_not() {
    for endpoint in endpoints("other") {
        let slow = Subscriber::<()>::builder()
            .events_max(1)
            .slow_after(Duration::ZERO);
        let (publisher, mut slow) = both(&endpoint, slow).await;
        let quick = Subscriber::<Sample>::connect(publisher.endpoint().to_string());
        let mut quick = quick.await.unwrap();
        quick.subscribe(Keys::All).await.unwrap();
        publish(&publisher, "a", 500, 10).await;
        assert_eq!(account(&mut quick, 500).await, (500, 0), "{endpoint}");
        assert_eq!(quick.counters().missed, 0);
        let (_, missed) = account(&mut slow, 500).await;
        assert!(missed > 0);
        publisher.close().await;
    }
}
