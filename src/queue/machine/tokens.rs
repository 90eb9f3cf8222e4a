//! Tokens of leases: none comes twice, and none can be guessed from others.

use crate::queue::Token;

/// Low bits of what is counted within one opening of the queue; the others are the opening's number.
const COUNT_BITS: u32 = 40;

/// Draws tokens: a keyed hash of a number that never comes twice.
pub(super) struct Tokens {
    key: [u8; 32],
    next: u64,
}

impl Tokens {
    /// With a key of this secret, which is never written down.
    pub fn new(opening: u32, secret: u64) -> Self {
        let mut tokens = Self {
            key: blake3::derive_key("bowline 2026 lease tokens", &secret.to_le_bytes()),
            next: 0,
        };
        tokens.begin(opening);
        tokens
    }

    /// Counts from the beginning of this opening.
    pub fn begin(&mut self, opening: u32) {
        self.next = u64::from(opening) << COUNT_BITS;
    }

    pub fn draw(&mut self) -> Token {
        self.next += 1;
        let hash = blake3::keyed_hash(&self.key, &self.next.to_le_bytes());
        let (first, _) = hash.as_bytes().split_at(8);
        Token(
            first
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        )
    }
}

impl std::fmt::Debug for Tokens {
    /// Not the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_far_apart_and_differ_between_openings_and_secrets() {
        let first = |opening, secret| {
            let mut tokens = Tokens::new(opening, secret);
            [tokens.draw().0, tokens.draw().0, tokens.draw().0]
        };
        let mut all: Vec<u64> = [(1, 7), (2, 7), (1, 8)]
            .into_iter()
            .flat_map(|(opening, secret)| first(opening, secret))
            .collect();
        all.sort_unstable();
        assert!(
            all.windows(2).all(|pair| pair[1] - pair[0] > 1 << 20),
            "{all:?}"
        );
    }
}
