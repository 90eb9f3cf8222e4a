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
}

impl<'a> Emit<'a> {
    fn new(of: &'a Struct) -> Self {
        let parameters = &of.parameters;
        let list = |format: &dyn Fn(&String) -> String| -> String {
            parameters.iter().map(format).collect::<Vec<_>>().join(", ")
        };
        let in_brackets = |inner: String| match inner.is_empty() {
            true => inner,
            false => format!("<{inner}>"),
        };
        Self {
            declared: in_brackets(list(&|p| format!("{p}: {MESSAGE}::Plain"))),
            used: in_brackets(list(&|p| p.clone())),
            capnp_arguments: list(&|p| format!("<{p} as {MESSAGE}::Plain>::Capnp")),
            which: match of.is_union() {
                true => of.name.clone(),
                false => format!("{}Which", of.name),
            },
            of,
        }
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
