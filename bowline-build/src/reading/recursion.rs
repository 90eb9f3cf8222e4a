//! Which structs contain which: a struct that can contain itself needs a box on the way.

use std::collections::{HashMap, HashSet};

use capnp::schema_capnp::{field, node, type_};

use super::Reading;
use super::generics::arguments;
use crate::Error;

impl<'a> Reading<'a> {
    /// Finds for each struct all that it can contain.
    pub(super) fn find_reaches(&mut self) -> Result<(), Error> {
        let mut by_value: HashMap<u64, HashSet<u64>> = HashMap::new();
        let mut at_all: HashMap<u64, HashSet<u64>> = HashMap::new();
        for (&id, node) in &self.context.node_map {
            let node::Struct(struct_) = node.which()? else {
                continue;
            };
            let (by_value, at_all) = (
                by_value.entry(id).or_default(),
                at_all.entry(id).or_default(),
            );
            for field in struct_.get_fields()? {
                match field.which()? {
                    field::Group(group) => {
                        by_value.insert(group.get_type_id());
                        at_all.insert(group.get_type_id());
                    }
                    field::Slot(slot) => {
                        contained(slot.get_type()?, false, by_value)?;
                        contained(slot.get_type()?, true, at_all)?;
                    }
                }
            }
        }
        self.reaches = closure(&by_value);
        self.mentions = closure(&at_all);
        Ok(())
    }

    /// Whether a value of this type can contain the struct: by value, or in lists too.
    pub(super) fn leads_to(
        &self,
        type_: type_::Reader<'a>,
        id: u64,
        in_lists: bool,
    ) -> Result<bool, Error> {
        let mut direct = HashSet::new();
        contained(type_, in_lists, &mut direct)?;
        let all = if in_lists {
            &self.mentions
        } else {
            &self.reaches
        };
        Ok(direct.iter().any(|inner| {
            *inner == id || all.get(inner).is_some_and(|reached| reached.contains(&id))
        }))
    }
}

fn closure(direct: &HashMap<u64, HashSet<u64>>) -> HashMap<u64, HashSet<u64>> {
    let reached_from = |start: &HashSet<u64>| {
        let mut seen = HashSet::new();
        let mut open: Vec<u64> = start.iter().copied().collect();
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                open.extend(direct.get(&id).into_iter().flatten());
            }
        }
        seen
    };
    direct
        .iter()
        .map(|(id, start)| (*id, reached_from(start)))
        .collect()
}

/// The structs that a value of this type holds: those of lists are on the heap, and not held by value.
fn contained(
    type_: type_::Reader<'_>,
    in_lists: bool,
    into: &mut HashSet<u64>,
) -> Result<(), Error> {
    match type_.which()? {
        type_::List(list) if in_lists => contained(list.get_element_type()?, in_lists, into)?,
        type_::Struct(struct_) => {
            into.insert(struct_.get_type_id());
            for argument in arguments(struct_.get_brand()?)? {
                contained(argument, in_lists, into)?;
            }
        }
        _ => {}
    }
    Ok(())
}
