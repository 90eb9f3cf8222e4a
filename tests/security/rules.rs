//! What those who are in may do, while rules change.

use std::time::{Duration, Instant};

use crate::common::{ECHO, Probe, call};
use crate::house::{House, client, security, subscriber};
use bowline::queue::{Queue, QueueError, QueueOptions, QueueService, Remote};
use bowline::security::{
    AccessRules, AllowedKeys, ClientSecurity, Keys, QueueRight, ServerSecurity,
};
use bowline::topic::{Keys as TopicKeys, SubscribeError};
use bowline::{Client, Code, Publisher, Server, Status};
use bowline_test_schemas::everything::{Progress, Thumbnail};

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

    // Less than half of what there was, and no sign that it is meant.
    std::fs::write(&path, "[keys]\n").unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    call(&client, &ECHO, "hello").await.unwrap();

    std::fs::write(&path, "[keys]\n[expect]\nkeys = 0\nrules = 0\n").unwrap();
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
