//! Queues of this process, as a service for producers and workers in others.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tower_service::Service;

use super::codec;
use super::sessions::{Calling, SessionKey, Sessions};
use super::{
    ANSWER, BATCH_BYTES_MAX, BATCH_JOBS_MAX, CANCEL, COUNTERS, DEAD_LETTERS, DELETE, DESCRIBE,
    FIND, INFO, JOB_BYTES_MAX, LEASE, LEAVE, PUSH, RENEW, RESCHEDULE, SEND_BACK,
};
use crate::call::{NamedService, Outcome, QueueAccess, RawReply, RawRequest, ReplyFuture, park};
use crate::message;
use crate::queue::{
    Answer, Credit, DeadLetter, Engine, JobFailure, JobId, JobNumber, LeasedJob, NewJob, Page,
    Queue, QueueError, QueueType, Queueable, Stale,
};
use crate::queue_capnp::{self as wire, job_queue};
use crate::schema::ServiceInfo;
use crate::security::{Address, QueueRight};
use crate::wire::{Reason, Status, Work};

/// Of a caller's time, what is kept for its answer to travel.
const MARGIN: Duration = Duration::from_millis(20);
/// The longest that a push waits for room here; its caller may ask again.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);
/// Dead letters of one reply.
const LETTERS_MAX: usize = 1000;
/// Bytes of causes that a letter of the largest size has room for.
const CAUSES_BYTES_MAX: usize = 32 << 10;

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
    queues: HashMap<String, Served>,
    sessions: Sessions,
    /// Counts up when a server of this service shuts down: calls that wait end.
    drains: watch::Sender<u64>,
}

#[derive(Clone)]
struct Served {
    engine: Arc<dyn Engine>,
    of: Option<QueueType>,
}

impl QueueService {
    /// Without queues.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a queue, under the name in its schema.
    #[must_use]
    pub fn queue<T: Queueable>(self, queue: &Queue<T>) -> Self {
        let of = QueueType {
            name: T::NAME.to_owned(),
            type_name: T::INFO.name.to_owned(),
            type_id: T::INFO.id,
        };
        self.serve(T::NAME.to_owned(), Arc::clone(queue.engine()), Some(of))
    }

    /// With an engine, under any name. It takes no jobs any more that are too large for a message: more than 960 KiB.
    #[must_use]
    pub fn engine(self, name: impl Into<String>, engine: Arc<dyn Engine>) -> Self {
        self.serve(name.into(), engine, None)
    }

    fn serve(mut self, name: String, engine: Arc<dyn Engine>, of: Option<QueueType>) -> Self {
        engine.limit_job_bytes(JOB_BYTES_MAX);
        let inner = Arc::make_mut(&mut self.0);
        inner.queues.insert(name, Served { engine, of });
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

    fn drain(&self) {
        self.0.drains.send_modify(|drains| *drains += 1);
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
        CANCEL => (queue!(cancel_params), &[Manage]),
        RESCHEDULE => (queue!(reschedule_params), &[Manage]),
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
            QueueError::Stale(Stale) | QueueError::WrongQueue { .. } => Self::new(
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
        let (principal, address) = (request.principal, request.address);
        let mut drains = self.drains.subscribe();
        // What is waited with is what was read: each arm lets go of the message first.
        let message = message::open(request.body, &request.limits)?;
        macro_rules! params {
            ($params:ident) => {
                message.get_root::<job_queue::$params::Reader<'_>>()?
            };
        }
        macro_rules! session {
            ($from:ident) => {
                SessionKey {
                    principal,
                    queue: text($from.get_queue()?)?,
                    group: text($from.get_group()?)?,
                    number: $from.get_session(),
                }
            };
        }
        match request.method {
            DESCRIBE => {
                let (served, group) = {
                    let from = params!(describe_params);
                    (
                        self.find(from.get_queue()?)?.clone(),
                        text(from.get_group()?)?,
                    )
                };
                drop(message);
                let lease = match group.is_empty() {
                    true => Duration::ZERO,
                    false => served.engine.worker(&group).await?.lease_time(),
                };
                Ok(codec::build::<wire::description::Owned>(|to| {
                    let can = served.engine.capabilities();
                    codec::write_description(to, lease, can, served.of.as_ref());
                }))
            }
            PUSH => {
                let (engine, jobs, wait) = {
                    let from = params!(push_params);
                    let list = from.get_jobs()?;
                    bounded(list.len())?;
                    let jobs: capnp::Result<Vec<_>> =
                        list.iter().map(codec::read_new_job).collect();
                    let wait = Duration::from_micros(from.get_wait_microseconds());
                    (self.engine(from.get_queue()?)?, jobs?, wait)
                };
                drop(message);
                if jobs.iter().any(|job| job.identity.producer.is_nil()) {
                    let reason = "a push whose identity names no producer: its UUID is all zeros";
                    return Err(Status::invalid_argument(reason));
                }
                let wait = Instant::now() + wait.min(WAIT_MAX);
                tokio::select! {
                    pushed = pushed(&*engine, jobs, wait.min(until)) => pushed,
                    _ = drains.changed() => Err(shutting_down()),
                }
            }
            LEASE => {
                let (session, credit, wait) = {
                    let from = params!(lease_params);
                    (
                        session!(from),
                        codec::read_credit(from.get_credit()?),
                        Duration::from_micros(from.get_wait_microseconds()),
                    )
                };
                drop(message);
                let calling = self.calling(session, address).await?;
                let credit = Credit {
                    jobs: credit.jobs.min(BATCH_JOBS_MAX),
                    bytes: credit.bytes.min(BATCH_BYTES_MAX),
                    // One that fits into the worker's credit, and not into what a message has beside others.
                    takes_any_first: credit.takes_any_first || credit.bytes >= JOB_BYTES_MAX,
                };
                let wait = Instant::now() + wait.min(super::CALL);
                // What is not needed to wait is not kept meanwhile.
                drop((request.metadata, request.trace));
                let jobs = park(async {
                    tokio::select! {
                        jobs = calling.lease(credit, wait.min(until)) => jobs,
                        _ = drains.changed() => Ok(Vec::new()),
                    }
                });
                let jobs = those_that_fit(&calling, jobs.await?).await?;
                Ok(codec::build::<job_queue::lease_results::Owned>(|to| {
                    let mut list = to.init_jobs(jobs.len() as u32);
                    for (index, job) in (0..).zip(&jobs) {
                        codec::write_leased(list.reborrow().get(index), job);
                    }
                }))
            }
            ANSWER => {
                let (session, answers) = {
                    let from = params!(answer_params);
                    let list = from.get_answers()?;
                    bounded(list.len())?;
                    let answers: capnp::Result<Vec<_>> =
                        list.iter().map(codec::read_answer).collect();
                    (session!(from), answers?)
                };
                drop(message);
                let calling = self.calling(session, address).await?;
                let answers = answers
                    .into_iter()
                    .map(|(number, token, answer)| (number, calling.bound(number, token), answer));
                let held = calling.worker.answer(answers.collect()).await?;
                Ok(codec::build::<job_queue::answer_results::Owned>(|to| {
                    let mut list = to.init_held(held.len() as u32);
                    for (index, held) in (0..).zip(&held) {
                        list.set(index, held.is_ok());
                    }
                }))
            }
            RENEW => {
                let (session, leases) = {
                    let from = params!(renew_params);
                    let list = from.get_leases()?;
                    bounded(list.len())?;
                    let leases: Vec<_> = list.iter().map(codec::read_lease).collect();
                    (session!(from), leases)
                };
                drop(message);
                let calling = self.calling(session, address).await?;
                let leases = leases
                    .into_iter()
                    .map(|(number, token)| (number, calling.bound(number, token)));
                let held = calling.worker.renew(leases.collect()).await?;
                Ok(codec::build::<job_queue::renew_results::Owned>(|to| {
                    let mut list = to.init_held(held.len() as u32);
                    for (index, held) in (0..).zip(&held) {
                        list.set(index, held.is_ok());
                    }
                }))
            }
            LEAVE => {
                let session = {
                    let from = params!(leave_params);
                    session!(from)
                };
                drop(message);
                if let Some(worker) = self.sessions.end(&session) {
                    worker.leave().await?;
                }
                Ok(codec::build::<job_queue::leave_results::Owned>(|_| {}))
            }
            DEAD_LETTERS => {
                let (engine, group, after, max) = {
                    let from = params!(dead_letters_params);
                    let after = from.get_has_after().then(|| JobNumber(from.get_after()));
                    (
                        self.engine(from.get_queue()?)?,
                        text(from.get_group()?)?,
                        after,
                        from.get_max() as usize,
                    )
                };
                drop(message);
                let max = max.min(LETTERS_MAX);
                let page = engine.dead_letters_page(&group, after, max).await?;
                Ok(letters(page))
            }
            SEND_BACK => {
                let (engine, group, numbers) = {
                    let from = params!(send_back_params);
                    let list = from.get_numbers()?;
                    bounded(list.len())?;
                    (
                        self.engine(from.get_queue()?)?,
                        text(from.get_group()?)?,
                        list.iter().map(JobNumber).collect(),
                    )
                };
                drop(message);
                let count = engine.send_back(&group, numbers).await?;
                Ok(codec::build::<job_queue::send_back_results::Owned>(
                    |mut to| to.set_count(count as u32),
                ))
            }
            DELETE => {
                let (engine, group, numbers) = {
                    let from = params!(delete_params);
                    let list = from.get_numbers()?;
                    bounded(list.len())?;
                    (
                        self.engine(from.get_queue()?)?,
                        text(from.get_group()?)?,
                        list.iter().map(JobNumber).collect(),
                    )
                };
                drop(message);
                let count = engine.delete(&group, numbers).await?;
                Ok(codec::build::<job_queue::delete_results::Owned>(
                    |mut to| to.set_count(count as u32),
                ))
            }
            FIND => {
                let (engine, id) = {
                    let from = params!(find_params);
                    (self.engine(from.get_queue()?)?, job_id(from.get_id()?)?)
                };
                drop(message);
                let found = engine.find(&id).await?;
                Ok(codec::build::<job_queue::find_results::Owned>(|to| {
                    codec::write_found(to, found);
                }))
            }
            CANCEL => {
                let (engine, id) = {
                    let from = params!(cancel_params);
                    (self.engine(from.get_queue()?)?, job_id(from.get_id()?)?)
                };
                drop(message);
                let change = engine.cancel(&id).await?;
                Ok(codec::build::<wire::job_change::Owned>(|to| {
                    codec::write_change(to, change);
                }))
            }
            RESCHEDULE => {
                let (engine, id, delay) = {
                    let from = params!(reschedule_params);
                    let delay = Duration::from_micros(from.get_delay_microseconds());
                    (
                        self.engine(from.get_queue()?)?,
                        job_id(from.get_id()?)?,
                        delay,
                    )
                };
                drop(message);
                let change = engine.reschedule(&id, delay).await?;
                Ok(codec::build::<wire::job_change::Owned>(|to| {
                    codec::write_change(to, change);
                }))
            }
            COUNTERS => {
                let (engine, group) = {
                    let from = params!(counters_params);
                    (self.engine(from.get_queue()?)?, text(from.get_group()?)?)
                };
                drop(message);
                let counters = engine.counters(&group).await?;
                Ok(codec::build::<wire::counters::Owned>(|to| {
                    codec::write_counters(to, counters);
                }))
            }
            method => Err(Status::unknown_method(request.interface, method)),
        }
    }

    fn find(&self, queue: capnp::text::Reader<'_>) -> Result<&Served, Status> {
        self.served(queue.to_str()?)
    }

    fn engine(&self, queue: capnp::text::Reader<'_>) -> Result<Arc<dyn Engine>, Status> {
        Ok(Arc::clone(&self.find(queue)?.engine))
    }

    fn served(&self, name: &str) -> Result<&Served, Status> {
        let served = self.queues.get(name);
        served.ok_or_else(|| Status::not_found(format!("no queue called {name:?}")))
    }

    /// A call of a session, which joins its group when it is first heard of.
    async fn calling(
        &self,
        session: SessionKey,
        address: Option<Address>,
    ) -> Result<Calling, Status> {
        if let Some(calling) = self.sessions.known(&session) {
            return Ok(calling);
        }
        let engine = &self.served(&session.queue)?.engine;
        let worker = engine.worker(&session.group).await?;
        self.sessions.call(session, address, worker)
    }
}

/// Of a push that waited for room. Some of its jobs may have been taken in; it is known when it is made again.
fn shutting_down() -> Status {
    let status = Status::unavailable("the server is shutting down");
    status
        .with_work(Work::OutcomeUnknown)
        .with_reason(Reason::ShuttingDown)
}

/// Refuses a list that claims more than a message may have, before anything is reserved for it.
fn bounded(len: u32) -> Result<(), Status> {
    if len as usize <= BATCH_JOBS_MAX {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "a message has at most {BATCH_JOBS_MAX} jobs, answers, leases or numbers, not {len}"
    )))
}

async fn pushed(
    engine: &dyn Engine,
    jobs: Vec<NewJob>,
    until: Instant,
) -> Result<bytes::Bytes, Status> {
    let results = engine.push(jobs, until).await?;
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

/// The jobs that a message has room for, with the tokens of their session. One that never has is a dead letter: no worker
/// could ever be sent it.
async fn those_that_fit(
    calling: &Calling,
    jobs: Vec<LeasedJob>,
) -> Result<Vec<LeasedJob>, QueueError> {
    let bytes = |job: &LeasedJob| {
        let id = job.id.as_ref().map_or(0, |id| id.as_bytes().len());
        job.body.len() + id + job.key.as_ref().map_or(0, bytes::Bytes::len)
    };
    let (fit, too_large): (Vec<_>, Vec<_>) = jobs
        .into_iter()
        .partition(|job| bytes(job) <= JOB_BYTES_MAX);
    if !too_large.is_empty() {
        let bury = |job: &LeasedJob| {
            let cause = format!(
                "it has {} bytes, and a message to a remote worker has room for {JOB_BYTES_MAX}",
                bytes(job)
            );
            tracing::error!(number = %job.number, cause, "a job cannot be sent");
            (job.number, job.token, Answer::Bury(cause))
        };
        let answers = too_large.iter().map(bury).collect();
        calling.worker.answer(answers).await?;
    }
    let bind = |mut job: LeasedJob| {
        job.token = calling.bound(job.number, job.token);
        job
    };
    Ok(fit.into_iter().map(bind).collect())
}

/// As many letters of a page as a message has room for, and whether there are more.
fn letters(mut page: Page<DeadLetter>) -> bytes::Bytes {
    let (mut bytes, mut fitting) = (0, 0);
    for letter in &mut page.items {
        cut_causes(letter);
        let causes = letter.failures.iter().map(cause_bytes);
        bytes += letter.body.len() + 512 + causes.sum::<usize>();
        if bytes > BATCH_BYTES_MAX {
            break;
        }
        fitting += 1;
    }
    // One at least, or it could never be looked at; the others are asked for next.
    let fitting = fitting.max(1);
    if fitting < page.items.len() {
        page.items.truncate(fitting);
        page.next = page.items.last().map(|letter| letter.number);
    }
    codec::build::<job_queue::dead_letters_results::Owned>(|mut to| {
        to.set_more(match page.next {
            Some(_) => wire::More::Some,
            None => wire::More::None,
        });
        to.set_next(page.next.map_or(0, |next| next.0));
        let mut list = to.init_letters(page.items.len() as u32);
        for (index, letter) in (0..).zip(&page.items) {
            codec::write_dead(list.reborrow().get(index), letter);
        }
    })
}

/// Of a letter that is as large as a message, not all causes may have room: the last ones are kept.
fn cut_causes(letter: &mut DeadLetter) {
    let mut room = JOB_BYTES_MAX.saturating_sub(letter.body.len()) + CAUSES_BYTES_MAX;
    let kept = letter.failures.iter().rev().take_while(|failure| {
        let needed = cause_bytes(failure);
        let fits = needed <= room;
        room = room.saturating_sub(needed);
        fits
    });
    let cut = letter.failures.len() - kept.count();
    letter.failures.drain(..cut);
}

fn cause_bytes(failure: &JobFailure) -> usize {
    failure.cause.len() + 64
}

fn job_id(id: &[u8]) -> Result<JobId, Status> {
    let id = JobId::new(bytes::Bytes::copy_from_slice(id));
    id.map_err(|error| Status::invalid_argument(error.to_string()))
}

fn text(text: capnp::text::Reader<'_>) -> Result<String, Status> {
    Ok(text.to_str()?.to_owned())
}
