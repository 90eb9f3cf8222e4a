//! How a call ended that has no reply of its own, and what that says about the work.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::message::MessageError;

/// Why a call has no reply, and whether its work may have been done.
///
/// Codes are those of [gRPC](https://grpc.io/docs/guides/status-codes/). What gRPC does not say,
/// [`work`](Self::work) does: a call that was *not done* is safe to send again.
#[derive(Clone, PartialEq, thiserror::Error)]
pub struct Status(Box<Inner>);

#[derive(Clone, PartialEq)]
struct Inner {
    code: Code,
    work: Work,
    message: Cow<'static, str>,
    retry_after: Option<Duration>,
    reason: Option<Reason>,
    unreadable: Unreadable,
    origin: Origin,
}

/// Which part of this process made a status, where that makes a difference to what sends a call again. It is
/// not sent, and makes no two statuses different.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin {
    /// A server, a handler, or any other code.
    Other,
    /// A client, since its connection is down or was lost.
    Connection,
    /// A balance that sends nothing again to an endpoint that keeps failing.
    Breaker,
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Whether it is from a message that could not be read in this process. Nobody else hears of it, so it
/// makes no two statuses different.
#[derive(Clone, Copy)]
struct Unreadable(bool);

impl PartialEq for Unreadable {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Whether the work of a failed call was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing was done: the request never reached a handler, or the handler says so.
    NotDone,
    /// The handler may have started, and nobody knows how far it came.
    OutcomeUnknown,
    /// It was done; only its reply is not to be had.
    Done,
}

/// Which case of its [`Code`] a status is, where a caller does something else in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The request ID was used for other parameters. Sending it again cannot help: use a fresh one.
    KeyReused,
    /// The request ID is older than outcomes are kept. It may have been done, long ago.
    KeyExpired,
    /// The first attempt is still running. Ask again after [`Status::retry_after`].
    InProgress,
    /// It was begun, and nobody knows whether it was done. Someone has to look, and
    /// [resolve](crate::once::Once::resolve) it.
    InDoubt,
    /// It was done; its reply was too large to be kept.
    ReplyNotRetained,
    /// No outcome is recorded under this request ID, and it does not run now.
    KeyUnknown,
    /// A later attempt has taken over, and this one's outcome was refused.
    Superseded,
    /// The store of outcomes does not answer, so nothing was begun.
    StoreUnavailable,
    /// More is asked of the service than it can do. Obey [`Status::retry_after`].
    Overloaded,
    /// This client has stopped asking an endpoint that keeps failing.
    CircuitOpen,
    /// The host name of the endpoint cannot be resolved.
    NameNotFound,
    /// No process listens at the endpoint.
    ConnectionRefused,
    /// The endpoint could not be reached within the time limit, or the network reports an error.
    Unreachable,
    /// The peer does not speak ZMTP.
    NotZeromq,
    /// The peer's socket type does not fit this one, for example a PUB where a ROUTER is needed.
    WrongSocketType,
    /// The server does not accept this client's key.
    KeyRejected,
    /// The server's key is not the one that this client expects.
    WrongServerKey,
    /// One side uses CURVE and the other does not.
    SecurityMismatch,
    /// A connection that worked was lost before the reply arrived.
    ConnectionLost,
    /// A request, reply or event is larger than a limit allows.
    TooLarge,
    /// The store of outcomes has no room for another record.
    StoreFull,
    /// No access rule allows the call.
    AccessDenied,
    /// The server is shutting down.
    ShuttingDown,
    /// This client was closed.
    ClientClosed,
    /// The tokio runtime that the client was made in has shut down. Make a new client.
    RuntimeShutDown,
    /// A message cannot be decoded.
    Unreadable,
    /// A plain struct has a member of a union that the program's schema does not have, so it cannot be sent.
    NotInSchema,
}

impl Reason {
    const ALL: [Self; 27] = [
        Self::KeyReused,
        Self::KeyExpired,
        Self::InProgress,
        Self::InDoubt,
        Self::ReplyNotRetained,
        Self::KeyUnknown,
        Self::Superseded,
        Self::StoreUnavailable,
        Self::Overloaded,
        Self::CircuitOpen,
        Self::NameNotFound,
        Self::ConnectionRefused,
        Self::Unreachable,
        Self::NotZeromq,
        Self::WrongSocketType,
        Self::KeyRejected,
        Self::WrongServerKey,
        Self::SecurityMismatch,
        Self::ConnectionLost,
        Self::TooLarge,
        Self::StoreFull,
        Self::AccessDenied,
        Self::ShuttingDown,
        Self::ClientClosed,
        Self::RuntimeShutDown,
        Self::Unreadable,
        Self::NotInSchema,
    ];

    /// Its number on the wire, from 1.
    pub fn number(self) -> u16 {
        self as u16 + 1
    }

    /// The reason of a number; none for 0, and for one that this version does not have.
    pub fn from_number(number: u16) -> Option<Self> {
        let index = number.checked_sub(1)?;
        Self::ALL.get(usize::from(index)).copied()
    }
}

/// What kind of failure. The numbers on the wire are gRPC's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The caller gave up.
    Cancelled,
    /// A failure that nobody classified, or a code that this version does not know.
    Unknown,
    /// The request is wrong, whatever the state of the service.
    InvalidArgument,
    /// The time was up.
    DeadlineExceeded,
    /// What was asked for is not there.
    NotFound,
    /// What should be made is there already.
    AlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// A limit is reached: of the service, or of the caller's share of it.
    ResourceExhausted,
    /// The service is not in the state that the request needs.
    FailedPrecondition,
    /// Lost against a concurrent change.
    Aborted,
    /// Past the end.
    OutOfRange,
    /// The service does not have this interface or method.
    Unimplemented,
    /// A bug, in the service or on the way.
    Internal,
    /// Nobody is there to answer, or they are leaving.
    Unavailable,
    /// Stored data is lost or damaged.
    DataLoss,
    /// Nobody knows who the caller is.
    Unauthenticated,
}

impl Code {
    const ALL: [Self; 16] = [
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// Its number on the wire, 1 to 16.
    pub fn number(self) -> u16 {
        self as u16 + 1
    }

    /// The code of a number; [`Code::Unknown`] for one that this version does not have.
    pub fn from_number(number: u16) -> Self {
        number
            .checked_sub(1)
            .and_then(|index| Self::ALL.get(usize::from(index)))
            .copied()
            .unwrap_or(Self::Unknown)
    }
}

impl Status {
    /// Longest message that is sent to another process, in bytes of UTF-8; the rest is cut off.
    pub const MESSAGE_BYTES_MAX: usize = 8 * 1024;

    /// A status of any kind.
    pub fn new(code: Code, work: Work, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            code,
            work,
            message: message.into(),
            retry_after: None,
            reason: None,
            unreadable: Unreadable(false),
            origin: Origin::Other,
        }))
    }

    /// The request is wrong. Nothing was done.
    pub fn invalid_argument(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidArgument, Work::NotDone, message)
    }

    /// What was asked for is not there. Nothing was done.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::NotFound, Work::NotDone, message)
    }

    /// The caller may not do this. Nothing was done.
    pub fn permission_denied(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::PermissionDenied, Work::NotDone, message)
    }

    /// A limit is reached. Nothing was done.
    pub fn resource_exhausted(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::ResourceExhausted, Work::NotDone, message)
    }

    /// Nobody is there to answer. Nothing was done.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unavailable, Work::NotDone, message)
    }

    /// Something broke while the work was done.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Internal, Work::OutcomeUnknown, message)
    }

    /// A store, a database or a queue that the work needs failed, and nothing was done: for
    /// `map_err` where the writes that failed are undone.
    pub fn from_store(error: impl fmt::Display) -> Self {
        Self::unavailable(error.to_string())
    }

    /// The time was up.
    pub fn deadline_exceeded(work: Work) -> Self {
        Self::new(Code::DeadlineExceeded, work, "the deadline has passed")
    }

    /// No such method: what a service answers to a method that it does not have. Generated code calls this.
    pub fn unknown_method(interface: u64, method: u16) -> Self {
        Self::new(
            Code::Unimplemented,
            Work::NotDone,
            format!("interface {interface:#x} has no method {method} here"),
        )
    }

    /// A plain struct of a newer schema than this program's, which cannot be passed on as such.
    pub(crate) fn not_in_schema(work: Work, error: &MessageError) -> Self {
        Self::new(Code::Unimplemented, work, error.to_string()).with_reason(Reason::NotInSchema)
    }

    /// The same, saying how long to wait before the next attempt.
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// The same, saying something else about the work.
    pub fn with_work(mut self, work: Work) -> Self {
        self.0.work = work;
        self
    }

    /// The same, saying which case it is.
    pub fn with_reason(mut self, reason: Reason) -> Self {
        self.0.reason = Some(reason);
        self
    }

    pub(crate) fn with_message(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.0.message = message.into();
        self
    }

    pub(crate) fn with_origin(mut self, origin: Origin) -> Self {
        self.0.origin = origin;
        self
    }

    pub(crate) fn origin(&self) -> Origin {
        self.0.origin
    }

    /// Returns whether this process made it for a connection that is down or was lost. One that a server
    /// passes on from a connection of its own is not.
    pub(crate) fn is_of_connection(&self) -> bool {
        matches!(self.0.origin, Origin::Connection)
    }

    /// What kind of failure.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Whether the work was done.
    pub fn work(&self) -> Work {
        self.0.work
    }

    /// For a person to read.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// As much of the message as is sent to another process.
    pub(crate) fn message_to_send(&self) -> &str {
        let message = self.message();
        &message[..message.floor_char_boundary(Self::MESSAGE_BYTES_MAX)]
    }

    /// How long to wait before the next attempt, where the server said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Which case of its code it is, where that makes a difference.
    pub fn reason(&self) -> Option<Reason> {
        self.0.reason
    }

    /// Whether a message that could not be read here is what it comes from, and not what it passes on.
    pub(crate) fn is_of_unreadable(&self) -> bool {
        self.0.unreadable.0
    }

    /// The request itself cannot be read: its caller's error. Whether that was found before anything was done,
    /// the caller of this knows.
    pub(crate) fn of_request(error: MessageError, work: Work) -> Self {
        let mut status = Self::from(error).with_work(work);
        status.0.code = match status.reason() {
            Some(Reason::TooLarge) => Code::ResourceExhausted,
            Some(Reason::NotInSchema) => Code::Unimplemented,
            _ => Code::InvalidArgument,
        };
        status
    }

    /// The same where all that was read is a request, and before anything was done.
    pub(crate) fn read_first(mut self) -> Self {
        if self.is_of_unreadable() {
            self.0.work = Work::NotDone;
            self.0.code = Code::InvalidArgument;
        }
        self
    }

    /// Finds the status in an error that came through layers which box theirs.
    ///
    /// An error that is none becomes [`Code::Unknown`] with its text, outcome unknown.
    pub fn from_error(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        match error.downcast::<Self>() {
            Ok(status) => *status,
            Err(error) => Self::new(Code::Unknown, Work::OutcomeUnknown, error.to_string()),
        }
    }
}

impl From<MessageError> for Status {
    /// For `?` in a handler: [`Code::Internal`], outcome unknown, since the handler may have acted before it
    /// read, and what it read may be another service's reply. Where it is the handler's own request,
    /// [`Request::get`](crate::Request::get) and [`Request::plain`](crate::Request::plain) say so.
    fn from(error: MessageError) -> Self {
        if let MessageError::NotInSchema { .. } = error {
            return Self::not_in_schema(Work::OutcomeUnknown, &error);
        }
        let reason = match error {
            MessageError::TooLarge { .. } => Reason::TooLarge,
            _ => Reason::Unreadable,
        };
        let mut status = Self::internal(error.to_string()).with_reason(reason);
        status.0.unreadable = Unreadable(true);
        status
    }
}

impl From<capnp::Error> for Status {
    fn from(error: capnp::Error) -> Self {
        MessageError::from(error).into()
    }
}

impl From<std::str::Utf8Error> for Status {
    fn from(error: std::str::Utf8Error) -> Self {
        MessageError::from(error).into()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let work = match self.work() {
            Work::NotDone => "not done",
            Work::OutcomeUnknown => "outcome unknown",
            Work::Done => "done",
        };
        write!(f, "{:?} ({work}): {}", self.code(), self.message())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}
