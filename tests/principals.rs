//! What the name of a verified key is used for: request IDs, counts, and nothing that a peer says of itself.

mod common;
#[path = "common/house.rs"]
mod house;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bowline::call::{NamedService, Outcome, RawReply, RawRequest, ReplyFuture};
use bowline::once::{MemoryStore, Once};
use bowline::schema::{Effect, MethodInfo, Recovery, ServiceInfo};
use bowline::security::{AccessRules, Keys, PublicKey};
use bowline::topic::{Keys as TopicKeys, SubscribeError};
use bowline::{Code, RequestId, RequestKey, Server, Status};
use bytes::Bytes;
use common::{ECHO, Probe, call, send};
use house::{House, client, security, subscriber};

const COUNT: MethodInfo = MethodInfo {
    service: "counting",
    name: "count",
    interface: 0xc0de,
    ordinal: 0,
    effect: Effect::Once(Recovery::InDoubt),
    timeout: None,
    params: 0,
    results: 0,
    fails: None,
};

/// One segment of one word, which is the null pointer.
const EMPTY_STRUCT: &[u8] = &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A `$once` method that says how often it was run.
#[derive(Clone, Default)]
struct Counting(Arc<AtomicU64>);

impl NamedService for Counting {
    const INFO: &'static ServiceInfo = &ServiceInfo {
        name: "counting",
        interface: 0xc0de,
        methods: &[COUNT],
    };
}

impl tower::Service<RawRequest> for Counting {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        self.0.fetch_add(1, Ordering::SeqCst);
        let name = request.principal.map_or(String::new(), |of| of.to_string());
        Box::pin(async move { Ok(RawReply::new(Outcome::Success, name.into_bytes().into())) })
    }
}

#[tokio::test]
async fn two_principals_never_meet_in_one_request_id_and_two_keys_of_one_do() {
    let house = House::new();
    let (web_too, other) = (Keys::generate(), Keys::generate());
    house.allowed.allow("web", web_too.public()).unwrap();
    house.allowed.allow("other", other.public()).unwrap();
    let counting = Counting::default();
    let server = Server::builder()
        .service(counting.clone())
        .security(
            house
                .security()
                .with_access(AccessRules::new().everything("*")),
        )
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let right = house.server.public();
    let id = RequestId::new();
    for (keys, name, runs) in [
        (&house.web, "web", 1),
        (&web_too, "web", 1),
        (&other, "other", 2),
        (&house.web, "web", 2),
    ] {
        let client = client(server.endpoint(), security(keys, right)).await;
        let mut request = RawRequest::new(&COUNT, Bytes::from_static(EMPTY_STRUCT));
        request.id = id.clone();
        assert_eq!(send(&client, request).await.unwrap(), name);
        assert_eq!(counting.0.load(Ordering::SeqCst), runs, "{name}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_caller_who_may_not_call_leaves_no_record() {
    let house = House::new();
    let counting = Counting::default();
    let store = MemoryStore::new();
    for (rules, records) in [
        (AccessRules::new(), 0),
        (AccessRules::new().everything("*"), 1),
    ] {
        let once = Once::builder().build(store.clone()).unwrap();
        let server = Server::builder()
            .service(counting.clone())
            .security(house.security().with_access(rules))
            .once(once)
            .bind("tcp://127.0.0.1:0")
            .await
            .unwrap()
            .spawn();
        let security = security(&house.web, house.server.public());
        let client = client(server.endpoint(), security).await;
        let mut request = RawRequest::new(&COUNT, Bytes::from_static(EMPTY_STRUCT));
        request.id = RequestKey::new("the same").unwrap().into();
        match send(&client, request).await {
            Ok(name) => assert_eq!((&*name, records), (&b"web"[..], 1)),
            Err(status) => assert_eq!((status.code(), records), (Code::PermissionDenied, 0)),
        }
        assert_eq!(store.records(), records);
        assert_eq!(counting.0.load(Ordering::SeqCst), records as u64);
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_server_counts_by_principal_and_those_past_its_limit_together() {
    let house = House::new();
    let mut keys = vec![("web", house.web.clone())];
    for name in ["ops", "late", "later"] {
        let more = Keys::generate();
        house.allowed.allow(name, more.public()).unwrap();
        keys.push((name, more));
    }
    let server = Server::builder()
        .service(Probe::default())
        .principals_max(2)
        .concurrency_per_connection_max(1)
        .security(house.security())
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    assert!(server.by_principal().is_empty());
    for (name, keys) in &keys {
        let client = client(server.endpoint(), security(keys, house.server.public())).await;
        let reply = call(&client, &ECHO, "hello").await;
        assert_eq!(reply.is_ok(), *name == "web", "{name}");
    }
    let counted: Vec<_> = server.by_principal();
    let counted: Vec<_> = counted
        .iter()
        .map(|of| {
            let name = of.principal.as_ref().map(|name| name.as_str());
            (name, of.handled, of.denied, of.refused)
        })
        .collect();
    assert_eq!(
        counted,
        [
            (Some("ops"), 0, 1, 0),
            (Some("web"), 1, 0, 0),
            (None, 0, 2, 0)
        ]
    );
    server.shutdown().await;
}

#[tokio::test]
async fn requests_refused_for_a_limit_count_for_their_principal() {
    let house = House::new();
    let server = Server::builder()
        .service(Probe::default())
        .concurrency_per_connection_max(0)
        .security(house.security())
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let web = client(
        server.endpoint(),
        security(&house.web, house.server.public()),
    )
    .await;
    let refused = call(&web, &ECHO, "hello").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let counted = server.by_principal();
    assert_eq!(
        (counted.len(), counted[0].refused, counted[0].handled),
        (1, 1, 0)
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_publisher_counts_the_subscriptions_of_each_principal() {
    let house = House::new();
    let other = Keys::generate();
    house.allowed.allow("other", other.public()).unwrap();
    let publisher = house.publish().await;
    let right = house.server.public();
    let mut subscribers = Vec::new();
    for (keys, expected) in [(&house.web, Ok(())), (&other, Err(SubscribeError::Denied))] {
        let subscriber = subscriber(publisher.endpoint(), security(keys, right)).await;
        assert_eq!(subscriber.subscribe(TopicKeys::All).await, expected);
        subscribers.push(subscriber);
    }
    let connected: Vec<_> = publisher.subscribers();
    let connected: Vec<_> = connected
        .iter()
        .map(|of| of.principal.as_ref().map(|name| name.as_str()))
        .collect();
    assert_eq!(connected, [Some("web"), Some("other")]);
    let counted = publisher.by_principal();
    let counted: Vec<_> = counted
        .iter()
        .map(|of| {
            (
                of.principal.as_ref().map(|name| name.as_str()),
                of.allowed,
                of.denied,
            )
        })
        .collect();
    assert_eq!(counted, [(Some("other"), 0, 1), (Some("web"), 1, 0)]);
}

#[tokio::test]
async fn whoever_claims_the_zeromq_identity_of_another_gets_only_its_own_replies() {
    use omq_tokio::{
        CurveKeypair, CurvePublicKey, CurveSecretKey, Message, Options, Socket, SocketType,
    };

    let house = House::new();
    // Pairs of the test's own: the secrets of Bowline's keys are not to be had.
    let pair = || {
        let secret = x25519_dalek::StaticSecret::random();
        let public = x25519_dalek::PublicKey::from(&secret).to_bytes();
        (public, secret.to_bytes())
    };
    let (ann, thief) = (pair(), pair());
    for (name, (public, _)) in [("web", ann), ("thief", thief)] {
        house
            .allowed
            .allow(name, PublicKey::from_bytes(public))
            .unwrap();
    }
    let server = house.serve("tcp://127.0.0.1:0").await;
    let endpoint = server.endpoint().to_string();
    let connect = async |(public, secret): ([u8; 32], [u8; 32])| {
        let keys = CurveKeypair {
            public: CurvePublicKey::from_bytes(public),
            secret: CurveSecretKey::from_bytes(secret),
        };
        let pinned = CurvePublicKey::from_bytes(*house.server.public().as_bytes());
        let options = Options::new()
            .identity(Bytes::from_static(b"ann"))
            .curve_client(keys, pinned);
        let socket = Socket::new(SocketType::Dealer, options);
        socket.connect(endpoint.as_str()).await.unwrap();
        socket
    };
    // The same key once more, and another one that is let in too.
    let sockets = [connect(ann).await, connect(ann).await, connect(thief).await];
    for socket in &sockets {
        let connected = socket.wait_connected(1, Duration::from_secs(10)).await;
        connected.unwrap();
    }
    let nonsense = || Message::multipart([Bytes::new(), Bytes::from_static(b"x"), Bytes::new()]);
    for _ in 0..3 {
        for socket in &sockets {
            socket.send(nonsense()).await.unwrap();
            let answer = tokio::time::timeout(Duration::from_secs(10), socket.recv()).await;
            assert_eq!(answer.unwrap().unwrap().len(), 3);
        }
    }
    assert_eq!(server.counters().malformed, 9);
    assert_eq!(server.door().connections, 3);
    server.shutdown().await;
}
