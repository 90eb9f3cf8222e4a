//! Where calls meet stored outcomes: a tower layer, and what a server puts around its services.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::attempt::keeps_no_outcomes;
use super::driver::Handler;
use super::{Once, OnceError, Store};
use crate::call::{CallService, RawReply, RawRequest, ReplyFuture, Route};
use crate::schema::{Effect, MethodInfo};
use crate::security::Principal;
use crate::wire::Status;

/// Callers whom no key proves are all the same one.
const ANONYMOUS: &str = "";

/// A server has this around its services already. For a service in the same process, or in a stack of one's own.
impl<S: Store, Inner> Layer<Inner> for Once<S> {
    type Service = OnceService<S, Inner>;

    fn layer(&self, inner: Inner) -> Self::Service {
        OnceService {
            once: self.clone(),
            inner,
        }
    }
}

/// A service whose `$once` methods are run at most once for each request ID.
#[derive(Debug)]
pub struct OnceService<S: Store, Inner> {
    once: Once<S>,
    inner: Inner,
}

impl<S: Store, Inner: Clone> Clone for OnceService<S, Inner> {
    fn clone(&self) -> Self {
        Self {
            once: self.once.clone(),
            inner: self.inner.clone(),
        }
    }
}

impl<S, Inner> Service<RawRequest> for OnceService<S, Inner>
where
    S: Store,
    Inner: CallService + 'static,
{
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let ready = self.inner.poll_ready(cx);
        ready.map_err(|error| Status::from_error(error.into()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        // The one that is ready is called, and its clone is kept.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let work = move |request| -> ReplyFuture {
            let reply = inner.call(request);
            Box::pin(async move { reply.await.map_err(|e| Status::from_error(e.into())) })
        };
        // Nothing is claimed before somebody waits for it.
        let once = self.once.clone();
        Box::pin(async move { answer(&once, request, work).await })
    }
}

fn answer<S: Store>(once: &Once<S>, request: RawRequest, work: impl Handler) -> ReplyFuture {
    match request.effect {
        Effect::Once(recovery) => {
            let principal = request.principal.clone();
            let principal = principal.as_ref().map_or(ANONYMOUS, Principal::as_str);
            once.answer(principal, request, recovery, work)
        }
        _ if request.outcome_only => Box::pin(std::future::ready(Err(keeps_no_outcomes()))),
        _ => work.call(request),
    }
}

/// Copied only where it has to wait for the store.
struct OfRoute<'a>(&'a Route);

impl Handler for OfRoute<'_> {
    fn call(self, request: RawRequest) -> ReplyFuture {
        self.0.call(request)
    }

    fn keep(self) -> Box<dyn FnOnce(RawRequest) -> ReplyFuture + Send> {
        let route = self.0.clone();
        Box::new(move |request| route.call(request))
    }
}

/// What a server knows of the [`Once`] that it has, whatever its store.
pub(crate) trait Keeper: Send + Sync + std::fmt::Debug {
    /// The route, with this around it.
    fn wrap(&self, route: Route) -> Route;

    /// Whether a method may be kept on these terms.
    fn check(&self, method: &MethodInfo) -> Result<(), OnceError>;

    /// Waits until nothing runs; ends what does when the time is up.
    fn drain(&self, until: Instant) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

impl<S: Store> Keeper for Once<S> {
    fn wrap(&self, route: Route) -> Route {
        let once = self.clone();
        Route::new(move |request| answer(&once, request, OfRoute(&route)))
    }

    fn check(&self, method: &MethodInfo) -> Result<(), OnceError> {
        self.check(method)
    }

    fn drain(&self, until: Instant) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.drain(until))
    }
}
