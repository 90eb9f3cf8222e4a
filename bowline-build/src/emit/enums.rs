//! Enums, and what a newer peer's schema has beyond them.

use super::{CAPNP, DERIVES, MESSAGE, SERDE, docs};
use crate::model::Enum;
use crate::names::pascal as variant;

pub(super) fn enum_(code: &mut String, enum_: &Enum) {
    let Enum { name, capnp, .. } = enum_;
    let (mut variants, mut from, mut to) = (String::new(), String::new(), String::new());
    for (schema_name, variant_docs) in &enum_.enumerants {
        let variant = variant(schema_name);
        variants += &docs(variant_docs);
        variants += &format!("#[serde(rename = {schema_name:?})] {variant},\n");
        from += &format!("Ok({capnp}::{variant}) => Self::{variant},\n");
        to += &format!("Self::{variant} => Ok({capnp}::{variant}),\n");
    }
    let first = enum_
        .enumerants
        .first()
        .map_or("Unknown(0)".into(), |(n, _)| variant(n));
    *code += &docs(&enum_.docs);
    *code += &format!(
        "#[derive(Debug, Copy, Eq, Hash, {DERIVES})]\n{SERDE}\npub enum {name} {{\n{variants}\
         /// An enumerant that this program's schema does not have.\nUnknown(u16),\n}}\n\
         impl {name} {{\n\
         /// From what a reader gives.\n\
         pub fn from_capnp(from: ::core::result::Result<{capnp}, {CAPNP}::NotInSchema>) -> Self {{ match from {{\n\
         {from}Err({CAPNP}::NotInSchema(number)) => Self::Unknown(number),\n}} }}\n\
         /// To what a builder takes.\n///\n/// # Errors\n/// For `Unknown`, which no builder takes.\n\
         pub fn to_capnp(self) -> {CAPNP}::Result<{capnp}> {{ match self {{\n\
         {to}Self::Unknown(number) => Err({MESSAGE}::not_in_schema({name:?}, number)),\n}} }}\n}}\n\
         impl ::core::default::Default for {name} {{ fn default() -> Self {{ Self::{first} }} }}\n\
         impl {MESSAGE}::PlainElement for {name} {{\n\
         type List = {CAPNP}::enum_list::Owned<{capnp}>;\n\
         fn read_list(from: {CAPNP}::enum_list::Reader<'_, {capnp}>) -> {CAPNP}::Result<::std::vec::Vec<Self>> {{\n\
         Ok(from.iter().map(Self::from_capnp).collect())\n}}\n\
         fn write_list(values: &[Self], mut to: {CAPNP}::enum_list::Builder<'_, {capnp}>) -> {CAPNP}::Result<()> {{\n\
         for (i, value) in (0u32..).zip(values) {{ to.set(i, value.to_capnp()?); }}\nOk(())\n}}\n}}\n"
    );
}
