//! Calls while both sides are there.

use crate::*;

pub async fn a_call_comes_back(carried: Carried) {
    let (server, client) = carried.both().await;
    assert_eq!(call(&client, &ECHO, "hello").await.unwrap(), "hello");
    assert_eq!(call(&client, &ECHO, "").await.unwrap(), "");
    server.shutdown().await;
}

pub async fn a_message_of_sixty_four_mebibytes_comes_back(carried: Carried) {
    let limits = Limits::default().with_message_bytes_max(64 << 20);
    let options = carried.options().with_message_bytes_max(65 << 20);
    let server = carried.server().limits(limits).transport(options.clone());
    let server = server.bind(carried.endpoint()).await.unwrap().spawn();
    let client = Client::builder().limits(limits).transport(options);
    let client = client.connect(server.endpoint().to_string()).await.unwrap();
    let large = Bytes::from((0..64usize << 20).map(|i| i as u8).collect::<Vec<u8>>());
    let reply = call(&client, &ECHO, large.clone()).await.unwrap();
    assert!(reply == large, "the bytes are the same");
    server.shutdown().await;
}

pub async fn a_thousand_calls_at_once_on_one_client_come_back_each_with_its_own(carried: Carried) {
    let (server, client) = carried.both().await;
    let mut calls = JoinSet::new();
    for i in 0..1000u32 {
        let client = client.clone();
        calls.spawn(async move {
            let body = i.to_le_bytes().to_vec();
            let reply = if i % 7 == 0 {
                let mut body = milliseconds((i % 50) as u16);
                body.extend(i.to_le_bytes());
                (call(&client, &SLEEP, body.clone()).await, body)
            } else {
                (call(&client, &ECHO, body.clone()).await, body)
            };
            assert_eq!(reply.0.unwrap(), reply.1);
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    assert_eq!(client.counters().in_flight, 0);
    server.shutdown().await;
}

pub async fn small_messages_at_once_come_back_each_with_its_own(carried: Carried) {
    let (server, client) = carried.both().await;
    for round in 0..4u64 {
        let mut calls = JoinSet::new();
        for i in 0..400u64 {
            let client = client.clone();
            calls.spawn(async move {
                // One segment, nearly always small; some handlers wait a moment.
                let words = if i % 50 == 0 { 1000 } else { i % 40 };
                let rest = (0..words).map(|word| word << 32 | i << 16 | round);
                let body: Vec<u8> = std::iter::once((1 + words) << 32)
                    .chain(std::iter::once(i << 16))
                    .chain(rest)
                    .flat_map(u64::to_le_bytes)
                    .collect();
                let method = if i % 7 == 0 { &SLEEP } else { &ECHO };
                assert_eq!(call(&client, method, body.clone()).await.unwrap(), body);
            });
        }
        while let Some(done) = calls.join_next().await {
            done.unwrap();
        }
    }
    assert_eq!(client.counters().in_flight, 0);
    assert_eq!(client.counters().replies_late, 0);
    assert_eq!(server.counters().handled, 1600);
    server.shutdown().await;
}

pub async fn many_clients_are_served(carried: Carried) {
    let server = carried.start().await;
    let endpoint = server.endpoint().to_string();
    let mut clients = JoinSet::new();
    for i in 0..50u32 {
        let endpoint = endpoint.clone();
        clients.spawn(async move {
            let client = carried.connect(endpoint).await;
            for j in 0..10u32 {
                let body = (i * 100 + j).to_le_bytes().to_vec();
                assert_eq!(call(&client, &ECHO, body.clone()).await.unwrap(), body);
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    server.shutdown().await;
}

pub async fn a_dropped_call_ends_its_handler_and_harms_no_other(carried: Carried) {
    let (server, client) = carried.both().await;
    let kept = tokio::spawn({
        let client = client.clone();
        async move { call(&client, &SLEEP, milliseconds(100)).await }
    });
    for _ in 0..20 {
        let dropped = call(&client, &SLEEP, milliseconds(1000));
        let _ = tokio::time::timeout(Duration::from_millis(2), dropped).await;
    }
    assert_eq!(kept.await.unwrap().unwrap(), milliseconds(100));
    eventually("their handlers are ended", || {
        server.counters().cancelled == 20
    })
    .await;
    assert_eq!(client.counters().in_flight, 0);
    assert_eq!(call(&client, &ECHO, "alive").await.unwrap(), "alive");
    assert_eq!(client.counters().replies_late, 0);
    server.shutdown().await;
}

pub async fn the_first_call_of_a_connection_can_be_cancelled_too(carried: Carried) {
    let probe = Probe::default();
    let server = Server::builder()
        .service(probe.clone())
        .transport(carried.options());
    let server = server.bind(carried.endpoint()).await.unwrap().spawn();
    for count in 1..=10 {
        let client = carried.connect(server.endpoint()).await;
        let hanging = tokio::spawn(async move { call(&client, &HANG, "x").await });
        eventually("it runs", || server.counters().handled == count).await;
        hanging.abort();
        eventually("it is ended", || {
            let counters = server.counters();
            counters.cancelled + counters.abandoned == count
        })
        .await;
    }
    // One whose client stays: its connection is not what ends it.
    let client = carried.connect(server.endpoint()).await;
    let hanging = tokio::spawn({
        let client = client.clone();
        async move { call(&client, &HANG, "x").await }
    });
    eventually("it runs", || server.counters().handled == 11).await;
    let cancelled = server.counters().cancelled;
    hanging.abort();
    eventually("it is cancelled", || {
        server.counters().cancelled == cancelled + 1
    })
    .await;
    assert_eq!(probe.running.load(Ordering::SeqCst), 0);
    server.shutdown().await;
}

pub async fn a_request_over_the_servers_limit_is_refused_before_it_is_sent(carried: Carried) {
    let (server, client) = carried.both().await;
    let other = in_flight(&server, &client).await;
    for bytes in [(1 << 20) + 1, 2 << 20] {
        let status = call(&client, &ECHO, vec![1; bytes]).await.unwrap_err();
        assert_too_large(&status, Work::NotDone, bytes, 1 << 20);
    }
    assert_eq!(other.await.unwrap().unwrap(), milliseconds(500));
    let largest = vec![1; 1 << 20];
    assert_eq!(
        call(&client, &ECHO, largest.clone()).await.unwrap(),
        largest
    );
    assert_eq!(client.counters().too_large, 2);
    assert_eq!((server.counters().handled, server.door().broken), (2, 0));
    server.shutdown().await;
}

pub async fn a_client_learns_a_smaller_limit_from_the_first_reply(carried: Carried) {
    let limits = Limits::default().with_message_bytes_max(1000);
    let server = carried.server().limits(limits);
    let server = server.bind(carried.endpoint()).await.unwrap().spawn();
    let client = carried.connect(server.endpoint()).await;
    // The server says so itself, until it is known.
    let status = call(&client, &ECHO, vec![1; 1001]).await.unwrap_err();
    assert_too_large(&status, Work::NotDone, 1001, 1000);
    let status = call(&client, &ECHO, vec![1; 1001]).await.unwrap_err();
    assert_too_large(&status, Work::NotDone, 1001, 1000);
    assert_eq!(
        (server.counters().too_large, client.counters().too_large),
        (1, 1)
    );
    assert_eq!(
        call(&client, &ECHO, vec![1; 1000]).await.unwrap().len(),
        1000
    );
    server.shutdown().await;
}

pub async fn a_large_first_request_to_a_smaller_server_ends_no_connection(carried: Carried) {
    let server = carried.start().await;
    let limits = Limits::default().with_message_bytes_max(16 << 20);
    let options = carried.options().with_message_bytes_max(17 << 20);
    let client = Client::builder().limits(limits).transport(options);
    let client = client.connect(server.endpoint().to_string()).await.unwrap();
    let status = call(&client, &ECHO, vec![1; 2 << 20]).await.unwrap_err();
    assert_too_large(&status, Work::NotDone, 2 << 20, 1 << 20);
    assert_eq!(call(&client, &ECHO, "alive").await.unwrap(), "alive");
    let counters = server.counters();
    assert_eq!((counters.handled, counters.unknown), (1, 0));
    assert_eq!(server.door().broken, 0);
    server.shutdown().await;
}

pub async fn a_reply_over_the_clients_limit_becomes_a_status_and_harms_no_other(carried: Carried) {
    let (server, client) = carried.both().await;
    let other = in_flight(&server, &client).await;
    for bytes in [(1u64 << 20) + 1, 2 << 20] {
        let status = call(&client, &LARGE, bytes.to_be_bytes().to_vec()).await;
        assert_too_large(&status.unwrap_err(), Work::Done, bytes as usize, 1 << 20);
    }
    assert_eq!(other.await.unwrap().unwrap(), milliseconds(500));
    assert_eq!(server.counters().replies_too_large, 2);
    let largest = call(&client, &LARGE, (1u64 << 20).to_be_bytes().to_vec()).await;
    assert_eq!(largest.unwrap().len(), 1 << 20);
    // One with a limit of its own is sent no more than that.
    let limits = Limits::default().with_message_bytes_max(1000);
    let small = Client::builder()
        .limits(limits)
        .transport(carried.options());
    let small = small.connect(server.endpoint().to_string()).await.unwrap();
    let status = call(&small, &LARGE, 1001u64.to_be_bytes().to_vec()).await;
    assert_too_large(&status.unwrap_err(), Work::Done, 1001, 1000);
    server.shutdown().await;
}

/// A call that takes half a second, and has begun.
async fn in_flight(
    server: &ServerHandle,
    client: &Client,
) -> tokio::task::JoinHandle<Result<Bytes, bowline::Status>> {
    let client = client.clone();
    let calling = tokio::spawn(async move { call(&client, &SLEEP, milliseconds(500)).await });
    eventually("it runs", || server.counters().handled == 1).await;
    calling
}

fn assert_too_large(status: &bowline::Status, work: Work, bytes: usize, max: usize) {
    assert_eq!(
        (status.code(), status.work(), status.reason()),
        (Code::ResourceExhausted, work, Some(Reason::TooLarge)),
        "{status}"
    );
    let says = |number: usize| status.message().contains(&number.to_string());
    assert!(says(bytes) && says(max), "{status}");
}

pub async fn a_status_with_a_long_message_arrives_cut_to_its_limit(carried: Carried) {
    let (server, client) = carried.both().await;
    let status = call(&client, &FAIL_LONG, "x").await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(status.message().len(), bowline::Status::MESSAGE_BYTES_MAX);
    server.shutdown().await;
}

pub async fn a_handler_that_computes_holds_up_no_other_call(carried: Carried) {
    let (server, client) = carried.both().await;
    let slow: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, &SPIN, milliseconds(2000)).await })
        })
        .collect();
    eventually("the first computes", || server.counters().handled >= 1).await;
    assert_eq!(call(&client, &ECHO, "quick").await.unwrap(), "quick");
    assert!(
        slow.iter().all(|slow| !slow.is_finished()),
        "echo has waited"
    );
    let begun = Instant::now();
    for slow in slow {
        assert_eq!(slow.await.unwrap().unwrap(), milliseconds(2000));
    }
    // At the same time, and not one after the other.
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
    server.shutdown().await;
}

pub async fn a_call_ends_by_its_deadline(carried: Carried) {
    let (server, client) = carried.both().await;
    let mut request = RawRequest::new(&HANG, Bytes::new());
    request.deadline = Some(tokio::time::Instant::now() + Duration::from_millis(30));
    let status = send(&client, request).await.unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::DeadlineExceeded, Work::OutcomeUnknown)
    );
    eventually("the handler is ended too", || {
        server.counters().timed_out == 1
    })
    .await;
    server.shutdown().await;
}

pub async fn a_handler_that_panics_is_answered_and_the_service_goes_on(carried: Carried) {
    let (server, client) = carried.both().await;
    for method in [&PANIC, &PANIC_LATER] {
        let status = call(&client, method, "x").await.unwrap_err();
        assert_eq!(
            (status.code(), status.work()),
            (Code::Internal, Work::OutcomeUnknown)
        );
    }
    assert_eq!(server.counters().panicked, 2);
    assert_eq!(call(&client, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}

pub async fn unknown_interfaces_and_methods_are_refused(carried: Carried) {
    let (server, client) = carried.both().await;
    for (interface, method) in [(1, 0), (common::INTERFACE, 99)] {
        let mut request = RawRequest::new(&ECHO, Bytes::new());
        (request.interface, request.method) = (interface, method);
        let status = send(&client, request).await.unwrap_err();
        assert_eq!(
            (status.code(), status.work()),
            (Code::Unimplemented, Work::NotDone)
        );
    }
    assert_eq!(server.counters().unknown, 2);
    server.shutdown().await;
}

pub async fn one_request_too_many_is_refused_and_not_done(carried: Carried) {
    let endpoint = carried.endpoint();
    let server = carried
        .server()
        .concurrency_max(2)
        .bind(endpoint)
        .await
        .unwrap()
        .spawn();
    let client = carried.connect(server.endpoint()).await;
    let mut running = JoinSet::new();
    for _ in 0..2 {
        let client = client.clone();
        running.spawn(async move { call(&client, &SLEEP, milliseconds(1500)).await });
    }
    eventually("both run", || server.counters().handled == 2).await;
    let status = call(&client, &SLEEP, milliseconds(1)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::ResourceExhausted, Work::NotDone)
    );
    while let Some(done) = running.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(
        call(&client, &SLEEP, milliseconds(1)).await.unwrap(),
        milliseconds(1)
    );
    server.shutdown().await;
}

pub async fn a_call_over_the_clients_own_limit_is_refused(carried: Carried) {
    let server = carried.start().await;
    let client = Client::builder()
        .transport(carried.options())
        .in_flight_max(1)
        .connect(server.endpoint().to_string())
        .await
        .unwrap();
    let first = tokio::spawn({
        let client = client.clone();
        async move { call(&client, &SLEEP, milliseconds(1000)).await }
    });
    eventually("the first is in flight", || {
        client.counters().in_flight == 1
    })
    .await;
    let status = call(&client, &ECHO, "x").await.unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::ResourceExhausted, Work::NotDone)
    );
    first.await.unwrap().unwrap();
    server.shutdown().await;
}
