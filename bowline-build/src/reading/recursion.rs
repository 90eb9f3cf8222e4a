//! Who contains whom: a struct that can contain itself needs a box on the way.

use std::collections::{HashMap, HashSet};

use capnp::schema_capnp::{brand, field, node, type_};

use super::Reading;
use crate::Error;

impl<'a> Reading<'a> {
    /// Finds for each struct all that it can contain.
    pub(super) fn find_reaches(&mut self) -> Result<(), Error> {
        let mut direct: HashMap<u64, HashSet<u64>> = HashMap::new();
        for (&id, node) in &self.context.node_map {
            if let node::Struct(struct_) = node.which()? {
                let contained = direct.entry(id).or_default();
                for field in struct_.get_fields()? {
                    match field.which()? {
                        field::Group(group) => {
                            contained.insert(group.get_type_id());
                        }
                        field::Slot(slot) => contains(slot.get_type()?, contained)?,
                    }
                }
            }
        }
        for &start in direct.keys() {
            let mut seen = HashSet::new();
            let mut open: Vec<u64> = direct[&start].iter().copied().collect();
            while let Some(id) = open.pop() {
                if seen.insert(id) {
                    open.extend(direct.get(&id).into_iter().flatten());
                }
            }
            self.reaches.insert(start, seen);
        }
        Ok(())
    }
}

/// The structs that a value of this type holds by itself: not those of lists, which are on the heap.
fn contains(type_: type_::Reader<'_>, into: &mut HashSet<u64>) -> Result<(), Error> {
    if let type_::Struct(struct_) = type_.which()? {
        into.insert(struct_.get_type_id());
        for scope in struct_.get_brand()?.get_scopes()? {
            if let brand::scope::Bind(bindings) = scope.which()? {
                for binding in bindings? {
                    if let brand::binding::Type(argument) = binding.which()? {
                        contains(argument?, into)?;
                    }
                }
            }
        }
    }
    Ok(())
}
