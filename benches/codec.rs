//! Messages without sockets: building and opening header and body, and plain structs both ways.
//!
//! "call, in process" is the whole path of a call but the socket: build, dispatch, build, open.

use std::hint::black_box;
use std::task::{Context, Poll, Waker};

use bowline::call::{CallService, RawReply, RawRequest, ReplyFuture};
use bowline::message::{Msg, Plain};
use bowline::{Limits, Reply, Request, Status};
use bowline_test_schemas::everything::{
    BASE_SERVICE, Base, BaseClient, BaseServer, Lists, Numbers, PingParams, PingResults,
};
use bowline_test_schemas::everything_capnp::base;
use criterion::{Criterion, criterion_group, criterion_main};
use tower::Service;

struct Echo;

impl Base for Echo {
    async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
        let text = request.get()?.get_text()?;
        Ok(Reply::<PingResults>::build(|mut results| {
            results.set_text(text)
        }))
    }
}

fn lists(n: usize) -> Lists {
    Lists {
        numbers: (0..n as i32).collect(),
        texts: (0..n).map(|i| format!("number {i}")).collect(),
        structs: vec![Numbers::default(); n],
        ..Lists::default()
    }
}

/// Polls what is ready at once.
fn now<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("nothing in here waits"),
    }
}

/// Takes the request and answers what it was given before: the client's own cost.
#[derive(Clone)]
struct Canned(bytes::Bytes);

impl Service<RawRequest> for Canned {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        black_box(request);
        let body = self.0.clone();
        let outcome = bowline::call::Outcome::Success;
        Box::pin(std::future::ready(Ok(RawReply::new(outcome, body))))
    }
}

fn ping<S: CallService>(client: &BaseClient<S>) -> usize {
    let reply = now(client.ping(|mut p| p.set_text("hello")).into_future()).unwrap();
    reply.get().unwrap().get_text().unwrap().len()
}

fn codec(criterion: &mut Criterion) {
    let limits = Limits::default();
    let small = PingParams {
        text: "hello".into(),
    };
    let small_bytes = small.to_bytes().unwrap();

    let mut group = criterion.benchmark_group("small message");
    group.bench_function("build in place", |b| {
        b.iter(|| Reply::<PingParams>::build(|mut p| p.set_text(black_box("hello"))));
    });
    group.bench_function("build, capnp's own way", |b| {
        b.iter(|| {
            let mut message = bowline::__private::capnp::message::Builder::new_default();
            let mut root = message.init_root::<base::ping_params::Builder<'_>>();
            root.set_text(black_box("hello"));
            bowline::__private::capnp::serialize::write_message_to_words(&message)
        });
    });
    group.bench_function("open and read", |b| {
        b.iter(|| {
            let message =
                Msg::<PingParams>::open(black_box(&small_bytes).clone(), &limits).unwrap();
            message.get().unwrap().get_text().unwrap().len()
        });
    });
    group.bench_function("plain struct to bytes", |b| {
        b.iter(|| black_box(&small).to_bytes().unwrap())
    });
    group.bench_function("bytes to plain struct", |b| {
        b.iter(|| {
            let message = Msg::<PingParams>::open(black_box(&small_bytes).clone(), &limits);
            message.unwrap().plain().unwrap()
        });
    });
    group.finish();

    let request = RawRequest::new(&BASE_SERVICE.methods[0], small_bytes.clone());
    let header = bowline::__measured::build_header(&request);
    // As it arrives: behind other bytes, not at a multiple of eight.
    let arrived = bytes::Bytes::from([&[0; 3][..], &header].concat()).slice(3..);
    let arrived_body = bytes::Bytes::from([&[0; 3][..], &small_bytes].concat()).slice(3..);
    let mut group = criterion.benchmark_group("header and body");
    group.bench_function("build", |b| {
        b.iter(|| {
            let body = Reply::<PingParams>::build(|mut p| p.set_text(black_box("hello")));
            (bowline::__measured::build_header(black_box(&request)), body)
        });
    });
    group.bench_function("open, as they arrive", |b| {
        b.iter(|| {
            let method = bowline::__measured::open_header(black_box(&arrived)).unwrap();
            let body = Msg::<PingParams>::open(black_box(&arrived_body).clone(), &limits).unwrap();
            (method, body.get().unwrap().get_text().unwrap().len())
        });
    });
    group.finish();

    let large = lists(100);
    let large_bytes = large.to_bytes().unwrap();
    let mut group = criterion.benchmark_group("100 numbers, texts and structs");
    group.bench_function("plain struct to bytes", |b| {
        b.iter(|| black_box(&large).to_bytes().unwrap())
    });
    group.bench_function("bytes to plain struct", |b| {
        b.iter(|| {
            let message = Msg::<Lists>::open(black_box(&large_bytes).clone(), &limits);
            message.unwrap().plain().unwrap()
        });
    });
    group.bench_function("open and read one", |b| {
        b.iter(|| {
            let message = Msg::<Lists>::open(black_box(&large_bytes).clone(), &limits).unwrap();
            message
                .get()
                .unwrap()
                .get_texts()
                .unwrap()
                .get(50)
                .unwrap()
                .len()
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("call, in process");
    let in_process = BaseClient::new(BaseServer::new(Echo));
    group.bench_function("client and server", |b| b.iter(|| ping(&in_process)));
    let canned = BaseClient::new(Canned(small_bytes.clone()));
    group.bench_function("client alone", |b| b.iter(|| ping(&canned)));
    let mut server = BaseServer::new(Echo);
    let request = RawRequest::new(&BASE_SERVICE.methods[0], small_bytes);
    group.bench_function("server alone", |b| {
        b.iter(|| now(server.call(request.clone())).unwrap())
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
