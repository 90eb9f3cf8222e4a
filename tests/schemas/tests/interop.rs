//! Python, with nothing but pyzmq and pycapnp, on the other end of every pattern.
//!
//! `tests/interop/run` installs these and runs this file.

mod python;

use std::time::Duration;

use bowline::queue::{QueueOptions, QueueService};
use bowline::topic::{Event, Keys};
use bowline::{
    Code, Publisher, Queue, Reply, Request, Server, ServerHandle, Status, Subscriber, Work,
};
use bowline_test_schemas::everything::*;
use python::{LONG, line, python, tell};
use tokio::time::timeout;

struct Echo;

impl Base for Echo {
    async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
        let text = request.plain()?.text;
        Ok(PingResults { text }.into())
    }
}

#[tokio::test]
async fn a_python_req_client_calls_a_bowline_service() {
    let server = Server::builder()
        .service(BaseServer::new(Echo))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let mut client = python("client.py", &[&server.endpoint().to_string()]);
    assert_eq!(line(&mut client).await, "ok");
    assert_eq!(server.counters().malformed, 1);
    assert_eq!(server.counters().unknown, 1);
    server.shutdown().await;
}

#[tokio::test]
async fn requests_through_queues_of_zeromq_are_answered() {
    let server = Server::builder()
        .service(BaseServer::new(Echo))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let mut python = python("zmq_patterns.py", &[&server.endpoint().to_string()]);
    let behind_queues = line(&mut python).await;
    assert!(behind_queues.starts_with("tcp://"), "{behind_queues}");
    let base = BaseClient::connect(behind_queues).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200 {
        let base = base.clone();
        calls.spawn(async move {
            let text = format!("call {number}");
            let reply = base
                .ping(|mut params| params.set_text(&text))
                .await
                .unwrap();
            assert_eq!(reply.plain().unwrap().text, text);
        });
    }
    while let Some(called) = calls.join_next().await {
        called.unwrap();
    }
    tell(&mut python, "done").await;
    assert_eq!(line(&mut python).await, "ok");
    server.shutdown().await;
}

#[tokio::test]
async fn a_python_dealer_calls_a_bowline_service_many_times_in_one_message() {
    let server = Server::builder()
        .service(BaseServer::new(Echo))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let mut client = python("compact_client.py", &[&server.endpoint().to_string()]);
    assert_eq!(line(&mut client).await, "ok");
    assert_eq!(server.counters().handled, 101);
    server.shutdown().await;
}

#[tokio::test]
async fn a_bowline_client_calls_a_python_router_many_times_in_one_message() {
    let mut server = python("compact_server.py", &[]);
    let base = BaseClient::connect(line(&mut server).await).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..101 {
        let base = base.clone();
        let call = async move {
            let text = format!("call {number}");
            let reply = base
                .ping(|mut params| params.set_text(&text))
                .await
                .unwrap();
            assert_eq!(reply.plain().unwrap().text, text.to_uppercase());
        };
        match number {
            0 => call.await,
            _ => drop(calls.spawn(call)),
        }
    }
    calls.join_all().await;
    assert_eq!(line(&mut server).await, "1 and 100");
}

#[tokio::test]
async fn a_bowline_client_calls_a_python_rep_service() {
    let mut server = python("server.py", &[]);
    let base = BaseClient::connect(line(&mut server).await).await.unwrap();
    for text in ["hello", "again"] {
        let reply = base.ping(|mut params| params.set_text(text)).await.unwrap();
        assert_eq!(reply.plain().unwrap().text, text.to_uppercase());
    }
}

#[tokio::test]
async fn a_bowline_client_understands_a_python_status() {
    let mut server = python("server.py", &[]);
    let other = OtherClient::connect(line(&mut server).await).await.unwrap();
    let status = other.log_in(|_| {}).await.unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::Unimplemented, Work::NotDone)
    );
    assert_eq!(status.message(), "no such method here");
}

#[tokio::test]
async fn a_python_sub_reads_a_bowline_publisher_and_is_confirmed() {
    let publisher = Publisher::<Progress>::bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let mut subscriber = python("subscriber.py", &[&publisher.endpoint().to_string()]);
    assert_eq!(line(&mut subscriber).await, "subscribed");
    for done in 1..=3 {
        let published = publisher
            .publish(&Progress {
                job: "job".into(),
                done,
            })
            .await
            .unwrap();
        assert_eq!(published.matched, 1);
    }
    assert_eq!(line(&mut subscriber).await, "ok");
    publisher.close().await;
}

#[tokio::test]
async fn a_bowline_subscriber_reads_a_python_pub_and_sees_the_gap() {
    let mut publisher = python("publisher.py", &[]);
    let mut subscriber = Subscriber::<Progress>::connect(line(&mut publisher).await)
        .await
        .unwrap();
    subscriber.subscribe_unconfirmed(Keys::All).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(
            match timeout(LONG, subscriber.next()).await.unwrap().unwrap() {
                Event::Message(message) => format!("{}", message.plain().unwrap().done),
                Event::Missed { from, to, .. } => format!("missed {from} to {to}"),
                Event::Restarted { .. } => "restarted".to_owned(),
            },
        );
    }
    assert_eq!(seen, ["1", "2", "missed 3 to 4", "5"]);
    tell(&mut publisher, "go").await;
}

async fn serve(queue: &Queue<Thumbnail>) -> ServerHandle {
    let server = Server::builder().service(QueueService::new().queue(queue));
    server.bind("tcp://127.0.0.1:0").await.unwrap().spawn()
}

#[tokio::test]
async fn bowline_works_on_what_python_pushes() {
    let queue = Queue::<Thumbnail>::memory(QueueOptions::default());
    let server = serve(&queue).await;
    let mut producer = python("queue_producer.py", &[&server.endpoint().to_string()]);
    assert_eq!(line(&mut producer).await, "ok");
    let mut jobs = queue.jobs().start().await.unwrap();
    for (image, id) in [
        ("cat.jpg", None),
        ("dog.jpg", None),
        ("owl.jpg", Some("owl")),
    ] {
        let job = timeout(LONG, jobs.next()).await.unwrap().unwrap().unwrap();
        let Thumbnail { image: of, pixels } = job.plain().unwrap();
        assert_eq!((of.as_str(), pixels), (image, 640));
        assert_eq!(job.id().map(|id| id.as_bytes()), id.map(str::as_bytes));
        job.ack().await.unwrap();
    }
    let counters = queue.counters().await.unwrap();
    assert_eq!(
        (counters.jobs, counters.done),
        (0, 3),
        "none is there twice"
    );
    server.shutdown().await;
}

#[tokio::test]
async fn python_works_on_what_bowline_pushes() {
    let options = QueueOptions::default()
        .with_lease(Duration::from_millis(600))
        .with_backoff_min(Duration::from_millis(10))
        .with_backoff_max(Duration::from_millis(20));
    let queue = Queue::<Thumbnail>::memory(options);
    let server = serve(&queue).await;
    let mut worker = python("queue_worker.py", &[&server.endpoint().to_string()]);
    let expected: [(&str, &[&str]); 4] = [
        ("cat.jpg", &["cat.jpg 0 0 held"]),
        ("refuse", &["refuse 0 0 held", "refuse 1 0 held"]),
        ("renew", &["renew 0 0 held"]),
        ("late", &["late 0 0 not held", "late 0 1 held"]),
    ];
    for (image, lines) in expected {
        let thumbnail = Thumbnail {
            image: image.to_owned(),
            ..Default::default()
        };
        queue.push(&thumbnail).await.unwrap();
        for expected in lines {
            assert_eq!(line(&mut worker).await, *expected);
        }
    }
    let end = Thumbnail {
        image: "end".to_owned(),
        ..Default::default()
    };
    queue.push(&end).await.unwrap();
    assert_eq!(line(&mut worker).await, "ok");
    let counters = queue.counters().await.unwrap();
    assert_eq!((counters.jobs, counters.done), (0, 5));
    server.shutdown().await;
}
