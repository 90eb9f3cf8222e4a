//! Plain Rust structs and enums, into and out of builders and readers.

use std::fmt::Write;

use super::docs;
use crate::model::{Enum, Field, FieldKind, Struct, Type};
use crate::names::{identifier, pascal as variant};

const MESSAGE: &str = "::bowline::message";
const CAPNP: &str = "::bowline::__private::capnp";
const SERDE: &str = "#[serde(crate = \"::bowline::__private::serde\")]";
const DERIVES: &str = "Clone, PartialEq, ::bowline::__private::serde::Serialize, ::bowline::__private::serde::Deserialize";

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

    fn declaration(&self, code: &mut String) {
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
    fn unused_parameters(&self) -> impl Iterator<Item = &String> {
        let members = || self.of.fields.iter().chain(&self.of.variants);
        self.of.parameters.iter().filter(move |parameter| {
            !members().any(|field| match &field.kind {
                FieldKind::Group { .. } => true,
                FieldKind::Slot { type_, .. } => mentions(type_, parameter),
            })
        })
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
    fn debug(&self, code: &mut String) {
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

    fn conversion(&self, code: &mut String) {
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

    fn description(&self, code: &mut String) {
        let Self {
            of, declared, used, ..
        } = self;
        let option = |text: Option<&String>| match text {
            Some(text) => format!("Some({text:?})"),
            None => "None".to_owned(),
        };
        let secrets: Vec<String> = of
            .fields
            .iter()
            .chain(&of.variants)
            .filter(|field| field.is_secret)
            .map(|field| format!("{:?}", field.name))
            .collect();
        *code += &format!(
            "impl{declared} ::bowline::schema::Described for {}{used} {{\n\
             const INFO: &'static ::bowline::schema::StructInfo = &::bowline::schema::StructInfo {{ \
             name: {:?}, id: {:#x}, topic: {}, queue: {}, key: {}, secrets: &[{}] }};\n}}\n",
            of.name,
            of.schema_name,
            of.id,
            option(of.topic.as_ref()),
            option(of.queue.as_ref()),
            option(of.key().map(|field| &field.name)),
            secrets.join(", "),
        );
        if let Some(topic) = &of.topic {
            self.name_and_key(code, "::bowline::topic::Topic", topic);
        }
        if let Some(queue) = &of.queue {
            self.name_and_key(code, "::bowline::queue::Queueable", queue);
        }
    }

    /// The trait of what is published or pushed: under which name, and with which key.
    fn name_and_key(&self, code: &mut String, of_trait: &str, name: &str) {
        let Self {
            of, declared, used, ..
        } = self;
        let key = match of.key() {
            None => "::core::option::Option::None".to_owned(),
            Some(field) => {
                let value = format!("self.{}", identifier(&field.accessor));
                match field.kind {
                    FieldKind::Slot {
                        type_: Type::Text, ..
                    } => {
                        format!("Some(::std::borrow::Cow::Borrowed(&{value}[..]))")
                    }
                    _ => format!("Some(::std::borrow::Cow::Owned({value}.to_string()))"),
                }
            }
        };
        *code += &format!(
            "impl{declared} {of_trait} for {}{used} {{\n\
             const NAME: &'static str = {name:?};\n\
             fn key(&self) -> ::core::option::Option<::std::borrow::Cow<'_, str>> {{ {key} }}\n}}\n",
            of.name
        );
    }
}

fn turbofish(name: &str, used: &str) -> String {
    match used.is_empty() {
        true => name.to_owned(),
        false => format!("{name}::{used}"),
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

fn mentions(type_: &Type, parameter: &str) -> bool {
    match type_ {
        Type::Parameter(name) => name == parameter,
        Type::List(element) => mentions(element, parameter),
        Type::Struct { arguments, .. } => arguments.iter().any(|a| mentions(a, parameter)),
        _ => false,
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
