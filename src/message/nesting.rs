//! How deep a message that was written here nests: what readers would refuse is refused where it is made.
//!
//! Types that cannot nest deeper than readers take by default are not looked at.

use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;

use super::{Limits, MessageError, Plain, open};

/// What a type nests that can contain itself.
pub(super) const UNBOUNDED: u16 = u16::MAX;

/// As in [`Limits::default`].
const DEFAULT_MAX: u16 = 32;

static WRITTEN_MAX: AtomicU16 = AtomicU16::new(DEFAULT_MAX);

impl Limits {
    /// Sets how deep a message may nest that this process writes. Default: 32, which readers take unless their
    /// [`nesting_max`](Self::nesting_max) says otherwise.
    ///
    /// A message that nests deeper is refused with [`MessageError::TooDeep`] before it is sent or stored. Raise it only
    /// where all readers have a larger limit too.
    pub fn set_nesting_written_max(nesting: u16) {
        WRITTEN_MAX.store(nesting.max(1), Ordering::Relaxed);
    }
}

/// Refuses a message that nests deeper than readers take.
///
/// # Errors
/// [`MessageError::TooDeep`].
#[inline]
pub(crate) fn check_nesting<T: Plain>(message: &Bytes) -> Result<(), MessageError> {
    match T::NESTING <= DEFAULT_MAX {
        true => Ok(()),
        false => check(message),
    }
}

/// The same of bytes that stay where they are: those of a type that needs it are copied.
///
/// # Errors
/// [`MessageError::TooDeep`].
#[inline]
pub(crate) fn check_nesting_of<T: Plain>(framed: &[u8]) -> Result<(), MessageError> {
    match T::NESTING <= DEFAULT_MAX {
        true => Ok(()),
        false => check(&Bytes::copy_from_slice(framed)),
    }
}

fn check(message: &Bytes) -> Result<(), MessageError> {
    let limits = Limits::default()
        .with_message_bytes_max(usize::MAX)
        .with_traversal(usize::MAX, usize::MAX)
        .with_nesting_max(WRITTEN_MAX.load(Ordering::Relaxed));
    match open(message.clone(), &limits) {
        Err(error @ MessageError::TooDeep { .. }) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_readers_take() {
        assert_eq!(Limits::default().nesting_max, DEFAULT_MAX);
        for depth in [1, 31, 32, 33, 41] {
            let mut message = capnp::message::Builder::new_default();
            let mut at = message.init_root::<capnp::any_pointer::Builder<'_>>();
            for _ in 0..depth {
                let list = at.initn_as::<capnp::any_pointer_list::Builder<'_>>(1);
                at = list.get(0);
            }
            let framed = Bytes::from(capnp::serialize::write_message_to_words(&message));
            assert_eq!(check(&framed).is_ok(), depth <= 32, "{depth}");
        }
    }
}
