//! One suite over all transports: what calls may expect, whatever carries them.
//!
//! Differences between the transports are in `tests/differences.rs`, listed in docs/transports.md.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bowline::call::RawRequest;
use bowline::{
    Carrier, Client, Code, Limits, Server, ServerBuilder, ServerHandle, TransportOptions, Work,
};
use bytes::Bytes;
use common::{ECHO, HANG, PANIC, PANIC_LATER, Probe, SLEEP, call, milliseconds, send};
use tokio::task::JoinSet;

/// How a test reaches its server.
#[derive(Clone, Copy)]
struct Carried {
    scheme: &'static str,
    carrier: Carrier,
}

impl Carried {
    /// An endpoint that nothing else has.
    fn endpoint(self) -> String {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("bowline-test-{}-{number}", std::process::id());
        match self.scheme {
            "tcp" => "tcp://127.0.0.1:0".to_owned(),
            "ipc" => format!("ipc://{}", std::env::temp_dir().join(name).display()),
            scheme => format!("{scheme}://{name}"),
        }
    }

    fn options(self) -> TransportOptions {
        TransportOptions::default().with_carrier(self.carrier)
    }

    fn server(self) -> ServerBuilder {
        Server::builder()
            .service(Probe::default())
            .transport(self.options())
    }

    async fn start(self) -> ServerHandle {
        self.start_at(&self.endpoint()).await
    }

    async fn start_at(self, endpoint: &str) -> ServerHandle {
        self.server()
            .bind(endpoint)
            .await
            .expect("it binds")
            .spawn()
    }

    async fn connect(self, endpoint: impl ToString) -> Client {
        Client::builder()
            .transport(self.options())
            .connect(endpoint.to_string())
            .await
            .expect("it is an endpoint")
    }

    async fn both(self) -> (ServerHandle, Client) {
        let server = self.start().await;
        let client = self.connect(server.endpoint()).await;
        (server, client)
    }
}

/// Waits for what happens in the background; fails when it does not.
async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

mod suite {
    use super::*;

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

    pub async fn a_thousand_calls_at_once_on_one_client_come_back_each_with_its_own(
        carried: Carried,
    ) {
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

    pub async fn calls_in_flight_when_the_server_vanishes_end_with_outcome_unknown(
        carried: Carried,
    ) {
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
}

macro_rules! carried {
    ($($module:ident: $scheme:literal, $carrier:expr;)*) => {$(
        mod $module {
            use super::*;

            carried!(@tests $scheme, $carrier,
                a_call_comes_back
                a_message_of_sixty_four_mebibytes_comes_back
                a_thousand_calls_at_once_on_one_client_come_back_each_with_its_own
                small_messages_at_once_come_back_each_with_its_own
                many_clients_are_served
                with_no_server_a_call_fails_at_once_and_is_not_done
                a_call_that_waits_for_its_server_succeeds_once_it_is_back
                a_call_that_waits_is_not_sent_after_its_deadline
                calls_in_flight_when_the_server_vanishes_end_with_outcome_unknown
                a_dropped_call_harms_no_other_and_its_late_reply_is_counted
                a_call_ends_by_its_deadline
                a_handler_that_panics_is_answered_and_the_service_goes_on
                unknown_interfaces_and_methods_are_refused
                one_request_too_many_is_refused_and_not_done
                a_call_over_the_clients_own_limit_is_refused
                a_draining_server_finishes_what_it_has_and_refuses_what_is_new
                a_drain_has_an_end
                a_client_that_vanishes_leaves_the_others_alone
                a_closed_client_ends_its_calls
                an_endpoint_in_use_cannot_be_bound_and_can_be_once_it_is_free
            );
        }
    )*};
    (@tests $scheme:literal, $carrier:expr, $($test:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            suite::$test(Carried { scheme: $scheme, carrier: $carrier }).await;
        }
    )*};
}

carried! {
    memory: "inproc", Carrier::Omq;
    omq_tcp: "tcp", Carrier::Omq;
    omq_ipc: "ipc", Carrier::Omq;
}
#[cfg(feature = "zeromq")]
carried! {
    zeromq_tcp: "tcp", Carrier::Zeromq;
    zeromq_ipc: "ipc", Carrier::Zeromq;
}

#[tokio::test]
async fn binding_where_other_machines_reach_is_refused_unless_insecure_is_said() {
    let server = || Server::builder().service(Probe::default());
    let refused = server()
        .bind("tcp://0.0.0.0:0")
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("insecure"), "{refused}");
    let options = TransportOptions::default().with_insecure(true);
    let bound = server()
        .transport(options)
        .bind("tcp://0.0.0.0:0")
        .await
        .unwrap();
    bound.spawn().shutdown().await;
}
