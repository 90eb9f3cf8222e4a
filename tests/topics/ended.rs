//! What waits ends with the runtime or the publisher that it waits for.

use std::time::Duration;

use bowline::Subscriber;
use bowline::topic::{Keys, PublishError, SubscribeError, SubscriberEnd};
use bowline_test_schemas::everything::Sample;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::{LONG, bind, carriers, sample};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn publish_ends_when_its_runtime_has_shut_down() {
    for (endpoint, options) in carriers("publisher-gone") {
        let first = runtime();
        let publisher = first.block_on(bind(&endpoint, &options));
        first.block_on(async { publisher.publish(&sample("a", 10)).await.unwrap() });
        let other = publisher.clone();
        drop(first);
        runtime().block_on(async {
            let published = timeout(LONG, publisher.publish(&sample("a", 10))).await;
            let published = published.expect("it ends");
            assert!(
                matches!(published, Err(PublishError::RuntimeShutDown)),
                "{endpoint}: {published:?}"
            );
            timeout(LONG, other.close()).await.expect("it ends");
        });
    }
}

#[test]
fn next_and_subscribe_end_when_their_runtime_has_shut_down() {
    for (endpoint, options) in carriers("subscriber-gone") {
        let host = runtime();
        let publisher = host.block_on(bind(&endpoint, &options));
        let endpoint = publisher.endpoint().to_string();
        let first = runtime();
        let mut subscriber: Subscriber<Sample> = first.block_on(async {
            let subscriber = Subscriber::<()>::builder().transport(options.clone());
            subscriber.connect(&endpoint).await.unwrap()
        });
        assert_eq!(subscriber.end(), None);
        drop(first);
        runtime().block_on(async {
            let next = timeout(LONG, subscriber.next()).await;
            assert!(next.expect("it ends").is_none(), "{endpoint}");
            assert_eq!(subscriber.end(), Some(SubscriberEnd::RuntimeShutDown));
            let subscribed = timeout(LONG, subscriber.subscribe(Keys::All)).await;
            let subscribed = subscribed.expect("it ends");
            assert_eq!(subscribed, Err(SubscribeError::RuntimeShutDown));
            let taken_back = timeout(LONG, subscriber.unsubscribe(Keys::All)).await;
            assert!(taken_back.expect("it ends").is_err());
            timeout(LONG, subscriber.close()).await.expect("it ends");
        });
    }
}

/// It waits in one runtime while the other, which drives it, shuts down.
#[test]
fn what_waits_already_ends_when_its_runtime_shuts_down() {
    let first = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (mut one, other) = first.block_on(async {
        let connect = || Subscriber::<Sample>::connect("tcp://127.0.0.1:1");
        (connect().await.unwrap(), connect().await.unwrap())
    });
    let second = runtime();
    let next = second.spawn(async move { one.next().await.is_none() });
    let subscribed = second.spawn(async move { other.subscribe(Keys::All).await });
    second.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
    first.shutdown_background();
    second.block_on(async {
        assert!(timeout(LONG, next).await.expect("it ends").unwrap());
        let subscribed = timeout(Duration::from_secs(8), subscribed).await;
        let subscribed = subscribed.expect("before it would be unconfirmed").unwrap();
        assert_eq!(subscribed, Err(SubscribeError::RuntimeShutDown));
    });
}

#[tokio::test]
async fn a_subscriber_that_was_closed_says_so() {
    let subscriber = Subscriber::<Sample>::connect("tcp://127.0.0.1:1")
        .await
        .unwrap();
    assert_eq!(subscriber.end(), None);
    let subscribing = subscriber.subscribe(Keys::All);
    let outcome = timeout(Duration::from_millis(10), subscribing).await;
    assert!(outcome.is_err(), "it waits for a publisher");
    timeout(LONG, subscriber.close()).await.expect("it ends");
}

/// More than ever waited for the socket, with no publisher there.
#[tokio::test]
async fn subscriptions_before_there_is_a_publisher_are_asked_for_and_end_in_time() {
    for (endpoint, options) in carriers("early") {
        let endpoint = match endpoint.as_str() {
            "tcp://127.0.0.1:0" => "tcp://127.0.0.1:1".to_owned(),
            _ => endpoint,
        };
        let subscriber: Subscriber<Sample> = Subscriber::<()>::builder()
            .transport(options)
            .confirm_within(Duration::from_millis(100))
            .connect(&endpoint)
            .await
            .unwrap();
        for number in 0..200 {
            let key = format!("k{number}");
            let subscribed = subscriber.subscribe_unconfirmed(Keys::Prefix(&key));
            timeout(LONG, subscribed).await.expect("it ends").unwrap();
        }
        let subscribed = timeout(LONG, subscriber.subscribe(Keys::Prefix("z"))).await;
        let subscribed = subscribed.expect("it ends");
        assert!(subscribed.is_err(), "{endpoint}");
    }
}
