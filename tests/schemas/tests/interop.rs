//! Python, with nothing but pyzmq and pycapnp, on the other end of every pattern.
//!
//! `tests/interop/run` installs these and runs this file.

mod python;

use bowline::topic::{Event, Keys};
use bowline::{Code, Publisher, Reply, Request, Server, Status, Subscriber, Work};
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
