//! What is said of a refusal, and to whom: the rule that was missing, to the log; to the caller no more than that it may not. A
//! test alone, since it listens to all that its process logs.

mod common;
#[path = "common/house.rs"]
mod house;
#[path = "common/listening.rs"]
mod listening;

use std::time::{Duration, Instant};

use bowline::call::{NamedService, RawRequest};
use bowline::queue::{Queue, QueueOptions, QueueService, Remote};
use bowline::security::{AccessList, AccessRules, AllowedKeys, Keys, QueueRight, ServerSecurity};
use bowline::topic::{Keys as TopicKeys, SubscribeError};
use bowline::{Client, Code, Publisher, Reply, Request, Server, Status, Work};
use bowline_test_schemas::everything::{
    Base, BaseServer, PingParams, PingResults, Progress, Thumbnail,
};
use common::{Probe, SLEEP, call, milliseconds, send};
use house::{House, client, security, subscriber};

/// What no caller is told.
const OF_THE_RULE: [&str; 6] = ["web", "probe", "sleep", "base", "ping", "thumbnails"];

struct Echo;

impl Base for Echo {
    async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
        let text = request.plain()?.text;
        Ok(PingResults { text }.into())
    }
}

#[tokio::test]
async fn the_log_has_the_rule_that_was_missing_and_the_caller_has_not() {
    let logged = listening::listen();
    let lines = |of: &str| {
        let logged = logged.lock().unwrap();
        let lines = logged.lines().filter(|line| line.contains(of));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let house = House::new();
    let right = house.server.public();
    let kept = Queue::<Thumbnail>::memory(QueueOptions::default());
    let rules = house.rules().queue("web", "thumbnails", QueueRight::Work);
    let access = AccessList::from(rules.clone());
    let server = Server::builder()
        .service(Probe::default())
        .service(BaseServer::new(Echo))
        .service(QueueService::new().queue(&kept))
        .security(house.security().with_access(access.clone()))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let endpoint = server.endpoint().to_string();

    // A call.
    let web = client(&endpoint, security(&house.web, right)).await;
    let denied = call(&web, &SLEEP, milliseconds(1)).await.unwrap_err();
    let mut told = vec![denied.clone()];
    let line = lines("no rule allows the call")
        .pop()
        .expect("it is logged");
    for part in ["web", "probe", "sleep"] {
        assert!(line.contains(part), "{line}");
    }

    // Its body is not looked at before: one that cannot be read is denied, and is found to be none where a rule allows the call.
    let ping = &<BaseServer<Echo> as NamedService>::INFO.methods[0];
    let nonsense = || RawRequest::new(ping, vec![0xff; 64].into());
    let denied = send(&web, nonsense()).await.unwrap_err();
    assert_eq!(
        (denied.code(), denied.work()),
        (Code::PermissionDenied, Work::NotDone)
    );
    told.push(denied);
    assert_eq!(server.counters().handled, 0);
    access.replace(&rules.clone().call("web", "base", "ping"));
    let invalid = send(&web, nonsense()).await.unwrap_err();
    assert_eq!(invalid.code(), Code::InvalidArgument);
    assert_eq!(server.counters().handled, 1);

    // A queue. A line a second is logged.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let builder = Client::builder().security(security(&house.web, right).unwrap());
    let remote = Remote::builder().client(builder);
    let remote = remote.connect(&endpoint, "thumbnails").await.unwrap();
    let pushed = Queue::on(remote).push(&Thumbnail::default()).await;
    told.push(Status::from(pushed.unwrap_err()));
    let line = lines("no rule allows the call")
        .pop()
        .expect("it is logged");
    for part in ["web", "job_queue", "push", "thumbnails"] {
        assert!(line.contains(part), "{line}");
    }
    for status in told {
        assert_eq!(status.code(), Code::PermissionDenied);
        for part in OF_THE_RULE {
            assert!(!format!("{status}").contains(part), "{status}");
        }
    }
    server.shutdown().await;

    // A subscription.
    let publisher = Publisher::builder().security(house.security().with_access(AccessRules::new()));
    let publisher: Publisher<Progress> = publisher.bind("tcp://127.0.0.1:0").await.unwrap();
    let web = subscriber(publisher.endpoint(), security(&house.web, right)).await;
    let refused = web.subscribe(TopicKeys::Prefix("eu/")).await;
    assert_eq!(refused, Err(SubscribeError::Denied));
    let line = lines("no rule allows the subscription");
    let line = line.first().expect("it is logged");
    assert!(
        line.contains("web") && line.contains("progress/eu/"),
        "{line}"
    );
    publisher.close().await;

    // A list that cannot be read stays as it was, and the log says where it is wrong.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("doors.toml");
    std::fs::write(
        &path,
        "\n[[rule]]\nprincipals = 'web'\ncalls = ['probe.echo', 'probe.renamed']\n",
    )
    .unwrap();
    let access = AccessList::read(&path).unwrap();
    let security_of = ServerSecurity::new(Keys::generate(), AllowedKeys::new());
    let server = Server::builder()
        .service(Probe::default())
        .security(security_of.with_access(access.clone()))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    // A rule that names nothing is told when the server is bound.
    let line = lines("names nothing").pop().expect("it is logged");
    assert!(
        line.contains("doors.toml:2") && line.contains("probe.renamed"),
        "{line}"
    );
    std::fs::write(&path, "[[rule]]\nprincipals = 'web'\ncalls = 'probe'\n").unwrap();
    let start = Instant::now();
    let line = loop {
        if let Some(line) = lines("not reloaded").pop() {
            break line;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "nothing is said");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(
        line.contains("doors.toml") && line.contains("line 1: principal `web`"),
        "{line}"
    );
    assert!(access.may_call("web", "probe", "echo"));
    server.shutdown().await;
}
