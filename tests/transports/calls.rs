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

pub async fn a_dropped_call_harms_no_other_and_its_late_reply_is_counted(carried: Carried) {
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
    eventually("late replies are counted", || {
        client.counters().replies_late == 20
    })
    .await;
    assert_eq!(client.counters().in_flight, 0);
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
