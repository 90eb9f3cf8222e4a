//! Several events in one message: when a publisher sends them so, and what a subscriber makes of what
//! comes. The form is that of docs/wire.md.

use std::time::Duration;

use bowline::topic::{Event, Keys, PublishError};
use bowline::wire_capnp::event_header;
use bowline::{Publisher, Subscriber, TransportOptions};
use bowline_test_schemas::everything::{Progress, Sample};
use bytes::Bytes;
use omq_tokio::{Message, Options, Socket, SocketType};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);
const BYTES_MAX: usize = 64 * 1024;
/// A publisher makes no larger one of several events.
const EVENTS_BYTES_MAX: usize = 16 * 1024;

/// A plain SUB that has all samples, once the publisher knows of it.
async fn stranger(publisher: &Publisher<Sample>) -> Socket {
    let sub = Socket::new(SocketType::Sub, Options::new());
    sub.connect(publisher.endpoint().to_string()).await.unwrap();
    sub.subscribe("sample/").await.unwrap();
    let subscribed = async {
        while publisher.matching("a") == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, subscribed).await.unwrap();
    sub
}

fn sample(series: &str, bytes: usize) -> Sample {
    Sample {
        series: series.to_owned(),
        payload: vec![7; bytes].into(),
    }
}

/// The number of an event, from its header.
fn number(header: &[u8]) -> u64 {
    let message = capnp::serialize::read_message(header, Default::default()).unwrap();
    let header = message.get_root::<event_header::Reader<'_>>().unwrap();
    header.get_sequence()
}

/// The message of one segment at the beginning, and what is behind it.
fn first(bytes: &[u8]) -> (&[u8], &[u8]) {
    let words = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    bytes.split_at(8 + words * 8)
}

/// The topic of a message in either form, and the numbers of its events.
fn read(message: &Message) -> (String, Vec<u64>) {
    let part = message.part_slice(0).unwrap();
    let end = part.iter().position(|byte| *byte == 0xff);
    let topic = &part[..end.unwrap_or(part.len())];
    let mut numbers = Vec::new();
    if message.len() == 3 {
        numbers.push(number(message.part_slice(1).unwrap()));
    } else {
        let mut rest = &part[(topic.len() / 8 + 1) * 8..];
        while !rest.is_empty() {
            let (header, behind) = first(rest);
            let (_, behind) = first(behind);
            numbers.push(number(header));
            rest = behind;
        }
    }
    (String::from_utf8(topic.to_vec()).unwrap(), numbers)
}

#[tokio::test]
async fn events_that_are_published_at_once_share_messages_and_keep_their_order() {
    let publisher = Publisher::<Sample>::bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let sub = stranger(&publisher).await;
    // On one thread, nothing of the publisher's runs in between.
    for _ in 0..300 {
        publisher.publish(&sample("a", 64)).await.unwrap();
    }
    publisher.publish(&sample("b", 64)).await.unwrap();
    publisher.publish(&sample("a", 64)).await.unwrap();
    let mut sizes = Vec::new();
    let (mut of_a, mut topics) = (Vec::new(), Vec::new());
    while of_a.len() < 301 {
        let message = timeout(LONG, sub.recv()).await.unwrap().unwrap();
        assert!(message.byte_len() <= EVENTS_BYTES_MAX);
        let (topic, numbers) = read(&message);
        sizes.push(numbers.len());
        match &topic[..] {
            "sample/a" => of_a.extend(numbers),
            _ => assert_eq!(
                (&topic[..], &numbers[..], of_a.len()),
                ("sample/b", &[1][..], 300)
            ),
        }
        topics.push(topic);
    }
    assert_eq!(of_a, (1..=301).collect::<Vec<u64>>());
    assert_eq!(sizes[0], 1, "the first leaves at once");
    assert!(sizes.len() < 12, "{sizes:?}");
    assert_eq!(topics[topics.len() - 2..], ["sample/b", "sample/a"]);
    publisher.close().await;
}

#[tokio::test]
async fn a_subscriber_whose_prefixes_overlap_gets_every_event_once() {
    let publisher = Publisher::<Sample>::bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let sub = stranger(&publisher).await;
    let last = publisher.also::<Progress>();
    for prefix in ["s", "sample/a", "sample/a", "sample/b", "progress/"] {
        sub.subscribe(prefix).await.unwrap();
    }
    let subscribed = async {
        while last.matching("") == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, subscribed).await.unwrap();
    let mut numbers = Vec::new();
    for number in 1..=3 {
        let published = publisher.publish(&sample("a", 64)).await.unwrap();
        assert_eq!((published.sequence, published.matched), (number, 1));
    }
    while numbers.last() != Some(&3) {
        let message = timeout(LONG, sub.recv()).await.unwrap().unwrap();
        numbers.extend(read(&message).1);
    }
    assert_eq!(numbers, [1, 2, 3]);
    publisher.close().await;
}

#[tokio::test]
async fn an_event_that_is_alone_does_not_wait_and_a_large_one_has_three_parts() {
    let publisher = Publisher::<Sample>::bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let sub = stranger(&publisher).await;
    for (at, bytes) in (1..).zip([64, 5000, 64]) {
        publisher.publish(&sample("a", bytes)).await.unwrap();
        let message = timeout(LONG, sub.recv()).await.unwrap().unwrap();
        assert_eq!(read(&message), ("sample/a".to_owned(), vec![at]));
        assert_eq!(message.len(), if bytes == 64 { 1 } else { 3 });
    }
    // Small ones in front of a large one leave before it.
    for bytes in [64, 64, 5000] {
        publisher.publish(&sample("a", bytes)).await.unwrap();
    }
    let mut numbers = Vec::new();
    while numbers.len() < 3 {
        let message = timeout(LONG, sub.recv()).await.unwrap().unwrap();
        numbers.extend(read(&message).1);
    }
    assert_eq!(numbers, [4, 5, 6]);
    publisher.close().await;
}

#[tokio::test]
async fn a_publisher_of_small_messages_sends_every_event_in_three_parts() {
    let options = TransportOptions::default().with_message_bytes_max(BYTES_MAX - 1);
    let publisher = Publisher::<()>::builder().transport(options);
    let publisher = publisher.bind::<Sample>("tcp://127.0.0.1:0").await.unwrap();
    let sub = stranger(&publisher).await;
    for at in 1..=3 {
        publisher.publish(&sample("a", 64)).await.unwrap();
        let message = timeout(LONG, sub.recv()).await.unwrap().unwrap();
        assert_eq!((message.len(), read(&message).1), (3, vec![at]));
    }
    publisher.close().await;
}

#[tokio::test]
async fn what_was_published_arrives_though_the_publisher_is_closed_at_once() {
    let publisher = Publisher::<Sample>::bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let sub = stranger(&publisher).await;
    let other = publisher.clone();
    for _ in 0..50 {
        publisher.publish(&sample("a", 64)).await.unwrap();
    }
    publisher.close().await;
    let published = other.publish(&sample("a", 64)).await;
    assert!(
        matches!(published, Err(PublishError::Closed)),
        "it goes nowhere"
    );
    let mut numbers = Vec::new();
    while numbers.len() < 50 {
        let message = timeout(LONG, sub.recv()).await.unwrap().unwrap();
        numbers.extend(read(&message).1);
    }
    assert_eq!(numbers, (1..=50).collect::<Vec<u64>>());
}

/// An event's header and body as others may write them.
fn pair(number: u64, done: u64) -> Vec<u8> {
    let mut header = capnp::message::Builder::new_default();
    let mut to = header.init_root::<event_header::Builder<'_>>();
    to.set_epoch(1);
    to.set_sequence(number);
    let body = Progress {
        job: "job".into(),
        done: done as u32,
    };
    let body = bowline::message::Plain::to_bytes(&body).unwrap();
    [
        &capnp::serialize::write_message_to_words(&header)[..],
        &body,
    ]
    .concat()
}

#[tokio::test]
async fn a_subscriber_takes_either_form_and_what_is_neither_costs_nothing_else() {
    let pub_ = Socket::new(SocketType::Pub, Options::new());
    let endpoint = pub_.bind("tcp://127.0.0.1:0").await.unwrap();
    let mut subscriber = Subscriber::<Progress>::connect(endpoint.to_string())
        .await
        .unwrap();
    subscriber.subscribe_unconfirmed(Keys::All).await.unwrap();
    pub_.wait_subscribed(1, LONG).await.unwrap();

    let topic: &[u8] = b"progress/job\xff\xff\xff\xff";
    let (one, two, three, five) = (pair(1, 1), pair(2, 2), pair(3, 3), pair(5, 5));
    let good = [topic, &one, &two].concat();
    let cut = [topic, &three, &five[..five.len() - 8]].concat();
    let not_marked = [&b"progress/job\xff\xff\xff\0"[..], &five].concat();
    let many = [topic, &five.repeat(BYTES_MAX / five.len() + 1)].concat();
    let bad = [
        &b"progress/"[..],
        topic,
        b"progress/job",
        &not_marked,
        &many,
    ];
    pub_.send(Message::single(good)).await.unwrap();
    pub_.send(Message::single(cut)).await.unwrap();
    for bytes in bad {
        pub_.send(Message::single(Bytes::copy_from_slice(bytes)))
            .await
            .unwrap();
    }
    let (header, body) = first(&five);
    let classic = [b"progress/job", header, body].map(Bytes::copy_from_slice);
    pub_.send(Message::multipart(classic)).await.unwrap();

    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(
            match timeout(LONG, subscriber.next()).await.unwrap().unwrap() {
                Event::Message(message) => {
                    assert_eq!(message.topic().as_bytes(), b"progress/job");
                    assert_eq!(u64::from(message.plain().unwrap().done), message.sequence());
                    format!("{}", message.sequence())
                }
                Event::Missed { from, to, .. } => format!("missed {from} to {to}"),
                Event::Restarted { .. } => "restarted".to_owned(),
            },
        );
    }
    assert_eq!(seen, ["1", "2", "3", "missed 4 to 4", "5"]);
    assert_eq!(subscriber.counters().malformed, 6);
}
