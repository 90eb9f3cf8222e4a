//! Where messages begin and end in a stream of [ZMTP 3.x](https://rfc.zeromq.org/spec/37/). No I/O.

use std::mem::take;

/// Bytes of the greeting, before which there are no frames.
const GREETING: usize = 64;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// A part of the stream. All of them one after the other are the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Of the handshake, or a command: must arrive as it is and when it is.
    Connection(Vec<u8>),
    /// All frames of one message.
    Message(Vec<u8>),
}

/// Takes one direction of a connection apart.
#[derive(Debug, Default)]
pub struct Splitter {
    greeted: usize,
    unread: Vec<u8>,
    /// Frames of a message that is not complete.
    message: Vec<u8>,
}

impl Splitter {
    /// Takes what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// The next piece, if it is complete.
    pub fn next_piece(&mut self) -> Option<Piece> {
        if self.greeted < GREETING {
            // As it comes: one side may wait for the other's first half.
            let length = self.unread.len().min(GREETING - self.greeted);
            self.greeted += length;
            return (length > 0).then(|| Piece::Connection(self.take(length)));
        }
        loop {
            let flags = *self.unread.first()?;
            let (header, body) = if flags & LONG == 0 {
                (2, u64::from(*self.unread.get(1)?))
            } else {
                let length = self.unread.get(1..9)?.try_into().ok()?;
                (9, u64::from_be_bytes(length))
            };
            let length = header + usize::try_from(body).ok()?;
            if self.unread.len() < length {
                return None;
            }
            let frame = self.take(length);
            if flags & COMMAND != 0 {
                return Some(Piece::Connection(frame));
            }
            self.message.extend_from_slice(&frame);
            if flags & MORE == 0 {
                return Some(Piece::Message(take(&mut self.message)));
            }
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        self.unread.drain(..length).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = match u8::try_from(body.len()) {
            Ok(length) => vec![flags, length],
            Err(_) => [&[flags | LONG][..], &(body.len() as u64).to_be_bytes()].concat(),
        };
        frame.extend_from_slice(body);
        frame
    }

    proptest! {
        #[test]
        fn messages_come_out_whole_however_they_arrive(
            messages in prop::collection::vec(
                (any::<bool>(), prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..4)),
                0..10,
            ),
            cuts in prop::collection::vec(1..500usize, 1..20),
        ) {
            let mut stream = vec![7; GREETING];
            let mut expected = Vec::new();
            for (is_command, parts) in &messages {
                let last = parts.len() - 1;
                let bytes = if *is_command {
                    frame(COMMAND, &parts[0])
                } else {
                    let frames = parts.iter().enumerate();
                    frames.flat_map(|(at, part)| frame(if at < last { MORE } else { 0 }, part)).collect()
                };
                stream.extend_from_slice(&bytes);
                expected.push(match is_command {
                    true => Piece::Connection(bytes),
                    false => Piece::Message(bytes),
                });
            }
            let (mut splitter, mut pieces, mut rest) = (Splitter::default(), Vec::new(), &stream[..]);
            for cut in cuts.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(cut.min(rest.len()));
                splitter.push(now);
                rest = later;
                while let Some(piece) = splitter.next_piece() {
                    pieces.push(piece);
                }
            }
            let mut greeting = Vec::new();
            while greeting.len() < GREETING {
                let Piece::Connection(bytes) = pieces.remove(0) else { panic!("a message first") };
                greeting.extend(bytes);
            }
            prop_assert_eq!(&greeting[..], &stream[..GREETING]);
            prop_assert_eq!(pieces, expected);
        }
    }
}
