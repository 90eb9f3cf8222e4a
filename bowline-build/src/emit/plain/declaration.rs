//! How a plain struct, and the enum of its union, is declared and shown.

use super::{Emit, is_void, phantom};
use crate::emit::enums::JSON;
use crate::emit::{DERIVES, MESSAGE, SERDE, docs};
use crate::model::{Field, FieldKind, Type};

impl Emit<'_> {
    pub(super) fn declaration(&self, code: &mut String) {
        let Self {
            of,
            declared,
            used,
            which,
            ..
        } = self;
        let debug = if of.has_secrets() { "" } else { "Debug, " };
        if !of.is_union() {
            *code += &docs(&of.docs);
            *code += &format!(
                "#[derive({debug}{DERIVES})]\n{SERDE}\n#[serde(default)]\n{}pub struct {}{declared} {{\n",
                bounds(&of.parameters),
                of.name
            );
            for field in &of.fields {
                *code += &docs(&field.docs);
                *code += &format!(
                    "#[serde(rename = {:?}{})]\npub {}: {},\n",
                    field.name,
                    json_with(field),
                    field.rust,
                    self.field_type(field)
                );
            }
            if !of.variants.is_empty() {
                // In JSON the union is beside fields that may have any name.
                let mut in_json = "which".to_owned();
                while of.fields.iter().any(|field| field.name == in_json) {
                    in_json.push('_');
                }
                *code += &format!(
                    "/// The member of the union that is set.\n#[serde(rename = {in_json:?})]\npub which: {which}{},\n",
                    self.which_used()
                );
            }
            for parameter in self.unused_parameters() {
                *code += &format!(
                    "#[doc(hidden)]\n#[serde(skip)]\npub {}: ::core::marker::PhantomData<{parameter}>,\n",
                    phantom(parameter)
                );
            }
            *code += "}\n";
        }
        if !of.variants.is_empty() {
            *code += &match of.is_union() {
                true => docs(&of.docs),
                false => "/// The members of the union; one is set.\n".to_owned(),
            };
            *code += &format!(
                "#[derive({debug}{DERIVES})]\n{SERDE}\n{}pub enum {which}{} {{\n",
                bounds(&self.which_parameters),
                self.which_declared(),
            );
            for field in &of.variants {
                *code += &docs(&field.docs);
                *code += &format!("#[serde(rename = {:?})]\n{}", field.name, field.variant);
                *code += &match is_void(field) {
                    true => ",\n".to_owned(),
                    false => {
                        let with = match json_with(field) {
                            none if none.is_empty() => none,
                            with => format!("#[serde({})] ", with.trim_start_matches(", ")),
                        };
                        format!("({with}{}),\n", self.field_type(field))
                    }
                };
            }
            *code += "/// A member that this program's schema does not have.\nUnknown(u16),\n";
            if self.has_phantom_variant() {
                let unused: Vec<&str> = self.unused_parameters().map(String::as_str).collect();
                *code += &format!(
                    "#[doc(hidden)]\n#[serde(skip)]\n__Phantom(::core::marker::PhantomData<({},)>, ::core::convert::Infallible),\n",
                    unused.join(", ")
                );
            }
            *code += "}\n";
            if !of.is_union() && self.which_parameters.len() == of.parameters.len() {
                // The union of the null struct.
                *code += &format!(
                    "impl{declared} ::core::default::Default for {which}{used} {{ \
                     fn default() -> Self {{ {}::default().which }} }}\n",
                    turbofish(&of.name, used)
                );
            } else if !of.is_union() {
                *code += &self.which_default();
            }
        }
    }

    /// The same where the enum has not all parameters of its struct: those that it lacks change nothing.
    fn which_default(&self) -> String {
        let any = |parameter: &String| match self.which_parameters.contains(parameter) {
            true => parameter.clone(),
            false => "::std::string::String".to_owned(),
        };
        let arguments: Vec<String> = self.of.parameters.iter().map(any).collect();
        format!(
            "impl{} ::core::default::Default for {}{} {{ \
             fn default() -> Self {{ {}::<{}>::default().which }} }}\n",
            self.which_declared(),
            self.which,
            self.which_used(),
            self.of.name,
            arguments.join(", ")
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
        let Self { of, which, .. } = self;
        if !of.has_secrets() {
            return;
        }
        const REDACTED: &str = "&::core::format_args!(\"<redacted>\")";
        let header = |name: &str, parameters: &[String]| {
            let list = |bound: &str| {
                let one = |p: &String| format!("{p}{bound}");
                super::in_brackets(parameters.iter().map(one).collect::<Vec<_>>().join(", "))
            };
            format!(
                "impl{} ::core::fmt::Debug for {name}{} {{\n\
                 fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{\n",
                list(&format!(": {MESSAGE}::Plain + ::core::fmt::Debug")),
                list("")
            )
        };
        if !of.is_union() {
            *code += &header(&of.name, &of.parameters);
            *code += &format!("f.debug_struct({:?})", of.name);
            for field in &of.fields {
                let value = match field.is_secret {
                    true => REDACTED.to_owned(),
                    false => format!("&self.{}", field.rust),
                };
                let shown = field.rust.trim_start_matches("r#");
                *code += &format!(".field({shown:?}, {value})");
            }
            if !of.variants.is_empty() {
                *code += ".field(\"which\", &self.which)";
            }
            *code += ".finish()\n}\n}\n";
        }
        if !of.variants.is_empty() {
            *code += &header(which, &self.which_parameters);
            *code += "match self {\n";
            for field in &of.variants {
                let variant = &field.variant;
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
            if self.has_phantom_variant() {
                *code += "Self::__Phantom(_, never) => match *never {},\n";
            }
            *code += "Self::Unknown(number) => f.debug_tuple(\"Unknown\").field(number).finish(),\n}\n}\n}\n";
        }
    }

    /// As serde's traits do it, which they have where each argument has a form in JSON.
    pub(super) fn json(&self, code: &mut String) {
        let parameters: Vec<String> = self
            .of
            .parameters
            .iter()
            .map(|p| format!("{p}: {MESSAGE}::Plain + {MESSAGE}::JsonValue"))
            .collect();
        *code += &format!(
            "impl{} {MESSAGE}::JsonValue for {}{} {{ {JSON} }}\n",
            super::in_brackets(parameters.join(", ")),
            self.of.name,
            self.used
        );
    }
}

/// What JSON has no number for, NaN and the infinities, is a word there; a parameter may be a list of such.
fn json_with(field: &Field) -> String {
    fn needs(type_: &Type) -> bool {
        match type_ {
            Type::Primitive(number) => number.starts_with('f'),
            Type::List(element) => needs(element),
            Type::Parameter(_) => true,
            _ => false,
        }
    }
    match &field.kind {
        FieldKind::Slot { type_, .. } if needs(type_) => {
            format!(", with = \"{MESSAGE}::json\"")
        }
        _ => String::new(),
    }
}

fn bounds(parameters: &[String]) -> String {
    if parameters.is_empty() {
        return String::new();
    }
    let bounds: Vec<String> = parameters
        .iter()
        .map(|p| format!("{p}: {MESSAGE}::Plain + {MESSAGE}::JsonValue"))
        .collect();
    let bounds = bounds.join(", ");
    format!("#[serde(bound(serialize = {bounds:?}, deserialize = {bounds:?}))]\n")
}

fn turbofish(name: &str, used: &str) -> String {
    match used.is_empty() {
        true => name.to_owned(),
        false => format!("{name}::{used}"),
    }
}
