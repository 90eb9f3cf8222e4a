//! What is called: anything that takes a raw request and gives a raw reply.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tower_service::Service;

use super::{RawReply, RawRequest};
use crate::schema::ServiceInfo;
use crate::security::QueueRight;
use crate::wire::Status;

/// The future of a generated server.
pub type ReplyFuture = Pin<Box<dyn Future<Output = Result<RawReply, Status>> + Send>>;

/// What a generated client can be put on: a [`Client`](crate::Client), a tower stack over one, or
/// a generated server in the same process.
pub trait CallService:
    Service<
        RawRequest,
        Response = RawReply,
        Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        Future: Send,
    > + Clone
    + Send
{
}

impl<S> CallService for S where
    S: Service<
            RawRequest,
            Response = RawReply,
            Error: Into<Box<dyn std::error::Error + Send + Sync>>,
            Future: Send,
        > + Clone
        + Send
{
}

/// What a generated server says about itself.
pub trait NamedService {
    /// Its interface and methods.
    const INFO: &'static ServiceInfo;

    /// The queue that a request is about, and the rights any of which is enough for it, where the service is one of
    /// queues. An [`AccessList`](crate::security::AccessList) is then asked for these instead of the method.
    ///
    /// # Errors
    /// For a request that does not say; it is answered with this.
    fn queue_of(request: &RawRequest) -> Result<Option<QueueAccess>, Status> {
        let _ = request;
        Ok(None)
    }

    /// Ends what only waits for something to happen: a server of this service is shutting down. Calls that are refused
    /// or answered now need not be waited for.
    fn drain(&self) {}

    /// The names of its queues, where the service is one of queues: access rules for others are logged.
    fn queue_names(&self) -> Option<Vec<String>> {
        None
    }
}

/// A queue, and the rights any of which is enough.
pub type QueueAccess = (String, &'static [QueueRight]);

/// One service of a [`Server`](crate::Server), as the layers around it see it.
#[derive(Clone)]
pub struct Route(Arc<dyn Fn(RawRequest) -> ReplyFuture + Send + Sync>);

impl Route {
    pub(super) fn direct<S>(service: S) -> Self
    where
        S: Service<RawRequest, Response = RawReply, Error = Status, Future = ReplyFuture>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        Self(Arc::new(move |request| {
            let mut service = service.clone();
            match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => service.call(request),
                _ => boxed(service, request),
            }
        }))
    }

    pub(crate) fn new(call: impl Fn(RawRequest) -> ReplyFuture + Send + Sync + 'static) -> Self {
        Self(Arc::new(call))
    }

    pub(crate) fn call(&self, request: RawRequest) -> ReplyFuture {
        (self.0)(request)
    }

    pub(super) fn layered<S>(service: S) -> Self
    where
        S: CallService + Sync + 'static,
    {
        Self(Arc::new(move |request| boxed(service.clone(), request)))
    }
}

fn boxed<S: CallService + 'static>(mut service: S, request: RawRequest) -> ReplyFuture {
    Box::pin(async move {
        let status = |error: S::Error| Status::from_error(error.into());
        std::future::poll_fn(|cx| service.poll_ready(cx))
            .await
            .map_err(status)?;
        service.call(request).await.map_err(status)
    })
}

impl Service<RawRequest> for Route {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        Self::call(self, request)
    }
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Route")
    }
}
