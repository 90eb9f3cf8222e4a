//! Who gets in, and what they may do: every kind of key against calls and subscriptions.

mod common;

use std::time::{Duration, Instant};

use bowline::security::{
    AccessRules, AllowedKeys, ClientSecurity, Keys, PublicKey, ServerSecurity,
};
use bowline::topic::{Event, Keys as TopicKeys, SubscribeError};
use bowline::{Client, Code, Publisher, Server, ServerHandle, Subscriber, TransportError, Work};
use bowline_test_schemas::everything::Progress;
use common::{ECHO, Probe, SLEEP, call, milliseconds};

/// Everything that a door needs, with one key that is let in and may do all.
struct House {
    server: Keys,
    web: Keys,
    allowed: AllowedKeys,
}

impl House {
    fn new() -> Self {
        let house = Self {
            server: Keys::generate(),
            web: Keys::generate(),
            allowed: AllowedKeys::new(),
        };
        house.allowed.allow("web", house.web.public()).unwrap();
        house
    }

    fn rules(&self) -> AccessRules {
        AccessRules::new()
            .call("web", "probe", "echo")
            .subscribe("web", "progress/")
    }

    fn security(&self) -> ServerSecurity {
        ServerSecurity::new(self.server.clone(), self.allowed.clone()).with_access(self.rules())
    }

    async fn serve(&self, endpoint: &str) -> ServerHandle {
        let server = Server::builder()
            .service(Probe::default())
            .security(self.security());
        server.bind(endpoint).await.unwrap().spawn()
    }

    async fn publish(&self) -> Publisher<Progress> {
        Publisher::builder()
            .security(self.security())
            .bind("tcp://127.0.0.1:0")
            .await
            .unwrap()
    }
}

async fn client(endpoint: impl ToString, security: Option<ClientSecurity>) -> Client {
    let mut builder = Client::builder().connect_wait(Duration::from_millis(700));
    if let Some(security) = security {
        builder = builder.security(security);
    }
    builder.connect(endpoint.to_string()).await.unwrap()
}

async fn subscriber(
    endpoint: impl ToString,
    security: Option<ClientSecurity>,
) -> Subscriber<Progress> {
    let mut builder = Subscriber::<()>::builder().confirm_within(Duration::from_millis(1500));
    if let Some(security) = security {
        builder = builder.security(security);
    }
    builder.connect(endpoint.to_string()).await.unwrap()
}

/// The keys that a peer may come with.
fn security(keys: &Keys, server: PublicKey) -> Option<ClientSecurity> {
    Some(ClientSecurity::new(keys.clone(), server))
}

fn progress(done: u32) -> Progress {
    Progress {
        job: "job".into(),
        done,
    }
}

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
        assert_eq!(refused, Err(SubscribeError::Unconfirmed), "{who}");
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
async fn a_subscription_ends_with_the_rule_that_allowed_it() {
    let house = House::new();
    let access = bowline::security::AccessList::from(house.rules());
    let security_of = house.security().with_access(access.clone());
    let publisher: Publisher<Progress> = Publisher::builder()
        .security(security_of)
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let right = house.server.public();
    let subscriber = subscriber(publisher.endpoint(), security(&house.web, right)).await;
    subscriber.subscribe(TopicKeys::All).await.unwrap();
    assert_eq!(publisher.matching("job"), 1);
    access.replace(&AccessRules::new());
    let replaced = Instant::now();
    while publisher.matching("job") > 0 {
        assert!(
            replaced.elapsed() < Duration::from_secs(1),
            "still subscribed"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        subscriber.subscribe(TopicKeys::All).await,
        Err(SubscribeError::Denied)
    );
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
async fn other_machines_reach_a_server_only_through_a_door_with_a_lock() {
    let open = Server::builder()
        .service(Probe::default())
        .bind("tcp://0.0.0.0:0")
        .await;
    let error = open.map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("with_server_security"),
        "{error}"
    );
    assert!(matches!(
        Publisher::<Progress>::bind("tcp://0.0.0.0:0").await,
        Err(TransportError::Insecure { .. })
    ));
    let house = House::new();
    house.serve("tcp://0.0.0.0:0").await.shutdown().await;
}

#[tokio::test]
async fn nothing_is_allowed_before_a_rule_says_so() {
    let house = House::new();
    let security_of = ServerSecurity::new(house.server.clone(), house.allowed.clone());
    let server = Server::builder()
        .service(Probe::default())
        .security(security_of)
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let web = client(
        server.endpoint(),
        security(&house.web, house.server.public()),
    )
    .await;
    let denied = call(&web, &ECHO, "hello").await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    server.shutdown().await;
}
