//! One suite over all transports: what calls may expect, whatever carries them.
//!
//! Differences between the transports are in `tests/differences.rs`, listed in docs/transports.md.

mod common;
#[path = "common/wire.rs"]
mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bowline::call::RawRequest;
use bowline::{
    Carrier, Client, Code, Limits, Reason, Server, ServerBuilder, ServerHandle, TransportOptions,
    Work,
};
use bytes::Bytes;
use common::{
    ECHO, FAIL_LONG, HANG, LARGE, PANIC, PANIC_LATER, Probe, SLEEP, SPIN, call, milliseconds, send,
};
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

#[path = "transports/calls.rs"]
mod calls;
#[path = "transports/closing.rs"]
mod closing;
#[path = "transports/endings.rs"]
mod endings;
#[path = "transports/endpoints.rs"]
mod endpoints;
#[path = "transports/envelopes.rs"]
mod envelopes;
#[path = "transports/sends.rs"]
mod sends;
#[path = "transports/stalled.rs"]
mod stalled;

mod suite {
    pub use crate::calls::*;
    pub use crate::closing::*;
    pub use crate::endings::*;
    pub use crate::endpoints::*;
    pub use crate::envelopes::*;
    pub use crate::sends::*;
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
                a_dropped_call_ends_its_handler_and_harms_no_other
                the_first_call_of_a_connection_can_be_cancelled_too
                a_request_over_the_servers_limit_is_refused_before_it_is_sent
                a_client_learns_a_smaller_limit_from_the_first_reply
                a_large_first_request_to_a_smaller_server_ends_no_connection
                a_reply_over_the_clients_limit_becomes_a_status_and_harms_no_other
                a_status_with_a_long_message_arrives_cut_to_its_limit
                a_handler_that_computes_holds_up_no_other_call
                a_call_ends_by_its_deadline
                a_handler_that_panics_is_answered_and_the_service_goes_on
                unknown_interfaces_and_methods_are_refused
                one_request_too_many_is_refused_and_not_done
                a_call_over_the_clients_own_limit_is_refused
                a_draining_server_finishes_what_it_has_and_refuses_what_is_new
                a_drain_has_an_end
                a_server_that_goes_says_so_first_and_lets_nobody_new_in
                a_client_that_does_not_read_holds_up_no_other_and_not_the_exit
                a_client_that_vanishes_leaves_the_others_alone
                a_closed_client_ends_its_calls
                a_client_that_cannot_send_what_it_has_closes_within_its_linger_time
                a_server_that_cannot_send_what_it_has_closes_within_its_linger_time
                a_publisher_that_cannot_send_what_it_has_closes_within_its_linger_time
                a_call_that_is_dropped_while_its_send_is_blocked_is_not_sent_twice
                an_endpoint_in_use_cannot_be_bound_and_can_be_once_it_is_free
                what_a_lost_connection_had_not_sent_is_not_sent_to_the_next
                the_envelope_of_a_request_comes_back_in_front_of_its_reply
                an_envelope_over_its_limit_is_answered_as_malformed
                callers_behind_one_connection_cancel_their_own_calls
                a_call_without_a_server_says_why
                an_ipc_socket_is_private_unless_another_mode_is_set
                a_socket_file_that_no_process_listens_on_is_taken_over
                a_client_is_back_when_its_server_is_bound_again_in_the_process
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

#[tokio::test]
async fn all_addresses_are_those_of_ipv4_and_ipv6() {
    let options = TransportOptions::default().with_insecure(true);
    let server = Server::builder()
        .service(Probe::default())
        .transport(options)
        .bind("tcp://*:0")
        .await
        .unwrap()
        .spawn();
    let endpoint = server.endpoint().to_string();
    let port = endpoint.strip_prefix("tcp://*:").expect("as it was given");
    let has_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    let hosts = ["127.0.0.1", "*", "[::1]"];
    for host in &hosts[..if has_ipv6 { 3 } else { 2 }] {
        let client = Client::connect(format!("tcp://{host}:{port}"))
            .await
            .unwrap();
        assert_eq!(call(&client, &ECHO, "x").await.unwrap(), "x", "{host}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_bound_or_connected_is_refused_with_a_reason() {
    let bind = |endpoint: &'static str| Server::builder().service(Probe::default()).bind(endpoint);
    // A network interface is not a host name.
    let refused = bind("tcp://lo:0").await.unwrap_err().to_string();
    assert!(refused.contains("network interfaces"), "{refused}");
    // A name is local where all its addresses are.
    bind("tcp://localhost:0")
        .await
        .unwrap()
        .spawn()
        .shutdown()
        .await;
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        bind("tcp://[::1%lo]:0")
            .await
            .unwrap()
            .spawn()
            .shutdown()
            .await;
    }
    for carrier in CARRIERS {
        let options = TransportOptions::default().with_carrier(*carrier);
        let client = Client::builder().transport(options.clone());
        let refused = client.connect("tcp://127.0.0.1:0").await.unwrap_err();
        assert!(refused.to_string().contains("port 0"), "{refused}");
        let subscriber = bowline::Subscriber::<()>::builder().transport(options);
        let refused = subscriber
            .connect::<bowline_test_schemas::everything::Sample>("tcp://127.0.0.1:0")
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("port 0"), "{refused}");
    }
}

const CARRIERS: &[Carrier] = &[
    Carrier::Omq,
    #[cfg(feature = "zeromq")]
    Carrier::Zeromq,
];
