//! A received message: owns its bytes, and is read in place.

use std::fmt;
use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use capnp::message::{Reader, ReaderSegments};
use capnp::serialize::BufferSegments;
use capnp::traits::Owned;

use super::buffer::aligned;
use super::traversal::{TooMuch, check};
use super::{Limits, MessageError, Plain};

/// A received message of a type from a schema.
///
/// It owns its bytes and can be kept, sent to another thread or held across an `.await`; what
/// [`get`](Self::get) gives borrows from it, and cannot.
///
/// ```
/// # use bowline::message::{Msg, MessageError};
/// # fn f(bytes: bytes::Bytes) -> Result<(), MessageError> {
/// let message: Msg<String> = Msg::open(bytes, &Default::default())?;
/// let text: &str = message.get()?.to_str()?;
/// # Ok(()) }
/// ```
pub struct Msg<T: Plain> {
    reader: Reader<Segments>,
    type_: PhantomData<fn() -> T>,
}

impl<T: Plain> Msg<T> {
    /// Checks the framing, the size and the pointers of a message: what all of it costs to read. After that
    /// it can be read as often as wanted.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`], [`MessageError::TooManyWords`] and [`MessageError::TooDeep`] over `limits`,
    /// [`MessageError::Malformed`] for bytes that are no Cap'n Proto message.
    pub fn open(bytes: Bytes, limits: &Limits) -> Result<Self, MessageError> {
        Ok(Self {
            reader: open(bytes, limits)?,
            type_: PhantomData,
        })
    }

    /// Reads in place: no field is copied or decoded before it is asked for.
    ///
    /// # Errors
    /// [`MessageError::Malformed`] where the root pointer is not that of a `T`.
    pub fn get(&self) -> Result<<T::Capnp as Owned>::Reader<'_>, MessageError> {
        Ok(self.reader.get_root()?)
    }

    /// Returns the message in the standard framing, whole: with what this program's schema does not have.
    pub fn to_bytes(&self) -> Bytes {
        let segments = self.reader.get_segments();
        let segment = |id: usize| segments.get_segment(id as u32).unwrap_or_default();
        let mut framed = Vec::new();
        framed.extend_from_slice(&(segments.len() as u32).wrapping_sub(1).to_le_bytes());
        for id in 0..segments.len() {
            framed.extend_from_slice(&((segment(id).len() / 8) as u32).to_le_bytes());
        }
        framed.resize(framed.len().next_multiple_of(8), 0);
        for id in 0..segments.len() {
            framed.extend_from_slice(segment(id));
        }
        framed.into()
    }

    /// Copies the message into plain Rust values.
    ///
    /// # Errors
    /// As [`get`](Self::get), for any field.
    pub fn plain(&self) -> Result<T, MessageError> {
        Ok(T::read(self.get()?)?)
    }
}

impl<T: Plain> fmt::Debug for Msg<T> {
    /// Shows the type and the size: the fields may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Msg<{}>({} words)",
            std::any::type_name::<T>(),
            self.reader.size_in_words()
        )
    }
}

pub(crate) fn open(bytes: Bytes, limits: &Limits) -> Result<Reader<Segments>, MessageError> {
    if bytes.len() > limits.message_bytes_max {
        return Err(MessageError::TooLarge {
            bytes: bytes.len(),
            max: limits.message_bytes_max,
        });
    }
    let words_max = limits.words_max(bytes.len());
    let options = limits.uncounted();
    let mut bytes = aligned(bytes);
    let segments = match single_segment(&bytes).map(<[u8]>::len) {
        Some(segment_bytes) => {
            // In place: a slice would count one more owner, and one less again.
            bytes.advance(TABLE_BYTES);
            bytes.truncate(segment_bytes);
            Segments::One(bytes)
        }
        None => {
            let counted = limits.reader_options(bytes.len());
            Segments::Many(BufferSegments::new(bytes, counted)?)
        }
    };
    let nesting_max = limits.nesting();
    match check(&segments, words_max, nesting_max) {
        Ok(()) => Ok(Reader::new(segments, options)),
        Err(TooMuch::Words) => Err(MessageError::TooManyWords { words_max }),
        Err(TooMuch::Nesting) => Err(MessageError::TooDeep { nesting_max }),
    }
}

/// The segment table of a message of one segment.
const TABLE_BYTES: usize = 8;

/// The only segment, where there is only one and it is whole.
pub(super) fn single_segment(bytes: &[u8]) -> Option<&[u8]> {
    let (table, rest) = bytes.split_first_chunk::<TABLE_BYTES>()?;
    let [0, 0, 0, 0, a, b, c, d] = *table else {
        return None;
    };
    let segment_bytes = (u32::from_le_bytes([a, b, c, d]) as usize).checked_mul(8)?;
    rest.get(..segment_bytes)
}

/// The segments of one message, without an allocation for the usual one.
pub(crate) enum Segments {
    One(Bytes),
    Many(BufferSegments<Bytes>),
}

impl ReaderSegments for Segments {
    #[inline]
    fn get_segment(&self, id: u32) -> Option<&[u8]> {
        match self {
            Self::One(segment) => (id == 0).then_some(segment),
            Self::Many(segments) => segments.get_segment(id),
        }
    }

    #[inline]
    fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(segments) => segments.len(),
        }
    }
}
