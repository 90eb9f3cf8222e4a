//! How the records of a shard lie in memory: side by side, where the next one takes the place of the last one that
//! was forgotten. No rules are in here, nor time.
//!
//! A record that comes as an old one goes writes into memory that was just read, and allocates nothing.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use crate::once::key::Brought;
use crate::once::{Key, Record};

/// Records are in pieces of so many, so that none moves when more come.
const PIECE: usize = 64;
const NONE: u32 = u32::MAX;

#[derive(Debug, Default)]
pub struct Records {
    /// The first record of all those whose keys have this hash: nearly always the only one.
    first: HashMap<u64, u32, BuildHasherDefault<Brought>>,
    pieces: Vec<Vec<Place>>,
    free: Vec<u32>,
}

/// Leads to a record, and to no later one in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    place: u32,
    turn: u32,
}

#[derive(Debug)]
struct Place {
    /// How many records were here before.
    turn: u32,
    /// The place of the next record whose key has the same hash.
    next: u32,
    taken: Option<(Key, Record)>,
}

impl Records {
    pub fn find(&self, key: &Key) -> Option<Ticket> {
        let mut at = self.first.get(&key.hash()).copied();
        while let Some(place) = at {
            let found = self.place(place)?;
            if found.taken.as_ref().is_some_and(|(own, _)| own == key) {
                let turn = found.turn;
                return Some(Ticket { place, turn });
            }
            at = Some(found.next).filter(|next| *next != NONE);
        }
        None
    }

    pub fn get(&self, ticket: Ticket) -> Option<&Record> {
        let place = self.place(ticket.place)?;
        let taken = place.taken.as_ref().filter(|_| place.turn == ticket.turn);
        taken.map(|(_, record)| record)
    }

    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Record> {
        let place = self.place_mut(ticket.place)?;
        let is_its = place.turn == ticket.turn;
        let taken = place.taken.as_mut().filter(|_| is_its);
        taken.map(|(_, record)| record)
    }

    /// Of a key that is not there.
    pub fn insert(&mut self, key: &Key, record: Record) -> Ticket {
        let place = self.free.pop().unwrap_or_else(|| self.another());
        let next = self.first.insert(key.hash(), place).unwrap_or(NONE);
        let mut turn = 0;
        if let Some(it) = self.place_mut(place) {
            turn = it.turn;
            it.next = next;
            it.taken = Some((key.clone(), record));
        }
        Ticket { place, turn }
    }

    /// Returns the bytes of the reply that it had, if it was there.
    pub fn remove(&mut self, ticket: Ticket) -> Option<usize> {
        self.get(ticket)?;
        let it = self.place_mut(ticket.place)?;
        let next = it.next;
        it.turn = it.turn.wrapping_add(1);
        let (key, record) = it.taken.take()?;
        let bytes = record.bytes();
        self.unlink(key.hash(), ticket.place, next);
        self.free.push(ticket.place);
        Some(bytes)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Record)> {
        let places = self.pieces.iter().flatten();
        let taken = places.filter_map(|place| place.taken.as_ref());
        taken.map(|(key, record)| (key, record))
    }

    /// Takes a place out of those of its hash.
    fn unlink(&mut self, hash: u64, place: u32, next: u32) {
        let mut before = match self.first.get_mut(&hash) {
            Some(first) if *first != place => *first,
            Some(first) if next != NONE => return *first = next,
            _ => {
                self.first.remove(&hash);
                return;
            }
        };
        while let Some(it) = self.place_mut(before) {
            if it.next == place {
                it.next = next;
                return;
            }
            before = it.next;
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
        piece.push(Place {
            turn: 0,
            next: NONE,
            taken: None,
        });
        // Four thousand million records have no room in memory.
        (index * PIECE + piece.len() - 1) as u32
    }

    fn place(&self, place: u32) -> Option<&Place> {
        let place = place as usize;
        self.pieces.get(place / PIECE)?.get(place % PIECE)
    }

    fn place_mut(&mut self, place: u32) -> Option<&mut Place> {
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
            state: State::InDoubt,
        }
    }

    #[derive(Clone, Debug)]
    enum Do {
        Insert(u8),
        Change(u8),
        Remove(u8),
    }

    fn do_() -> impl Strategy<Value = Do> {
        prop_oneof![
            3 => any::<u8>().prop_map(Do::Insert),
            1 => any::<u8>().prop_map(Do::Change),
            2 => any::<u8>().prop_map(Do::Remove),
        ]
    }

    proptest! {
        #[test]
        fn records_are_where_a_map_has_them_also_where_hashes_are_the_same(
            steps in prop::collection::vec(do_(), 1..600)
        ) {
            let mut records = Records::default();
            let mut model: HashMap<u8, (u64, Ticket)> = HashMap::new();
            let mut gone = Vec::new();
            for (number, step) in (0..).zip(steps) {
                match step {
                    Do::Insert(name) if !model.contains_key(&name) => {
                        let ticket = records.insert(&key(name), record(number));
                        model.insert(name, (number, ticket));
                    }
                    Do::Insert(name) | Do::Change(name) => {
                        let found = records.find(&key(name));
                        prop_assert_eq!(found, model.get(&name).map(|(_, ticket)| *ticket));
                        if let Some(ticket) = found {
                            *records.get_mut(ticket).expect("it was found") = record(number);
                            model.insert(name, (number, ticket));
                        }
                    }
                    Do::Remove(name) => {
                        let found = records.find(&key(name));
                        prop_assert_eq!(found, model.remove(&name).map(|(_, ticket)| ticket));
                        if let Some(ticket) = found {
                            prop_assert_eq!(records.remove(ticket), Some(0));
                            gone.push(ticket);
                        }
                    }
                }
                for (name, (number, ticket)) in &model {
                    prop_assert_eq!(records.find(&key(*name)), Some(*ticket));
                    prop_assert_eq!(records.get(*ticket), Some(&record(*number)));
                }
                for ticket in &gone {
                    prop_assert_eq!(records.get(*ticket), None);
                }
                prop_assert_eq!(records.iter().count(), model.len());
            }
        }
    }
}
