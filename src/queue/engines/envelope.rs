//! A job as a message of another system's: what we must know of it beside its body, as text in headers; and what
//! becomes of it after an answer. No server is known here.
//!
//! The names and forms are those of `docs/queue-engines.md`, so that programs in other languages can read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use uuid::Uuid;

use crate::queue::{
    Answer, Attempts, Capabilities, DeadLetter, FailureKind, Identity, JobFailure, JobId,
    JobNumber, LeasedJob, NewJob, Priority, QueueError, QueueOptions, Token,
};

/// Failures that a job carries with it, the last ones.
const FAILURES_MAX: usize = 16;

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

/// What is to be done with a job after an answer.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// It is done.
    Finish,
    /// It is to be sent again, after the delay that it carries.
    Again(Envelope),
    /// It goes to the dead letters.
    Bury(Envelope),
}

const NUMBER: &str = "Bowline-Number";
const IDENTITY: &str = "Bowline-Identity";
const ID: &str = "Bowline-Id";
const KEY: &str = "Bowline-Key";
const PRIORITY: &str = "Bowline-Priority";
const DELAY: &str = "Bowline-Delay-Ms";
const PUSHED: &str = "Bowline-Pushed-Ms";
const EXPIRES: &str = "Bowline-Expires-Ms";
const ATTEMPTS: &str = "Bowline-Attempts";
const FAILURES: &str = "Bowline-Failures";
/// When a job is due, in milliseconds since 1970: of servers where it waits by the machines' clocks.
pub(super) const DUE: &str = "Bowline-Due-Ms";

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

    /// Reads a message. One that another program pushed has perhaps none of the headers.
    pub fn read(header: impl Fn(&str) -> Option<String>, body: Bytes) -> Self {
        let number = |name| header(name).and_then(|text| text.parse().ok());
        let id = header(ID).and_then(|text| unescape(&text));
        Self {
            number: number(NUMBER).map(JobNumber),
            identity: header(IDENTITY)
                .and_then(|text| read_identity(&text))
                .unwrap_or(NOBODY),
            id: id.and_then(|id| JobId::new(id).ok()),
            key: header(KEY)
                .and_then(|text| unescape(&text))
                .map(Bytes::from),
            priority: match header(PRIORITY).as_deref() {
                Some("high") => Priority::High,
                Some("low") => Priority::Low,
                _ => Priority::Normal,
            },
            delay: Duration::from_millis(number(DELAY).unwrap_or(0)),
            pushed_ms: number(PUSHED).unwrap_or(0),
            expires_ms: number(EXPIRES),
            attempts: header(ATTEMPTS)
                .map(|text| read_attempts(&text))
                .unwrap_or_default(),
            failures: header(FAILURES)
                .map(|text| read_failures(&text))
                .unwrap_or_default(),
            body,
        }
    }

    /// Its headers; those that say nothing are left out.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (IDENTITY, self.identity.to_string()),
            (PUSHED, self.pushed_ms.to_string()),
        ];
        if let Some(number) = self.number {
            headers.push((NUMBER, number.to_string()));
        }
        if let Some(id) = &self.id {
            headers.push((ID, escape(id.as_bytes())));
        }
        if let Some(key) = &self.key {
            headers.push((KEY, escape(key)));
        }
        match self.priority {
            Priority::Normal => {}
            Priority::High => headers.push((PRIORITY, "high".into())),
            Priority::Low => headers.push((PRIORITY, "low".into())),
        }
        if !self.delay.is_zero() {
            headers.push((DELAY, milliseconds(self.delay).to_string()));
        }
        if let Some(expires) = self.expires_ms {
            headers.push((EXPIRES, expires.to_string()));
        }
        if self.attempts != Attempts::default() {
            headers.push((ATTEMPTS, write_attempts(self.attempts)));
        }
        if !self.failures.is_empty() {
            headers.push((FAILURES, write_failures(&self.failures)));
        }
        headers
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

    /// It was sent to workers of whom nothing was heard again. Says whether they were too many.
    pub fn lose(&mut self, times: u32, options: &QueueOptions, now_ms: u64) -> bool {
        if times > 0 {
            self.attempts.lost = self.attempts.lost.saturating_add(times - 1);
            self.fail(
                FailureKind::Lost,
                "nothing was heard of the worker".into(),
                options,
                now_ms,
            );
        }
        self.attempts.lost >= options.lost_max
    }

    /// What is to be done after a worker's answer. `random` is for the jitter, from 0 to 1.
    pub fn answered(
        mut self,
        answer: Answer,
        options: &QueueOptions,
        now_ms: u64,
        random: f64,
    ) -> Next {
        let (kind, cause) = match answer {
            Answer::Done => return Next::Finish,
            Answer::Release => {
                self.delay = Duration::ZERO;
                return Next::Again(self);
            }
            Answer::RetryAfter(delay, cause) => {
                self.fail(FailureKind::Postponed, cause, options, now_ms);
                self.delay = delay;
                return Next::Again(self);
            }
            Answer::Bury(cause) => {
                self.fail(FailureKind::Refused, cause, options, now_ms);
                return Next::Bury(self);
            }
            Answer::Refuse(cause) => (FailureKind::Refused, cause),
            Answer::Abandon(cause) => (FailureKind::Lost, cause),
        };
        self.fail(kind, cause, options, now_ms);
        let failed = self.attempts.used() + self.attempts.lost;
        if self.attempts.used() >= options.attempts_max || self.attempts.lost >= options.lost_max {
            return Next::Bury(self);
        }
        // Full jitter, as of the embedded queue.
        let (min, max) = (
            options.backoff_min,
            options.backoff_max.max(options.backoff_min),
        );
        let longest = min.saturating_mul(1 << failed.min(30)).min(max);
        self.delay = min + (longest - min).mul_f64(random.clamp(0.0, 1.0));
        Next::Again(self)
    }

    fn fail(&mut self, kind: FailureKind, mut cause: String, options: &QueueOptions, now_ms: u64) {
        self.attempts.count(kind);
        cause.truncate(cause.floor_char_boundary(options.cause_bytes_max));
        let age = Duration::from_millis(now_ms.saturating_sub(self.pushed_ms));
        if self.failures.len() >= FAILURES_MAX {
            self.failures.remove(0);
        }
        self.failures.push(JobFailure { kind, cause, age });
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

/// Whoever pushed a message without saying who.
const NOBODY: Identity = Identity {
    producer: Uuid::nil(),
    epoch: 0,
    sequence: 0,
};

fn read_identity(text: &str) -> Option<Identity> {
    let mut parts = text.split('/');
    Some(Identity {
        producer: parts.next()?.parse().ok()?,
        epoch: parts.next()?.parse().ok()?,
        sequence: parts.next()?.parse().ok()?,
    })
}

fn write_attempts(attempts: Attempts) -> String {
    let Attempts {
        refused,
        expired,
        lost,
        postponed,
    } = attempts;
    format!("refused={refused} expired={expired} lost={lost} postponed={postponed}")
}

fn read_attempts(text: &str) -> Attempts {
    let mut attempts = Attempts::default();
    for (name, count) in text.split(' ').filter_map(|part| part.split_once('=')) {
        let Ok(count) = count.parse() else { continue };
        match name {
            "refused" => attempts.refused = count,
            "expired" => attempts.expired = count,
            "lost" => attempts.lost = count,
            "postponed" => attempts.postponed = count,
            _ => {}
        }
    }
    attempts
}

const KINDS: [(FailureKind, &str); 5] = [
    (FailureKind::Refused, "refused"),
    (FailureKind::Expired, "expired"),
    (FailureKind::Lost, "lost"),
    (FailureKind::Postponed, "postponed"),
    (FailureKind::Released, "released"),
];

fn write_failures(failures: &[JobFailure]) -> String {
    let failures = failures.iter().map(|failure| {
        let kind = KINDS.iter().find(|(kind, _)| *kind == failure.kind);
        let kind = kind.map_or("refused", |(_, name)| name);
        format!(
            "{kind} {} {}",
            milliseconds(failure.age),
            escape(failure.cause.as_bytes())
        )
    });
    failures.collect::<Vec<_>>().join(", ")
}

fn read_failures(text: &str) -> Vec<JobFailure> {
    let read = |part: &str| {
        let mut words = part.splitn(3, ' ');
        let name = words.next()?;
        Some(JobFailure {
            kind: KINDS.iter().find(|(_, known)| *known == name)?.0,
            age: Duration::from_millis(words.next()?.parse().ok()?),
            cause: String::from_utf8(unescape(words.next()?)?).ok()?,
        })
    };
    text.split(", ")
        .filter_map(read)
        .take(FAILURES_MAX)
        .collect()
}

/// As in a URL: letters, digits and `-._~` stand for themselves, other bytes as `%` and two hexadecimal digits.
pub(super) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        if *byte != b'%' {
            bytes.push(*byte);
            rest = after;
            continue;
        }
        let (digits, after) = after.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    Some(bytes)
}

/// For fuzzing: any text as headers, a line each; what is read is written and read again.
#[cfg(fuzzing)]
pub(super) fn read_any(text: &str) {
    let lines: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once(": "))
        .collect();
    let header = |name: &str| {
        let found = lines.iter().find(|(known, _)| *known == name);
        found.map(|(_, text)| (*text).to_owned())
    };
    let read = Envelope::read(header, Bytes::new());
    let headers = read.headers();
    let header = |name: &str| {
        let found = headers.iter().find(|(known, _)| *known == name);
        found.map(|(_, text)| text.clone())
    };
    assert_eq!(Envelope::read(header, Bytes::new()), read);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
