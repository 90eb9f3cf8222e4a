//! What a [`Once`] is set to.

use std::sync::Arc;
use std::time::Duration;

use super::driver::Settings;
use super::{Duplicates, Key, Once, Resolution, Resolver, Store, Terms};

/// Settings of a [`Once`].
#[derive(Clone)]
#[must_use]
pub struct OnceBuilder {
    retention: Duration,
    retry_horizon: Duration,
    lease: Duration,
    clock_skew_max: Duration,
    reply_bytes_max: usize,
    running_max: usize,
    run_max: Duration,
    duplicates: Duplicates,
    resolver: Option<Resolver>,
}

/// Why outcomes cannot be kept as asked. Nothing was started.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OnceError {
    /// A retry could come when its outcome is forgotten, and would run again.
    #[error(
        "outcomes are kept for {retention:?}, which is shorter than twice the longest time \
         that a caller may go on retrying, {horizon:?}; keep them longer or retry for less"
    )]
    RetentionTooShort {
        /// How long outcomes are kept.
        retention: Duration,
        /// How long a caller may go on.
        horizon: Duration,
    },
    /// The method is `$atomic`, and the store cannot commit its work together with its outcome.
    #[error("{service}.{method} is $atomic, and this store of outcomes has no transactions")]
    NoTransactions {
        /// The service.
        service: &'static str,
        /// The method.
        method: &'static str,
    },
    /// No time, no room: nothing could ever be kept.
    #[error("{0} is zero")]
    Zero(&'static str),
}

impl OnceError {
    pub(super) fn check_retention(retention: Duration, horizon: Duration) -> Result<(), Self> {
        match retention < horizon * 2 {
            true => Err(Self::RetentionTooShort { retention, horizon }),
            false => Ok(()),
        }
    }
}

impl Default for OnceBuilder {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(24 * 60 * 60),
            retry_horizon: Duration::from_secs(60 * 60),
            lease: Duration::from_secs(30),
            clock_skew_max: Duration::from_secs(5 * 60),
            reply_bytes_max: 1 << 20,
            running_max: 1024,
            run_max: Duration::from_secs(10 * 60),
            duplicates: Duplicates::Join,
            resolver: None,
        }
    }
}

impl OnceBuilder {
    /// How long an outcome is kept, from its completion on. A request ID older than this is
    /// refused, since its outcome may be forgotten. Default: 24 h.
    pub fn retention(mut self, time: Duration) -> Self {
        self.retention = time;
        self
    }

    /// How long a caller may go on sending a request again. Retention must be at least twice
    /// this. Default: 1 h.
    pub fn retry_horizon(mut self, time: Duration) -> Self {
        self.retry_horizon = time;
        self
    }

    /// How long an attempt may be silent before it is taken for dead. It is renewed three times
    /// as often. Default: 30 s.
    pub fn lease(mut self, time: Duration) -> Self {
        self.lease = time;
        self
    }

    /// How far the clocks of callers may be from that of the store. Default: 5 min.
    pub fn clock_skew_max(mut self, time: Duration) -> Self {
        self.clock_skew_max = time;
        self
    }

    /// A reply over this is not kept: a retry is told that it was done. Default: 1 MiB.
    pub fn reply_bytes_max(mut self, bytes: usize) -> Self {
        self.reply_bytes_max = bytes;
        self
    }

    /// Handlers that may run, or have their outcomes recorded, in tasks of their own at once; one more request is refused,
    /// not done. Requests that wait for the store, for another attempt, or only ask need no such place; of those that
    /// wait for the store's leave to begin, there may be as many again. Default: 1,024.
    pub fn running_max(mut self, requests: usize) -> Self {
        self.running_max = requests;
        self
    }

    /// How long a handler may run, whether or not its caller still waits. Then it is ended, and
    /// its outcome is unknown. Default: 10 min.
    pub fn run_max(mut self, time: Duration) -> Self {
        self.run_max = time;
        self
    }

    /// What a duplicate gets while the first is running. Default: it joins.
    pub fn duplicates(mut self, duplicates: Duplicates) -> Self {
        self.duplicates = duplicates;
        self
    }

    /// Finds out what became of requests that are in doubt: it is asked when a retry of one comes,
    /// before the retry is told that nobody knows. It looks where the work leaves its traces.
    pub fn resolve_with<F, Fut>(mut self, resolver: F) -> Self
    where
        F: Fn(Key) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<Resolution>> + Send + 'static,
    {
        self.resolver = Some(Arc::new(move |key| Box::pin(resolver(key))));
        self
    }

    /// Keeps outcomes in `store`.
    ///
    /// # Errors
    /// For times that break the promise, or that are none.
    pub fn build<S: Store>(self, store: S) -> Result<Once<S>, OnceError> {
        OnceError::check_retention(self.retention, self.retry_horizon)?;
        let age_max = self.retention.saturating_sub(self.clock_skew_max);
        for (what, is_zero) in [
            ("retention less the clock skew", age_max.is_zero()),
            ("lease", self.lease.is_zero()),
            ("running_max", self.running_max == 0),
            ("run_max", self.run_max.is_zero()),
        ] {
            if is_zero {
                return Err(OnceError::Zero(what));
            }
        }
        let terms = Terms {
            retention: self.retention,
            lease: self.lease,
            reply_bytes_max: self.reply_bytes_max,
            duplicates: self.duplicates,
        };
        let settings = Settings {
            terms,
            clock_skew_max: self.clock_skew_max,
            running_max: self.running_max,
            run_max: self.run_max,
            resolver: self.resolver,
        };
        Ok(Once::new(store, settings))
    }
}

impl std::fmt::Debug for OnceBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnceBuilder")
            .field("retention", &self.retention)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// What a [`Once`] has counted since it was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnceCounters {
    /// Handlers that were run.
    pub ran: u64,
    /// Requests that were answered with a stored reply.
    pub replayed: u64,
    /// Requests that waited for another's reply and got it.
    pub joined: u64,
    /// Requests that were told that nobody knows.
    pub in_doubt: u64,
    /// Times that the store failed.
    pub store_failed: u64,
    /// Requests that were refused because the store was full.
    pub refused: u64,
    /// Requests that were refused because [`running_max`](OnceBuilder::running_max) others ran.
    pub overloaded: u64,
    /// Outcomes that the store forgot before their time because it was full.
    pub forgotten_early: u64,
    /// How long the one of these that was forgotten last had been kept: the real retention, as long as the store is full.
    pub retained: Option<Duration>,
    /// Handlers that go on in tasks of their own now.
    pub running: usize,
}
