//! Messages of the seam as frames of ZMTP, and back.

use bytes::{BufMut, Bytes};
use omq_proto::proto::MAX_SHORT_FRAME_SIZE;
use omq_proto::{Message, Payload};

use crate::transport::{
    Envelope, Form, Frames, Malformed, Outgoing, Received, TopicMessage, unpack,
};

/// Flags of a frame (ZMTP 3.1, section "Framing").
const MORE: u8 = 1;
const LONG: u8 = 2;
/// The parts of `[empty][header][body]`.
const CALL_PARTS: usize = 3;

/// The parts of a message: short ones in front, and one that may be large at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    /// In front of all others, for a peer behind other sockets.
    envelope: &'a [Bytes],
    front: [Option<&'a [u8]>; 2],
    pub last: &'a Bytes,
}

impl<'a> From<&'a Outgoing> for Parts<'a> {
    fn from(outgoing: &'a Outgoing) -> Self {
        match outgoing {
            Outgoing::Classic(frames) => Self {
                envelope: &[],
                front: [Some(&[]), Some(&frames.header)],
                last: &frames.body,
            },
            Outgoing::Compact(packed) => Self {
                envelope: &[],
                front: [None, None],
                last: &packed.bytes,
            },
        }
    }
}

impl<'a> From<&'a TopicMessage> for Parts<'a> {
    fn from(message: &'a TopicMessage) -> Self {
        match message {
            TopicMessage::Classic(frames) => Self {
                envelope: &[],
                front: [Some(&frames.topic), Some(&frames.header)],
                last: &frames.body,
            },
            TopicMessage::Compact(events) => Self {
                envelope: &[],
                front: [None, None],
                last: events,
            },
        }
    }
}

impl<'a> Parts<'a> {
    /// The same, behind an envelope.
    pub fn behind(mut self, envelope: &'a Envelope) -> Self {
        self.envelope = envelope.parts();
        self
    }

    /// All but the last.
    fn in_front(&self) -> impl Iterator<Item = &'a [u8]> {
        let envelope = self.envelope.iter().map(|part| &part[..]);
        envelope.chain(self.front.into_iter().flatten())
    }

    /// Bytes on the wire, without what encryption adds.
    pub fn len(&self) -> usize {
        let front: usize = self
            .in_front()
            .map(|part| frame_header_len(part.len()) + part.len())
            .sum();
        front + frame_header_len(self.last.len()) + self.last.len()
    }

    /// Writes all but the last part's own bytes.
    pub fn put_front(&self, to: &mut Vec<u8>) {
        for part in self.in_front() {
            put_frame_header(to, MORE, part.len());
            to.extend_from_slice(part);
        }
        put_frame_header(to, 0, self.last.len());
    }

    /// As the codec takes it, which encrypts it.
    pub fn to_message(self) -> Message {
        let front = self.in_front().map(Payload::from_slice);
        Message::multipart_payloads(front.chain([Payload::from_bytes(self.last.clone())]))
    }
}

fn frame_header_len(bytes: usize) -> usize {
    match bytes > MAX_SHORT_FRAME_SIZE {
        true => 9,
        false => 2,
    }
}

fn put_frame_header(to: &mut Vec<u8>, flags: u8, bytes: usize) {
    match u8::try_from(bytes) {
        Ok(short) => to.extend_from_slice(&[flags, short]),
        Err(_) => {
            to.put_u8(flags | LONG);
            to.put_u64(bytes as u64);
        }
    }
}

/// Returns the envelope of a message of calls, of at most so many bytes.
pub(super) fn envelope(message: &Message, bytes_max: usize) -> Envelope {
    // Nearly all have none.
    if message.len() <= CALL_PARTS {
        return Envelope::default();
    }
    let parts = (0..message.len()).map(|part| message.part_slice(part).unwrap_or_default());
    Envelope::of(parts, bytes_max)
}

/// Takes a message of calls apart, without the envelope that it may have.
pub(super) fn apart(message: &Message, envelope: &Envelope, take: impl FnMut(Received)) {
    match message.part_bytes(0) {
        Some(part) if message.len() == 1 => unpack(&part).for_each(take),
        _ => {
            let received = to_frames(message, envelope.parts().len());
            let received = received.map(|frames| (Form::Classic, frames));
            std::iter::once(received).for_each(take);
        }
    }
}

fn to_frames(message: &Message, first: usize) -> Result<Frames, Malformed> {
    let parts = message.len();
    if parts == first + CALL_PARTS
        && message.part_slice(first).is_some_and(<[u8]>::is_empty)
        && let (Some(header), Some(body)) =
            (message.part_slice(first + 1), message.part_bytes(first + 2))
    {
        Ok(Frames {
            header: header.into(),
            body,
        })
    } else {
        Err(Malformed { parts })
    }
}
