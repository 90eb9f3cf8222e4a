//! Work that is no call: a job of a queue, an HTTP request, a step of a script.

use bytes::Bytes;

use super::{Fingerprint, Key, Once, Store};
use crate::call::{Outcome, RawReply, RawRequest};
use crate::message::{Limits, Msg, Plain};
use crate::schema::{Effect, MethodInfo, Recovery};
use crate::wire::{RequestId, Status, Work};

/// What is to be done once: which work, under which ID.
///
/// ```
/// # use bowline::{RequestKey, once::Task};
/// # fn f() -> Result<(), bowline::RequestKeyError> {
/// let task = Task::new("thumbnails", RequestKey::new("photo-314")?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Task {
    scope: String,
    id: RequestId,
    parameters: Fingerprint,
    recovery: Recovery,
}

impl Task {
    /// `scope` names the kind of work: IDs are unique within it.
    pub fn new(scope: impl Into<String>, id: impl Into<RequestId>) -> Self {
        Self {
            scope: scope.into(),
            id: id.into(),
            parameters: Fingerprint::of_bytes(&[]),
            recovery: Recovery::InDoubt,
        }
    }

    /// What the work is done with. The same ID with other parameters is then refused.
    pub fn parameters(mut self, parameters: &[u8]) -> Self {
        self.parameters = Fingerprint::of_bytes(parameters);
        self
    }

    /// What a retry gets after a crash. Default: [`Recovery::InDoubt`].
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.recovery = recovery;
        self
    }
}

impl<T: Into<String>, Id: Into<RequestId>> From<(T, Id)> for Task {
    fn from((scope, id): (T, Id)) -> Self {
        Self::new(scope, id)
    }
}

/// A result that can be kept: nothing, or whatever a schema can say: text, bytes, a struct.
pub trait Keep: Sized + Send + 'static {
    /// As it is kept.
    ///
    /// # Errors
    /// Where it has no encoding.
    fn keep(self) -> Result<Bytes, Status>;

    /// As it was.
    ///
    /// # Errors
    /// Where the bytes are not of this type.
    fn restore(bytes: Bytes) -> Result<Self, Status>;
}

impl Keep for () {
    fn keep(self) -> Result<Bytes, Status> {
        Ok(Bytes::new())
    }

    fn restore(_: Bytes) -> Result<Self, Status> {
        Ok(())
    }
}

impl<P: Plain + Send + 'static> Keep for P {
    fn keep(self) -> Result<Bytes, Status> {
        self.to_bytes()
            .map_err(|error| Status::internal(format!("the result has no encoding: {error}")))
    }

    fn restore(bytes: Bytes) -> Result<Self, Status> {
        let plain = Msg::<P>::open(bytes, &Limits::default()).and_then(|message| message.plain());
        plain.map_err(|error| {
            Status::internal(format!("the kept result is of another type: {error}"))
                .with_work(Work::Done)
        })
    }
}

impl<S: Store> Once<S> {
    /// Does a piece of work unless it was done, and gives its result either way.
    ///
    /// An error of `work` that says [`Work::NotDone`] frees the ID; any other leaves it as
    /// [`Task::recovery`] says. Dropping the future does not stop work that has begun.
    ///
    /// ```
    /// # use bowline::{RequestKey, Status, once::{Once, MemoryStore}};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let once = Once::builder().build(MemoryStore::new())?;
    /// for _ in 0..2 {
    ///     let sent: String = once
    ///         .run(("welcome mail", RequestKey::new("ann")?), || async {
    ///             println!("this is printed once");
    ///             Ok("message 314".to_owned())
    ///         })
    ///         .await?;
    ///     assert_eq!(sent, "message 314");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of `work`, and those of a `$once` call: see [the statuses](crate::once#what-a-caller-is-told).
    pub async fn run<T, F, Fut>(&self, task: impl Into<Task>, work: F) -> Result<T, Status>
    where
        T: Keep,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let task = task.into();
        let key = Key::named(&task.scope, &task.id);
        let work = move |_| -> crate::call::ReplyFuture {
            Box::pin(async move { Ok(RawReply::new(Outcome::Success, work().await?.keep()?)) })
        };
        let request = RawRequest::new(&NO_METHOD, Bytes::new());
        let ended = self.attempt(key, task.parameters, task.recovery, request, work);
        T::restore(ended.await?.body)
    }

    /// The result of a piece of work, if it is done; waits for it if it runs.
    ///
    /// # Errors
    /// [`Reason::KeyUnknown`](crate::Reason::KeyUnknown) where nothing is recorded, and as [`run`](Self::run).
    pub async fn result<T: Keep>(&self, task: impl Into<Task>) -> Result<T, Status> {
        let task = task.into();
        let key = Key::named(&task.scope, &task.id);
        T::restore(self.clone().outcome(key, None).await?.body)
    }
}

static NO_METHOD: MethodInfo = MethodInfo {
    service: "",
    name: "",
    interface: 0,
    ordinal: 0,
    effect: Effect::Unsafe,
    timeout: None,
    params: 0,
    results: 0,
    fails: None,
};
