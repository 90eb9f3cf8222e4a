//! What one principal, or one address without keys, may have of a server's places and bytes, and that there is room for
//! the others whatever it does.

mod common;
#[path = "common/house.rs"]
mod house;
#[path = "common/wire.rs"]
mod wire;

use std::time::{Duration, Instant};

use bowline::schema::MethodInfo;
use bowline::security::{AccessRules, Keys};
use bowline::{Client, Code, Reason, Server, ServerBuilder, ServerHandle, TransportOptions, Work};
use bytes::Bytes;
use common::{ECHO, HANG, PARK, Probe, SLEEP, call, milliseconds};
use house::{House, security};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use wire::{frames, raw, receive_frame, request_header, shake_hands};

const PATIENCE: Duration = Duration::from_secs(30);

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A server with two principals, each of whom may call everything.
struct Two {
    house: House,
    other: Keys,
    server: ServerHandle,
}

impl Two {
    async fn serve(builder: ServerBuilder) -> Self {
        let (house, other) = (House::new(), Keys::generate());
        house.allowed.allow("other", other.public()).unwrap();
        let rules = AccessRules::new().everything("*");
        let builder = builder.service(Probe::default());
        let builder = builder.security(house.security().with_access(rules));
        let server = builder.bind("tcp://127.0.0.1:0").await.unwrap().spawn();
        Self {
            house,
            other,
            server,
        }
    }

    async fn client(&self, keys: &Keys) -> Client {
        let security = security(keys, self.house.server.public());
        house::client(self.server.endpoint(), security).await
    }

    /// A client of the principal that takes all it can, and one of another.
    async fn clients(&self) -> (Client, Client) {
        (
            self.client(&self.house.web).await,
            self.client(&self.other).await,
        )
    }

    fn refused(&self, principal: &str) -> u64 {
        let counted = self.server.by_principal();
        let of = |name: Option<&bowline::security::Principal>| {
            name.is_some_and(|of| of.as_str() == principal)
        };
        let counted = counted
            .iter()
            .find(|counted| of(counted.principal.as_ref()));
        counted.map_or(0, |counted| counted.refused)
    }
}

/// Calls that nobody waits for, for as long as the set lasts.
fn keep_calling(
    client: &Client,
    method: &'static MethodInfo,
    calls: usize,
    bytes: usize,
) -> tokio::task::JoinSet<Option<bowline::Status>> {
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..calls {
        let client = client.clone();
        all.spawn(async move {
            let body = Bytes::from(vec![0; bytes]);
            let request = bowline::call::RawRequest::new(method, body);
            let mut request = request;
            request.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(300));
            common::send(&client, request).await.err()
        });
    }
    all
}

#[tokio::test]
async fn a_principal_that_takes_all_it_can_leaves_places_for_others() {
    let two = Two::serve(Server::builder().concurrency_max(8)).await;
    let (greedy, other) = two.clients().await;
    let too = two.client(&two.house.web).await;
    let mut all = keep_calling(&greedy, &HANG, 4, 16);
    eventually("four are in flight", || two.server.counters().handled == 4).await;
    let mut more = keep_calling(&too, &HANG, 4, 16);
    for _ in 0..2 {
        let refused = more.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(
            (refused.code(), refused.work(), refused.reason()),
            (
                Code::ResourceExhausted,
                Work::NotDone,
                Some(Reason::Overloaded)
            )
        );
        assert!(refused.retry_after().is_some());
    }
    assert_eq!(two.server.counters().handled, 6);
    for _ in 0..20 {
        call(&other, &SLEEP, milliseconds(1)).await.unwrap();
    }
    assert_eq!((two.refused("web"), two.refused("other")), (2, 0));
    all.abort_all();
    two.server.shutdown().await;
}

#[tokio::test]
async fn a_principal_has_its_own_limit_of_calls_where_one_is_set() {
    let builder = Server::builder().concurrency_per_principal_max(2);
    let two = Two::serve(builder).await;
    let (greedy, other) = two.clients().await;
    let _all = keep_calling(&greedy, &HANG, 2, 16);
    eventually("two are in flight", || two.server.counters().handled == 2).await;
    let refused = call(&greedy, &SLEEP, milliseconds(1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    call(&other, &SLEEP, milliseconds(1)).await.unwrap();
    two.server.shutdown().await;
}

#[tokio::test]
async fn parked_calls_take_no_places_of_calls_that_work() {
    let builder = Server::builder().concurrency_max(2).parked_max(16);
    let two = Two::serve(builder).await;
    let (greedy, other) = two.clients().await;
    let mut all = keep_calling(&greedy, &PARK, 16, 16);
    for _ in 0..4 {
        let refused = all.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(
            (refused.code(), refused.work()),
            (Code::ResourceExhausted, Work::NotDone)
        );
    }
    assert_eq!((two.server.counters().parked, all.len()), (12, 12));
    // There is room for others that park, and all of it for calls that work.
    let _parked = keep_calling(&other, &PARK, 2, 16);
    eventually("they are parked", || two.server.counters().parked == 14).await;
    for client in [&greedy, &other] {
        let (one, two) = tokio::join!(
            call(client, &SLEEP, milliseconds(20)),
            call(client, &SLEEP, milliseconds(20))
        );
        assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    }
    assert_eq!((two.refused("web"), two.refused("other")), (4, 0));
    drop((all, greedy));
    eventually("places are given back", || {
        two.server.counters().parked == 2
    })
    .await;
    two.server.shutdown().await;
}

#[tokio::test]
async fn a_parked_call_keeps_no_bytes_of_its_request() {
    let builder = Server::builder().request_bytes_max(100_000);
    let two = Two::serve(builder).await;
    let (greedy, other) = two.clients().await;
    let _parked = keep_calling(&greedy, &PARK, 20, 60_000);
    eventually("all are parked", || two.server.counters().parked == 20).await;
    let _working = keep_calling(&greedy, &HANG, 1, 60_000);
    eventually("one works", || two.server.counters().handled == 21).await;
    let body = vec![0; 50_000];
    let refused = call(&greedy, &SLEEP, body).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::Overloaded));
    let mut body = milliseconds(1);
    body.resize(30_000, 0);
    call(&other, &SLEEP, body).await.unwrap();
    two.server.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_ends_parked_calls_at_once_and_says_not_done() {
    let two = Two::serve(Server::builder().drain_max(PATIENCE * 10)).await;
    let (one, _) = two.clients().await;
    let mut parked = keep_calling(&one, &PARK, 3, 16);
    eventually("they are parked", || two.server.counters().parked == 3).await;
    let shut_down = tokio::time::timeout(PATIENCE, two.server.shutdown()).await;
    assert!(shut_down.is_ok(), "it waits for what need not come");
    while let Some(ended) = parked.join_next().await {
        let ended = ended.unwrap().unwrap();
        assert_eq!(
            (ended.code(), ended.work(), ended.reason()),
            (Code::Unavailable, Work::NotDone, Some(Reason::ShuttingDown))
        );
    }
}

#[tokio::test]
async fn replies_that_nobody_reads_take_no_places_of_handlers() {
    let server = Server::builder()
        .service(Probe::default())
        .concurrency_max(2)
        .send_wait_max(PATIENCE)
        .transport(TransportOptions::default().with_send_bytes_max(64 << 10))
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let other = house::client(server.endpoint(), None).await;
    let mut slow = raw(&server, "127.0.0.2").await;
    assert!(shake_hands(&mut slow).await);
    let request = frames(&[b"", &request_header(0, 1), &[7; 64 << 10]]);
    // More than any buffer on the way holds: from some point on it is not read any more.
    let mut sent = 0;
    while let Ok(Ok(())) =
        tokio::time::timeout(Duration::from_millis(500), slow.write_all(&request)).await
    {
        sent += 1;
        assert!(sent < 10_000, "it is read for ever");
    }
    for _ in 0..10 {
        call(&other, &SLEEP, milliseconds(1)).await.unwrap();
    }
    assert_eq!(server.counters().refused, 0);
    drop((slow, server));
}

/// Writes until the other side reads no more, and says how much it took.
async fn write_until_held(stream: &mut TcpStream, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        let next =
            tokio::time::timeout(Duration::from_millis(200), stream.write(&bytes[written..]));
        match next.await {
            Ok(taken) => written += taken.unwrap(),
            Err(_) => break,
        }
    }
    written
}

#[tokio::test]
async fn unfinished_messages_of_one_address_leave_room_for_others_and_end_at_last() {
    let options = TransportOptions::default()
        .with_message_bytes_max(32 << 20)
        .with_receive_bytes_total_max(1 << 20);
    let server = Server::builder()
        .service(Probe::default())
        .transport(options)
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    // More than the server has room for, and more than buffers on the way hold of each.
    let request = frames(&[b"", &request_header(0, 1), &vec![7; 20 << 20]]);
    let (almost, end) = request.split_at(request.len() - 1);
    let mut greedy = Vec::new();
    for _ in 0..6 {
        let mut peer = raw(&server, "127.0.0.2").await;
        assert!(shake_hands(&mut peer).await);
        let written = write_until_held(&mut peer, almost).await;
        greedy.push((peer, written));
    }
    let held = greedy.iter().filter(|(_, written)| *written < almost.len());
    assert!(held.count() >= 4, "all are read");
    let other = house::client(server.endpoint(), None).await;
    for _ in 0..10 {
        assert_eq!(call(&other, &ECHO, "alive").await.unwrap(), "alive");
    }
    // Each is sent to its end, and answered: one at a time goes on where none would have room.
    let mut finishing = tokio::task::JoinSet::new();
    for (mut peer, written) in greedy {
        let rest = [&almost[written..], end].concat();
        finishing.spawn(async move {
            peer.write_all(&rest).await.unwrap();
            while receive_frame(&mut peer)
                .await
                .is_some_and(|(flags, _)| flags & 4 != 0)
            {}
        });
    }
    tokio::time::timeout(PATIENCE, finishing.join_all())
        .await
        .expect("all are answered");
    server.shutdown().await;
}

#[tokio::test]
async fn an_address_that_opens_silent_connections_keeps_no_other_out() {
    let server = Server::builder()
        .service(Probe::default())
        .bind("tcp://127.0.0.1:0")
        .await
        .unwrap()
        .spawn();
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(raw(&server, "127.0.0.1").await);
    }
    // From the same address, and from another.
    for from in ["127.0.0.1", "127.0.0.9"] {
        let mut peer = raw(&server, from).await;
        assert!(shake_hands(&mut peer).await, "{from}");
    }
    let client = house::client(server.endpoint(), None).await;
    assert_eq!(call(&client, &ECHO, "alive").await.unwrap(), "alive");
    assert!(server.door().handshakes_failed >= 16);
    server.shutdown().await;
}

#[tokio::test]
async fn a_principal_with_all_the_connections_it_can_get_leaves_some_for_others() {
    let options = TransportOptions::default().with_connections_max(8, 8);
    let two = Two::serve(Server::builder().transport(options)).await;
    let mut greedy = Vec::new();
    for _ in 0..8 {
        greedy.push(two.client(&two.house.web).await);
    }
    eventually("six are in", || two.server.door().connections == 6).await;
    let other = two.client(&two.other).await;
    assert_eq!(call(&other, &ECHO, "alive").await.unwrap(), "alive");
    assert!(two.server.door().connections_refused > 0);
    two.server.shutdown().await;
}

#[tokio::test]
async fn a_key_that_gets_another_name_connects_again_under_it() {
    let two = Two::serve(Server::builder()).await;
    let (client, _) = two.clients().await;
    call(&client, &ECHO, "web").await.unwrap();
    let key = two.house.web.public();
    assert!(two.house.allowed.revoke(key));
    two.house.allowed.allow("mobile", key).unwrap();
    let handled = |name: &str| {
        let counted = two.server.by_principal();
        let counted = counted.iter().find(|of| {
            let principal = of.principal.as_ref();
            principal.is_some_and(|of| of.as_str() == name)
        });
        counted.map_or(0, |of| of.handled)
    };
    let start = Instant::now();
    let mut last = None;
    while handled("mobile") == 0 {
        assert!(
            start.elapsed() < PATIENCE,
            "{last:?} {:?} {:?}",
            two.server.door(),
            two.server.by_principal()
        );
        last = Some(call(&client, &ECHO, "mobile").await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(handled("web"), 1);
    two.server.shutdown().await;
}
