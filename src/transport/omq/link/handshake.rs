//! The beginning of a connection: greetings, keys, socket types; and why it failed.
//!
//! The codec says what it could not go on with, in words. What the other side had said by then says
//! more: so the first bytes are looked at here, too.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use omq_proto::proto::{
    Connection, ConnectionConfig, Event, MechanismName, PeerProperties, Role, SocketType,
};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::unfinished::Unfinished;
use super::{Incoming, Limits, Link, Lost, READ_MIN, State};
use crate::transport::ConnectionFailure;
use crate::transport::omq::outbox::{Outbox, Total};
use crate::transport::omq::stream::Stream;
use crate::wire::Reason;

/// Bytes of a greeting (ZMTP 3.1, section "Connection Negotiation"), and where its mechanism stands.
const GREETING: usize = 64;
const MECHANISM: std::ops::Range<usize> = 12..32;
/// The first byte of every greeting.
const SIGNATURE: u8 = 0xff;
/// Bytes of what is no greeting that a failure shows.
const SHOWN: usize = 16;
/// Characters of a peer's own words that a failure shows.
const WORDS_MAX: usize = 100;

/// Why a handshake failed.
#[derive(Debug)]
pub(in crate::transport::omq) struct HandshakeFailure {
    pub reason: Reason,
    message: Cow<'static, str>,
    /// Whether the peer went without a word, as port scanners and health checks do.
    pub is_wordless: bool,
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<HandshakeFailure> for ConnectionFailure {
    fn from(failure: HandshakeFailure) -> Self {
        Self::new(failure.reason, failure.message)
    }
}

impl Link {
    /// Speaks first, and returns when both sides know each other.
    pub async fn shake_hands(
        stream: Stream,
        config: ConnectionConfig,
        limits: Limits,
        total: Total,
        handshake_timeout: Duration,
    ) -> Result<(Arc<Self>, Incoming, Arc<PeerProperties>), HandshakeFailure> {
        let mut seen = Seen::new(&config);
        let mut codec = Connection::new(config);
        codec.set_input_budget(true);
        let room = Arc::new(Notify::new());
        let over = Arc::new(Notify::new());
        let is_congested = Arc::new(AtomicBool::new(false));
        let link = Arc::new(Self {
            state: Mutex::new(State {
                limits,
                write: Some(Arc::new(stream.write)),
                codec,
                outbox: Outbox::new(total),
                scratch: Vec::new(),
                pongs: 0,
                reader: None,
                ended: None,
                cause: None,
                room: Arc::clone(&room),
                is_room_awaited: false,
                is_congested: Arc::clone(&is_congested),
                relieved: None,
                over: Arc::clone(&over),
                has_heard: true,
                has_written: true,
                was_held: false,
                is_held: false,
                pinged: None,
                stuck: None,
                unfinished: Unfinished::default(),
            }),
            limits,
            room,
            over,
            is_congested,
        });
        let mut incoming = Incoming {
            link: Arc::clone(&link),
            read: stream.read,
            buffer: BytesMut::new(),
            wanted: READ_MIN,
            lost: None,
            came: 0,
            last_read: 0,
        };
        let hands = std::future::poll_fn(|cx| incoming.poll_handshake(cx, &mut seen));
        let shaken = timeout(handshake_timeout, hands).await;
        match shaken.unwrap_or(Err(Lost::HandshakeTimeout(handshake_timeout))) {
            Ok(peer) => Ok((link, incoming, peer)),
            Err(lost) => {
                link.close();
                Err(seen.failure(&lost))
            }
        }
    }
}

impl Incoming {
    fn poll_handshake(
        &mut self,
        cx: &mut Context<'_>,
        seen: &mut Seen,
    ) -> Poll<Result<Arc<PeerProperties>, Lost>> {
        loop {
            let mut state = self.link.lock();
            state.take_coded(false);
            let written = state.write_out();
            // What came right behind the handshake may have ended the connection: that is for the next reader.
            if let Some(Event::HandshakeSucceeded {
                peer_properties, ..
            }) = state.codec.poll_event()
            {
                return Poll::Ready(Ok(peer_properties));
            }
            if let Some(lost) = self.lost.take() {
                // What the codec says to a peer that it refuses has been written.
                return Poll::Ready(Err(lost));
            }
            // A peer that has closed may have said why before: that is read first.
            let written = match written {
                Err(Lost::Stream(error)) => Some(Lost::Stream(error)),
                written => {
                    written?;
                    None
                }
            };
            drop(state);
            self.lost = match written {
                Some(lost) => match self.poll_input(cx, |bytes| seen.add(bytes)) {
                    Poll::Ready(read) => read.err(),
                    Poll::Pending => Some(lost),
                },
                None => ready!(self.poll_input(cx, |bytes| seen.add(bytes))).err(),
            };
        }
    }
}

/// What the other side has sent so far.
struct Seen {
    role: Role,
    kind: SocketType,
    mechanism: MechanismName,
    greeting: Vec<u8>,
    /// Bytes in all.
    bytes: usize,
}

impl Seen {
    fn new(config: &ConnectionConfig) -> Self {
        Self {
            role: config.role,
            kind: config.socket_type,
            mechanism: config.mechanism_name(),
            greeting: Vec::new(),
            bytes: 0,
        }
    }

    fn add(&mut self, bytes: &Bytes) {
        let room = GREETING - self.greeting.len();
        self.greeting
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.bytes += bytes.len();
    }

    fn failure(&self, lost: &Lost) -> HandshakeFailure {
        let (reason, message) = self.why(lost);
        HandshakeFailure {
            reason,
            message,
            is_wordless: self.bytes == 0 && is_closed(lost),
        }
    }

    fn why(&self, lost: &Lost) -> (Reason, Cow<'static, str>) {
        match lost {
            Lost::Protocol(omq_proto::Error::HandshakeRefused(refusal)) => {
                return self.refused(&refusal.reason);
            }
            Lost::Protocol(omq_proto::Error::UnsupportedZmtpVersion { major, .. }) => {
                let message = format!("the peer speaks ZMTP {major}.x, and 3.x is needed");
                return (Reason::NotZeromq, message.into());
            }
            _ => {}
        }
        if self.greeting.len() < GREETING {
            return self.without_greeting(lost);
        }
        if self.greeting[MECHANISM] != *self.mechanism.as_padded() {
            return self.other_mechanism();
        }
        self.after_greeting(lost)
    }

    /// The peer says so itself.
    fn refused(&self, words: &str) -> (Reason, Cow<'static, str>) {
        if words.contains("ocket type") {
            let message = "the peer says that its socket type does not fit this one";
            return (Reason::WrongSocketType, message.into());
        }
        let words: String = words.chars().take(WORDS_MAX).collect();
        let words = words.escape_debug();
        match self.mechanism == MechanismName::CURVE && self.role == Role::Client {
            true => (
                Reason::KeyRejected,
                format!("the server does not accept this client's key: it answered `{words}`")
                    .into(),
            ),
            false => (
                Reason::Unreachable,
                format!("the peer refused the handshake: `{words}`").into(),
            ),
        }
    }

    fn without_greeting(&self, lost: &Lost) -> (Reason, Cow<'static, str>) {
        let speaks_zmtp = self.greeting.first() == Some(&SIGNATURE);
        match lost {
            _ if self.bytes > 0 && !speaks_zmtp => (
                Reason::NotZeromq,
                format!(
                    "the peer does not speak ZeroMQ (ZMTP): it sent `{}`",
                    self.greeting[..self.bytes.min(SHOWN)].escape_ascii()
                )
                .into(),
            ),
            Lost::HandshakeTimeout(within) if self.bytes == 0 => (
                Reason::Unreachable,
                format!(
                    "the peer took the connection and sent nothing within {within:?}: it has \
                     stopped, or does not speak ZeroMQ (ZMTP)"
                )
                .into(),
            ),
            Lost::HandshakeTimeout(within) => (
                Reason::Unreachable,
                format!("the peer did not finish its greeting within {within:?}").into(),
            ),
            _ if self.bytes == 0 && is_closed(lost) => (
                Reason::Unreachable,
                "the peer closed the connection before it sent anything: it has too many \
                 handshakes at once, does not speak ZeroMQ (ZMTP), or is a proxy without a server"
                    .into(),
            ),
            _ if is_closed(lost) => (
                Reason::SecurityMismatch,
                "the peer closed the connection during the greeting, as libzmq does where only \
                 one side has keys"
                    .into(),
            ),
            lost => (Reason::NotZeromq, lost.to_string().into()),
        }
    }

    fn other_mechanism(&self) -> (Reason, Cow<'static, str>) {
        let theirs = &self.greeting[MECHANISM];
        let theirs = theirs.split(|byte| *byte == 0).next().unwrap_or_default();
        let message = match (self.mechanism, theirs) {
            (MechanismName::CURVE, b"NULL") => {
                "this side has keys (CURVE), and the peer has none".into()
            }
            (MechanismName::NULL, b"CURVE") => {
                "the peer has keys (CURVE), and this side has none".into()
            }
            (ours, theirs) => format!(
                "this side uses the security mechanism {}, and the peer {}",
                ours.as_bytes().escape_ascii(),
                theirs.escape_ascii()
            )
            .into(),
        };
        (Reason::SecurityMismatch, message)
    }

    fn after_greeting(&self, lost: &Lost) -> (Reason, Cow<'static, str>) {
        let is_curve = self.mechanism == MechanismName::CURVE;
        let is_client = self.role == Role::Client;
        // The first thing after the greeting is the server's answer to the client's first box.
        let is_answered = self.bytes > GREETING;
        match lost {
            Lost::HandshakeTimeout(within) => (
                Reason::Unreachable,
                format!("the peer did not finish the handshake within {within:?}").into(),
            ),
            lost if is_closed(lost) => match (is_client, is_curve, is_answered) {
                (true, true, false) => (
                    Reason::WrongServerKey,
                    "the server closed the connection when the client used the server's public \
                     key: it probably has another one"
                        .into(),
                ),
                (true, true, true) => (
                    Reason::KeyRejected,
                    "the server closed the connection when it had this client's key: it probably \
                     does not accept it, or has as many connections as it takes"
                        .into(),
                ),
                (true, false, _) => (
                    Reason::Unreachable,
                    "the server closed the connection during the handshake: it probably has as \
                     many connections as it takes, or is a socket of another type"
                        .into(),
                ),
                (false, ..) => (
                    Reason::Unreachable,
                    "the client closed the connection during the handshake".into(),
                ),
            },
            Lost::Protocol(omq_proto::Error::HandshakeFailed(words)) => {
                self.of_words(words, is_client)
            }
            lost => (Reason::NotZeromq, lost.to_string().into()),
        }
    }

    /// The codec has no other way to say these; tests notice when it says them in other words.
    fn of_words(&self, words: &str, is_client: bool) -> (Reason, Cow<'static, str>) {
        if let Some((_, theirs)) = words
            .strip_prefix("incompatible socket types")
            .and_then(|types| types.split_once("peer="))
        {
            let ours = self.kind;
            let message = format!("this side is a {ours:?} socket, and the peer a {theirs} socket");
            return (Reason::WrongSocketType, message.into());
        }
        if is_client && words.starts_with("CURVE WELCOME") {
            let message = "the server's key is not the one that this client expects";
            return (Reason::WrongServerKey, message.into());
        }
        if !is_client && words.starts_with("CURVE HELLO") {
            let message = "the client expects a server with another public key";
            return (Reason::WrongServerKey, message.into());
        }
        let words: String = words.chars().take(WORDS_MAX).collect();
        (Reason::NotZeromq, words.escape_debug().to_string().into())
    }
}

/// Whether the peer ended the connection, one way or another.
fn is_closed(lost: &Lost) -> bool {
    matches!(lost, Lost::ByPeer | Lost::Stream(_))
}
