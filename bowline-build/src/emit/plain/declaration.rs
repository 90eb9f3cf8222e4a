//! How a plain struct, and the enum of its union, is declared and shown.

use super::{Emit, is_void};
use crate::emit::{DERIVES, MESSAGE, SERDE, docs};
use crate::model::{Field, FieldKind, Type};
use crate::names::{identifier, pascal as variant};

impl Emit<'_> {
    pub(super) fn declaration(&self, code: &mut String) {
        let Self {
            of,
            declared,
            used,
            which,
            ..
        } = self;
        let bounds = self.bounds();
        let debug = if of.has_secrets() { "" } else { "Debug, " };
        if !of.is_union() {
            *code += &docs(&of.docs);
            *code += &format!(
                "#[derive({debug}{DERIVES})]\n{SERDE}\n#[serde(default)]\n{bounds}pub struct {}{declared} {{\n",
                of.name
            );
            for field in &of.fields {
                *code += &docs(&field.docs);
                *code += &format!(
                    "#[serde(rename = {:?})]\npub {}: {},\n",
                    field.name,
                    identifier(&field.accessor),
                    self.field_type(field)
                );
            }
            if !of.variants.is_empty() {
                *code += &format!(
                    "/// The member of the union that is set.\npub which: {which}{used},\n"
                );
            }
            for parameter in self.unused_parameters() {
                *code += &format!(
                    "#[doc(hidden)]\n#[serde(skip)]\npub _{}: ::core::marker::PhantomData<{parameter}>,\n",
                    parameter.to_lowercase()
                );
            }
            *code += "}\n";
        }
        if !of.variants.is_empty() {
            *code += &docs(if of.is_union() {
                &of.docs
            } else {
                "The members of the union; one is set."
            });
            *code += &format!(
                "#[derive({debug}{DERIVES})]\n{SERDE}\n{bounds}pub enum {which}{declared} {{\n"
            );
            for field in &of.variants {
                *code += &docs(&field.docs);
                *code += &format!(
                    "#[serde(rename = {:?})]\n{}",
                    field.name,
                    variant(&field.name)
                );
                *code += &match is_void(field) {
                    true => ",\n".to_owned(),
                    false => format!("({}),\n", self.field_type(field)),
                };
            }
            *code += "/// A member that this program's schema does not have.\nUnknown(u16),\n}\n";
            if !of.is_union() {
                // The union of the null struct.
                *code += &format!(
                    "impl{declared} ::core::default::Default for {which}{used} {{ \
                     fn default() -> Self {{ {}::default().which }} }}\n",
                    turbofish(&of.name, used)
                );
            }
        }
    }

    /// Parameters that no field has: the compiler wants to see them used.
    pub(super) fn unused_parameters(&self) -> impl Iterator<Item = &String> {
        let members = || self.of.fields.iter().chain(&self.of.variants);
        self.of.parameters.iter().filter(move |parameter| {
            !members().any(|field| match &field.kind {
                FieldKind::Group { .. } => true,
                FieldKind::Slot { type_, .. } => mentions(type_, parameter),
            })
        })
    }

    fn bounds(&self) -> String {
        if self.of.parameters.is_empty() {
            return String::new();
        }
        let bound = |what: &str| -> String {
            let bounds: Vec<_> = self
                .of
                .parameters
                .iter()
                .map(|p| format!("{p}: {what}"))
                .collect();
            bounds.join(", ")
        };
        format!(
            "#[serde(bound(serialize = {:?}, deserialize = {:?}))]\n",
            bound("::bowline::__private::serde::Serialize"),
            bound(&format!(
                "{MESSAGE}::Plain + ::bowline::__private::serde::Deserialize<'de>"
            )),
        )
    }

    fn field_type(&self, field: &Field) -> String {
        match &field.kind {
            FieldKind::Group { rust } => format!("{rust}{}", self.used),
            FieldKind::Slot {
                type_,
                is_recursive: true,
                ..
            } => {
                format!(
                    "::core::option::Option<::std::boxed::Box<{}>>",
                    type_.rust()
                )
            }
            FieldKind::Slot { type_, .. } => type_.rust(),
        }
    }

    /// By hand where a field is secret.
    pub(super) fn debug(&self, code: &mut String) {
        let Self {
            of,
            declared,
            which,
            used,
            ..
        } = self;
        if !of.has_secrets() {
            return;
        }
        const REDACTED: &str = "&::core::format_args!(\"<redacted>\")";
        let bounds = match of.parameters.is_empty() {
            true => String::new(),
            false => {
                let bounds: Vec<_> = of
                    .parameters
                    .iter()
                    .map(|p| format!("{p}: ::core::fmt::Debug"))
                    .collect();
                format!(" where {}", bounds.join(", "))
            }
        };
        let header = |name: &str| {
            format!(
                "impl{declared} ::core::fmt::Debug for {name}{used}{bounds} {{\n\
                 fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{\n"
            )
        };
        if !of.is_union() {
            *code += &header(&of.name);
            *code += &format!("f.debug_struct({:?})", of.name);
            for field in &of.fields {
                let value = match field.is_secret {
                    true => REDACTED.to_owned(),
                    false => format!("&self.{}", identifier(&field.accessor)),
                };
                *code += &format!(".field({:?}, {value})", field.accessor);
            }
            if !of.variants.is_empty() {
                *code += ".field(\"which\", &self.which)";
            }
            *code += ".finish()\n}\n}\n";
        }
        if !of.variants.is_empty() {
            *code += &header(which);
            *code += "match self {\n";
            for field in &of.variants {
                let variant = variant(&field.name);
                *code += &match (is_void(field), field.is_secret) {
                    (true, _) => format!("Self::{variant} => f.write_str({variant:?}),\n"),
                    (_, true) => format!(
                        "Self::{variant}(_) => f.debug_tuple({variant:?}).field({REDACTED}).finish(),\n"
                    ),
                    _ => format!(
                        "Self::{variant}(value) => f.debug_tuple({variant:?}).field(value).finish(),\n"
                    ),
                };
            }
            *code += "Self::Unknown(number) => f.debug_tuple(\"Unknown\").field(number).finish(),\n}\n}\n}\n";
        }
    }
}

fn turbofish(name: &str, used: &str) -> String {
    match used.is_empty() {
        true => name.to_owned(),
        false => format!("{name}::{used}"),
    }
}

fn mentions(type_: &Type, parameter: &str) -> bool {
    match type_ {
        Type::Parameter(name) => name == parameter,
        Type::List(element) => mentions(element, parameter),
        Type::Struct { arguments, .. } => arguments.iter().any(|a| mentions(a, parameter)),
        _ => false,
    }
}
