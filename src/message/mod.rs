//! Messages: owned, over borrowed bytes; built in place in the buffer that is sent.
//!
//! Knows Cap'n Proto and nothing of sockets, calls or topics.

mod buffer;
mod canonical;
mod limits;
mod link;
mod plain;
mod received;
mod traversal;

pub use limits::Limits;
pub use link::Link;
pub use plain::*;
pub use received::Msg;

pub(crate) use buffer::{Built, build, build_in_buffer, build_of_length, copied, joined, part};
pub(crate) use canonical::canonical;
pub(crate) use received::open;

/// Why a message could not be read or built.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The message is over [`Limits::message_bytes_max`]; nothing of it was read.
    #[error("a message of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The bytes are no Cap'n Proto message of this type.
    #[error("not a message of this type: {0}")]
    Malformed(#[from] capnp::Error),
    /// Reading the message visits more words than [`Limits::traversal_factor`] and
    /// [`Limits::traversal_words_free`] allow; nothing of it was read.
    #[error("reading the message visits more than {words_max} words")]
    TooManyWords {
        /// The limit.
        words_max: usize,
    },
    /// Structs and lists lie deeper within each other than [`Limits::nesting_max`]; nothing was read.
    #[error("a message that is nested more than {nesting_max} deep")]
    TooDeep {
        /// The limit.
        nesting_max: u16,
    },
    /// A text field is not UTF-8.
    #[error("text that is not UTF-8: {0}")]
    Text(#[from] std::str::Utf8Error),
}
