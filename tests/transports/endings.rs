//! Calls while a server or a client is gone, goes, or stands still.

use crate::stalled::stalled_client;
use crate::*;

pub async fn with_no_server_a_call_fails_at_once_and_is_not_done(carried: Carried) {
    let (server, client) = carried.both().await;
    server.shutdown().await;
    eventually("the client has noticed", || !client.is_connected()).await;
    let status = call(&client, &ECHO, "x").await.unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::Unavailable, Work::NotDone)
    );
}

pub async fn a_call_that_waits_for_its_server_succeeds_once_it_is_back(carried: Carried) {
    let (server, client) = carried.both().await;
    let endpoint = server.endpoint().to_string();
    server.shutdown().await;
    eventually("the client has noticed", || !client.is_connected()).await;
    let mut request = RawRequest::new(&ECHO, Bytes::from("patience"));
    request.wait_for_ready = true;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { send(&client, request).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let server = carried.start_at(&endpoint).await;
    assert_eq!(waiting.await.unwrap().unwrap(), "patience");
    assert_eq!(call(&client, &ECHO, "again").await.unwrap(), "again");
    server.shutdown().await;
}

pub async fn a_call_that_waits_is_not_sent_after_its_deadline(carried: Carried) {
    let client = Client::builder()
        .transport(carried.options())
        .connect_wait(Duration::ZERO)
        .connect(match carried.scheme {
            "tcp" => "tcp://127.0.0.1:9".to_owned(), // discard: nobody serves it
            _ => carried.endpoint(),
        })
        .await
        .unwrap();
    let mut request = RawRequest::new(&ECHO, Bytes::new());
    request.wait_for_ready = true;
    request.deadline = Some(tokio::time::Instant::now() + Duration::from_millis(50));
    let status = send(&client, request).await.unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::DeadlineExceeded, Work::NotDone)
    );
}

pub async fn calls_in_flight_when_the_server_vanishes_end_with_outcome_unknown(carried: Carried) {
    let endpoint = carried.endpoint();
    let server = carried.server().bind(&endpoint).await.unwrap();
    let endpoint = server.endpoint().to_string();
    let serving = tokio::spawn(server.run());
    let client = carried.connect(&endpoint).await;
    let in_flight = tokio::spawn({
        let client = client.clone();
        async move { call(&client, &HANG, "x").await }
    });
    eventually("the call is in flight", || client.counters().in_flight == 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    serving.abort();
    let status = in_flight.await.unwrap().unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::Unavailable, Work::OutcomeUnknown)
    );
}

pub async fn a_draining_server_finishes_what_it_has_and_refuses_what_is_new(carried: Carried) {
    let (server, client) = carried.both().await;
    let running = tokio::spawn({
        let client = client.clone();
        async move { call(&client, &SLEEP, milliseconds(1500)).await }
    });
    eventually("the first runs", || server.counters().handled == 1).await;
    let draining = tokio::spawn(server.shutdown());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let refused = call(&client, &ECHO, "new").await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.work()),
        (Code::Unavailable, Work::NotDone)
    );
    assert_eq!(running.await.unwrap().unwrap(), milliseconds(1500));
    draining.await.unwrap();
}

pub async fn a_drain_has_an_end(carried: Carried) {
    let endpoint = carried.endpoint();
    let server = carried
        .server()
        .drain_max(Duration::from_millis(50))
        .bind(endpoint)
        .await
        .unwrap()
        .spawn();
    let client = carried.connect(server.endpoint()).await;
    let hanging = tokio::spawn({
        let client = client.clone();
        async move { call(&client, &HANG, "x").await }
    });
    eventually("it hangs", || server.counters().handled == 1).await;
    tokio::time::timeout(Duration::from_secs(10), server.shutdown())
        .await
        .expect("the exit does not hang");
    let status = hanging.await.unwrap().unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::Unavailable, Work::OutcomeUnknown)
    );
}

pub async fn a_client_that_vanishes_leaves_the_others_alone(carried: Carried) {
    let (server, client) = carried.both().await;
    for _ in 0..20 {
        let vanishing = carried.connect(server.endpoint()).await;
        let _ = tokio::time::timeout(
            Duration::from_millis(1),
            call(&vanishing, &SLEEP, milliseconds(20)),
        )
        .await;
        drop(vanishing);
    }
    for i in 0..50u8 {
        assert_eq!(call(&client, &ECHO, vec![i]).await.unwrap(), vec![i]);
    }
    server.shutdown().await;
}

pub async fn a_closed_client_ends_its_calls(carried: Carried) {
    let (_server, client) = carried.both().await;
    let in_flight = tokio::spawn({
        let client = client.clone();
        async move { call(&client, &HANG, "x").await }
    });
    eventually("it is in flight", || client.counters().in_flight == 1).await;
    let other = client.clone();
    client.close().await;
    let status = in_flight.await.unwrap().unwrap_err();
    assert_eq!(status.work(), Work::OutcomeUnknown);
    let status = call(&other, &ECHO, "x").await.unwrap_err();
    assert_eq!(
        (status.code(), status.work()),
        (Code::Unavailable, Work::NotDone)
    );
}

pub async fn an_endpoint_in_use_cannot_be_bound_and_can_be_once_it_is_free(carried: Carried) {
    let server = carried.start().await;
    let endpoint = server.endpoint().to_string();
    assert!(carried.server().bind(&endpoint).await.is_err());
    server.shutdown().await;
    carried.start_at(&endpoint).await.shutdown().await;
}

/// A shutdown goes through its stages in order, each of which shows.
pub async fn a_server_that_goes_says_so_first_and_lets_nobody_new_in(carried: Carried) {
    let (server, client) = carried.both().await;
    let (readiness, endpoint) = (server.readiness(), server.endpoint().to_string());
    assert!(readiness.is_ready());
    let running = tokio::spawn({
        let client = client.clone();
        async move { call(&client, &SLEEP, milliseconds(3000)).await }
    });
    eventually("the first runs", || server.counters().handled == 1).await;
    let going = tokio::spawn(server.shutdown());
    eventually("it is not ready", || !readiness.is_ready()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!going.is_finished(), "it waits for what it has");
    let newcomer = Client::builder()
        .transport(carried.options())
        .connect_wait(Duration::from_millis(200))
        .connect(&endpoint)
        .await
        .unwrap();
    let refused = call(&newcomer, &ECHO, "x").await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.work()),
        (Code::Unavailable, Work::NotDone)
    );
    assert!(!newcomer.is_connected(), "nobody new is let in");
    let refused = call(&client, &ECHO, "x").await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.work()),
        (Code::Unavailable, Work::NotDone)
    );
    assert_eq!(running.await.unwrap().unwrap(), milliseconds(3000));
    going.await.unwrap();
    eventually("the socket is closed", || !client.is_connected()).await;
}

/// Asks for many large replies, and reads none.
pub async fn a_client_that_does_not_read_holds_up_no_other_and_not_the_exit(carried: Carried) {
    let server = carried
        .server()
        .send_wait_max(Duration::from_millis(100))
        .bind(carried.endpoint())
        .await
        .unwrap()
        .spawn();
    let endpoint = server.endpoint().to_string();
    let client = carried.connect(&endpoint).await;
    let stalled = stalled_client(carried, endpoint).await;
    eventually("it is served", || server.counters().handled > 0).await;
    for i in 0..100u8 {
        assert_eq!(call(&client, &ECHO, vec![i]).await.unwrap(), vec![i]);
    }
    tokio::time::timeout(Duration::from_secs(20), server.shutdown())
        .await
        .expect("the exit does not hang");
    drop(stalled);
}
