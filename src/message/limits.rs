//! What a message from outside may cost its reader.

use capnp::message::ReaderOptions;

/// Limits on reading one message. The defaults refuse, in microseconds, messages made to exhaust
/// memory or stack: pointers that alias each other, lists that claim millions of empty elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Largest body in bytes. Default: 1 MiB.
    pub message_bytes_max: usize,
    /// How many times over a reader may visit the words of a message, besides
    /// [`traversal_words_free`](Self::traversal_words_free). Default: 4.
    pub traversal_factor: usize,
    /// Words that any message may be read for, however small it is. Default: 1,024.
    pub traversal_words_free: usize,
    /// Structs and lists within each other. Default: 32.
    pub nesting_max: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 1 << 20,
            traversal_factor: 4,
            traversal_words_free: 1024,
            nesting_max: 32,
        }
    }
}

impl Limits {
    /// Sets [`message_bytes_max`](Self::message_bytes_max).
    pub fn with_message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// Sets [`nesting_max`](Self::nesting_max).
    pub fn with_nesting_max(mut self, nesting: u16) -> Self {
        self.nesting_max = nesting;
        self
    }

    /// Sets [`traversal_factor`](Self::traversal_factor) and [`traversal_words_free`](Self::traversal_words_free).
    pub fn with_traversal(mut self, factor: usize, words_free: usize) -> Self {
        self.traversal_factor = factor;
        self.traversal_words_free = words_free;
        self
    }

    pub(crate) fn reader_options(&self, message_bytes: usize) -> ReaderOptions {
        let mut options = ReaderOptions::new();
        options.nesting_limit(i32::from(self.nesting_max));
        options.traversal_limit_in_words(Some(
            (message_bytes / 8)
                .saturating_mul(self.traversal_factor)
                .saturating_add(self.traversal_words_free),
        ));
        options
    }
}
