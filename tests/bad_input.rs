//! What strangers may send: each gets a status where it can be told, is counted, and harms nobody.

mod common;

use std::time::Duration;

use bowline::call::RawRequest;
use bowline::message::{MessageError, Msg, Plain};
use bowline::topic::{Event, Keys};
use bowline::wire_capnp::{reply_header, request_header};
use bowline::{
    Client, Code, Limits, Publisher, Reason, Reply, Request, Server, ServerHandle, Status,
    Subscriber, TransportOptions, Work,
};
use bowline_test_schemas::everything::{
    Lists, Progress, READING_SERVICE, Reading, ReadingServer, Tick, Tree,
};
use bytes::Bytes;
use common::{ECHO, Probe, call, send};
use omq_tokio::{Message, MonitorEvent, Options, Socket, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn start() -> (ServerHandle, Client) {
    let server = Server::builder().service(Probe::default());
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
    let client = Client::connect(server.endpoint().to_string())
        .await
        .unwrap();
    (server, client)
}

/// A dealer that sends what it likes.
async fn stranger(server: &ServerHandle) -> Socket {
    let dealer = Socket::new(SocketType::Dealer, Options::new());
    dealer.connect(server.endpoint().to_string()).await.unwrap();
    dealer
}

#[tokio::test]
async fn messages_of_up_to_sixteen_parts_are_answered_and_of_more_end_their_connection() {
    let (server, client) = start().await;
    let stranger = stranger(&server).await;
    let mut sent = 0;
    for parts in [1, 2, 4, 16] {
        let message = Message::multipart((0..parts).map(|_| Bytes::from_static(b"part")));
        stranger.send(message).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(10), stranger.recv()).await;
        assert_eq!(answer.unwrap().unwrap().len(), 3, "{parts} parts");
        sent += 1;
        assert_eq!(server.counters().malformed, sent);
    }
    stranger
        .send(Message::multipart([Bytes::new()]))
        .await
        .unwrap();
    let mut ended = stranger.monitor();
    let message = Message::multipart((0..17).map(|_| Bytes::from_static(b"part")));
    stranger.send(message).await.unwrap();
    // A thousand end it like seventeen.
    let many = Socket::new(SocketType::Dealer, Options::new());
    many.connect(server.endpoint().to_string()).await.unwrap();
    let message = Message::multipart((0..1000).map(|_| Bytes::from_static(b"part")));
    many.send(message).await.unwrap();
    let ended =
        async { while !matches!(ended.recv().await, Ok(MonitorEvent::Disconnected { .. })) {} };
    tokio::time::timeout(Duration::from_secs(10), ended)
        .await
        .unwrap();
    assert_eq!(server.counters().malformed, sent + 1);
    while server.door().disconnected < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(call(&client, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

#[tokio::test]
async fn headers_that_are_none_are_answered_and_counted() {
    let (server, client) = start().await;
    let stranger = stranger(&server).await;
    let headers: [&[u8]; 6] = [
        b"",
        b"nonsense",
        &[0; 8],
        &[0xff; 88],
        &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        &[0; 70_000],
    ];
    for (i, header) in headers.into_iter().enumerate() {
        let parts = [Bytes::new(), Bytes::copy_from_slice(header), Bytes::new()];
        stranger.send(Message::multipart(parts)).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(10), stranger.recv()).await;
        assert_eq!(answer.unwrap().unwrap().len(), 3);
        // An empty message is a header of nothing but defaults: a method that nobody has.
        let counters = server.counters();
        assert_eq!(counters.malformed + counters.unknown, i as u64 + 1, "{i}");
    }
    assert_eq!(call(&client, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

/// What is a header of the envelope, and not one that anybody here understands.
#[tokio::test]
async fn headers_of_a_newer_version_and_with_too_long_a_key_are_told_so() {
    let (server, client) = start().await;
    let stranger = stranger(&server).await;
    let header = |version: u16, key: usize| {
        let mut header = capnp::message::Builder::new_default();
        let mut to = header.init_root::<request_header::Builder<'_>>();
        to.set_version(version);
        to.set_interface(common::INTERFACE);
        to.set_correlation(314);
        to.set_request_key(&vec![7; key]);
        Bytes::from(capnp::serialize::write_message_to_words(&header))
    };
    for (header, says) in [
        (header(1, 255), ""),
        (header(1, 256), "255"),
        (header(2, 1), "version 2"),
        (header(u16::MAX, 0), "version 65535"),
    ] {
        let parts = [Bytes::new(), header, Bytes::from_static(b"body")];
        stranger.send(Message::multipart(parts)).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(10), stranger.recv()).await;
        let answer = answer.unwrap().unwrap().part_bytes(1).unwrap();
        let answer = capnp::serialize::read_message(&answer[..], Default::default()).unwrap();
        let answer = answer.get_root::<reply_header::Reader<'_>>().unwrap();
        let message = answer.get_message().unwrap().to_str().unwrap();
        assert!(message.contains(says), "{message}");
        let status = if says.is_empty() { 0 } else { 3 };
        assert_eq!(answer.get_status(), status, "{message}");
        if !says.starts_with("255") {
            assert_eq!(answer.get_correlation(), 314);
        }
    }
    assert_eq!(server.counters().malformed, 3);
    assert_eq!(call(&client, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

#[tokio::test]
async fn a_body_at_the_limit_is_taken_and_one_byte_more_is_refused() {
    let limits = Limits::default().with_message_bytes_max(1000);
    let server = Server::builder().service(Probe::default()).limits(limits);
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
    let client = Client::connect(server.endpoint().to_string())
        .await
        .unwrap();
    assert_eq!(
        call(&client, &ECHO, vec![0; 1000]).await.unwrap().len(),
        1000
    );
    let status = call(&client, &ECHO, vec![0; 1001]).await.unwrap_err();
    assert_eq!(
        (status.code(), status.work(), status.reason()),
        (
            Code::ResourceExhausted,
            Work::NotDone,
            Some(Reason::TooLarge)
        )
    );
    // The client knows the limit from the first reply.
    assert_eq!(client.counters().too_large, 1);
    assert_eq!(server.counters().too_large, 0);
    server.shutdown().await;
}

struct Reads;

impl Reading for Reads {
    async fn lists(&self, request: Request<Lists>) -> Result<Reply<Tick>, Status> {
        request.plain()?;
        Ok(Tick::default().into())
    }

    /// Answers from a task of its own.
    async fn tree(&self, request: Request<Tree>) -> Result<Reply<Tick>, Status> {
        tokio::task::yield_now().await;
        match request.plain()?.value {
            0 => Ok(Tick::default().into()),
            _ => Err(Status::invalid_argument("no tree of mine")),
        }
    }
}

/// A struct of six pointers, the last of which is to a list of so many structs without any size.
fn claiming(elements: u64) -> Bytes {
    let words = [8 << 32, 6 << 48, 0, 0, 0, 0, 0, 7 << 32 | 1, elements << 2];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A tree of structs within each other, each of a pointer alone: made by hand, since a peer that means harm does not
/// check what it writes.
fn nested(depth: usize) -> Bytes {
    let mut words = vec![(depth as u64 + 1) << 32];
    words.extend(std::iter::repeat_n(1 << 48, depth));
    words.push(0);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The stack is that of a thread of tokio, in a debug build too.
#[test]
fn the_deepest_nesting_that_limits_allow_fits_on_a_stack_of_two_mebibytes() {
    let reads = || {
        let limits = Limits::default().with_nesting_max(u16::MAX);
        let depth = (1..=1100)
            .take_while(|depth| Msg::<Tree>::open(nested(*depth), &limits).is_ok())
            .last()
            .unwrap();
        let tree = Msg::<Tree>::open(nested(depth), &limits).unwrap();
        let plain = tree.plain().unwrap();
        drop(plain.clone());
        plain.to_bytes().map(|_| depth)
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    let wrote = thread.spawn(reads).unwrap().join().unwrap();
    assert!(
        matches!(wrote, Err(MessageError::TooDeep { .. })),
        "{wrote:?}"
    );
}

/// Only its reader finds out what these cost: they are of a size that is allowed.
#[tokio::test]
async fn bodies_that_cost_too_much_to_read_or_are_no_messages_are_answered_and_counted() {
    let server = Server::builder().service(ReadingServer::new(Reads));
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
    let client = Client::connect(server.endpoint().to_string())
        .await
        .unwrap();
    let [lists, tree] = [0, 1].map(|index| &READING_SERVICE.methods[index]);
    let readable = [
        (lists, claiming(1000)),
        (tree, nested(31)),
        (tree, Tree::default().to_bytes().unwrap()),
    ];
    for (method, body) in readable {
        call(&client, method, body).await.unwrap();
    }
    // What a handler refuses in its own words has been read.
    let value = Tree {
        value: 314,
        ..Tree::default()
    };
    let refused = call(&client, tree, value.to_bytes().unwrap()).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(server.counters().unreadable, 0);
    let unreadable = [
        (lists, claiming(8_000_000)),
        (lists, Bytes::from_static(b"nonsense")),
        (lists, Bytes::new()),
        (tree, nested(33)),
        (tree, nested(1000)),
        (tree, nested(100_000)),
        (tree, Bytes::from_static(b"nonsense")),
    ];
    for (count, (method, body)) in (1..).zip(unreadable) {
        let status = call(&client, method, body).await.unwrap_err();
        assert_eq!(
            (status.code(), status.work()),
            (Code::InvalidArgument, Work::NotDone)
        );
        assert_eq!(server.counters().unreadable, count, "{status}");
    }
    assert_eq!(server.counters().handled, 11);
    assert_eq!(server.counters().too_large, 0);
    server.shutdown().await;
}

#[tokio::test]
async fn a_message_over_the_sockets_limit_costs_its_sender_the_connection_and_nobody_else() {
    let options = TransportOptions::default().with_message_bytes_max(10_000);
    let server = Server::builder()
        .service(Probe::default())
        .transport(options);
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
    let other = Client::connect(server.endpoint().to_string())
        .await
        .unwrap();
    let client = Client::connect(server.endpoint().to_string())
        .await
        .unwrap();
    let mut request = RawRequest::new(&ECHO, Bytes::from(vec![0; 20_000]));
    request.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(5));
    let status = send(&client, request).await.unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::Unavailable, Work::OutcomeUnknown)
    );
    assert_eq!(call(&other, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_no_zeromq_at_all_is_cut_off() {
    let (server, client) = start().await;
    let address = server.endpoint().to_string().replace("tcp://", "");
    // A greeting, and a frame that declares 2^62 bytes.
    let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
    greeting.extend(b"NULL");
    greeting.resize(64, 0);
    let hostile: [&[u8]; 3] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[greeting.clone(), vec![0x02, 0x40, 0, 0, 0, 0, 0, 0, 0]].concat(),
        &[greeting, vec![0x04, 0xff]].concat(),
    ];
    for bytes in hostile {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // Cut off, or left to the handshake's timeout.
        let _ =
            tokio::time::timeout(Duration::from_millis(200), stream.read_to_end(&mut answer)).await;
    }
    assert_eq!(call(&client, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let server = Server::builder()
        .service(Probe::default())
        .send_wait_max(Duration::from_millis(100))
        .transport(TransportOptions::default().with_send_queue_max(4));
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
    let client = Client::connect(server.endpoint().to_string())
        .await
        .unwrap();
    // Greets as a DEALER does, asks for large echoes, and never reads one.
    let stranger = Socket::new(SocketType::Dealer, Options::new().recv_hwm(1));
    stranger
        .connect(server.endpoint().to_string())
        .await
        .unwrap();
    let header = header_of_an_echo(&server).await;
    let body = Bytes::from(vec![0; 256 * 1024]);
    for _ in 0..200 {
        let parts = [Bytes::new(), header.clone(), body.clone()];
        let message = Message::multipart(parts);
        if tokio::time::timeout(Duration::from_millis(50), stranger.send(message))
            .await
            .is_err()
        {
            break; // the server takes no more from it: just as well
        }
    }
    for i in 0..100u8 {
        assert_eq!(call(&client, &ECHO, vec![i]).await.unwrap(), vec![i]);
    }
    tokio::time::timeout(Duration::from_secs(15), server.shutdown())
        .await
        .expect("the exit does not hang");
}

/// What a client of ours sends in front of an echo, seen by a router of a stranger.
async fn header_of_an_echo(_: &ServerHandle) -> Bytes {
    let router = Socket::new(SocketType::Router, Options::new());
    let endpoint = router.bind("tcp://127.0.0.1:0").await.unwrap();
    let client = Client::connect(endpoint.to_string()).await.unwrap();
    let calling = tokio::spawn(async move { call(&client, &ECHO, "x").await });
    let message = router.recv().await.unwrap();
    calling.abort();
    // identity, delimiter, header, body
    message.part_bytes(2).unwrap()
}

#[tokio::test]
async fn a_client_takes_no_harm_from_a_server_that_answers_nonsense() {
    let router = Socket::new(SocketType::Router, Options::new());
    let endpoint = router.bind("tcp://127.0.0.1:0").await.unwrap();
    let client = Client::connect(endpoint.to_string()).await.unwrap();
    let mut request = RawRequest::new(&ECHO, Bytes::from_static(b"x"));
    request.deadline = Some(tokio::time::Instant::now() + Duration::from_millis(300));
    let calling = tokio::spawn({
        let client = client.clone();
        async move { send(&client, request).await }
    });
    let message = router.recv().await.unwrap();
    let peer = message.part_bytes(0).unwrap();
    for parts in [
        vec![],
        vec![Bytes::new()],
        vec![Bytes::new(), Bytes::from_static(b"no"), Bytes::new()],
    ] {
        let parts: Vec<Bytes> = [peer.clone()].into_iter().chain(parts).collect();
        let _ = router.send(Message::multipart(parts)).await;
    }
    let status = calling.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(client.counters().malformed >= 2);
}

#[tokio::test]
async fn a_subscription_as_long_as_a_message_does_a_publisher_no_harm() {
    let publisher = Publisher::<Progress>::bind("tcp://127.0.0.1:0")
        .await
        .unwrap();
    // Each 255 bytes once took a level of recursion, and the process with it.
    let stranger = Socket::new(SocketType::Sub, Options::new());
    stranger
        .connect(publisher.endpoint().to_string())
        .await
        .unwrap();
    stranger.subscribe(vec![b'x'; 1 << 20]).await.unwrap();
    let nested = Socket::new(SocketType::Sub, Options::new());
    nested
        .connect(publisher.endpoint().to_string())
        .await
        .unwrap();
    for length in 1..1000 {
        nested.subscribe(vec![b'y'; length]).await.unwrap();
    }
    let mut subscriber = Subscriber::<Progress>::connect(publisher.endpoint().to_string())
        .await
        .unwrap();
    subscriber.subscribe(Keys::All).await.unwrap();
    publisher.publish(&Progress::default()).await.unwrap();
    assert!(matches!(subscriber.next().await, Some(Event::Message(_))));
    nested.close().await.unwrap();
    publisher.close().await;
}

#[tokio::test]
async fn a_subscription_of_the_longest_is_taken_and_one_byte_more_is_refused() {
    let options = TransportOptions::default().with_subscription_bytes_max(100);
    let publisher = Publisher::<()>::builder().transport(options);
    let publisher = publisher
        .bind::<Progress>("tcp://127.0.0.1:0")
        .await
        .unwrap();
    let subscriber = Subscriber::<Progress>::connect(publisher.endpoint().to_string())
        .await
        .unwrap();
    for (length, taken) in [(91, 1), (92, 1)] {
        // With `progress/` in front.
        let key = "k".repeat(length);
        subscriber
            .subscribe_unconfirmed(Keys::Prefix(&key))
            .await
            .unwrap();
        let give_up = tokio::time::Instant::now() + Duration::from_secs(5);
        let refused = || publisher.door().subscriptions_refused;
        while publisher.matching(&key) != taken || refused() != length as u64 - 91 {
            assert!(tokio::time::Instant::now() < give_up, "{length}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    publisher.close().await;
}
