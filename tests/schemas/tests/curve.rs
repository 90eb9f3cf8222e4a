//! libzmq, as pyzmq brings it, on the other end of a connection with keys: right ones, wrong ones,
//! none, and one that is revoked.
//!
//! `tests/interop/run` installs it and runs this file.

mod python;

use std::time::Duration;

use bowline::queue::{Queue, QueueOptions, QueueService};
use bowline::security::{
    AccessRules, AllowedKeys, ClientSecurity, Keys, PublicKey, QueueRight, ServerSecurity,
};
use bowline::topic::{Event, Keys as TopicKeys};
use bowline::{Client, Code, Publisher, Reply, Request, Server, Status, Subscriber};
use bowline_test_schemas::everything::*;
use python::{LONG, line, python, tell};
use tokio::process::Child;
use tokio::time::timeout;

struct Echo;

impl Base for Echo {
    async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
        // Answers with who asks, as the key has proved it.
        let name = request.principal().map_or("nobody", |of| of.as_str());
        let text = format!("{name}: {}", request.plain()?.text);
        Ok(PingResults { text }.into())
    }
}

fn house() -> (Keys, AllowedKeys, ServerSecurity) {
    let (keys, allowed) = (Keys::generate(), AllowedKeys::new());
    let rules = AccessRules::new()
        .call("snake", "base", "*")
        .subscribe("snake", "progress/");
    let security = ServerSecurity::new(keys.clone(), allowed.clone()).with_access(rules);
    (keys, allowed, security)
}

#[tokio::test]
async fn libzmq_clients_get_in_with_the_right_key_only() {
    let (keys, allowed, security) = house();
    let server = Server::builder()
        .service(BaseServer::new(Echo))
        .security(security)
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let endpoint = server.endpoint().to_string();
    let right = keys.public().to_string();
    let wrong = Keys::generate().public().to_string();

    for (who, server_key, name, answer) in [
        ("valid", &right, Some("snake"), "reply snake: hello"),
        ("valid but not allowed", &right, Some("worm"), "status 7"),
        ("unknown", &right, None, "silence"),
        ("wrong server key", &wrong, Some("snake"), "silence"),
        ("none", &"none".to_owned(), None, "silence"),
    ] {
        let mut client = python("curve_client.py", &[&endpoint, server_key]);
        let key: PublicKey = line(&mut client).await.parse().unwrap();
        if let Some(name) = name {
            allowed.allow(name, key).unwrap();
        }
        tell(&mut client, "hello").await;
        assert_eq!(line(&mut client).await, answer, "{who}");
        if who == "valid" {
            allowed.revoke(key);
            tokio::time::sleep(Duration::from_secs(1)).await;
            tell(&mut client, "hello").await;
            assert_eq!(line(&mut client).await, "silence", "revoked");
        }
    }
    server.shutdown().await;
}

#[tokio::test]
async fn libzmq_subscribers_get_in_with_the_right_key_only() {
    let (keys, allowed, security) = house();
    let publisher = Publisher::builder().security(security);
    let publisher: Publisher<Progress> = publisher.bind("tcp://127.0.0.1:0").await.unwrap();
    let endpoint = publisher.endpoint().to_string();
    let right = keys.public().to_string();
    let wrong = Keys::generate().public().to_string();

    for (who, server_key, name, answer) in [
        ("valid", &right, Some("snake"), "confirmed"),
        ("valid but not allowed", &right, Some("worm"), "refused"),
        ("unknown", &right, None, "silence"),
        ("wrong server key", &wrong, Some("snake"), "silence"),
        ("none", &"none".to_owned(), None, "silence"),
    ] {
        let mut subscriber = python("curve_subscriber.py", &[&endpoint, server_key]);
        let key: PublicKey = line(&mut subscriber).await.parse().unwrap();
        if let Some(name) = name {
            allowed.allow(name, key).unwrap();
        }
        tell(&mut subscriber, "go").await;
        assert_eq!(line(&mut subscriber).await, answer, "{who}");
        if who == "valid" {
            allowed.revoke(key);
            tokio::time::sleep(Duration::from_secs(1)).await;
            let event = Progress {
                job: "job".into(),
                done: 1,
            };
            assert_eq!(publisher.publish(&event).await.unwrap().matched, 0);
            assert_eq!(line(&mut subscriber).await, "silence", "revoked");
        }
    }
    publisher.close().await;
}

#[tokio::test]
async fn libzmq_producers_and_workers_get_in_with_the_right_key_only() {
    let (keys, allowed) = (Keys::generate(), AllowedKeys::new());
    let rules = AccessRules::new()
        .queue("snake", "thumbnails", QueueRight::Push)
        .queue("snake", "thumbnails", QueueRight::Work)
        .queue("pusher", "thumbnails", QueueRight::Push)
        .queue("worker", "thumbnails", QueueRight::Work)
        .queue("worm", "others", QueueRight::Push)
        .call("worm", "job_queue", "*");
    let kept = Queue::<Thumbnail>::memory(QueueOptions::default());
    let server = Server::builder()
        .service(QueueService::new().queue(&kept))
        .security(ServerSecurity::new(keys.clone(), allowed.clone()).with_access(rules))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let endpoint = server.endpoint().to_string();
    let right = keys.public().to_string();
    let wrong = Keys::generate().public().to_string();

    let (no, denied) = ("silence", "status 7");
    for (who, server_key, name, pushes, works) in [
        ("valid", &right, Some("snake"), "done", "done"),
        (
            "valid, only to push",
            &right,
            Some("pusher"),
            "done",
            denied,
        ),
        (
            "valid, only to work",
            &right,
            Some("worker"),
            denied,
            "done",
        ),
        (
            "valid but not allowed",
            &right,
            Some("worm"),
            denied,
            denied,
        ),
        ("unknown", &right, None, no, no),
        ("wrong server key", &wrong, Some("snake"), no, no),
        ("none", &"none".to_owned(), None, no, no),
    ] {
        let mut client = python("curve_queue.py", &[&endpoint, server_key]);
        let key: PublicKey = line(&mut client).await.parse().unwrap();
        if let Some(name) = name {
            allowed.allow(name, key).unwrap();
        }
        // For the one that may only work.
        kept.push(&Thumbnail::default()).await.unwrap();
        for (what, expected) in [("push", pushes), ("work", works)] {
            tell(&mut client, what).await;
            assert_eq!(line(&mut client).await, expected, "{who}: {what}");
        }
        if who == "valid" {
            allowed.revoke(key);
            tokio::time::sleep(Duration::from_secs(1)).await;
            for what in ["push", "work"] {
                tell(&mut client, what).await;
                assert_eq!(line(&mut client).await, no, "revoked: {what}");
            }
        }
    }
    server.shutdown().await;
}

/// A script that rests on `curve_bound` lets these keys in.
async fn allow(script: &mut Child, keys: &Keys) {
    tell(script, &format!("allow {}", keys.public())).await;
    assert_eq!(line(script).await, "done");
}

/// It does no more.
async fn revoke(script: &mut Child, keys: &Keys) {
    tell(script, &format!("revoke {}", keys.public())).await;
    assert_eq!(line(script).await, "done");
}

async fn ping(client: &Client) -> Result<String, Status> {
    let base = BaseClient::new(client.clone());
    let reply = base.ping(|mut params| params.set_text("hello")).await;
    match reply {
        Ok(reply) => Ok(reply.plain().unwrap().text),
        Err(status) => Err(status),
    }
}

#[tokio::test]
async fn a_libzmq_server_is_called_with_the_right_keys_only() {
    let mut server = python("curve_server.py", &[]);
    let said = line(&mut server).await;
    let (endpoint, key) = said.split_once(' ').unwrap();
    let right: PublicKey = key.parse().unwrap();
    let wrong = Keys::generate().public();
    let (known, unknown) = (Keys::generate(), Keys::generate());
    allow(&mut server, &known).await;

    for (who, security, gets_in) in [
        (
            "valid",
            Some(ClientSecurity::new(known.clone(), right)),
            true,
        ),
        (
            "unknown",
            Some(ClientSecurity::new(unknown.clone(), right)),
            false,
        ),
        (
            "wrong server key",
            Some(ClientSecurity::new(known.clone(), wrong)),
            false,
        ),
        ("none", None, false),
    ] {
        let mut client = Client::builder().timeout(Duration::from_secs(3));
        if let Some(security) = security {
            client = client.security(security);
        }
        let client = client.connect(endpoint).await.unwrap();
        match ping(&client).await {
            Ok(reply) => assert_eq!((reply.as_str(), gets_in), ("HELLO", true), "{who}"),
            Err(status) => {
                assert_eq!(
                    (status.code(), gets_in),
                    (Code::Unavailable, false),
                    "{who}"
                );
            }
        }
    }

    // A key that libzmq lets in no more gets in no more; where it was in, it stays until it has gone.
    let security = || ClientSecurity::new(known.clone(), right);
    let before = Client::builder().security(security());
    let before = before.connect(endpoint).await.unwrap();
    assert_eq!(ping(&before).await.unwrap(), "HELLO");
    revoke(&mut server, &known).await;
    before.close().await;
    let revoked = Client::builder()
        .security(security())
        .timeout(Duration::from_secs(3));
    let revoked = revoked.connect(endpoint).await.unwrap();
    let status = ping(&revoked).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "revoked");
    revoked.close().await;

    // libzmq refuses for good with an ERROR; a key that is let in later gets in nevertheless.
    let late = ClientSecurity::new(unknown.clone(), right);
    let late = Client::builder()
        .security(late)
        .connect(endpoint)
        .await
        .unwrap();
    assert!(ping(&late).await.is_err());
    allow(&mut server, &unknown).await;
    let gets_in = async {
        while ping(&late).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LONG, gets_in).await.expect("it is let in at last");
}

#[tokio::test]
async fn a_key_that_begins_with_a_dash_gets_in_as_any_other() {
    let mut server = python("curve_server.py", &[]);
    let said = line(&mut server).await;
    let (endpoint, key) = said.split_once(' ').unwrap();
    // One key in 82 does.
    let keys = std::iter::repeat_with(Keys::generate)
        .find(|keys| keys.public().to_string().starts_with('-'))
        .unwrap();
    allow(&mut server, &keys).await;
    let security = ClientSecurity::new(keys, key.parse().unwrap());
    let client = Client::builder().security(security);
    let client = client.connect(endpoint).await.unwrap();
    assert_eq!(ping(&client).await.unwrap(), "HELLO");
}

#[tokio::test]
async fn a_libzmq_publisher_is_heard_with_the_right_keys_only() {
    let mut publisher = python("curve_publisher.py", &[]);
    let said = line(&mut publisher).await;
    let (endpoint, key) = said.split_once(' ').unwrap();
    let right: PublicKey = key.parse().unwrap();
    let (known, unknown) = (Keys::generate(), Keys::generate());
    allow(&mut publisher, &known).await;
    let with = |keys: &Keys, server| Some(ClientSecurity::new(keys.clone(), server));
    for (who, security, hears) in [
        ("none", None, false),
        ("unknown", with(&unknown, right), false),
        (
            "wrong server key",
            with(&known, Keys::generate().public()),
            false,
        ),
        ("valid", with(&known, right), true),
        ("revoked", with(&known, right), false),
    ] {
        if who == "revoked" {
            revoke(&mut publisher, &known).await;
        }
        let mut subscriber = Subscriber::<()>::builder();
        if let Some(security) = security {
            subscriber = subscriber.security(security);
        }
        let mut subscriber: Subscriber<Progress> = subscriber.connect(endpoint).await.unwrap();
        subscriber
            .subscribe_unconfirmed(TopicKeys::All)
            .await
            .unwrap();
        let patience = if hears { LONG } else { Duration::from_secs(1) };
        let event = timeout(patience, subscriber.next()).await;
        assert_eq!(
            matches!(event, Ok(Some(Event::Message(_)))),
            hears,
            "{who}: {event:?}"
        );
        subscriber.close().await;
    }
}

#[tokio::test]
async fn an_event_of_a_libzmq_publisher_at_the_moment_of_subscribing_is_heard() {
    let mut publisher = python("curve_answering_publisher.py", &[]);
    let said = line(&mut publisher).await;
    let (endpoint, key) = said.split_once(' ').unwrap();
    let known = Keys::generate();
    allow(&mut publisher, &known).await;
    for round in 0..20 {
        let security = ClientSecurity::new(known.clone(), key.parse().unwrap());
        let subscriber = Subscriber::<()>::builder().security(security);
        let mut subscriber: Subscriber<Progress> = subscriber.connect(endpoint).await.unwrap();
        // Now before it is connected, and now after.
        if round % 2 == 1 {
            let connected = async {
                while !subscriber.is_connected() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(LONG, connected).await.unwrap();
        }
        subscriber
            .subscribe_unconfirmed(TopicKeys::All)
            .await
            .unwrap();
        let event = timeout(LONG, subscriber.next()).await;
        let is_heard = matches!(event, Ok(Some(Event::Message(_))));
        assert!(is_heard, "{round}: {event:?}");
        subscriber.close().await;
    }
}
