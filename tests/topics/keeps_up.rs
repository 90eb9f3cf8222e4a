//! A subscriber that keeps up loses nothing: what it has no room for yet is held back by the network, and then by the
//! publisher.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bowline::topic::{Event, Keys};
use bowline::{Publisher, Subscriber, TransportOptions};
use bowline_test_schemas::everything::Sample;

use super::{LONG, account, bind, eventually, sample};

/// One read holds far more events than the buffer.
#[tokio::test]
async fn a_subscriber_that_keeps_up_loses_nothing_however_small_its_buffer() {
    const EVENTS: u64 = 20_000;
    for endpoint in super::endpoints("keeps-up") {
        let publisher = bind(&endpoint, &TransportOptions::default()).await;
        let subscriber = Subscriber::<()>::builder()
            .events_max(16)
            .slow_after(LONG)
            .connect(publisher.endpoint().to_string());
        let mut subscriber: Subscriber<Sample> = subscriber.await.unwrap();
        subscriber.subscribe(Keys::All).await.unwrap();
        let taken = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&taken);
        let published = tokio::spawn(async move {
            for number in 0..EVENTS {
                publisher.publish(&sample("a", 64)).await.unwrap();
                // Within what may wait for it on the way, which is far more than its buffer.
                while number > seen.load(Relaxed) + 2000 {
                    tokio::task::yield_now().await;
                }
            }
            publisher
        });
        for number in 1..=EVENTS {
            let event = super::next(&mut subscriber).await;
            let Some(Event::Message(message)) = event else {
                panic!("{endpoint}: {event:?}");
            };
            assert_eq!(message.sequence(), number, "{endpoint}");
            taken.store(number, Relaxed);
        }
        assert_eq!(subscriber.counters().dropped, 0);
        published.await.unwrap().close().await;
    }
}

/// Its answers to heartbeats stand behind what it does not read.
#[tokio::test]
async fn a_subscriber_that_holds_events_back_stays_connected() {
    let options = TransportOptions::default()
        .with_heartbeat(Duration::from_millis(100), Duration::from_millis(300));
    let publisher = bind("tcp://127.0.0.1:0", &options).await;
    let subscriber = Subscriber::<()>::builder()
        .events_max(10)
        .slow_after(LONG)
        .transport(options)
        .connect(publisher.endpoint().to_string());
    let mut subscriber: Subscriber<Sample> = subscriber.await.unwrap();
    subscriber.subscribe(Keys::All).await.unwrap();
    // More than one read, and less than the system holds on the way.
    for _ in 0..600 {
        publisher.publish(&sample("a", 1000)).await.unwrap();
    }
    // Several times as long as a silent peer has to answer.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let door = publisher.door();
    assert_eq!(
        (door.connections, door.broken, door.disconnected),
        (1, 0, 0)
    );
    assert!(subscriber.is_connected());
    assert_eq!(subscriber.counters().dropped, 0);
    assert_eq!(account(&mut subscriber, 600).await, (600, 0));
    publisher.close().await;
}

#[tokio::test]
async fn one_that_takes_nothing_drops_after_its_time_and_again_takes_all_later() {
    let publisher: Publisher<Sample> =
        bind("tcp://127.0.0.1:0", &TransportOptions::default()).await;
    let subscriber = Subscriber::<()>::builder()
        .events_max(10)
        .slow_after(Duration::from_millis(50))
        .connect(publisher.endpoint().to_string());
    let mut subscriber: Subscriber<Sample> = subscriber.await.unwrap();
    subscriber.subscribe(Keys::All).await.unwrap();
    for _ in 0..100 {
        publisher.publish(&sample("a", 64)).await.unwrap();
    }
    eventually("it drops the others", || {
        subscriber.counters().dropped == 90
    })
    .await;
    let mut seen = 0;
    while seen < 10 {
        let event = super::next(&mut subscriber).await;
        assert!(matches!(event, Some(Event::Message(_))));
        seen += 1;
    }
    for _ in 0..20 {
        publisher.publish(&sample("a", 64)).await.unwrap();
    }
    let (mut delivered, mut missed) = (0, 0);
    while delivered + missed < 110 {
        match super::next(&mut subscriber).await.unwrap() {
            Event::Message(_) => delivered += 1,
            Event::Missed { from, to, .. } => missed += to - from + 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((delivered, missed), (20, 90));
    publisher.close().await;
}
