//! What all attempts of one [`Once`](super::Once) share: the store, and how it is spoken to.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::leases::Running;
use crate::once::attempt::{Ended, Input};
use crate::once::key::KeyMap;
use crate::once::{
    Age, Change, Epoch, Key, OnceCounters, Resolver, Store, Terms, Timestamp, Verdict,
};

/// Waits for a record that is watched on another machine's clock are not shorter than this.
const WAIT_MIN: Duration = Duration::from_millis(10);
/// How soon an outcome is offered again to a store that failed, at first and at last.
const RECORD_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

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
    owner: u64,
    attempts: AtomicU64,
    /// Jobs that go on without their caller's task, and how to stop them.
    pub running: Mutex<KeyMap<Running>>,
    pub detached: AtomicUsize,
    pub counters: Counters,
}

#[derive(Default)]
pub struct Counters {
    pub ran: AtomicU64,
    replayed: AtomicU64,
    joined: AtomicU64,
    in_doubt: AtomicU64,
    store_failed: AtomicU64,
}

impl<S: Store> Shared<S> {
    pub fn new(store: S, settings: Settings) -> Self {
        Self {
            store,
            settings,
            owner: RandomState::new().hash_one(std::process::id()),
            attempts: AtomicU64::new(0),
            running: Mutex::default(),
            detached: AtomicUsize::new(0),
            counters: Counters::default(),
        }
    }

    /// Which no attempt has had before.
    pub fn next_epoch(&self) -> Epoch {
        Epoch {
            owner: self.owner,
            number: self.attempts.fetch_add(1, Ordering::Relaxed),
        }
    }

    pub fn counted(&self) -> OnceCounters {
        let counters = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        OnceCounters {
            ran: read(&counters.ran),
            replayed: read(&counters.replayed),
            joined: read(&counters.joined),
            in_doubt: read(&counters.in_doubt),
            store_failed: read(&counters.store_failed),
            running: self.detached.load(Ordering::Relaxed),
        }
    }

    pub fn is_full(&self) -> bool {
        self.detached.load(Ordering::Relaxed) >= self.settings.running_max
    }

    pub fn age(&self, key: &Key) -> Age {
        Age {
            created: key.created(),
            retention: self.settings.terms.retention,
            clock_skew_max: self.settings.clock_skew_max,
        }
    }

    /// To begin or to look is asked once; what has to be recorded is said until the lease is over.
    pub async fn apply(&self, key: &Key, change: Change) -> Input {
        let only_once = matches!(change, Change::Begin(_) | Change::Look(_));
        let give_up = Instant::now() + self.settings.terms.lease;
        let mut wait = RECORD_AGAIN.0;
        loop {
            match self.store.apply(key, change.clone()).await {
                Ok(verdict) => return Input::Verdict(verdict),
                Err(error) => {
                    let count = self.counters.store_failed.fetch_add(1, Ordering::Relaxed);
                    if count.is_power_of_two() || count == 0 {
                        tracing::error!(%error, count, "the store of outcomes failed");
                    }
                    if only_once || Instant::now() + wait >= give_up {
                        return Input::StoreFailed;
                    }
                }
            }
            sleep(wait).await;
            wait = (wait * 2).min(RECORD_AGAIN.1);
        }
    }

    pub async fn wait(&self, key: &Key, until: Timestamp) {
        let lease = until.since(Timestamp::now()).max(WAIT_MIN);
        if let Ok(Err(_)) = timeout(lease, self.store.watch(key)).await {
            sleep(WAIT_MIN).await;
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
}

/// Counts a job that goes on in a task of its own.
pub struct Detached<S>(Arc<Shared<S>>);

impl<S> Detached<S> {
    pub fn new(shared: &Arc<Shared<S>>) -> Self {
        shared.detached.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl<S> Drop for Detached<S> {
    fn drop(&mut self) {
        self.0.detached.fetch_sub(1, Ordering::Relaxed);
    }
}
