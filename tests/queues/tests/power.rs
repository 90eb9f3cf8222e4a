//! A queue on a disk that loses power at its syncs, loses or tears what was not synced, and now and then cannot be read: what was acknowledged
//! is there, what is done stays done, and one worker at a time has a job. One seed is one history.
//!
//! `BOWLINE_SEEDS=20000 cargo test --release -p bowline-test-queues --test power` is the long form.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bowline::RequestKey;
use bowline::queue::{
    Answer, Credit, Identity, JobNumber, LeasedJob, NewJob, QueueOptions, SimulatedQueue, Storage,
    Token,
};
use bowline_simulation::{Disk, History, Seed, Simulation, caught, prove};
use bytes::Bytes;
use uuid::Uuid;

const SEGMENT: u64 = 4 << 10;
const LEASE: u64 = 1000;

/// The simulator's disk as a queue's storage.
#[derive(Debug)]
struct OnDisk(Disk, Arc<Reads>);

/// What becomes of reads at present.
#[derive(Debug, Default)]
struct Reads {
    fail: AtomicBool,
    /// They give zeros and say nothing.
    lie: AtomicBool,
}

impl Storage for OnDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<()> {
        let file = self.0.open(name)?;
        file.set_length(0)?;
        file.write_at(0, &vec![0; bytes as usize])?;
        file.sync()?;
        self.0.sync_directory()
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        if self.1.lie.load(Ordering::Relaxed) {
            into.fill(0);
            return Ok(into.len());
        }
        if self.1.fail.load(Ordering::Relaxed) {
            return Err(io::Error::other("the disk cannot be read"));
        }
        let file = self.0.open(name)?;
        let all = file.read_all()?;
        let from = (offset as usize).min(all.len());
        let to = (from + into.len()).min(all.len());
        into[..to - from].copy_from_slice(&all[from..to]);
        Ok(to - from)
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.open(name)?.write_at(offset as usize, bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.0.open(name)?.sync()
    }

    fn truncate(&self, name: &str, bytes: u64) -> io::Result<()> {
        let file = self.0.open(name)?;
        file.set_length(bytes as usize)?;
        file.sync()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)?;
        self.0.sync_directory()
    }
}

/// What a queue could do wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mutant {
    None,
    AcknowledgesBeforeSync,
    DoesNotFence,
    DoesNotDeduplicate,
    TakesUnreadableForDamaged,
}

/// The world: one queue, a producer that pushes again what it was not told of, and workers.
struct World {
    simulation: Simulation<()>,
    disk: Disk,
    reads: Arc<Reads>,
    mutant: Mutant,
    queue: Option<SimulatedQueue>,
    now: u64,
    pushed: u64,
    /// Pushes that are not safe yet.
    pending: BTreeSet<u64>,
    /// Pushes of which nobody knows what became: to be made again.
    untold: BTreeSet<u64>,
    told: BTreeSet<u64>,
    /// Answers that were taken, and are not safe yet.
    taken: Vec<u64>,
    done: BTreeSet<u64>,
    /// Answers of which nobody knows what became.
    perhaps_done: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
    /// Every lease that was given out, of which a worker may think that it still has it.
    leases: Vec<(u64, JobNumber, Token)>,
    newest: BTreeMap<u64, Token>,
}

fn job(index: u64) -> NewJob {
    let identity = Identity {
        producer: Uuid::nil(),
        epoch: 1,
        sequence: index,
    };
    let body = format!("{index} {}", "x".repeat((index % 300) as usize));
    let mut job = NewJob::new(identity, Bytes::from(body));
    if index.is_multiple_of(3) {
        job.id = RequestKey::new(format!("job-{index}")).ok();
    }
    if index.is_multiple_of(2) {
        job.key = Some(Bytes::from(format!("key-{}", index % 5)));
    }
    job
}

fn index_of(job: &LeasedJob) -> u64 {
    let text = std::str::from_utf8(&job.body).expect("text");
    let (index, _) = text.split_once(' ').expect("an index");
    index.parse().expect("a number")
}

impl World {
    fn new(seed: Seed, mutant: Mutant) -> Self {
        let mut simulation: Simulation<()> = Simulation::new(seed);
        let faults = simulation.faults().clone();
        let disk = Disk::new(simulation.random(), faults);
        Self {
            simulation,
            disk,
            reads: Arc::default(),
            mutant,
            queue: None,
            now: 0,
            pushed: 0,
            pending: BTreeSet::new(),
            untold: BTreeSet::new(),
            told: BTreeSet::new(),
            taken: Vec::new(),
            done: BTreeSet::new(),
            perhaps_done: BTreeSet::new(),
            delivered: BTreeSet::new(),
            leases: Vec::new(),
            newest: BTreeMap::new(),
        }
    }

    fn options() -> QueueOptions {
        QueueOptions::default()
            .with_lease(Duration::from_millis(LEASE))
            .with_backoff_min(Duration::from_millis(10))
            .with_backoff_max(Duration::from_millis(100))
            .with_attempts_max(u32::MAX)
            .with_lost_max(u32::MAX)
    }

    /// The queue, opened again where the power has failed. Opening can fail too.
    fn queue(&mut self) -> Option<&mut SimulatedQueue> {
        if self.queue.is_none() {
            self.disk.turn_on();
            let storage = Arc::new(OnDisk(self.disk.clone(), Arc::clone(&self.reads)));
            let seed = self.simulation.random().u64(..);
            let opened = SimulatedQueue::open(storage, &Self::options(), SEGMENT, 0, seed);
            match opened {
                Ok(queue) => {
                    let damage = queue.recovery().damage.clone();
                    self.simulation.require(damage.is_empty(), || {
                        format!("a power cut is no damage: {damage:?}")
                    });
                    self.queue = Some(queue);
                    self.now = 0;
                }
                Err(error) => self.simulation.note(|| format!("not opened: {error}")),
            }
        }
        self.queue.as_mut()
    }

    fn push(&mut self, index: u64) {
        let mut job = job(index);
        if self.mutant == Mutant::DoesNotDeduplicate {
            // As if the queue did not look.
            job.identity.producer = Uuid::from_u128(u128::from(self.simulation.random().u64(..)));
            job.id = None;
        }
        let (now, acknowledges) = (self.now, self.mutant == Mutant::AcknowledgesBeforeSync);
        let pushed = self.queue().map(|queue| queue.push(now, &job));
        self.untold.remove(&index);
        match pushed {
            Some(Ok(_)) if acknowledges => self.told.insert(index),
            Some(Ok(_)) => self.pending.insert(index),
            _ => self.untold.insert(index),
        };
    }

    fn lease(&mut self, is_unreadable: bool) {
        // A queue gives out nothing whose push could still fail.
        if !self.flush() {
            return;
        }
        let session = self.simulation.random().u64(1..4);
        let jobs = self.simulation.random().usize(1..4);
        let credit = Credit {
            jobs,
            bytes: usize::MAX,
            takes_any_first: true,
        };
        let now = self.now;
        let reads = Arc::clone(&self.reads);
        // As if the queue took what the disk could not give for what it gave.
        let is_lying = self.mutant == Mutant::TakesUnreadableForDamaged;
        let Some(queue) = self.queue() else { return };
        let how = match is_lying {
            true => &reads.lie,
            false => &reads.fail,
        };
        how.store(is_unreadable, Ordering::Relaxed);
        let leased = queue.lease(now, session, credit);
        how.store(false, Ordering::Relaxed);
        let Ok(leased) = leased else {
            self.simulation.faults().count("disk: failed read");
            return;
        };
        for job in leased {
            let index = index_of(&job);
            let is_done = self.done.contains(&index);
            self.simulation
                .require(!is_done, || format!("{index} is done, and was sent again"));
            self.delivered.insert(index);
            self.leases.push((index, job.number, job.token));
            self.newest.insert(index, job.token);
        }
    }

    fn answer(&mut self, with: Answer) {
        if self.leases.is_empty() {
            return;
        }
        // Of late, mostly; and now and then one of long ago.
        let len = self.leases.len();
        let back = match self.simulation.chance(0.2) {
            true => self.simulation.random().usize(0..len),
            false => self.simulation.random().usize(0..len.min(4)),
        };
        let (index, number, token) = self.leases[len - 1 - back];
        let newest = self.newest[&index];
        let shown = match self.mutant == Mutant::DoesNotFence {
            true => newest,
            false => token,
        };
        let now = self.now;
        let is_done = with == Answer::Done;
        let Some(queue) = self.queue() else { return };
        if queue.answer(now, number, shown, with).is_ok() {
            self.simulation.require(token == newest, || {
                format!("an answer for {index} was taken from one who has lost it")
            });
            if is_done {
                self.taken.push(index);
            }
        }
    }

    /// Says whether all of it is safe now.
    fn flush(&mut self) -> bool {
        let Some(queue) = self.queue() else {
            return false;
        };
        match queue.flush() {
            Ok(()) => {
                self.told.append(&mut self.pending);
                self.done.extend(self.taken.drain(..));
                if !self.disk.is_on() {
                    // All was safe before, and only an old segment could not be removed any more.
                    self.simulation
                        .note(|| "the power failed after a flush".to_owned());
                    self.queue = None;
                }
                self.queue.is_some()
            }
            Err(error) => {
                self.simulation
                    .note(|| format!("the power failed: {error}"));
                self.queue = None;
                // Whoever waited for an answer does not know, and says it again.
                self.untold.append(&mut self.pending);
                self.perhaps_done.extend(self.taken.drain(..));
                false
            }
        }
    }

    fn step(&mut self) {
        match self.simulation.random().u32(0..100) {
            0..30 => {
                self.push(self.pushed);
                self.pushed += 1;
            }
            30..40 => {
                // Those that are not told of are pushed again, and others that were told of too.
                let most = self.pushed.max(1);
                let again = self.simulation.random().u64(0..most);
                let again = self.untold.first().copied().unwrap_or(again);
                if again < self.pushed {
                    self.push(again);
                }
            }
            40..60 => {
                let is_unreadable = self.simulation.chance(0.1);
                self.lease(is_unreadable);
            }
            60..80 => self.answer(Answer::Done),
            80..85 => self.answer(Answer::Refuse("no".into())),
            85..92 => {
                // What was not told of has to be pushed in this life before it can be.
                let untold: Vec<u64> = self.untold.iter().copied().collect();
                for index in untold {
                    self.push(index);
                }
                self.flush();
            }
            92..97 => self.now += self.simulation.random().u64(1..2 * LEASE),
            _ => {
                let syncs = self.simulation.random().u32(0..6);
                self.disk.cut_power_at_sync(syncs);
            }
        }
    }

    /// With no more faults, everything that was told of gets done, once.
    fn settle(mut self) -> History {
        self.disk.turn_on();
        for _ in 0..10 {
            let untold: Vec<u64> = self.untold.iter().copied().collect();
            for index in untold {
                self.push(index);
            }
            if self.flush() {
                break;
            }
        }
        for _ in 0..10_000 {
            let now = self.now;
            let Some(queue) = self.queue() else { continue };
            if queue.counters(now).jobs == 0 {
                break;
            }
            let before = self.leases.len();
            self.lease(false);
            for (index, number, token) in self.leases.split_off(before) {
                let now = self.now;
                if let Some(queue) = self.queue()
                    && queue.answer(now, number, token, Answer::Done).is_ok()
                {
                    self.taken.push(index);
                }
                self.flush();
            }
            self.now += LEASE / 4;
        }
        let lost: Vec<u64> = self.told.difference(&self.delivered).copied().collect();
        self.simulation.require(lost.is_empty(), || {
            format!("acknowledged and lost: {lost:?}")
        });
        let ended: BTreeSet<u64> = self.done.union(&self.perhaps_done).copied().collect();
        let undone: Vec<u64> = self.told.difference(&ended).copied().collect();
        self.simulation
            .require(undone.is_empty(), || format!("never done: {undone:?}"));
        self.simulation.end()
    }
}

fn history(seed: Seed, mutant: Mutant) -> History {
    let mut world = World::new(seed, mutant);
    for _ in 0..250 {
        world.step();
        if world.simulation.is_violated() {
            return world.simulation.end();
        }
    }
    world.settle()
}

#[test]
fn what_is_acknowledged_survives_power_cuts_at_any_sync() {
    let faults = [
        "disk: power cut",
        "disk: torn write",
        "disk: lost write",
        "disk: failed read",
    ];
    prove(
        "power",
        "what_is_acknowledged_survives_power_cuts_at_any_sync",
        300,
        &faults,
        |seed| history(seed, Mutant::None),
    );
}

#[test]
fn queues_that_break_a_promise_are_caught() {
    for mutant in [
        Mutant::AcknowledgesBeforeSync,
        Mutant::DoesNotFence,
        Mutant::DoesNotDeduplicate,
        Mutant::TakesUnreadableForDamaged,
    ] {
        let found = caught(0..500, |seed| history(seed, mutant));
        let (seed, report) = found.unwrap_or_else(|| panic!("{mutant:?} gets away with it"));
        println!("{mutant:?}: seed {seed}: {report}");
    }
}
