//! Reading enums and constants.

use capnp::schema_capnp::node;

use super::Reading;
use super::names::constant_name;
use crate::Error;
use crate::model::{Constant, Enum};
use crate::names::{Scope, module, variant};

impl<'a> Reading<'a> {
    pub(super) fn enum_(
        &self,
        id: u64,
        name: &str,
        reader: node::enum_::Reader<'a>,
    ) -> Result<Enum, Error> {
        let place = self.place(id);
        let mut enumerants = Vec::new();
        let mut scope = Scope::default();
        scope.reserve("Unknown", "the variant for what the schema does not have");
        for (index, enumerant) in reader.get_enumerants()?.iter().enumerate() {
            let name = enumerant.get_name()?.to_str()?.to_owned();
            let place = format!("{place}.{name}");
            scope.take(variant(&name, &place)?, format!("`{name}`"), &place)?;
            enumerants.push((name, self.docs_of_member(id, index)));
        }
        Ok(Enum {
            name: name.to_owned(),
            capnp: self.capnp_path(id)?,
            docs: self.docs_of(id),
            enumerants,
        })
    }

    pub(super) fn constant(&self, id: u64) -> Result<Constant, Error> {
        let scope = self.node(id)?.get_scope_id();
        let place = self.place(id);
        let schema_name = place.rsplit(['.', ':']).next().unwrap_or_default();
        let outer = match self.rust.get(&scope) {
            Some((_, outer)) => outer.as_str(),
            None => "",
        };
        Ok(Constant {
            // Of a keyword, capnpc appends an underscore before it makes it loud.
            capnp: format!(
                "{}::{}",
                self.capnp_path(scope)?,
                module(schema_name).to_ascii_uppercase()
            ),
            name: constant_name(outer, schema_name),
            docs: self.docs_of(id),
        })
    }
}
