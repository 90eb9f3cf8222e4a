//! Stores as a server sees them: operations go in, and answers come back later, or fail.
//!
//! [`Local`] is a store of one process: the real one in memory, or the real redb engine on the
//! simulated disk. [`Shared`] is a model of one that replicas share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bowline::__simulated::{Done, Engine, Operation as Committed};
use bowline::call::RawReply;
use bowline::once::{
    Age, AtOnce, Bounds, Change, Claimed, Clock, Key, MemoryStore, Record, Recorded, State, Store,
    Timestamp, Verdict, Write, step,
};
use bowline::{Code, Reason, Status, Work};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::promises::{Promises, Scope};
use super::{Context, Event, Mutant, notes, server};
use crate::{Disk, Machine, Process, Simulation};

/// What handlers count in the database that also has the records.
const EFFECTS: TableDefinition<'_, &[u8], u64> = TableDefinition::new("effects");

/// When the history begins, by true time.
const BEGINNING: Timestamp = Timestamp::from_milliseconds(1_800_000_000_000);

/// What is asked of a store.
#[derive(Clone)]
pub(crate) struct Ask {
    pub key: Key,
    pub scope: Scope,
    pub what: What,
}

#[derive(Clone)]
pub(crate) enum What {
    Change(Change),
    /// A handler's effect, together with its outcome.
    Commit {
        claimed: Claimed,
        reply: RawReply,
        /// For the checker.
        run: usize,
    },
}

/// What a store says; an error where it failed, or nobody knows.
pub(crate) type Answer = Result<Done, ()>;

/// An operation on its way to the shared store.
pub(crate) struct Operation {
    pub process: Process,
    pub asked_by: server::AskedBy,
    pub ask: Ask,
    /// Whether anybody still waits for it.
    pub is_answered: bool,
}

impl Context {
    /// What a machine's clock says.
    pub fn clock(&self, machine: Machine) -> Timestamp {
        let jumped = self.jumped.get(&machine).copied().unwrap_or_default();
        BEGINNING + self.machines.clock(machine, self.now()) + jumped
    }

    /// Tells the checker what a store decided.
    fn decided(&mut self, ask: &Ask, now: Timestamp, before: Option<&Record>, done: &Done) {
        if let What::Change(Change::Begin(claim)) = &ask.what
            && let Some(record) = before
            && let State::InFlight { until } = record.state
            && until <= now
            && record.epoch != claim.epoch
        {
            self.count("once: lease expired");
        }
        let is_fenced = matches!(
            (&ask.what, done),
            (
                What::Change(Change::Complete { .. }),
                Done::Verdict(Verdict::Superseded)
            ) | (What::Commit { .. }, Done::Committed(Err(_)))
        );
        if is_fenced {
            self.count("once: fenced completion");
        }
        if let (What::Change(change), Done::Verdict(verdict)) = (&ask.what, done) {
            let simulation = &mut self.simulation;
            (self.promises).decided(simulation, ask.scope, now, change, verdict);
        }
        if let (What::Commit { run, .. }, Done::Committed(Ok(_))) = (&ask.what, done) {
            self.promises.committed(*run);
        }
        let key = ask.scope.0;
        self.simulation.note(|| {
            let (what, done) = (notes::what(&ask.what), notes::done(done));
            format!("  store: key {key}: {what} -> {done}")
        });
    }
}

/// The mutant's store: whoever asks has the epoch that is recorded.
fn unfence(ask: &mut Ask, recorded: Option<&Record>) {
    let Some(Record {
        epoch: recorded, ..
    }) = recorded
    else {
        return;
    };
    match &mut ask.what {
        What::Change(
            Change::Complete { epoch, .. }
            | Change::Release { epoch }
            | Change::Doubt { epoch }
            | Change::Renew { epoch, .. },
        ) => *epoch = *recorded,
        What::Commit { claimed, .. } => claimed.epoch = *recorded,
        What::Change(_) => {}
    }
}

fn outcome(record: Option<&Record>) -> Option<&Recorded> {
    match record.map(|record| &record.state) {
        Some(State::Done { outcome, .. }) => Some(outcome),
        _ => None,
    }
}

fn complete(claimed: &Claimed, reply: &RawReply) -> Change {
    Change::Complete {
        epoch: claimed.epoch,
        outcome: Recorded::new(reply, claimed.reply_bytes_max),
        retention: claimed.retention,
    }
}

/// A store that all replicas share. It never loses anything; the way to it does.
#[derive(Default)]
pub(crate) struct Shared {
    records: BTreeMap<Key, Record>,
    effects: BTreeMap<Key, u64>,
}

impl Shared {
    pub fn handle(&mut self, context: &mut Context, operation: Operation) {
        let Operation {
            process,
            asked_by,
            mut ask,
            is_answered,
        } = operation;
        let now = context.clock(context.setting.store_machine());
        let before = self.records.get(&ask.key).cloned();
        if context.mutant == Some(Mutant::NoFencing) {
            unfence(&mut ask, before.as_ref());
        }
        let done = match &ask.what {
            What::Change(change) => {
                Done::Verdict(self.apply(now, &ask.key, before.as_ref(), change.clone()))
            }
            What::Commit { claimed, reply, .. } => {
                let change = complete(claimed, reply);
                let is_done = outcome(before.as_ref()).is_some();
                match self.apply(now, &ask.key, before.as_ref(), change) {
                    Verdict::Applied if !is_done || context.mutant.is_some() => {
                        *self.effects.entry(ask.key.clone()).or_default() += 1;
                        Done::Committed(Ok(reply.clone()))
                    }
                    _ => Done::Committed(Err(superseded())),
                }
            }
        };
        context.decided(&ask, now, before.as_ref(), &done);
        let record = self.records.get(&ask.key);
        let simulation = &mut context.simulation;
        (context.promises).observe(simulation, ask.scope, outcome(record));
        if context.setting.recovery == bowline::schema::Recovery::Atomic {
            let effects = self.effects.get(&ask.key).copied().unwrap_or_default();
            (context.promises).observe_atomic(simulation, ask.scope, effects);
        }
        if is_answered {
            let wait = context
                .simulation
                .duration(Duration::ZERO, Duration::from_millis(3));
            let answer = Ok(done);
            let event = server::Event::Answered { asked_by, answer };
            context.after(wait, Event::Server { process, event });
        }
    }

    fn apply(
        &mut self,
        now: Timestamp,
        key: &Key,
        before: Option<&Record>,
        change: Change,
    ) -> Verdict {
        let (verdict, write) = step(before, now, change);
        match write {
            Write::Nothing => {}
            Write::Put(record) => {
                self.records.insert(key.clone(), record);
            }
            Write::Remove => {
                self.records.remove(key);
            }
        }
        verdict
    }

    /// Sends an operation to it.
    pub fn ask(context: &mut Context, process: Process, asked_by: server::AskedBy, ask: Ask) {
        let machine = context.setting.store_machine();
        let way = context
            .simulation
            .duration(Duration::ZERO, Duration::from_millis(3));
        let fails = context.fault(context.setting.store_failure);
        let is_parted = !context.network.reaches(process.machine, machine);
        let kind = match fails {
            true => context.simulation.random().u8(0..3),
            false => 0,
        };
        let mut reached = Operation {
            process,
            asked_by: asked_by.clone(),
            ask,
            is_answered: true,
        };
        if !fails && !is_parted {
            return context.after(way, Event::Store(reached));
        }
        let timeout = context
            .simulation
            .duration(Duration::from_millis(50), Duration::from_secs(1));
        let answer = Err(());
        let event = server::Event::Answered { asked_by, answer };
        context.after(timeout, Event::Server { process, event });
        reached.is_answered = false;
        if is_parted || kind == 0 {
            context.count("store: failed before it took effect");
        } else if kind == 2 {
            context.count("store: took effect late");
            let wait = context
                .simulation
                .duration(timeout, Duration::from_secs(10));
            context.after(wait, Event::Store(reached));
        } else {
            context.count("store: failed after it took effect");
            context.after(way, Event::Store(reached));
        }
    }
}

fn superseded() -> Status {
    Status::new(
        Code::Aborted,
        Work::NotDone,
        "another attempt has taken over",
    )
    .with_reason(Reason::Superseded)
}

/// A store of one process.
pub(crate) enum Local {
    Memory(MemoryStore, Arc<AtomicU64>),
    Redb(Box<Redb>),
    /// It has none: it asks the shared one.
    None,
}

pub(crate) struct Redb {
    engine: Engine,
    queued: Vec<(server::AskedBy, Ask)>,
    is_writing: bool,
}

/// Operations of one transaction.
const GROUP_MAX: usize = 8;

impl Local {
    pub fn memory(bounds: Bounds) -> Self {
        let clock = Arc::new(AtomicU64::new(0));
        let store = MemoryStore::with_clock(bounds, Clock::Manual(Arc::clone(&clock)));
        Self::Memory(store, clock)
    }

    /// Opens the database, and has the checker look at what is in it.
    ///
    /// # Errors
    /// What went wrong, which must be the power.
    pub fn redb(
        context: &mut Context,
        disk: &Disk,
        scopes: &BTreeMap<Key, Scope>,
    ) -> Result<Self, String> {
        let database = crate::database::open(disk, "outcomes").map_err(|e| format!("{e:?}"))?;
        let has_open = has_open_claims(&database);
        let machine = context.setting.server_machines().next();
        let now = context.clock(machine.unwrap_or(Machine(0)));
        let engine = Engine::open(database, context.setting.bounds(), now);
        let engine = engine.map_err(|e| e.to_string())?;
        if has_open {
            context.count("once: open claim found at a restart");
        }
        context.promises.end_leases();
        let redb = Redb {
            engine,
            queued: Vec::new(),
            is_writing: false,
        };
        for (key, scope) in scopes {
            redb.observe(context, key, *scope, Promises::observe_again);
        }
        Ok(Self::Redb(Box::new(redb)))
    }

    pub fn ask(
        &mut self,
        context: &mut Context,
        process: Process,
        asked_by: server::AskedBy,
        mut ask: Ask,
    ) {
        let now = context.clock(process.machine);
        let answer = match self {
            Self::None => return Shared::ask(context, process, asked_by, ask),
            Self::Memory(store, clock) => {
                clock.store(now.milliseconds(), Ordering::Relaxed);
                memory(context, store, now, &ask)
            }
            Self::Redb(redb) => {
                if context.mutant == Some(Mutant::NoFencing) {
                    let record = redb.engine.read(&ask.key).ok().flatten();
                    unfence(&mut ask, record.as_ref());
                }
                let at_once = match &ask.what {
                    What::Change(change) => redb.engine.answer(now, &ask.key, change),
                    What::Commit { .. } => None,
                };
                match at_once {
                    Some(Ok(verdict)) => {
                        let done = Done::Verdict(verdict);
                        context.decided(&ask, now, None, &done);
                        Ok(done)
                    }
                    Some(Err(_)) => Err(()),
                    None => {
                        redb.queued.push((asked_by, ask));
                        return redb.write_soon(context, process);
                    }
                }
            }
        };
        let wait = context
            .simulation
            .duration(Duration::ZERO, Duration::from_millis(1));
        let event = server::Event::Answered { asked_by, answer };
        context.after(wait, Event::Server { process, event });
    }
}

fn memory(context: &mut Context, store: &MemoryStore, now: Timestamp, ask: &Ask) -> Answer {
    let What::Change(change) = &ask.what else {
        return Err(());
    };
    let AtOnce::Applied(verdict) = store.apply_now(&ask.key, change.clone()) else {
        return Err(());
    };
    context.decided(ask, now, None, &Done::Verdict(verdict.clone()));
    if matches!(verdict, Verdict::KeyExpired) && !context.setting.has_short_retention {
        context.count("once: forgotten early");
    }
    let look = Change::Look(Age {
        created: None,
        retention: context.setting.terms.retention,
        clock_skew_max: context.setting.clock_skew_max,
    });
    let recorded = match store.apply_now(&ask.key, look) {
        AtOnce::Applied(Verdict::Done(recorded)) => Some(recorded),
        _ => None,
    };
    let simulation = &mut context.simulation;
    (context.promises).observe(simulation, ask.scope, recorded.as_ref());
    Ok(Done::Verdict(verdict))
}

impl Redb {
    fn write_soon(&mut self, context: &mut Context, process: Process) {
        if !self.is_writing && !self.queued.is_empty() {
            self.is_writing = true;
            let wait = context
                .simulation
                .duration(Duration::ZERO, Duration::from_millis(1));
            let event = server::Event::Write;
            context.after(wait, Event::Server { process, event });
        }
    }

    /// One transaction. Its answers come when its sync is over.
    pub fn write(&mut self, context: &mut Context, process: Process) {
        let now = context.clock(process.machine);
        let count = self.queued.len().min(GROUP_MAX);
        let group: Vec<_> = self.queued.drain(..count).collect();
        let before: Vec<_> = group
            .iter()
            .map(|(_, ask)| self.engine.read(&ask.key).ok().flatten())
            .collect();
        let operations: Vec<_> = group.iter().map(|(_, ask)| operation(ask)).collect();
        let answers: Vec<Answer> = match self.engine.commit(now, &operations) {
            Ok(done) => done.into_iter().map(Ok).collect(),
            Err(error) => {
                context.simulation.note(|| format!("  redb: {error}"));
                group.iter().map(|_| Err(())).collect()
            }
        };
        // A store of a few records may have forgotten an outcome in the transaction that recorded it.
        for ((_, ask), answer) in group.iter().zip(&answers) {
            if let Ok(done) = answer
                && let Some(recorded) = recorded(ask, done)
            {
                let simulation = &mut context.simulation;
                (context.promises).observe(simulation, ask.scope, Some(&recorded));
            }
        }
        for (((_, ask), before), answer) in group.iter().zip(&before).zip(&answers) {
            if let Ok(done) = answer {
                context.decided(ask, now, before.as_ref(), done);
                self.observe(context, &ask.key, ask.scope, Promises::observe);
            }
        }
        let sync = match context.fault(0.05) {
            true => Duration::from_secs(1),
            false => Duration::from_millis(20),
        };
        let wait = context.simulation.duration(Duration::from_millis(1), sync);
        let asked_by = group.into_iter().map(|(asked_by, _)| asked_by);
        let answers = asked_by.zip(answers).collect();
        let event = server::Event::Written { answers };
        context.after(wait, Event::Server { process, event });
    }

    pub fn written(&mut self, context: &mut Context, process: Process) {
        self.is_writing = false;
        self.write_soon(context, process);
    }

    fn observe(
        &self,
        context: &mut Context,
        key: &Key,
        scope: Scope,
        observe: fn(&mut Promises, &mut Simulation<Event>, Scope, Option<&Recorded>),
    ) {
        let Ok(record) = self.engine.read(key) else {
            return;
        };
        let simulation = &mut context.simulation;
        observe(
            &mut context.promises,
            simulation,
            scope,
            outcome(record.as_ref()),
        );
        if context.setting.recovery == bowline::schema::Recovery::Atomic {
            let effects = effects(self.engine.database(), key).unwrap_or_default();
            (context.promises).observe_atomic(simulation, scope, effects);
        }
    }
}

/// The outcome that was recorded, if this is what was done.
fn recorded(ask: &Ask, done: &Done) -> Option<Recorded> {
    match (&ask.what, done) {
        (What::Change(Change::Complete { outcome, .. }), Done::Verdict(Verdict::Applied)) => {
            Some(outcome.clone())
        }
        (What::Commit { claimed, reply, .. }, Done::Committed(Ok(_))) => {
            Some(Recorded::new(reply, claimed.reply_bytes_max))
        }
        _ => None,
    }
}

fn operation(ask: &Ask) -> Committed {
    match &ask.what {
        What::Change(change) => Committed::Change(ask.key.clone(), change.clone()),
        What::Commit { claimed, reply, .. } => {
            let (key, reply) = (ask.key.clone(), reply.clone());
            Committed::Commit {
                claimed: claimed.clone(),
                work: Box::new(move |writes| {
                    let failed = |error: &dyn std::fmt::Display| Status::from_store(error);
                    let mut table = writes.open_table(EFFECTS).map_err(|error| failed(&error))?;
                    let count = table.get(key.as_bytes()).map_err(|error| failed(&error))?;
                    let count = count.map_or(0, |count| count.value());
                    let inserted = table.insert(key.as_bytes(), count + 1);
                    inserted.map_err(|error| failed(&error))?;
                    Ok(reply.clone())
                }),
            }
        }
    }
}

fn effects(database: &Database, key: &Key) -> Result<u64, redb::Error> {
    let transaction = database.begin_read()?;
    match transaction.open_table(EFFECTS) {
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(0),
        table => Ok(table?.get(key.as_bytes())?.map_or(0, |count| count.value())),
    }
}

/// By the engine's own table: its name is a part of its format.
fn has_open_claims(database: &Database) -> bool {
    const OPEN: TableDefinition<'_, &[u8], ()> = TableDefinition::new("bowline-once-open");
    let read = || -> Result<bool, redb::Error> {
        let transaction = database.begin_read()?;
        let table = transaction.open_table(OPEN)?;
        let mut entries = table.iter()?;
        Ok(entries.next().is_some())
    };
    read().unwrap_or(false)
}
