//! Tells the store that what runs is alive, and has it forget what is over.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;

use super::shared::Shared;
use crate::once::{Change, Epoch, Key, Store, Verdict};

/// Records that one round of housekeeping forgets.
const FORGOTTEN_MAX: usize = 10_000;

/// What has its lease renewed.
pub struct Running {
    pub epoch: Epoch,
    /// Dropped when another attempt has taken over.
    _superseded: oneshot::Sender<()>,
}

/// Has its lease renewed while it lives.
pub struct Renewed<S: Store> {
    shared: Arc<Shared<S>>,
    key: Key,
    epoch: Epoch,
}

impl<S: Store> Renewed<S> {
    pub fn new(shared: &Arc<Shared<S>>, key: &Key, epoch: Epoch) -> (Self, oneshot::Receiver<()>) {
        let (sender, superseded) = oneshot::channel();
        let running = Running {
            epoch,
            _superseded: sender,
        };
        let mut all = shared
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.insert(key.clone(), running);
        let renewed = Self {
            shared: Arc::clone(shared),
            key: key.clone(),
            epoch,
        };
        (renewed, superseded)
    }
}

impl<S: Store> Drop for Renewed<S> {
    fn drop(&mut self) {
        let running = self.shared.running.lock();
        let mut running = running.unwrap_or_else(PoisonError::into_inner);
        if running
            .get(&self.key)
            .is_some_and(|it| it.epoch == self.epoch)
        {
            running.remove(&self.key);
        }
    }
}

/// Renews the leases of what runs, and has the store forget what is over.
pub async fn chores<S: Store>(shared: Weak<Shared<S>>, every: Duration) {
    loop {
        sleep(every).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let lock = || {
            let running = shared.running.lock();
            running.unwrap_or_else(PoisonError::into_inner)
        };
        let running: Vec<(Key, Epoch)> = lock()
            .iter()
            .map(|(key, running)| (key.clone(), running.epoch))
            .collect();
        for (key, epoch) in running {
            let lease = shared.settings.terms.lease;
            let renewed = shared
                .store
                .apply(&key, Change::Renew { epoch, lease })
                .await;
            if let Ok(Verdict::Superseded) = renewed {
                let mut running = lock();
                if running.get(&key).is_some_and(|it| it.epoch == epoch) {
                    running.remove(&key);
                }
            }
        }
        if let Err(error) = shared.store.expire(FORGOTTEN_MAX).await {
            tracing::warn!(%error, "the store of outcomes could not forget");
        }
    }
}
