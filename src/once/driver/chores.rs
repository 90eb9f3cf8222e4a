//! What is done for the store beside requests: it forgets what is over, and claims are given back that it may have
//! made although it did not say so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::shared::{Backoff, Shared};
use crate::counter::Counter;
use crate::once::{Change, Epoch, Key, Store};

/// Records that the store is asked to forget at once.
const FORGOTTEN_AT_ONCE: usize = 1000;
/// Claims that wait to be given back. What a claim beyond them may have begun ends with its lease.
const RELEASES_MAX: usize = 16_384;
/// Claims that are given back at once.
const RELEASES_AT_ONCE: usize = 64;

/// Claims whose answer was lost, and whose handlers were never run.
#[derive(Debug, Default)]
pub struct Releases {
    waiting: Mutex<VecDeque<(Key, Epoch)>>,
    added: Notify,
    dropped: Counter,
}

impl Releases {
    pub fn add(&self, key: Key, epoch: Epoch) {
        let mut waiting = self.lock();
        if waiting.len() >= RELEASES_MAX {
            drop(waiting);
            self.dropped.count_and_log(|count| {
                tracing::warn!(
                    count,
                    "claims of an unreachable store of outcomes are left to their leases: too many"
                );
            });
            return;
        }
        waiting.push_back((key, epoch));
        drop(waiting);
        self.added.notify_one();
    }

    fn take(&self) -> Vec<(Key, Epoch)> {
        let mut waiting = self.lock();
        let count = waiting.len().min(RELEASES_AT_ONCE);
        waiting.drain(..count).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Key, Epoch)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A claim that is being given back; it waits again if that fails, or is broken off.
struct Taken<S: Store> {
    shared: Arc<Shared<S>>,
    claim: Option<(Key, Epoch)>,
}

impl<S: Store> Taken<S> {
    /// Says whether the store has done it.
    async fn release(&mut self) -> bool {
        if let Some((key, epoch)) = &self.claim {
            let release = Change::Release { epoch: *epoch };
            if self.shared.store.apply(key, release).await.is_ok() {
                self.claim = None;
            }
        }
        self.claim.is_none()
    }
}

impl<S: Store> Drop for Taken<S> {
    fn drop(&mut self) {
        if let Some((key, epoch)) = self.claim.take() {
            self.shared.releases.add(key, epoch);
        }
    }
}

/// Gives claims back until the store has taken each: it may still be about to make one that it was asked for long ago.
pub async fn release<S: Store>(shared: Weak<Shared<S>>) {
    let mut backoff = Backoff::default();
    loop {
        let Some(this) = shared.upgrade() else {
            return;
        };
        let taken = this.releases.take();
        if taken.is_empty() {
            this.releases.added.notified().await;
            continue;
        }
        let mut releasing = JoinSet::new();
        for claim in taken {
            let shared = Arc::clone(&this);
            let claim = Some(claim);
            let mut taken = Taken { shared, claim };
            releasing.spawn(async move { taken.release().await });
        }
        let mut has_failed = false;
        while let Some(released) = releasing.join_next().await {
            has_failed |= !matches!(released, Ok(true));
        }
        drop(this);
        match has_failed {
            true => sleep(backoff.next()).await,
            false => backoff = Backoff::default(),
        }
    }
}

/// Has the store forget what is over, for at most half of the time where there is much.
pub async fn forget<S: Store>(shared: Weak<Shared<S>>, every: Duration) {
    let mut wait = every;
    loop {
        sleep(wait).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let begun = Instant::now();
        wait = match shared.store.expire(FORGOTTEN_AT_ONCE).await {
            Ok(FORGOTTEN_AT_ONCE) => begun.elapsed().min(every),
            Ok(_) => every,
            Err(error) => {
                shared.counters.not_forgotten.count_and_log(|count| {
                    tracing::warn!(%error, count, "the store of outcomes could not forget");
                });
                every
            }
        };
    }
}
