//! What can be set of a queue, and what holds where nothing is.

use std::time::Duration;

/// Settings of an embedded queue.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QueueOptions {
    /// Jobs that are not finished. Beyond, `push` waits. Default: 10,000,000.
    pub jobs_max: usize,
    /// Their bodies, IDs and keys together. Beyond, `push` waits. Default: 1 GiB.
    pub bytes_max: u64,
    /// Body, ID and key of one job; a queue on disk takes none of more than 256 MiB less 4 KiB, and one that is
    /// [served](super::QueueService) none of more than 960 KiB, which one message has room for. Default: 960 KiB.
    pub job_bytes_max: usize,
    /// How long a worker has a job after it was sent or last renewed. Default: 30 s.
    pub lease: Duration,
    /// How long one attempt may take, however often it is renewed. Default: 10 min.
    pub attempt_max: Duration,
    /// Refusals and expired leases after which a job goes to the dead letters. Default: 16.
    pub attempts_max: u32,
    /// Lost workers after which a job goes to the dead letters, so that one which kills its workers comes
    /// to an end. Default: 64.
    pub lost_max: u32,
    /// The shortest wait before a job is sent again. Default: 1 s.
    pub backoff_min: Duration,
    /// The longest. Default: 5 min.
    pub backoff_max: Duration,
    /// Dead letters of each group; while there are so many, the group is sent no more jobs. Default: 10,000.
    pub dead_max: usize,
    /// Bytes that are kept of each cause. Default: 1,024.
    pub cause_bytes_max: usize,
    /// Failures that are kept of each job, the last ones; one at least. Default: 16.
    pub failures_max: usize,
    /// How long the ID of a finished job is known. Default: 1 h.
    pub id_retention: Duration,
    /// IDs of finished jobs that are known, the latest. Default: 1,000,000.
    pub ids_max: usize,
    /// How long a producer that does not push is known. Default: 7 days.
    pub producer_retention: Duration,
    /// Producers that are known at once; those that did not push for the longest time are forgotten first, and
    /// counted. Default: 10,000.
    pub producers_max: usize,
    /// What a job that nobody can do does to the jobs of its key. Default: [`Poison::Skip`].
    pub poison: Poison,
    /// The groups of workers. Each is sent every job. Default: one, [`GROUP_DEFAULT`].
    pub groups: Groups,
}

/// What a job that has used up its attempts does to the later jobs of its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poison {
    /// It goes to the dead letters, and the key goes on with the next.
    #[default]
    Skip,
    /// It goes to the dead letters, and its key stands still until it is sent back or deleted there.
    Park,
    /// It stays the first of its key and is tried again, every five minutes, for ever.
    Block,
}

/// The name of the only group of a queue that names none.
pub const GROUP_DEFAULT: &str = "workers";

/// The names of a queue's groups of workers: 1 to 16, all different.
///
/// ```
/// # use bowline::queue::Groups;
/// assert!(Groups::new(["workers", "audit"]).is_ok());
/// assert!(Groups::new(["workers", "workers"]).is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups(Vec<String>);

/// A queue has 1 to 16 groups of workers, with different names of 1 to 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a queue has 1 to {} groups with different names of 1 to 255 bytes, not {names:?}",
    Groups::MAX
)]
pub struct GroupsError {
    /// What was given.
    pub names: Vec<String>,
}

impl Groups {
    /// More than this are no groups of workers but a topic.
    pub const MAX: usize = 16;

    /// Checks the names.
    ///
    /// # Errors
    /// For none, too many, or two that are equal.
    pub fn new<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Result<Self, GroupsError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let is_name = |name: &String| (1..=255).contains(&name.len());
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        let is_count = (1..=Self::MAX).contains(&names.len());
        if !is_count || distinct.len() != names.len() || !names.iter().all(is_name) {
            return Err(GroupsError { names });
        }
        Ok(Self(names))
    }

    /// The names, in their order.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl Default for Groups {
    fn default() -> Self {
        Self(vec![GROUP_DEFAULT.to_owned()])
    }
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            jobs_max: 10_000_000,
            bytes_max: 1 << 30,
            job_bytes_max: (1 << 20) - (64 << 10),
            lease: Duration::from_secs(30),
            attempt_max: Duration::from_secs(10 * 60),
            attempts_max: 16,
            lost_max: 64,
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(5 * 60),
            dead_max: 10_000,
            cause_bytes_max: 1024,
            failures_max: 16,
            id_retention: Duration::from_secs(60 * 60),
            ids_max: 1_000_000,
            producer_retention: Duration::from_secs(7 * 24 * 60 * 60),
            producers_max: 10_000,
            poison: Poison::Skip,
            groups: Groups::default(),
        }
    }
}

macro_rules! setters {
    ($($setter:ident $field:ident $type:ty;)*) => {
        impl QueueOptions {
            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $setter(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}

setters! {
    with_jobs_max jobs_max usize;
    with_bytes_max bytes_max u64;
    with_job_bytes_max job_bytes_max usize;
    with_lease lease Duration;
    with_attempt_max attempt_max Duration;
    with_attempts_max attempts_max u32;
    with_lost_max lost_max u32;
    with_backoff_min backoff_min Duration;
    with_backoff_max backoff_max Duration;
    with_dead_max dead_max usize;
    with_cause_bytes_max cause_bytes_max usize;
    with_failures_max failures_max usize;
    with_id_retention id_retention Duration;
    with_ids_max ids_max usize;
    with_producer_retention producer_retention Duration;
    with_producers_max producers_max usize;
    with_poison poison Poison;
    with_groups groups Groups;
}
