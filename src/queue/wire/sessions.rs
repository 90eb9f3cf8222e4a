//! The workers that a [`QueueService`](super::QueueService) serves: one for each session of each principal.
//!
//! A session that is not heard of for as long as a lease lasts ends as a lost connection: an engine whose leases do not
//! end by themselves gives its jobs to others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::queue::{Answer, Credit, EngineWorker, JobNumber, LeasedJob, QueueError, Token};
use crate::security::{Address, Holder, Principal};
use crate::wire::{Reason, Status};

/// Sessions at once; beyond, the idle one that was heard of longest ago ends, of the principal or address that has most.
const SESSIONS_MAX: usize = 10_000;
/// Of those, sessions of one principal, or of one address where there are no keys; beyond, another is refused.
const PER_HOLDER_MAX: usize = 1_000;
/// How often sessions are looked through for those that are over.
const LOOK_MIN: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Whose session of which group it is, and its number: nobody else's session is the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SessionKey {
    pub principal: Option<Principal>,
    pub queue: String,
    pub group: String,
    pub number: u64,
}

#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    sessions: HashMap<SessionKey, Session>,
    of_holder: HashMap<Holder, usize>,
    /// Whether a task ends those that are over.
    is_watched: bool,
}

struct Session {
    worker: Arc<dyn EngineWorker>,
    holder: Option<Holder>,
    binding: [u8; 32],
    /// Dropped with the session: calls of it that wait for jobs end.
    ends: watch::Sender<()>,
    heard: Instant,
    /// Calls of it that are being answered.
    calls: usize,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call of a session that is known.
    pub fn known(&self, key: &SessionKey) -> Option<Calling> {
        self.lock().call(self, key)
    }

    /// A call of a session that may be new, with this worker if it is. `address` is where it comes from, without keys.
    ///
    /// # Errors
    /// Returns an error if its principal or address has too many.
    pub fn call(
        &self,
        key: SessionKey,
        address: Option<Address>,
        worker: Box<dyn EngineWorker>,
    ) -> Result<Calling, Status> {
        let mut inner = self.lock();
        // Two first requests of one session may come together; one worker is kept.
        if let Some(calling) = inner.call(self, &key) {
            return Ok(calling);
        }
        let holder = match &key.principal {
            Some(principal) => Some(Holder::Principal(principal.clone())),
            None => address.map(Holder::Address),
        };
        if let Some(holder) = &holder {
            let count = inner.of_holder.get(holder).copied().unwrap_or_default();
            if count >= PER_HOLDER_MAX {
                let reason = "this caller has its share of the server's sessions of queues";
                return Err(Status::resource_exhausted(reason).with_reason(Reason::Overloaded));
            }
        }
        let gone = match inner.sessions.len() >= SESSIONS_MAX {
            true => inner.oldest_idle().and_then(|key| inner.remove(&key)),
            false => None,
        };
        if let Some(holder) = &holder {
            *inner.of_holder.entry(holder.clone()).or_default() += 1;
        }
        let session = Session {
            worker: Arc::from(worker),
            holder,
            binding: binding(&key),
            ends: watch::Sender::new(()),
            heard: Instant::now(),
            calls: 0,
        };
        inner.sessions.insert(key.clone(), session);
        if !std::mem::replace(&mut inner.is_watched, true) {
            tokio::spawn(watch(Arc::downgrade(&self.0)));
        }
        let calling = inner.call(self, &key);
        drop(inner);
        drop(gone);
        calling.ok_or_else(|| Status::internal("a session ended while it began"))
    }

    /// Ends a session.
    pub fn end(&self, key: &SessionKey) -> Option<Arc<dyn EngineWorker>> {
        self.lock().remove(key)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().sessions.len()
    }
}

impl Inner {
    fn call(&mut self, of: &Sessions, key: &SessionKey) -> Option<Calling> {
        let session = self.sessions.get_mut(key)?;
        session.heard = Instant::now();
        session.calls += 1;
        Some(Calling {
            worker: Arc::clone(&session.worker),
            binding: session.binding,
            ends: session.ends.subscribe(),
            sessions: of.clone(),
            key: key.clone(),
        })
    }

    fn remove(&mut self, key: &SessionKey) -> Option<Arc<dyn EngineWorker>> {
        let session = self.sessions.remove(key)?;
        if let Some(holder) = &session.holder
            && let Some(count) = self.of_holder.get_mut(holder)
        {
            *count -= 1;
            if *count == 0 {
                self.of_holder.remove(holder);
            }
        }
        Some(session.worker)
    }

    /// The session without calls that was heard of longest ago: of the holder that has most, if it has one.
    fn oldest_idle(&self) -> Option<SessionKey> {
        let most = self.of_holder.iter().max_by_key(|(_, count)| **count);
        let most = most.map(|(holder, _)| holder);
        let idle = self
            .sessions
            .iter()
            .filter(|(_, session)| session.calls == 0);
        let first =
            idle.min_by_key(|(_, session)| (session.holder.as_ref() != most, session.heard));
        first.map(|(key, _)| key.clone())
    }

    /// Takes out the sessions that are over. Returns them, and how long to wait before looking again.
    fn over(&mut self, now: Instant) -> (Vec<Arc<dyn EngineWorker>>, Duration) {
        let lease = |session: &Session| session.worker.lease_time().max(LOOK_MIN);
        let is_over = |session: &Session| {
            session.calls == 0 && now.saturating_duration_since(session.heard) >= lease(session)
        };
        let over = self.sessions.iter().filter(|(_, session)| is_over(session));
        let over: Vec<SessionKey> = over.map(|(key, _)| key.clone()).collect();
        let over = over.iter().filter_map(|key| self.remove(key)).collect();
        let shortest = self.sessions.values().map(lease).min();
        let wait = shortest.unwrap_or(LOOK_MAX) / 4;
        (over, wait.clamp(LOOK_MIN, LOOK_MAX))
    }
}

/// Ends sessions that are over, as long as there are any.
async fn watch(sessions: Weak<Mutex<Inner>>) {
    let mut wait = LOOK_MIN;
    loop {
        sleep(wait).await;
        let Some(sessions) = sessions.upgrade() else {
            return;
        };
        let over = {
            let mut inner = sessions.lock().unwrap_or_else(PoisonError::into_inner);
            let (over, again) = inner.over(Instant::now());
            wait = again;
            if inner.sessions.is_empty() {
                inner.is_watched = false;
            }
            over
        };
        let is_last = Arc::strong_count(&sessions) == 1;
        let count = over.len();
        // A connection that is lost: its engine gives the jobs to others.
        drop(over);
        if count > 0 {
            tracing::info!(
                count,
                "nothing was heard of remote workers: their sessions ended"
            );
        }
        let is_idle = !sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_watched;
        if is_last || is_idle {
            return;
        }
    }
}

/// A call of a session that is being answered: it is heard of until then.
pub(super) struct Calling {
    pub worker: Arc<dyn EngineWorker>,
    binding: [u8; 32],
    ends: watch::Receiver<()>,
    sessions: Sessions,
    key: SessionKey,
}

impl Calling {
    /// Leases jobs. None once the session has ended: what a call that was on its way then has leased is given back, or it
    /// would count as lost.
    pub async fn lease(
        &self,
        credit: Credit,
        until: Instant,
    ) -> Result<Vec<LeasedJob>, QueueError> {
        let mut ends = self.ends.clone();
        let jobs = tokio::select! {
            biased;
            _ = ends.changed() => return Ok(Vec::new()),
            jobs = self.worker.lease(credit, until) => jobs?,
        };
        if ends.has_changed().is_ok() || jobs.is_empty() {
            return Ok(jobs);
        }
        let back = jobs
            .iter()
            .map(|job| (job.number, job.token, Answer::Release));
        self.worker.answer(back.collect()).await?;
        Ok(Vec::new())
    }

    /// The token of a job as this session sees it, and back: the token of another session is another here.
    pub fn bound(&self, number: JobNumber, token: Token) -> Token {
        let hash = blake3::keyed_hash(&self.binding, &number.0.to_le_bytes());
        let (first, _) = hash.as_bytes().split_at(8);
        let mask = first
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        Token(token.0 ^ mask)
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        if let Some(session) = self.sessions.lock().sessions.get_mut(&self.key) {
            session.calls = session.calls.saturating_sub(1);
            session.heard = Instant::now();
        }
    }
}

/// The same for the same session, also after a restart of this process.
fn binding(key: &SessionKey) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("bowline 2026 queue session");
    let principal = key.principal.as_ref().map_or("", Principal::as_str);
    for part in [principal, &key.queue, &key.group] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.update(&key.number.to_le_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Engine, Memory, QueueOptions};

    fn key(principal: Option<&str>, number: u64) -> SessionKey {
        SessionKey {
            principal: principal.map(Principal::new),
            queue: "notes".into(),
            group: "workers".into(),
            number,
        }
    }

    async fn worker() -> Box<dyn EngineWorker> {
        let options = QueueOptions::default().with_lease(Duration::from_secs(30));
        let worker = Memory::new(options).worker("workers").await;
        worker.expect("the group")
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_not_heard_of_ends_with_its_lease() {
        let sessions = Sessions::default();
        let calling = sessions
            .call(key(None, 1), None, worker().await)
            .expect("room");
        sleep(Duration::from_secs(100)).await;
        assert_eq!(sessions.len(), 1, "a call that waits is heard of");
        drop(calling);
        sleep(Duration::from_secs(29)).await;
        assert_eq!(sessions.len(), 1);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(sessions.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_principal_has_its_share_of_sessions_and_no_more() {
        let sessions = Sessions::default();
        for number in 0..PER_HOLDER_MAX as u64 {
            let call = sessions.call(key(Some("shop"), number), None, worker().await);
            assert!(call.is_ok());
        }
        let over = sessions.call(key(Some("shop"), u64::MAX), None, worker().await);
        assert!(over.is_err());
        let other = sessions.call(key(Some("bank"), 0), None, worker().await);
        assert!(other.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_without_keys_has_its_share_of_sessions() {
        let sessions = Sessions::default();
        let host = |last: u8| Some(Address::of(Some([10, 0, 0, last].into())));
        for number in 0..PER_HOLDER_MAX as u64 {
            let call = sessions.call(key(None, number), host(1), worker().await);
            assert!(call.is_ok());
        }
        let over = sessions.call(key(None, u64::MAX), host(1), worker().await);
        let over = over.err().expect("it has its share");
        assert_eq!(over.reason(), Some(Reason::Overloaded));
        let known = sessions.call(key(None, 7), host(1), worker().await);
        assert!(known.is_ok(), "a session that is known goes on");
        let other = sessions.call(key(None, u64::MAX), host(2), worker().await);
        assert!(other.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn full_sessions_end_the_oldest_idle_one_of_the_address_with_most() {
        let sessions = Sessions::default();
        let host = |last: u8| Some(Address::of(Some([10, 0, 0, last].into())));
        let begin = async |number: u64, last: u8| {
            let call = sessions.call(key(None, number), host(last), worker().await);
            assert!(call.is_ok());
            sleep(Duration::from_millis(1)).await;
        };
        begin(0, 1).await;
        let shares = SESSIONS_MAX / PER_HOLDER_MAX;
        for number in 1..SESSIONS_MAX {
            begin(number as u64, 2 + (number % shares) as u8).await;
        }
        // The address with one session keeps it, though it is the oldest.
        let greedy = sessions.call(key(None, u64::MAX), host(200), worker().await);
        assert!(greedy.is_ok());
        assert_eq!(sessions.len(), SESSIONS_MAX);
        assert!(sessions.known(&key(None, 0)).is_some());
    }

    #[tokio::test]
    async fn a_token_of_another_session_or_principal_is_another() {
        let sessions = Sessions::default();
        let mut tokens = Vec::new();
        for key in [key(None, 1), key(None, 2), key(Some("shop"), 1)] {
            let calling = sessions.call(key, None, worker().await).expect("room");
            let token = calling.bound(JobNumber(7), Token(8));
            assert_eq!(calling.bound(JobNumber(7), token), Token(8));
            tokens.push(token.0);
        }
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), 3);
    }
}
