//! Who gets in, and what they may do, while keys and rules change. Every kind of key against everything that it may want: `matrix.rs`.

mod common;
#[path = "common/house.rs"]
mod house;

use std::time::{Duration, Instant};

use bowline::queue::{Queue, QueueError, QueueOptions, QueueService, Remote};
use bowline::security::{
    AccessRules, AllowedKeys, ClientSecurity, Keys, QueueRight, ServerSecurity,
};
use bowline::topic::{Event, Keys as TopicKeys, SubscribeError};
use bowline::{Client, Code, Publisher, Server, Status, TransportError, Work};
use bowline_test_schemas::everything::{Progress, Thumbnail};
use common::{ECHO, Probe, SLEEP, call, milliseconds};
use house::{House, client, progress, security, subscriber};

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
    let insecure = bowline::TransportOptions::default().with_insecure(true);
    let open = Server::builder()
        .service(Probe::default())
        .transport(insecure);
    drop(open.bind("tcp://0.0.0.0:0").await.unwrap());
}

#[cfg(feature = "zeromq")]
#[tokio::test]
async fn the_zeromq_crate_is_for_this_machine_unless_somebody_says_insecure() {
    use bowline::{Carrier, TransportOptions};

    let zeromq = || TransportOptions::default().with_carrier(Carrier::Zeromq);
    let bind = async |endpoint: &str, options: TransportOptions| {
        let server = Server::builder().service(Probe::default());
        server.transport(options).bind(endpoint).await.map(|_| ())
    };
    let open = bind("tcp://0.0.0.0:0", zeromq()).await.unwrap_err();
    assert!(open.to_string().contains("insecure"), "{open}");
    let publisher = Publisher::builder().transport(zeromq());
    let open = publisher.bind::<Progress>("tcp://0.0.0.0:0").await;
    assert!(matches!(open, Err(TransportError::Insecure { .. })));
    bind("tcp://127.0.0.1:0", zeromq()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ipc = format!("ipc://{}", folder.path().join("socket").display());
    bind(&ipc, zeromq()).await.unwrap();
    bind("tcp://0.0.0.0:0", zeromq().with_insecure(true))
        .await
        .unwrap();

    // It has no keys: whoever asks for them is told so, on either side.
    let house = House::new();
    let keys = zeromq().with_server_security(house.security());
    let refused = bind("tcp://127.0.0.1:0", keys).await.unwrap_err();
    assert!(refused.to_string().contains("no CURVE"), "{refused}");
    let keys = ClientSecurity::new(house.web.clone(), house.server.public());
    let client = Client::builder().transport(zeromq().with_client_security(keys));
    let refused = client.connect("tcp://127.0.0.1:1").await.unwrap_err();
    assert!(refused.to_string().contains("no CURVE"), "{refused}");
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

#[tokio::test]
async fn lists_in_files_are_in_force_within_a_second_of_their_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("doors.toml");
    let (server_keys, web) = (Keys::generate(), Keys::generate());
    let write = |rules: &str| {
        let text = format!("[keys]\nweb = '{}'\n{rules}", web.public());
        std::fs::write(&path, text).unwrap();
    };
    write("");
    let security_of = ServerSecurity::new(server_keys.clone(), AllowedKeys::read(&path).unwrap())
        .with_access(bowline::security::AccessList::read(&path).unwrap());
    let server = Server::builder()
        .service(Probe::default())
        .security(security_of)
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let client = client(server.endpoint(), security(&web, server_keys.public())).await;
    let denied = call(&client, &ECHO, "hello").await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);

    write("[[rule]]\nprincipals = 'web'\ncalls = 'probe.echo'\n");
    let changed = Instant::now();
    while call(&client, &ECHO, "hello").await.is_err() {
        assert!(changed.elapsed() < Duration::from_secs(1), "still denied");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What cannot be read changes nothing.
    write("[[rule]]\nprincipal = 'web'\n");
    tokio::time::sleep(Duration::from_millis(900)).await;
    call(&client, &ECHO, "hello").await.unwrap();

    std::fs::write(&path, "[keys]\n").unwrap();
    let changed = Instant::now();
    while client.is_connected() {
        assert!(
            changed.elapsed() < Duration::from_secs(1),
            "still connected"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.shutdown().await;
}

/// Passes bytes on, and keeps those that come from the client.
async fn record(from: tokio::net::TcpStream, to: std::net::SocketAddr) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (mut client, mut to_client) = from.into_split();
    let (mut server, mut to_server) = tokio::net::TcpStream::connect(to)
        .await
        .unwrap()
        .into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut server, &mut to_client).await });
    let mut recorded = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        recorded.extend(&buffer[..length]);
        if to_server.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    back.abort();
    recorded
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_session_that_is_played_back_has_no_effect() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    // Ten thousand with BOWLINE_LONG, as it was measured; enough to see it otherwise.
    let times = if std::env::var_os("BOWLINE_LONG").is_some() {
        10_000
    } else {
        300
    };
    let house = House::new();
    let server = house.serve("tcp://127.0.0.1:0").await;
    let endpoint = server.endpoint().to_string();
    let address: std::net::SocketAddr = endpoint.strip_prefix("tcp://").unwrap().parse().unwrap();
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = format!("tcp://{}", proxy.local_addr().unwrap());
    let recording = tokio::spawn(async move {
        let (stream, _) = proxy.accept().await.unwrap();
        record(stream, address).await
    });
    let web = client(&through, security(&house.web, house.server.public())).await;
    for _ in 0..3 {
        call(&web, &ECHO, "once only").await.unwrap();
    }
    web.close().await;
    let recorded = recording.await.unwrap();
    assert!(
        recorded.len() > 500,
        "a handshake and three calls: {}",
        recorded.len()
    );
    let before = server.counters();
    assert_eq!(before.handled, 3);

    for time in 0..times {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // It may be closed before all is sent, and is closed at the end.
        let _ = stream.write_all(&recorded).await;
        let mut answer = Vec::new();
        let closed = stream.read_to_end(&mut answer);
        let closed = tokio::time::timeout(Duration::from_secs(10), closed).await;
        assert!(closed.is_ok(), "number {time} is still open");
    }
    assert_eq!(server.counters(), before);
    let web = client(&endpoint, security(&house.web, house.server.public())).await;
    assert_eq!(call(&web, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

/// What each of a queue's doors says to whoever comes: to push, to work, to look at the dead letters.
async fn doors_of(queue: &Queue<Thumbnail>) -> [Option<Code>; 3] {
    let code = |error: QueueError| Status::from(error).code();
    let thumbnail = Thumbnail::default();
    let pushed = queue.push(&thumbnail).wait_max(Duration::from_secs(5));
    let pushed = pushed.await.err().map(code);
    let mut jobs = queue.jobs().start().await.unwrap();
    let taken = tokio::time::timeout(Duration::from_secs(5), jobs.next()).await;
    let worked = match taken {
        Ok(Some(Ok(job))) => job.ack().await.err().map(code),
        Ok(Some(Err(error))) => Some(code(error)),
        Ok(None) | Err(_) => panic!("neither a job nor an error"),
    };
    drop(jobs);
    let listed = queue.dead_letters().list(None, 1).await.err().map(code);
    [pushed, worked, listed]
}

async fn connect_queue(
    endpoint: &str,
    security: Option<ClientSecurity>,
) -> Result<Queue<Thumbnail>, QueueError> {
    let mut client = Client::builder().connect_wait(Duration::from_millis(700));
    if let Some(security) = security {
        client = client.security(security);
    }
    let remote = Remote::builder().client(client);
    let remote = tokio::time::timeout(
        Duration::from_secs(5),
        remote.connect(endpoint, "thumbnails"),
    );
    match remote.await {
        Ok(remote) => Ok(Queue::on(remote?)),
        Err(_) => Err(QueueError::Closed),
    }
}

#[tokio::test]
async fn a_queue_is_pushed_to_worked_and_managed_only_by_whom_a_rule_allows() {
    let house = House::new();
    let kept = Queue::<Thumbnail>::memory(QueueOptions::default());
    let thumbnail = Thumbnail::default();
    let (none, push, work, manage) = (
        Keys::generate(),
        Keys::generate(),
        Keys::generate(),
        Keys::generate(),
    );
    let mut rules = house.rules();
    for (name, keys, right) in [
        ("push", &push, QueueRight::Push),
        ("work", &work, QueueRight::Work),
        ("manage", &manage, QueueRight::Manage),
    ] {
        house.allowed.allow(name, keys.public()).unwrap();
        rules = rules.queue(name, "thumbnails", right);
    }
    house.allowed.allow("none", none.public()).unwrap();
    // Another queue's rights, and the method's, are not this queue's.
    rules = rules
        .queue("none", "others", QueueRight::Push)
        .call("none", "job_queue", "*");
    let server = Server::builder()
        .service(QueueService::new().queue(&kept))
        .security(house.security().with_access(rules))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let at = server.endpoint().to_string();
    let right = house.server.public();

    let denied = Some(Code::PermissionDenied);
    for (keys, expected) in [
        (&push, [None, denied, denied]),
        (&work, [denied, None, denied]),
        (&manage, [denied, denied, None]),
    ] {
        // For the one that may only work.
        kept.push(&thumbnail).await.unwrap();
        let queue = connect_queue(&at, security(keys, right)).await.unwrap();
        assert_eq!(doors_of(&queue).await, expected);
    }
    let refused = connect_queue(&at, security(&none, right))
        .await
        .unwrap_err();
    assert_eq!(Status::from(refused).code(), Code::PermissionDenied);
    for security in [
        None,
        security(&Keys::generate(), right),
        security(&house.web, Keys::generate().public()),
    ] {
        let refused = connect_queue(&at, security).await.unwrap_err();
        assert_eq!(Status::from(refused).code(), Code::Unavailable);
    }
    assert!(house.allowed.revoke(push.public()));
    let refused = connect_queue(&at, security(&push, right))
        .await
        .unwrap_err();
    assert_eq!(Status::from(refused).code(), Code::Unavailable);
    assert!(server.counters().denied >= 6);
    server.shutdown().await;
}
