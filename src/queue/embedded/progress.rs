//! How far storage has come, and who waits for it to come further.
//!
//! One position for all that was ever appended: whoever waits, waits for a position. The thread that syncs tells all of
//! them at once, with one look at a list; none of them has a channel of its own.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::StorageError;

/// The progress of one life of a log: after a failure another begins.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Everything before this position is safe.
    safe: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Why nothing more will be safe.
    failed: Option<StorageError>,
    /// For which position; one that is no longer waited for is woken for nothing, once.
    wakers: Vec<(u64, Waker)>,
}

impl Progress {
    #[cfg(feature = "durable")]
    pub fn new(safe: u64) -> Arc<Self> {
        Arc::new(Self {
            safe: AtomicU64::new(safe),
            waiting: Mutex::default(),
        })
    }

    pub fn safe(&self) -> u64 {
        self.safe.load(Ordering::Acquire)
    }

    /// All before this position is safe. Returns how many were told.
    #[cfg(feature = "durable")]
    pub fn advance(&self, safe: u64) -> usize {
        self.safe.store(safe, Ordering::Release);
        let told: Vec<Waker> = {
            let mut waiting = self.lock();
            let told = waiting
                .wakers
                .extract_if(.., |(position, _)| *position <= safe);
            told.map(|(_, waker)| waker).collect()
        };
        let count = told.len();
        for waker in told {
            waker.wake();
        }
        count
    }

    /// Nothing more will be safe.
    #[cfg(feature = "durable")]
    pub fn fail(&self, error: StorageError) {
        let told = {
            let mut waiting = self.lock();
            waiting.failed = Some(error);
            std::mem::take(&mut waiting.wakers)
        };
        for (_, waker) in told {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No code of others runs under it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A position of the log that is to be safe. Resolves when it is, or is known not to become so.
#[derive(Debug)]
#[must_use = "nothing is safe before it says so"]
pub(crate) struct Commit {
    position: u64,
    progress: Arc<Progress>,
    is_registered: bool,
}

impl Commit {
    #[cfg(feature = "durable")]
    pub fn new(position: u64, progress: &Arc<Progress>) -> Self {
        Self {
            position,
            progress: Arc::clone(progress),
            is_registered: false,
        }
    }
}

impl Future for Commit {
    type Output = Result<(), StorageError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let commit = &mut *self;
        if commit.progress.safe() >= commit.position {
            return Poll::Ready(Ok(()));
        }
        let mut waiting = commit.progress.lock();
        if let Some(error) = &waiting.failed {
            return Poll::Ready(Err(error.clone()));
        }
        // Again, now that whoever moves it is kept from looking at the list.
        if commit.progress.safe() >= commit.position {
            return Poll::Ready(Ok(()));
        }
        let (position, waker) = (commit.position, context.waker());
        let is_there = commit.is_registered
            && waiting
                .wakers
                .iter()
                .any(|(of, known)| *of == position && known.will_wake(waker));
        if !is_there {
            waiting.wakers.push((position, waker.clone()));
            commit.is_registered = true;
        }
        Poll::Pending
    }
}

#[cfg(all(test, feature = "durable"))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn poll(commit: &mut Commit, waker: &Waker) -> Poll<Result<(), StorageError>> {
        Pin::new(commit).poll(&mut Context::from_waker(waker))
    }

    #[test]
    fn those_are_told_whose_position_is_safe() {
        let progress = Progress::new(10);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut commits = [9, 10, 11, 20].map(|position| Commit::new(position, &progress));
        let ready = |commits: &mut [Commit; 4]| {
            commits
                .each_mut()
                .map(|commit| poll(commit, &waker).is_ready())
        };
        assert_eq!(ready(&mut commits), [true, true, false, false]);
        assert_eq!(progress.advance(15), 1);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(ready(&mut commits), [true, true, true, false]);
        assert_eq!(progress.advance(20), 1);
        assert_eq!(ready(&mut commits), [true; 4]);
    }

    #[test]
    fn what_was_safe_stays_so_when_storage_fails() {
        let progress = Progress::new(0);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let (mut safe, mut lost) = (Commit::new(5, &progress), Commit::new(6, &progress));
        assert!(poll(&mut safe, &waker).is_pending() && poll(&mut lost, &waker).is_pending());
        progress.advance(5);
        progress.fail(StorageError("it is gone".into()));
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert!(matches!(poll(&mut safe, &waker), Poll::Ready(Ok(()))));
        assert!(matches!(poll(&mut lost, &waker), Poll::Ready(Err(_))));
        let mut late = Commit::new(7, &progress);
        assert!(matches!(poll(&mut late, &waker), Poll::Ready(Err(_))));
    }

    #[test]
    fn one_who_looks_again_is_told_once() {
        let progress = Progress::new(0);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut commit = Commit::new(1, &progress);
        for _ in 0..3 {
            assert!(poll(&mut commit, &waker).is_pending());
        }
        assert_eq!(progress.advance(1), 1);
    }
}
