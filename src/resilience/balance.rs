//! Which of several endpoints a call goes to.
//!
//! Two are picked at random, and the one with fewer calls in flight takes it ("power of two
//! choices", Mitzenmacher 2001): as good as asking all, without all clients running to the same
//! idle one. A retry goes to an endpoint that the call has not been to. One that is connected is preferred
//! to one that is not: the connection is the quickest to know of a failure. An endpoint that keeps
//! failing a method is left out of the calls of that method, but never more than half of them, so that the rest do not
//! drown, and none where all that are connected keep failing: the fault lies elsewhere then.
//!
//! Nothing is refused for that: first attempts go to an endpoint that keeps failing where there is no other.
//! Only what is sent *again* does not: the endpoint is asked no more than it would be without retries. Where no
//! endpoint is connected, a call waits for a moment until one is: a restart takes no longer.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tower_service::Service;

use super::breaker::{BreakerChange, BreakerPolicy, Evidence, evidence};
use super::breakers::{Breakers, Method};
use crate::call::attempts::Attempts;
use crate::call::logical::Logical;
use crate::call::{CallService, Connection, RawReply, RawRequest};
use crate::wire::{Code, Origin, Reason, Status};

/// How long after a connection was lost calls wait for the next one, unless set: longer than a small service
/// takes to restart, short enough that callers of one that stays away are told so.
pub(super) const RECONNECT_WAIT_DEFAULT: Duration = Duration::from_millis(500);

/// An attempt whose time is over sooner says nothing of its endpoint: its caller had left it no time.
const SILENCE_MIN: Duration = Duration::from_millis(50);

/// One service over several that do the same. Cheap to clone; clones share what they know.
#[derive(Clone, Debug)]
pub struct Balance<S> {
    members: Arc<Vec<Arc<Member<S>>>>,
    /// Where the list begins when it is asked who is left out: elsewhere in each client, so that not all of
    /// them leave out the same ones.
    first: usize,
    reconnect_wait: Duration,
}

#[derive(Debug)]
struct Member<S> {
    service: S,
    index: usize,
    connection: Option<Connection>,
    in_flight: AtomicUsize,
    breakers: Option<Mutex<Breakers>>,
}

impl<S> Member<S> {
    fn breakers(&self) -> Option<MutexGuard<'_, Breakers>> {
        let breakers = self.breakers.as_ref()?;
        Some(breakers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_open(&self, method: Method, now: Instant) -> bool {
        self.breakers()
            .is_some_and(|breakers| breakers.is_open(method, now))
    }

    fn is_failing(&self, method: Method, now: Instant) -> bool {
        self.breakers()
            .is_some_and(|breakers| breakers.is_failing(method, now))
    }

    fn is_connected(&self) -> bool {
        (self.connection.as_ref()).is_none_or(Connection::is_connected)
    }

    /// Has what is open probed where the connection is a new one.
    fn look(&self, now: Instant) {
        if let Some(connection) = &self.connection
            && let Some(mut breakers) = self.breakers()
        {
            breakers.connected(connection.made(), now);
        }
    }

    /// Counts how an attempt ended, and logs what that changes.
    fn record(&self, method: Method, evidence: Evidence, cause: &dyn std::fmt::Display) {
        let Some(mut breakers) = self.breakers() else {
            return;
        };
        let change = breakers.ended(method, Instant::now(), evidence);
        drop(breakers);
        let Some(change) = change else {
            return;
        };
        let endpoint = match &self.connection {
            Some(connection) => connection.endpoint().to_string(),
            None => format!("number {}", self.index),
        };
        let Method { interface, ordinal } = method;
        let interface = format_args!("{interface:#x}");
        match change {
            BreakerChange::Opened(open_for) => {
                tracing::info!(%endpoint, interface, method = ordinal, ?open_for, %cause, "breaker opened");
            }
            BreakerChange::Closed => {
                tracing::info!(%endpoint, interface, method = ordinal, %cause, "breaker closed");
            }
        }
    }
}

/// Where a call goes.
enum Picked {
    Member(usize),
    /// None is connected.
    Disconnected,
    Refused(Status),
}

impl<S> Balance<S> {
    /// Over these services; without breakers, none is ever left out.
    ///
    /// It does not know which of them are connected: over clients, see [`with_connections`](Self::with_connections).
    pub fn new(
        services: impl IntoIterator<Item = S>,
        breaker: impl Into<Option<BreakerPolicy>>,
    ) -> Self {
        let services = services.into_iter().map(|service| (service, None));
        Self::over(services, breaker.into())
    }

    /// Over these services, each with the connection of the client below it, so that a call goes to one that is
    /// connected.
    ///
    /// ```
    /// # async fn f() -> Result<(), bowline::TransportError> {
    /// use bowline::Client;
    /// use bowline::resilience::{Balance, BreakerPolicy};
    ///
    /// let mut members = Vec::new();
    /// for endpoint in ["tcp://10.0.0.1:5555", "tcp://10.0.0.2:5555"] {
    ///     let client = Client::connect(endpoint).await?;
    ///     let connection = client.connection();
    ///     members.push((client, connection));
    /// }
    /// let balance = Balance::with_connections(members, BreakerPolicy::default());
    /// # Ok(()) }
    /// ```
    pub fn with_connections(
        services: impl IntoIterator<Item = (S, Connection)>,
        breaker: impl Into<Option<BreakerPolicy>>,
    ) -> Self {
        let services = services.into_iter();
        Self::over(
            services.map(|(service, connection)| (service, Some(connection))),
            breaker.into(),
        )
    }

    fn over(
        services: impl Iterator<Item = (S, Option<Connection>)>,
        breaker: Option<BreakerPolicy>,
    ) -> Self {
        let member = |(index, (service, connection))| {
            Arc::new(Member {
                service,
                index,
                connection,
                in_flight: AtomicUsize::new(0),
                breakers: breaker.map(|policy| Mutex::new(Breakers::new(policy))),
            })
        };
        let members: Vec<_> = services.enumerate().map(member).collect();
        let first = fastrand::usize(..members.len().max(1));
        let members = Arc::new(members);
        Self {
            members,
            first,
            reconnect_wait: RECONNECT_WAIT_DEFAULT,
        }
    }

    /// Sets how long after a connection was lost calls wait for the next one, where no endpoint is connected.
    /// After that they fail at once. Default: 500 ms.
    pub fn reconnect_wait(mut self, wait: Duration) -> Self {
        self.reconnect_wait = wait;
        self
    }

    /// Returns how many endpoints are left out now, of the calls of one method or of all.
    pub fn ejected(&self) -> usize {
        let now = Instant::now();
        let mut methods = Vec::new();
        for member in &self.members[..] {
            if let Some(breakers) = member.breakers() {
                methods.extend(breakers.methods_open(now));
            }
        }
        methods.sort_unstable();
        methods.dedup();
        let of_methods: Vec<_> = (methods.into_iter())
            .map(|method| self.left_out(method, now))
            .collect();
        let is_left_out = |index: &usize| of_methods.iter().any(|left_out| left_out(*index));
        (0..self.members.len()).filter(is_left_out).count()
    }

    /// Tells which are left out: of those that keep failing, as many as may be.
    fn left_out(&self, method: Method, now: Instant) -> impl Fn(usize) -> bool {
        let members = &self.members[..];
        let (count, first) = (members.len(), self.first);
        let works = |member: &Arc<Member<S>>| member.is_connected() && !member.is_open(method, now);
        let ejected_max = match members.iter().any(works) {
            true => count / 2,
            false => 0,
        };
        let open =
            (0..count).filter(move |nth| members[(first + nth) % count].is_open(method, now));
        let last = open.take(ejected_max).last();
        move |index: usize| {
            let nth = (index + count - first) % count;
            last.is_some_and(|last| nth <= last) && members[index].is_open(method, now)
        }
    }

    /// Picks one, and says which. `is_resend`: an earlier attempt of this call was made.
    fn pick(&self, method: Method, tried: u64, is_resend: bool, now: Instant) -> Picked {
        let members = &self.members[..];
        let count = members.len();
        if members.is_empty() {
            return Picked::Refused(Status::unavailable("there are no endpoints"));
        }
        for member in members {
            member.look(now);
        }
        let connected = |index: usize| members[index].is_connected();
        if !(0..count).any(connected) {
            return Picked::Disconnected;
        }
        let is_open = |index: usize| members[index].is_open(method, now);
        let is_failing = |index: usize| members[index].is_failing(method, now);
        if is_resend && (0..count).filter(|index| connected(*index)).all(is_failing) {
            return Picked::Refused(circuit_open());
        }
        if count == 1 {
            return Picked::Member(0);
        }
        let untried = |index: usize| index >= 64 || tried & (1 << index) == 0;
        let left_out = self.left_out(method, now);
        let kept = |index: usize| connected(index) && !left_out(index);
        let works = |index: usize| kept(index) && !is_open(index);
        // One that is new to this call, of those that are not left out; where none of these works, one that is
        // new at all, which may be well again; then one that it has been to.
        let best = pick_two(count, |index| untried(index) && kept(index))
            .or_else(|| match (0..count).any(works) {
                true => None,
                false => pick_two(count, |index| untried(index) && connected(index)),
            })
            .or_else(|| pick_two(count, kept))
            .or_else(|| pick_two(count, connected));
        self.less_busy(best)
    }

    fn less_busy(&self, two: Option<(usize, usize)>) -> Picked {
        let Some((a, b)) = two else {
            // The last connection was lost meanwhile.
            return Picked::Disconnected;
        };
        let load = |index: usize| self.members[index].in_flight.load(Ordering::Relaxed);
        Picked::Member(if load(b) < load(a) { b } else { a })
    }

    /// Returns the connections that may be made anew.
    fn awaited(&self) -> impl Iterator<Item = &Connection> {
        let connections = self.members.iter();
        let connections = connections.filter_map(|member| member.connection.as_ref());
        connections.filter(|connection| !connection.is_over())
    }

    /// Returns until when a call waits for a connection, where there is none.
    fn reconnect_until(&self, request: &RawRequest) -> Instant {
        let Some(lost) = self.awaited().map(Connection::since).max() else {
            return Instant::now();
        };
        let until = lost + self.reconnect_wait;
        match request.deadline {
            Some(deadline) if request.wait_for_ready => deadline,
            Some(deadline) => until.min(deadline),
            None => until,
        }
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
    Status::unavailable("the endpoint keeps failing, so nothing is sent there again")
        .with_reason(Reason::CircuitOpen)
        .with_origin(Origin::Breaker)
}

/// Returns when one of the connections is there.
async fn any_connected(connections: Vec<Connection>) {
    let mut waits: Vec<_> = (connections.iter())
        .map(|connection| Box::pin(connection.connected()))
        .collect();
    std::future::poll_fn(|cx| {
        match waits
            .iter_mut()
            .any(|wait| wait.as_mut().poll(cx).is_ready())
        {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

impl<S: CallService + Sync> Service<RawRequest> for Balance<S> {
    type Response = RawReply;
    type Error = Status;
    type Future = BalanceFuture<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> BalanceFuture<S> {
        let state = self.begin(request, true);
        BalanceFuture { state }
    }
}

impl<S: CallService> Balance<S> {
    fn begin(&self, request: RawRequest, may_wait: bool) -> State<S, S::Future> {
        let now = Instant::now();
        let method = Method::of(&request);
        let logical = request.logical.clone();
        let tried = logical.as_ref().map_or(0, |logical| logical.tried());
        let is_resend = tried != 0;
        let index = match self.pick(method, tried, is_resend, now) {
            Picked::Refused(status) => {
                let status = Attempts::of(&request).conclude(status);
                return State::Refused {
                    status: Some(status),
                };
            }
            Picked::Disconnected if may_wait && now < self.reconnect_until(&request) => {
                let until = self.reconnect_until(&request);
                let connections = self.awaited().cloned().collect();
                let connected = timeout_at(until, any_connected(connections));
                return State::Reconnecting {
                    balance: self.clone(),
                    request: Some(request),
                    connected: Box::pin(async move {
                        // Where none comes back in time, the client says why there is none.
                        let _ = connected.await;
                    }),
                };
            }
            Picked::Disconnected => fastrand::usize(..self.members.len()),
            Picked::Member(index) => index,
        };
        self.send(index, request, logical, method, now)
    }

    fn send(
        &self,
        index: usize,
        mut request: RawRequest,
        logical: Option<Arc<Logical>>,
        method: Method,
        now: Instant,
    ) -> State<S, S::Future> {
        if let Some(logical) = &logical {
            logical.try_at(index);
            // What sends it again waits for another endpoint, too.
            request.wait_for_ready &= !logical.is_retried() || self.members.len() == 1;
        }
        let member = Arc::clone(&self.members[index]);
        if let Some(mut breakers) = member.breakers() {
            breakers.enter(method, now);
        }
        member.in_flight.fetch_add(1, Ordering::Relaxed);
        let service = member.service.clone();
        let in_flight = InFlight {
            member,
            logical,
            method,
            attempt: request.attempt,
            begun: now,
            has_ended: false,
        };
        State::Waiting {
            service,
            request: Some(request),
            in_flight: Some(in_flight),
        }
    }
}

/// Counts an attempt of a member while it lives.
#[derive(Debug)]
struct InFlight<S> {
    member: Arc<Member<S>>,
    logical: Option<Arc<Logical>>,
    method: Method,
    attempt: u16,
    begun: Instant,
    has_ended: bool,
}

impl<S> InFlight<S> {
    fn ended(&mut self, ended: &Result<RawReply, Status>) {
        self.has_ended = true;
        let evidence = match ended {
            Ok(_) => Evidence::Works,
            Err(status)
                if status.code() == Code::DeadlineExceeded
                    && self.begun.elapsed() < SILENCE_MIN =>
            {
                Evidence::Nothing
            }
            Err(status) => evidence(status),
        };
        if let Some(logical) = &self.logical {
            match (evidence, ended) {
                (Evidence::Works, _) => logical.answer(self.attempt, self.member.index),
                // It never got there, and is not sent there again before there is a connection.
                (Evidence::Nothing, Err(status))
                    if status.is_of_connection() && self.member.connection.is_some() =>
                {
                    logical.untry_at(self.member.index);
                }
                _ => {}
            }
        }
        match ended {
            Ok(_) => self.record(evidence, &"a call succeeded"),
            Err(status) => self.record(evidence, status),
        }
    }

    fn record(&self, evidence: Evidence, cause: &dyn std::fmt::Display) {
        let is_first =
            || (self.logical.as_ref()).is_none_or(|logical| logical.fail_at(self.member.index));
        // A call that fails here several times is one failure.
        if !matches!(evidence, Evidence::Fails | Evidence::Silent) || is_first() {
            self.member.record(self.method, evidence, cause);
        }
    }
}

impl<S> Drop for InFlight<S> {
    fn drop(&mut self) {
        self.member.in_flight.fetch_sub(1, Ordering::Relaxed);
        let (attempt, index) = (self.attempt, self.member.index);
        // A caller that gives up says nothing of the endpoint; one that was answered by another, later, does.
        if !self.has_ended
            && (self.logical.as_ref()).is_some_and(|logical| logical.is_overtaken(attempt, index))
        {
            self.record(Evidence::Silent, &"a later attempt was answered first");
        }
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
        Reconnecting {
            balance: Balance<S>,
            request: Option<RawRequest>,
            connected: Pin<Box<dyn Future<Output = ()> + Send>>,
        },
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
                StateProjection::Reconnecting {
                    balance,
                    request,
                    connected,
                } => {
                    ready!(connected.as_mut().poll(cx));
                    let Some(request) = request.take() else {
                        return Poll::Ready(Err(polled_again()));
                    };
                    let state = balance.begin(request, false);
                    this.state.set(state);
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
                    in_flight.ended(&ended);
                    this.state.set(State::Refused { status: None });
                    return Poll::Ready(ended);
                }
            }
        }
    }
}
