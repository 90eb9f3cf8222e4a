//! The client: many calls at once over one socket.
//!
//! A call writes to the socket from its caller's task. One task, the driver, reads: it hands
//! replies to their callers, ends calls whose deadline has passed, and those whose connection is lost.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};
use tower_service::Service;

use super::correlation::{Correlation, TooMany};
use super::deadline::inherit;
use super::raw::{after, deadline_after};
use super::{Outcome, RawReply, RawRequest, TIMEOUT_DEFAULT};
use crate::message::Limits;
use crate::security::ClientSecurity;
use crate::transport::{
    self, DealerReceiver, DealerSender, Endpoint, Frames, Received, Refused, TransportError,
    TransportOptions,
};
use crate::wire::{Code, ReplyHeader, ReplyStatus, RequestHeader, Status, Work};

/// How exactly deadlines are kept: a call ends at most this much after its own.
const DEADLINE_TICK: Duration = Duration::from_millis(10);
/// Ticks without a call in flight before the clock rests.
const IDLE_TICKS: u32 = 100;

/// How long a call that waits for its server waits before it is sent again.
const RESEND_AFTER: Duration = Duration::from_millis(20);

/// A connection to one server. Cheap to clone; all clones share it.
///
/// A `tower::Service` of raw requests, on which a generated client is put:
///
/// ```
/// # async fn f() -> Result<(), bowline::TransportError> {
/// let client = bowline::Client::builder()
///     .timeout(std::time::Duration::from_secs(2))
///     .connect("tcp://127.0.0.1:5555")
///     .await?;
/// # Ok(()) }
/// ```
///
/// It connects, and connects again, in the background and for ever. A call with no server there
/// fails at once with [`Code::Unavailable`], not done, unless it asks to
/// [wait](crate::Call::wait_for_ready). When the connection is lost with calls in flight, these
/// end with `Unavailable`, outcome unknown.
///
/// Dropping the last clone closes the socket.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    timeout: Duration,
    in_flight_max: usize,
    connect_wait: Duration,
    limits: Limits,
    transport: TransportOptions,
}

/// What a client has counted since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientCounters {
    /// Calls that wait for their reply now.
    pub in_flight: usize,
    /// Replies that came after their caller had gone, or that nobody had asked for.
    pub replies_late: u64,
    /// Messages that were no replies.
    pub malformed: u64,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            timeout: TIMEOUT_DEFAULT,
            in_flight_max: 4096,
            connect_wait: Duration::from_secs(1),
            limits: Limits::default(),
            transport: TransportOptions::default(),
        }
    }
}

impl ClientBuilder {
    /// How long a call waits for its reply where the schema does not say. Default: 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Calls that may wait for their replies at once; one more fails with
    /// [`Code::ResourceExhausted`], not done. Default: 4,096.
    pub fn in_flight_max(mut self, calls: usize) -> Self {
        self.in_flight_max = calls;
        self
    }

    /// How long [`connect`](Self::connect) waits for the server to be there. Default: 1 s.
    pub fn connect_wait(mut self, wait: Duration) -> Self {
        self.connect_wait = wait;
        self
    }

    /// What reading a reply may cost.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who this client is, and the key of the server that it talks to.
    pub fn security(mut self, security: ClientSecurity) -> Self {
        self.transport.client_security = Some(security);
        self
    }

    /// Settings of the socket. Keys that were given before stay where these have none.
    pub fn transport(mut self, mut options: TransportOptions) -> Self {
        let before = self.transport.client_security.take();
        options.client_security = options.client_security.or(before);
        self.transport = options;
        self
    }

    pub(crate) fn timeout_default(&self) -> Duration {
        self.timeout
    }

    /// Opens the socket, and waits a little for the server. A server that is not there yet is no
    /// error: it is looked for in the background.
    ///
    /// # Errors
    /// For what is no endpoint.
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub async fn connect(self, endpoint: impl AsRef<str>) -> Result<Client, TransportError> {
        let endpoint: Endpoint = endpoint.as_ref().parse()?;
        let (sender, receiver) = transport::connect_dealer(&endpoint, &self.transport).await?;
        let shared = Arc::new(Shared {
            sender,
            calls: Mutex::new(Calls {
                correlation: Correlation::new(self.in_flight_max),
                malformed: 0,
            }),
            connected: watch::Sender::new(false),
            is_connected: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            woken: Notify::new(),
            endpoint,
            timeout: self.timeout,
            limits: self.limits,
        });
        let driver = tokio::spawn(drive(Arc::clone(&shared), receiver));
        let client = Client(Arc::new(Inner { shared, driver }));
        let waited = deadline_after(self.connect_wait);
        // Whether or not it is there by then: calls find out for themselves.
        let _ = timeout_at(waited, client.0.shared.connected()).await;
        Ok(client)
    }
}

impl Client {
    /// With default settings; see [`ClientBuilder::connect`].
    ///
    /// # Errors
    /// For what is no endpoint.
    pub async fn connect(endpoint: impl AsRef<str>) -> Result<Self, TransportError> {
        Self::builder().connect(endpoint).await
    }

    /// To set more than the endpoint.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// The endpoint that it connects to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.shared.endpoint
    }

    /// Whether the server is there now.
    pub fn is_connected(&self) -> bool {
        self.0.shared.is_connected()
    }

    /// What it has counted.
    pub fn counters(&self) -> ClientCounters {
        let calls = self.0.shared.lock();
        ClientCounters {
            in_flight: calls.correlation.len(),
            replies_late: calls.correlation.late(),
            malformed: calls.malformed,
        }
    }

    /// Closes the socket, in no more than its linger time. Calls in flight, of this clone or
    /// another, end with [`Code::Cancelled`], outcome unknown; new ones fail, not done.
    pub async fn close(self) {
        self.0.shared.sender.close().await;
        self.0.driver.abort();
        self.0.shared.end_all(|| {
            Status::new(
                Code::Cancelled,
                Work::OutcomeUnknown,
                "the client is closed",
            )
        });
    }
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What callers and the driver share.
#[derive(Debug)]
struct Shared {
    sender: DealerSender,
    calls: Mutex<Calls>,
    /// As the driver knows it, who ends the calls of a connection before it says that there is
    /// another: so no call is taken for one of a connection that came after it.
    connected: watch::Sender<bool>,
    /// The same, for those who do not wait.
    is_connected: AtomicBool,
    /// The driver's clock does not tick, and has to be woken.
    resting: AtomicBool,
    woken: Notify,
    endpoint: Endpoint,
    timeout: Duration,
    limits: Limits,
}

type Ended = Result<RawReply, Status>;

#[derive(Debug)]
struct Calls {
    correlation: Correlation<Ended, Instant>,
    malformed: u64,
}

/// Why a call has not begun.
enum NotBegun {
    Full,
    NoServer,
    Never(Status),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Calls> {
        // Wakers run only after the lock is released, so nothing of others panics under it.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Acquire)
    }

    fn set_connected(&self, is: bool) {
        self.is_connected.store(is, Ordering::Release);
        self.connected.send_replace(is);
    }

    /// Returns when the server is there.
    async fn connected(&self) {
        // The sender is in `self`, so it does not go away.
        let _ = self.connected.subscribe().wait_for(|is| *is).await;
    }

    /// Sends the request and returns its correlation number.
    ///
    /// Takes the body out of a request that will not be sent again, and puts it back where it was
    /// not sent but may be later.
    fn begin(
        &self,
        request: &mut RawRequest,
        deadline: Instant,
        now: Instant,
    ) -> Result<u64, NotBegun> {
        if !self.is_connected() {
            return Err(NotBegun::NoServer);
        }
        let remaining = deadline.saturating_duration_since(now);
        if remaining.is_zero() {
            return Err(NotBegun::Never(Status::deadline_exceeded(Work::NotDone)));
        }
        let number = self.lock().correlation.begin(deadline).map_err(|TooMany| {
            NotBegun::Never(Status::resource_exhausted(
                "too many calls of this client are in flight",
            ))
        })?;
        let header = RequestHeader {
            interface: request.interface,
            method: request.method,
            attempt: request.attempt,
            correlation: number,
            id: request.id.clone(),
            remaining: Some(remaining),
            trace: request.trace.clone(),
            metadata: request.metadata.clone(),
            outcome_only: request.outcome_only,
        };
        let frames = Frames {
            header: header.encode(),
            body: match request.wait_for_ready {
                true => request.body.clone(),
                false => std::mem::take(&mut request.body),
            },
        };
        match self.sender.try_send(frames) {
            Ok(()) => {
                if self.resting.load(Ordering::Acquire) {
                    self.woken.notify_one();
                }
                Ok(number)
            }
            Err(refused) => {
                self.lock().correlation.cancel(number);
                Err(match refused {
                    Refused::Full(frames) => {
                        request.body = frames.body;
                        NotBegun::Full
                    }
                    Refused::NoPeer => NotBegun::NoServer,
                    Refused::Closed => NotBegun::Never(Status::unavailable("the client is closed")),
                })
            }
        }
    }

    fn end_all(&self, status: impl Fn() -> Status) {
        let mut wake = Vec::new();
        self.lock().correlation.end_all(|| Err(status()), &mut wake);
        wake.into_iter().for_each(Waker::wake);
    }
}

impl Service<RawRequest> for Client {
    type Response = RawReply;
    type Error = Status;
    type Future = ClientFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    /// Sends at once where the socket takes it.
    fn call(&mut self, mut request: RawRequest) -> ClientFuture {
        let now = Instant::now();
        let own = request.deadline;
        let own = own.unwrap_or_else(|| after(now, self.0.shared.timeout));
        let deadline = inherit(own);
        let state = match self.0.shared.begin(&mut request, deadline, now) {
            Ok(number) if request.wait_for_ready => {
                let begun = Ticket::new(&self.0, number);
                State::Slow(Box::pin(persist(
                    self.clone(),
                    request,
                    deadline,
                    Some(begun),
                )))
            }
            Ok(number) => State::Waiting(Ticket::new(&self.0, number)),
            Err(NotBegun::Never(status)) => State::Failed(Some(status)),
            Err(NotBegun::NoServer) if !request.wait_for_ready => {
                State::Failed(Some(no_server(&self.0.shared.endpoint)))
            }
            Err(NotBegun::NoServer | NotBegun::Full) => {
                State::Slow(Box::pin(persist(self.clone(), request, deadline, None)))
            }
        };
        ClientFuture { state }
    }
}

fn no_server(endpoint: &Endpoint) -> Status {
    Status::unavailable(format!("no server at {endpoint}"))
}

/// A call of a [`Client`] that is being made.
#[must_use = "futures do nothing unless awaited"]
pub struct ClientFuture {
    state: State,
}

enum State {
    Waiting(Ticket),
    Slow(Pin<Box<dyn Future<Output = Ended> + Send>>),
    Failed(Option<Status>),
}

impl Future for ClientFuture {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        match &mut self.state {
            State::Waiting(ticket) => Pin::new(ticket).poll(cx),
            State::Slow(future) => future.as_mut().poll(cx),
            State::Failed(status) => Poll::Ready(Err(status
                .take()
                .unwrap_or_else(|| Status::internal("polled after it was ready")))),
        }
    }
}

impl std::fmt::Debug for ClientFuture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientFuture")
    }
}

/// A caller's place in the correlation; given up when it is dropped.
struct Ticket {
    client: Arc<Inner>,
    number: u64,
    has_ended: bool,
}

impl Ticket {
    fn new(client: &Arc<Inner>, number: u64) -> Self {
        Self {
            client: Arc::clone(client),
            number,
            has_ended: false,
        }
    }
}

impl Future for Ticket {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let number = self.number;
        let poll = self
            .client
            .shared
            .lock()
            .correlation
            .poll(number, cx.waker());
        poll.map(|ended| {
            self.has_ended = true;
            ended.unwrap_or_else(|| Err(Status::internal("polled after it was ready")))
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.has_ended {
            self.client.shared.lock().correlation.cancel(self.number);
        }
    }
}

/// Waits until the request can be sent, and sends it again after a lost connection where it may.
async fn persist(
    client: Client,
    mut request: RawRequest,
    deadline: Instant,
    mut begun: Option<Ticket>,
) -> Ended {
    let shared = &client.0.shared;
    let mut work = Work::NotDone;
    loop {
        let ticket = match begun.take() {
            Some(ticket) => ticket,
            None => match shared.begin(&mut request, deadline, Instant::now()) {
                Ok(number) => Ticket::new(&client.0, number),
                Err(NotBegun::Never(status)) if work == Work::NotDone => return Err(status),
                Err(NotBegun::Never(status)) => return Err(status.with_work(work)),
                Err(NotBegun::NoServer) if !request.wait_for_ready => {
                    return Err(no_server(&shared.endpoint).with_work(work));
                }
                Err(not_begun) => {
                    let possible = async {
                        match not_begun {
                            NotBegun::Full => shared.sender.writable().await,
                            _ => shared.connected().await,
                        }
                    };
                    if timeout_at(deadline, possible).await.is_err() {
                        return Err(Status::deadline_exceeded(work));
                    }
                    continue;
                }
            },
        };
        match ticket.await {
            Err(status) if request.wait_for_ready && status.code() == Code::Unavailable => {
                let was_not_done = status.work() == Work::NotDone;
                if !was_not_done && !request.effect.may_be_resent() {
                    return Err(status);
                }
                if !was_not_done {
                    work = Work::OutcomeUnknown;
                }
                request.attempt = request.attempt.saturating_add(1);
                // A server that is leaving refuses at once: give it the time to be gone.
                if timeout_at(deadline, sleep(RESEND_AFTER)).await.is_err() {
                    return Err(Status::deadline_exceeded(work));
                }
            }
            ended => return ended,
        }
    }
}

async fn drive(shared: Arc<Shared>, mut receiver: DealerReceiver) {
    let mut batch = Vec::new();
    let mut wake = Vec::new();
    let seen = shared.sender.connection_generation();
    shared.set_connected(shared.sender.is_connected());
    let mut ticking = true;
    let mut idle_ticks = 0;
    tokio::pin! {
        let changed = shared.sender.connection_changed(seen);
        let tick = sleep_until(Instant::now() + DEADLINE_TICK);
        let woken = shared.woken.notified();
    }
    loop {
        tokio::select! {
            biased;
            received = receiver.receive(&mut batch) => {
                if received.is_err() {
                    break;
                }
                accept(&shared, &mut batch, &mut wake);
            }
            now = &mut changed => match now {
                Ok(generation) => {
                    changed.set(shared.sender.connection_changed(generation));
                    if shared.is_connected() {
                        shared.set_connected(false);
                        shared.end_all(|| lost(&shared.endpoint));
                    }
                    shared.set_connected(shared.sender.is_connected());
                }
                Err(_) => break,
            },
            () = &mut tick, if ticking => {
                let mut calls = shared.lock();
                let timed_out = || Err(Status::deadline_exceeded(Work::OutcomeUnknown));
                calls.correlation.expire(Instant::now(), timed_out, &mut wake);
                idle_ticks = if calls.correlation.is_empty() { idle_ticks + 1 } else { 0 };
                if idle_ticks > IDLE_TICKS {
                    // Under the lock: a caller that begins after this sees that it must wake.
                    shared.resting.store(true, Ordering::Release);
                    ticking = false;
                }
                drop(calls);
                restart(tick.as_mut());
            }
            () = &mut woken => {
                woken.set(shared.woken.notified());
                shared.resting.store(false, Ordering::Release);
                ticking = true;
                idle_ticks = 0;
                restart(tick.as_mut());
            }
        }
        wake.drain(..).for_each(Waker::wake);
    }
    shared.set_connected(false);
    shared.end_all(|| lost(&shared.endpoint));
}

fn restart(tick: Pin<&mut Sleep>) {
    tick.reset(Instant::now() + DEADLINE_TICK);
}

fn lost(endpoint: &Endpoint) -> Status {
    let message = format!("the connection to {endpoint} was lost");
    Status::new(Code::Unavailable, Work::OutcomeUnknown, message)
}

/// Hands replies to their callers.
fn accept(shared: &Shared, batch: &mut Vec<Received>, wake: &mut Vec<Waker>) {
    let mut calls = shared.lock();
    for received in batch.drain(..) {
        let Some((correlation, ended)) = read(received, &shared.limits) else {
            calls.malformed += 1;
            continue;
        };
        wake.extend(calls.correlation.end(correlation, ended));
    }
}

fn read(received: Received, limits: &Limits) -> Option<(u64, Ended)> {
    let Frames { header, body } = received.ok()?;
    let header = ReplyHeader::decode(&header).ok()?;
    let outcome = match header.status {
        ReplyStatus::Ok => Outcome::Success,
        ReplyStatus::ApplicationError => Outcome::ApplicationError,
        ReplyStatus::Failed(status) => return Some((header.correlation, Err(status))),
    };
    let reply = RawReply {
        outcome,
        replayed: header.replayed,
        metadata: header.metadata,
        body,
        limits: *limits,
    };
    Some((header.correlation, Ok(reply)))
}
