//! What all attempts of one [`Once`](super::Once) share: the store, and how it is spoken to.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::chores::{self, Releases};
use super::leases::{self, Held};
use crate::counter::Counter;
use crate::once::attempt::{Ended, Input};
use crate::once::{
    Age, Change, Epoch, Key, OnceCounters, PrincipalUsage, Resolver, Store, Terms, Timestamp,
    Verdict,
};
use crate::security::{Principal, Tally};

/// Looks at a record that another attempt has: how soon after each other, at first and at last. The end of its lease is
/// said by the store's clock, which this machine's may be far from.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Principals whose refused requests are counted by name; those of all others are counted together.
const NAMES_MAX: usize = 1000;

pub struct Settings {
    pub terms: Terms,
    pub clock_skew_max: Duration,
    pub running_max: usize,
    pub run_max: Duration,
    pub resolver: Option<Resolver>,
}

pub struct Shared<S> {
    pub store: S,
    pub settings: Settings,
    random: RandomState,
    owner: u64,
    attempts: AtomicU64,
    pub leases: Held,
    pub releases: Releases,
    /// Handlers that go on in tasks of their own.
    running: AtomicUsize,
    /// Claims that wait for the store in tasks of their own.
    claiming: AtomicUsize,
    chores: Mutex<Chores>,
    begun: Instant,
    /// When the task that renews leases was last seen to live: milliseconds since `begun`.
    beat: AtomicU64,
    pub counters: Counters,
}

/// The tasks that work for the store. They know only what is shared, and weakly.
#[derive(Default)]
struct Chores(JoinSet<()>);

pub struct Counters {
    pub ran: AtomicU64,
    replayed: AtomicU64,
    joined: AtomicU64,
    in_doubt: AtomicU64,
    store_failed: Counter,
    refused: Counter,
    refused_of: Tally<AtomicU64>,
    overloaded: Counter,
    pub not_forgotten: Counter,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            ran: AtomicU64::default(),
            replayed: AtomicU64::default(),
            joined: AtomicU64::default(),
            in_doubt: AtomicU64::default(),
            store_failed: Counter::default(),
            refused: Counter::default(),
            refused_of: Tally::new(NAMES_MAX),
            overloaded: Counter::default(),
            not_forgotten: Counter::default(),
        }
    }
}

impl<S: Store> Shared<S> {
    pub fn new(store: S, settings: Settings) -> Self {
        let random = RandomState::new();
        Self {
            store,
            settings,
            owner: random.hash_one(std::process::id()),
            random,
            attempts: AtomicU64::new(0),
            leases: Held::default(),
            releases: Releases::default(),
            running: AtomicUsize::new(0),
            claiming: AtomicUsize::new(0),
            chores: Mutex::default(),
            begun: Instant::now(),
            beat: AtomicU64::new(0),
            counters: Counters::default(),
        }
    }

    /// Which no attempt has had before. Where other processes have the same records, also none of a process that was
    /// one with this before a fork, or before its machine was copied: they go on with the same counter and random key,
    /// but not with the same process ID and time.
    pub fn next_epoch(&self) -> Epoch {
        let number = self.attempts.fetch_add(1, Ordering::Relaxed);
        let owner = match S::SHARED {
            false => self.owner,
            true => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                owner(
                    &self.random,
                    std::process::id(),
                    now.unwrap_or_default(),
                    number,
                )
            }
        };
        Epoch { owner, number }
    }

    pub fn counted(&self) -> OnceCounters {
        let counters = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let usage = self.store.usage();
        OnceCounters {
            ran: read(&counters.ran),
            replayed: read(&counters.replayed),
            joined: read(&counters.joined),
            in_doubt: read(&counters.in_doubt),
            store_failed: counters.store_failed.read(),
            refused: counters.refused.read(),
            overloaded: counters.overloaded.read(),
            forgotten_early: usage.forgotten_early,
            retained: usage.retained,
            running: self.running.load(Ordering::Relaxed),
        }
    }

    /// What a full store cost each principal: what it forgot, and what was refused here.
    pub fn usage_by_principal(&self) -> Vec<PrincipalUsage> {
        let mut all = self.store.usage().principals;
        let refused = self.counters.refused_of.read(|name, of| {
            let name = name.map(Principal::to_string);
            (name, of.load(Ordering::Relaxed))
        });
        for (principal, refused) in refused {
            match all.iter_mut().find(|usage| usage.principal == principal) {
                Some(usage) => usage.refused += refused,
                None => all.push(PrincipalUsage {
                    principal,
                    refused,
                    ..PrincipalUsage::default()
                }),
            }
        }
        all
    }

    pub fn is_full(&self) -> bool {
        self.running.load(Ordering::Relaxed) >= self.settings.running_max
    }

    pub fn is_full_of_claims(&self) -> bool {
        self.claiming.load(Ordering::Relaxed) >= self.settings.running_max
    }

    /// Counts a request that has no place to run.
    pub fn count_overload(&self) {
        let running_max = self.settings.running_max;
        self.counters.overloaded.count_and_log(|count| {
            tracing::warn!(
                running_max,
                count,
                "request refused: too many $once requests run at once"
            );
        });
    }

    pub fn age(&self, key: &Key) -> Age {
        Age {
            created: key.created(),
            retention: self.settings.terms.retention,
            clock_skew_max: self.settings.clock_skew_max,
        }
    }

    /// After so much of it, a lease is renewed.
    pub fn renew_every(&self) -> Duration {
        (self.settings.terms.lease / 3).max(Duration::from_millis(1))
    }

    /// What is said to a request without the store: its like runs here, whatever its lease is by the store's clock.
    pub fn runs_here(&self, key: &Key, change: &Change) -> Option<Verdict> {
        if self.running.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let fingerprint = match change {
            Change::Begin(claim) => Some(claim.fingerprint),
            Change::Look(_) | Change::Resolve { .. } => None,
            _ => return None,
        };
        let running = self.leases.lock().fingerprint(key)?;
        Some(match fingerprint {
            Some(fingerprint) if fingerprint != running => Verdict::KeyReused,
            _ => Verdict::InFlight {
                until: Timestamp::now() + self.settings.terms.lease,
            },
        })
    }

    /// Counts what a full store refused.
    pub fn note(&self, key: &Key, verdict: &Verdict) {
        if matches!(verdict, Verdict::Full) {
            let principal = key.principal();
            self.counters.refused_of.count(&principal, |of| {
                of.fetch_add(1, Ordering::Relaxed);
            });
            self.counters.refused.count_and_log(|count| {
                tracing::warn!(%principal, count, "request refused: the store of outcomes is full");
            });
        }
    }

    /// To begin, to look, or to give back is asked once; what has to be recorded is said until the lease is over.
    pub async fn apply(&self, key: &Key, change: Change) -> Input {
        if let Some(verdict) = self.runs_here(key, &change) {
            return Input::Verdict(verdict);
        }
        let only_once = !matches!(change, Change::Complete { .. } | Change::Doubt { .. });
        let give_up = Instant::now() + self.settings.terms.lease;
        let mut backoff = Backoff::default();
        loop {
            let error = match self.store.apply(key, change.clone()).await {
                Ok(verdict) => {
                    self.note(key, &verdict);
                    return Input::Verdict(verdict);
                }
                Err(error) => error,
            };
            self.counters.store_failed.count_and_log(|count| {
                tracing::error!(%error, count, "the store of outcomes failed");
            });
            let wait = backoff.next();
            match error.is_not_applied() {
                true if only_once => return Input::NotApplied,
                false if only_once => return Input::StoreFailed,
                _ if Instant::now() + wait >= give_up => return Input::StoreFailed,
                _ => sleep(wait).await,
            }
        }
    }

    /// Waits until a record that another attempt has may have changed, for the n-th time.
    pub async fn wait(&self, key: &Key, until: Timestamp, looks: u32) {
        let (at_first, at_last) = LOOK_AGAIN;
        let least = at_first.saturating_mul(1 << looks.min(10)).min(at_last);
        let lease = until.since(Timestamp::now());
        let lease = lease.max(least).min(self.settings.terms.lease.max(least));
        if let Ok(Err(_)) = timeout(lease, self.store.watch(key)).await {
            sleep(least).await;
        }
    }

    /// Whether it is in doubt no longer.
    pub async fn ask_about_doubt(&self, key: &Key, epoch: Epoch) -> bool {
        let Some(resolver) = &self.settings.resolver else {
            return false;
        };
        let Some(resolution) = resolver(key.clone()).await else {
            return false;
        };
        let epoch = Some(epoch);
        let change = Change::Resolve { epoch, resolution };
        // Whoever resolved it, it is resolved; and another attempt is another doubt.
        matches!(
            self.store.apply(key, change).await,
            Ok(Verdict::Applied | Verdict::Done(_) | Verdict::Unknown | Verdict::Superseded)
        )
    }

    pub fn count(&self, ended: &Ended, has_waited: bool) {
        use crate::wire::Reason;
        let counter = match ended {
            Ok(reply) if reply.replayed && has_waited => &self.counters.joined,
            Ok(reply) if reply.replayed => &self.counters.replayed,
            Err(status) if status.reason() == Some(Reason::InDoubt) => &self.counters.in_doubt,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The task that renews leases lives.
    pub fn beat(&self) {
        self.beat.store(self.since_begun(), Ordering::Relaxed);
    }

    fn since_begun(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Sees to it that the tasks which work for the store live: they end with the runtime that they were started in,
    /// and stand still when nothing drives it.
    pub fn ensure_chores(self: &Arc<Self>) {
        let every = self.renew_every();
        let silent = self
            .since_begun()
            .saturating_sub(self.beat.load(Ordering::Relaxed));
        let mut chores = self.chores.lock().unwrap_or_else(PoisonError::into_inner);
        let chores = &mut chores.0;
        let live = || u128::from(silent) <= (every * 2).as_millis() + 1;
        let has_ended = chores.try_join_next().is_some();
        if !chores.is_empty() && !has_ended && live() {
            return;
        }
        self.beat();
        chores.abort_all();
        *chores = JoinSet::new();
        chores.spawn(leases::renew(Arc::downgrade(self)));
        chores.spawn(chores::forget(Arc::downgrade(self), every));
        chores.spawn(chores::release(Arc::downgrade(self)));
    }

    /// Ends these tasks.
    pub fn end_chores(&self) {
        let mut chores = self.chores.lock().unwrap_or_else(PoisonError::into_inner);
        chores.0.abort_all();
    }
}

fn owner(random: &RandomState, process: u32, now: Duration, number: u64) -> u64 {
    random.hash_one((process, now.as_nanos(), number))
}

/// One of the places for handlers that go on in tasks of their own.
pub struct Running<S>(Arc<Shared<S>>);

impl<S> Running<S> {
    pub fn new(shared: &Arc<Shared<S>>) -> Self {
        shared.running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl<S> Drop for Running<S> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A claim that waits for the store.
pub struct Claiming<S>(Arc<Shared<S>>);

impl<S> Claiming<S> {
    pub fn new(shared: &Arc<Shared<S>>) -> Self {
        shared.claiming.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl<S> Drop for Claiming<S> {
    fn drop(&mut self) {
        self.0.claiming.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How soon a store that failed is asked again: twice as late each time, up to a second, and at random by half, so that
/// those who lost it together do not come back together.
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(5))
    }
}

impl Backoff {
    pub fn next(&mut self) -> Duration {
        let wait = self.0.mul_f64(0.5 + 0.5 * fastrand::f64());
        self.0 = (self.0 * 2).min(Duration::from_secs(1));
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_of_two_copies_of_one_process_are_different() {
        // The same random key and counter: after a fork, and in two copies of a machine.
        let random = RandomState::new();
        let now = Duration::from_secs(1_800_000_000);
        let of = |process, now| owner(&random, process, now, 7);
        assert_ne!(of(100, now), of(101, now));
        assert_ne!(of(100, now), of(100, now + Duration::from_nanos(1)));
    }
}
