//! What a queue on a server was opened with: its options, what its engine keeps, and the limits of what goes between it and
//! its server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::queue::{Capabilities, QueueError, QueueOptions};

/// What a queue on a server was opened with, and whether it is open.
#[derive(Debug)]
pub(super) struct Terms {
    pub options: QueueOptions,
    pub capabilities: Capabilities,
    pub limits: Limits,
    /// Jobs that ask for what is not kept are let through.
    pub carries_unkept: bool,
    is_closed: AtomicBool,
}

/// Limits of what goes between a queue and its server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Messages of one push, or of a move of many jobs, that are on their way at once.
    pub unconfirmed_max: usize,
    /// A push waits at least so long for its confirmation, however near its deadline is.
    pub answer_min: Duration,
    /// How long a server has to answer anything else.
    pub answer_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unconfirmed_max: 256,
            answer_min: Duration::from_secs(2),
            answer_max: Duration::from_secs(10),
        }
    }
}

impl Terms {
    pub fn new(
        options: QueueOptions,
        mut capabilities: Capabilities,
        limits: Limits,
        carries_unkept: bool,
    ) -> Self {
        capabilities.job_bytes_max = options.job_bytes_max;
        Self {
            options,
            capabilities,
            limits,
            carries_unkept,
            is_closed: AtomicBool::new(false),
        }
    }

    /// Which of the groups has this name.
    pub fn group(&self, name: &str) -> Result<usize, QueueError> {
        let mut names = self.options.groups.names().iter();
        let found = names.position(|group| group == name);
        found.ok_or_else(|| QueueError::NoSuchGroup(name.to_owned()))
    }

    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    pub fn check_open(&self) -> Result<(), QueueError> {
        match self.is_closed.load(Ordering::Acquire) {
            true => Err(QueueError::Closed),
            false => Ok(()),
        }
    }

    /// Until when a server has to confirm a push that waits until `deadline`.
    pub fn confirmed_by(&self, deadline: Instant) -> Instant {
        deadline.max(Instant::now() + self.limits.answer_min)
    }

    /// Until when a server has to answer what it is asked now.
    pub fn answered_by(&self) -> Instant {
        Instant::now() + self.limits.answer_max
    }
}

/// Setters of [`Limits`], for each builder that has them.
macro_rules! limit_setters {
    () => {
        /// Messages of one push that are on their way to the server at once. Default: 256.
        pub fn unconfirmed_max(mut self, messages: usize) -> Self {
            self.limits.unconfirmed_max = messages.max(1);
            self
        }

        /// How long a push waits at the least for the server's confirmation, however near its deadline is. Default: 2 s.
        pub fn answer_min(mut self, time: Duration) -> Self {
            self.limits.answer_min = time;
            self
        }

        /// How long the server has to answer anything else; then it is taken for unavailable. Default: 10 s.
        pub fn answer_max(mut self, time: Duration) -> Self {
            self.limits.answer_max = time;
            self
        }
    };
}
pub(super) use limit_setters;
