//! A call that is ready to be made: await it, or say first how it should be made.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use capnp::traits::Owned;
use tokio::time::Instant;

use super::raw::deadline_after;
use super::typed::{built, received};
use super::{CallService, MethodError, RawReply, RawRequest, Response};
use crate::message::{Limits, Link, Msg, Plain};
use crate::schema::{Effect, MethodInfo};
use crate::wire::{Metadata, Reason, RequestId, Status, TraceContext, Work};

/// A call of one method. Nothing is sent before it is awaited.
///
/// Dropping the future that it becomes cancels the call: a reply that comes later is counted and
/// dropped, and no other call is harmed.
#[must_use = "a call is not made before it is awaited"]
#[derive(Debug)]
pub struct Call<S, R, E> {
    service: S,
    request: Result<RawRequest, Status>,
    type_: PhantomData<fn() -> (R, E)>,
}

impl<S: Clone, R, E> Call<S, R, E> {
    /// Builds the parameters in the buffer that is sent; generated clients call this.
    pub fn build<P: Plain>(
        service: &S,
        method: &'static MethodInfo,
        build: impl FnOnce(<P::Capnp as Owned>::Builder<'_>),
    ) -> Self {
        let request = built::<P>(build).map(|body| RawRequest::new(method, body));
        Self::new(service, request.map_err(Status::from))
    }

    /// Takes parameters that are a message already, and sends them as they are; generated clients call this.
    pub fn message<P: Plain>(service: &S, method: &'static MethodInfo, params: &Msg<P>) -> Self {
        Self::new(service, Ok(RawRequest::new(method, params.to_bytes())))
    }

    /// Encodes the parameters; generated clients call this.
    ///
    /// Parameters without an encoding, such as those with a union's member that the schema does not have, fail
    /// the call, not done, when it is awaited.
    pub fn plain<P: Plain>(service: &S, method: &'static MethodInfo, params: &P) -> Self {
        let request = params
            .to_bytes()
            .map(|body| RawRequest::new(method, body))
            .map_err(|error| Status::of_request(error, Work::NotDone));
        Self::new(service, request)
    }

    /// Asks how the call of a request ID ended, without sending it again; generated clients call
    /// this.
    pub fn outcome(service: &S, method: &'static MethodInfo, id: impl Into<RequestId>) -> Self {
        let mut request = RawRequest::new(method, Bytes::new());
        request.id = id.into();
        request.outcome_only = true;
        Self::new(service, Ok(request))
    }

    /// The call that a link stands for, made on a service that has the link's interface.
    ///
    /// Sent at most once where the service is not there to say more: a link does not know whether
    /// its method is `$idempotent`.
    pub fn follow(service: &S, link: &Link<R>) -> Self {
        let method = MethodInfo {
            service: "",
            name: "",
            interface: link.interface,
            ordinal: link.method,
            effect: Effect::Unsafe,
            timeout: None,
            params: 0,
            results: 0,
            fails: None,
        };
        Self::new(
            service,
            Ok(RawRequest::new(&method, link.parameters.clone())),
        )
    }

    fn new(service: &S, request: Result<RawRequest, Status>) -> Self {
        Self {
            service: service.clone(),
            request,
            type_: PhantomData,
        }
    }
}

impl<S, R, E> Call<S, R, E> {
    /// How long to wait for the reply from now, instead of the schema's `$timeout` or the client's default.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.deadline(deadline_after(timeout))
    }

    /// When to give up. Pass on [`Request::deadline`](crate::Request::deadline) to spend no more than the caller's time.
    pub fn deadline(self, deadline: Instant) -> Self {
        self.with(|request| request.deadline = Some(deadline))
    }

    /// The caller's own ID of this call. The same ID again is the same call again.
    pub fn request_id(self, id: impl Into<RequestId>) -> Self {
        let id = id.into();
        self.with(|request| request.id = id)
    }

    /// Waits for the server until the deadline where it is not there, and, where the method is
    /// `$idempotent` or `$once`, sends again when the connection was lost in between.
    ///
    /// Otherwise a call fails at once with `Unavailable`, not done.
    pub fn wait_for_ready(self) -> Self {
        self.with(|request| request.wait_for_ready = true)
    }

    /// What travels beside the parameters.
    pub fn metadata(self, metadata: Metadata) -> Self {
        self.with(|request| request.metadata = metadata)
    }

    /// The trace that this call is part of.
    pub fn trace(self, trace: TraceContext) -> Self {
        self.with(|request| request.trace = Some(Box::new(trace)))
    }

    /// What reading the reply may cost.
    pub fn limits(self, limits: Limits) -> Self {
        self.with(|request| request.limits = limits)
    }

    fn with(mut self, change: impl FnOnce(&mut RawRequest)) -> Self {
        if let Ok(request) = &mut self.request {
            change(request);
        }
        self
    }
}

impl<S: CallService, R: Plain, E: MethodError> IntoFuture for Call<S, R, E> {
    type Output = Result<Response<R>, E>;
    type IntoFuture = CallFuture<S, R, E>;

    fn into_future(self) -> Self::IntoFuture {
        CallFuture {
            state: State::Ready {
                service: self.service,
                request: Some(self.request),
            },
            type_: PhantomData,
        }
    }
}

pin_project_lite::pin_project! {
    /// A call that is being made.
    #[must_use = "futures do nothing unless awaited"]
    pub struct CallFuture<S: tower_service::Service<RawRequest>, R, E> {
        #[pin]
        state: State<S, S::Future>,
        type_: PhantomData<fn() -> (R, E)>,
    }
}

pin_project_lite::pin_project! {
    #[project = StateProjection]
    enum State<S, F> {
        Ready { service: S, request: Option<Result<RawRequest, Status>> },
        Called { #[pin] reply: F, only_asks: bool },
    }
}

impl<S: CallService, R: Plain, E: MethodError> Future for CallFuture<S, R, E> {
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let (reply, only_asks) = match this.state.as_mut().project() {
                StateProjection::Called { reply, only_asks } => {
                    (ready!(reply.poll(cx)), *only_asks)
                }
                StateProjection::Ready { service, request } => match ready!(service.poll_ready(cx))
                {
                    Err(error) => (Err(error), only_asks(request.as_ref())),
                    Ok(()) => match request.take() {
                        Some(Ok(request)) => {
                            let only_asks = request.outcome_only;
                            let reply = service.call(request);
                            this.state.set(State::Called { reply, only_asks });
                            continue;
                        }
                        Some(Err(status)) => return Poll::Ready(Err(status.into())),
                        None => {
                            let status = Status::internal("polled after it was ready");
                            return Poll::Ready(Err(status.into()));
                        }
                    },
                },
            };
            let reply = status_of::<S>(reply).map_err(|status| match only_asks {
                true => of_question(status),
                false => status,
            });
            return Poll::Ready(received(reply));
        }
    }
}

fn only_asks(request: Option<&Result<RawRequest, Status>>) -> bool {
    matches!(request, Some(Ok(request)) if request.outcome_only)
}

/// A question for an outcome that fails says nothing of the work, whatever refused it on its way: only the service
/// that looked it up may say that it was not done.
fn of_question(status: Status) -> Status {
    match (status.work(), status.reason()) {
        (Work::NotDone, Some(Reason::KeyUnknown)) => status,
        (Work::NotDone, _) => status.with_work(Work::OutcomeUnknown),
        _ => status,
    }
}

fn status_of<S: CallService>(reply: Result<RawReply, S::Error>) -> Result<RawReply, Status> {
    reply.map_err(|error| Status::from_error(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Recovery;

    #[tokio::test]
    async fn a_question_that_fails_on_its_way_is_never_told_not_done() {
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
        let refused = Status::unavailable("no server");
        let unknown = Status::not_found("nothing").with_reason(Reason::KeyUnknown);
        for (status, work) in [(refused, Work::OutcomeUnknown), (unknown, Work::NotDone)] {
            let service = tower::service_fn(move |_: RawRequest| {
                std::future::ready(Err::<RawReply, _>(status.clone()))
            });
            let ask: Call<_, String, Status> = Call::outcome(&service, &METHOD, RequestId::new());
            let ended = ask.await.map(|_| ()).expect_err("it is refused");
            assert_eq!(ended.work(), work, "{ended}");
        }
    }
}
