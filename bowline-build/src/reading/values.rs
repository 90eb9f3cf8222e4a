//! Reading enums, constants and the defaults of fields.

use capnp::schema_capnp::{field, node, type_, value};

use super::Reading;
use super::names::constant_name;
use crate::Error;
use crate::annotations::Annotations;
use crate::model::{Constant, Default, Enum, Enumerant};
use crate::names::{Scope, pascal, variant};

impl<'a> Reading<'a> {
    pub(super) fn enum_(
        &self,
        id: u64,
        name: &str,
        reader: node::enum_::Reader<'a>,
    ) -> Result<Enum, Error> {
        let place = self.place(id);
        Annotations::new(&place, self.node(id)?.get_annotations()?).check_each_once()?;
        let mut enumerants = Vec::new();
        let mut scope = Scope::default();
        scope.reserve("Unknown", "the variant for what the schema does not have");
        let capnp_names = &self.names.members[&id];
        for (index, enumerant) in reader.get_enumerants()?.iter().enumerate() {
            let name = enumerant.get_name()?.to_str()?.to_owned();
            let place = format!("{place}.{name}");
            let annotations = enumerant.get_annotations()?;
            Annotations::new(&place, annotations).check_each_once()?;
            let variant = variant(&self.base_name(&name, annotations, &place)?);
            scope.take(variant.clone(), format!("`{name}`"), &place)?;
            enumerants.push(Enumerant {
                name,
                variant,
                capnp_variant: pascal(&capnp_names[index]),
                docs: self.docs_of_member(id, index),
            });
        }
        Ok(Enum {
            name: name.to_owned(),
            capnp: self.capnp_path(id)?,
            docs: self.docs_of(id),
            enumerants,
        })
    }

    pub(super) fn constant(&self, id: u64) -> Result<Constant, Error> {
        let node = self.node(id)?;
        let scope = node.get_scope_id();
        let place = self.place(id);
        let schema_name = place.rsplit(['.', ':']).next().unwrap_or_default();
        let base = self.base_name(schema_name, node.get_annotations()?, &place)?;
        let outer = match self.rust.get(&scope) {
            Some((_, outer)) => outer.as_str(),
            None => "",
        };
        Ok(Constant {
            capnp: format!(
                "{}::{}",
                self.capnp_path(scope)?,
                self.names.nodes[&id].to_ascii_uppercase()
            ),
            name: constant_name(outer, &base),
            docs: self.docs_of(id),
        })
    }

    pub(super) fn default(&self, slot: field::slot::Reader<'a>) -> Result<Default, Error> {
        let number = |is_zero: bool, text: String| match is_zero {
            true => Default::OfType,
            false => Default::Number(text),
        };
        Ok(match slot.get_default_value()?.which()? {
            value::Bool(value) => number(!value, value.to_string()),
            value::Int8(value) => number(value == 0, value.to_string()),
            value::Int16(value) => number(value == 0, value.to_string()),
            value::Int32(value) => number(value == 0, value.to_string()),
            value::Int64(value) => number(value == 0, value.to_string()),
            value::Uint8(value) => number(value == 0, value.to_string()),
            value::Uint16(value) => number(value == 0, value.to_string()),
            value::Uint32(value) => number(value == 0, value.to_string()),
            value::Uint64(value) => number(value == 0, value.to_string()),
            value::Enum(value) => number(value == 0, value.to_string()),
            // capnpc takes -0.0 for 0.0.
            value::Float32(value) => number(value == 0.0, value.to_bits().to_string()),
            value::Float64(value) => number(value == 0.0, value.to_bits().to_string()),
            _ if !slot.get_had_explicit_default() => Default::OfType,
            value::Text(text) => Default::Text(text?.to_str()?.to_owned()),
            value::Data(data) => Default::Data(data?.to_owned()),
            value::Void(()) => Default::OfType,
            _ => match slot.get_type()?.which()? {
                type_::Struct(_) | type_::List(_) => Default::Other,
                _ => Default::OfType,
            },
        })
    }
}
