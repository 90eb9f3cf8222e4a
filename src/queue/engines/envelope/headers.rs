//! What we must know of a job, as headers: text, which programs in other languages can read. The names and forms are those of
//! `docs/queue-engines.md`.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::queue::{
    Attempts, FailureKind, Identity, JobFailure, JobId, JobNumber, Priority, QueueError,
};

use super::{Envelope, milliseconds};

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
pub(in super::super) const DUE: &str = "Bowline-Due-Ms";

/// What a header takes beside its name and its value, where that is the most.
const HEADER_BYTES: usize = 8;
/// Room that a new job leaves for what later attempts add: its number, its attempts, a delay, a failure without a cause.
const LATER_BYTES: usize = 512;

impl Envelope {
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

    /// How many bytes its headers take in a message, or a few less.
    fn headers_bytes(&self) -> usize {
        let headers = self.headers().into_iter();
        headers
            .map(|(name, value)| name.len() + value.len() + HEADER_BYTES)
            .sum()
    }

    /// The envelope for a message that has room for so many bytes of headers. One that was tried before leaves out its oldest
    /// failures, and the end of the last cause. A new one leaves room for what comes later, so that it always fits then.
    ///
    /// # Errors
    /// [`QueueError::TooLarge`], of its headers, where its ID and its key take too much.
    pub fn fitted(&self, bytes_max: usize) -> Result<Cow<'_, Self>, QueueError> {
        let is_new = self.attempts == Attempts::default();
        let max = match is_new {
            true => bytes_max.saturating_sub(LATER_BYTES),
            false => bytes_max,
        };
        if self.headers_bytes() <= max {
            return Ok(Cow::Borrowed(self));
        }
        let mut fitted = self.clone();
        while fitted.failures.len() > 1 && fitted.headers_bytes() > max {
            fitted.failures.remove(0);
        }
        let over = fitted.headers_bytes().saturating_sub(max);
        if let [last] = &mut fitted.failures[..] {
            // Each byte of a cause takes one in a header, or three.
            let left = last.cause.len().saturating_sub(over);
            last.cause.truncate(last.cause.floor_char_boundary(left));
        }
        match fitted.headers_bytes() {
            bytes if bytes > max => Err(QueueError::TooLarge { bytes, max }),
            _ => Ok(Cow::Owned(fitted)),
        }
    }
}

/// Whoever pushed a message without saying who.
pub(super) const NOBODY: Identity = Identity {
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
    text.split(", ").filter_map(read).collect()
}

/// As in a URL: letters, digits and `-._~` stand for themselves, other bytes as `%` and two hexadecimal digits.
pub(in super::super) fn escape(bytes: &[u8]) -> String {
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
pub(in super::super) fn read_any(text: &str) {
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
