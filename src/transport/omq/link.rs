//! One connection: a stream, the codec that speaks ZMTP over it, and what waits to be written.
//!
//! Whoever sends writes to the stream at once, and leaves behind only what it does not take. One
//! task reads ([`Incoming`]), and writes what was left. Nothing passes from task to task.

mod handshake;
mod unfinished;

pub(super) use handshake::HandshakeFailure;
use unfinished::{COUNTED_MIN, Unfinished};

use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use omq_proto::Message;
use omq_proto::proto::{Command, Connection, Event};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::frames::Parts;
use super::outbox::Outbox;
use super::stream::{ReadHalf, WriteHalf};
use crate::security::{Pool, Share};
use crate::transport::TransportOptions;

/// A last part of up to so many bytes is copied behind what comes before it: that is quicker than a
/// second slice.
const COPIED_MAX: usize = 4 << 10;
/// What is read at once, least and most. A connection that has little to say keeps little.
const READ_MIN: usize = 4 << 10;
const READ_MAX: usize = 256 << 10;
/// With more than this waiting to be written, a connection is congested: its socket takes no requests
/// from it until half of that is left. Less where the limits are less.
const CONGESTED_BYTES: usize = 256 << 10;
/// Bytes of answers to a peer's PINGs that may wait: it asks without reading.
const PONGS_MAX: usize = 64 << 10;
/// What is in front of each part of a message, at least.
const FRAME_BYTES: usize = 2;

/// What may wait to be sent over one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub bytes_max: usize,
    pub messages_max: usize,
}

impl Limits {
    /// Whether so much makes the connection congested.
    fn are_strained(&self, outbox: &Outbox) -> bool {
        outbox.bytes() > self.congested_bytes() || outbox.messages() > self.messages_max / 2
    }

    /// Whether so much is little enough again.
    fn are_relieved(&self, outbox: &Outbox) -> bool {
        outbox.bytes() <= self.congested_bytes() / 2 && outbox.messages() <= self.messages_max / 4
    }

    fn congested_bytes(&self) -> usize {
        CONGESTED_BYTES.min(self.bytes_max / 2)
    }
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
    #[error("closed by this side: {0}")]
    Disconnected(&'static str),
    #[error("the handshake did not end within {0:?}")]
    HandshakeTimeout(Duration),
    #[error("the peer did not answer a heartbeat within {0:?}")]
    Silent(Duration),
    #[error("the peer read nothing for {0:?} while messages for it were waiting")]
    Stuck(Duration),
    #[error("the peer sends heartbeats and does not read the answers")]
    Pings,
    #[error(
        "the peer has sent {0} bytes of a message, and others need the room for the rest of it"
    )]
    Unfinished(usize),
    #[error("the network reports: {0}")]
    Stream(#[from] io::Error),
    #[error("the peer sent a message of {0} bytes or more, which is over the limit")]
    TooLarge(usize),
    #[error("{0}")]
    Protocol(omq_proto::Error),
}

impl From<omq_proto::Error> for Lost {
    fn from(error: omq_proto::Error) -> Self {
        match error {
            omq_proto::Error::MessageTooLarge { size, .. } => Self::TooLarge(size),
            error => Self::Protocol(error),
        }
    }
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
    is_congested: Arc<AtomicBool>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
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
    /// The same in words, for who looks after it.
    cause: Option<String>,
    /// There is more room than there was, where somebody waits for it.
    room: Arc<Notify>,
    is_room_awaited: bool,
    /// Much waits, and the peer does not read it as fast as it comes.
    is_congested: Arc<AtomicBool>,
    /// Woken when it is congested no more.
    relieved: Option<Waker>,
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
    unfinished: Unfinished,
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
    /// Bytes that came and were not handed over as messages, and those of the last read.
    came: usize,
    last_read: usize,
}

/// Something that the other side has said.
#[derive(Debug)]
pub(super) enum Heard {
    Message(Message),
    Command(Command),
}

impl Heard {
    /// About what it has taken of the stream, without what encryption adds.
    fn wire_bytes(&self) -> usize {
        match self {
            Self::Message(message) => message.byte_len() + FRAME_BYTES * message.len(),
            Self::Command(_) => 0,
        }
    }
}

impl Link {
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

    /// Whether more may be received from its peer, by what the peer has of the room that all have together.
    pub fn may_receive(&self) -> bool {
        self.lock().unfinished.has_room()
    }

    /// Bytes that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.lock().outbox.bytes()
    }

    /// Counts what waits to be sent for its peer's share too, and what has come of a message that is not whole.
    pub fn count_for(&self, share: &Arc<Share>, received: &Arc<Pool>) {
        let mut state = self.lock();
        state.outbox.count_for(Arc::clone(share));
        state
            .unfinished
            .count_for(Arc::clone(received), Arc::clone(share));
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

    /// Whether much waits to be written. What makes more should not be taken from it.
    pub fn is_congested(&self) -> bool {
        self.is_congested.load(Relaxed)
    }

    /// Whether it is congested; if so, has the task woken when it is no more. One task may ask.
    pub fn poll_congested(&self, cx: &Context<'_>) -> bool {
        if !self.is_congested() {
            return false;
        }
        let mut state = self.lock();
        let is_congested = self.is_congested();
        if is_congested {
            state.relieved = Some(cx.waker().clone());
        }
        is_congested
    }

    /// Returns when it is not congested.
    pub async fn relieved(&self) {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            {
                let mut state = self.lock();
                if !self.is_congested() {
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
        self.end(Lost::ByUs);
    }

    /// Closes it for a reason, which its reader is told.
    pub fn end(&self, lost: Lost) {
        self.lock().end(lost);
    }

    pub fn is_closed(&self) -> bool {
        self.lock().write.is_none()
    }

    /// Returns why it was closed, once it is.
    pub fn cause(&self) -> Option<String> {
        self.lock().cause.clone()
    }

    /// Asks a silent peer whether it lives, and finds one that does not answer, or does not read.
    /// To be called once in each heartbeat interval. While nothing is read from the peer
    /// (`is_paused`), it cannot answer, and is told that this side lives.
    pub fn tick(
        &self,
        now: Instant,
        interval: Duration,
        timeout: Duration,
        is_paused: bool,
    ) -> Result<(), Lost> {
        let mut state = self.lock();
        if state.write.is_none() {
            return Err(Lost::ByUs);
        }
        if std::mem::take(&mut state.has_written) || state.outbox.is_empty() {
            state.stuck = None;
        } else {
            let since = *state.stuck.get_or_insert(now);
            if now - since >= interval + timeout {
                return Err(Lost::Stuck(interval + timeout));
            }
        }
        if state.unfinished.has_waited(now) {
            return Err(Lost::Unfinished(state.unfinished.bytes()));
        }
        let was_held = std::mem::take(&mut state.was_held) | state.is_held;
        if is_paused || was_held {
            // Its own heartbeats wait unread, and so does its silence.
            state.has_heard = true;
            state.pinged = None;
            return match state.outbox.is_empty() {
                true => state.ping(),
                false => Ok(()),
            };
        }
        if std::mem::take(&mut state.has_heard) {
            state.pinged = None;
            return Ok(());
        }
        match state.pinged {
            Some(at) if now - at >= timeout => Err(Lost::Silent(timeout)),
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
            self.look_at_congestion();
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

    /// Sends a PING to a peer that knows it.
    fn ping(&mut self) -> Result<(), Lost> {
        if self.codec.peer_minor() == 0 {
            return Ok(());
        }
        self.command(&Command::Ping {
            ttl_deciseconds: 0,
            context: Bytes::new(),
        })
    }

    /// Looks whether too much waits, after something was added.
    fn look_at_congestion(&mut self) {
        if self.limits.are_strained(&self.outbox) {
            self.is_congested.store(true, Relaxed);
        }
    }

    fn relieve(&mut self) {
        self.is_congested.store(false, Relaxed);
        if let Some(waker) = self.relieved.take() {
            waker.wake();
        }
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
            if self.is_congested.load(Relaxed) && self.limits.are_relieved(&self.outbox) {
                self.relieve();
            }
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
        self.close_because(&lost);
        if self.ended.is_none() {
            self.ended = Some(lost);
        }
    }

    fn close_because(&mut self, lost: &Lost) {
        if self.write.take().is_some() {
            self.cause = Some(lost.to_string());
        }
        self.outbox.clear();
        self.unfinished.set(0);
        self.relieve();
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
    /// Waits for what the peer says, and appends all that is there; writes what waits meanwhile. Appends nothing where more
    /// of a large message has come: whether the rest may be read is for the caller to say.
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
            if self.came >= COUNTED_MIN {
                let whole = heard.iter().map(Heard::wire_bytes).sum();
                if whole > 0 {
                    // Not more than came last: what was before it is handed over.
                    self.came = self.came.saturating_sub(whole).min(self.last_read);
                }
                let before = state.unfinished.bytes();
                state.unfinished.set(self.came);
                if heard.is_empty() && state.unfinished.bytes() > before {
                    return Poll::Ready(Ok(()));
                }
            }
            if !heard.is_empty() {
                if self.came < COUNTED_MIN {
                    self.came = 0;
                    state.unfinished.set(0);
                }
                return Poll::Ready(Ok(()));
            }
            drop(state);
            if let Some(lost) = self.lost.take() {
                self.link.lock().close_because(&lost);
                return Poll::Ready(Err(lost));
            }
            self.lost = ready!(self.poll_input(cx, |_| {})).err();
        }
    }

    /// Writes what waits, and reads nothing. Ready when the connection has ended, which
    /// [`poll`](Self::poll) then says.
    pub fn poll_paused(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.link.lock();
        if self.lost.is_none() {
            self.lost = state.wait(cx).err();
        }
        match self.lost.is_some() || state.write.is_none() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Reads once, and has the codec look at it; writes what waits where nothing comes.
    fn poll_input(
        &mut self,
        cx: &mut Context<'_>,
        mut look: impl FnMut(&Bytes),
    ) -> Poll<Result<(), Lost>> {
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
                Poll::Ready(bytes.and_then(|bytes| {
                    look(&bytes);
                    Ok(state.codec.handle_input(bytes)?)
                }))
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
        self.came += count;
        self.last_read = count;
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
