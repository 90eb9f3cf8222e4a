//! The bytes of a header, and opening one, whichever of the three it is.

use std::ops::Deref;

use bytes::Bytes;
use capnp::Word;
use capnp::message::{Reader, ReaderSegments};
use capnp::serialize::BufferSegments;

use super::{ENVELOPE_VERSION, HEADER_BYTES_MAX, layout};
use crate::message::Limits;

/// A header as it is sent: a short one, as nearly all are, without an allocation.
#[derive(Clone, Debug)]
pub(crate) enum HeaderBytes {
    Short {
        bytes: [u8; SHORT_BYTES_MAX],
        len: u8,
    },
    Long(Bytes),
}

/// As long as the header of a request without a key, a trace and metadata.
const SHORT_BYTES_MAX: usize = 88;

impl HeaderBytes {
    pub(super) fn short<const BYTES: usize>(from: [u8; BYTES]) -> Self {
        const { assert!(BYTES <= SHORT_BYTES_MAX) };
        let mut bytes = [0; SHORT_BYTES_MAX];
        bytes[..BYTES].copy_from_slice(&from);
        Self::Short {
            bytes,
            len: BYTES as u8, // at most `SHORT_BYTES_MAX`
        }
    }
}

impl Deref for HeaderBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { bytes, len } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for HeaderBytes {
    fn from(bytes: &[u8]) -> Self {
        let mut short = [0; SHORT_BYTES_MAX];
        match short.get_mut(..bytes.len()) {
            Some(to) => {
                to.copy_from_slice(bytes);
                Self::Short {
                    bytes: short,
                    len: bytes.len() as u8, // at most `SHORT_BYTES_MAX`
                }
            }
            None => Self::Long(Bytes::copy_from_slice(bytes)),
        }
    }
}

impl From<Bytes> for HeaderBytes {
    fn from(bytes: Bytes) -> Self {
        match bytes.len() {
            0..=SHORT_BYTES_MAX => Self::from(&bytes[..]),
            _ => Self::Long(bytes),
        }
    }
}

impl From<HeaderBytes> for Bytes {
    fn from(header: HeaderBytes) -> Self {
        match header {
            HeaderBytes::Short { .. } => Bytes::copy_from_slice(&header),
            HeaderBytes::Long(bytes) => bytes,
        }
    }
}

/// The correlation number of a header that is or is not one, where there is any to be found.
pub(super) fn peek(bytes: &[u8], correlation: usize) -> Option<u64> {
    layout::peek(bytes, correlation).filter(|number| *number != 0)
}

/// Why a header could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The frame is no header of this kind.
    #[error("not an envelope: {0}")]
    Malformed(String),
    /// The frame is larger than any header may be.
    #[error("a header of {bytes} bytes is over the limit of {HEADER_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The peer speaks a version of the envelope that this crate does not.
    #[error("envelope version {version} is not version {ENVELOPE_VERSION}")]
    Version {
        /// The peer's version.
        version: u16,
        /// The correlation number of the message, so that it can be answered.
        correlation: u64,
    },
}

impl From<capnp::Error> for HeaderError {
    fn from(error: capnp::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<std::str::Utf8Error> for HeaderError {
    fn from(error: std::str::Utf8Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<capnp::NotInSchema> for HeaderError {
    fn from(error: capnp::NotInSchema) -> Self {
        Self::Malformed(error.to_string())
    }
}

pub(super) fn check_version(version: u16, correlation: u64) -> Result<(), HeaderError> {
    if version == ENVELOPE_VERSION {
        Ok(())
    } else {
        Err(HeaderError::Version {
            version,
            correlation,
        })
    }
}

/// Words of a header that are copied to the stack where they arrive misaligned, as most do.
const STACK_WORDS: usize = 64;

/// Gives `read` a reader over `bytes` without an allocation, for every header without much metadata.
pub(super) fn open<T>(
    bytes: &[u8],
    read: impl FnOnce(Reader<Segments<'_>>) -> Result<T, HeaderError>,
) -> Result<T, HeaderError> {
    if bytes.len() > HEADER_BYTES_MAX {
        return Err(HeaderError::TooLarge { bytes: bytes.len() });
    }
    if (bytes.as_ptr() as usize).is_multiple_of(align_of::<Word>()) {
        return read(reader(bytes)?);
    }
    let words = bytes.len().div_ceil(size_of::<Word>());
    let mut on_stack = [capnp::word(0, 0, 0, 0, 0, 0, 0, 0); STACK_WORDS];
    let mut on_heap;
    let copy = if words <= STACK_WORDS {
        &mut on_stack[..words]
    } else {
        on_heap = Word::allocate_zeroed_vec(words);
        &mut on_heap[..]
    };
    let copy = Word::words_to_bytes_mut(copy);
    copy[..bytes.len()].copy_from_slice(bytes);
    read(reader(&copy[..bytes.len()])?)
}

fn reader(bytes: &[u8]) -> Result<Reader<Segments<'_>>, HeaderError> {
    let options = Limits::default().reader_options(bytes.len());
    let segments = match bytes.split_first_chunk::<8>() {
        Some(([0, 0, 0, 0, a, b, c, d], rest)) => {
            let words = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            if words.checked_mul(8) != Some(rest.len()) {
                let what = "its segment table does not fit its length";
                return Err(HeaderError::Malformed(what.to_owned()));
            }
            Segments::One(rest)
        }
        _ => Segments::Many(BufferSegments::new(bytes, options)?),
    };
    Ok(Reader::new(segments, options))
}

/// The segments of a header: nearly always one.
pub(super) enum Segments<'a> {
    One(&'a [u8]),
    Many(BufferSegments<&'a [u8]>),
}

impl ReaderSegments for Segments<'_> {
    fn get_segment(&self, id: u32) -> Option<&[u8]> {
        match self {
            Self::One(segment) => (id == 0).then_some(segment),
            Self::Many(segments) => segments.get_segment(id),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(segments) => segments.len(),
        }
    }
}
