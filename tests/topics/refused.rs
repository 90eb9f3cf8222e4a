//! What is too large is refused where it is made, with a reason, and touches nothing else.

use bowline::topic::{Event, Keys, PublishError, SubscribeError};
use bowline::{Publisher, Subscriber, TransportOptions};
use bowline_test_schemas::everything::Sample;

use super::{account, bind, carriers, connect, eventually, next, publish, sample};

#[tokio::test]
async fn a_subscription_too_long_is_an_error_and_touches_nothing_else() {
    for (endpoint, options) in carriers("too-long") {
        let publisher = bind(&endpoint, &options).await;
        let mut subscriber = connect(&publisher, options).await;
        subscriber.subscribe(Keys::Prefix("a")).await.unwrap();
        // With `sample/` in front: 512 bytes are taken.
        for (length, expected) in [(505, Ok(())), (506, Err(513)), (1100, Err(1107))] {
            let long = "x".repeat(length);
            let expected = expected.map_err(|bytes| SubscribeError::TooLong {
                bytes,
                bytes_max: 512,
            });
            let subscribed = subscriber.subscribe(Keys::Prefix(&long)).await;
            assert_eq!(subscribed, expected, "{endpoint}");
            let unconfirmed = subscriber.subscribe_unconfirmed(Keys::Prefix(&long)).await;
            assert_eq!(unconfirmed, expected, "{endpoint}");
        }
        publish(&publisher, "a", 100, 10).await;
        assert_eq!(account(&mut subscriber, 100).await, (100, 0), "{endpoint}");
        subscriber.subscribe(Keys::Prefix("b")).await.unwrap();
        publisher.close().await;
    }
}

/// The limit of the publisher is smaller: it says so, and the connection stays.
#[tokio::test]
async fn a_subscription_too_long_for_its_publisher_is_denied_and_the_connection_stays() {
    let options = TransportOptions::default().with_subscription_bytes_max(100);
    let publisher = bind("tcp://127.0.0.1:0", &options).await;
    let options = TransportOptions::default().with_subscription_bytes_max(usize::MAX);
    let mut subscriber = connect(&publisher, options).await;
    subscriber.subscribe(Keys::Prefix("a")).await.unwrap();
    for length in [94, 1100, (64 << 10) - 7] {
        let long = "x".repeat(length);
        let subscribed = subscriber.subscribe(Keys::Prefix(&long)).await;
        assert_eq!(subscribed, Err(SubscribeError::Denied), "{length}");
    }
    let longest = "x".repeat((64 << 10) - 6);
    let subscribed = subscriber.subscribe(Keys::Prefix(&longest)).await;
    assert!(matches!(subscribed, Err(SubscribeError::TooLong { .. })));
    assert!(publisher.door().subscriptions_refused >= 3);
    publish(&publisher, "a", 10, 10).await;
    assert_eq!(account(&mut subscriber, 10).await, (10, 0));
    let door = publisher.door();
    assert_eq!(
        (door.connections, door.broken, door.disconnected),
        (1, 0, 0)
    );
    publisher.close().await;
}

#[tokio::test]
async fn one_subscription_more_than_the_subscriber_may_have_is_an_error() {
    for (endpoint, options) in carriers("too-many") {
        let publisher = bind(&endpoint, &options).await;
        let options = options.with_subscriptions_max(3);
        let mut subscriber = connect(&publisher, options).await;
        for key in ["a", "b", "c"] {
            subscriber.subscribe(Keys::Prefix(key)).await.unwrap();
        }
        let subscribed = subscriber.subscribe(Keys::Prefix("d")).await;
        assert_eq!(subscribed, Err(SubscribeError::TooMany { max: 3 }));
        subscriber.subscribe(Keys::Prefix("a")).await.unwrap();
        subscriber.unsubscribe(Keys::Prefix("a")).await.unwrap();
        subscriber.subscribe(Keys::Prefix("d")).await.unwrap();
        publish(&publisher, "d", 10, 10).await;
        assert_eq!(account(&mut subscriber, 10).await, (10, 0), "{endpoint}");
        publisher.close().await;
    }
}

/// Each has a confirmation to ask for, and there is little room for those.
#[tokio::test]
async fn as_many_subscriptions_as_there_may_be_are_confirmed_also_after_a_new_connection() {
    const SUBSCRIPTIONS: usize = 1024;
    let publisher = Publisher::<Sample>::bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let endpoint = publisher.endpoint().to_string();
    let mut subscriber: Subscriber<Sample> = Subscriber::<()>::builder()
        .connect(&endpoint)
        .await
        .unwrap();
    for number in 0..SUBSCRIPTIONS {
        let key = format!("{number:04}");
        subscriber.subscribe(Keys::Prefix(&key)).await.unwrap();
    }
    assert_eq!(publisher.door().subscriptions_refused, 0);
    publisher.close().await;
    let publisher = Publisher::<Sample>::bind(&endpoint).await.unwrap();
    eventually("all are there again", || publisher.matching("1023") == 1).await;
    // Every question is answered in the end.
    for number in 0..SUBSCRIPTIONS {
        let key = format!("{number:04}");
        subscriber.subscribe(Keys::Prefix(&key)).await.unwrap();
    }
    assert_eq!(publisher.door().subscriptions_refused, 0);
    publish(&publisher, "1023", 3, 10).await;
    assert!(matches!(
        next(&mut subscriber).await,
        Some(Event::Restarted { .. })
    ));
    assert_eq!(account(&mut subscriber, 3).await, (3, 0));
    publisher.close().await;
}

#[tokio::test]
async fn an_event_too_large_is_refused_before_it_is_sent() {
    for (endpoint, options) in carriers("too-large") {
        let publisher = bind(&endpoint, &options).await;
        let mut subscriber = connect(&publisher, options).await;
        subscriber.subscribe(Keys::All).await.unwrap();
        publish(&publisher, "a", 10, 10).await;
        let refused = publisher.publish(&sample("a", 2 << 20)).await;
        let Err(PublishError::TooLarge { bytes, bytes_max }) = refused else {
            panic!("{refused:?}");
        };
        assert!(bytes > 2 << 20 && bytes_max == 1 << 20);
        let refused = publisher.publish(&sample(&"k".repeat(70_000), 10)).await;
        let Err(PublishError::TopicTooLong { bytes, bytes_max }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((bytes, bytes_max), (70_007, 64 << 10));
        // The largest that there may be, by topic and by size.
        let longest = "k".repeat((64 << 10) - 7);
        publisher.publish(&sample(&longest, 10)).await.unwrap();
        publish(&publisher, "a", 1, (1 << 20) - 100).await;
        publish(&publisher, "a", 10, 10).await;
        let (mut of_a, mut long) = (0, 0);
        while of_a < 21 {
            let event = next(&mut subscriber).await.unwrap();
            let Event::Message(message) = event else {
                panic!("{event:?}");
            };
            match message.topic().key() == longest {
                true => long += 1,
                false => of_a += 1,
            }
            message.plain().unwrap();
        }
        assert_eq!(long, 1, "{endpoint}");
        let door = publisher.door();
        assert_eq!((door.broken, door.disconnected), (0, 0), "{endpoint}");
        publisher.close().await;
    }
}

#[tokio::test]
async fn a_publishers_limit_of_a_message_holds_for_events_and_topics() {
    let options = TransportOptions::default().with_message_bytes_max(1000);
    let publisher = bind("inproc://bowline-small", &options).await;
    publisher.publish(&sample("a", 700)).await.unwrap();
    let refused = publisher.publish(&sample("a", 1000)).await;
    assert!(matches!(refused, Err(PublishError::TooLarge { .. })));
    let refused = publisher.publish(&sample(&"k".repeat(500), 10)).await;
    let expected = (1000 - 128) / 2;
    assert!(
        matches!(refused, Err(PublishError::TopicTooLong { bytes: 507, bytes_max }) if bytes_max == expected)
    );
    publisher.close().await;
}

#[tokio::test]
async fn one_topic_too_many_is_refused_by_count_and_by_bytes() {
    for (topics, bytes) in [(3, 1000), (100, 3 * "sample/a".len())] {
        let publisher: Publisher<Sample> = Publisher::builder()
            .topics_max(topics)
            .topic_bytes_max(bytes)
            .bind("inproc://bowline-topics-max")
            .await
            .unwrap();
        for key in ["a", "b", "c", "a"] {
            publisher.publish(&sample(key, 10)).await.unwrap();
        }
        let refused = publisher.publish(&sample("d", 10)).await;
        assert!(matches!(refused, Err(PublishError::TooManyTopics)));
        publisher.close().await;
    }
}
