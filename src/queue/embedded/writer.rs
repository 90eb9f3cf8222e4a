//! The thread that writes a queue's log and syncs it.
//!
//! While it syncs one batch, the next gathers; how long it waits for more is `gathering`'s. If a write or a sync fails, nothing of that batch is acknowledged, the log goes back to what is known to be safe, and is read
//! anew until that succeeds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::gathering::Gathering;
use super::progress::Progress;
use super::{QueueClock, StorageError};
use crate::queue::QueueOptions;
use crate::queue::log::{Batch, Damage, Flusher, Opened, Storage, Tail, open};
use crate::queue::machine::Machine;

/// How long to wait before a log that failed is tried again …
const RETRY: Duration = Duration::from_millis(200);
/// … and the longest, where it fails again each time: reading all of it has its price.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long nothing is written before the log says that all of it is safe.
const IDLE: Duration = Duration::from_millis(200);
/// How often to look whether the next segment is made, where nobody writes.
const LOOK_FOR_SEGMENT: Duration = Duration::from_millis(2);

/// What the queue and the writing thread share.
#[derive(Debug)]
struct Shared {
    state: Mutex<Writing>,
    woken: Condvar,
    /// Steps of the batch that gathers for which somebody waits.
    waiting: AtomicUsize,
    /// Whether there is a segment behind the one that is appended to.
    is_next_ready: AtomicBool,
    /// Whether the last one that was to be made could not be.
    has_no_room: AtomicBool,
    /// Whether the log has failed, until the queue goes on with what it has.
    has_failed: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Writing {
    /// Of this life of the log: after a failure another begins, and who waits for the old one is told of that.
    progress: Arc<Progress>,
    batch: Batch,
    /// The last position that somebody waits for.
    critical: u64,
    /// The segment that is appended to.
    segment: u32,
    /// Bytes that the next is to have at least.
    next_bytes_min: u64,
    /// Told when there is room again.
    room: Option<Arc<Notify>>,
    /// Whether the thread has nothing to do, and has to be woken.
    is_asleep: bool,
    is_closing: bool,
    health: Health,
}

#[derive(Debug)]
enum Health {
    Good,
    Failed(StorageError),
    /// What storage has, for the queue to go on with.
    Recovered(Option<Box<Recovered>>),
}

/// A log that has failed and is back.
#[derive(Debug)]
pub(super) struct Recovered {
    pub machine: Machine,
    pub tail: Tail,
    /// What of it is damaged.
    pub damage: Vec<Damage>,
}

impl Writing {
    /// All that was appended is safe.
    pub fn new(progress: Arc<Progress>, segment: u32) -> Self {
        Self {
            progress,
            batch: Batch::default(),
            critical: 0,
            segment,
            next_bytes_min: 0,
            room: None,
            is_asleep: false,
            is_closing: false,
            health: Health::Good,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Writing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that writes. Dropping it writes what is left, and ends it.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    pub fn start(
        writing: Writing,
        storage: Arc<dyn Storage>,
        flusher: Flusher,
        options: QueueOptions,
        segment_bytes: u64,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(writing),
            woken: Condvar::new(),
            waiting: AtomicUsize::new(0),
            is_next_ready: AtomicBool::new(false),
            has_no_room: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        });
        let thread = std::thread::Builder::new().name("bowline-queue".into());
        let mut writing = Thread {
            progress: Arc::clone(&shared.lock().progress),
            shared: Arc::clone(&shared),
            storage,
            flusher,
            options,
            segment_bytes,
            prepare_at: Instant::now(),
        };
        Ok(Self {
            shared,
            thread: Some(thread.spawn(move || writing.run())?),
        })
    }

    /// Whether there is room behind the segment that is appended to: the next one is there, or there is no reason to
    /// think that it cannot be made.
    pub fn may_begin_next(&self) -> bool {
        self.shared.is_next_ready.load(Ordering::Relaxed)
            || !self.shared.has_no_room.load(Ordering::Relaxed)
    }

    pub fn tell_of_room(&self, room: &Arc<Notify>) {
        self.shared.lock().room = Some(Arc::clone(room));
    }

    /// Takes what is to be written. Returns the last position that somebody waits for.
    pub fn hand_over(&self, tail: &mut Tail) -> u64 {
        let mut state = self.shared.lock();
        if !matches!(state.health, Health::Good) {
            // It goes where the rest went; whoever waits for it is told so.
            let _ = tail.take_batch();
            return u64::MAX;
        }
        if !tail.has_batch() {
            return state.critical;
        }
        if state.segment != tail.segment() {
            state.segment = tail.segment();
            state.next_bytes_min = tail.next_bytes_min();
            self.shared.is_next_ready.store(false, Ordering::Relaxed);
        }
        if tail.is_critical() {
            state.critical = tail.position();
            self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        }
        tail.hand_over(&mut state.batch);
        let critical = state.critical;
        let is_asleep = std::mem::take(&mut state.is_asleep);
        drop(state);
        if is_asleep {
            self.shared.woken.notify_one();
        }
        critical
    }

    /// Where the log has failed and is back: what it has, and its further progress.
    ///
    /// # Errors
    /// Where it has failed and is not back.
    pub fn repaired(&self) -> Result<Option<(Recovered, Arc<Progress>)>, StorageError> {
        if !self.shared.has_failed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut state = self.shared.lock();
        match &mut state.health {
            Health::Good => Ok(None),
            Health::Failed(error) => Err(error.clone()),
            Health::Recovered(recovered) => {
                let Some(recovered) = recovered.take() else {
                    return Ok(None);
                };
                state.health = Health::Good;
                state.critical = 0;
                self.shared.has_failed.store(false, Ordering::Relaxed);
                Ok(Some((*recovered, Arc::clone(&state.progress))))
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

/// What the thread has.
struct Thread {
    shared: Arc<Shared>,
    progress: Arc<Progress>,
    storage: Arc<dyn Storage>,
    flusher: Flusher,
    options: QueueOptions,
    segment_bytes: u64,
    /// Before this, making the next segment is not tried again.
    prepare_at: Instant,
}

impl Thread {
    fn run(&mut self) {
        let mut batch = Batch::default();
        let mut gathering = Gathering::after(Instant::now(), Duration::ZERO, 0);
        while self.next(&mut batch, gathering) {
            let began = Instant::now();
            let written = match batch.is_empty() {
                true => self.flusher.mark_safe(),
                false => self.flusher.write(&batch),
            };
            match written {
                Ok(()) if batch.is_critical => {
                    let ended = Instant::now();
                    let waiting = self.shared.waiting.load(Ordering::Relaxed);
                    let told = self.progress.advance(batch.position);
                    gathering = Gathering::after(ended, ended - began, waiting + told);
                }
                Ok(()) => {}
                Err(error) => {
                    self.fail(&error);
                    if !self.recover() {
                        return;
                    }
                }
            }
            batch.clear();
        }
    }

    /// The next batch; has the next segment made meanwhile. An empty one when all is to be marked as safe; `false` when
    /// the queue is gone.
    fn next(&mut self, batch: &mut Batch, gathering: Gathering) -> bool {
        self.prepare();
        let idle_since = Instant::now();
        let mut state = self.shared.lock();
        while state.batch.is_empty() {
            let is_marked = self.flusher.is_marked();
            if state.is_closing {
                return !is_marked;
            }
            let idle = IDLE.saturating_sub(idle_since.elapsed());
            if !is_marked && idle.is_zero() {
                return true;
            }
            state.is_asleep = true;
            let wait = match self.shared.is_next_ready.load(Ordering::Relaxed) {
                true if is_marked => None,
                true => Some(idle),
                false => Some(LOOK_FOR_SEGMENT),
            };
            state = match wait {
                None => self
                    .shared
                    .woken
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(wait) => match self.shared.woken.wait_timeout(state, wait) {
                    Ok((state, _)) => state,
                    Err(error) => error.into_inner().0,
                },
            };
            state.is_asleep = false;
            if state.batch.is_empty() {
                drop(state);
                self.prepare();
                state = self.shared.lock();
            }
        }
        if state.batch.is_critical && !state.is_closing {
            drop(state);
            self.gather(gathering);
            state = self.shared.lock();
        }
        self.shared.waiting.store(0, Ordering::Relaxed);
        batch.append(&mut state.batch);
        true
    }

    /// Waits until those who were told of the last batch have come again, or no longer seem to.
    fn gather(&self, mut gathering: Gathering) {
        let waiting = || self.shared.waiting.load(Ordering::Relaxed);
        while !gathering.is_over(waiting(), Instant::now()) {
            std::thread::yield_now();
        }
    }

    /// Has the next segment made, and tells those who wait for the room in it.
    fn prepare(&mut self) {
        self.flusher.index();
        if self.shared.is_next_ready.load(Ordering::Relaxed) || Instant::now() < self.prepare_at {
            return;
        }
        let (segment, bytes_min) = {
            let state = self.shared.lock();
            (state.segment, state.next_bytes_min)
        };
        match self.flusher.prepare(segment + 1, bytes_min) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                if !self.shared.has_no_room.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "no room for a queue's next segment: pushes wait");
                }
                self.prepare_at = Instant::now() + RETRY / 10;
                return;
            }
        }
        self.shared.has_no_room.store(false, Ordering::Relaxed);
        let state = self.shared.lock();
        // Unless it has been begun meanwhile.
        if state.segment == segment {
            self.shared.is_next_ready.store(true, Ordering::Relaxed);
            if let Some(room) = &state.room {
                room.notify_waiters();
            }
        }
    }

    fn fail(&self, error: &std::io::Error) {
        tracing::error!(%error, "a queue's log cannot be written");
        let error = StorageError(error.to_string());
        let mut state = self.shared.lock();
        state.batch.clear();
        state.health = Health::Failed(error.clone());
        self.shared.has_failed.store(true, Ordering::Relaxed);
        drop(state);
        self.progress.fail(error);
    }

    /// Brings the log back to what is safe, again and again. `false` when the queue is gone.
    fn recover(&mut self) -> bool {
        let mut wait = RETRY;
        let mut was_told = false;
        loop {
            // The log is read again only where there is a chance that it can be written.
            let probed = self.flusher.probe();
            let is_possible = probed.is_ok();
            let recovered = probed
                .and_then(|()| self.flusher.back_to_safe())
                .and_then(|()| self.open_again());
            let mut state = self.shared.lock();
            match recovered {
                Ok(opened) => {
                    let recovered = Recovered {
                        machine: opened.machine,
                        tail: opened.tail,
                        damage: opened.recovery.damage,
                    };
                    let tail = &recovered.tail;
                    self.progress = Progress::new(tail.position());
                    state.progress = Arc::clone(&self.progress);
                    state.segment = tail.segment();
                    state.next_bytes_min = tail.next_bytes_min();
                    state.health = Health::Recovered(Some(Box::new(recovered)));
                    self.shared.is_next_ready.store(false, Ordering::Relaxed);
                    return true;
                }
                Err(error) => {
                    if !std::mem::replace(&mut was_told, true) {
                        tracing::warn!(%error, "a queue's log is not back yet");
                    }
                    if state.is_closing {
                        return false;
                    }
                    drop(self.shared.woken.wait_timeout(state, wait));
                    if is_possible {
                        wait = (wait * 2).min(RETRY_MAX);
                    }
                }
            }
        }
    }

    fn open_again(&mut self) -> std::io::Result<Opened> {
        let (wall, seed) = (QueueClock::wall(), super::secret());
        let (storage, bytes) = (&*self.storage, self.segment_bytes);
        let mut opened = open(storage, &self.options, bytes, wall, seed, false)?;
        let unindexed = std::mem::take(&mut opened.unindexed);
        self.flusher.go_on(opened.safe, unindexed);
        self.flusher.write(&opened.tail.take_batch())?;
        Ok(opened)
    }
}
