//! Generated services: over sockets and in process, inherited methods, errors, events.

use std::time::Duration;

use bowline::topic::{Event, Keys};
use bowline::{
    Carrier, Code, Failure, Publisher, Reply, Request, Server, Status, Subscriber,
    TransportOptions, Work,
};
use bowline_test_schemas::everything::*;
use bowline_test_schemas::sub::common::Versioned;

struct Accounts;

impl Base for Accounts {
    async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
        let text = request.get()?.get_text()?.to_str()?.to_owned();
        Ok(PingResults { text }.into())
    }
}

impl Versioned for Accounts {}

impl Login for Accounts {
    async fn log_in(
        &self,
        request: Request<LoginLogInParams>,
    ) -> Result<Reply<LoginLogInResults>, Failure<Denied>> {
        let params = request.plain()?;
        if params.password != "open sesame" {
            let reason = format!("{} is not welcome", params.user);
            return Err(Denied { reason }.into());
        }
        tokio::task::yield_now().await;
        Ok(Reply::<LoginLogInResults>::build(|mut results| {
            results.set_session("s-1")
        }))
    }
}

async fn everything_works<S: bowline::call::CallService>(login: LoginClient<S>) {
    let reply = login
        .log_in(|mut params| {
            params.set_user("ann");
            params.set_password("open sesame");
        })
        .await
        .unwrap();
    assert_eq!(reply.get().unwrap().get_session().unwrap(), "s-1");

    let refused = login
        .log_in_plain(&LoginLogInParams {
            user: "eve".into(),
            password: "x".into(),
        })
        .await
        .unwrap_err();
    assert_eq!(
        refused,
        Failure::Application(Denied {
            reason: "eve is not welcome".into()
        })
    );

    let inherited = login.ping(|mut p| p.set_text("hello")).await.unwrap();
    assert_eq!(inherited.plain().unwrap().text, "hello");

    let missing = login.version(|_| {}).await.unwrap_err();
    assert_eq!(
        (missing.code(), missing.work()),
        (Code::Unimplemented, Work::NotDone)
    );
    let missing = login.r#match(|_| {}).await.unwrap_err();
    assert_eq!(missing.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_service_works_over_tcp() {
    let server = Server::builder()
        .service(LoginServer::new(Accounts))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    everything_works(
        LoginClient::connect(server.endpoint().to_string())
            .await
            .unwrap(),
    )
    .await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_client_can_be_put_straight_on_a_service() {
    everything_works(LoginClient::new(LoginServer::new(Accounts))).await;
}

#[tokio::test]
async fn a_client_of_the_base_interface_can_call_what_extends_it() {
    let server = Server::builder()
        .service(LoginServer::new(Accounts))
        .bind("inproc://extended")
        .await
        .unwrap()
        .spawn();
    let base = BaseClient::connect("inproc://extended").await.unwrap();
    assert_eq!(
        base.ping(|mut p| p.set_text("x"))
            .await
            .unwrap()
            .plain()
            .unwrap()
            .text,
        "x"
    );
    server.shutdown().await;
}

#[tokio::test]
async fn two_services_of_one_interface_do_not_share_a_server() {
    let error = Server::builder()
        .service(LoginServer::new(Accounts))
        .service(LoginServer::new(Accounts))
        .bind("inproc://twice")
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("`logins` and `logins`"),
        "{error}"
    );
}

async fn events_arrive(endpoint: &str, carrier: Carrier) {
    let options = || TransportOptions::default().with_carrier(carrier);
    let publisher = Publisher::builder()
        .transport(options())
        .bind::<Progress>(endpoint)
        .await
        .unwrap();
    let mut all = Subscriber::builder()
        .transport(options())
        .connect::<Progress>(publisher.endpoint().to_string())
        .await
        .unwrap();
    let mut one = Subscriber::builder()
        .transport(options())
        .connect::<Progress>(publisher.endpoint().to_string())
        .await
        .unwrap();
    all.subscribe(Keys::All).await.unwrap();
    one.subscribe(Keys::Prefix("b")).await.unwrap();
    let published = publisher
        .publish(&Progress {
            job: "a".into(),
            done: 1,
        })
        .await
        .unwrap();
    assert_eq!((published.sequence, published.matched), (1, 1));
    let published = publisher
        .publish(&Progress {
            job: "b".into(),
            done: 2,
        })
        .await
        .unwrap();
    assert_eq!((published.sequence, published.matched), (1, 2));
    for (expected, key) in [(1, "a"), (2, "b")] {
        match all.next().await.unwrap() {
            Event::Message(message) => {
                assert_eq!(message.plain().unwrap().done, expected);
                assert_eq!(message.topic().key(), key);
            }
            other => panic!("{other:?}"),
        }
    }
    match one.next().await.unwrap() {
        Event::Message(message) => assert_eq!(message.plain().unwrap().done, 2),
        other => panic!("{other:?}"),
    }
    publisher.close().await;
}

#[tokio::test]
async fn events_arrive_in_process() {
    events_arrive("inproc://events", Carrier::Omq).await;
}

#[tokio::test]
async fn events_arrive_over_tcp() {
    events_arrive("tcp://127.0.0.1:0", Carrier::Omq).await;
}

#[tokio::test]
async fn events_arrive_over_ipc() {
    let path = std::env::temp_dir().join(format!("bowline-events-{}", std::process::id()));
    events_arrive(&format!("ipc://{}", path.display()), Carrier::Omq).await;
}

#[cfg(feature = "zeromq")]
#[tokio::test]
async fn events_arrive_over_the_zeromq_crate() {
    events_arrive("tcp://127.0.0.1:0", Carrier::Zeromq).await;
}

#[tokio::test]
async fn a_slow_subscriber_is_told_what_it_missed_even_of_the_last_event() {
    let publisher = Publisher::builder()
        .announce_after(Duration::from_millis(50))
        .bind::<Progress>("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let mut slow = Subscriber::builder()
        .events_max(10)
        .slow_after(Duration::ZERO)
        .connect::<Progress>(publisher.endpoint().to_string())
        .await
        .unwrap();
    slow.subscribe(Keys::All).await.unwrap();
    for done in 1..=100 {
        publisher
            .publish(&Progress {
                job: "a".into(),
                done,
            })
            .await
            .unwrap();
    }
    let mut accounted = 0;
    while accounted < 100 {
        match slow.next().await.unwrap() {
            Event::Message(message) => {
                accounted += 1;
                assert_eq!(message.sequence(), accounted);
            }
            Event::Missed { from, to, .. } => {
                assert_eq!(from, accounted + 1);
                accounted = to;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(accounted, 100);
    assert!(slow.counters().dropped > 0);
    publisher.close().await;
}

#[tokio::test]
async fn a_publisher_that_restarts_is_noticed_and_subscribed_to_again() {
    let publisher = Publisher::<Progress>::bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let endpoint = publisher.endpoint().to_string();
    let mut subscriber = Subscriber::<Progress>::connect(&endpoint).await.unwrap();
    subscriber.subscribe(Keys::All).await.unwrap();
    publisher
        .publish(&Progress {
            job: "a".into(),
            done: 1,
        })
        .await
        .unwrap();
    assert!(matches!(subscriber.next().await, Some(Event::Message(_))));
    publisher.close().await;
    let publisher = Publisher::<Progress>::bind(&endpoint).await.unwrap();
    match tokio::time::timeout(Duration::from_secs(10), subscriber.next())
        .await
        .unwrap()
    {
        Some(Event::Restarted { .. }) => {}
        other => panic!("{other:?}"),
    }
    publisher
        .publish(&Progress {
            job: "a".into(),
            done: 2,
        })
        .await
        .unwrap();
    match subscriber.next().await.unwrap() {
        Event::Message(message) => {
            assert_eq!((message.sequence(), message.plain().unwrap().done), (1, 2))
        }
        other => panic!("{other:?}"),
    }
    publisher.close().await;
}
