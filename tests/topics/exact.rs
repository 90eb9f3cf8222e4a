//! What is delivered and what is reported missed are together what was published while it was subscribed to: over lost
//! connections, restarts, subscriptions that are taken back, with many keys.

use std::sync::Arc;
use std::time::Duration;

use bowline::topic::{Event, Keys, SlowPolicy};
use bowline::{Publisher, Subscriber, TransportOptions};
use bowline_test_schemas::everything::Sample;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{account, bind, carriers, connect, eventually, next, publish, sample};

/// What a subscriber says until nothing comes for a while.
async fn all(subscriber: &mut Subscriber<Sample>) -> Vec<String> {
    let mut all = Vec::new();
    while let Ok(Some(event)) = timeout(Duration::from_millis(500), subscriber.next()).await {
        all.push(match event {
            Event::Message(message) => format!("{} {}", message.topic(), message.sequence()),
            Event::Missed { topic, from, to } => format!("{topic} missed {from} to {to}"),
            Event::Restarted { .. } => "restarted".to_owned(),
        });
    }
    all
}

#[tokio::test]
async fn what_was_published_between_two_subscriptions_is_not_reported_missed() {
    for (endpoint, options) in carriers("again") {
        for reads_between in [true, false] {
            let publisher = bind(&endpoint, &options).await;
            let mut subscriber = connect(&publisher, options.clone()).await;
            subscriber.subscribe(Keys::All).await.unwrap();
            publish(&publisher, "a", 1, 10).await;
            eventually("it has come", || subscriber.is_connected()).await;
            let mut events = Vec::new();
            if reads_between {
                events = all(&mut subscriber).await;
            }
            subscriber.unsubscribe(Keys::All).await.unwrap();
            eventually("it is not there", || publisher.matching("a") == 0).await;
            publish(&publisher, "a", 100, 10).await;
            subscriber.subscribe(Keys::All).await.unwrap();
            publish(&publisher, "a", 1, 10).await;
            events.extend(all(&mut subscriber).await);
            // The first may have been on its way still when its subscription was taken back.
            if reads_between || events.len() > 1 {
                assert_eq!(events[0], "sample/a 1", "{endpoint}");
                events.remove(0);
            }
            assert_eq!(events, ["sample/a 102"], "{endpoint}");
            assert_eq!(subscriber.counters().missed, 0);
            publisher.close().await;
        }
    }
}

#[tokio::test]
async fn a_wider_subscription_goes_on_where_a_narrower_is_taken_back() {
    let publisher = bind("tcp://127.0.0.1:0", &TransportOptions::default()).await;
    let mut subscriber = connect(&publisher, TransportOptions::default()).await;
    subscriber.subscribe(Keys::All).await.unwrap();
    subscriber.subscribe(Keys::Prefix("a")).await.unwrap();
    publish(&publisher, "a", 10, 10).await;
    subscriber.unsubscribe(Keys::Prefix("a")).await.unwrap();
    publish(&publisher, "a", 10, 10).await;
    subscriber.subscribe(Keys::Prefix("a")).await.unwrap();
    publish(&publisher, "a", 10, 10).await;
    assert_eq!(account(&mut subscriber, 30).await, (30, 0));
    publisher.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_subscribe_to_one_prefix_at_once_are_both_confirmed() {
    let publisher = bind("tcp://127.0.0.1:0", &TransportOptions::default()).await;
    for _ in 0..300 {
        let mut subscriber = connect(&publisher, TransportOptions::default()).await;
        let shared = Arc::new(subscriber);
        let both = [(); 2].map(|()| {
            let subscriber = Arc::clone(&shared);
            tokio::spawn(async move { subscriber.subscribe(Keys::All).await })
        });
        for one in both {
            assert_eq!(one.await.unwrap(), Ok(()));
        }
        subscriber = Arc::into_inner(shared).expect("both have ended");
        subscriber.close().await;
    }
    publisher.close().await;
}

/// Passes bytes on between a subscriber and a publisher, until it is told to cut.
async fn cut_between(publisher: &Publisher<Sample>) -> (String, Arc<Notify>) {
    let target = publisher.endpoint().to_string().replace("tcp://", "");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = format!("tcp://{}", listener.local_addr().unwrap());
    let cut = Arc::new(Notify::new());
    let cuts = Arc::clone(&cut);
    tokio::spawn(async move {
        loop {
            let (mut one, _) = listener.accept().await.unwrap();
            let (target, cut) = (target.clone(), Arc::clone(&cuts));
            tokio::spawn(async move {
                let mut other = TcpStream::connect(target).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut one, &mut other) => {}
                    () = cut.notified() => {}
                }
            });
        }
    });
    (through, cut)
}

/// Of 25,000 topics no answer fits into one message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_and_a_lost_connection_lose_nothing_unreported() {
    const KEYS: usize = 25_000;
    let publisher = Publisher::<Sample>::bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let (through, cut) = cut_between(&publisher).await;
    let subscriber = Subscriber::<()>::builder().events_max(2 * KEYS);
    let mut subscriber: Subscriber<Sample> = subscriber.connect(&through).await.unwrap();
    subscriber.subscribe(Keys::All).await.unwrap();
    let publish_all = async |publisher: &Publisher<Sample>| {
        for key in 0..KEYS {
            let sample = sample(&format!("customer-{key:08}"), 10);
            publisher.publish(&sample).await.unwrap();
            if key % 500 == 0 {
                tokio::task::yield_now().await;
            }
        }
    };
    publish_all(&publisher).await;
    let mut counted = 0;
    let mut count = async |subscriber: &mut Subscriber<Sample>, to: usize| {
        while counted < to {
            match next(subscriber).await.expect("it goes on") {
                Event::Message(_) => counted += 1,
                Event::Missed { from, to, .. } => counted += (to - from + 1) as usize,
                Event::Restarted { .. } => panic!("it did not"),
            }
        }
        assert_eq!(counted, to);
    };
    count(&mut subscriber, KEYS).await;
    cut.notify_waiters();
    eventually("the publisher has noticed", || publisher.matching("x") == 0).await;
    // None of it arrives: all of it is reported, by the answer after the new connection.
    publish_all(&publisher).await;
    count(&mut subscriber, 2 * KEYS).await;
    // And to a subscriber that comes now, none.
    let late = Subscriber::<Sample>::connect(publisher.endpoint().to_string());
    let mut late = late.await.unwrap();
    late.subscribe(Keys::All).await.unwrap();
    let last = sample("customer-00000007", 10);
    publisher.publish(&last).await.unwrap();
    for subscriber in [&mut subscriber, &mut late] {
        let event = next(subscriber).await.unwrap();
        assert!(matches!(event, Event::Message(message) if message.sequence() == 3));
        assert_eq!(subscriber.counters().topics_forgotten, 0);
    }
    // That which was cut may have ended in an error.
    assert!(publisher.door().broken <= 1);
    publisher.close().await;
}

#[tokio::test]
async fn the_latest_events_of_two_epochs_are_told_apart() {
    for (endpoint, options) in carriers("epochs") {
        let first = bind(&endpoint, &options).await;
        let endpoint = first.endpoint().to_string();
        let slow = Subscriber::<()>::builder()
            .slow(SlowPolicy::Latest)
            .transport(options.clone());
        let mut subscriber: Subscriber<Sample> = slow.connect(&endpoint).await.unwrap();
        subscriber.subscribe(Keys::All).await.unwrap();
        for key in ["a", "b"] {
            publish(&first, key, 5, 10).await;
        }
        eventually("all have come", || subscriber.counters().dropped == 8).await;
        first.close().await;
        let second = bind(&endpoint, &options).await;
        eventually("it is there again", || second.matching("a") == 1).await;
        subscriber.subscribe(Keys::All).await.unwrap();
        for key in ["b", "a"] {
            publish(&second, key, 3, 10).await;
        }
        // An answer between two events keeps them apart.
        eventually("most have come", || subscriber.counters().dropped >= 11).await;
        let events = all(&mut subscriber).await;
        let (first, second_epoch) = events.split_at(4);
        let expected = [
            "sample/a missed 1 to 4",
            "sample/a 5",
            "sample/b missed 1 to 4",
            "sample/b 5",
        ];
        assert_eq!(first, expected, "{endpoint}");
        let restarts = second_epoch.iter().filter(|event| *event == "restarted");
        assert_eq!(restarts.count(), 1, "{endpoint}: {events:?}");
        assert_eq!(second_epoch[0], "restarted", "{endpoint}: {events:?}");
        for last in ["sample/a 3", "sample/b 3"] {
            assert!(second_epoch.iter().any(|event| event == last), "{events:?}");
        }
        second.close().await;
    }
}

/// Closed and bound again within one process: nothing of the first stays open.
#[tokio::test]
async fn a_publisher_bound_anew_has_its_subscriber_back_soon() {
    for (endpoint, options) in carriers("anew") {
        let first = bind(&endpoint, &options).await;
        let endpoint = first.endpoint().to_string();
        let mut subscriber = connect(&first, options.clone()).await;
        subscriber.subscribe(Keys::All).await.unwrap();
        publish(&first, "a", 1, 10).await;
        assert_eq!(account(&mut subscriber, 1).await, (1, 0));
        first.close().await;
        eventually("its connection is closed", || !subscriber.is_connected()).await;
        let second = bind(&endpoint, &options).await;
        eventually("it is there again", || second.matching("a") == 1).await;
        subscriber.subscribe(Keys::All).await.unwrap();
        publish(&second, "a", 1, 10).await;
        let events = all(&mut subscriber).await;
        assert_eq!(events, ["restarted", "sample/a 1"], "{endpoint}");
        second.close().await;
    }
}
