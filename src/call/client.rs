//! The client: many calls at once over one socket.
//!
//! A call that is alone writes to the socket from its caller's task; those that begin while others
//! are on their way leave together. One task, the driver, sends these and reads: it hands replies
//! to their callers, ends calls whose deadline has passed, and those whose connection is lost.

mod builder;
mod connection;
mod departures;
mod driver;
mod shared;

pub use builder::ClientBuilder;
pub use connection::Connection;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tower_service::Service;

use super::attempts::Attempts;
use super::deadline::inherit;
use super::raw::after;
use super::retries::{Next, Retries, RetryPolicy};
use super::{RawReply, RawRequest};
use crate::transport::{ConnectionFailure, Endpoint, TransportError};
use crate::wire::{Code, Status, Work};
use shared::{Ended, NotBegun, Over, Shared, question};

/// How a call that waits for its server is sent again: at most three times once it may have been done, and as
/// often as a server that shuts down refuses it.
const RESEND: RetryPolicy = RetryPolicy {
    attempts_max: 4,
    wait_first: Duration::from_millis(20),
    wait_max: Duration::from_secs(1),
};

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
/// fails at once with [`Code::Unavailable`](crate::Code::Unavailable), not done, unless it asks to
/// [wait](crate::Call::wait_for_ready). When the connection is lost with calls in flight, these
/// end with `Unavailable`, outcome unknown.
///
/// Dropping the last clone closes the socket. When the tokio runtime that it was made in shuts down, its calls end at
/// once with [`Reason::RuntimeShutDown`](crate::Reason::RuntimeShutDown); make a new client then.
///
/// Dropping the future of a call ends its handler on the server, where that understands it.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

/// What a client has counted since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientCounters {
    /// Calls that wait for their reply now.
    pub in_flight: usize,
    /// Replies that came after their caller had gone, or that nobody had asked for.
    pub replies_late: u64,
    /// Messages that could not be read as replies.
    pub malformed: u64,
    /// Requests that were not sent, since they are larger than the server takes.
    pub too_large: u64,
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

    /// Returns why there is no connection to the server, where there is none.
    pub fn connection_failure(&self) -> Option<ConnectionFailure> {
        let failure = self.0.shared.sender.failure();
        (!self.is_connected()).then_some(failure)
    }

    /// Returns what tells whether the server is there, for a layer such as
    /// [`Balance`](crate::resilience::Balance) that chooses between several.
    pub fn connection(&self) -> Connection {
        self.0.shared.connection()
    }

    /// What it has counted.
    pub fn counters(&self) -> ClientCounters {
        let calls = self.0.shared.lock();
        ClientCounters {
            in_flight: calls.correlation.len(),
            replies_late: calls.correlation.late(),
            malformed: self.0.shared.malformed.read(),
            too_large: self.0.shared.too_large.read(),
        }
    }

    /// Closes the socket, in no more than its linger time. Calls in flight, of this clone or
    /// another, end with [`Code::Cancelled`](crate::Code::Cancelled), outcome unknown; new ones fail, not done.
    pub async fn close(self) {
        self.0.shared.set_over(Over::Closed);
        self.0.shared.stop_gathering();
        self.0.shared.sender.close().await;
        self.0.driver.abort();
        self.0.shared.end(Over::Closed);
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

impl Service<RawRequest> for Client {
    type Response = RawReply;
    type Error = Status;
    type Future = ClientFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    /// Sends at once where no other request is on its way, and otherwise together with those that
    /// are begun before the driver's next turn.
    fn call(&mut self, mut request: RawRequest) -> ClientFuture {
        let now = Instant::now();
        let own = request.deadline;
        let own = own.unwrap_or_else(|| after(now, self.0.shared.timeout));
        let deadline = inherit(own);
        let state = match self.0.shared.begin(&mut request, deadline, now) {
            Ok(number) if request.wait_for_ready || request.outcome_only => {
                let begun = Ticket::new(&self.0, number);
                State::Slow(Box::pin(persist(
                    self.clone(),
                    request,
                    deadline,
                    Some(begun),
                )))
            }
            Ok(number) => State::Waiting {
                ticket: Ticket::new(&self.0, number),
                deadline,
                is_watched: false,
            },
            Err(NotBegun::Never(status)) => {
                State::Failed(Some(Attempts::of(&request).conclude(status)))
            }
            Err(NotBegun::NoServer) if !request.wait_for_ready => {
                let status = self.0.shared.no_connection();
                State::Failed(Some(Attempts::of(&request).conclude(status)))
            }
            Err(NotBegun::NoServer | NotBegun::Full | NotBegun::Unasked) => {
                State::Slow(Box::pin(persist(self.clone(), request, deadline, None)))
            }
        };
        ClientFuture { state }
    }
}

/// A call of a [`Client`] that is being made.
#[must_use = "futures do nothing unless awaited"]
pub struct ClientFuture {
    state: State,
}

enum State {
    Waiting {
        ticket: Ticket,
        deadline: Instant,
        /// It is known who ends it by its deadline.
        is_watched: bool,
    },
    Slow(Pin<Box<dyn Future<Output = Ended> + Send>>),
    Failed(Option<Status>),
}

impl Future for ClientFuture {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        match &mut self.state {
            State::Waiting {
                ticket,
                deadline,
                is_watched,
            } => {
                let poll = Pin::new(&mut *ticket).poll(cx);
                if *is_watched || poll.is_ready() {
                    return poll;
                }
                *is_watched = true;
                if !ticket.client.shared.is_foreign() {
                    return poll;
                }
                // The clock of the client's own runtime may stand still.
                let (ticket, deadline) = (ticket.take(), *deadline);
                self.state = State::Slow(Box::pin(in_time(ticket, deadline)));
                self.poll(cx)
            }
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

impl Ticket {
    /// Moves it elsewhere: what is left behind does nothing.
    fn take(&mut self) -> Self {
        let taken = Self::new(&self.client, self.number);
        self.has_ended = true;
        taken
    }
}

/// Ends a call by its deadline, whatever the client's driver does.
async fn in_time(ticket: Ticket, deadline: Instant) -> Ended {
    timeout_at(deadline, ticket)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded(Work::OutcomeUnknown)))
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
            self.client.shared.cancel(self.number);
        }
    }
}

/// The status of a call whose deadline has passed while it waited for its server, with the reason of its last failure.
fn deadline_after(last: &Status) -> Status {
    let message = format!("the deadline has passed; last: {}", last.message());
    let status = Status::new(Code::DeadlineExceeded, Work::NotDone, message);
    match last.reason() {
        Some(reason) => status.with_reason(reason),
        None => status,
    }
}

/// Asks what the server takes. Returns when it has answered, or when that cannot be asked now.
async fn ask(client: &Client, deadline: Instant) {
    let shared = &client.0.shared;
    match shared.begin(&mut question(), deadline, Instant::now()) {
        // Whatever the answer is, the driver has read in its header what counts.
        Ok(number) => drop(in_time(Ticket::new(&client.0, number), deadline).await),
        Err(NotBegun::Full) => shared.sender.writable().await,
        // The call itself finds out why.
        Err(_) => {}
    }
}

/// Waits until the request can be sent, and sends it again after a lost connection where it asks to wait for its
/// server, it is safe, and the budget allows it.
async fn persist(
    client: Client,
    mut request: RawRequest,
    deadline: Instant,
    mut begun: Option<Ticket>,
) -> Ended {
    let shared = &client.0.shared;
    // A layer above that sends again does so over other connections, too.
    let resends = request.wait_for_ready
        && (request.logical.as_ref()).is_none_or(|logical| !logical.is_retried());
    let mut retries = Retries::of(&request, RESEND, deadline).only_connection();
    if resends {
        shared.resends.deposit();
    }
    loop {
        let ticket = match begun.take() {
            Some(ticket) => ticket,
            None => match shared.begin(&mut request, deadline, Instant::now()) {
                Ok(number) => Ticket::new(&client.0, number),
                Err(NotBegun::Never(status)) => return Err(retries.stop(status)),
                Err(NotBegun::NoServer) if !request.wait_for_ready => {
                    return Err(retries.stop(shared.no_connection()));
                }
                Err(not_begun) => {
                    let waits_for_server = matches!(not_begun, NotBegun::NoServer);
                    let possible = async {
                        match not_begun {
                            NotBegun::Full => shared.sender.writable().await,
                            NotBegun::Unasked => ask(&client, deadline).await,
                            _ => shared.connected().await,
                        }
                    };
                    if timeout_at(deadline, possible).await.is_err() {
                        return Err(retries.stop(match waits_for_server {
                            false => Status::deadline_exceeded(Work::NotDone),
                            true => deadline_after(&shared.no_connection()),
                        }));
                    }
                    continue;
                }
            },
        };
        retries.begin();
        let status = match in_time(ticket, deadline).await {
            Ok(reply) => return Ok(reply),
            Err(status) => status,
        };
        let next = retries.failed(Instant::now(), status.clone(), fastrand::f64());
        match next {
            Next::Again { after, from_budget }
                if resends && (!from_budget || shared.resends.withdraw()) =>
            {
                sleep(after).await;
                request.attempt = request.attempt.saturating_add(1);
            }
            Next::Stop(status) => return Err(status),
            Next::Again { .. } | Next::Wait => return Err(retries.stop(status)),
        }
    }
}
