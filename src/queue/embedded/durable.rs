//! A queue on disk, inside the process that owns it: an acknowledged push is there after a power cut.
//!
//! Whoever takes a step appends to a batch under the queue's lock. One thread writes batches and syncs them;
//! while it does, the next batch gathers: that is the group commit. If a write or a sync fails, nothing of that
//! batch is acknowledged, the log goes back to what is known to be safe, and is read anew until that succeeds.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::shelf::Progress;
use super::{Commit, Embedded, QueueClock, Shelf, StorageError, Stored};
use crate::queue::log::{
    Batch, Damage, Directory, Flusher, Opened, Recovery, Storage, Tail, Times, open, read_job,
    set_aside_job,
};
use crate::queue::machine::{Arrival, Fact, Machine, Moment};
use crate::queue::{JobNumber, NewJob, QueueError, QueueOptions};
use crate::wire::Work;

/// How long to wait before a log that failed is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// Jobs of late that are kept in memory besides, in bytes: most are sent soon.
const RECENT_BYTES: usize = 8 << 20;
/// Jobs that one step moves out of an old segment.
const CLEAN_JOBS: usize = 16;

/// A queue on disk.
///
/// ```no_run
/// # use bowline::queue::{Durable, QueueOptions};
/// # fn f() -> Result<(), bowline::queue::QueueError> {
/// let engine = Durable::open("/var/lib/thumbnails/queue", QueueOptions::default())?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Durable {
    queue: Embedded<Disk>,
    recovery: Arc<Recovery>,
}

/// Settings of a queue on disk.
#[derive(Clone, Debug)]
#[must_use = "nothing is opened yet"]
pub struct DurableBuilder {
    options: QueueOptions,
    segment_bytes: u64,
    clock: Option<QueueClock>,
}

impl DurableBuilder {
    /// Bytes of a segment of the log, from 64 KiB. Default: 64 MiB.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes.clamp(64 << 10, 16 << 30);
        self
    }

    /// With a clock of its own, for tests.
    pub fn clock(mut self, clock: QueueClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Opens the queue of this directory, or makes it. Reads the whole log: call it where that may block.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`], with what the file system says; also where another process has it open, and
    /// where the options take away a group.
    pub fn open(self, directory: impl AsRef<Path>) -> Result<Durable, QueueError> {
        let directory = Directory::open(directory).map_err(storage_failed)?;
        self.open_on(Arc::new(directory))
    }

    /// The same on any storage.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(self, storage: Arc<dyn Storage>) -> Result<Durable, QueueError> {
        let wall = QueueClock::wall();
        let seed = fastrand::u64(..);
        let Opened {
            machine,
            mut tail,
            now,
            safe,
            recovery,
        } = open(
            &*storage,
            &self.options,
            self.segment_bytes,
            wall,
            seed,
            true,
        )
        .map_err(storage_failed)?;
        let mut flusher = Flusher::new(Arc::clone(&storage), self.segment_bytes, safe);
        // The number of this opening is safe before any token with it is seen.
        flusher.write(&tail.take_batch()).map_err(storage_failed)?;
        let shared = Arc::new(Shared::new(tail.position()));
        let writer = Writer::start(
            Arc::clone(&shared),
            Arc::clone(&storage),
            flusher,
            self.options.clone(),
            self.segment_bytes,
        )
        .map_err(storage_failed)?;
        let clock = self.clock.unwrap_or_else(|| QueueClock::system(now));
        let progress = shared.lock().progress.subscribe();
        let disk = Disk {
            shared,
            storage,
            tail,
            progress,
            recent: Recent::default(),
            damage: Vec::new(),
            segment_bytes: self.segment_bytes,
            retire: false,
            _writer: writer,
        };
        Ok(Durable {
            queue: Embedded::new(machine, disk, clock),
            recovery: Arc::new(recovery),
        })
    }
}

fn storage_failed(error: std::io::Error) -> QueueError {
    QueueError::unavailable(error, Work::NotDone)
}

impl Durable {
    /// Opens the queue of this directory, or makes it; see [`DurableBuilder::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(directory: impl AsRef<Path>, options: QueueOptions) -> Result<Self, QueueError> {
        Self::builder(options).open(directory)
    }

    /// To set more than the options.
    pub fn builder(options: QueueOptions) -> DurableBuilder {
        DurableBuilder {
            options,
            segment_bytes: 64 << 20,
            clock: None,
        }
    }

    /// What was found when it was opened.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Jobs whose records were found damaged since, when they were to be sent.
    pub fn damage(&self) -> Vec<Damage> {
        self.queue.with_shelf(|disk| disk.damage.clone())
    }
}

/// The log, as the queue sees it under its lock.
#[derive(Debug)]
pub(crate) struct Disk {
    shared: Arc<Shared>,
    storage: Arc<dyn Storage>,
    tail: Tail,
    progress: watch::Receiver<Progress>,
    recent: Recent,
    damage: Vec<Damage>,
    segment_bytes: u64,
    retire: bool,
    /// Ends with the last who has the queue.
    _writer: Writer,
}

impl Shelf for Disk {
    const IS_DURABLE: bool = true;

    fn has_room(&self, bytes: usize) -> bool {
        // What is left of the segment is for answers, which make room, where there is no room for another.
        let left = self.tail.bytes_left();
        self.shared.lock().is_next_ready || left > self.segment_bytes / 4 + bytes as u64
    }

    fn store(
        &mut self,
        now: Moment,
        number: JobNumber,
        arrival: &Arrival,
        job: &NewJob,
        machine: &Machine,
    ) {
        self.tail.push(times(now), machine, number, arrival, job);
        let stored = Stored {
            job: job.clone(),
            pushed: now,
        };
        let position = self.tail.position();
        self.recent.keep(number, stored, position);
    }

    fn note(&mut self, now: Moment, fact: &Fact, machine: &Machine) {
        self.tail.note(times(now), machine, fact);
        if let Fact::Finished { number, .. } = fact
            && !machine.is_live(*number)
        {
            self.recent.forget(*number);
            self.retire = true;
        }
    }

    fn fetch(&mut self, number: JobNumber) -> Option<Stored> {
        if let Some(stored) = self.recent.get(number) {
            return Some(stored);
        }
        let place = self.tail.place(number)?;
        let salt = self.tail.salt(place.segment())?;
        match read_job(&*self.storage, salt, place, number) {
            Some((pushed, job)) => Some(Stored { job, pushed }),
            None => {
                let damage = set_aside_job(&*self.storage, place);
                self.damage.push(damage);
                None
            }
        }
    }

    fn commit(&mut self, now: Moment, machine: &Machine) -> Option<Commit> {
        if std::mem::take(&mut self.retire) {
            self.tail.retire(times(now), machine);
            self.tail
                .clean(times(now), machine, &*self.storage, CLEAN_JOBS);
        }
        let written = match &*self.progress.borrow() {
            Ok(safe) => *safe,
            Err(_) => 0,
        };
        self.tail.safe_up_to(written);
        let batch = self.tail.take_batch();
        let mut state = self.shared.lock();
        if batch.is_critical {
            state.critical = batch.position;
        }
        if state.segment != self.tail.segment() {
            state.segment = self.tail.segment();
            state.is_next_ready = false;
        }
        let position = state.critical;
        if !batch.is_empty() {
            state.gather(batch);
            self.shared.woken.notify_one();
        }
        drop(state);
        self.recent.let_go(written);
        (written < position).then(|| Commit {
            position,
            progress: self.progress.clone(),
        })
    }

    fn repair(
        &mut self,
        _: &QueueOptions,
        _: &QueueClock,
    ) -> Result<Option<Machine>, StorageError> {
        let mut state = self.shared.lock();
        match &mut state.health {
            Health::Good => Ok(None),
            Health::Failed(error) => Err(error.clone()),
            Health::Recovered(recovered) => {
                let Some(recovered) = recovered.take() else {
                    return Ok(None);
                };
                let (machine, tail) = *recovered;
                state.health = Health::Good;
                state.critical = 0;
                let progress = state.progress.subscribe();
                drop(state);
                self.progress = progress;
                self.tail = tail;
                self.recent = Recent::default();
                Ok(Some(machine))
            }
        }
    }
}

fn times(now: Moment) -> Times {
    Times {
        now,
        wall: QueueClock::wall(),
    }
}

/// Jobs that were pushed a moment ago.
#[derive(Debug, Default)]
struct Recent {
    jobs: std::collections::HashMap<JobNumber, Stored>,
    order: VecDeque<(JobNumber, u64, usize)>,
    bytes: usize,
}

impl Recent {
    fn keep(&mut self, number: JobNumber, stored: Stored, position: u64) {
        let bytes = stored.job.bytes() + size_of::<Stored>();
        self.bytes += bytes;
        self.order.push_back((number, position, bytes));
        self.jobs.insert(number, stored);
    }

    fn get(&self, number: JobNumber) -> Option<Stored> {
        self.jobs.get(&number).cloned()
    }

    fn forget(&mut self, number: JobNumber) {
        self.jobs.remove(&number);
    }

    /// Lets the oldest go that can be read from the log.
    fn let_go(&mut self, written: u64) {
        while let Some((number, position, bytes)) = self.order.front().copied() {
            let is_there = self.jobs.contains_key(&number);
            if is_there && (self.bytes <= RECENT_BYTES || position > written) {
                break;
            }
            self.order.pop_front();
            self.bytes -= bytes;
            self.jobs.remove(&number);
        }
    }
}

/// What the queue and the writing thread share.
#[derive(Debug)]
struct Shared {
    state: Mutex<Writing>,
    woken: Condvar,
}

#[derive(Debug)]
struct Writing {
    /// Of this life of the log: after a failure another begins, and who waits for the old one is told of that.
    progress: watch::Sender<Progress>,
    batch: Batch,
    /// The last position that somebody waits for.
    critical: u64,
    /// The segment that is appended to.
    segment: u32,
    /// Whether there is a next one.
    is_next_ready: bool,
    is_closing: bool,
    health: Health,
}

#[derive(Debug)]
enum Health {
    Good,
    Failed(StorageError),
    /// What storage has, for the queue to go on with.
    Recovered(Option<Box<(Machine, Tail)>>),
}

impl Shared {
    fn new(position: u64) -> Self {
        Self {
            state: Mutex::new(Writing {
                progress: watch::Sender::new(Ok(position)),
                batch: Batch::default(),
                critical: 0,
                segment: 0,
                is_next_ready: true,
                is_closing: false,
                health: Health::Good,
            }),
            woken: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Writing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writing {
    fn gather(&mut self, batch: Batch) {
        if matches!(self.health, Health::Good) {
            self.batch.append(batch);
        }
    }
}

/// The thread that writes. Dropping it writes what is left, and ends it.
#[derive(Debug)]
struct Writer {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(
        shared: Arc<Shared>,
        storage: Arc<dyn Storage>,
        mut flusher: Flusher,
        options: QueueOptions,
        segment_bytes: u64,
    ) -> std::io::Result<Self> {
        let thread = std::thread::Builder::new().name("bowline-queue".into());
        let of_thread = Arc::clone(&shared);
        let run = move || {
            while let Some(batch) = next(&of_thread, &mut flusher) {
                match flusher.write(&batch) {
                    Ok(()) if batch.is_critical => {
                        let state = of_thread.lock();
                        let _ = state.progress.send_replace(Ok(batch.position));
                    }
                    Ok(()) => {}
                    Err(error) => {
                        fail(&of_thread, &error);
                        if !recover(&of_thread, &*storage, &mut flusher, &options, segment_bytes) {
                            return;
                        }
                    }
                }
            }
        };
        Ok(Self {
            shared,
            thread: Some(thread.spawn(run)?),
        })
    }
}

/// The next batch; makes the next segment meanwhile. `None` when the queue is gone.
fn next(shared: &Shared, flusher: &mut Flusher) -> Option<Batch> {
    let mut state = shared.lock();
    loop {
        if !state.batch.is_empty() {
            return Some(std::mem::take(&mut state.batch));
        }
        if state.is_closing {
            return None;
        }
        let segment = state.segment;
        if segment > 0 {
            drop(state);
            let is_ready = flusher.prepare(segment + 1);
            state = shared.lock();
            state.is_next_ready = is_ready;
            if !state.batch.is_empty() {
                continue;
            }
        }
        let waited = match state.is_next_ready {
            true => shared.woken.wait(state).map_err(PoisonError::into_inner),
            false => match shared.woken.wait_timeout(state, RETRY / 10) {
                Ok((state, _)) => Ok(state),
                Err(error) => Err(error.into_inner().0),
            },
        };
        state = waited.unwrap_or_else(|state| state);
    }
}

fn fail(shared: &Shared, error: &std::io::Error) {
    tracing::error!(%error, "a queue's log cannot be written");
    let error = StorageError(error.to_string());
    let mut state = shared.lock();
    state.batch = Batch::default();
    state.health = Health::Failed(error.clone());
    let _ = state.progress.send_replace(Err(error));
}

/// Brings the log back to what is safe, again and again. `false` when the queue is gone.
fn recover(
    shared: &Shared,
    storage: &dyn Storage,
    flusher: &mut Flusher,
    options: &QueueOptions,
    segment_bytes: u64,
) -> bool {
    loop {
        let recovered = flusher.back_to_safe().and_then(|()| {
            let wall = QueueClock::wall();
            let mut opened = open(
                storage,
                options,
                segment_bytes,
                wall,
                fastrand::u64(..),
                false,
            )?;
            flusher.go_on(opened.safe);
            flusher.write(&opened.tail.take_batch())?;
            Ok(opened)
        });
        let mut state = shared.lock();
        match recovered {
            Ok(Opened { machine, tail, .. }) => {
                let position = tail.position();
                state.health = Health::Recovered(Some(Box::new((machine, tail))));
                state.progress = watch::Sender::new(Ok(position));
                return true;
            }
            Err(error) => {
                tracing::warn!(%error, "a queue's log is not back yet");
                if state.is_closing {
                    return false;
                }
                drop(shared.woken.wait_timeout(state, RETRY));
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.woken.notify_one();
        if let Some(thread) = self.thread.take() {
            // It ends when it has written what is left.
            let _ = thread.join();
        }
    }
}

super::memory::delegate_engine!(Durable);
