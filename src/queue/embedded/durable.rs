//! A queue on disk, inside the process that owns it: an acknowledged push is there after a power cut.
//!
//! Whoever takes a step appends to a batch under the queue's lock. The thread of `writer` writes batches and syncs
//! them; while it does, the next batch gathers: that is the group commit.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::Notify;

use super::progress::Progress;
use super::recent::Recent;
use super::writer::{Writer, Writing};
use super::{Commit, Embedded, QueueClock, Shelf, StorageError, Stored};
use crate::queue::log::{
    Damage, Directory, Flusher, JOB_BYTES_MAX, Opened, Recovery, Storage, StoredJob, Tail, Times,
    open, set_aside_job,
};
use crate::queue::machine::{Arrival, Fact, Machine, Moment};
use crate::queue::{JobNumber, NewJob, QueueError, QueueOptions, QueueType};
use crate::wire::Work;

/// Jobs that one step moves out of an old segment.
const CLEAN_JOBS: usize = 16;
/// Damage that is listed, the first of it: all of it is counted, and set aside.
const DAMAGE_MAX: usize = 1000;

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
    adopts: bool,
}

impl DurableBuilder {
    /// Takes a directory that holds a queue of another name or type, and records the new one: for a queue or a
    /// type that was renamed. Jobs that are in it are read as the new type.
    pub fn adopt(mut self) -> Self {
        self.adopts = true;
        self
    }

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
    /// [`QueueError::Unavailable`], with what the file system says; also where it is open already, and
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
        let seed = super::secret();
        let mut options = self.options;
        options.job_bytes_max = options.job_bytes_max.min(JOB_BYTES_MAX);
        let Opened {
            machine,
            mut tail,
            now,
            safe,
            unindexed,
            recovery,
        } = open(&*storage, &options, self.segment_bytes, wall, seed, true)
            .map_err(storage_failed)?;
        if self.adopts {
            tail.forget_holds();
        }
        let mut flusher = Flusher::new(Arc::clone(&storage), self.segment_bytes, safe, unindexed);
        // The number of this opening is safe before any token with it is seen.
        flusher.write(&tail.take_batch()).map_err(storage_failed)?;
        let progress = Progress::new(tail.position());
        let writer = Writer::start(
            Writing::new(Arc::clone(&progress), tail.segment()),
            Arc::clone(&storage),
            flusher,
            options,
            self.segment_bytes,
        )
        .map_err(storage_failed)?;
        let clock = self.clock.unwrap_or_else(|| QueueClock::system(now));
        let disk = Disk {
            storage,
            tail,
            progress,
            recent: Recent::default(),
            damage: Vec::new(),
            known_damage: recovery.damage.clone(),
            times: times(now),
            retire: false,
            writer,
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
            adopts: false,
        }
    }

    /// What was found when it was opened.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// What was found damaged since: jobs when they were to be sent, and what was read again after storage had failed.
    pub fn damage(&self) -> Vec<Damage> {
        let damage = self.queue.with_shelf(|disk| disk.damage.clone());
        damage.unwrap_or_default()
    }
}

/// The log, as the queue sees it under its lock.
#[derive(Debug)]
pub(crate) struct Disk {
    storage: Arc<dyn Storage>,
    tail: Tail,
    progress: Arc<Progress>,
    recent: Recent,
    /// Since it was opened.
    damage: Vec<Damage>,
    /// Of the log as it was last read, and before.
    known_damage: Vec<Damage>,
    /// Of the step that is taken.
    times: Times,
    retire: bool,
    /// Ends with the last who has the queue.
    writer: Writer,
}

impl Disk {
    fn times(&mut self, now: Moment) -> Times {
        if self.times.now != now {
            self.times = times(now);
        }
        self.times
    }
}

impl Shelf for Disk {
    const IS_DURABLE: bool = true;

    fn holds(&self) -> Option<&QueueType> {
        self.tail.holds()
    }

    fn claim(&mut self, now: Moment, machine: &Machine, holds: QueueType) {
        let times = self.times(now);
        self.tail.claim(times, machine, holds);
    }

    fn has_room(&self, bytes: usize) -> bool {
        // What is left of the segment is for answers, which make room, where there is no room for another.
        let reserved = self.tail.segment_bytes() / 4;
        self.tail.bytes_left() > reserved + bytes as u64 || self.writer.may_begin_next()
    }

    fn tell_of_room(&mut self, room: &Arc<Notify>) {
        self.writer.tell_of_room(room);
    }

    fn store(
        &mut self,
        now: Moment,
        number: JobNumber,
        arrival: &Arrival,
        job: &NewJob,
        machine: &Machine,
    ) {
        let times = self.times(now);
        self.tail.push(times, machine, number, arrival, job);
        let stored = Stored {
            job: job.clone(),
            pushed: now,
        };
        let position = self.tail.position();
        self.recent.keep(number, stored, position);
    }

    fn note(&mut self, now: Moment, fact: &Fact, machine: &Machine) {
        let times = self.times(now);
        self.tail.note(times, machine, fact);
        if let Fact::Finished { number, .. } = fact
            && !machine.is_live(*number)
        {
            self.recent.forget(*number);
            self.retire = true;
        }
    }

    fn fetch(&mut self, number: JobNumber, bytes: usize) -> Result<Option<Stored>, StorageError> {
        if let Some(stored) = self.recent.get(number) {
            return Ok(Some(stored));
        }
        let unreadable = |error| StorageError::unreadable(number, &error);
        let read = self.tail.read_job(&*self.storage, number);
        let damaged = match read.map_err(unreadable)? {
            StoredJob::Whole(pushed, job) => return Ok(Some(Stored { job, pushed })),
            StoredJob::Damaged(place) => place,
            StoredJob::Unknown => return Ok(None),
        };
        let damage = set_aside_job(&*self.storage, damaged, bytes).map_err(unreadable)?;
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(damage);
        }
        Ok(None)
    }

    fn commit(&mut self, now: Moment, machine: &Machine) -> Option<Commit> {
        let owes_cleaning = self.tail.owes_cleaning();
        if std::mem::take(&mut self.retire) || owes_cleaning {
            let times = self.times(now);
            self.tail.retire(times, machine);
            if self.recent.has_room_for_moved() {
                let (recent, pushed) = (&mut self.recent, times.now);
                let moved = |number, job, position| {
                    recent.keep_moved(number, Stored { job, pushed }, position);
                };
                let storage = &*self.storage;
                self.tail.clean(times, machine, storage, CLEAN_JOBS, moved);
            }
        }
        let safe = self.progress.safe();
        self.tail.safe_up_to(safe);
        self.recent.let_go(safe);
        let critical = self.writer.hand_over(&mut self.tail);
        (safe < critical).then(|| Commit::new(critical, &self.progress))
    }

    fn repair(
        &mut self,
        _: &QueueOptions,
        _: &QueueClock,
    ) -> Result<Option<Machine>, StorageError> {
        let Some((recovered, progress)) = self.writer.repaired()? else {
            return Ok(None);
        };
        self.progress = progress;
        self.tail = recovered.tail;
        self.recent = Recent::default();
        let is_new = |damage: &Damage| !self.known_damage.contains(damage);
        let new = recovered
            .damage
            .into_iter()
            .filter(is_new)
            .collect::<Vec<_>>();
        self.known_damage.extend(new.iter().cloned());
        self.damage.extend(new);
        self.damage.truncate(DAMAGE_MAX);
        Ok(Some(recovered.machine))
    }
}

fn times(now: Moment) -> Times {
    Times {
        now,
        wall: QueueClock::wall(),
    }
}

super::memory::delegate_engine!(Durable);
