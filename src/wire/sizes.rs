//! What a peer takes at most, as it says so in a header.

use super::HEADER_BYTES_MAX;
use crate::message::Limits;

/// Largest body that is taken where nobody sets another limit.
const BODY_BYTES_DEFAULT: u32 = 1 << 20;

/// Largest messages that a peer takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SizesMax {
    /// A body.
    pub body: u32,
    /// A header and its body together.
    pub message: u32,
}

/// A message that its peer would not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Oversize {
    pub bytes: usize,
    pub max: usize,
}

impl SizesMax {
    /// Those of a peer that says that it has limits, and no numbers.
    pub const DEFAULT: Self = Self {
        body: BODY_BYTES_DEFAULT,
        message: BODY_BYTES_DEFAULT + HEADER_BYTES_MAX as u32,
    };

    /// Those of a side with these limits on bodies and on messages. Larger than 4 GiB counts as that.
    pub fn new(limits: &Limits, message_bytes_max: usize) -> Self {
        let bytes = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self {
            body: bytes(limits.message_bytes_max.min(message_bytes_max)),
            message: bytes(message_bytes_max),
        }
    }

    /// Returns an error where a header and a body of these sizes are over a limit.
    pub fn check(self, header_bytes: usize, body_bytes: usize) -> Result<(), Oversize> {
        let (body_max, message_max) = (self.body as usize, self.message as usize);
        let message_bytes = header_bytes + body_bytes;
        if body_bytes > body_max {
            return Err(Oversize {
                bytes: body_bytes,
                max: body_max,
            });
        }
        match message_bytes > message_max {
            true => Err(Oversize {
                bytes: message_bytes,
                max: message_max,
            }),
            false => Ok(()),
        }
    }

    /// As a word of a header, in which the body comes first.
    pub(super) fn to_word(self) -> u64 {
        u64::from(self.body) | u64::from(self.message) << 32
    }

    /// `None` for a word that says nothing.
    pub(super) fn from_word(word: u64) -> Option<Self> {
        let said = |number: u32, unsaid: u32| if number == 0 { unsaid } else { number };
        (word != 0).then(|| Self {
            body: said(word as u32, u32::MAX),
            message: said((word >> 32) as u32, u32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_at_each_limit_fits_and_one_byte_more_does_not() {
        let sizes = SizesMax::new(&Limits::default().with_message_bytes_max(1000), 1100);
        assert_eq!(sizes.check(88, 1000), Ok(()));
        let over = |bytes, max| Err(Oversize { bytes, max });
        assert_eq!(sizes.check(88, 1001), over(1001, 1000));
        assert_eq!(sizes.check(100, 1000), Ok(()));
        assert_eq!(sizes.check(101, 1000), over(1101, 1100));
        assert_eq!(SizesMax::from_word(sizes.to_word()), Some(sizes));
        assert_eq!(SizesMax::from_word(0), None);
        let defaults = crate::TransportOptions::default().message_bytes_max;
        assert_eq!(
            SizesMax::new(&Limits::default(), defaults),
            SizesMax::DEFAULT
        );
    }
}
