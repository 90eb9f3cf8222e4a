//! Who waits in this process for a record to change. For stores that know of their changes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Key;
use super::key::KeyMap;

#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// So that a change nobody waits for costs one load.
    count: AtomicUsize,
    waiting: Mutex<KeyMap<Waiting>>,
}

/// Those who wait for one key.
#[derive(Debug, Default)]
struct Waiting {
    places: usize,
    notify: Arc<Notify>,
}

impl Waiters {
    /// Waits for [`wake`](Self::wake), unless `is_in_flight` says that there is nothing to wait for.
    /// It is asked after the place in the queue is taken, so that no change is missed.
    pub async fn wait<E>(
        &self,
        key: &Key,
        is_in_flight: impl Future<Output = Result<bool, E>>,
    ) -> Result<(), E> {
        let place = Place::take(self, key);
        let notified = place.notify.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if is_in_flight.await? {
            notified.await;
        }
        Ok(())
    }

    /// Wakes all who wait for `key`.
    pub fn wake(&self, key: &Key) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let notify = self
            .lock()
            .get(key)
            .map(|waiting| Arc::clone(&waiting.notify));
        if let Some(notify) = notify {
            notify.notify_waiters();
        }
    }

    /// How many keys somebody waits for.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, KeyMap<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits. The last of a key takes its entry along.
struct Place<'a> {
    waiters: &'a Waiters,
    key: Key,
    notify: Arc<Notify>,
}

impl<'a> Place<'a> {
    fn take(waiters: &'a Waiters, key: &Key) -> Self {
        let mut all = waiters.lock();
        let waiting = all.entry(key.clone()).or_default();
        waiting.places += 1;
        let notify = Arc::clone(&waiting.notify);
        drop(all);
        waiters.count.fetch_add(1, Ordering::SeqCst);
        Self {
            waiters,
            key: key.clone(),
            notify,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiters.count.fetch_sub(1, Ordering::SeqCst);
        let mut waiting = self.waiters.lock();
        if let Some(of_key) = waiting.get_mut(&self.key) {
            of_key.places -= 1;
            if of_key.places == 0 {
                waiting.remove(&self.key);
            }
        }
    }
}
