//! What waits to be written to one connection: frames as bytes, in order, and how much of them there is.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::{Buf, Bytes};

use crate::security::Share;

/// Slices that are offered to the system at once.
const SLICES_MAX: usize = 32;

/// Bytes that wait in all outboxes of a socket.
pub(super) type Total = Arc<AtomicUsize>;

#[derive(Debug)]
pub(super) struct Outbox {
    waiting: VecDeque<Chunk>,
    bytes: usize,
    messages: usize,
    total: Total,
    /// Of the peer, where one counts its bytes.
    share: Option<Arc<Share>>,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    /// Whether a message ends with it.
    is_last: bool,
}

impl Outbox {
    pub fn new(total: Total) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            messages: 0,
            total,
            share: None,
        }
    }

    /// Counts what waits, now and from now on, for a share too.
    pub fn count_for(&mut self, share: Arc<Share>) {
        share.reply_bytes.fetch_add(self.bytes, Relaxed);
        self.share = Some(share);
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Puts bytes at the end; `is_last` where a message ends with them.
    pub fn push(&mut self, bytes: Bytes, is_last: bool) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len();
        self.total.fetch_add(bytes.len(), Relaxed);
        if let Some(share) = &self.share {
            share.reply_bytes.fetch_add(bytes.len(), Relaxed);
        }
        self.messages += usize::from(is_last);
        self.waiting.push_back(Chunk { bytes, is_last });
    }

    /// Writes until nothing waits or the writer takes no more; says whether it took anything.
    pub fn write(
        &mut self,
        mut writer: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        let mut has_written = false;
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.waiting.len().min(SLICES_MAX);
            for (slice, chunk) in slices.iter_mut().zip(&self.waiting) {
                *slice = IoSlice::new(&chunk.bytes);
            }
            match writer(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            has_written = true;
        }
        Ok(has_written)
    }

    fn advance(&mut self, mut written: usize) {
        self.uncount(written);
        while let Some(first) = self.waiting.front_mut() {
            if written < first.bytes.len() {
                first.bytes.advance(written);
                return;
            }
            written -= first.bytes.len();
            self.messages -= usize::from(first.is_last);
            self.waiting.pop_front();
        }
    }

    pub fn clear(&mut self) {
        self.uncount(self.bytes);
        self.waiting.clear();
        self.messages = 0;
    }

    fn uncount(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.total.fetch_sub(bytes, Relaxed);
        if let Some(share) = &self.share {
            share.reply_bytes.fetch_sub(bytes, Relaxed);
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_bytes_leave_once_and_in_order_however_little_is_taken(
            messages in proptest::collection::vec(proptest::collection::vec(1usize..40, 1..4), 0..30),
            takes in proptest::collection::vec(proptest::option::of(1usize..90), 1..40),
        ) {
            let total = Total::default();
            let mut outbox = Outbox::new(Arc::clone(&total));
            let mut expected = Vec::new();
            for message in &messages {
                for (index, length) in message.iter().enumerate() {
                    let bytes: Vec<u8> = (0..*length).map(|_| expected.len() as u8).collect();
                    expected.extend_from_slice(&bytes);
                    outbox.push(bytes.into(), index + 1 == message.len());
                }
            }
            prop_assert_eq!(outbox.messages(), messages.len());
            let mut written = Vec::new();
            let mut takes = takes.into_iter().cycle();
            let mut rounds = 0;
            while !outbox.is_empty() && rounds < 10_000 {
                rounds += 1;
                let before = written.len();
                let has_written = outbox.write(|slices| {
                    let Some(most) = takes.next().flatten() else {
                        return Err(io::ErrorKind::WouldBlock.into());
                    };
                    let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
                    let taken = most.min(all.len());
                    written.extend_from_slice(&all[..taken]);
                    Ok(taken)
                });
                prop_assert_eq!(has_written.unwrap(), written.len() > before);
                prop_assert_eq!(outbox.bytes(), expected.len() - written.len());
                prop_assert_eq!(total.load(Relaxed), outbox.bytes());
                if takes.clone().take(40).all(|take| take.is_none()) {
                    break;
                }
            }
            if outbox.is_empty() {
                prop_assert_eq!(written, expected);
                prop_assert_eq!(outbox.messages(), 0);
            }
            drop(outbox);
            prop_assert_eq!(total.load(Relaxed), 0);
        }
    }
}
