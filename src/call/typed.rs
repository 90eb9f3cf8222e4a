//! Requests and replies as handlers and callers see them: with the types of the schema.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use capnp::traits::Owned;
use tokio::time::Instant;

use super::{Outcome, RawReply, RawRequest};
use crate::message::{self, MessageError, Msg, Plain};
use crate::security::Principal;
use crate::wire::{Code, Metadata, Reason, RequestId, Status, TraceContext, Work};

/// A request as its handler sees it.
#[derive(Debug)]
pub struct Request<P: Plain> {
    message: Msg<P>,
    /// Without its body, which is the message.
    raw: RawRequest,
}

impl<P: Plain> Request<P> {
    /// Opens the body; generated servers call this.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for a body that is no message or costs too much to read,
    /// [`Code::ResourceExhausted`] for one that is too large; not done.
    pub fn open(mut raw: RawRequest) -> Result<Self, Status> {
        let body = std::mem::take(&mut raw.body);
        match Msg::open(body, &raw.limits) {
            Ok(message) => Ok(Self { message, raw }),
            Err(error) => Err(Status::of_request(error, Work::NotDone)),
        }
    }

    /// Reads the parameters in place.
    ///
    /// # Errors
    /// As [`Msg::get`]. In a handler, `?` answers the caller with [`Code::InvalidArgument`], outcome unknown:
    /// only the handler knows whether it has acted before.
    pub fn get(&self) -> Result<<P::Capnp as Owned>::Reader<'_>, RequestError> {
        self.message.get().map_err(RequestError)
    }

    /// Copies the parameters into a plain struct.
    ///
    /// # Errors
    /// As [`Msg::plain`]; `?` in a handler as with [`get`](Self::get).
    pub fn plain(&self) -> Result<P, RequestError> {
        self.message.plain().map_err(RequestError)
    }

    /// Returns the parameters as the message that they are, to be passed on whole.
    pub fn message(&self) -> &Msg<P> {
        &self.message
    }

    /// Who asks, as a key has proved it; `None` where the server has no keys.
    pub fn principal(&self) -> Option<&Principal> {
        self.raw.principal.as_ref()
    }

    /// What makes two requests the same.
    pub fn id(&self) -> &RequestId {
        &self.raw.id
    }

    /// 0 for the caller's first attempt.
    pub fn attempt(&self) -> u16 {
        self.raw.attempt
    }

    /// When the caller gives up, if it said so.
    pub fn deadline(&self) -> Option<Instant> {
        self.raw.deadline
    }

    /// How long the caller will still wait. Zero once it has given up.
    pub fn remaining(&self) -> Option<Duration> {
        self.raw
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// What the caller sent beside the parameters.
    pub fn metadata(&self) -> &Metadata {
        &self.raw.metadata
    }

    /// The transaction that the work of an `$atomic` method commits in, together with its outcome:
    /// the [`Transaction`](crate::once::Store::Transaction) of the server's store.
    ///
    /// # Errors
    /// [`Code::Internal`], outcome unknown, where the method is not `$atomic` or the store hands out another type.
    pub fn transaction<T: Send + Sync + 'static>(&self) -> Result<Arc<T>, Status> {
        let transaction = self.raw.transaction.clone();
        transaction
            .and_then(|transaction| transaction.0.downcast().ok())
            .ok_or_else(|| {
                Status::internal("the server's store has no such transaction for this method")
            })
    }

    /// The trace that the call is part of.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.raw.trace.as_deref()
    }
}

/// Why a handler's own request could not be read.
///
/// Becomes a [`Status`] with [`Code::InvalidArgument`]: other messages that a handler reads, such as replies
/// of other services, are not its caller's fault.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub struct RequestError(MessageError);

impl From<RequestError> for MessageError {
    fn from(error: RequestError) -> Self {
        error.0
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        Self::of_request(error.0, Work::OutcomeUnknown)
    }
}

impl<E> From<RequestError> for Failure<E> {
    fn from(error: RequestError) -> Self {
        Self::Status(error.into())
    }
}

/// What a handler answers: a plain struct, or a message built in place.
///
/// ```
/// # use bowline::{Link, Reply};
/// let plain: Reply<Link<String>> = Link::default().into();
/// let in_place = Reply::<Link<String>>::build(|mut link| link.set_service("login"));
/// ```
#[derive(Debug)]
pub struct Reply<R: Plain> {
    content: Content<R>,
    metadata: Metadata,
}

enum Content<R> {
    Plain(R),
    Built(Bytes),
    Failed(MessageError),
}

impl<R> fmt::Debug for Content<R> {
    /// Not the content: it may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "plain",
            Self::Built(_) => "built",
            Self::Failed(_) => "failed",
        })
    }
}

impl<R: Plain> Reply<R> {
    /// Builds the results in the buffer that is sent.
    pub fn build(build: impl FnOnce(<R::Capnp as Owned>::Builder<'_>)) -> Self {
        Self {
            content: match built::<R>(build) {
                Ok(body) => Content::Built(body),
                Err(error) => Content::Failed(error),
            },
            metadata: Metadata::new(),
        }
    }

    /// What is encoded already.
    #[cfg(any(feature = "durable", feature = "postgres"))]
    pub(crate) fn encoded(raw: RawReply) -> Self {
        Self {
            content: Content::Built(raw.body),
            metadata: raw.metadata,
        }
    }

    /// The same, with metadata beside it.
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }
}

impl<R: Plain> From<R> for Reply<R> {
    fn from(plain: R) -> Self {
        Self {
            content: Content::Plain(plain),
            metadata: Metadata::new(),
        }
    }
}

impl<R: Plain> From<Response<R>> for Reply<R> {
    /// Passes on what another service answered, without reading it.
    fn from(response: Response<R>) -> Self {
        Self {
            content: Content::Built(response.raw.body),
            metadata: response.raw.metadata,
        }
    }
}

pub(super) fn built<P: Plain>(
    build: impl FnOnce(<P::Capnp as Owned>::Builder<'_>),
) -> Result<Bytes, MessageError> {
    let bytes = message::build_with::<P::Capnp>(build);
    message::check_nesting::<P>(&bytes)?;
    Ok(bytes)
}

/// Turns what a handler returned into what is sent; generated servers call this.
///
/// # Errors
/// The handler's status, or [`Code::Internal`] where a plain struct has no encoding.
pub fn answer<R: Plain, E: MethodError>(result: Result<Reply<R>, E>) -> Result<RawReply, Status> {
    let reply = match result {
        Ok(reply) => reply,
        Err(error) => return error.into_reply(),
    };
    let body = match reply.content {
        Content::Built(body) => body,
        Content::Failed(error) => return Err(cannot_encode(error)),
        Content::Plain(plain) => plain.to_bytes().map_err(cannot_encode)?,
    };
    let mut raw = RawReply::new(Outcome::Success, body);
    raw.metadata = reply.metadata;
    Ok(raw)
}

fn cannot_encode(error: MessageError) -> Status {
    if let MessageError::NotInSchema { .. } = error {
        return Status::not_in_schema(Work::OutcomeUnknown, &error);
    }
    Status::internal(format!("the reply has no encoding: {error}"))
}

/// A reply as its caller sees it.
#[derive(Debug)]
pub struct Response<R: Plain> {
    message: Msg<R>,
    raw: RawReply,
}

impl<R: Plain> Response<R> {
    fn open(raw: RawReply) -> Result<Self, Status> {
        let message = Msg::open(raw.body.clone(), &raw.limits).map_err(cannot_read)?;
        Ok(Self { message, raw })
    }

    /// The results, read in place.
    ///
    /// # Errors
    /// As [`Msg::get`].
    pub fn get(&self) -> Result<<R::Capnp as Owned>::Reader<'_>, MessageError> {
        self.message.get()
    }

    /// The results as a plain struct.
    ///
    /// # Errors
    /// As [`Msg::plain`].
    pub fn plain(&self) -> Result<R, MessageError> {
        self.message.plain()
    }

    /// Returns the results as the message that they are, to be passed on whole.
    pub fn message(&self) -> &Msg<R> {
        &self.message
    }

    /// Whether this is the stored reply to an earlier attempt.
    pub fn is_replayed(&self) -> bool {
        self.raw.replayed
    }

    /// What the service sent beside the results.
    pub fn metadata(&self) -> &Metadata {
        &self.raw.metadata
    }
}

/// The work was done; only its result cannot be read here.
fn cannot_read(error: MessageError) -> Status {
    let (code, reason) = match error {
        MessageError::TooLarge { .. } => (Code::ResourceExhausted, Reason::TooLarge),
        _ => (Code::Internal, Reason::Unreadable),
    };
    let message = format!("the reply cannot be read: {error}");
    Status::new(code, Work::Done, message).with_reason(reason)
}

pub(super) fn received<R: Plain, E: MethodError>(
    result: Result<RawReply, Status>,
) -> Result<Response<R>, E> {
    let raw = result?;
    match raw.outcome {
        Outcome::Success => Ok(Response::open(raw)?),
        Outcome::ApplicationError => Err(E::from_reply(raw)),
    }
}

/// How a method with `$fails(…)` fails: with the error that its schema names, or with a status.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure<E> {
    /// The method's own error: an outcome, of work that was done.
    Application(E),
    /// Anything else.
    Status(Status),
}

impl<E> From<Status> for Failure<E> {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl<E: Plain> From<E> for Failure<E> {
    fn from(error: E) -> Self {
        Self::Application(error)
    }
}

impl<E> From<MessageError> for Failure<E> {
    fn from(error: MessageError) -> Self {
        Self::Status(error.into())
    }
}

impl<E> From<capnp::Error> for Failure<E> {
    fn from(error: capnp::Error) -> Self {
        Self::Status(error.into())
    }
}

impl<E> From<std::str::Utf8Error> for Failure<E> {
    fn from(error: std::str::Utf8Error) -> Self {
        Self::Status(error.into())
    }
}

impl<E: fmt::Debug> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Application(error) => write!(f, "{error:?}"),
            Self::Status(status) => status.fmt(f),
        }
    }
}

impl<E: fmt::Debug> std::error::Error for Failure<E> {}

/// The error type of a method: [`Status`], or [`Failure`] where its schema says `$fails`.
pub trait MethodError: From<Status> + Sized {
    /// On its way out of a service.
    ///
    /// # Errors
    /// The status, where it is one.
    fn into_reply(self) -> Result<RawReply, Status>;

    /// From a reply whose outcome is an application error.
    fn from_reply(reply: RawReply) -> Self;
}

impl MethodError for Status {
    fn into_reply(self) -> Result<RawReply, Status> {
        Err(self)
    }

    fn from_reply(_: RawReply) -> Self {
        Self::new(
            Code::Unknown,
            Work::OutcomeUnknown,
            "an application error that this program's schema does not name",
        )
    }
}

impl<E: Plain> MethodError for Failure<E> {
    fn into_reply(self) -> Result<RawReply, Status> {
        match self {
            Self::Application(error) => {
                let body = error.to_bytes().map_err(cannot_encode)?;
                Ok(RawReply::new(Outcome::ApplicationError, body))
            }
            Self::Status(status) => Err(status),
        }
    }

    fn from_reply(reply: RawReply) -> Self {
        let error = Msg::<E>::open(reply.body, &reply.limits).and_then(|message| message.plain());
        match error {
            Ok(error) => Self::Application(error),
            Err(error) => Self::Status(cannot_read(error)),
        }
    }
}
