//! Every cell of the matrix: each kind of key that a peer may come with, against each thing that it may want. A test for each
//! column; the same rows in all of them.

mod common;
#[path = "common/house.rs"]
mod house;

use std::time::Duration;

use bowline::queue::{Queue, QueueError, QueueOptions, QueueService, Remote};
use bowline::security::{
    AccessRules, AllowedKeys, ClientSecurity, Keys, QueueRight, ServerSecurity,
};
use bowline::topic::{Event, Keys as TopicKeys, SubscribeError};
use bowline::{Client, Code, Publisher, Server, ServerHandle, Status, Subscriber};
use bowline_test_schemas::everything::{Progress, Thumbnail};
use common::ECHO;
use house::{House, client, progress, security, subscriber};
use tokio::time::{Instant, sleep, timeout};

/// What it comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    /// None at all.
    Missing,
    /// One that is on no list.
    Unknown,
    /// One that is let in, to a server whose key is another than it believes.
    WrongServer,
    /// One that is let in, and no rule allows what it wants.
    NotAllowed,
    /// One that is let in, and may.
    Valid,
    /// One that was let in and might, and is not any more: over the connection that it had.
    Revoked,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It does not get in.
    Shut,
    /// It is in, and is told that it may not; an event is dropped.
    Denied,
    Done,
}

use Answer::{Denied, Done, Shut};
use Key::{Missing, NotAllowed, Revoked, Unknown, Valid, WrongServer};

const ROWS: [(Key, Answer); 6] = [
    (Missing, Shut),
    (Unknown, Shut),
    (WrongServer, Shut),
    (NotAllowed, Denied),
    (Valid, Done),
    (Revoked, Shut),
];

/// Revoking is in force within a second; a machine may be slow.
const REVOKED: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// A house with one more key, `other`, which may do other things than `web`.
struct Doors {
    house: House,
    other: Keys,
    rules: AccessRules,
}

impl Doors {
    fn new() -> Self {
        let (house, other) = (House::new(), Keys::generate());
        house.allowed.allow("other", other.public()).unwrap();
        let rules = house.rules().call("other", "probe", "sleep");
        Self {
            house,
            other,
            rules,
        }
    }

    fn security(&self) -> ServerSecurity {
        ServerSecurity::new(self.house.server.clone(), self.house.allowed.clone())
            .with_access(self.rules.clone())
    }

    fn key(&self, key: Key) -> Option<ClientSecurity> {
        let right = self.house.server.public();
        match key {
            Missing => None,
            Unknown => security(&Keys::generate(), right),
            WrongServer => security(&self.house.web, Keys::generate().public()),
            NotAllowed => security(&self.other, right),
            Valid | Revoked => security(&self.house.web, right),
        }
    }

    fn revoke(&self) {
        assert!(self.house.allowed.revoke(self.house.web.public()));
    }
}

fn answer<T>(result: Result<T, Status>) -> Answer {
    match result.map_err(|status| status.code()) {
        Ok(_) => Done,
        Err(Code::PermissionDenied) => Denied,
        Err(Code::Unavailable) => Shut,
        Err(other) => panic!("{other:?}"),
    }
}

async fn call(client: &Client) -> Answer {
    answer(common::call(client, &ECHO, "hello").await)
}

#[tokio::test]
async fn a_call_by_every_kind_of_key() {
    for (key, expected) in ROWS {
        let doors = Doors::new();
        let server = Server::builder()
            .service(common::Probe::default())
            .security(doors.security());
        let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
        let peer = client(server.endpoint(), doors.key(key)).await;
        let mut handled = u64::from(expected == Done);
        if key == Revoked {
            assert_eq!(call(&peer).await, Done);
            doors.revoke();
            handled = 1;
        }
        assert_eq!(call(&peer).await, expected, "{key:?}");
        let again = client(server.endpoint(), doors.key(key)).await;
        assert_eq!(call(&again).await, expected, "{key:?}, again");
        handled += u64::from(expected == Done);
        assert_eq!(server.counters().handled, handled, "{key:?}");
        let denied = if expected == Denied { 2 } else { 0 };
        assert_eq!(server.counters().denied, denied, "{key:?}");
        server.shutdown().await;
    }
}

async fn subscribe(subscriber: &Subscriber<Progress>) -> Answer {
    match subscriber.subscribe(TopicKeys::All).await {
        Ok(()) => Done,
        Err(SubscribeError::Denied) => Denied,
        Err(SubscribeError::NotConnected { .. }) => Shut,
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_subscription_by_every_kind_of_key() {
    for (key, expected) in ROWS {
        let doors = Doors::new();
        let publisher = Publisher::builder().security(doors.security());
        let publisher: Publisher<Progress> = publisher.bind("tcp://127.0.0.1:0").await.unwrap();
        let mut peer = subscriber(publisher.endpoint(), doors.key(key)).await;
        if key == Revoked {
            assert_eq!(subscribe(&peer).await, Done);
            doors.revoke();
            sleep(REVOKED).await;
        }
        assert_eq!(subscribe(&peer).await, expected, "{key:?}");
        let is_there = usize::from(expected == Done);
        assert_eq!(publisher.matching("job"), is_there, "{key:?}");
        publisher.publish(&progress(1)).await.unwrap();
        let event = match expected {
            Done => timeout(PATIENCE, peer.next()).await.ok(),
            _ => timeout(Duration::from_millis(100), peer.next()).await.ok(),
        };
        assert_eq!(
            matches!(event, Some(Some(Event::Message(_)))),
            expected == Done,
            "{key:?}: {event:?}"
        );
        publisher.close().await;
    }
}

/// Whether events of a publisher are taken.
async fn publish(publisher: &Publisher<Progress>, to: &mut Subscriber<Progress>) -> Answer {
    let denied = to.counters().denied;
    let connected_by = Instant::now() + Duration::from_millis(1500);
    while publisher.matching("job") == 0 {
        if Instant::now() >= connected_by {
            assert_eq!(publisher.counters().subscribers, 0);
            return Shut;
        }
        sleep(Duration::from_millis(5)).await;
    }
    publisher.publish(&progress(1)).await.unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        let event = timeout(Duration::from_millis(5), to.next()).await;
        match event {
            Ok(Some(Event::Message(_))) => return Done,
            Ok(Some(_)) => {}
            Ok(None) => panic!("it is closed"),
            Err(_) if to.counters().denied > denied => return Denied,
            Err(_) => assert!(Instant::now() < until, "neither taken nor dropped"),
        }
    }
}

#[tokio::test]
async fn events_of_a_publisher_with_every_kind_of_key() {
    // Here the publisher is asked who it is. One whose key the subscriber has proved, and which is on no list, is in: its
    // events are dropped.
    for (key, expected) in [
        (Missing, Shut),
        (Unknown, Denied),
        (WrongServer, Shut),
        (NotAllowed, Denied),
        (Valid, Done),
        (Revoked, Denied),
    ] {
        let house = House::new();
        let (clock, known) = (Keys::generate(), AllowedKeys::new());
        if key != Unknown {
            known.allow("clock", clock.public()).unwrap();
        }
        let topic = if key == NotAllowed {
            "tick/"
        } else {
            "progress/"
        };
        let rules = AccessRules::new().publish("clock", topic);
        let builder = Publisher::builder();
        let with = |keys: &Keys| {
            let security = ServerSecurity::new(keys.clone(), house.allowed.clone());
            builder
                .clone()
                .security(security.with_access(house.rules()))
        };
        let builder = match key {
            Missing => builder.clone(),
            WrongServer => with(&Keys::generate()),
            _ => with(&clock),
        };
        let publisher: Publisher<Progress> = builder.bind("tcp://127.0.0.1:0").await.unwrap();
        let security = ClientSecurity::new(house.web.clone(), clock.public())
            .with_publishers(known.clone(), rules);
        let mut to = subscriber(publisher.endpoint(), Some(security)).await;
        to.subscribe_unconfirmed(TopicKeys::All).await.unwrap();
        if key == Revoked {
            assert_eq!(publish(&publisher, &mut to).await, Done);
            assert!(known.revoke(clock.public()));
        }
        assert_eq!(publish(&publisher, &mut to).await, expected, "{key:?}");
        publisher.close().await;
    }
}

/// A queue's server, and the queue itself as its owner has it.
async fn queue(doors: &mut Doors) -> (Queue<Thumbnail>, ServerHandle) {
    doors.rules = doors
        .rules
        .clone()
        .queue("web", "thumbnails", QueueRight::Push)
        .queue("web", "thumbnails", QueueRight::Work);
    let kept = Queue::<Thumbnail>::memory(QueueOptions::default());
    let server = Server::builder()
        .service(QueueService::new().queue(&kept))
        .security(doors.security());
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
    (kept, server)
}

async fn connect(
    server: &ServerHandle,
    security: Option<ClientSecurity>,
) -> Result<Queue<Thumbnail>, Answer> {
    let mut client = Client::builder();
    if let Some(security) = security {
        client = client.security(security);
    }
    let endpoint = server.endpoint().to_string();
    let remote = Remote::builder().client(client);
    let connecting = remote.connect(endpoint, "thumbnails");
    // It would go on trying for ten seconds.
    match timeout(Duration::from_secs(2), connecting).await {
        Ok(Ok(remote)) => Ok(Queue::on(remote)),
        Ok(Err(error)) => Err(answer::<()>(Err(error.into()))),
        Err(_) => Err(Shut),
    }
}

fn of_queue<T>(result: Result<T, QueueError>) -> Answer {
    answer(result.map_err(Status::from))
}

async fn push(queue: &Queue<Thumbnail>) -> Answer {
    let thumbnail = Thumbnail::default();
    let pushed = queue.push(&thumbnail).wait_max(Duration::from_secs(2));
    of_queue(pushed.await)
}

#[tokio::test]
async fn a_push_by_every_kind_of_key() {
    for (key, expected) in ROWS {
        let mut doors = Doors::new();
        // Which may do all but what it wants.
        doors.rules = doors
            .rules
            .clone()
            .queue("other", "thumbnails", QueueRight::Work)
            .queue("other", "thumbnails", QueueRight::Manage)
            .queue("other", "others", QueueRight::Push);
        let (kept, server) = queue(&mut doors).await;
        let came = connect(&server, doors.key(key)).await;
        let mut jobs = 0;
        let answer = match came {
            Ok(queue) => {
                if key == Revoked {
                    assert_eq!(push(&queue).await, Done);
                    jobs = 1;
                    doors.revoke();
                }
                push(&queue).await
            }
            Err(answer) => answer,
        };
        assert_eq!(answer, expected, "{key:?}");
        jobs += usize::from(expected == Done);
        assert_eq!(kept.counters().await.unwrap().jobs, jobs, "{key:?}");
        server.shutdown().await;
    }
}

/// What comes of waiting for a job; it is done with as soon as it is there.
async fn work(queue: &Queue<Thumbnail>) -> Answer {
    let mut jobs = queue.jobs().start().await.unwrap();
    match timeout(PATIENCE, jobs.next()).await {
        Ok(Some(Ok(job))) => of_queue(job.ack().await),
        Ok(Some(Err(error))) => of_queue::<()>(Err(error)),
        Ok(None) | Err(_) => panic!("neither a job nor an error"),
    }
}

#[tokio::test]
async fn work_by_every_kind_of_key() {
    for (key, expected) in ROWS {
        let mut doors = Doors::new();
        doors.rules = doors
            .rules
            .clone()
            .queue("other", "thumbnails", QueueRight::Push)
            .queue("other", "thumbnails", QueueRight::Manage)
            .queue("other", "others", QueueRight::Work);
        let (kept, server) = queue(&mut doors).await;
        let job = Thumbnail::default();
        let answer = match connect(&server, doors.key(key)).await {
            Ok(queue) if key == Revoked => {
                // It is at work, and waits for the next.
                let mut jobs = queue.jobs().start().await.unwrap();
                kept.push(&job).await.unwrap();
                let first = timeout(PATIENCE, jobs.next()).await.unwrap();
                first.unwrap().unwrap().ack().await.unwrap();
                doors.revoke();
                sleep(REVOKED).await;
                kept.push(&job).await.unwrap();
                match timeout(Duration::from_secs(1), jobs.next()).await {
                    Ok(Some(Err(error))) => of_queue::<()>(Err(error)),
                    Ok(Some(Ok(_))) => Done,
                    Ok(None) | Err(_) => Shut,
                }
            }
            Ok(queue) => {
                kept.push(&job).await.unwrap();
                work(&queue).await
            }
            Err(answer) => {
                kept.push(&job).await.unwrap();
                answer
            }
        };
        assert_eq!(answer, expected, "{key:?}");
        if expected != Done {
            // Nobody has the job: its owner gets it.
            assert_eq!(work(&kept).await, Done, "{key:?}");
        }
        server.shutdown().await;
    }
}
