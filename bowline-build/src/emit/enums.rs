//! Enums, and what a newer peer's schema has beyond them.

use super::{CAPNP, DERIVES, MESSAGE, SERDE, docs};
use crate::model::Enum;

pub(super) fn enum_(code: &mut String, enum_: &Enum) {
    let Enum { name, capnp, .. } = enum_;
    let (mut variants, mut from, mut to) = (String::new(), String::new(), String::new());
    for (number, enumerant) in enum_.enumerants.iter().enumerate() {
        let (variant, capnp_variant) = (&enumerant.variant, &enumerant.capnp_variant);
        variants += &docs(&enumerant.docs);
        variants += &format!("#[serde(rename = {:?})] {variant},\n", enumerant.name);
        from += &format!("Ok({capnp}::{capnp_variant}) => Self::{variant},\n");
        // The number of one that is known is not another one.
        to += &format!(
            "Self::{variant} | Self::Unknown({number}) => Ok({capnp}::{capnp_variant}),\n"
        );
    }
    let first = match enum_.enumerants.first() {
        Some(first) => first.variant.clone(),
        None => {
            // The one that capnpc has, since an enum with numbers cannot be empty in Rust.
            from += "Ok(_) => Self::Unknown(0),\n";
            "Unknown(0)".into()
        }
    };
    *code += &docs(&enum_.docs);
    *code += &format!(
        "#[derive(Debug, Copy, Eq, Hash, {DERIVES})]\n{SERDE}\npub enum {name} {{\n{variants}\
         /// An enumerant that this program's schema does not have.\nUnknown(u16),\n}}\n\
         impl {name} {{\n\
         /// From what a reader gives.\n\
         pub fn from_capnp(from: ::core::result::Result<{capnp}, {CAPNP}::NotInSchema>) -> Self {{ match from {{\n\
         {from}Err({CAPNP}::NotInSchema(number)) => Self::Unknown(number),\n}} }}\n\
         /// To what a builder takes.\n///\n/// # Errors\n\
         /// For `Unknown`, which no builder takes by its type; a plain struct that has it is written all the same.\n\
         pub fn to_capnp(self) -> {CAPNP}::Result<{capnp}> {{ match self {{\n\
         {to}Self::Unknown(number) => Err({MESSAGE}::not_in_schema({name:?}, number)),\n}} }}\n\
         /// Returns the number of the enumerant, as it is sent.\n\
         pub fn number(self) -> u16 {{ match self {{\n\
         {numbers}Self::Unknown(number) => number,\n}} }}\n}}\n\
         impl ::core::default::Default for {name} {{ fn default() -> Self {{ Self::{first} }} }}\n\
         impl {MESSAGE}::PlainElement for {name} {{\n\
         type List = {CAPNP}::enum_list::Owned<{capnp}>;\n\
         const NESTING: u16 = 0;\n\
         fn read_list(from: {CAPNP}::enum_list::Reader<'_, {capnp}>) -> {CAPNP}::Result<::std::vec::Vec<Self>> {{\n\
         Ok(from.iter().map(Self::from_capnp).collect())\n}}\n\
         fn write_list(values: &[Self], mut to: {CAPNP}::enum_list::Builder<'_, {capnp}>) -> {CAPNP}::Result<()> {{\n\
         for (i, value) in (0u32..).zip(values) {{ to.set(i, value.to_capnp()?); }}\nOk(())\n}}\n\
         fn list_of_numbers(values: &[Self]) -> ::core::option::Option<{MESSAGE}::Numbers> {{\n\
         {MESSAGE}::numbers_unless(values, |value| value.to_capnp().is_ok(), |value| value.number())\n}}\n}}\n\
         impl {MESSAGE}::JsonValue for {name} {{ {JSON} }}\n",
        numbers = enum_
            .enumerants
            .iter()
            .enumerate()
            .map(|(number, enumerant)| format!("Self::{} => {number},\n", enumerant.variant))
            .collect::<String>(),
    );
}

/// Of what has serde's traits: as these do it.
pub(super) const JSON: &str = "fn to_json<S: $crate::__private::serde::Serializer>(&self, to: S) -> ::core::result::Result<S::Ok, S::Error> {\n\
     $crate::__private::serde::Serialize::serialize(self, to)\n}\n\
     fn from_json<'de, D: $crate::__private::serde::Deserializer<'de>>(from: D) -> ::core::result::Result<Self, D::Error> {\n\
     $crate::__private::serde::Deserialize::deserialize(from)\n}";
