//! What a word is, to the index and to a query alike.

/// The words of a text in lower case, with where each begins and ends.
pub fn words(text: &str) -> impl Iterator<Item = (std::ops::Range<usize>, String)> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let start = rest + text[rest..].find(char::is_alphanumeric)?;
        let length = text[start..].find(|c: char| !c.is_alphanumeric());
        let end = length.map_or(text.len(), |length| start + length);
        rest = end;
        Some((start..end, text[start..end].to_lowercase()))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_are_what_is_between_the_rest() {
        let words: Vec<_> = super::words("f(x) = Größe;")
            .map(|(_, word)| word)
            .collect();
        assert_eq!(words, ["f", "x", "größe"]);
    }
}
