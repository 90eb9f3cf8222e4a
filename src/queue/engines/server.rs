//! The engine of any server: how a call of [`Engine`] reaches the group that it names, and how jobs are pushed, in
//! batches, as there is room for them. What only one server knows is its [`Server`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until};

use crate::queue::{
    Capabilities, DeadLetter, Engine, EngineFuture, EngineWorker, JobId, JobNumber, JobState,
    NewJob, Pushed, QueueCounters, QueueError,
};

use super::envelope::admit;
use super::terms::Terms;
use super::thread::EngineThread;

/// How long to wait before asking again a queue that is full.
pub(super) const FULL_RETRY: Duration = Duration::from_millis(20);

/// A queue whose jobs a server keeps. Each kind of server has a name for it: see
/// [`engines`](crate::queue::engines).
#[derive(Debug)]
pub struct OnServer<S> {
    server: Arc<S>,
    /// The connection's, and that of all tasks: they end with it.
    _thread: EngineThread,
}

/// What only one server knows: how it takes jobs, and what it says of a group of workers.
pub(super) trait Server: Send + Sync + 'static {
    /// What it has of a group.
    type Group: Sync;
    /// A job on its way, until the server has confirmed it.
    type Sent: Send;
    type Worker: EngineWorker;

    fn terms(&self) -> &Terms;

    fn groups(&self) -> &[Self::Group];

    /// Room for at most so many jobs, which is then taken. A server that refuses what is too much by itself has room.
    fn take_room(
        &self,
        wanted: usize,
        _deadline: Instant,
    ) -> impl Future<Output = Result<usize, QueueError>> + Send {
        std::future::ready(Ok(wanted))
    }

    /// Sends a new job. Those of one caller arrive in the order in which this returns.
    fn send_new(
        &self,
        job: NewJob,
        deadline: Instant,
    ) -> impl Future<Output = Result<Self::Sent, QueueError>> + Send;

    /// Returns when the server has the job for every group, as safe as it makes it; waits for room.
    fn confirm_new(
        &self,
        sent: Self::Sent,
        deadline: Instant,
    ) -> impl Future<Output = Result<Pushed, QueueError>> + Send;

    /// Joins a group.
    fn worker(
        self: Arc<Self>,
        group: usize,
    ) -> impl Future<Output = Result<Self::Worker, QueueError>> + Send;

    fn dead_letters(
        &self,
        group: &Self::Group,
        after: Option<JobNumber>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<DeadLetter>, QueueError>> + Send;

    fn send_back(
        &self,
        group: &Self::Group,
        numbers: Vec<JobNumber>,
    ) -> impl Future<Output = Result<usize, QueueError>> + Send;

    fn delete(
        &self,
        group: &Self::Group,
        numbers: Vec<JobNumber>,
    ) -> impl Future<Output = Result<usize, QueueError>> + Send;

    fn counters(
        &self,
        group: &Self::Group,
    ) -> impl Future<Output = Result<QueueCounters, QueueError>> + Send;
}

impl<S> OnServer<S> {
    pub(super) fn new(server: Arc<S>, thread: EngineThread) -> Self {
        Self {
            server,
            _thread: thread,
        }
    }
}

impl<S: Server> Engine for OnServer<S> {
    fn capabilities(&self) -> Capabilities {
        self.server.terms().capabilities
    }

    fn push(
        &self,
        jobs: Vec<NewJob>,
        deadline: Instant,
    ) -> EngineFuture<'_, Vec<Result<Pushed, QueueError>>> {
        Box::pin(push(&*self.server, jobs, deadline))
    }

    fn worker(&self, group: &str) -> EngineFuture<'_, Box<dyn EngineWorker>> {
        let group = self.server.terms().group(group);
        Box::pin(async move {
            let worker = Arc::clone(&self.server).worker(group?).await?;
            Ok(Box::new(worker) as Box<dyn EngineWorker>)
        })
    }

    fn dead_letters(
        &self,
        group: &str,
        after: Option<JobNumber>,
        max: usize,
    ) -> EngineFuture<'_, Vec<DeadLetter>> {
        let group = group_of(&*self.server, group);
        Box::pin(async move { self.server.dead_letters(group?, after, max).await })
    }

    fn send_back(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let group = group_of(&*self.server, group);
        Box::pin(async move { self.server.send_back(group?, numbers).await })
    }

    fn delete(&self, group: &str, numbers: Vec<JobNumber>) -> EngineFuture<'_, usize> {
        let group = group_of(&*self.server, group);
        Box::pin(async move { self.server.delete(group?, numbers).await })
    }

    fn find(&self, _: &JobId) -> EngineFuture<'_, Option<(JobNumber, JobState)>> {
        Box::pin(async { Err(QueueError::Unsupported("finding a job by its ID")) })
    }

    fn counters(&self, group: &str) -> EngineFuture<'_, QueueCounters> {
        let group = group_of(&*self.server, group);
        Box::pin(async move { self.server.counters(group?).await })
    }

    fn close(&self) -> EngineFuture<'_, ()> {
        // Each push waits for its own confirmation: nothing is left to be made safe.
        self.server.terms().close();
        Box::pin(async { Ok(()) })
    }
}

fn group_of<'a, S: Server>(server: &'a S, name: &str) -> Result<&'a S::Group, QueueError> {
    let index = server.terms().group(name)?;
    Ok(&server.groups()[index])
}

/// Pushes jobs in their order, a batch after another. Where the server fails, those before it are told what became of
/// them, and the others that they were not pushed.
async fn push<S: Server>(
    server: &S,
    jobs: Vec<NewJob>,
    deadline: Instant,
) -> Result<Vec<Result<Pushed, QueueError>>, QueueError> {
    let terms = server.terms();
    terms.check_open()?;
    let mut results = Vec::with_capacity(jobs.len());
    let mut jobs = jobs.into_iter();
    while jobs.len() > 0 {
        let wanted = jobs.len().min(terms.limits.unconfirmed_max);
        let room = match server.take_room(wanted, deadline).await {
            Ok(0) if Instant::now() >= deadline => Err(QueueError::Full),
            other => other,
        };
        let room = match room {
            Ok(0) => {
                sleep_until(deadline.min(Instant::now() + FULL_RETRY)).await;
                continue;
            }
            Ok(room) => room,
            Err(error) => {
                results.extend(jobs.map(|_| Err(error.clone())));
                break;
            }
        };
        let mut batch = Vec::with_capacity(room);
        for job in jobs.by_ref().take(room) {
            let (can, carries) = (&terms.capabilities, terms.carries_unkept);
            let sent = match admit(&job, can, &terms.options, carries) {
                Ok(()) => server.send_new(job, deadline).await,
                Err(error) => Err(error),
            };
            batch.push(async move { server.confirm_new(sent?, deadline).await });
        }
        results.extend(join_all(batch).await);
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;

    use crate::queue::{Answer, Credit, LeasedJob, Producer, QueueOptions, Stale, Token};
    use crate::wire::Work;

    use super::super::terms::Limits;
    use super::super::unavailable;

    /// A server that takes a while to confirm, and has answers about its room.
    struct Slow {
        terms: Terms,
        rooms: std::sync::Mutex<Vec<Result<usize, QueueError>>>,
        unconfirmed: AtomicUsize,
        most: AtomicUsize,
    }

    impl Slow {
        /// The last of `rooms` is the first answer; after them there is room for all.
        fn new(limits: Limits, rooms: Vec<Result<usize, QueueError>>) -> Self {
            let terms = Terms::new(QueueOptions::default(), Capabilities::ALL, limits, false);
            Self {
                terms,
                rooms: rooms.into(),
                unconfirmed: AtomicUsize::new(0),
                most: AtomicUsize::new(0),
            }
        }

        async fn push(&self, jobs: usize, wait: Duration) -> Vec<Result<Pushed, QueueError>> {
            let producer = Producer::ephemeral();
            let job = |_| NewJob::new(producer.identity(), Bytes::new());
            let jobs = (0..jobs).map(job).collect();
            let pushed = push(self, jobs, Instant::now() + wait).await;
            pushed.expect("it is open")
        }
    }

    impl Server for Slow {
        type Group = ();
        type Sent = ();
        type Worker = Nobody;

        fn terms(&self) -> &Terms {
            &self.terms
        }

        fn groups(&self) -> &[()] {
            &[]
        }

        async fn take_room(&self, wanted: usize, _: Instant) -> Result<usize, QueueError> {
            let room = self.rooms.lock().expect("no test panics with it").pop();
            room.unwrap_or(Ok(wanted)).map(|room| room.min(wanted))
        }

        async fn send_new(&self, _: NewJob, _: Instant) -> Result<(), QueueError> {
            let unconfirmed = self.unconfirmed.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(unconfirmed, Ordering::Relaxed);
            Ok(())
        }

        async fn confirm_new(&self, (): (), _: Instant) -> Result<Pushed, QueueError> {
            tokio::task::yield_now().await;
            self.unconfirmed.fetch_sub(1, Ordering::Relaxed);
            Ok(Pushed::Accepted(JobNumber(1)))
        }

        async fn worker(self: Arc<Self>, _: usize) -> Result<Nobody, QueueError> {
            Err(QueueError::Closed)
        }

        async fn dead_letters(
            &self,
            (): &(),
            _: Option<JobNumber>,
            _: usize,
        ) -> Result<Vec<DeadLetter>, QueueError> {
            Ok(Vec::new())
        }

        async fn send_back(&self, (): &(), _: Vec<JobNumber>) -> Result<usize, QueueError> {
            Ok(0)
        }

        async fn delete(&self, (): &(), _: Vec<JobNumber>) -> Result<usize, QueueError> {
            Ok(0)
        }

        async fn counters(&self, (): &()) -> Result<QueueCounters, QueueError> {
            Ok(QueueCounters::default())
        }
    }

    /// Nothing here has workers.
    enum Nobody {}

    impl EngineWorker for Nobody {
        fn lease_time(&self) -> Duration {
            match *self {}
        }

        fn lease(&self, _: Credit, _: Instant) -> EngineFuture<'_, Vec<LeasedJob>> {
            match *self {}
        }

        fn answer(
            &self,
            _: Vec<(JobNumber, Token, Answer)>,
        ) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
            match *self {}
        }

        fn renew(&self, _: Vec<(JobNumber, Token)>) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
            match *self {}
        }

        fn leave(&self) -> EngineFuture<'_, ()> {
            match *self {}
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(unconfirmed_max: usize) -> Limits {
        Limits {
            unconfirmed_max,
            ..Limits::default()
        }
    }

    #[tokio::test]
    async fn as_many_of_a_push_are_on_their_way_as_may_be_and_no_more() {
        for (unconfirmed_max, most) in [(1, 1), (3, 3), (7, 7), (100, 7)] {
            let server = Slow::new(limits(unconfirmed_max), Vec::new());
            let pushed = server.push(7, SECOND).await;
            assert!(pushed.len() == 7 && pushed.iter().all(Result::is_ok));
            assert_eq!(server.most.load(Ordering::Relaxed), most);
        }
    }

    #[tokio::test]
    async fn what_was_taken_before_the_server_failed_is_accepted() {
        let gone = Err(unavailable("it is gone", Work::NotDone));
        let server = Slow::new(limits(2), vec![gone, Ok(2)]);
        let pushed = server.push(5, SECOND).await;
        let (taken, others) = pushed.split_at(2);
        assert!(taken.iter().all(Result::is_ok), "{taken:?}");
        let is_not_done = |result: &Result<Pushed, QueueError>| {
            let work = Work::NotDone;
            matches!(result, Err(QueueError::Unavailable { work: was, .. }) if *was == work)
        };
        assert!(
            others.len() == 3 && others.iter().all(is_not_done),
            "{others:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_waits_for_room_to_its_deadline_and_not_longer() {
        let began = Instant::now();
        let in_time = Slow::new(limits(2), vec![Ok(1), Ok(0), Ok(0)]);
        let pushed = in_time.push(1, SECOND).await;
        assert!(pushed[0].is_ok(), "{pushed:?}");
        assert_eq!(began.elapsed(), 2 * FULL_RETRY);

        let began = Instant::now();
        let never = Slow::new(limits(2), vec![Ok(0); 1000]);
        let pushed = never.push(3, SECOND).await;
        let is_full = |result: &Result<_, _>| matches!(result, Err(QueueError::Full));
        assert!(
            pushed.len() == 3 && pushed.iter().all(is_full),
            "{pushed:?}"
        );
        assert_eq!(began.elapsed(), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_has_a_while_to_confirm_however_near_the_deadline_is() {
        let terms = Slow::new(Limits::default(), Vec::new()).terms;
        let (now, min) = (Instant::now(), terms.limits.answer_min);
        assert_eq!(terms.confirmed_by(now), now + min);
        assert_eq!(terms.confirmed_by(now + min), now + min);
        assert_eq!(terms.confirmed_by(now + 2 * min), now + 2 * min);
    }

    #[tokio::test]
    async fn a_closed_queue_takes_no_more() {
        let server = Slow::new(Limits::default(), Vec::new());
        server.terms.close();
        let pushed = push(&server, Vec::new(), Instant::now()).await;
        assert!(matches!(pushed, Err(QueueError::Closed)));
    }
}
