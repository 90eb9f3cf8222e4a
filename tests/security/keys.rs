//! Who gets in: with which keys, and while they change.

use std::time::{Duration, Instant};

use crate::common::{ECHO, Probe, SLEEP, call, milliseconds};
use crate::house::{House, client, progress, security, subscriber};
use bowline::security::{ClientSecurity, Keys, ServerSecurity};
use bowline::topic::{Event, Keys as TopicKeys, SubscribeError};
use bowline::{Code, Publisher, Server, Work};
use bowline_test_schemas::everything::Progress;

#[tokio::test]
async fn a_call_gets_through_with_a_valid_key_and_with_no_other() {
    let house = House::new();
    let folder = tempfile::tempdir().unwrap();
    let ipc = format!("ipc://{}", folder.path().join("socket").display());
    for endpoint in ["tcp://127.0.0.1:0", &ipc] {
        let server = house.serve(endpoint).await;
        let at = server.endpoint().to_string();
        let right = house.server.public();

        let valid = client(&at, security(&house.web, right)).await;
        assert_eq!(call(&valid, &ECHO, "hello").await.unwrap(), "hello");
        let denied = call(&valid, &SLEEP, milliseconds(1)).await.unwrap_err();
        assert_eq!(
            (denied.code(), denied.work()),
            (Code::PermissionDenied, Work::NotDone)
        );
        assert!(
            !denied.message().contains("web"),
            "the caller is not told the rule"
        );

        for (who, security) in [
            ("none", None),
            ("unknown", security(&Keys::generate(), right)),
            (
                "wrong server key",
                security(&house.web, Keys::generate().public()),
            ),
        ] {
            let stranger = client(&at, security).await;
            let refused = call(&stranger, &ECHO, "hello").await.unwrap_err();
            assert_eq!(
                (refused.code(), refused.work()),
                (Code::Unavailable, Work::NotDone),
                "{who}"
            );
        }
        assert_eq!(server.counters().denied, 1);
        assert!(server.door().handshakes_failed >= 2, "{:?}", server.door());
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_revoked_key_is_out_within_a_second_and_an_allowed_one_in() {
    let house = House::new();
    let server = house.serve("tcp://127.0.0.1:0").await;
    let right = house.server.public();
    let web = client(server.endpoint(), security(&house.web, right)).await;
    call(&web, &ECHO, "hello").await.unwrap();

    house.allowed.revoke(house.web.public());
    let revoked = Instant::now();
    while web.is_connected() {
        assert!(
            revoked.elapsed() < Duration::from_secs(1),
            "still connected"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = call(&web, &ECHO, "hello").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);

    // The same client gets in again by itself once its key is back.
    house.allowed.allow("web", house.web.public()).unwrap();
    let start = Instant::now();
    while call(&web, &ECHO, "hello").await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "still refused");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_message_of_a_revoked_key_is_not_handled_even_before_its_connection_is_closed() {
    let house = House::new();
    let server = house.serve("tcp://127.0.0.1:0").await;
    let web = client(
        server.endpoint(),
        security(&house.web, house.server.public()),
    )
    .await;
    call(&web, &ECHO, "hello").await.unwrap();
    let handled = server.counters().handled;
    house.allowed.revoke(house.web.public());
    let refused = call(&web, &ECHO, "hello").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(server.counters().handled, handled);
    server.shutdown().await;
}

#[tokio::test]
async fn a_subscription_is_taken_with_a_valid_key_and_with_no_other() {
    let house = House::new();
    house
        .allowed
        .allow("other", Keys::generate().public())
        .unwrap();
    let other = Keys::generate();
    house.allowed.allow("other", other.public()).unwrap();
    let publisher = house.publish().await;
    let at = publisher.endpoint().to_string();
    let right = house.server.public();

    let mut valid = subscriber(&at, security(&house.web, right)).await;
    valid.subscribe(TopicKeys::All).await.unwrap();

    let not_allowed = subscriber(&at, security(&other, right)).await;
    let denied = not_allowed.subscribe(TopicKeys::All).await;
    assert_eq!(denied, Err(SubscribeError::Denied));
    // Nor is a wider prefix a way around the rule.
    let narrow = subscriber(&at, security(&house.web, right)).await;
    narrow.subscribe(TopicKeys::Prefix("job")).await.unwrap();

    for (who, security) in [
        ("none", None),
        ("unknown", security(&Keys::generate(), right)),
        (
            "wrong server key",
            security(&house.web, Keys::generate().public()),
        ),
    ] {
        let stranger = subscriber(&at, security).await;
        let refused = stranger.subscribe(TopicKeys::All).await;
        assert!(
            matches!(refused, Err(SubscribeError::NotConnected { .. })),
            "{who}: {refused:?}"
        );
    }

    publisher.publish(&progress(1)).await.unwrap();
    let Some(Event::Message(event)) = valid.next().await else {
        panic!("an event");
    };
    assert_eq!(event.plain().unwrap().done, 1);

    // A subscription that is open ends with its key.
    house.allowed.revoke_principal("web");
    let revoked = Instant::now();
    while publisher.matching("job") > 0 {
        assert!(
            revoked.elapsed() < Duration::from_secs(1),
            "still subscribed"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(publisher.door().subscriptions_refused >= 1);
}

#[tokio::test]
async fn a_client_goes_along_when_its_server_gets_other_keys() {
    let house = House::new();
    let next = Keys::generate();
    let server = house.serve("tcp://127.0.0.1:0").await;
    let endpoint = server.endpoint().to_string();
    let both = ClientSecurity::new(house.web.clone(), house.server.public())
        .with_second_server(next.public());
    let web = client(&endpoint, Some(both)).await;
    assert_eq!(call(&web, &ECHO, "old").await.unwrap(), "old");
    server.shutdown().await;

    let security = ServerSecurity::new(next, house.allowed.clone()).with_access(house.rules());
    let server = Server::builder()
        .service(Probe::default())
        .security(security)
        .bind(&endpoint)
        .await
        .unwrap()
        .spawn();
    let start = Instant::now();
    loop {
        match call(&web, &ECHO, "new").await {
            Ok(reply) => break assert_eq!(reply, "new"),
            Err(_) => assert!(start.elapsed() < Duration::from_secs(10), "still refused"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_subscriber_goes_along_when_its_publisher_gets_other_keys() {
    let house = House::new();
    let next = Keys::generate();
    let publisher = house.publish().await;
    let endpoint = publisher.endpoint().to_string();
    let both = ClientSecurity::new(house.web.clone(), house.server.public())
        .with_second_server(next.public());
    let mut subscriber = subscriber(&endpoint, Some(both)).await;
    subscriber.subscribe(TopicKeys::All).await.unwrap();
    publisher.publish(&progress(1)).await.unwrap();
    assert!(matches!(subscriber.next().await, Some(Event::Message(_))));
    publisher.close().await;

    let security = ServerSecurity::new(next, house.allowed.clone()).with_access(house.rules());
    let publisher: Publisher<Progress> = Publisher::builder()
        .security(security)
        .bind(&endpoint)
        .await
        .unwrap();
    let heard = async {
        loop {
            publisher.publish(&progress(2)).await.unwrap();
            let event = tokio::time::timeout(Duration::from_millis(20), subscriber.next()).await;
            if let Ok(Some(Event::Message(event))) = event {
                break assert_eq!(event.plain().unwrap().done, 2);
            }
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(30), heard).await;
    heard.expect("it hears the one with the other key");
}
