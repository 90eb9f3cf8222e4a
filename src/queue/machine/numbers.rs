//! An ordered set of job numbers, kept as ranges: ten million jobs in a row are one entry.

use std::collections::BTreeMap;

/// A set of numbers, smallest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    /// First number of each range to the one after its last. Ranges neither touch nor overlap.
    ranges: BTreeMap<u64, u64>,
    len: usize,
}

impl Numbers {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn first(&self) -> Option<u64> {
        self.ranges.keys().next().copied()
    }

    #[cfg(test)]
    pub fn contains(&self, number: u64) -> bool {
        self.range_of(number).is_some()
    }

    /// Says whether it was not there before.
    pub fn insert(&mut self, number: u64) -> bool {
        let after = number + 1;
        // Nearly always the one after the last.
        if let Some(mut last) = self.ranges.last_entry()
            && *last.get() == number
        {
            last.insert(after);
            self.len += 1;
            return true;
        }
        let before = self.ranges.range(..=number).next_back();
        let (start, end) = match before {
            Some((_, end)) if number < *end => return false,
            Some((start, end)) if *end == number => (*start, after),
            _ => (number, after),
        };
        let end = self.ranges.remove(&after).unwrap_or(end);
        self.ranges.insert(start, end);
        self.len += 1;
        true
    }

    /// Says whether it was there.
    pub fn remove(&mut self, number: u64) -> bool {
        let Some((start, end)) = self.range_of(number) else {
            return false;
        };
        if start == number {
            self.ranges.remove(&start);
        } else {
            self.ranges.insert(start, number);
        }
        if number + 1 < end {
            self.ranges.insert(number + 1, end);
        }
        self.len -= 1;
        true
    }

    pub fn pop_first(&mut self) -> Option<u64> {
        let entry = self.ranges.first_entry()?;
        let (start, end) = (*entry.key(), *entry.get());
        entry.remove();
        if start + 1 < end {
            self.ranges.insert(start + 1, end);
        }
        self.len -= 1;
        Some(start)
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|(start, end)| *start..*end)
    }

    fn range_of(&self, number: u64) -> Option<(u64, u64)> {
        let (start, end) = self.ranges.range(..=number).next_back()?;
        (number < *end).then_some((*start, *end))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(changes in prop::collection::vec((0..3u8, 0..64u64), 0..300)) {
            let (mut numbers, mut model) = (Numbers::default(), BTreeSet::new());
            for (what, number) in changes {
                match what {
                    0 => prop_assert_eq!(numbers.insert(number), model.insert(number)),
                    1 => prop_assert_eq!(numbers.remove(number), model.remove(&number)),
                    _ => prop_assert_eq!(numbers.pop_first(), model.pop_first()),
                }
                prop_assert_eq!(numbers.len(), model.len());
                prop_assert_eq!(numbers.first(), model.first().copied());
                prop_assert!(numbers.iter().eq(model.iter().copied()));
                prop_assert_eq!(numbers.contains(number), model.contains(&number));
            }
        }
    }

    #[test]
    fn a_long_backlog_is_one_range() {
        let mut numbers = Numbers::default();
        for number in 0..100_000 {
            numbers.insert(number);
        }
        assert_eq!(numbers.ranges.len(), 1);
    }
}
