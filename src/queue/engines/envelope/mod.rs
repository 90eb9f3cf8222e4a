//! A job as a message of another system's: what we must know of it beside its body. No server is known here.
//!
//! `headers` is how that is written and read, as text; `next` what becomes of a job after an answer.

mod headers;
mod next;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::queue::{
    Attempts, Capabilities, DeadLetter, Identity, JobFailure, JobId, JobNumber, LeasedJob, NewJob,
    Priority, QueueError, QueueOptions, Token,
};

#[cfg(fuzzing)]
pub(super) use headers::read_any;
pub(super) use headers::{DUE, escape};
pub(super) use next::Next;

/// A job, and what has happened to it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Envelope {
    /// Its number, once a server or a producer has given it one.
    pub number: Option<JobNumber>,
    pub identity: Identity,
    pub id: Option<JobId>,
    pub key: Option<Bytes>,
    pub priority: Priority,
    /// How long it has still to wait.
    pub delay: Duration,
    /// By its producer's clock, in milliseconds since 1970.
    pub pushed_ms: u64,
    pub expires_ms: Option<u64>,
    pub attempts: Attempts,
    pub failures: Vec<JobFailure>,
    pub body: Bytes,
}

impl Envelope {
    /// A job that is pushed.
    pub fn new(job: NewJob, now_ms: u64) -> Self {
        Self {
            number: None,
            identity: job.identity,
            id: job.id,
            key: job.key,
            priority: job.priority,
            delay: job.delay,
            pushed_ms: now_ms,
            expires_ms: job
                .expires_after
                .map(|after| now_ms.saturating_add(milliseconds(after))),
            attempts: Attempts::default(),
            failures: Vec::new(),
            body: job.body,
        }
    }

    /// What it counts against a worker's credit.
    pub fn bytes(&self) -> usize {
        let id = self.id.as_ref().map_or(0, |id| id.as_bytes().len());
        self.body.len() + id + self.key.as_ref().map_or(0, Bytes::len)
    }

    /// When its delay is over, in milliseconds since 1970. One more than it takes: the time is rounded up here and where it
    /// is compared.
    pub fn due_ms(&self) -> u64 {
        let delay = milliseconds(self.delay).saturating_add(1);
        now_ms().saturating_add(delay)
    }

    pub fn has_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires| expires <= now_ms)
    }

    pub fn leased(&self, number: JobNumber, token: Token) -> LeasedJob {
        LeasedJob {
            number,
            token,
            earlier: self.attempts,
            identity: self.identity,
            id: self.id.clone(),
            key: self.key.clone(),
            priority: self.priority,
            body: self.body.clone(),
        }
    }

    pub fn dead_letter(self, number: JobNumber) -> DeadLetter {
        DeadLetter {
            number,
            identity: self.identity,
            id: self.id,
            key: self.key,
            priority: self.priority,
            attempts: self.attempts,
            failures: self.failures,
            body: self.body,
        }
    }

    /// As if it had never been tried.
    pub fn revived(mut self) -> Self {
        self.attempts = Attempts::default();
        self.failures.clear();
        self.delay = Duration::ZERO;
        self
    }
}

/// Refuses a job that is too large, or asks for what the engine does not keep; `carries` lets it through with that left
/// undone.
pub(super) fn admit(
    job: &NewJob,
    can: &Capabilities,
    options: &QueueOptions,
    carries: bool,
) -> Result<(), QueueError> {
    let (bytes, max) = (job.bytes(), options.job_bytes_max);
    if bytes > max {
        return Err(QueueError::TooLarge { bytes, max });
    }
    let unkept = [
        (job.key.is_some() && !can.orders_keys, "order per key"),
        (job.id.is_some() && !can.deduplicates, "job IDs"),
        (
            job.priority != Priority::Normal && !can.priorities,
            "priorities",
        ),
        (!job.delay.is_zero() && !can.delays, "delays"),
        (job.expires_after.is_some() && !can.expires, "expiry"),
    ];
    match unkept.iter().find(|(is_asked, _)| *is_asked) {
        Some((_, what)) if !carries => Err(QueueError::Unsupported(what)),
        _ => Ok(()),
    }
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, milliseconds)
}

/// Rounded up: a wait is never shorter than was asked.
pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use crate::queue::{Answer, FailureKind};

    use super::headers::NOBODY;
    use super::*;

    fn envelope() -> Envelope {
        let body = Bytes::from_static(b"body");
        let identity = Identity {
            producer: Uuid::from_u128(7),
            epoch: 2,
            sequence: 3,
        };
        Envelope::new(NewJob::new(identity, body), 1_000)
    }

    fn read(written: &Envelope) -> Envelope {
        let headers = written.headers();
        let header = |name: &str| {
            let found = headers.iter().find(|(known, _)| *known == name);
            found.map(|(_, text)| text.clone())
        };
        Envelope::read(header, written.body.clone())
    }

    #[test]
    fn a_message_without_headers_is_a_job() {
        let job = Envelope::read(|_| None, Bytes::from_static(b"body"));
        assert_eq!(job.identity, NOBODY);
        assert_eq!(job.attempts, Attempts::default());
    }

    #[test]
    fn attempts_are_counted_by_kind_and_the_last_one_buries() {
        let options = QueueOptions::default().with_attempts_max(2);
        let again = |next| match next {
            Next::Again(envelope) => envelope,
            other => panic!("{other:?}"),
        };
        let first = envelope();
        let put_off = Answer::RetryAfter(Duration::from_secs(3), "later".into());
        let second = again(first.answered(put_off, &options, 1_500, 0.0));
        assert_eq!(second.delay, Duration::from_secs(3));
        let third = again(second.answered(Answer::Refuse("no".into()), &options, 2_000, 1.0));
        assert_eq!(third.delay, Duration::from_secs(2));
        let fourth = again(third.answered(Answer::Release, &options, 2_000, 0.0));
        let Next::Bury(dead) = fourth.answered(Answer::Refuse("no".into()), &options, 2_500, 0.0)
        else {
            panic!("its attempts are used up");
        };
        assert_eq!((dead.attempts.refused, dead.attempts.postponed), (2, 1));
        assert_eq!(dead.failures.len(), 3);
        assert_eq!(dead.failures[2].age, Duration::from_millis(1_500));
    }

    #[test]
    fn as_many_failures_are_kept_as_may_be_the_last_ones() {
        let options = QueueOptions::default().with_failures_max(3);
        let mut envelope = envelope();
        for number in 0..5 {
            let answer = Answer::Refuse(number.to_string());
            let Next::Again(again) = envelope.answered(answer, &options, 2_000, 0.0) else {
                panic!("it has attempts left");
            };
            envelope = again;
            assert_eq!(envelope.failures.len(), 3.min(number + 1));
        }
        let causes: Vec<&str> = envelope.failures.iter().map(|f| &*f.cause).collect();
        assert_eq!(causes, ["2", "3", "4"]);
    }

    /// How much room the headers of this envelope ask for.
    fn needed(envelope: &Envelope) -> usize {
        let (mut short, mut enough) = (0, 1 << 20);
        while enough - short > 1 {
            let between = short + (enough - short) / 2;
            match envelope.fitted(between) {
                Ok(_) => enough = between,
                Err(_) => short = between,
            }
        }
        enough
    }

    #[test]
    fn a_new_job_whose_headers_have_no_room_is_too_large_and_says_by_how_much() {
        let mut job = envelope();
        job.key = Some(Bytes::from(vec![b'k'; 1000]));
        let room = needed(&job);
        let is_borrowed = matches!(job.fitted(room), Ok(std::borrow::Cow::Borrowed(_)));
        assert!(is_borrowed, "nothing is left out");
        match job.fitted(room - 1) {
            Err(QueueError::TooLarge { bytes, max }) => assert_eq!(bytes, max + 1),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        /// What fitted when it was new fits for ever, whatever its workers say.
        #[test]
        fn a_job_that_fitted_once_always_fits(
            key in 0..3000usize, cause in "\\PC{0,300}", attempts in 1..40u32,
            room_left in 0..200usize, delay: u32,
        ) {
            let options = QueueOptions::default()
                .with_attempts_max(u32::MAX)
                .with_cause_bytes_max(100_000);
            let mut job = envelope();
            job.key = Some(Bytes::from(vec![b'k'; key]));
            let room = needed(&job) + room_left;
            job.number = Some(JobNumber(u64::MAX));
            for _ in 0..attempts {
                let answer = Answer::Refuse(cause.repeat(20));
                let Next::Again(again) = job.answered(answer, &options, u64::MAX, 1.0) else {
                    panic!("it has attempts left");
                };
                job = again;
                job.delay = Duration::from_millis(delay.into());
                let fitted = job.fitted(room).expect("it fitted when it was new");
                prop_assert!(fitted.failures.last().is_some());
                prop_assert!(job.failures.ends_with(&fitted.failures[1..]));
                prop_assert_eq!((&fitted.key, fitted.attempts), (&job.key, job.attempts));
                job = fitted.into_owned();
            }
        }
    }

    #[test]
    fn what_an_engine_does_not_keep_is_refused() {
        let mut can = Capabilities::ALL;
        can.orders_keys = false;
        let options = QueueOptions::default();
        let mut job = NewJob::new(NOBODY, Bytes::new());
        assert!(admit(&job, &can, &options, false).is_ok());
        job.key = Some(Bytes::from_static(b"a"));
        let refused = admit(&job, &can, &options, false);
        assert!(matches!(
            refused,
            Err(QueueError::Unsupported("order per key"))
        ));
        assert!(admit(&job, &can, &options, true).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            id in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..255)),
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            cause in "\\PC{0,40}", number: Option<u64>, delay: u32, expires: Option<u64>, refused: u32,
        ) {
            let mut written = envelope();
            written.number = number.map(JobNumber);
            written.id = id.and_then(|id| JobId::new(id).ok());
            written.key = key.map(Bytes::from);
            written.delay = Duration::from_millis(delay.into());
            written.expires_ms = expires;
            written.attempts.refused = refused;
            let age = Duration::from_millis(5);
            written.failures = vec![JobFailure { kind: FailureKind::Expired, cause, age }];
            prop_assert_eq!(read(&written), written);
        }
    }
}
