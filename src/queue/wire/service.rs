//! Queues of this process, as a service for producers and workers in others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower_service::Service;

use super::codec;
use super::{
    ANSWER, BATCH_BYTES_MAX, BATCH_JOBS_MAX, COUNTERS, DEAD_LETTERS, DELETE, DESCRIBE, FIND, INFO,
    LEASE, LEAVE, PUSH, RENEW, SEND_BACK,
};
use crate::call::{NamedService, Outcome, QueueAccess, RawReply, RawRequest, ReplyFuture, park};
use crate::message;
use crate::queue::{
    Credit, Engine, EngineWorker, JobId, JobNumber, Queue, QueueError, Queueable, Stale,
};
use crate::queue_capnp::{self as wire, job_queue};
use crate::schema::ServiceInfo;
use crate::security::QueueRight;
use crate::wire::{Status, Work};

/// Of a caller's time, what is kept for its answer to travel.
const MARGIN: Duration = Duration::from_millis(20);
/// The longest that a push waits for room here; its caller may ask again.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);
/// Dead letters of one reply.
const LETTERS_MAX: usize = 1000;
/// Workers that are known at once; those that were heard of longest ago are forgotten, and their leases end.
const SESSIONS_MAX: usize = 10_000;

/// Serves queues: one service of a [`Server`](crate::Server), under the interface of `schema/queue.capnp`.
///
/// ```
/// # use bowline_test_schemas::everything::Thumbnail;
/// # use bowline::queue::{Queue, QueueOptions, QueueService};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let thumbnails = Queue::<Thumbnail>::memory(QueueOptions::default());
/// let server = bowline::Server::builder()
///     .service(QueueService::new().queue(&thumbnails))
///     .bind("tcp://127.0.0.1:0")
///     .await?
///     .spawn();
///
/// let queue = Queue::<Thumbnail>::connect(server.endpoint().to_string()).await?;
/// queue.push(&Thumbnail { image: "cat.jpg".into(), ..Default::default() }).await?;
/// # assert_eq!(thumbnails.counters().await?.ready, 1);
/// # server.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct QueueService(Arc<Inner>);

#[derive(Clone, Default)]
struct Inner {
    queues: HashMap<String, Arc<dyn Engine>>,
    workers: Arc<Mutex<Workers>>,
}

/// Who works, and when each was last heard of.
type Workers = HashMap<Session, (Arc<dyn EngineWorker>, Instant)>;

/// The queue, the group and the worker's own number.
type Session = (String, String, u64);

impl QueueService {
    /// Without queues.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a queue, under the name in its schema.
    #[must_use]
    pub fn queue<T: Queueable>(self, queue: &Queue<T>) -> Self {
        self.engine(T::NAME, Arc::clone(queue.engine()))
    }

    /// With an engine, under any name.
    #[must_use]
    pub fn engine(mut self, name: impl Into<String>, engine: Arc<dyn Engine>) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.queues.insert(name.into(), engine);
        self
    }
}

impl std::fmt::Debug for QueueService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.queues.keys()).finish()
    }
}

impl NamedService for QueueService {
    const INFO: &'static ServiceInfo = &INFO;

    fn queue_names(&self) -> Option<Vec<String>> {
        Some(self.0.queues.keys().cloned().collect())
    }

    fn queue_of(request: &RawRequest) -> Result<Option<QueueAccess>, Status> {
        queue_of(request).map_err(Status::read_first)
    }
}

fn queue_of(request: &RawRequest) -> Result<Option<QueueAccess>, Status> {
    use QueueRight::{Manage, Push, Work};
    let message = message::open(request.body.clone(), &request.limits)?;
    macro_rules! queue {
        ($params:ident) => {
            text(
                message
                    .get_root::<job_queue::$params::Reader<'_>>()?
                    .get_queue()?,
            )?
        };
    }
    let (queue, rights): (_, &[QueueRight]) = match request.method {
        // Whoever may do anything with a queue has to find it first.
        DESCRIBE => (queue!(describe_params), &[Push, Work, Manage]),
        PUSH => (queue!(push_params), &[Push]),
        FIND => (queue!(find_params), &[Push, Manage]),
        LEASE => (queue!(lease_params), &[Work]),
        ANSWER => (queue!(answer_params), &[Work]),
        RENEW => (queue!(renew_params), &[Work]),
        LEAVE => (queue!(leave_params), &[Work]),
        COUNTERS => (queue!(counters_params), &[Work, Manage]),
        DEAD_LETTERS => (queue!(dead_letters_params), &[Manage]),
        SEND_BACK => (queue!(send_back_params), &[Manage]),
        DELETE => (queue!(delete_params), &[Manage]),
        method => return Err(Status::unknown_method(request.interface, method)),
    };
    Ok(Some((queue, rights)))
}

impl Service<RawRequest> for QueueService {
    type Response = RawReply;
    type Error = Status;
    type Future = ReplyFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RawRequest) -> ReplyFuture {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            // All that it reads is the request, before it does anything.
            let body = inner.answer(request).await.map_err(Status::read_first)?;
            Ok(RawReply::new(Outcome::Success, body))
        })
    }
}

impl From<QueueError> for Status {
    fn from(error: QueueError) -> Self {
        let message = error.to_string();
        match error {
            QueueError::Full => Self::resource_exhausted(message),
            QueueError::TooLarge { .. } | QueueError::Message(_) => Self::invalid_argument(message),
            QueueError::Denied => Self::permission_denied(message),
            QueueError::NoSuchGroup(_) => Self::not_found(message),
            QueueError::Unavailable { work, .. } => Self::unavailable(message).with_work(work),
            QueueError::Closed => Self::unavailable(message),
            QueueError::Unsupported(_) => {
                Self::new(crate::wire::Code::Unimplemented, Work::NotDone, message)
            }
            QueueError::Stale(Stale) => Self::new(
                crate::wire::Code::FailedPrecondition,
                Work::NotDone,
                message,
            ),
        }
    }
}

impl Inner {
    async fn answer(&self, request: RawRequest) -> Result<bytes::Bytes, Status> {
        let until = request.deadline.map_or_else(
            || Instant::now() + super::CALL,
            |deadline| deadline.checked_sub(MARGIN).unwrap_or(deadline),
        );
        let message = message::open(request.body, &request.limits)?;
        match request.method {
            DESCRIBE => {
                let (engine, group) = {
                    let from = message.get_root::<job_queue::describe_params::Reader<'_>>()?;
                    (self.find(from.get_queue()?)?, text(from.get_group()?)?)
                };
                let lease = match group.is_empty() {
                    true => Duration::ZERO,
                    false => engine.worker(&group).await?.lease_time(),
                };
                Ok(codec::build::<wire::description::Owned>(|to| {
                    codec::write_description(to, lease, engine.capabilities());
                }))
            }
            PUSH => {
                let (engine, jobs, wait) = {
                    let from = message.get_root::<job_queue::push_params::Reader<'_>>()?;
                    let jobs: capnp::Result<Vec<_>> =
                        from.get_jobs()?.iter().map(codec::read_new_job).collect();
                    let wait = Duration::from_micros(from.get_wait_microseconds());
                    (self.find(from.get_queue()?)?, jobs?, wait)
                };
                drop(message);
                let wait = Instant::now() + wait.min(WAIT_MAX);
                let results = engine.push(jobs, wait.min(until)).await?;
                let mut failed = Ok(());
                let body = codec::build::<job_queue::push_results::Owned>(|to| {
                    let mut list = to.init_results(results.len() as u32);
                    for (index, pushed) in (0..).zip(&results) {
                        let written = codec::write_pushed(list.reborrow().get(index), pushed);
                        if written.is_err() {
                            failed = written;
                        }
                    }
                });
                failed?;
                Ok(body)
            }
            LEASE => {
                let (session, credit, wait) = {
                    let from = message.get_root::<job_queue::lease_params::Reader<'_>>()?;
                    let session = (
                        text(from.get_queue()?)?,
                        text(from.get_group()?)?,
                        from.get_session(),
                    );
                    (
                        session,
                        codec::read_credit(from.get_credit()?),
                        Duration::from_micros(from.get_wait_microseconds()),
                    )
                };
                let worker = self.worker(session).await?;
                let credit = Credit {
                    jobs: credit.jobs.min(BATCH_JOBS_MAX),
                    bytes: credit.bytes.min(BATCH_BYTES_MAX),
                    ..credit
                };
                let wait = Instant::now() + wait.min(super::CALL);
                // What is not needed to wait is not kept meanwhile.
                drop((message, request.metadata, request.trace));
                let jobs = park(worker.lease(credit, wait.min(until))).await?;
                Ok(codec::build::<job_queue::lease_results::Owned>(|to| {
                    let mut list = to.init_jobs(jobs.len() as u32);
                    for (index, job) in (0..).zip(&jobs) {
                        codec::write_leased(list.reborrow().get(index), job);
                    }
                }))
            }
            ANSWER => {
                let (session, answers) = {
                    let from = message.get_root::<job_queue::answer_params::Reader<'_>>()?;
                    let session = (
                        text(from.get_queue()?)?,
                        text(from.get_group()?)?,
                        from.get_session(),
                    );
                    let answers: capnp::Result<Vec<_>> =
                        from.get_answers()?.iter().map(codec::read_answer).collect();
                    (session, answers?)
                };
                let worker = self.worker(session).await?;
                let held = worker.answer(answers).await?;
                Ok(codec::build::<job_queue::answer_results::Owned>(|to| {
                    let mut list = to.init_held(held.len() as u32);
                    for (index, held) in (0..).zip(&held) {
                        list.set(index, held.is_ok());
                    }
                }))
            }
            RENEW => {
                let (session, leases) = {
                    let from = message.get_root::<job_queue::renew_params::Reader<'_>>()?;
                    let session = (
                        text(from.get_queue()?)?,
                        text(from.get_group()?)?,
                        from.get_session(),
                    );
                    let leases: Vec<_> = from.get_leases()?.iter().map(codec::read_lease).collect();
                    (session, leases)
                };
                let worker = self.worker(session).await?;
                let held = worker.renew(leases).await?;
                Ok(codec::build::<job_queue::renew_results::Owned>(|to| {
                    let mut list = to.init_held(held.len() as u32);
                    for (index, held) in (0..).zip(&held) {
                        list.set(index, held.is_ok());
                    }
                }))
            }
            LEAVE => {
                let session = {
                    let from = message.get_root::<job_queue::leave_params::Reader<'_>>()?;
                    (
                        text(from.get_queue()?)?,
                        text(from.get_group()?)?,
                        from.get_session(),
                    )
                };
                let worker = self.lock().remove(&session);
                if let Some((worker, _)) = worker {
                    worker.leave().await?;
                }
                Ok(codec::build::<job_queue::leave_results::Owned>(|_| {}))
            }
            DEAD_LETTERS => {
                let (engine, group, after, max) = {
                    let from = message.get_root::<job_queue::dead_letters_params::Reader<'_>>()?;
                    let after = from.get_has_after().then(|| JobNumber(from.get_after()));
                    (
                        self.find(from.get_queue()?)?,
                        text(from.get_group()?)?,
                        after,
                        from.get_max() as usize,
                    )
                };
                let max = max.min(LETTERS_MAX);
                let mut letters = engine.dead_letters(&group, after, max).await?;
                let mut bytes = 0;
                let fitting = letters.iter().take_while(|letter| {
                    let causes = letter.failures.iter().map(|failure| failure.cause.len());
                    bytes += letter.body.len() + causes.sum::<usize>() + 256;
                    bytes <= BATCH_BYTES_MAX
                });
                // One at least, or nobody could ever look at it; the others are asked for next.
                let fitting = fitting.count().max(1);
                letters.truncate(fitting);
                Ok(codec::build::<job_queue::dead_letters_results::Owned>(
                    |to| {
                        let mut list = to.init_letters(letters.len() as u32);
                        for (index, letter) in (0..).zip(&letters) {
                            codec::write_dead(list.reborrow().get(index), letter);
                        }
                    },
                ))
            }
            SEND_BACK => {
                let (engine, group, numbers) = {
                    let from = message.get_root::<job_queue::send_back_params::Reader<'_>>()?;
                    let numbers = from.get_numbers()?.iter().map(JobNumber).collect();
                    (
                        self.find(from.get_queue()?)?,
                        text(from.get_group()?)?,
                        numbers,
                    )
                };
                let count = engine.send_back(&group, numbers).await?;
                Ok(codec::build::<job_queue::send_back_results::Owned>(
                    |mut to| to.set_count(count as u32),
                ))
            }
            DELETE => {
                let (engine, group, numbers) = {
                    let from = message.get_root::<job_queue::delete_params::Reader<'_>>()?;
                    let numbers = from.get_numbers()?.iter().map(JobNumber).collect();
                    (
                        self.find(from.get_queue()?)?,
                        text(from.get_group()?)?,
                        numbers,
                    )
                };
                let count = engine.delete(&group, numbers).await?;
                Ok(codec::build::<job_queue::delete_results::Owned>(
                    |mut to| to.set_count(count as u32),
                ))
            }
            FIND => {
                let (engine, id) = {
                    let from = message.get_root::<job_queue::find_params::Reader<'_>>()?;
                    let id = JobId::new(bytes::Bytes::copy_from_slice(from.get_id()?));
                    let id = id.map_err(|error| Status::invalid_argument(error.to_string()))?;
                    (self.find(from.get_queue()?)?, id)
                };
                let found = engine.find(&id).await?;
                Ok(codec::build::<job_queue::find_results::Owned>(|to| {
                    codec::write_found(to, found);
                }))
            }
            COUNTERS => {
                let (engine, group) = {
                    let from = message.get_root::<job_queue::counters_params::Reader<'_>>()?;
                    (self.find(from.get_queue()?)?, text(from.get_group()?)?)
                };
                let counters = engine.counters(&group).await?;
                Ok(codec::build::<wire::counters::Owned>(|to| {
                    codec::write_counters(to, counters);
                }))
            }
            method => Err(Status::unknown_method(request.interface, method)),
        }
    }

    fn find(&self, queue: capnp::text::Reader<'_>) -> Result<Arc<dyn Engine>, Status> {
        let name = queue.to_str()?;
        let engine = self.queues.get(name);
        engine
            .cloned()
            .ok_or_else(|| Status::not_found(format!("no queue called {name:?}")))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker of a session, which joins its group when it is first heard of.
    async fn worker(&self, session: Session) -> Result<Arc<dyn EngineWorker>, Status> {
        if let Some((worker, heard)) = self.lock().get_mut(&session) {
            *heard = Instant::now();
            return Ok(Arc::clone(worker));
        }
        let (queue, group, _) = &session;
        let engine = self
            .queues
            .get(queue)
            .ok_or_else(|| Status::not_found(format!("no queue called {queue:?}")))?;
        let worker: Arc<dyn EngineWorker> = Arc::from(engine.worker(group).await?);
        let mut workers = self.lock();
        if workers.len() >= SESSIONS_MAX {
            let oldest = workers.iter().min_by_key(|(_, (_, heard))| *heard);
            if let Some(oldest) = oldest.map(|(session, _)| session.clone()) {
                workers.remove(&oldest);
            }
        }
        // Two first requests of one session may come together; one worker is kept.
        let (worker, _) = workers
            .entry(session)
            .or_insert_with(|| (worker, Instant::now()));
        Ok(Arc::clone(worker))
    }
}

fn text(text: capnp::text::Reader<'_>) -> Result<String, Status> {
    Ok(text.to_str()?.to_owned())
}
