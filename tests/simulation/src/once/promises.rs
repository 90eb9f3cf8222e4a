//! The checker: what was promised, and what everyone was told. It sees all machines at once.
//!
//! A ledger is kept for each key; with the store in memory, for each key and life of its process,
//! since that is as far as its promise goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bowline::__simulated::Ended;
use bowline::call::{Outcome, RawReply};
use bowline::once::{Change, Epoch, Fingerprint, Recorded, Timestamp, Verdict};
use bowline::schema::Recovery;
use bowline::{Reason, Status, Work};
use bytes::Bytes;

use super::Event;
use super::setting::{Setting, StoreKind};
use crate::{Process, Simulation};

/// Where a promise holds: a key, and the life of the process that made it, or 0 for all lives.
pub(crate) type Scope = (usize, u32);

pub(crate) struct Promises {
    recovery: Recovery,
    is_memory: bool,
    retention: Duration,
    has_short_retention: bool,
    is_small: bool,
    clock_skew_max: Duration,
    ledgers: BTreeMap<Scope, Ledger>,
    runs: Vec<Run>,
    copies: Vec<Copy>,
    /// Attempts that have claimed, or may have, and have not ended.
    active: BTreeMap<u64, (Scope, Process)>,
    jobs: u64,
    last_crash: Duration,
}

#[derive(Default)]
struct Ledger {
    effects: u64,
    /// The run that had the effect, or the last that had one.
    effected: Option<usize>,
    recorded: Option<(Recorded, Duration)>,
    told: Option<(Outcome, Bytes)>,
    /// Who may run now, by the store's clock.
    lease: Option<(Epoch, Timestamp)>,
    /// Of all that was sent under the key.
    fingerprints: BTreeSet<[u8; 32]>,
}

/// One run of a handler.
struct Run {
    scope: Scope,
    reply: RawReply,
    has_effect: bool,
}

/// One arrival of a request at a server.
struct Copy {
    call: u64,
    correlation: u64,
    scope: Scope,
    fingerprint: Option<Fingerprint>,
    body: String,
    run: Option<usize>,
    was_not_done: bool,
}

type Time<'a> = &'a mut Simulation<Event>;

impl Promises {
    pub fn new(setting: &Setting) -> Self {
        Self {
            recovery: setting.recovery,
            is_memory: setting.store == StoreKind::Memory,
            retention: setting.terms.retention,
            has_short_retention: setting.has_short_retention,
            is_small: setting.records_max.is_some(),
            clock_skew_max: setting.clock_skew_max,
            ledgers: BTreeMap::new(),
            runs: Vec::new(),
            copies: Vec::new(),
            active: BTreeMap::new(),
            jobs: 0,
            last_crash: Duration::ZERO,
        }
    }

    pub fn scope(&self, key: usize, process: Process) -> Scope {
        match self.is_memory {
            true => (key, process.life),
            false => (key, 0),
        }
    }

    /// A number that no other job has, on any machine.
    pub fn next_job(&mut self) -> u64 {
        self.jobs += 1;
        self.jobs
    }

    /// A request has arrived. `fingerprint` is none where it only asks.
    pub fn arrived(
        &mut self,
        scope: Scope,
        (call, correlation): (u64, u64),
        fingerprint: Option<Fingerprint>,
        body: String,
    ) -> usize {
        if let Some(fingerprint) = fingerprint {
            let ledger = self.ledgers.entry(scope).or_default();
            ledger.fingerprints.insert(fingerprint.to_bytes());
        }
        self.copies.push(Copy {
            call,
            correlation,
            scope,
            fingerprint,
            body,
            run: None,
            was_not_done: false,
        });
        self.copies.len() - 1
    }

    pub fn set_active(&mut self, job: u64, scope: Scope, process: Process, is_active: bool) {
        match is_active {
            true => self.active.insert(job, (scope, process)),
            false => self.active.remove(&job),
        };
    }

    pub fn crashed(&mut self, now: Duration, process: Process) {
        self.last_crash = now;
        self.active.retain(|_, (_, of)| *of != process);
    }

    /// The store gave this verdict, by its clock.
    pub fn decided(
        &mut self,
        time: Time<'_>,
        scope: Scope,
        now: Timestamp,
        change: &Change,
        verdict: &Verdict,
    ) {
        let ledger = self.ledgers.entry(scope).or_default();
        match (change, verdict) {
            (Change::Begin(claim), Verdict::Run) => {
                let held = ledger
                    .lease
                    .filter(|(epoch, until)| *epoch != claim.epoch && *until > now);
                time.require(held.is_none(), || {
                    format!("{scope:?}: two may run at once: {claim:?} and {held:?} at {now:?}")
                });
                time.require(ledger.recorded.is_none(), || {
                    format!("{scope:?} may run again although its outcome was recorded")
                });
                ledger.lease = Some((claim.epoch, now + claim.lease));
            }
            (Change::Renew { epoch, lease }, Verdict::Applied) => {
                if let Some((held, until)) = &mut ledger.lease
                    && held == epoch
                {
                    *until = now + *lease;
                }
            }
            (
                Change::Complete { epoch, .. }
                | Change::Release { epoch }
                | Change::Doubt { epoch },
                Verdict::Applied,
            )
            // It has ended, and an earlier attempt was begun.
            | (Change::Release { epoch }, Verdict::InDoubt { .. }) => {
                ledger.lease.take_if(|(held, _)| held == epoch);
            }
            // It is told that nothing was done, at least of a key that says its age.
            (Change::Look(_), Verdict::Unknown) => {
                time.require(ledger.effects == 0, || {
                    format!("{scope:?}: nothing is recorded, and it was done")
                });
            }
            _ => {}
        }
    }

    /// All attempts of earlier lives are known to be dead.
    pub fn end_leases(&mut self) {
        for ledger in self.ledgers.values_mut() {
            ledger.lease = None;
        }
    }

    /// What a store that was opened again has under a key, where that is an outcome. What it did not have
    /// when it was looked at last was written while the power failed.
    pub fn observe_again(&mut self, time: Time<'_>, scope: Scope, recorded: Option<&Recorded>) {
        self.observe_since(time, scope, recorded, self.last_crash);
    }

    /// What is recorded under a key now, where that is an outcome.
    pub fn observe(&mut self, time: Time<'_>, scope: Scope, recorded: Option<&Recorded>) {
        let now = time.now();
        self.observe_since(time, scope, recorded, now);
    }

    fn observe_since(
        &mut self,
        time: Time<'_>,
        scope: Scope,
        recorded: Option<&Recorded>,
        since: Duration,
    ) {
        let earliest = (self.retention).saturating_sub(self.clock_skew_max);
        let ledger = self.ledgers.entry(scope).or_default();
        match (&ledger.recorded, recorded) {
            (None, Some(recorded)) => ledger.recorded = Some((recorded.clone(), since)),
            (Some((before, _)), Some(recorded)) => time.require(before == recorded, || {
                format!("{scope:?} has another outcome: {recorded:?}, was {before:?}")
            }),
            // Its key says when it was made, and is refused from now on.
            (Some(_), None) if self.is_small => {}
            (Some((before, at)), None) => {
                let kept = time.now().saturating_sub(*at);
                time.require(kept >= earliest, || {
                    format!("{scope:?}: {before:?} is gone after {kept:?}")
                });
            }
            (None, None) => {}
        }
    }

    /// How often the effect is in the database that also has the record.
    pub fn observe_atomic(&mut self, time: Time<'_>, scope: Scope, effects: u64) {
        let ledger = self.ledgers.entry(scope).or_default();
        ledger.effects = effects;
        let recorded = u64::from(ledger.recorded.is_some());
        time.require(effects == recorded, || {
            format!("{scope:?}: {effects} effects and {recorded} outcomes")
        });
    }

    /// The number that the next run will have.
    pub fn next_run(&self) -> usize {
        self.runs.len()
    }

    pub fn began(&mut self, time: Time<'_>, copy: usize, reply: RawReply) -> usize {
        let scope = self.copies[copy].scope;
        let ledger = self.ledgers.entry(scope).or_default();
        if self.recovery == Recovery::InDoubt {
            time.require(ledger.recorded.is_none(), || {
                format!("{scope:?} runs again although its outcome was recorded")
            });
        }
        self.runs.push(Run {
            scope,
            reply,
            has_effect: false,
        });
        let run = self.runs.len() - 1;
        self.copies[copy].run = Some(run);
        run
    }

    /// What a run does beside the record has happened.
    pub fn effected(&mut self, time: Time<'_>, run: usize) {
        self.runs[run].has_effect = true;
        let scope = self.runs[run].scope;
        let ledger = self.ledgers.entry(scope).or_default();
        ledger.effects += 1;
        ledger.effected = Some(run);
        let effects = ledger.effects;
        if self.recovery == Recovery::InDoubt {
            time.require(effects <= 1, || {
                format!("{scope:?} was done {effects} times")
            });
        }
    }

    /// What a run did has been committed with its record.
    pub fn committed(&mut self, run: usize) {
        self.runs[run].has_effect = true;
    }

    /// What an application that looks at the traces of its work finds out: whether it was done.
    /// `None` while an attempt may still do it.
    pub fn was_done(&self, scope: Scope) -> Option<bool> {
        let effects = self.ledgers.get(&scope).map_or(0, |ledger| ledger.effects);
        match effects > 0 {
            true => Some(true),
            false if self.active.values().any(|(of, _)| *of == scope) => None,
            false => Some(false),
        }
    }

    /// A server tells how a request ended.
    pub fn answered(&mut self, time: Time<'_>, copy: usize, ended: &Ended) {
        match ended {
            Ok(reply) => self.told(time, copy, reply),
            Err(status) => self.refused(time, copy, status),
        }
    }

    fn told(&mut self, time: Time<'_>, copy: usize, reply: &RawReply) {
        let Copy {
            scope, run, body, ..
        } = &self.copies[copy];
        let ledger = self.ledgers.entry(*scope).or_default();
        let text = String::from_utf8_lossy(&reply.body);
        time.require(text.contains(&body[..]), || {
            format!("{scope:?}: {text} is no reply to {body}")
        });
        time.require(reply.replayed == run.is_none(), || {
            format!(
                "{scope:?}: {text} is marked wrongly: replayed {}",
                reply.replayed
            )
        });
        let now = (reply.outcome, reply.body.clone());
        match &ledger.told {
            None => ledger.told = Some(now),
            Some(before) => time.require(*before == now, || {
                format!("{scope:?}: one was told {before:?}, another {now:?}")
            }),
        }
        let is_recorded = match &ledger.recorded {
            Some((Recorded::Reply { outcome, body, .. }, _)) => {
                (*outcome, body) == (reply.outcome, &reply.body)
            }
            Some((Recorded::NotRetained { digest, .. }, _)) => {
                *digest == Fingerprint::of_bytes(&reply.body)
            }
            None => false,
        };
        time.require(is_recorded, || {
            format!(
                "{scope:?}: {text} was told, recorded is {:?}",
                ledger.recorded
            )
        });
        let effects = ledger.effects;
        time.require(effects > 0, || {
            format!("{scope:?}: {text} was told, not done")
        });
    }

    fn refused(&mut self, time: Time<'_>, copy: usize, status: &Status) {
        let Copy {
            scope,
            run,
            fingerprint,
            ..
        } = &self.copies[copy];
        let (scope, fingerprint) = (*scope, *fingerprint);
        let ledger = self.ledgers.entry(scope).or_default();
        match status.work() {
            Work::Done => time.require(ledger.effects > 0, || {
                format!("{scope:?}: {status}, and it was not done")
            }),
            Work::NotDone => {
                let was_done = run.is_some_and(|run| self.runs[run].has_effect);
                time.require(!was_done, || {
                    format!("{scope:?}: {status}, and it was done")
                });
                self.copies[copy].was_not_done = true;
            }
            Work::OutcomeUnknown => {}
        }
        match status.reason() {
            Some(Reason::KeyReused) => {
                let own = fingerprint.map(|fingerprint| fingerprint.to_bytes());
                let mut others = ledger.fingerprints.iter();
                time.require(others.any(|other| Some(*other) != own), || {
                    format!("{scope:?}: {status}, and it was not")
                });
            }
            Some(Reason::KeyExpired) => {
                let may_be = self.has_short_retention || self.is_small;
                time.require(may_be, || format!("{scope:?}: {status}, and it is not"));
            }
            Some(Reason::KeyUnknown) if status.work() == Work::NotDone => {
                let effects = ledger.effects;
                time.require(effects == 0, || {
                    format!("{scope:?}: {status}, and it was done {effects} times")
                });
            }
            _ => {}
        }
    }

    /// A caller is told that its call was not done. Where the network repeated none of its
    /// requests, nothing was, and nothing will be.
    pub fn call_was_not_done(&self, time: Time<'_>, call: u64) {
        let copies = || self.copies.iter().filter(|copy| copy.call == call);
        let mut seen = BTreeSet::new();
        if copies().all(|copy| seen.insert(copy.correlation)) {
            let done = copies()
                .filter_map(|copy| copy.run)
                .find(|run| self.runs[*run].has_effect);
            time.require(done.is_none(), || {
                format!("call {call} was told that nothing was done; run {done:?} was")
            });
        }
    }

    /// The outcome that an application makes up for what it finds done: it cannot know what its
    /// handler was going to say, word for word.
    pub fn found(&self, scope: Scope) -> Recorded {
        let run = self.ledgers.get(&scope).and_then(|ledger| ledger.effected);
        let reply = run.map(|run| &self.runs[run].reply);
        let said = reply.map_or_else(Bytes::new, |reply| reply.body.clone());
        Recorded::Reply {
            outcome: reply.map_or(Outcome::Success, |reply| reply.outcome),
            metadata: bowline::Metadata::new(),
            body: Bytes::from([b"found: ", &said[..]].concat()),
        }
    }

    /// What must hold when all is over.
    pub fn check_end(&self, time: Time<'_>) {
        for copy in self.copies.iter().filter(|copy| copy.was_not_done) {
            let was_done = copy.run.is_some_and(|run| self.runs[run].has_effect);
            time.require(!was_done, || {
                format!("{:?}: not done, said a server; it was", copy.scope)
            });
        }
        for (scope, ledger) in &self.ledgers {
            let effects = ledger.effects;
            let least = u64::from(ledger.told.is_some());
            time.require(effects >= least, || format!("{scope:?}: told and not done"));
        }
    }
}
