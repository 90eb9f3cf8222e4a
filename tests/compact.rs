//! Several calls in one message: who sends it so, to whom, and what strangers make of it.
//! The form is that of docs/wire.md.

mod common;

use std::time::Duration;

use bowline::call::RawRequest;
use bowline::wire_capnp::{reply_header, request_header};
use bowline::{Client, Server, ServerHandle, TransportOptions};
use bytes::Bytes;
use common::{ECHO, INTERFACE, Probe, SLEEP, call, send};
use omq_tokio::{IdentitySocket, Message, Options, Socket, SocketType};
use tokio::task::JoinSet;

const CALLS_MAX: usize = 128;
const BYTES_MAX: usize = 64 * 1024;

/// A message of one segment, with these words in it.
fn framed(words: &[u64]) -> Vec<u8> {
    let table = (words.len() as u64) << 32;
    let words = std::iter::once(&table).chain(words);
    words.flat_map(|word| word.to_le_bytes()).collect()
}

fn header(correlation: u64) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    let mut header = message.init_root::<request_header::Builder<'_>>();
    header.set_interface(INTERFACE);
    header.set_request_id_low(correlation);
    header.set_correlation(correlation);
    capnp::serialize::write_message_to_words(&message)
}

fn reply_header(correlation: u64, status: u16, compact: bool) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    let mut header = message.init_root::<reply_header::Builder<'_>>();
    header.set_correlation(correlation);
    header.set_status(status);
    header.set_compact(compact);
    capnp::serialize::write_message_to_words(&message)
}

/// Correlation, status, and whether the server takes the compact form.
fn read_reply(header: &[u8]) -> (u64, u16, bool) {
    let message = capnp::serialize::read_message(header, Default::default()).unwrap();
    let header = message.get_root::<reply_header::Reader<'_>>().unwrap();
    (
        header.get_correlation(),
        header.get_status(),
        header.get_compact(),
    )
}

fn correlation_of(header: &[u8]) -> u64 {
    let message = capnp::serialize::read_message(header, Default::default()).unwrap();
    let header = message.get_root::<request_header::Reader<'_>>().unwrap();
    header.get_correlation()
}

/// The messages of one segment that lie behind each other, two and two.
fn pairs(mut bytes: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let words = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        let (message, rest) = bytes.split_at(8 + words * 8);
        messages.push(message.to_vec());
        bytes = rest;
    }
    let pairs = messages.chunks(2);
    pairs
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect()
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, work).await.expect("in time")
}

async fn start() -> ServerHandle {
    let server = Server::builder().service(Probe::default());
    server.bind("tcp://127.0.0.1:0").await.unwrap().spawn()
}

async fn stranger(server: &ServerHandle) -> Socket {
    let dealer = Socket::new(SocketType::Dealer, Options::new());
    dealer.connect(server.endpoint().to_string()).await.unwrap();
    dealer
}

async fn exchange(stranger: &Socket, message: Vec<u8>) -> Message {
    stranger.send(Message::single(message)).await.unwrap();
    in_time(stranger.recv()).await.unwrap()
}

#[tokio::test]
async fn calls_that_come_together_are_answered_together() {
    let server = start().await;
    let stranger = stranger(&server).await;
    let bodies: Vec<Vec<u8>> = (0..5).map(|n| framed(&vec![n; n as usize])).collect();
    let message: Vec<u8> = (1..)
        .zip(&bodies)
        .flat_map(|(n, b)| [&header(n)[..], b].concat())
        .collect();
    let answer = exchange(&stranger, message).await;
    assert_eq!(answer.len(), 1);
    let replies = pairs(&answer.part_bytes(0).unwrap());
    assert_eq!(replies.len(), 5);
    for ((n, body), (header, reply)) in (1..).zip(&bodies).zip(&replies) {
        assert_eq!(read_reply(header), (n, 0, true));
        assert_eq!(reply, body);
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_call_in_the_classic_form_is_answered_in_the_classic_form() {
    let server = start().await;
    let stranger = stranger(&server).await;
    exchange(&stranger, [header(1), framed(&[1])].concat()).await;
    let parts = [vec![], header(2), framed(&[2])].map(Bytes::from);
    stranger.send(Message::multipart(parts)).await.unwrap();
    let answer = in_time(stranger.recv()).await.unwrap();
    assert_eq!(answer.len(), 3);
    assert_eq!(read_reply(&answer[1]), (2, 0, true));
    server.shutdown().await;
}

/// Takes answers until so many replies have come in the compact form and so many messages in the
/// classic one, which it returns. A server that is slow sends its replies in several messages.
async fn answers(
    stranger: &Socket,
    first: Message,
    replies: usize,
    classic: usize,
) -> Vec<Message> {
    let (mut others, mut count, mut next) = (Vec::new(), 0, first);
    loop {
        match next.len() {
            1 => count += pairs(&next.part_bytes(0).unwrap()).len(),
            _ => others.push(next),
        }
        if count >= replies && others.len() >= classic {
            assert_eq!((count, others.len()), (replies, classic));
            return others;
        }
        next = in_time(stranger.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn as_many_calls_as_may_be_are_taken_and_one_more_is_malformed() {
    let server = start().await;
    let stranger = stranger(&server).await;
    let of = |calls: usize| -> Vec<u8> {
        (1..=calls as u64)
            .flat_map(|n| [header(n), framed(&[n])].concat())
            .collect()
    };
    let first = exchange(&stranger, of(CALLS_MAX)).await;
    assert_eq!(answers(&stranger, first, CALLS_MAX, 0).await.len(), 0);
    assert_eq!(server.counters().malformed, 0);

    // Those in front are taken; the refusal is to nobody.
    let first = exchange(&stranger, of(CALLS_MAX + 1)).await;
    let refusals = answers(&stranger, first, CALLS_MAX, 1).await;
    assert_eq!(refusals[0].len(), 3);
    assert_eq!(read_reply(&refusals[0][1]), (0, 3, true));
    assert_eq!(server.counters().malformed, 1);
    assert_eq!(server.counters().handled, 2 * CALLS_MAX as u64);
    server.shutdown().await;
}

#[tokio::test]
async fn a_message_that_is_cut_or_too_large_is_refused_and_harms_nobody() {
    let server = start().await;
    let stranger = stranger(&server).await;
    let client = Client::connect(server.endpoint().to_string())
        .await
        .unwrap();
    let call_bytes = header(1).len() + 16;
    let two = [header(1), framed(&[1]), header(2), framed(&[2])].concat();
    for cut in 1..call_bytes {
        let answer = exchange(&stranger, two[..cut].to_vec()).await;
        assert_eq!(read_reply(&answer[1]), (0, 3, true), "cut after {cut}");
    }
    for cut in call_bytes + 1..two.len() {
        let answers = [
            exchange(&stranger, two[..cut].to_vec()).await,
            in_time(stranger.recv()).await.unwrap(),
        ];
        assert_eq!(answers.iter().map(Message::len).sum::<usize>(), 4, "{cut}");
    }
    let largest = |bytes: usize| {
        let header = header(1);
        let body = framed(&vec![0; (bytes - header.len()) / 8 - 1]);
        [header, body].concat()
    };
    // The reply to the largest is larger than what is sent back together.
    let answer = exchange(&stranger, largest(BYTES_MAX)).await;
    assert_eq!(answer.len(), 3);
    assert_eq!(read_reply(&answer[1]), (1, 0, true));
    let answer = exchange(&stranger, largest(BYTES_MAX + 8)).await;
    assert_eq!(read_reply(&answer[1]), (0, 3, true));
    assert_eq!(call(&client, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

/// A server that is none of Bowline's.
struct Other {
    router: IdentitySocket,
    endpoint: String,
}

impl Other {
    async fn at(endpoint: &str) -> Self {
        let router = Socket::new(SocketType::Router, Options::new());
        let endpoint = router.bind(endpoint).await.unwrap().to_string();
        let router = router.identity_routing().unwrap();
        Self { router, endpoint }
    }

    /// Answers one message in the form that it came in; how many calls were in it, and whether it was compact.
    async fn answer(&self, compact: bool) -> (usize, bool) {
        let (peer, message) = in_time(self.router.recv_from()).await.unwrap();
        let (calls, is_compact) = match message.len() {
            1 => (pairs(&message.part_bytes(0).unwrap()), true),
            _ => (vec![(message[1].to_vec(), message[2].to_vec())], false),
        };
        let mut replies = calls.iter().map(|(header, body)| {
            let header = reply_header(correlation_of(header), 0, compact);
            (header, body.clone())
        });
        let reply = match is_compact {
            true => Message::single(
                replies
                    .flat_map(|(h, b)| [h, b].concat())
                    .collect::<Vec<u8>>(),
            ),
            false => {
                let (header, body) = replies.next().unwrap();
                Message::multipart([vec![], header, body].map(Bytes::from))
            }
        };
        self.router.send_to(&peer, reply).await.unwrap();
        (calls.len(), is_compact)
    }

    /// Refuses one message, as a server does that cannot read it.
    async fn refuse(&self) {
        let (peer, _) = in_time(self.router.recv_from()).await.unwrap();
        let reply = [vec![], reply_header(0, 3, true), vec![]].map(Bytes::from);
        self.router
            .send_to(&peer, Message::multipart(reply))
            .await
            .unwrap();
    }
}

/// As many calls at once as there are bodies; each has its own reply.
fn at_once(client: &Client, bodies: impl IntoIterator<Item = Vec<u8>>) -> JoinSet<()> {
    let mut calls = JoinSet::new();
    for body in bodies {
        let client = client.clone();
        calls.spawn(async move {
            assert_eq!(call(&client, &ECHO, body.clone()).await.unwrap(), body);
        });
    }
    calls
}

#[tokio::test]
async fn a_client_waits_for_the_word_of_the_server_and_then_sends_calls_together() {
    let server = Other::at("tcp://127.0.0.1:0").await;
    let client = Client::connect(&server.endpoint).await.unwrap();
    let calls = at_once(&client, (0..10).map(|n| framed(&[n])));
    for _ in 0..10 {
        assert_eq!(server.answer(true).await, (1, false));
    }
    in_time(calls.join_all()).await;

    // One that is alone leaves by itself.
    let calls = at_once(&client, [framed(&[7])]);
    assert_eq!(server.answer(true).await, (1, true));
    in_time(calls.join_all()).await;

    // Of several, the first does so too, at once; all others leave together.
    let calls = at_once(&client, (0..10).map(|n| framed(&[n])));
    assert_eq!(server.answer(true).await, (1, true));
    assert_eq!(server.answer(true).await, (9, true));
    in_time(calls.join_all()).await;

    // After several were answered at once, all leave together.
    let calls = at_once(&client, (0..10).map(|n| framed(&[n])));
    assert_eq!(server.answer(true).await, (10, true));
    in_time(calls.join_all()).await;

    // One that is alone still does not wait for others.
    let calls = at_once(&client, [framed(&[7])]);
    assert_eq!(server.answer(true).await, (1, true));
    in_time(calls.join_all()).await;

    // As many as a message holds.
    let calls = at_once(&client, (0..=CALLS_MAX as u64 + 1).map(|n| framed(&[n])));
    let mut messages = vec![];
    for _ in 0..3 {
        messages.push(server.answer(true).await.0);
    }
    messages.sort_unstable();
    assert_eq!(messages, [1, 1, CALLS_MAX]);
    in_time(calls.join_all()).await;
}

#[tokio::test]
async fn what_is_large_or_not_one_segment_goes_by_itself() {
    let server = Other::at("tcp://127.0.0.1:0").await;
    let client = Client::connect(&server.endpoint).await.unwrap();
    let calls = at_once(&client, [framed(&[])]);
    assert_eq!(server.answer(true).await, (1, false));
    in_time(calls.join_all()).await;
    let two_segments = [1u32, 1, 1, 0, 0, 0, 0, 0].map(u32::to_le_bytes).concat();
    let large = framed(&vec![1; 600]);
    for body in [large, b"no message".to_vec(), vec![], two_segments] {
        let calls = at_once(&client, [body]);
        assert_eq!(server.answer(true).await, (1, false));
        in_time(calls.join_all()).await;
    }
}

#[tokio::test]
async fn a_client_goes_back_to_the_classic_form_when_a_message_is_refused() {
    let server = Other::at("tcp://127.0.0.1:0").await;
    let client = Client::connect(&server.endpoint).await.unwrap();
    let calls = at_once(&client, [framed(&[1])]);
    assert_eq!(server.answer(true).await, (1, false));
    in_time(calls.join_all()).await;
    let mut request = RawRequest::new(&ECHO, framed(&[2]).into());
    request.deadline = Some(tokio::time::Instant::now() + Duration::from_millis(300));
    let refused = tokio::spawn({
        let client = client.clone();
        async move { send(&client, request).await }
    });
    server.refuse().await;
    refused.await.unwrap().unwrap_err();
    let calls = at_once(&client, (0..3).map(|n| framed(&[n])));
    for _ in 0..3 {
        assert_eq!(server.answer(true).await, (1, false));
    }
    in_time(calls.join_all()).await;
}

#[tokio::test]
async fn each_connection_is_asked_anew() {
    let server = Other::at("tcp://127.0.0.1:0").await;
    let client = Client::connect(&server.endpoint).await.unwrap();
    let calls = at_once(&client, [framed(&[1])]);
    assert_eq!(server.answer(true).await, (1, false));
    in_time(calls.join_all()).await;
    let endpoint = server.endpoint.clone();
    drop(server);
    let gone = async {
        while client.is_connected() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(gone).await;
    let server = Other::at(&endpoint).await;
    let back = async {
        while !client.is_connected() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(back).await;
    for _ in 0..2 {
        let calls = at_once(&client, [framed(&[1])]);
        assert_eq!(server.answer(false).await, (1, false));
        in_time(calls.join_all()).await;
    }
}

#[tokio::test]
async fn who_takes_only_smaller_messages_neither_says_nor_does_it() {
    let small = TransportOptions::default().with_message_bytes_max(BYTES_MAX - 1);
    let server = Server::builder()
        .service(Probe::default())
        .transport(small.clone());
    let server = server.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
    let stranger = stranger(&server).await;
    let answer = exchange(&stranger, [header(1), framed(&[1])].concat()).await;
    let replies = pairs(&answer.part_bytes(0).unwrap());
    assert_eq!(read_reply(&replies[0].0), (1, 0, false));
    server.shutdown().await;

    let server = Other::at("tcp://127.0.0.1:0").await;
    let client = Client::builder().transport(small);
    let client = client.connect(&server.endpoint).await.unwrap();
    for _ in 0..2 {
        let calls = at_once(&client, [framed(&[1])]);
        assert_eq!(server.answer(true).await, (1, false));
        in_time(calls.join_all()).await;
    }
}

#[tokio::test]
async fn calls_that_wait_for_the_driver_leave_before_the_client_closes() {
    let server = start().await;
    let client = Client::connect(server.endpoint().to_string())
        .await
        .unwrap();
    call(&client, &ECHO, framed(&[1])).await.unwrap();
    let before = server.counters().handled;
    // Begun without a turn for the driver in between.
    let mut service = client.clone();
    let calls: Vec<_> = (0..3)
        .map(|_| tower::Service::call(&mut service, RawRequest::new(&SLEEP, framed(&[0]).into())))
        .collect();
    client.close().await;
    for call in calls {
        assert_eq!(
            call.await.unwrap_err().work(),
            bowline::Work::OutcomeUnknown
        );
    }
    let arrived = async {
        while server.counters().handled < before + 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(arrived).await;
    server.shutdown().await;
}
