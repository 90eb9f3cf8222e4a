//! What annotations make of a service: generated, and put into a stack by hand. And what no server
//! starts with, because it could not keep it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bowline::call::{BindError, CallService};
use bowline::once::{MemoryStore, Once, OnceError, RedbStore};
use bowline::{Client, Failure, Reason, Reply, Request, RequestKey, Server, Status, Work};
use bowline_test_once::counter::{
    AddAgainParams, AddAgainResults, AddParams, AddResults, Counter, CounterClient, CounterServer,
    LedgerServer, Refused, TotalParams, TotalResults,
};
use bowline_test_once::{Counts, Stop};
use tower::Layer;

#[derive(Clone, Default)]
struct InMemory(Arc<AtomicI64>);

impl Counter for InMemory {
    async fn add(
        &self,
        request: Request<AddParams>,
    ) -> Result<Reply<AddResults>, Failure<Refused>> {
        let by = request.plain()?.by;
        if by < 0 {
            // It has an effect, so that one sees whether it was run again.
            self.0.fetch_add(1000, Ordering::Relaxed);
            let reason = "counts only go up".to_owned();
            return Err(Refused { reason }.into());
        }
        let total = self.0.fetch_add(by, Ordering::Relaxed) + by;
        Ok(AddResults { total }.into())
    }

    async fn add_again(
        &self,
        request: Request<AddAgainParams>,
    ) -> Result<Reply<AddAgainResults>, Status> {
        let by = request.plain()?.by;
        let total = self.0.fetch_add(by, Ordering::Relaxed) + by;
        // Nobody knows: it may be run again.
        if total == by {
            return Err(Status::internal("after the effect"));
        }
        Ok(AddAgainResults { total }.into())
    }

    async fn total(&self, _: Request<TotalParams>) -> Result<Reply<TotalResults>, Status> {
        let total = self.0.load(Ordering::Relaxed);
        Ok(TotalResults { total }.into())
    }
}

/// A service that must not count twice, whatever is between it and its caller.
async fn counts_once<S>(client: CounterClient<S>)
where
    S: CallService + 'static,
{
    let key = |name: &'static str| RequestKey::new(name).expect("short");
    for replayed in [false, true] {
        let call = client.add(|mut params| params.set_by(3));
        let reply = call.request_id(key("three")).await.expect("counted");
        assert_eq!(reply.is_replayed(), replayed);
        assert_eq!(reply.get().expect("a reply").get_total(), 3);
    }
    // The method's own error is an outcome, and the attempt that had it is not made again.
    for _ in 0..2 {
        let call = client.add(|mut params| params.set_by(-1));
        let refused = call.request_id(key("down")).await;
        assert!(
            matches!(refused, Err(Failure::Application(_))),
            "{refused:?}"
        );
    }
    let total = client.total(|_| {}).await.expect("a total");
    assert_eq!(total.get().expect("a reply").get_total(), 1003);
    let other = client.add(|mut params| params.set_by(4));
    let reused = other.request_id(key("three")).await;
    match reused {
        Err(Failure::Status(status)) => {
            assert_eq!(status.reason(), Some(Reason::KeyReused));
            assert_eq!(status.work(), Work::NotDone);
        }
        other => panic!("{other:?}"),
    }
    let outcome = client.add_outcome(key("three")).await.expect("recorded");
    assert_eq!(outcome.get().expect("a reply").get_total(), 3);
}

#[tokio::test]
async fn a_generated_server_keeps_outcomes_without_being_told_to() {
    let server = Server::builder().service(CounterServer::new(InMemory::default()));
    let server = server.bind("inproc://annotations").await.expect("it binds");
    let server = server.spawn();
    let client = Client::connect("inproc://annotations").await;
    counts_once(CounterClient::new(client.expect("there"))).await;
    server.shutdown().await;
}

#[tokio::test]
async fn the_same_layer_does_it_for_a_service_in_a_stack_of_ones_own() {
    let once = Once::builder()
        .build(MemoryStore::new())
        .expect("good terms");
    let service = once.layer(CounterServer::new(InMemory::default()));
    counts_once(CounterClient::new(service)).await;
}

#[tokio::test]
async fn a_handler_whose_end_nobody_knows_is_in_doubt_or_run_again_as_annotated() {
    let once = Once::builder()
        .build(MemoryStore::new())
        .expect("good terms");
    let service = once.layer(CounterServer::new(InMemory::default()));
    let client = CounterClient::new(service);
    let again = || {
        let call = client.add_again(|mut params| params.set_by(1));
        call.request_id(RequestKey::new("again").expect("short"))
    };
    assert_eq!(again().await.unwrap_err().work(), Work::OutcomeUnknown);
    let reply = again().await.expect("it may be run again");
    assert_eq!(reply.get().expect("a reply").get_total(), 2);
}

#[tokio::test]
async fn a_server_does_not_start_with_a_method_that_it_could_not_keep_the_promise_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let counts = Counts {
        file: folder.path().join("counts"),
        table: String::new(),
        stop: Stop(None),
    };
    // Its effects cannot commit with their records.
    let server = Server::builder().service(LedgerServer::new(counts.clone()));
    let refused = server.bind("inproc://no-transactions").await;
    assert!(
        matches!(
            refused,
            Err(BindError::Once(OnceError::NoTransactions { .. }))
        ),
        "{refused:?}"
    );
    let store = RedbStore::open(folder.path().join("outcomes")).expect("opened");
    let once = Once::builder().build(store).expect("good terms");
    let server = Server::builder()
        .service(LedgerServer::new(counts))
        .once(once);
    let bound = server.bind("inproc://transactions").await;
    drop(bound.expect("with redb they can"));

    // A retry could come when its outcome is forgotten: the schema lets its caller wait for 5 s.
    for (retention, starts) in [(9_999, false), (10_000, true)] {
        let once = Once::builder()
            .retention(Duration::from_millis(retention))
            .retry_horizon(Duration::from_secs(1))
            .clock_skew_max(Duration::ZERO)
            .build(MemoryStore::new())
            .expect("good terms by themselves");
        let server = Server::builder().service(CounterServer::new(InMemory::default()));
        let server = server.once(once).bind("inproc://retention").await;
        match server {
            Ok(_) => assert!(starts),
            Err(BindError::Once(OnceError::RetentionTooShort { horizon, .. })) => {
                assert_eq!((horizon, starts), (Duration::from_secs(5), false));
            }
            Err(other) => panic!("{other}"),
        }
    }
}
