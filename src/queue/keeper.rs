//! Keeps the leases of one worker: takes jobs within the worker's credit, renews what it has, passes its
//! answers on.
//!
//! It runs on a thread of its own, with a runtime of its own: a handler that blocks every thread of the
//! program's runtime does not keep it from renewing. It ends when the stream and all jobs of it are gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{Answer, Credit, Engine, EngineWorker, JobNumber, LeasedJob, QueueError, Stale, Token};

/// How long one request for jobs waits for them.
const POLL: Duration = Duration::from_secs(5);
/// How long to wait before asking again an engine that fails.
const RETRY: Duration = Duration::from_millis(200);
/// Answers that are passed on together.
const ANSWERS_MAX: usize = 512;

/// What a worker is sent, until it answers.
pub(super) struct Lease {
    pub job: LeasedJob,
    /// Taken with the answer: then the job is nothing of this worker's any more, whatever else has it.
    commands: Mutex<Option<mpsc::UnboundedSender<Command>>>,
    /// Whether the worker has seen it.
    pub is_taken: bool,
}

/// What a job asks of its keeper. As many as there are jobs held can wait, and one each.
enum Command {
    Answer {
        number: JobNumber,
        token: Token,
        answer: Answer,
        told: Option<oneshot::Sender<Result<(), QueueError>>>,
    },
    Renew {
        number: JobNumber,
        token: Token,
        told: oneshot::Sender<Result<(), QueueError>>,
    },
}

impl Lease {
    /// Answers, and returns when the answer is as safe as the queue makes it.
    pub async fn answer(&self, answer: Answer) -> Result<(), QueueError> {
        let (told, tells) = oneshot::channel();
        if !self.send(answer, Some(told)) {
            // It was answered before.
            return Err(Stale.into());
        }
        tells.await.unwrap_or(Err(QueueError::Closed))
    }

    /// Gives the job back, if it was not answered: refused where the handler panicked, and lost otherwise.
    pub fn end(&self) {
        let answer = if !self.is_taken {
            Answer::Release
        } else if std::thread::panicking() {
            Answer::Refuse("the handler panicked".into())
        } else {
            Answer::Abandon("dropped without an answer".into())
        };
        self.send(answer, None);
    }

    /// Says whether it is the first answer.
    fn send(&self, answer: Answer, told: Option<oneshot::Sender<Result<(), QueueError>>>) -> bool {
        let commands = self.lock().take();
        let is_first = commands.is_some();
        if let Some(commands) = commands {
            // A keeper that is gone drops the sender, which says so.
            let _ = commands.send(Command::Answer {
                number: self.job.number,
                token: self.job.token,
                answer,
                told,
            });
        }
        is_first
    }

    /// Begins the lease anew.
    pub async fn renew(&self) -> Result<(), QueueError> {
        let (told, tells) = oneshot::channel();
        let Some(commands) = self.lock().clone() else {
            return Err(Stale.into());
        };
        let _ = commands.send(Command::Renew {
            number: self.job.number,
            token: self.job.token,
            told,
        });
        // Or a keeper that ends would wait for this.
        drop(commands);
        tells.await.unwrap_or(Err(QueueError::Closed))
    }

    fn lock(&self) -> MutexGuard<'_, Option<mpsc::UnboundedSender<Command>>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end();
    }
}

/// What comes to a worker.
pub(super) type Incoming = Result<Lease, QueueError>;

/// Resolves when a keeper has ended, and has nothing of its engine any more.
#[derive(Debug)]
pub(super) struct Ended(oneshot::Receiver<()>);

impl Ended {
    pub async fn wait(self) {
        // The sender is dropped at the end.
        let _ = self.0.await;
    }
}

/// Starts a keeper for a worker of this group.
pub(super) async fn start(
    engine: Arc<dyn Engine>,
    group: String,
    credit: Credit,
) -> Result<(mpsc::Receiver<Incoming>, Ended), QueueError> {
    // As many as the credit, so that sending never waits.
    let (jobs, receiver) = mpsc::channel(credit.jobs.max(1));
    let (started, starts) = oneshot::channel();
    let (ending, ended) = oneshot::channel::<()>();
    let run = move || {
        // Dropped last: the engine and the runtime are gone by then.
        let _ending = ending;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let error = QueueError::unavailable(error, crate::wire::Work::NotDone);
                let _ = started.send(Err(error));
                return;
            }
        };
        runtime.block_on(async move {
            let engine = engine;
            match engine.worker(&group).await {
                Ok(worker) => {
                    let _ = started.send(Ok(()));
                    keep(Arc::from(worker), jobs, credit).await;
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        });
    };
    let thread = std::thread::Builder::new().name("bowline-leases".into());
    thread
        .spawn(run)
        .map_err(|error| QueueError::unavailable(error, crate::wire::Work::NotDone))?;
    starts.await.unwrap_or(Err(QueueError::Closed))?;
    Ok((receiver, Ended(ended)))
}

async fn keep(worker: Arc<dyn EngineWorker>, jobs: mpsc::Sender<Incoming>, credit: Credit) {
    let (commands, received) = mpsc::unbounded_channel();
    let held = Arc::new(Held::default());
    let leases = tokio::spawn(lease(
        Arc::clone(&worker),
        Arc::clone(&held),
        jobs,
        commands,
        credit,
    ));
    let renewals = tokio::spawn(renew(Arc::clone(&worker), Arc::clone(&held)));
    // Ends when the leasing task and every job have dropped their senders.
    answer(Arc::clone(&worker), held, received).await;
    renewals.abort();
    let _ = leases.await;
    // What it cannot give back now comes back by itself.
    let _ = tokio::time::timeout(Duration::from_secs(2), worker.leave()).await;
}

/// What the worker has, answered or not.
#[derive(Default)]
struct Held {
    jobs: Mutex<HashMap<JobNumber, (Token, usize)>>,
    freed: Notify,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobNumber, (Token, usize)>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free(&self, of: Credit) -> Credit {
        let held = self.lock();
        let bytes: usize = held.values().map(|(_, bytes)| bytes).sum();
        Credit {
            jobs: of.jobs.saturating_sub(held.len()),
            bytes: of.bytes.saturating_sub(bytes),
            takes_any_first: held.is_empty(),
        }
    }
}

async fn lease(
    worker: Arc<dyn EngineWorker>,
    held: Arc<Held>,
    jobs: mpsc::Sender<Incoming>,
    commands: mpsc::UnboundedSender<Command>,
    credit: Credit,
) {
    // Whether the next job is not known to be larger than what is free.
    let mut fits = true;
    loop {
        let free = held.free(credit);
        if free.jobs == 0 || !fits {
            fits = true;
            tokio::select! {
                () = held.freed.notified() => continue,
                () = jobs.closed() => return,
            }
        }
        let until = Instant::now() + POLL;
        let leased = tokio::select! {
            leased = worker.lease(free, until) => leased,
            () = jobs.closed() => return,
        };
        let leased = match leased {
            Ok(leased) => leased,
            Err(QueueError::Closed) => return,
            Err(error) => {
                if jobs.send(Err(error)).await.is_err() {
                    return;
                }
                tokio::select! {
                    () = sleep(RETRY) => continue,
                    () = jobs.closed() => return,
                }
            }
        };
        fits = !leased.is_empty() || Instant::now() >= until || free.takes_any_first;
        for job in leased {
            let entry = (job.token, job.body.len());
            held.lock().insert(job.number, entry);
            let lease = Lease {
                job,
                commands: Mutex::new(Some(commands.clone())),
                is_taken: false,
            };
            // One that cannot be sent is dropped, and so given back.
            let _ = jobs.send(Ok(lease)).await;
        }
    }
}

async fn renew(worker: Arc<dyn EngineWorker>, held: Arc<Held>) {
    let mut ticks = interval((worker.lease_time() / 3).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let leases: Vec<(JobNumber, Token)> = held
            .lock()
            .iter()
            .map(|(number, (token, _))| (*number, *token))
            .collect();
        if !leases.is_empty() {
            // A lease that is over, or could not be renewed, shows when its job is answered.
            let _ = worker.renew(leases).await;
        }
    }
}

async fn answer(
    worker: Arc<dyn EngineWorker>,
    held: Arc<Held>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let mut batch = Vec::new();
    while commands.recv_many(&mut batch, ANSWERS_MAX).await > 0 {
        let (mut answers, mut tell) = (Vec::new(), Vec::new());
        for command in batch.drain(..) {
            match command {
                Command::Answer {
                    number,
                    token,
                    answer,
                    told,
                } => {
                    answers.push((number, token, answer));
                    tell.push(told);
                }
                Command::Renew {
                    number,
                    token,
                    told,
                } => {
                    let renewed = worker.renew(vec![(number, token)]).await;
                    let renewed = renewed.map(|mut renewed| renewed.pop().unwrap_or(Err(Stale)));
                    let _ = told.send(match renewed {
                        Ok(renewed) => renewed.map_err(QueueError::from),
                        Err(error) => Err(error),
                    });
                }
            }
        }
        if answers.is_empty() {
            continue;
        }
        let leases: Vec<(JobNumber, Token)> = answers
            .iter()
            .map(|(number, token, _)| (*number, *token))
            .collect();
        let results = worker.answer(answers).await;
        {
            let mut held = held.lock();
            for (number, token) in leases {
                // The same job may have come again by now, under another token.
                if held.get(&number).is_some_and(|(held, _)| *held == token) {
                    held.remove(&number);
                }
            }
        }
        held.freed.notify_one();
        let results: Vec<Result<(), QueueError>> = match results {
            Ok(results) => results
                .into_iter()
                .map(|result| result.map_err(QueueError::from))
                .collect(),
            Err(error) => tell.iter().map(|_| Err(error.clone())).collect(),
        };
        for (told, result) in tell.into_iter().zip(results) {
            if let Some(told) = told {
                // Whoever does not wait for it does not want to know.
                let _ = told.send(result);
            }
        }
    }
}
