//! One connection: a stream, the codec that speaks ZMTP over it, and what waits to be written.
//!
//! Whoever sends writes to the stream at once, and leaves behind only what it does not take. One
//! task reads ([`Incoming`]), and writes what was left. Nothing passes from task to task.

use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use omq_proto::Message;
use omq_proto::proto::{Command, Connection, ConnectionConfig, Event, PeerProperties};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::frames::Parts;
use super::outbox::{Outbox, Total};
use super::stream::{ReadHalf, Stream, WriteHalf};
use crate::security::Share;
use crate::transport::TransportOptions;

/// A last part of up to so many bytes is copied behind what comes before it: that is quicker than a
/// second slice.
const COPIED_MAX: usize = 4 << 10;
/// What is read at once, least and most. A connection that has little to say keeps little.
const READ_MIN: usize = 4 << 10;
const READ_MAX: usize = 256 << 10;
/// Bytes of answers to a peer's PINGs that may wait: it asks without reading.
const PONGS_MAX: usize = 64 << 10;

/// What may wait to be sent over one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub bytes_max: usize,
    pub messages_max: usize,
}

impl From<&TransportOptions> for Limits {
    fn from(options: &TransportOptions) -> Self {
        Self {
            bytes_max: options.send_bytes_max,
            messages_max: options.send_queue_max as usize,
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("closed by the peer")]
    ByPeer,
    #[error("closed by this side")]
    ByUs,
    #[error("the handshake took too long")]
    HandshakeTimeout,
    #[error("the peer has not answered in time")]
    Silent,
    #[error("the peer has not read in time")]
    Stuck,
    #[error("the peer asks whether this side lives, and reads no answer")]
    Pings,
    #[error(transparent)]
    Stream(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] omq_proto::Error),
}

/// Why a message could not be sent now. Nothing of it has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotSent {
    Full,
    Closed,
}

/// For everybody who sends over it.
#[derive(Debug)]
pub(super) struct Link {
    state: Mutex<State>,
    limits: Limits,
    room: Arc<Notify>,
    over: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    /// Gone when it is closed.
    write: Option<Arc<WriteHalf>>,
    codec: Connection,
    outbox: Outbox,
    /// Where messages are put together, kept for the next.
    scratch: Vec<u8>,
    pongs: usize,
    reader: Option<Waker>,
    /// Why it was closed, for who reads.
    ended: Option<Lost>,
    /// There is more room than there was, where somebody waits for it.
    room: Arc<Notify>,
    is_room_awaited: bool,
    /// The end has come.
    over: Arc<Notify>,
    /// Since the last tick.
    has_heard: bool,
    has_written: bool,
    was_held: bool,
    /// This side reads nothing for now.
    is_held: bool,
    pinged: Option<Instant>,
    stuck: Option<Instant>,
}

/// For the one task that reads from it.
#[derive(Debug)]
pub(super) struct Incoming {
    link: Arc<Link>,
    read: ReadHalf,
    buffer: BytesMut,
    /// Bytes of the next read.
    wanted: usize,
    /// What ended it, while there is still something to hand over.
    lost: Option<Lost>,
}

/// Something that the other side has said.
#[derive(Debug)]
pub(super) enum Heard {
    Message(Message),
    Command(Command),
}

impl Link {
    /// Speaks first, and returns when both sides know each other.
    pub async fn shake_hands(
        stream: Stream,
        config: ConnectionConfig,
        limits: Limits,
        total: Total,
        handshake_timeout: Duration,
    ) -> Result<(Arc<Self>, Incoming, Arc<PeerProperties>), Lost> {
        let mut codec = Connection::new(config);
        codec.set_input_budget(true);
        let room = Arc::new(Notify::new());
        let over = Arc::new(Notify::new());
        let link = Arc::new(Self {
            state: Mutex::new(State {
                write: Some(Arc::new(stream.write)),
                codec,
                outbox: Outbox::new(total),
                scratch: Vec::new(),
                pongs: 0,
                reader: None,
                ended: None,
                room: Arc::clone(&room),
                is_room_awaited: false,
                over: Arc::clone(&over),
                has_heard: true,
                has_written: true,
                was_held: false,
                is_held: false,
                pinged: None,
                stuck: None,
            }),
            limits,
            room,
            over,
        });
        let mut incoming = Incoming {
            link: Arc::clone(&link),
            read: stream.read,
            buffer: BytesMut::new(),
            wanted: READ_MIN,
            lost: None,
        };
        let hands = std::future::poll_fn(|cx| incoming.poll_handshake(cx));
        let shaken = timeout(handshake_timeout, hands).await;
        match shaken.unwrap_or(Err(Lost::HandshakeTimeout)) {
            Ok(peer) => Ok((link, incoming, peer)),
            Err(lost) => {
                link.close();
                Err(lost)
            }
        }
    }

    /// Sends, or says at once why not. What the system does not take now waits, within the limits.
    pub fn try_send(&self, parts: Parts<'_>) -> Result<(), NotSent> {
        let mut state = self.lock();
        let State { write, outbox, .. } = &*state;
        if write.is_none() {
            return Err(NotSent::Closed);
        }
        let bytes = outbox.bytes() + parts.len();
        let is_over =
            bytes > self.limits.bytes_max || outbox.messages() >= self.limits.messages_max;
        if is_over && !outbox.is_empty() {
            return Err(NotSent::Full);
        }
        state.send(parts).map_err(|lost| {
            state.end(lost);
            NotSent::Closed
        })
    }

    /// Sends a command; `Err` where it is closed.
    pub fn command(&self, command: &Command) -> Result<(), NotSent> {
        let mut state = self.lock();
        match state.write {
            None => Err(NotSent::Closed),
            Some(_) => state.command(command).map_err(|lost| {
                state.end(lost);
                NotSent::Closed
            }),
        }
    }

    /// Says whether this side reads nothing for now, since it has no room for what would come. The peer's answer to a
    /// heartbeat is behind what it has sent, so that silence says nothing then; and the peer is told that this side lives.
    pub fn hold(&self, holds: bool) {
        let mut state = self.lock();
        state.is_held = holds;
        state.was_held |= holds;
    }

    /// Bytes that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.lock().outbox.bytes()
    }

    /// Counts what waits to be sent for its peer's share too.
    pub fn count_for(&self, share: &Arc<Share>) {
        self.lock().outbox.count_for(Arc::clone(share));
    }

    /// Returns when there is room again after [`NotSent::Full`], or when it is closed.
    pub async fn has_room(&self) {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            {
                let mut state = self.lock();
                let is_half_empty = state.outbox.bytes() <= self.limits.bytes_max / 2
                    && state.outbox.messages() <= self.limits.messages_max / 2;
                if state.write.is_none() || is_half_empty {
                    return;
                }
                state.is_room_awaited = true;
            }
            room.await;
        }
    }

    /// Returns when it is closed.
    pub async fn ended(&self) {
        let mut over = pin!(self.over.notified());
        over.as_mut().enable();
        if !self.is_closed() {
            over.await;
        }
    }

    /// Writes what waits until nothing does or it is closed, whether or not somebody reads.
    pub async fn drained(&self) {
        loop {
            let write = {
                let mut state = self.lock();
                if let Err(lost) = state.write_out() {
                    state.end(lost);
                }
                match &state.write {
                    Some(write) if !state.outbox.is_empty() => Arc::clone(write),
                    _ => return,
                }
            };
            tokio::select! {
                writable = write.writable() => if writable.is_err() {
                    return;
                },
                () = self.ended() => return,
            }
        }
    }

    /// Closes it, and forgets what waits.
    pub fn close(&self) {
        self.lock().end(Lost::ByUs);
    }

    pub fn is_closed(&self) -> bool {
        self.lock().write.is_none()
    }

    /// Asks a silent peer whether it lives, and finds one that does not answer, or does not read.
    /// To be called once in each heartbeat interval.
    pub fn tick(&self, now: Instant, interval: Duration, timeout: Duration) -> Result<(), Lost> {
        let mut state = self.lock();
        if state.write.is_none() {
            return Err(Lost::ByUs);
        }
        if std::mem::take(&mut state.has_written) || state.outbox.is_empty() {
            state.stuck = None;
        } else {
            let since = *state.stuck.get_or_insert(now);
            if now - since >= interval + timeout {
                return Err(Lost::Stuck);
            }
        }
        let was_held = std::mem::take(&mut state.was_held) | state.is_held;
        if was_held {
            state.pinged = None;
            return match state.codec.peer_minor() {
                0 => Ok(()),
                _ => state.ping(),
            };
        }
        if std::mem::take(&mut state.has_heard) {
            state.pinged = None;
            return Ok(());
        }
        match state.pinged {
            Some(at) if now - at >= timeout => Err(Lost::Silent),
            Some(_) => Ok(()),
            // ZMTP 3.0 has no PING: whoever speaks it may be silent.
            None if state.codec.peer_minor() == 0 => Ok(()),
            None => {
                state.pinged = Some(now);
                state.ping()
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn send(&mut self, parts: Parts<'_>) -> Result<(), Lost> {
        if self.codec.has_frame_transform() {
            self.codec.send_message(&parts.to_message())?;
            self.take_coded(true);
            self.write_out()?;
        } else {
            self.send_plain(parts)?;
        }
        if !self.outbox.is_empty() {
            self.wake_reader();
        }
        Ok(())
    }

    fn send_plain(&mut self, parts: Parts<'_>) -> Result<(), Lost> {
        self.scratch.clear();
        parts.put_front(&mut self.scratch);
        let is_copied = parts.last.len() <= COPIED_MAX;
        if is_copied {
            self.scratch.extend_from_slice(parts.last);
        }
        let mut written = 0;
        if self.outbox.is_empty()
            && let Some(write) = &self.write
        {
            let slices = [IoSlice::new(&self.scratch), IoSlice::new(parts.last)];
            let slices = if is_copied { &slices[..1] } else { &slices[..] };
            written = match write.try_write(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                written => written?,
            };
            self.has_written |= written > 0;
        }
        let in_front = written.min(self.scratch.len());
        if in_front < self.scratch.len() {
            let rest = Bytes::copy_from_slice(&self.scratch[in_front..]);
            self.outbox.push(rest, is_copied);
        }
        if !is_copied {
            self.outbox
                .push(parts.last.slice(written - in_front..), true);
        }
        Ok(())
    }

    fn command(&mut self, command: &Command) -> Result<(), Lost> {
        self.codec.send_command(command)?;
        self.take_coded(false);
        self.write_out()?;
        if !self.outbox.is_empty() {
            self.wake_reader();
        }
        Ok(())
    }

    fn ping(&mut self) -> Result<(), Lost> {
        self.command(&Command::Ping {
            ttl_deciseconds: 0,
            context: Bytes::new(),
        })
    }

    /// Puts what the codec has written behind what waits; says how much that was.
    fn take_coded(&mut self, is_message: bool) -> usize {
        if !self.codec.has_pending_transmit() {
            return 0;
        }
        let coded = self.codec.poll_transmit();
        let bytes = coded.len();
        self.codec.advance_transmit(bytes);
        self.outbox.push(coded, is_message);
        bytes
    }

    /// Writes what waits, as far as it goes.
    fn write_out(&mut self) -> Result<(), Lost> {
        if let Some(write) = &self.write
            && self.outbox.write(|slices| write.try_write(slices))?
        {
            self.has_written = true;
            if std::mem::take(&mut self.is_room_awaited) {
                self.room.notify_waiters();
            }
        }
        Ok(())
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// What the reader does before it reads: goes on with what came, and answers PINGs.
    fn turn(&mut self) -> Result<(), Lost> {
        if let Some(lost) = self.ended.take() {
            return Err(lost);
        }
        if self.write.is_none() {
            return Err(Lost::ByUs);
        }
        if self.codec.has_pending_input() {
            self.codec.resume_input()?;
        }
        self.pongs += self.take_coded(false);
        if self.pongs > 0 {
            self.write_out()?;
        }
        if self.outbox.is_empty() {
            self.pongs = 0;
        }
        match self.pongs {
            ..=PONGS_MAX => Ok(()),
            _ => Err(Lost::Pings),
        }
    }

    /// Has the reader woken when there is something to write, or when what waits can be written.
    fn wait(&mut self, cx: &mut Context<'_>) -> Result<(), Lost> {
        while let Some(write) = self.write.clone() {
            self.write_out()?;
            if self.outbox.is_empty() || write.poll_writable(cx)?.is_pending() {
                break;
            }
        }
        if !self
            .reader
            .as_ref()
            .is_some_and(|reader| reader.will_wake(cx.waker()))
        {
            self.reader = Some(cx.waker().clone());
        }
        Ok(())
    }

    fn end(&mut self, lost: Lost) {
        if self.write.take().is_some() {
            self.ended = Some(lost);
        }
        self.outbox.clear();
        self.codec.close();
        self.wake_reader();
        self.room.notify_waiters();
        self.over.notify_waiters();
    }
}

/// Nobody writes what waits any more.
impl Drop for Incoming {
    fn drop(&mut self) {
        self.link.close();
    }
}

impl Incoming {
    /// Waits for what the peer says, and appends all that is there; writes what waits meanwhile.
    /// After an error the connection is closed, and all that came before it has been handed over.
    pub fn poll(&mut self, cx: &mut Context<'_>, heard: &mut Vec<Heard>) -> Poll<Result<(), Lost>> {
        loop {
            let mut state = self.link.lock();
            if self.lost.is_none() {
                self.lost = state.turn().err();
            }
            while let Some(message) = state.codec.poll_message() {
                heard.push(Heard::Message(message));
            }
            while let Some(event) = state.codec.poll_event() {
                if let Event::Command(command) = event {
                    heard.push(Heard::Command(command));
                }
            }
            if !heard.is_empty() {
                return Poll::Ready(Ok(()));
            }
            drop(state);
            if let Some(lost) = self.lost.take() {
                self.link.close();
                return Poll::Ready(Err(lost));
            }
            self.lost = ready!(self.poll_input(cx)).err();
        }
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arc<PeerProperties>, Lost>> {
        loop {
            let mut state = self.link.lock();
            state.take_coded(false);
            let written = state.write_out();
            if let Some(lost) = self.lost.take() {
                // What the codec says to a peer that it refuses has been written.
                return Poll::Ready(Err(lost));
            }
            written?;
            if let Some(Event::HandshakeSucceeded {
                peer_properties, ..
            }) = state.codec.poll_event()
            {
                return Poll::Ready(Ok(peer_properties));
            }
            drop(state);
            self.lost = ready!(self.poll_input(cx)).err();
        }
    }

    /// Reads once, and has the codec look at it; writes what waits where nothing comes.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        let read = self.poll_read(cx);
        let mut state = self.link.lock();
        match read {
            Poll::Pending => match state.wait(cx) {
                Ok(()) if state.ended.is_some() => Poll::Ready(Ok(())),
                Ok(()) => Poll::Pending,
                Err(lost) => Poll::Ready(Err(lost)),
            },
            Poll::Ready(bytes) => {
                state.has_heard = true;
                Poll::Ready(bytes.and_then(|bytes| Ok(state.codec.handle_input(bytes)?)))
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Lost>> {
        self.buffer.reserve(self.wanted);
        let room = self.buffer.capacity() - self.buffer.len();
        let count = ready!(self.read.poll_read(cx, &mut self.buffer))?;
        if count == 0 {
            return Poll::Ready(Err(Lost::ByPeer));
        }
        let bytes = self.buffer.split().freeze();
        if count == room {
            self.wanted = (self.wanted * 4).min(READ_MAX);
        } else if count < self.wanted / 8 && self.wanted > READ_MIN {
            self.wanted = (self.wanted / 2).max(READ_MIN);
            if self.wanted == READ_MIN {
                self.buffer = BytesMut::new();
            }
        }
        Poll::Ready(Ok(bytes))
    }
}

#[cfg(test)]
mod tests;
