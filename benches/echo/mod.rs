//! A service that answers its body at once, for benches of what goes around a call: its method is
//! there `$idempotent` and `$once`.

use std::task::{Context, Poll};

use bowline::Status;
use bowline::call::{NamedService, Outcome, RawReply, RawRequest, ReplyFuture};
use bowline::message::Plain;
use bowline::schema::{Effect, MethodInfo, Recovery, ServiceInfo};
use bowline_test_schemas::everything::PingParams;
use bytes::Bytes;
use tower::Service;

const fn method(ordinal: u16, effect: Effect) -> MethodInfo {
    MethodInfo {
        service: "echo",
        name: "echo",
        interface: 0xec40,
        ordinal,
        effect,
        timeout: None,
        params: 0,
        results: 0,
        fails: None,
    }
}

static METHODS: [MethodInfo; 2] = [
    method(0, Effect::Idempotent),
    method(1, Effect::Once(Recovery::InDoubt)),
];
pub static IDEMPOTENT: &MethodInfo = &METHODS[0];
#[allow(dead_code, reason = "not every bench has stored replies")]
pub static ONCE: &MethodInfo = &METHODS[1];

#[derive(Clone)]
pub struct Echo;

impl NamedService for Echo {
    const INFO: &'static ServiceInfo = &ServiceInfo {
        name: "echo",
        interface: 0xec40,
        methods: &METHODS,
    };
}

impl Service<RawRequest> for Echo {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        Box::pin(async move { Ok(RawReply::new(Outcome::Success, request.body)) })
    }
}

/// Parameters with a text of so many bytes.
pub fn body(text_bytes: usize) -> Bytes {
    let text = "x".repeat(text_bytes);
    PingParams { text }.to_bytes().expect("it has an encoding")
}
