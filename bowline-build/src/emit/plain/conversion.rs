//! From a reader to a plain struct, and from a plain struct into a builder.

use std::fmt::Write;

use super::{Emit, is_void};
use crate::emit::{CAPNP, MESSAGE};
use crate::model::{Field, FieldKind, Type};
use crate::names::{identifier, pascal as variant};

impl Emit<'_> {
    pub(super) fn conversion(&self, code: &mut String) {
        let Self {
            of,
            declared,
            used,
            capnp_arguments,
            which,
        } = self;
        let capnp = &of.capnp;
        let arguments = match capnp_arguments.is_empty() {
            true => String::new(),
            false => format!(", {capnp_arguments}"),
        };
        let (reader, builder) = (
            format!("{capnp}::Reader<'_{arguments}>"),
            format!("{capnp}::Builder<'_{arguments}>"),
        );
        let (read, write) = (self.read_body(which), self.write_body(which));
        let name = &of.name;
        if of.is_group {
            *code += &format!(
                "impl{declared} {name}{used} {{\n\
                 #[doc(hidden)]\npub fn read_group(from: {reader}) -> {CAPNP}::Result<Self> {{\n{read}}}\n\
                 #[doc(hidden)]\npub fn write_group(&self, mut to: {builder}) -> {CAPNP}::Result<()> {{\n{write}Ok(())\n}}\n}}\n\
                 impl{declared} ::core::default::Default for {name}{used} {{ fn default() -> Self {{ \
                 {MESSAGE}::default_group(|from| Self::read_group(from.into())) }} }}\n"
            );
            return;
        }
        let owned = match capnp_arguments.is_empty() {
            true => format!("{capnp}::Owned"),
            false => format!("{capnp}::Owned<{capnp_arguments}>"),
        };
        *code += &format!(
            "impl{declared} {MESSAGE}::Plain for {name}{used} {{\n\
             type Capnp = {owned};\n\
             fn read(from: {reader}) -> {CAPNP}::Result<Self> {{\n{read}}}\n\
             fn write(&self, mut to: {builder}) -> {CAPNP}::Result<()> {{\n{write}Ok(())\n}}\n}}\n\
             impl{declared} ::core::default::Default for {name}{used} {{ fn default() -> Self {{ {MESSAGE}::default_struct() }} }}\n\
             impl{declared} {MESSAGE}::PlainElement for {name}{used} {{\n\
             type List = {CAPNP}::struct_list::Owned<{owned}>;\n\
             fn read_list(from: {CAPNP}::struct_list::Reader<'_, {owned}>) -> {CAPNP}::Result<::std::vec::Vec<Self>> {{\n\
             let mut values = {MESSAGE}::reserved(from.len());\n\
             for i in 0..from.len() {{ values.push({MESSAGE}::Plain::read(from.get(i))?); }}\nOk(values)\n}}\n\
             fn write_list(values: &[Self], mut to: {CAPNP}::struct_list::Builder<'_, {owned}>) -> {CAPNP}::Result<()> {{\n\
             for (i, value) in (0u32..).zip(values) {{ {MESSAGE}::Plain::write(value, to.reborrow().get(i))?; }}\nOk(())\n}}\n}}\n"
        );
    }

    fn read_body(&self, which: &str) -> String {
        let of = self.of;
        let mut union = String::new();
        if !of.variants.is_empty() {
            union += "match from.which() {\n";
            for field in &of.variants {
                let variant = variant(&field.name);
                union += &match is_void(field) {
                    true => format!(
                        "Ok({}::Which::{variant}(())) => {which}::{variant},\n",
                        of.capnp
                    ),
                    false => format!(
                        "Ok({}::Which::{variant}(value)) => {which}::{variant}({}),\n",
                        of.capnp,
                        read(field, "value")
                    ),
                };
            }
            union += &format!("Err({CAPNP}::NotInSchema(number)) => {which}::Unknown(number),\n}}");
        }
        if of.is_union() {
            return format!("Ok({union})\n");
        }
        let mut body = String::from("Ok(Self {\n");
        for field in &of.fields {
            let value = read(field, &format!("from.get_{}()", field.accessor));
            let _ = writeln!(body, "{}: {value},", identifier(&field.accessor));
        }
        if !of.variants.is_empty() {
            let _ = writeln!(body, "which: {union},");
        }
        for parameter in self.unused_parameters() {
            let _ = writeln!(
                body,
                "_{}: ::core::marker::PhantomData,",
                parameter.to_lowercase()
            );
        }
        body + "})\n"
    }

    fn write_body(&self, which: &str) -> String {
        let of = self.of;
        let mut body = String::new();
        for field in &of.fields {
            if !is_void(field) {
                body += &write(
                    field,
                    &format!("self.{}", identifier(&field.accessor)),
                    false,
                );
            }
        }
        if of.variants.is_empty() {
            return body;
        }
        let union = if of.is_union() { "self" } else { "&self.which" };
        let _ = writeln!(body, "match {union} {{");
        for field in &of.variants {
            let variant = variant(&field.name);
            body += &match is_void(field) {
                true => format!("{which}::{variant} => to.set_{}(()),\n", field.accessor),
                false => format!(
                    "{which}::{variant}(value) => {{ {} }}\n",
                    write(field, "(*value)", true)
                ),
            };
        }
        let _ = writeln!(
            body,
            "{which}::Unknown(number) => return Err({MESSAGE}::not_in_schema({:?}, *number)),\n}}",
            of.name
        );
        body
    }
}

/// The plain value of what a reader gives.
fn read(field: &Field, got: &str) -> String {
    match &field.kind {
        FieldKind::Group { rust } => format!("{rust}::read_group({got})?"),
        FieldKind::Slot {
            type_: Type::Void, ..
        } => "()".into(),
        FieldKind::Slot {
            type_: Type::Primitive(_),
            ..
        } => got.into(),
        FieldKind::Slot {
            type_: Type::Enum(path),
            ..
        } => format!("{path}::from_capnp({got})"),
        FieldKind::Slot {
            is_recursive: true, ..
        } => format!(
            "if from.has_{}() {{ Some(::std::boxed::Box::new({MESSAGE}::Plain::read({got}?)?)) }} else {{ None }}",
            field.accessor
        ),
        FieldKind::Slot { .. } => format!("{MESSAGE}::Plain::read({got}?)?"),
    }
}

/// Writes `value`, a place, with the builder `to`.
fn write(field: &Field, value: &str, in_union: bool) -> String {
    let name = &field.accessor;
    match &field.kind {
        FieldKind::Group { .. } => format!("{value}.write_group(to.reborrow().init_{name}())?;\n"),
        FieldKind::Slot {
            type_,
            is_recursive,
            has_default,
        } => match type_ {
            Type::Void => String::new(),
            Type::Primitive(_) => format!("to.set_{name}({value});\n"),
            Type::Enum(_) => format!("to.set_{name}({value}.to_capnp()?);\n"),
            Type::Struct { .. } if *is_recursive => {
                // A member of a union must be set even where it has no value.
                let none = match in_union {
                    true => format!("to.reborrow().init_{name}();"),
                    false => String::new(),
                };
                format!(
                    "match &{value} {{ Some(value) => {MESSAGE}::Plain::write(&**value, to.reborrow().init_{name}())?, \
                     None => {{ {none} }} }}\n"
                )
            }
            Type::Struct { arguments, .. } => {
                let write =
                    format!("{MESSAGE}::Plain::write(&{value}, to.reborrow().init_{name}())?;");
                // As below; and so a field that is new and unset leaves a request's fingerprint as it was.
                match in_union || *has_default || !arguments.is_empty() {
                    true => write + "\n",
                    false => {
                        format!("if {value} != ::core::default::Default::default() {{ {write} }}\n")
                    }
                }
            }
            Type::Parameter(_) => format!(
                "{MESSAGE}::Plain::write(&{value}, to.reborrow().initn_{name}({MESSAGE}::Plain::init_len(&{value})))?;\n"
            ),
            Type::Text | Type::Data | Type::List(_) => {
                let write = format!(
                    "{MESSAGE}::Plain::write(&{value}, to.reborrow().init_{name}({MESSAGE}::Plain::init_len(&{value})))?;"
                );
                // What is empty reads the same from a null pointer, unless the schema says otherwise.
                match in_union || *has_default {
                    true => write + "\n",
                    false => format!("if !{value}.is_empty() {{ {write} }}\n"),
                }
            }
        },
    }
}
