//! Plain Rust structs, into and out of builders and readers.

mod conversion;
mod declaration;
mod description;

use super::MESSAGE;
use crate::model::{Field, FieldKind, Struct, Type};

pub(super) fn struct_(code: &mut String, struct_: &Struct) {
    let emit = Emit::new(struct_);
    emit.declaration(code);
    emit.debug(code);
    emit.conversion(code);
    emit.json(code);
    if !struct_.is_group {
        emit.description(code);
    }
}

/// One struct on its way out.
struct Emit<'a> {
    of: &'a Struct,
    /// `<T: Plain>`
    declared: String,
    /// `<T>`
    used: String,
    /// `T::Capnp`
    capnp_arguments: String,
    /// The name of the enum of its union.
    which: String,
    /// The parameters that this enum has: all, where it is the whole struct.
    which_parameters: Vec<String>,
}

impl<'a> Emit<'a> {
    fn new(of: &'a Struct) -> Self {
        let parameters = &of.parameters;
        let list = |format: &dyn Fn(&String) -> String| -> String {
            parameters.iter().map(format).collect::<Vec<_>>().join(", ")
        };
        let which_parameters = match of.is_union() {
            true => parameters.clone(),
            false => {
                let in_variants =
                    |parameter: &&String| of.variants.iter().any(|v| has(v, parameter));
                parameters.iter().filter(in_variants).cloned().collect()
            }
        };
        Self {
            declared: in_brackets(list(&|p| format!("{p}: {MESSAGE}::Plain"))),
            used: in_brackets(list(&|p| p.clone())),
            capnp_arguments: list(&|p| format!("<{p} as {MESSAGE}::Plain>::Capnp")),
            which: match of.is_union() {
                true => of.name.clone(),
                false => format!("{}Which", of.name),
            },
            which_parameters,
            of,
        }
    }

    fn which_used(&self) -> String {
        in_brackets(self.which_parameters.join(", "))
    }

    fn which_declared(&self) -> String {
        let declared = |p: &String| format!("{p}: {MESSAGE}::Plain");
        let declared: Vec<String> = self.which_parameters.iter().map(declared).collect();
        in_brackets(declared.join(", "))
    }

    /// Parameters that no field has, or only one that can contain this struct again: Rust wants to see them used.
    fn unused_parameters(&self) -> impl Iterator<Item = &String> {
        let members = || self.of.fields.iter().chain(&self.of.variants);
        self.of
            .parameters
            .iter()
            .filter(move |parameter| !members().any(|f| !is_unbounded(f) && has(f, parameter)))
    }

    /// Whether the enum has a variant that no value has, for a parameter that nothing else mentions.
    fn has_phantom_variant(&self) -> bool {
        self.of.is_union() && self.unused_parameters().next().is_some()
    }
}

fn in_brackets(inner: String) -> String {
    match inner.is_empty() {
        true => inner,
        false => format!("<{inner}>"),
    }
}

fn has(field: &Field, parameter: &str) -> bool {
    match &field.kind {
        // The struct of a group has all of them.
        FieldKind::Group { .. } => true,
        FieldKind::Slot { type_, .. } => mentions(type_, parameter),
    }
}

fn is_unbounded(field: &Field) -> bool {
    matches!(
        field.kind,
        FieldKind::Slot {
            is_unbounded: true,
            ..
        }
    )
}

fn mentions(type_: &Type, parameter: &str) -> bool {
    match type_ {
        Type::Parameter(name) => name == parameter,
        Type::List(element) => mentions(element, parameter),
        Type::Struct { arguments, .. } => arguments.iter().any(|a| mentions(a, parameter)),
        _ => false,
    }
}

fn is_void(field: &Field) -> bool {
    matches!(
        field.kind,
        FieldKind::Slot {
            type_: Type::Void,
            ..
        }
    )
}

/// The field that stands for a parameter which no other has.
fn phantom(parameter: &str) -> String {
    format!("_{}", parameter.to_lowercase())
}
