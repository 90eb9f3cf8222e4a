//! The envelope of a request: the parts in front of its empty delimiter, which sockets between the
//! client and this server have put there, and which go in front of the reply's as they came.
//!
//! A ROUTER in between, as in `zmq.proxy`, puts the address of the peer there, each of several its
//! own; REQ with `REQ_CORRELATE` a number. What is in them is theirs alone.

use std::sync::Arc;

use bytes::Bytes;

/// The parts of an envelope, if there are any; what may be large is kept once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Envelope(Option<Arc<[Bytes]>>);

impl Envelope {
    /// Returns the parts, the outermost first.
    pub fn parts(&self) -> &[Bytes] {
        self.0.as_deref().unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Takes the envelope of a message, of at most so many bytes, in memory of its own. It is empty
    /// where the message has none, and where it is none of a request's: it is not clear then which
    /// parts are the envelope.
    pub fn of<'a>(parts: impl Iterator<Item = &'a [u8]> + Clone, bytes_max: usize) -> Self {
        let in_front = || parts.clone().take_while(|part| !part.is_empty());
        let (count, bytes) = in_front().fold((0, 0), |(count, bytes), part| {
            (count + 1, bytes + part.len())
        });
        // The delimiter, and something behind it.
        let is_delimited = parts.clone().nth(count + 1).is_some();
        if count == 0 || !is_delimited || bytes > bytes_max {
            return Self::default();
        }
        Self(Some(in_front().map(Bytes::copy_from_slice).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&'static str]) -> Vec<Bytes> {
        let parts = parts.iter().map(|part| part.as_bytes());
        Envelope::of(parts, 10).parts().to_vec()
    }

    #[test]
    fn the_envelope_is_what_stands_in_front_of_the_first_empty_part() {
        assert!(of(&["", "header", "body"]).is_empty());
        assert_eq!(of(&["id", "", "header", "body"]), ["id"]);
        assert_eq!(of(&["id", "hop", "", "header", ""]), ["id", "hop"]);
        assert_eq!(of(&["id", "", "", ""]), ["id"]);
        // What is no request has none.
        assert!(of(&["header", "body"]).is_empty());
        assert!(of(&["header", ""]).is_empty());
        assert!(of(&["one"]).is_empty() && of(&[]).is_empty());
    }

    #[test]
    fn an_envelope_is_kept_up_to_its_limit_of_bytes() {
        assert_eq!(of(&["12345", "67890", "", "h", "b"]).len(), 2);
        assert!(of(&["12345", "678901", "", "h", "b"]).is_empty());
    }
}
