//! How records lie in memory: side by side, where the next one takes the place of one that was forgotten, and in
//! chains through these places. No rules are in here, nor time.
//!
//! A record that comes as an old one goes writes into memory that was just read, and allocates nothing. It is in each
//! chain at most once, and leaves it in constant time, so that no list is longer than there are records.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use crate::once::key::Brought;
use crate::once::{Key, Record, Timestamp};

/// Records are in pieces of so many, so that none moves when more come.
const PIECE: usize = 64;
const NONE: u32 = u32::MAX;

#[derive(Debug, Default)]
pub struct Records {
    /// The first record of all those whose keys have this hash: nearly always the only one.
    first: HashMap<u64, u32, BuildHasherDefault<Brought>>,
    pieces: Vec<Vec<Slot>>,
    free: Vec<u32>,
    count: usize,
}

/// A record, and where it belongs.
#[derive(Debug)]
pub struct Entry {
    pub key: Key,
    pub record: Record,
    /// Whose it is.
    pub share: u32,
    /// By the time of day, where it has ended.
    pub ended: Timestamp,
    /// Which list its links of [`Chain::Order`] are in.
    pub listed: Listed,
    /// Which list its links of [`Chain::Due`] are in, if any.
    pub due: Option<u64>,
}

/// What may be done with a record when there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// It runs, and its end is known to come.
    Nowhere,
    /// It runs or is in doubt, and stays until somebody says what became of it.
    Open,
    /// It is over, and may be forgotten.
    Ended,
}

#[derive(Debug)]
struct Slot {
    /// The next record whose key has the same hash.
    next: u32,
    links: [Links; 2],
    taken: Option<Entry>,
}

/// Which of a record's two pairs of links.
#[derive(Clone, Copy, Debug)]
pub enum Chain {
    /// Those that came before and after it, among those that are listed as it is.
    Order,
    /// Those that are over at about the same time.
    Due,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    before: u32,
    after: u32,
}

const UNLINKED: Links = Links {
    before: NONE,
    after: NONE,
};

/// The ends of a chain.
#[derive(Clone, Copy, Debug)]
pub struct List {
    first: u32,
    last: u32,
}

impl Default for List {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
        }
    }
}

impl List {
    pub fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    pub fn is_empty(&self) -> bool {
        self.first == NONE
    }
}

impl Records {
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn find(&self, key: &Key) -> Option<u32> {
        let mut at = self.first.get(&key.hash()).copied();
        while let Some(place) = at {
            let slot = self.slot(place)?;
            if slot.taken.as_ref().is_some_and(|entry| entry.key == *key) {
                return Some(place);
            }
            at = Some(slot.next).filter(|next| *next != NONE);
        }
        None
    }

    pub fn get(&self, place: u32) -> Option<&Entry> {
        self.slot(place)?.taken.as_ref()
    }

    pub fn get_mut(&mut self, place: u32) -> Option<&mut Entry> {
        self.slot_mut(place)?.taken.as_mut()
    }

    /// Puts a record of a key that is not there. Returns its place.
    pub fn insert(&mut self, key: &Key, record: Record, share: u32) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| self.another());
        let next = self.first.insert(key.hash(), place).unwrap_or(NONE);
        if let Some(slot) = self.slot_mut(place) {
            slot.next = next;
            slot.links = [UNLINKED; 2];
            slot.taken = Some(Entry {
                key: key.clone(),
                record,
                share,
                ended: Timestamp::EPOCH,
                listed: Listed::Nowhere,
                due: None,
            });
        }
        self.count += 1;
        place
    }

    /// Takes out a record that is in no chain any more.
    pub fn remove(&mut self, place: u32) -> Option<Entry> {
        let slot = self.slot_mut(place)?;
        let next = slot.next;
        let entry = slot.taken.take()?;
        self.unhash(entry.key.hash(), place, next);
        self.free.push(place);
        self.count -= 1;
        Some(entry)
    }

    /// Puts a record at the end of a list.
    pub fn push(&mut self, chain: Chain, list: &mut List, place: u32) {
        let before = list.last;
        self.set_links(chain, place, |links| {
            links.before = before;
            links.after = NONE;
        });
        match before {
            NONE => list.first = place,
            _ => self.set_links(chain, before, |links| links.after = place),
        }
        list.last = place;
    }

    /// Takes a record out of the list that it is in.
    pub fn unlink(&mut self, chain: Chain, list: &mut List, place: u32) {
        let Some(Links { before, after }) = self.links(chain, place) else {
            return;
        };
        match before {
            NONE => list.first = after,
            _ => self.set_links(chain, before, |links| links.after = after),
        }
        match after {
            NONE => list.last = before,
            _ => self.set_links(chain, after, |links| links.before = before),
        }
        self.set_links(chain, place, |links| *links = UNLINKED);
    }

    /// The records of a list, in its order.
    pub fn in_list(&self, chain: Chain, list: &List) -> impl Iterator<Item = &Entry> {
        let after = move |place: &u32| {
            let links = self.links(chain, *place)?;
            Some(links.after).filter(|after| *after != NONE)
        };
        let places = std::iter::successors(list.first(), after);
        places.filter_map(|place| self.get(place))
    }

    fn links(&self, chain: Chain, place: u32) -> Option<Links> {
        Some(self.slot(place)?.links[chain as usize])
    }

    fn set_links(&mut self, chain: Chain, place: u32, set: impl FnOnce(&mut Links)) {
        if let Some(slot) = self.slot_mut(place) {
            set(&mut slot.links[chain as usize]);
        }
    }

    /// Takes a place out of those of its hash.
    fn unhash(&mut self, hash: u64, place: u32, next: u32) {
        let mut before = match self.first.get_mut(&hash) {
            Some(first) if *first != place => *first,
            Some(first) if next != NONE => return *first = next,
            _ => {
                self.first.remove(&hash);
                return;
            }
        };
        while let Some(slot) = self.slot_mut(before) {
            if slot.next == place {
                slot.next = next;
                return;
            }
            before = slot.next;
        }
    }

    /// A place that was never taken.
    fn another(&mut self) -> u32 {
        let is_full = self.pieces.last().is_none_or(|piece| piece.len() == PIECE);
        if is_full {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let index = self.pieces.len() - 1;
        let piece = &mut self.pieces[index];
        piece.push(Slot {
            next: NONE,
            links: [UNLINKED; 2],
            taken: None,
        });
        // Four thousand million records have no room in memory.
        (index * PIECE + piece.len() - 1) as u32
    }

    fn slot(&self, place: u32) -> Option<&Slot> {
        let place = place as usize;
        self.pieces.get(place / PIECE)?.get(place % PIECE)
    }

    fn slot_mut(&mut self, place: u32) -> Option<&mut Slot> {
        let place = place as usize;
        self.pieces.get_mut(place / PIECE)?.get_mut(place % PIECE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::once::{Epoch, Fingerprint, State};
    use crate::schema::Recovery;
    use crate::wire::RequestKey;
    use proptest::prelude::*;

    fn key(number: u8) -> Key {
        let named = |number: u8| {
            let id = RequestKey::new(vec![number]).expect("short");
            Key::named("test", &id.into())
        };
        // Every third has the hash of the first ones.
        named(number).with_hash_of(&named(number % 3))
    }

    fn record(number: u64) -> Record {
        Record {
            fingerprint: Fingerprint::of_bytes(b""),
            epoch: Epoch { owner: 0, number },
            recovery: Recovery::InDoubt,
            begun_before: false,
            state: State::InDoubt,
        }
    }

    #[derive(Clone, Debug)]
    enum Do {
        Insert(u8),
        Change(u8),
        Remove(u8),
        MoveToEnd(u8),
    }

    fn do_() -> impl Strategy<Value = Do> {
        prop_oneof![
            3 => any::<u8>().prop_map(Do::Insert),
            1 => any::<u8>().prop_map(Do::Change),
            2 => any::<u8>().prop_map(Do::Remove),
            1 => any::<u8>().prop_map(Do::MoveToEnd),
        ]
    }

    proptest! {
        #[test]
        fn records_and_lists_behave_like_a_map_and_a_vector(
            steps in prop::collection::vec(do_(), 1..600)
        ) {
            let mut records = Records::default();
            let mut list = List::default();
            let mut model: HashMap<u8, u64> = HashMap::new();
            let mut order: Vec<u8> = Vec::new();
            for (number, step) in (0..).zip(steps) {
                let (Do::Insert(name) | Do::Change(name) | Do::Remove(name) | Do::MoveToEnd(name)) = step;
                let found = records.find(&key(name));
                prop_assert_eq!(found.is_some(), model.contains_key(&name));
                match (step, found) {
                    (Do::Insert(_), None) => {
                        let place = records.insert(&key(name), record(number), 0);
                        records.push(Chain::Order, &mut list, place);
                        order.push(name);
                        model.insert(name, number);
                    }
                    (Do::Insert(_) | Do::Change(_), Some(place)) => {
                        records.get_mut(place).expect("it was found").record = record(number);
                        model.insert(name, number);
                    }
                    (Do::Remove(_), Some(place)) => {
                        records.unlink(Chain::Order, &mut list, place);
                        order.retain(|other| *other != name);
                        prop_assert!(records.remove(place).is_some());
                        model.remove(&name);
                    }
                    (Do::MoveToEnd(_), Some(place)) => {
                        records.unlink(Chain::Order, &mut list, place);
                        records.push(Chain::Order, &mut list, place);
                        order.retain(|other| *other != name);
                        order.push(name);
                    }
                    _ => {}
                }
                let listed: Vec<_> = (records.in_list(Chain::Order, &list))
                    .map(|entry| entry.record.epoch.number)
                    .collect();
                let expected: Vec<_> = order.iter().map(|name| model[name]).collect();
                prop_assert_eq!(listed, expected);
                prop_assert_eq!(list.is_empty(), model.is_empty());
                prop_assert_eq!(records.len(), model.len());
            }
        }
    }
}
