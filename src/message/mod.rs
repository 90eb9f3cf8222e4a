//! Messages: owned, over borrowed bytes; built in place in the buffer that is sent.
//!
//! Knows Cap'n Proto and nothing of sockets, calls or topics.

mod buffer;
mod canonical;
#[doc(hidden)]
pub mod json;
mod limits;
mod link;
mod nesting;
mod plain;
mod received;
mod traversal;

pub use json::JsonValue;
pub use limits::Limits;
pub use link::Link;
pub use plain::*;
pub use received::Msg;

pub(crate) use buffer::{
    Built, build_in_buffer, build_of_length, build_with, copied, detached, joined, part,
};
pub(crate) use canonical::canonical;
pub(crate) use nesting::{check_nesting, check_nesting_of};
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
    Malformed(#[source] capnp::Error),
    /// Reading the message visits more words than [`Limits::traversal_factor`] and
    /// [`Limits::traversal_words_free`] allow; nothing of it was read.
    #[error("reading the message visits more than {words_max} words")]
    TooManyWords {
        /// The limit.
        words_max: usize,
    },
    /// Structs and lists lie deeper within each other than [`Limits::nesting_max`]; nothing was read. Of a message that is
    /// written: than [`Limits::set_nesting_written_max`] says, since readers would refuse it.
    #[error("a message that is nested more than {nesting_max} deep")]
    TooDeep {
        /// The limit.
        nesting_max: u16,
    },
    /// A plain struct has a member of a union that this program's schema does not have, as a newer program has sent it.
    ///
    /// What the member holds was not read, so the struct cannot be written again. Pass on the message that it came in:
    /// `Reply::from(response)`, the client's `…_message(request.message())`, [`push_message`](crate::Queue::push_message)
    /// of a job, [`publish_message`](crate::Publisher::publish_message) of an event.
    #[error(
        "{member} is not in this program's schema, so the plain struct that has it cannot be sent: pass the received \
         message on whole (`Reply::from(response)`, `client.…_message(request.message())`, \
         `queue.push_message(&job.open()?)`, `publisher.publish_message(&event.open()?)`), or compile the newer schema"
    )]
    NotInSchema {
        /// The struct and the number of the member.
        member: String,
        /// The number of the member.
        number: u16,
    },
    /// A text field is not UTF-8.
    #[error("text that is not UTF-8: {0}")]
    Text(#[from] std::str::Utf8Error),
}

impl From<capnp::Error> for MessageError {
    fn from(error: capnp::Error) -> Self {
        match error.kind {
            // Of a plain struct; a reader says no more than the number.
            capnp::ErrorKind::EnumValueOrUnionDiscriminantNotPresent(not_in_schema)
                if !error.extra.is_empty() =>
            {
                Self::NotInSchema {
                    member: error.extra,
                    number: not_in_schema.0,
                }
            }
            _ => Self::Malformed(error),
        }
    }
}
