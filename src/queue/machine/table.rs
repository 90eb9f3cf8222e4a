//! A table from job numbers to small values, in chunks: no growth that doubles, no hash for each job.

use std::collections::BTreeMap;

const CHUNK: u64 = 1024;
/// A chunk of which so few values are left keeps these only.
const SPARSE_MAX: usize = 32;

/// Values by number. A chunk of numbers takes memory as long as one of them is there; where few of many are left, of
/// these only.
#[derive(Debug)]
pub(crate) struct Table<V> {
    chunks: BTreeMap<u64, Chunk<V>>,
    len: usize,
}

#[derive(Debug)]
struct Chunk<V> {
    values: Values<V>,
    used: usize,
}

#[derive(Debug)]
enum Values<V> {
    /// Never longer than it has to be: of the last chunk, whose numbers still come, a part.
    Dense(Vec<Option<V>>),
    /// What is left, by index.
    Sparse(Vec<(u16, V)>),
}

impl<V> Values<V> {
    fn get(&self, index: usize) -> Option<&V> {
        match self {
            Self::Dense(values) => values.get(index)?.as_ref(),
            Self::Sparse(values) => {
                let at = values.binary_search_by_key(&(index as u16), |(index, _)| *index);
                Some(&values[at.ok()?].1)
            }
        }
    }

    fn get_mut(&mut self, index: usize) -> Option<&mut V> {
        match self {
            Self::Dense(values) => values.get_mut(index)?.as_mut(),
            Self::Sparse(values) => {
                let at = values.binary_search_by_key(&(index as u16), |(index, _)| *index);
                Some(&mut values[at.ok()?].1)
            }
        }
    }

    fn insert(&mut self, index: usize, value: V) -> Option<V> {
        match self {
            Self::Dense(values) => {
                while values.len() <= index {
                    values.push(None);
                }
                values[index].replace(value)
            }
            Self::Sparse(values) => {
                match values.binary_search_by_key(&(index as u16), |(index, _)| *index) {
                    Ok(at) => Some(std::mem::replace(&mut values[at].1, value)),
                    Err(at) => {
                        values.insert(at, (index as u16, value));
                        None
                    }
                }
            }
        }
    }

    fn remove(&mut self, index: usize) -> Option<V> {
        match self {
            Self::Dense(values) => values.get_mut(index)?.take(),
            Self::Sparse(values) => {
                let at = values.binary_search_by_key(&(index as u16), |(index, _)| *index);
                Some(values.remove(at.ok()?).1)
            }
        }
    }

    /// Keeps what is left only, where that is little and no more is to come.
    fn shrink(&mut self, used: usize) {
        if let Self::Dense(values) = self
            && used <= SPARSE_MAX
            && values.len() == CHUNK as usize
        {
            let left = (0u16..).zip(std::mem::take(values));
            let left = left.filter_map(|(index, value)| Some((index, value?)));
            *self = Self::Sparse(left.collect());
        }
    }
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self {
            chunks: BTreeMap::new(),
            len: 0,
        }
    }
}

impl<V> Table<V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, number: u64) -> Option<&V> {
        self.chunks
            .get(&(number / CHUNK))?
            .values
            .get(index(number))
    }

    pub fn get_mut(&mut self, number: u64) -> Option<&mut V> {
        let chunk = self.chunks.get_mut(&(number / CHUNK))?;
        chunk.values.get_mut(index(number))
    }

    pub fn insert(&mut self, number: u64, value: V) -> Option<V> {
        let chunk = self.chunks.entry(number / CHUNK).or_insert_with(|| Chunk {
            values: Values::Dense(Vec::with_capacity(CHUNK as usize)),
            used: 0,
        });
        let before = chunk.values.insert(index(number), value);
        if before.is_none() {
            chunk.used += 1;
            self.len += 1;
        }
        before
    }

    pub fn remove(&mut self, number: u64) -> Option<V> {
        let chunk = self.chunks.get_mut(&(number / CHUNK))?;
        let value = chunk.values.remove(index(number))?;
        chunk.used -= 1;
        self.len -= 1;
        match chunk.used {
            0 => {
                self.chunks.remove(&(number / CHUNK));
            }
            used => chunk.values.shrink(used),
        }
        Some(value)
    }
}

fn index(number: u64) -> usize {
    (number % CHUNK) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_chunk_of_which_little_is_left_keeps_that_only() {
        let mut table = Table::default();
        for number in 0..CHUNK {
            table.insert(number, number);
        }
        for number in 1..CHUNK {
            table.remove(number);
        }
        let chunk = &table.chunks[&0];
        assert!(matches!(&chunk.values, Values::Sparse(left) if left.capacity() <= 2 * SPARSE_MAX));
        assert_eq!(table.get(0), Some(&0));
    }

    proptest! {
        #[test]
        fn it_is_a_map(changes in prop::collection::vec((0..2u8, 0..4000u64), 0..300)) {
            let (mut table, mut model) = (Table::default(), HashMap::new());
            for (what, number) in changes {
                match what {
                    0 => prop_assert_eq!(table.insert(number, what), model.insert(number, what)),
                    _ => prop_assert_eq!(table.remove(number), model.remove(&number)),
                }
                prop_assert_eq!(table.get(number), model.get(&number));
                prop_assert_eq!(table.len(), model.len());
            }
            prop_assert!(table.chunks.values().all(|chunk| chunk.used > 0));
        }
    }
}
