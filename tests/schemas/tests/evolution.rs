//! Services of different versions of a schema beside each other: in processes of their own, each way, and through one
//! in the middle; and requests that an upgrade in between leaves the same.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use std::time::Duration;

use bowline::message::{MessageError, Msg, Plain};
use bowline::once::Fingerprint;
use bowline::queue::{Queue, QueueError, QueueOptions, QueueService};
use bowline::topic::{Event, Keys, PublishError};
use bowline::{
    Client, Code, Limits, Publisher, Reason, Reply, Request, Server, Status, Subscriber,
};
use bowline_test_schemas::odd::fingerprints::*;
use bowline_test_schemas::{v1, v2};

/// The older version of the service: does what it knows with what it is sent, as plain structs.
struct Older {
    next: Option<v1::pay::PayClient>,
    /// Whether it passes messages on whole.
    whole: bool,
}

impl v1::pay::Pay for Older {
    async fn pay(
        &self,
        request: Request<v1::pay::Payment>,
    ) -> Result<Reply<v1::pay::Payment>, Status> {
        match &self.next {
            None => Ok(request.plain()?.into()),
            Some(next) if self.whole => Ok(next.pay_message(request.message()).await?.into()),
            Some(next) => Ok(next.pay_plain(&request.plain()?).await?.plain()?.into()),
        }
    }
}

/// The newer one.
struct Newer;

impl v2::pay::Pay for Newer {
    async fn pay(
        &self,
        request: Request<v2::pay::Payment>,
    ) -> Result<Reply<v2::pay::Payment>, Status> {
        let mut payment = request.plain()?;
        payment.note += " seen";
        Ok(payment.into())
    }
}

/// A process of this program that serves as the environment says, until its standard input ends.
#[test]
#[ignore = "the process that the other tests start: cargo test -p bowline-test-schemas --test evolution"]
fn serves_as_its_environment_says() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        if let Ok(events) = std::env::var("EVENTS") {
            return passes_on(&std::env::var("NEXT").unwrap(), &events).await;
        }
        let next = match std::env::var("NEXT") {
            Ok(endpoint) => Some(v1::pay::PayClient::new(
                Client::connect(endpoint).await.unwrap(),
            )),
            Err(_) => None,
        };
        let server = match &std::env::var("SERVES").unwrap()[..] {
            "newer" => Server::builder().service(v2::pay::PayServer::new(Newer)),
            what => Server::builder().service(v1::pay::PayServer::new(Older {
                next,
                whole: what == "older-whole",
            })),
        };
        let server = server.bind("tcp://127.0.0.1:0").await.unwrap();
        println!("endpoint {}", server.endpoint());
        let _serving = server.spawn();
        stdin_ended().await;
    });
}

async fn stdin_ended() {
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    end.await.unwrap().unwrap();
}

/// An older program in the middle: passes on jobs of its own queue and events of another publisher, whole.
async fn passes_on(queue: &str, events: &str) {
    use v1::pay::{Order, Paid};
    let received = Queue::<Order>::memory(QueueOptions::default());
    let server = Server::builder().service(QueueService::new().queue(&received));
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
    let publisher = Publisher::<Paid>::bind("tcp://127.0.0.1:0").await.unwrap();
    let next = Queue::<Order>::connect(queue).await.unwrap();
    let mut subscriber: Subscriber<Paid> = Subscriber::builder().connect(events).await.unwrap();
    subscriber.subscribe(Keys::All).await.unwrap();
    let mut jobs = received.jobs().start().await.unwrap();
    println!("endpoint {} {}", server.endpoint(), publisher.endpoint());
    let jobs = tokio::spawn(async move {
        while let Some(job) = jobs.next().await {
            let job = job.unwrap();
            let refused = next.push(&job.plain().unwrap()).await.unwrap_err();
            let QueueError::Message(error @ MessageError::NotInSchema { .. }) = refused else {
                panic!("{refused}");
            };
            assert!(error.to_string().contains("push_message"), "{error}");
            let order = job.open().unwrap();
            next.push_message(&order).await.unwrap();
            job.ack().await.unwrap();
        }
    });
    let events = tokio::spawn(async move {
        while let Some(event) = subscriber.next().await {
            let Event::Message(event) = event else {
                continue;
            };
            let refused = publisher
                .publish(&event.plain().unwrap())
                .await
                .unwrap_err();
            let PublishError::Message(error @ MessageError::NotInSchema { .. }) = refused else {
                panic!("{refused}");
            };
            assert!(error.to_string().contains("publish_message"), "{error}");
            let paid = event.open().unwrap();
            publisher.publish_message(&paid).await.unwrap();
        }
    });
    stdin_ended().await;
    jobs.abort();
    events.abort();
}

struct Process {
    child: Child,
    endpoint: String,
}

impl Process {
    fn start(serves: &str, next: Option<&str>) -> Self {
        Self::start_with(serves, next, None)
    }

    fn start_with(serves: &str, next: Option<&str>, events: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "serves_as_its_environment_says",
                "--ignored",
                "--nocapture",
            ])
            .env("SERVES", serves)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(next) = next {
            command.env("NEXT", next);
        }
        if let Some(events) = events {
            command.env("EVENTS", events);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let endpoint = lines
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("endpoint ")?.1.to_owned()));
        Self {
            child,
            endpoint: endpoint.expect("it serves"),
        }
    }

    async fn newer_client(&self) -> v2::pay::PayClient {
        v2::pay::PayClient::connect(&self.endpoint).await.unwrap()
    }

    async fn older_client(&self) -> v1::pay::PayClient {
        v1::pay::PayClient::connect(&self.endpoint).await.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn newer_payment(how: v2::pay::PaymentHow) -> v2::pay::Payment {
    v2::pay::Payment {
        to: "ann".into(),
        amount: 5,
        currency: v2::pay::Currency::Chf,
        accepted: vec![v2::pay::Currency::Eur, v2::pay::Currency::Chf],
        how,
        note: "new".into(),
    }
}

fn transfer() -> v2::pay::PaymentHow {
    v2::pay::PaymentHow::Transfer(v2::pay::PaymentHowTransfer {
        iban: "CH93".into(),
        purpose: "rent".into(),
    })
}

#[tokio::test]
async fn an_older_service_answers_a_newer_client_and_the_other_way_round() {
    let older = Process::start("older", None);
    let payment = newer_payment(v2::pay::PaymentHow::Card("1234".into()));
    let client = older.newer_client().await;
    let answered = client.pay_plain(&payment).await.unwrap().plain().unwrap();
    // The enumerants came back as they were; what the older one has no field for did not.
    let expected = v2::pay::Payment {
        note: String::new(),
        ..payment
    };
    assert_eq!(answered, expected);
    let missing = client.refund(|_| {}).await.unwrap_err();
    assert_eq!(missing.code(), Code::Unimplemented);

    let newer = Process::start("newer", None);
    let payment = v1::pay::Payment {
        to: "ann".into(),
        currency: v1::pay::Currency::Usd,
        how: v1::pay::PaymentHow::Card("1234".into()),
        ..v1::pay::Payment::default()
    };
    let client = newer.older_client().await;
    let answered = client.pay_plain(&payment).await.unwrap().plain().unwrap();
    assert_eq!(answered, payment);
}

#[tokio::test]
async fn newer_enumerants_pass_through_an_older_service_in_the_middle() {
    let newer = Process::start("newer", None);
    let middle = Process::start("older", Some(&newer.endpoint));
    let payment = newer_payment(v2::pay::PaymentHow::Cash);
    let client = middle.newer_client().await;
    let answered = client.pay_plain(&payment).await.unwrap().plain().unwrap();
    assert_eq!(answered.currency, v2::pay::Currency::Chf);
    assert_eq!(answered.accepted, payment.accepted);
}

#[tokio::test]
async fn newer_members_of_a_union_pass_through_whole_or_are_told() {
    let newer = Process::start("newer", None);
    let middle = Process::start("older", Some(&newer.endpoint));
    let payment = newer_payment(transfer());
    let client = middle.newer_client().await;
    let refused = client.pay_plain(&payment).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.reason()),
        (Code::Unimplemented, Some(Reason::NotInSchema)),
        "{refused}"
    );
    assert!(refused.message().contains("_message"), "{refused}");

    let middle = Process::start("older-whole", Some(&newer.endpoint));
    let client = middle.newer_client().await;
    let answered = client.pay_plain(&payment).await.unwrap().plain().unwrap();
    let expected = v2::pay::Payment {
        note: "new seen".into(),
        ..payment
    };
    assert_eq!(answered, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_and_events_with_newer_members_pass_through_whole() {
    use v2::pay::{Order, Paid};
    let last = Queue::<Order>::memory(QueueOptions::default());
    let server = Server::builder().service(QueueService::new().queue(&last));
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
    let publisher = Publisher::<Paid>::bind("tcp://127.0.0.1:0").await.unwrap();
    let middle = Process::start_with(
        "passes-on",
        Some(&server.endpoint().to_string()),
        Some(&publisher.endpoint().to_string()),
    );
    let (queue, events) = middle.endpoint.split_once(' ').unwrap();

    let order = Order {
        account: "ann".into(),
        payment: newer_payment(transfer()),
    };
    let first = Queue::<Order>::connect(queue).await.unwrap();
    first.push(&order).await.unwrap();
    let mut jobs = last.jobs().start().await.unwrap();
    let job = tokio::time::timeout(Duration::from_secs(30), jobs.next());
    let job = job.await.expect("it is passed on").unwrap().unwrap();
    assert_eq!(job.plain().unwrap(), order);
    job.ack().await.unwrap();

    let paid = Paid {
        account: "ann".into(),
        payment: order.payment.clone(),
    };
    let mut subscriber: Subscriber<Paid> = Subscriber::builder().connect(events).await.unwrap();
    subscriber.subscribe(Keys::All).await.unwrap();
    publisher.publish(&paid).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(30), subscriber.next());
    match event.await.expect("it is passed on") {
        Some(Event::Message(event)) => {
            assert_eq!(event.topic().to_string(), "paid/ann");
            assert_eq!(event.plain().unwrap(), paid);
        }
        other => panic!("{other:?}"),
    }
    server.shutdown().await;
}

fn fingerprint<T: Plain>(value: &T) -> Fingerprint {
    Fingerprint::of_parameters(&value.to_bytes().unwrap(), &Limits::default()).unwrap()
}

#[test]
fn new_fields_that_nobody_set_leave_a_request_the_same() {
    let first = fingerprint(&V1 { a: "x".into() });
    macro_rules! same {
        ($($type_:ident)*) => {$(
            let newer = $type_ { a: "x".into(), ..$type_::default() };
            assert_eq!(fingerprint(&newer), first, stringify!($type_));
        )*};
    }
    same!(V2p V2link V2opt V2def V2union V2union2 V2ugrp V2nan V2lists V2own V2opt2);
}

#[test]
fn what_is_set_is_another_request_than_what_is_not() {
    let unset = fingerprint(&V2union2::default());
    for which in [
        V2union2Which::X("x".into()),
        V2union2Which::Y(String::new()),
        V2union2Which::Y("y".into()),
    ] {
        let value = V2union2 {
            which,
            ..V2union2::default()
        };
        assert_ne!(fingerprint(&value), unset);
        let back = Msg::<V2union2>::open(value.to_bytes().unwrap(), &Limits::default()).unwrap();
        assert_eq!(back.plain().unwrap(), value);
    }
    let none = V2own {
        u: V2ownU::B,
        ..V2own::default()
    };
    let empty = V2own {
        u: V2ownU::Own(Some(Box::default())),
        ..V2own::default()
    };
    assert_ne!(fingerprint(&none), fingerprint(&V2own::default()));
    assert_ne!(fingerprint(&empty), fingerprint(&V2own::default()));
    let lists = V2lists {
        l: vec![],
        d: bytes::Bytes::new(),
        e: false,
        ..V2lists::default()
    };
    let back = Msg::<V2lists>::open(lists.to_bytes().unwrap(), &Limits::default()).unwrap();
    assert_eq!(back.plain().unwrap(), lists);
}
