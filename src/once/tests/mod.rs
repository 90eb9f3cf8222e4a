//! Attempts against a store in memory, and one that fails when it is told to; records against a model.

mod bounds;
mod duplicates;
mod full;
mod gone;
mod live;
mod outcomes;
mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::call::{Outcome, RawReply, RawRequest, ReplyFuture};
use crate::schema::{Effect, MethodInfo, Recovery};
use crate::wire::{Code, Metadata, Reason, RequestId, RequestKey, Status, Work};

const HOUR: Duration = Duration::from_secs(3600);

fn id(text: &str) -> RequestId {
    RequestKey::new(text.to_owned()).expect("short").into()
}

fn body(text: &str) -> Bytes {
    use crate::message::Plain;
    text.to_owned().to_bytes().expect("it has an encoding")
}

fn request(id: RequestId, text: &str) -> RawRequest {
    static METHOD: MethodInfo = MethodInfo {
        service: "test",
        name: "test",
        interface: 1,
        ordinal: 2,
        effect: Effect::Once(Recovery::InDoubt),
        timeout: None,
        params: 0,
        results: 0,
        fails: None,
    };
    let mut request = RawRequest::new(&METHOD, body(text));
    request.id = id;
    request
}

fn reply(text: &str) -> RawReply {
    RawReply::new(Outcome::Success, Bytes::from(text.to_owned()))
}

/// Work that takes so many seconds.
async fn takes(seconds: u64, text: &'static str) -> Result<RawReply, Status> {
    sleep(Duration::from_secs(seconds)).await;
    Ok(reply(text))
}

fn once() -> Once {
    Once::builder()
        .build(MemoryStore::new())
        .expect("good terms")
}

/// Calls with a handler that counts and answers at once.
async fn call<S: Store>(
    once: &Once<S>,
    request: RawRequest,
    count: &Arc<AtomicU64>,
    ended: Result<RawReply, Status>,
) -> Result<RawReply, Status> {
    call_with(
        once,
        request,
        Recovery::InDoubt,
        count,
        async move { ended },
    )
    .await
}

async fn call_with<S: Store>(
    once: &Once<S>,
    request: RawRequest,
    recovery: Recovery,
    count: &Arc<AtomicU64>,
    ended: impl Future<Output = Result<RawReply, Status>> + Send + 'static,
) -> Result<RawReply, Status> {
    let count = Arc::clone(count);
    let work = move |_| -> ReplyFuture {
        count.fetch_add(1, Ordering::Relaxed);
        Box::pin(ended)
    };
    once.answer("", request, recovery, work).await
}

fn reason(ended: &Result<RawReply, Status>) -> Option<Reason> {
    ended.as_ref().err().and_then(Status::reason)
}
