//! The name that a verified key has.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use super::PublicKey;

/// Longest name of a principal, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Who a peer is: the name that [`AllowedKeys`](super::AllowedKeys) gives the key it has proved.
///
/// Never what a peer says of itself: not its ZeroMQ identity, not its address. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(Arc<str>);

impl Principal {
    pub(crate) fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// With a name that a principal may have: of ASCII alone, the strictest of the levels of Unicode's security
    /// mechanisms (UTS 39), so that no two names look alike that are not, and none hides a letter. No spaces or
    /// quotes, which are lost in files and logs, no `*`, which stands for all, and no text of a key, which may
    /// be a secret in a wrong place.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && !br#"*"'`\"#.contains(&byte);
        let is_name = (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(is_allowed)
            && name.parse::<PublicKey>().is_err();
        is_name.then(|| Self::new(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Principal {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Principal({})", self.0)
    }
}
