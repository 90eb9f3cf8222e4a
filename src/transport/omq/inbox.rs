//! Messages that connections have received and their socket has not taken yet.
//!
//! Each connection has a place of its own, bounded, and they are emptied by turns: one that sends
//! much waits for itself, and nobody waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::transport::Closed;

/// Messages that are taken of one connection before it is the turn of the next.
const TURN: usize = 32;
/// Bytes that may wait of one connection; a larger message waits alone.
const BYTES_MAX: usize = 1 << 20;

/// One connection's place; `T` is what the socket wants to know about it.
#[derive(Debug)]
pub(super) struct Place<T, M> {
    pub of: T,
    waiting: Mutex<Waiting<M>>,
    room: Notify,
}

#[derive(Debug)]
struct Waiting<M> {
    messages: VecDeque<(M, usize)>,
    bytes: usize,
    /// Whether it is among those whose turn will come.
    is_listed: bool,
}

/// All places that have something.
#[derive(Debug)]
pub(super) struct Inbox<T, M> {
    turns: Mutex<Turns<T, M>>,
    messages_max: usize,
}

#[derive(Debug)]
struct Turns<T, M> {
    next: VecDeque<Arc<Place<T, M>>>,
    /// Those that have something, and are not to be asked for it now: at most one of each connection.
    parked: Vec<Arc<Place<T, M>>>,
    reader: Option<Waker>,
    is_closed: bool,
}

impl<T, M> Place<T, M> {
    pub fn new(of: T) -> Self {
        Self {
            of,
            waiting: Mutex::new(Waiting {
                messages: VecDeque::new(),
                bytes: 0,
                is_listed: false,
            }),
            room: Notify::new(),
        }
    }

    fn is_full(&self, messages_max: usize) -> bool {
        let waiting = lock(&self.waiting);
        waiting.messages.len() >= messages_max || waiting.bytes >= BYTES_MAX
    }
}

impl<T, M> Inbox<T, M> {
    /// `messages_max` of each connection may wait before it has to.
    pub fn new(messages_max: usize) -> Self {
        Self {
            turns: Mutex::new(Turns {
                next: VecDeque::new(),
                parked: Vec::new(),
                reader: None,
                is_closed: false,
            }),
            messages_max: messages_max.max(1),
        }
    }

    /// Puts messages into a connection's place, each with its size in bytes.
    pub fn put(&self, place: &Arc<Place<T, M>>, messages: impl Iterator<Item = (M, usize)>) {
        let mut waiting = lock(&place.waiting);
        for (message, bytes) in messages {
            waiting.bytes += bytes;
            waiting.messages.push_back((message, bytes));
        }
        if waiting.messages.is_empty() || std::mem::replace(&mut waiting.is_listed, true) {
            return;
        }
        drop(waiting);
        let mut turns = lock(&self.turns);
        turns.next.push_back(Arc::clone(place));
        let reader = turns.reader.take();
        drop(turns);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Returns when the place may have more: its connection reads nothing until then.
    pub async fn has_room(&self, place: &Place<T, M>) {
        while place.is_full(self.messages_max) {
            // One that is told between the look and the wait is told again by the permit it left.
            place.room.notified().await;
        }
    }

    /// Takes messages by turns, each with its size in bytes, until `take` says that it has enough. None are
    /// taken from a place that is parked, which wakes this task when it is so no more.
    pub fn poll(
        &self,
        cx: &mut Context<'_>,
        is_parked: impl Fn(&Place<T, M>, &Context<'_>) -> bool,
        mut take: impl FnMut(&Arc<Place<T, M>>, M, usize) -> bool,
    ) -> Poll<Result<(), Closed>> {
        let mut has_taken = false;
        self.unpark(cx, &is_parked);
        loop {
            let mut turns = lock(&self.turns);
            let Some(place) = turns.next.pop_front() else {
                return match (has_taken, turns.is_closed) {
                    (true, _) => Poll::Ready(Ok(())),
                    (_, true) => Poll::Ready(Err(Closed)),
                    _ => {
                        turns.reader = Some(cx.waker().clone());
                        Poll::Pending
                    }
                };
            };
            if is_parked(&place, cx) {
                turns.parked.push(place);
                continue;
            }
            drop(turns);
            has_taken = true;
            let has_enough = self.take_turn(&place, &mut take);
            if has_enough {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Gives those their turn again that are parked no more.
    fn unpark(&self, cx: &Context<'_>, is_parked: impl Fn(&Place<T, M>, &Context<'_>) -> bool) {
        let mut turns = lock(&self.turns);
        let Turns { next, parked, .. } = &mut *turns;
        parked.retain(|place| {
            let is_parked = is_parked(place, cx);
            if !is_parked {
                next.push_back(Arc::clone(place));
            }
            is_parked
        });
    }

    fn take_turn(
        &self,
        place: &Arc<Place<T, M>>,
        take: &mut impl FnMut(&Arc<Place<T, M>>, M, usize) -> bool,
    ) -> bool {
        let mut has_enough = false;
        for _ in 0..TURN {
            let mut waiting = lock(&place.waiting);
            let Some((message, bytes)) = waiting.messages.pop_front() else {
                break;
            };
            waiting.bytes -= bytes;
            drop(waiting);
            has_enough = take(place, message, bytes);
            if has_enough {
                break;
            }
        }
        let mut waiting = lock(&place.waiting);
        waiting.is_listed = !waiting.messages.is_empty();
        let is_listed = waiting.is_listed;
        drop(waiting);
        if is_listed {
            lock(&self.turns).next.push_back(Arc::clone(place));
        }
        place.room.notify_one();
        has_enough
    }

    /// Ends the reader, once it has taken what is there.
    pub fn close(&self) {
        let mut turns = lock(&self.turns);
        turns.is_closed = true;
        let reader = turns.reader.take();
        drop(turns);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places from this number on are parked.
    const PARKED: u8 = 100;

    fn take_all(inbox: &Inbox<u8, u32>, most: usize) -> Vec<(u8, u32)> {
        let mut taken = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        let is_parked = |place: &Place<u8, u32>, _: &Context<'_>| place.of >= PARKED;
        let _ = inbox.poll(&mut cx, is_parked, |place, message, _| {
            taken.push((place.of, message));
            taken.len() >= most
        });
        taken
    }

    fn put(inbox: &Inbox<u8, u32>, place: &Arc<Place<u8, u32>>, messages: std::ops::Range<u32>) {
        inbox.put(place, messages.map(|message| (message, 10)));
    }

    #[test]
    fn one_that_sends_much_waits_for_itself() {
        let inbox = Inbox::new(1000);
        let (loud, quiet) = (Arc::new(Place::new(1)), Arc::new(Place::new(2)));
        put(&inbox, &loud, 0..500);
        put(&inbox, &quiet, 0..1);
        let taken = take_all(&inbox, TURN + 1);
        assert_eq!(taken.last(), Some(&(2, 0)));
        let rest = take_all(&inbox, 1000);
        assert_eq!(rest.len(), 500 - TURN);
        assert!(
            rest.iter()
                .map(|(_, message)| *message)
                .eq(TURN as u32..500)
        );
    }

    #[tokio::test]
    async fn a_place_is_full_at_its_limits_and_has_room_when_some_are_taken() {
        let inbox = Inbox::new(2);
        let place = Arc::new(Place::new(1));
        put(&inbox, &place, 0..1);
        inbox.has_room(&place).await;
        put(&inbox, &place, 1..2);
        assert!(place.is_full(2));
        assert_eq!(take_all(&inbox, 1), [(1, 0)]);
        inbox.has_room(&place).await;
        inbox.put(&place, [(7, BYTES_MAX - 10)].into_iter());
        assert!(place.is_full(1000));
        take_all(&inbox, 1);
        assert!(!place.is_full(1000));
    }

    #[test]
    fn nothing_is_taken_from_a_parked_place_until_it_is_not() {
        let inbox = Inbox::new(1000);
        let (parked, other) = (Arc::new(Place::new(PARKED)), Arc::new(Place::new(1)));
        put(&inbox, &parked, 0..2);
        put(&inbox, &other, 5..6);
        assert_eq!(take_all(&inbox, 9), [(1, 5)]);
        assert_eq!(take_all(&inbox, 9), []);
        put(&inbox, &parked, 2..3);
        let mut taken = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        let polled = inbox.poll(
            &mut cx,
            |_, _| false,
            |_, message, _| {
                taken.push(message);
                false
            },
        );
        assert_eq!((polled, taken), (Poll::Ready(Ok(())), vec![0, 1, 2]));
    }

    #[test]
    fn what_was_put_before_closing_is_still_taken() {
        let inbox = Inbox::new(2);
        let place = Arc::new(Place::new(1));
        put(&inbox, &place, 0..1);
        inbox.close();
        assert_eq!(take_all(&inbox, 9), [(1, 0)]);
        let mut cx = Context::from_waker(Waker::noop());
        let polled = inbox.poll(&mut cx, |_, _| false, |_, _, _| true);
        assert_eq!(polled, Poll::Ready(Err(Closed)));
    }
}
