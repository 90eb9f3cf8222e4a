//! Which of several endpoints a call goes to.
//!
//! Two are picked at random, and the one with fewer calls in flight takes it ("power of two
//! choices", Mitzenmacher 2001): as good as asking all, without all clients running to the same
//! idle one. A retry goes to an endpoint that the call has not been to. An endpoint that keeps
//! failing is left out, but never more than half of them: when most fail, the fault lies elsewhere,
//! and the rest would drown. Those beyond the half are asked although they fail.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::time::Instant;
use tower_service::Service;

use super::breaker::{Breaker, BreakerPolicy, is_failure};
use crate::call::{CallService, RawReply, RawRequest};
use crate::wire::{Reason, Status};

/// One service over several that do the same. Cheap to clone; clones share what they know.
#[derive(Clone, Debug)]
pub struct Balance<S> {
    members: Arc<Vec<Arc<Member<S>>>>,
    /// Where the list begins when it is asked who is left out: elsewhere in each client, so that not all of
    /// them leave out the same ones.
    first: usize,
}

#[derive(Debug)]
struct Member<S> {
    service: S,
    in_flight: AtomicUsize,
    breaker: Option<Mutex<Breaker>>,
}

impl<S> Member<S> {
    fn breaker(&self) -> Option<MutexGuard<'_, Breaker>> {
        let breaker = self.breaker.as_ref()?;
        Some(breaker.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_open(&self, now: Instant) -> bool {
        self.breaker().is_some_and(|breaker| breaker.is_open(now))
    }
}

impl<S> Balance<S> {
    /// Over these services; without breakers, none is ever left out.
    pub fn new(
        services: impl IntoIterator<Item = S>,
        breaker: impl Into<Option<BreakerPolicy>>,
    ) -> Self {
        let breaker = breaker.into();
        let member = |service| {
            Arc::new(Member {
                service,
                in_flight: AtomicUsize::new(0),
                breaker: breaker.map(|policy| Mutex::new(Breaker::new(policy))),
            })
        };
        let members: Vec<_> = services.into_iter().map(member).collect();
        let first = fastrand::usize(..members.len().max(1));
        let members = Arc::new(members);
        Self { members, first }
    }

    /// How many are left out now.
    pub fn ejected(&self) -> usize {
        let now = Instant::now();
        let open = self.members.iter().filter(|member| member.is_open(now));
        open.take(ejected_max(self.members.len())).count()
    }

    /// Tells who is left out: of those that keep failing, as many as may be.
    fn left_out(&self, now: Instant) -> impl Fn(usize) -> bool {
        let members = &self.members[..];
        let (count, first) = (members.len(), self.first);
        let open = (0..count).filter(move |nth| members[(first + nth) % count].is_open(now));
        let last = open.take(ejected_max(count)).last();
        move |index: usize| {
            let nth = (index + count - first) % count;
            last.is_some_and(|last| nth <= last) && members[index].is_open(now)
        }
    }

    /// Picks one, and says which.
    fn pick(&self, tried: u64, now: Instant) -> Result<usize, Status> {
        let members = &self.members[..];
        match members {
            [] => return Err(Status::unavailable("there are no endpoints")),
            // With nowhere else to go, an open breaker refuses.
            [only] if only.is_open(now) => return Err(circuit_open()),
            [_] => return Ok(0),
            _ => {}
        }
        let untried = |index: usize| index >= 64 || tried & (1 << index) == 0;
        let left_out = self.left_out(now);
        let kept = |index: usize| !left_out(index);
        let works = |index: usize| kept(index) && !members[index].is_open(now);
        // One that is new to this call, of those that are not left out; where none of these works, one that is
        // new at all, which may be well again; then one that it has been to.
        let best = pick_two(members.len(), |index| untried(index) && kept(index))
            .or_else(|| match (0..members.len()).any(works) {
                true => None,
                false => pick_two(members.len(), untried),
            })
            .or_else(|| pick_two(members.len(), kept))
            .or_else(|| pick_two(members.len(), |_| true));
        let (a, b) = best.ok_or_else(|| Status::unavailable("there are no endpoints"))?;
        let load = |index: usize| members[index].in_flight.load(Ordering::Relaxed);
        Ok(if load(b) < load(a) { b } else { a })
    }
}

/// Most that are left out of `members`.
fn ejected_max(members: usize) -> usize {
    match members {
        1 => 1,
        members => members / 2,
    }
}

/// Two at random of those that will do, which may be the same.
fn pick_two(count: usize, will_do: impl Fn(usize) -> bool) -> Option<(usize, usize)> {
    let able = (0..count).filter(|index| will_do(*index)).count();
    if able == 0 {
        return None;
    }
    let nth = |n| (0..count).filter(|index| will_do(*index)).nth(n);
    let first = fastrand::usize(..able);
    let second = match able {
        1 => first,
        able => (first + fastrand::usize(1..able)) % able,
    };
    Some((nth(first)?, nth(second)?))
}

fn circuit_open() -> Status {
    Status::unavailable("the endpoint keeps failing, and is left alone for a while")
        .with_reason(Reason::CircuitOpen)
}

impl<S: CallService + Sync> Service<RawRequest> for Balance<S> {
    type Response = RawReply;
    type Error = Status;
    type Future = BalanceFuture<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> BalanceFuture<S> {
        let now = Instant::now();
        let tried = request.tried.clone();
        let bits = tried
            .as_ref()
            .map_or(0, |tried| tried.load(Ordering::Relaxed));
        let state = match self.pick(bits, now) {
            Err(status) => State::Refused {
                status: Some(status),
            },
            Ok(index) => {
                if let Some(tried) = tried.filter(|_| index < 64) {
                    tried.fetch_or(1 << index, Ordering::Relaxed);
                }
                let member = Arc::clone(&self.members[index]);
                if let Some(mut breaker) = member.breaker() {
                    breaker.enter(now);
                }
                member.in_flight.fetch_add(1, Ordering::Relaxed);
                let service = member.service.clone();
                State::Waiting {
                    service,
                    request: Some(request),
                    in_flight: Some(InFlight(member)),
                }
            }
        };
        BalanceFuture { state }
    }
}

/// Counts a call of a member while it lives.
#[derive(Debug)]
struct InFlight<S>(Arc<Member<S>>);

impl<S> Drop for InFlight<S> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

pin_project_lite::pin_project! {
    /// A call on its way to one of several endpoints.
    #[must_use = "futures do nothing unless awaited"]
    pub struct BalanceFuture<S: Service<RawRequest>> {
        #[pin]
        state: State<S, S::Future>,
    }
}

pin_project_lite::pin_project! {
    #[project = StateProjection]
    enum State<S, F> {
        Refused { status: Option<Status> },
        Waiting { service: S, request: Option<RawRequest>, in_flight: Option<InFlight<S>> },
        Called { #[pin] reply: F, in_flight: InFlight<S> },
    }
}

impl<S: CallService> Future for BalanceFuture<S> {
    type Output = Result<RawReply, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled_again = || Status::internal("polled after it was ready");
        let status = |error: S::Error| Status::from_error(error.into());
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProjection::Refused { status } => {
                    return Poll::Ready(Err(status.take().unwrap_or_else(polled_again)));
                }
                StateProjection::Waiting {
                    service,
                    request,
                    in_flight,
                } => {
                    ready!(service.poll_ready(cx)).map_err(status)?;
                    let (Some(request), Some(in_flight)) = (request.take(), in_flight.take())
                    else {
                        return Poll::Ready(Err(polled_again()));
                    };
                    let reply = service.call(request);
                    this.state.set(State::Called { reply, in_flight });
                }
                StateProjection::Called { reply, in_flight } => {
                    let ended = ready!(reply.poll(cx)).map_err(status);
                    if let Some(mut breaker) = in_flight.0.breaker() {
                        let failed = ended.as_ref().is_err_and(is_failure);
                        breaker.ended(Instant::now(), failed);
                    }
                    this.state.set(State::Refused { status: None });
                    return Poll::Ready(ended);
                }
            }
        }
    }
}
