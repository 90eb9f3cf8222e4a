//! A table from job numbers to small values, in chunks: no growth that doubles, no hash for each job.

use std::collections::BTreeMap;

const CHUNK: u64 = 1024;

/// Values by number. A chunk of numbers takes memory as long as one of them is there.
#[derive(Debug)]
pub(crate) struct Table<V> {
    chunks: BTreeMap<u64, Chunk<V>>,
    len: usize,
}

#[derive(Debug)]
struct Chunk<V> {
    /// Never longer than it has to be: of the last chunk, whose numbers still come, a part.
    values: Vec<Option<V>>,
    used: usize,
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
        let chunk = self.chunks.get(&(number / CHUNK))?;
        chunk.values.get(index(number))?.as_ref()
    }

    pub fn get_mut(&mut self, number: u64) -> Option<&mut V> {
        let chunk = self.chunks.get_mut(&(number / CHUNK))?;
        chunk.values.get_mut(index(number))?.as_mut()
    }

    pub fn insert(&mut self, number: u64, value: V) -> Option<V> {
        let chunk = self.chunks.entry(number / CHUNK).or_insert_with(|| Chunk {
            values: Vec::with_capacity(CHUNK as usize),
            used: 0,
        });
        let index = index(number);
        while chunk.values.len() <= index {
            chunk.values.push(None);
        }
        let before = chunk.values[index].replace(value);
        if before.is_none() {
            chunk.used += 1;
            self.len += 1;
        }
        before
    }

    pub fn remove(&mut self, number: u64) -> Option<V> {
        let chunk = self.chunks.get_mut(&(number / CHUNK))?;
        let value = chunk.values.get_mut(index(number))?.take()?;
        chunk.used -= 1;
        self.len -= 1;
        if chunk.used == 0 {
            self.chunks.remove(&(number / CHUNK));
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
