//! How much of a store each principal has, or each address without keys, and which has most. No records are in here.
//!
//! Principals are in classes, each of which is twice as large as the one before: the largest is found in constant
//! time, to within a factor of two. So whoever has less than half of an equal share loses nothing to the others.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::records::List;
use crate::once::Timestamp;
use crate::once::key::Brought;

/// The shares of all principals and addresses that have records.
#[derive(Debug)]
pub struct Shares {
    by_holder: HashMap<u64, u32, BuildHasherDefault<Brought>>,
    all: Vec<Share>,
    free: Vec<u32>,
    /// Those with outcomes that may be forgotten, by the logarithm of their cost.
    classes: [Vec<u32>; CLASSES],
    /// What those have forgotten that have no records any more.
    forgotten: Timestamp,
    /// What all callers without keys have forgotten: one of them may ask again from another address.
    forgotten_anonymous: Timestamp,
}

const CLASSES: usize = u64::BITS as usize + 1;

/// What one principal or address has.
#[derive(Debug)]
pub struct Share {
    holder: u64,
    records: u64,
    cost: u64,
    /// Outcomes that may be forgotten, the oldest first.
    pub ended: List,
    /// Keys that were made up to then may have been forgotten.
    forgotten: Timestamp,
    /// Where it is in its class.
    listed: Option<(u8, u32)>,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            by_holder: HashMap::default(),
            all: Vec::new(),
            free: Vec::new(),
            classes: std::array::from_fn(|_| Vec::new()),
            forgotten: Timestamp::EPOCH,
            forgotten_anonymous: Timestamp::EPOCH,
        }
    }
}

impl Shares {
    /// Keys of this principal that were made up to then may have been forgotten.
    pub fn forgotten(&self, holder: u64, is_anonymous: bool) -> Timestamp {
        if is_anonymous {
            return self.forgotten_anonymous;
        }
        let own = self.by_holder.get(&holder);
        own.map_or(self.forgotten, |own| {
            self.forgotten.max(self.all[*own as usize].forgotten)
        })
    }

    /// Notes that a key was forgotten.
    pub fn forget(&mut self, share: u32, is_anonymous: bool, until: Timestamp) {
        let own = match is_anonymous {
            true => &mut self.forgotten_anonymous,
            false => &mut self.all[share as usize].forgotten,
        };
        *own = until.max(*own);
    }

    /// One record more of this principal or address. Returns its share.
    pub fn enter(&mut self, holder: u64, cost: u64) -> u32 {
        let share = match self.by_holder.get(&holder) {
            Some(share) => *share,
            None => self.add(holder),
        };
        self.all[share as usize].records += 1;
        self.change_cost(share, 0, cost);
        share
    }

    /// One record less, which is in no list any more.
    pub fn leave(&mut self, share: u32, cost: u64) {
        self.change_cost(share, cost, 0);
        let own = &mut self.all[share as usize];
        own.records -= 1;
        if own.records == 0 {
            self.forgotten = self.forgotten.max(own.forgotten);
            let holder = own.holder;
            self.by_holder.remove(&holder);
            self.free.push(share);
        }
    }

    /// A record costs something else now.
    pub fn change_cost(&mut self, share: u32, was: u64, is: u64) {
        let own = &mut self.all[share as usize];
        own.cost = own.cost.saturating_sub(was).saturating_add(is);
        self.list(share);
    }

    /// The outcomes of a principal that may be forgotten. [`list`](Self::list) is to be called after a change.
    pub fn ended_mut(&mut self, share: u32) -> &mut List {
        &mut self.all[share as usize].ended
    }

    /// Puts a principal where it belongs by what it has.
    pub fn list(&mut self, share: u32) {
        let own = &self.all[share as usize];
        let class = (!own.ended.is_empty()).then(|| class(own.cost));
        if own.listed.map(|(class, _)| class) == class {
            return;
        }
        if let Some((old, at)) = own.listed {
            let of_class = &mut self.classes[usize::from(old)];
            of_class.swap_remove(at as usize);
            if let Some(moved) = of_class.get(at as usize).copied() {
                self.all[moved as usize].listed = Some((old, at));
            }
        }
        self.all[share as usize].listed = class.map(|class| {
            let of_class = &mut self.classes[usize::from(class)];
            of_class.push(share);
            (class, of_class.len() as u32 - 1)
        });
    }

    /// The oldest outcome of who has most, unless `asking` has more and nothing to give.
    pub fn oldest_of_largest(&self, asking: u32) -> Option<u32> {
        let of_class = self.classes.iter().rev().find(|class| !class.is_empty())?;
        let largest = &self.all[*of_class.last()? as usize];
        let asking = &self.all[asking as usize];
        match class(asking.cost) > class(largest.cost) {
            true => None,
            false => largest.ended.first(),
        }
    }

    /// How many principals have records.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_holder.len()
    }

    fn add(&mut self, holder: u64) -> u32 {
        let new = Share {
            holder,
            records: 0,
            cost: 0,
            ended: List::default(),
            forgotten: Timestamp::EPOCH,
            listed: None,
        };
        let share = match self.free.pop() {
            Some(share) => {
                self.all[share as usize] = new;
                share
            }
            None => {
                self.all.push(new);
                self.all.len() as u32 - 1
            }
        };
        self.by_holder.insert(holder, share);
        share
    }
}

fn class(cost: u64) -> u8 {
    (u64::BITS - cost.leading_zeros()) as u8
}
