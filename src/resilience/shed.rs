//! A door for a service: so many at once, a few more wait a moment, the rest are told to come back.
//!
//! For servers. A service that takes on more than it can do answers everything late, which is as
//! good as not at all; one that refuses at once does what it can do, and tells the others when to
//! try again.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tower_layer::Layer;
use tower_service::Service;

use super::limit::{AdaptivePolicy, Limit, Limiter};
use super::retry::call_once;
use crate::call::{CallService, RawReply, RawRequest, ReplyFuture, watched};
use crate::schema::MethodInfo;
use crate::wire::{Reason, Status, Work};

/// Sheds load: a layer for a [`ServerBuilder`](crate::ServerBuilder::layer).
///
/// ```
/// use bowline::Server;
/// use bowline::resilience::{Limit, ShedLayer};
///
/// let server = Server::builder().layer(ShedLayer::new(Limit::Fixed(64)));
/// ```
///
/// The services that it is put around share it. A call that is [parked](crate::call::park) does not count as running,
/// and how long it takes says nothing about the load.
#[derive(Clone, Debug)]
pub struct ShedLayer {
    door: Arc<Door>,
    /// Doors of single methods, inside.
    bulkheads: Arc<Vec<(u64, u16, Arc<Door>)>>,
}

#[derive(Debug)]
struct Door {
    state: Mutex<State>,
    waiting_max: usize,
    wait_max: Duration,
}

#[derive(Debug)]
struct State {
    limiter: Limiter,
    running: usize,
    /// The first to come is the first to go in.
    waiting: VecDeque<oneshot::Sender<Inside>>,
    /// Mean time of a call, in seconds, for saying when to come back.
    mean: f64,
}

impl Default for ShedLayer {
    /// An adaptive limit.
    fn default() -> Self {
        Self::new(Limit::Adaptive(AdaptivePolicy::default()))
    }
}

impl ShedLayer {
    /// How long a request may wait to go in, unless set: long enough for a burst, short enough
    /// that one which is refused is told so at once.
    pub const WAIT_MAX_DEFAULT: Duration = Duration::from_millis(5);

    /// With this limit. As many may wait as may run, for up to 5 ms.
    pub fn new(limit: Limit) -> Self {
        let waiting = Limiter::new(limit).current();
        Self::with_queue(limit, waiting, Self::WAIT_MAX_DEFAULT)
    }

    /// The same, with so many that may wait so long.
    pub fn with_queue(limit: Limit, waiting_max: usize, wait_max: Duration) -> Self {
        Self {
            door: Door::new(limit, waiting_max, wait_max),
            bulkheads: Arc::default(),
        }
    }

    /// Lets at most so many requests of one method in, so that a slow one leaves room for the others.
    pub fn bulkhead(mut self, method: &MethodInfo, limit: Limit) -> Self {
        let waiting = Limiter::new(limit).current();
        let door = Door::new(limit, waiting, Self::WAIT_MAX_DEFAULT);
        let mut bulkheads = (*self.bulkheads).clone();
        bulkheads.push((method.interface, method.ordinal, door));
        self.bulkheads = Arc::new(bulkheads);
        self
    }

    /// How many may run now.
    pub fn limit(&self) -> usize {
        self.door.lock().limiter.current()
    }
}

impl Door {
    fn new(limit: Limit, waiting_max: usize, wait_max: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                limiter: Limiter::new(limit),
                running: 0,
                waiting: VecDeque::new(),
                mean: 0.001,
            }),
            waiting_max,
            wait_max,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes in, or waits a moment to.
    async fn enter(self: &Arc<Self>, deadline: Option<Instant>) -> Result<Inside, Status> {
        let receiver = {
            let mut state = self.lock();
            if state.running < state.limiter.current() && state.waiting.is_empty() {
                state.running += 1;
                return Ok(Inside::new(self));
            }
            state.waiting.retain(|waiting| !waiting.is_closed());
            if state.waiting.len() >= self.waiting_max {
                return Err(state.overloaded());
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push_back(sender);
            receiver
        };
        let entered = timeout(self.wait_max, receiver).await;
        let Ok(Ok(mut inside)) = entered else {
            return Err(self.lock().overloaded());
        };
        inside.begun = Instant::now();
        // Its caller has gone while it waited: the place is for the next.
        match deadline.is_some_and(|deadline| deadline <= inside.begun) {
            true => Err(Status::deadline_exceeded(Work::NotDone)),
            false => Ok(inside),
        }
    }

    /// Lets those in for whom there is room.
    fn admit(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            if state.running >= state.limiter.current() {
                return;
            }
            let Some(next) = state.waiting.pop_front() else {
                return;
            };
            if next.is_closed() {
                continue;
            }
            state.running += 1;
            drop(state);
            // One who has gone in between drops it, which lets the next one in.
            let _ = next.send(Inside::new(self));
        }
    }
}

impl State {
    /// Comes back when what is running and waiting now should be done.
    fn overloaded(&self) -> Status {
        let ahead = 1.0 + self.waiting.len() as f64 / self.limiter.current() as f64;
        let wait = Duration::from_secs_f64((self.mean * ahead).clamp(0.005, 5.0));
        Status::resource_exhausted("the service has more to do than it can")
            .with_reason(Reason::Overloaded)
            .with_retry_after(wait)
    }
}

/// A place inside; given back when it is dropped.
#[derive(Debug)]
struct Inside {
    door: Arc<Door>,
    begun: Instant,
    has_run: bool,
    /// Whether its call is parked, and does not count as running.
    is_parked: bool,
}

impl Inside {
    fn new(door: &Arc<Door>) -> Self {
        Self {
            door: Arc::clone(door),
            begun: Instant::now(),
            has_run: false,
            is_parked: false,
        }
    }

    /// Counts its call as running, or as parked. There is always room for one that runs again: what it has done by then
    /// must not be lost.
    fn set_parked(&mut self, is_parked: bool) {
        if std::mem::replace(&mut self.is_parked, is_parked) == is_parked {
            return;
        }
        // Its time is not that of work.
        self.has_run = false;
        if is_parked {
            self.door.lock().running -= 1;
            self.door.admit();
        } else {
            self.door.lock().running += 1;
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if self.is_parked {
            return;
        }
        let latency = self.begun.elapsed();
        {
            let mut state = self.door.lock();
            let running = state.running;
            state.running -= 1;
            if self.has_run {
                state.limiter.ended(latency, running);
                state.mean += (latency.as_secs_f64() - state.mean) * 0.05;
            }
        }
        self.door.admit();
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Shed<S> {
        Shed {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service with a door.
#[derive(Clone, Debug)]
pub struct Shed<S> {
    inner: S,
    layer: ShedLayer,
}

impl<S: CallService + 'static> Service<RawRequest> for Shed<S> {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Always: who cannot go in is told so, and does not wait to be asked.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        let Self { mut inner, layer } = self.clone();
        Box::pin(async move {
            let mut inside = layer.door.enter(request.deadline).await?;
            let of_method = layer.bulkheads.iter().find(|(interface, method, _)| {
                (*interface, *method) == (request.interface, request.method)
            });
            let mut in_bulkhead = match of_method {
                Some((_, _, door)) => Some(door.enter(request.deadline).await?),
                None => None,
            };
            inside.has_run = true;
            if let Some(inside) = &mut in_bulkhead {
                inside.has_run = true;
            }
            let mut running = pin!(call_once(&mut inner, request));
            poll_fn(|cx| {
                let (polled, is_parked) = watched(|| running.as_mut().poll(cx));
                if polled.is_pending() {
                    inside.set_parked(is_parked);
                    if let Some(inside) = &mut in_bulkhead {
                        inside.set_parked(is_parked);
                    }
                }
                polled
            })
            .await
        })
    }
}
