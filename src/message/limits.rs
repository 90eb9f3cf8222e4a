//! What a message from outside may cost its reader.

use capnp::message::ReaderOptions;

use super::traversal::NESTING_MAX;

/// Limits on reading one message. The defaults refuse, in microseconds, messages made to exhaust
/// memory or stack: pointers that alias each other, lists that claim millions of empty elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Largest body in bytes. Default: 1 MiB.
    pub message_bytes_max: usize,
    /// Limits what reading the whole message once may visit, as a multiple of its words, besides
    /// [`traversal_words_free`](Self::traversal_words_free). Counted when the message is opened: reading it
    /// again costs nothing of it. Default: 4.
    pub traversal_factor: usize,
    /// Words that reading any message may visit, however small it is. Default: 1,024.
    pub traversal_words_free: usize,
    /// Depth of structs and lists within each other; at most 256, since reading needs stack for each level. A message that is deeper is refused.
    /// Default: 32.
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

    /// The words that reading a message of this size may visit.
    pub(super) fn words_max(&self, message_bytes: usize) -> usize {
        (message_bytes / 8)
            .saturating_mul(self.traversal_factor)
            .saturating_add(self.traversal_words_free)
    }

    pub(super) fn nesting(&self) -> u16 {
        self.nesting_max.min(NESTING_MAX)
    }

    /// For a message that is read once, with a counter.
    pub(crate) fn reader_options(&self, message_bytes: usize) -> ReaderOptions {
        let mut options = self.uncounted();
        options.traversal_limit_in_words(Some(self.words_max(message_bytes)));
        options
    }

    /// For a message whose words have been counted.
    pub(super) fn uncounted(&self) -> ReaderOptions {
        let mut options = ReaderOptions::new();
        options.nesting_limit(i32::from(self.nesting()));
        options.traversal_limit_in_words(None);
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Msg, Plain};

    /// A list of texts that are all the same bytes: pointers that alias each other.
    fn aliased(texts: u64, words_each: u64) -> Vec<u8> {
        let list = |offset: u64, size: u64, count: u64| offset << 2 | 1 | (count << 3 | size) << 32;
        let mut words = vec![(1 + texts + words_each) << 32, list(0, 6, texts)];
        words.extend((1..=texts).map(|nth| list(texts - nth, 2, words_each * 8)));
        words.resize(words.len() + words_each as usize, 0);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// As often as anybody wants, once it is open.
    fn reads(bytes: &[u8], limits: Limits) -> bool {
        let message = Msg::<Vec<String>>::open(bytes.to_vec().into(), &limits);
        message.is_ok_and(|message| (0..100).all(|_| message.plain().is_ok()))
    }

    #[test]
    fn a_message_is_refused_where_reading_it_visits_more_words_than_the_limit() {
        let defaults = Limits::default();
        // Each text costs 128 words and its pointer one; there are 4 times the words of the message, and 1,024.
        assert!(reads(&aliased(12, 128), defaults));
        assert!(!reads(&aliased(13, 128), defaults));
        let bytes = aliased(13, 128);
        let needed = (0..).find(|free| reads(&bytes, defaults.with_traversal(0, *free)));
        assert!(
            (13 * 128..=13 * 130).contains(&needed.unwrap()),
            "{needed:?}"
        );
        assert!(reads(&bytes, defaults.with_traversal(12, 0)));
        assert!(!reads(&bytes, defaults.with_traversal(11, 0)));
    }

    #[test]
    fn a_message_of_the_largest_size_is_opened_and_of_a_byte_more_is_not() {
        let bytes = "hello".to_owned().to_bytes().unwrap();
        for (max, opens) in [(bytes.len(), true), (bytes.len() - 1, false)] {
            let limits = Limits::default().with_message_bytes_max(max);
            assert_eq!(Msg::<String>::open(bytes.clone(), &limits).is_ok(), opens);
        }
    }
}
