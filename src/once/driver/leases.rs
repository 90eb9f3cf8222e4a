//! The leases of what runs here: which are to be renewed next, and the task that has the store renew them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::shared::Shared;
use crate::once::key::KeyMap;
use crate::once::{Claim, Epoch, Fingerprint, Key, Store, Verdict};

/// Requests to the store that are on their way at once.
const RENEWALS_MAX: usize = 64;
/// Of the time after which a lease is renewed, how much later it is tried again where that failed.
const AGAIN_PARTS: u32 = 4;

/// What runs here, by when its lease is to be renewed. A state machine: no task, no store, no clock.
#[derive(Debug, Default)]
pub struct Leases {
    running: HashMap<u64, Running>,
    by_key: KeyMap<u64>,
    due: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct Running {
    key: Key,
    epoch: Epoch,
    fingerprint: Fingerprint,
    due: Instant,
    /// Dropped when another attempt has taken over.
    _superseded: oneshot::Sender<()>,
}

impl Leases {
    /// An attempt runs from now on. Its number is that of its epoch, which no other of its `Once` has.
    pub fn add(&mut self, key: &Key, claim: &Claim, due: Instant) -> oneshot::Receiver<()> {
        let (sender, superseded) = oneshot::channel();
        let number = claim.epoch.number;
        let running = Running {
            key: key.clone(),
            epoch: claim.epoch,
            fingerprint: claim.fingerprint,
            due,
            _superseded: sender,
        };
        self.running.insert(number, running);
        self.by_key.insert(key.clone(), number);
        self.due.insert((due, number));
        superseded
    }

    /// It has ended, or another has taken over.
    pub fn remove(&mut self, epoch: Epoch) {
        let number = epoch.number;
        if let Some(running) = self.running.remove(&number) {
            self.due.remove(&(running.due, number));
            if self.by_key.get(&running.key) == Some(&number) {
                self.by_key.remove(&running.key);
            }
        }
    }

    /// What the attempt was begun with that runs under this key.
    pub fn fingerprint(&self, key: &Key) -> Option<Fingerprint> {
        let running = self.running.get(self.by_key.get(key)?)?;
        Some(running.fingerprint)
    }

    /// When the next one is to be renewed.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Up to `max` that are due, which are due again `every` from now.
    pub fn take_due(&mut self, now: Instant, every: Duration, max: usize) -> Vec<(Key, Epoch)> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some((due, number)) = self.due.first().copied()
            && due <= now
        {
            if let Some(running) = self.running.get(&number) {
                taken.push((running.key.clone(), running.epoch));
            }
            self.set_due(number, now + every);
        }
        taken
    }

    /// Its renewal failed: it is due at once, or at `due`.
    pub fn failed(&mut self, epoch: Epoch, due: Instant) {
        self.set_due(epoch.number, due);
    }

    fn set_due(&mut self, number: u64, due: Instant) {
        if let Some(running) = self.running.get_mut(&number) {
            self.due.remove(&(running.due, number));
            running.due = due;
            self.due.insert((due, number));
        }
    }

    /// Attempts that run.
    pub fn len(&self) -> usize {
        self.running.len()
    }
}

/// The leases of one `Once`, and how its task hears of new ones.
#[derive(Debug, Default)]
pub struct Held {
    leases: Mutex<Leases>,
    added: Notify,
}

impl Held {
    pub fn lock(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has its lease renewed while it lives.
pub struct Renewed<S: Store> {
    shared: Arc<Shared<S>>,
    epoch: Epoch,
}

impl<S: Store> Renewed<S> {
    pub fn new(shared: &Arc<Shared<S>>, key: &Key, claim: &Claim) -> (Self, oneshot::Receiver<()>) {
        let due = Instant::now() + shared.renew_every();
        let superseded = shared.leases.lock().add(key, claim, due);
        shared.leases.added.notify_one();
        let renewed = Self {
            shared: Arc::clone(shared),
            epoch: claim.epoch,
        };
        (renewed, superseded)
    }
}

impl<S: Store> Drop for Renewed<S> {
    fn drop(&mut self) {
        self.shared.leases.lock().remove(self.epoch);
    }
}

/// Renews leases as they become due, many at once, so that no slow one holds up the others.
pub async fn renew<S: Store>(shared: Weak<Shared<S>>) {
    let mut renewals = JoinSet::new();
    loop {
        let Some(this) = shared.upgrade() else {
            return;
        };
        this.beat();
        let every = this.renew_every();
        while renewals.len() < RENEWALS_MAX {
            let max = S::RENEWED_AT_ONCE.max(1);
            let due = this.leases.lock().take_due(Instant::now(), every, max);
            if due.is_empty() {
                break;
            }
            renewals.spawn(renew_these(Arc::clone(&this), due));
        }
        let next = this.leases.lock().next_due();
        // Woken now and then, so that whoever looks sees that this task lives.
        let latest = Instant::now() + every;
        let next = next.map_or(latest, |next| next.min(latest));
        let is_full = renewals.len() >= RENEWALS_MAX;
        let added = async {
            this.leases.added.notified().await;
        };
        tokio::select! {
            Some(_) = renewals.join_next(), if !renewals.is_empty() => {}
            () = sleep_until(next), if !is_full => {}
            () = added, if !is_full => {}
        }
    }
}

async fn renew_these<S: Store>(shared: Arc<Shared<S>>, attempts: Vec<(Key, Epoch)>) {
    let lease = shared.settings.terms.lease;
    let every = shared.renew_every();
    // What has not answered when the next renewal is due is asked again then.
    let renewed = timeout(every, shared.store.renew(&attempts, lease)).await;
    let again = Instant::now() + every / AGAIN_PARTS;
    let mut verdicts = renewed.unwrap_or_default().into_iter();
    let mut leases = shared.leases.lock();
    for (_, epoch) in &attempts {
        match verdicts.next() {
            Some(Ok(Verdict::Superseded)) => leases.remove(*epoch),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => leases.failed(*epoch, again),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::once::Age;
    use crate::schema::Recovery;
    use crate::wire::RequestKey;

    const EVERY: Duration = Duration::from_secs(10);

    fn attempt(number: u64) -> (Key, Claim) {
        let id = RequestKey::new(number.to_string()).expect("short");
        let claim = Claim {
            epoch: Epoch { owner: 1, number },
            fingerprint: Fingerprint::of_bytes(&number.to_be_bytes()),
            recovery: Recovery::InDoubt,
            lease: EVERY * 3,
            age: Age {
                created: None,
                retention: EVERY,
                clock_skew_max: EVERY,
            },
        };
        (Key::named("test", &id.into()), claim)
    }

    fn numbers(taken: &[(Key, Epoch)]) -> Vec<u64> {
        taken.iter().map(|(_, epoch)| epoch.number).collect()
    }

    #[test]
    fn leases_are_due_in_order_and_leave_nothing_behind() {
        let begun = Instant::now();
        let mut leases = Leases::default();
        for number in 0..100 {
            let (key, claim) = attempt(number);
            let later = EVERY + Duration::from_millis(100 - number);
            drop(leases.add(&key, &claim, begun + later));
            assert_eq!(leases.fingerprint(&key), Some(claim.fingerprint));
        }
        assert_eq!(leases.take_due(begun + EVERY, EVERY, 10), []);
        let now = begun + EVERY * 2;
        let first = leases.take_due(now, EVERY, 30);
        assert_eq!(numbers(&first), (70..100).rev().collect::<Vec<_>>());
        let rest = leases.take_due(now, EVERY, 1000);
        assert_eq!(numbers(&rest), (0..70).rev().collect::<Vec<_>>());
        assert_eq!(leases.take_due(now, EVERY, 1000), []);
        // One failed, one was superseded.
        let epoch = |number| attempt(number).1.epoch;
        leases.failed(epoch(5), now + EVERY / 4);
        leases.remove(epoch(6));
        assert_eq!(leases.next_due(), Some(now + EVERY / 4));
        assert_eq!(leases.take_due(now + EVERY, EVERY, 1000).len(), 99);
        for number in 0..100 {
            leases.remove(epoch(number));
        }
        let Leases {
            running,
            by_key,
            due,
        } = &leases;
        assert_eq!((running.len(), by_key.len(), due.len()), (0, 0, 0));
    }
}
