//! From a reader to a plain struct, and from a plain struct into a builder.
//!
//! What equals its default is not written, so that a field which is new and unset leaves a message as it was: the bytes
//! of a request, and with them its fingerprint, are those that an older program sends.

use std::fmt::Write;

use super::{Emit, is_void, phantom};
use crate::emit::{CAPNP, MESSAGE};
use crate::model::{Default, Field, FieldKind, Type};

impl Emit<'_> {
    pub(super) fn conversion(&self, code: &mut String) {
        let Self {
            of,
            declared,
            used,
            capnp_arguments,
            ..
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
        let (read, write) = (self.read_body(), self.write_body());
        let (is_default, nesting) = (self.is_default_body(), self.nesting());
        let name = &of.name;
        if of.is_group {
            *code += &format!(
                "impl{declared} {name}{used} {{\n\
                 #[doc(hidden)]\npub const GROUP_NESTING: u16 = {nesting};\n\
                 #[doc(hidden)]\npub fn read_group(from: {reader}) -> {CAPNP}::Result<Self> {{\n{read}}}\n\
                 #[doc(hidden)]\npub fn write_group(&self, mut to: {builder}) -> {CAPNP}::Result<()> {{\n{write}Ok(())\n}}\n\
                 #[doc(hidden)]\npub fn is_default_group(&self) -> bool {{ {is_default} }}\n}}\n\
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
             const NESTING: u16 = {MESSAGE}::deeper({nesting});\n\
             fn read(from: {reader}) -> {CAPNP}::Result<Self> {{\n{read}}}\n\
             fn write(&self, mut to: {builder}) -> {CAPNP}::Result<()> {{\n{write}Ok(())\n}}\n\
             fn is_default(&self) -> bool {{ {is_default} }}\n}}\n\
             impl{declared} ::core::default::Default for {name}{used} {{ fn default() -> Self {{ {MESSAGE}::default_struct() }} }}\n\
             impl{declared} {MESSAGE}::PlainElement for {name}{used} {{\n\
             type List = {CAPNP}::struct_list::Owned<{owned}>;\n\
             const NESTING: u16 = <Self as {MESSAGE}::Plain>::NESTING;\n\
             const WORDS_EACH: u32 = {MESSAGE}::struct_words::<<{owned} as {CAPNP}::traits::OwnedStruct>::Builder<'static>>();\n\
             fn read_list(from: {CAPNP}::struct_list::Reader<'_, {owned}>) -> {CAPNP}::Result<::std::vec::Vec<Self>> {{\n\
             let mut values = {MESSAGE}::reserved(from.len());\n\
             for i in 0..from.len() {{ values.push({MESSAGE}::Plain::read(from.get(i))?); }}\nOk(values)\n}}\n\
             fn write_list(values: &[Self], mut to: {CAPNP}::struct_list::Builder<'_, {owned}>) -> {CAPNP}::Result<()> {{\n\
             for (i, value) in (0u32..).zip(values) {{ {MESSAGE}::Plain::write(value, to.reborrow().get(i))?; }}\nOk(())\n}}\n}}\n"
        );
    }

    fn read_body(&self) -> String {
        let Self { of, which, .. } = self;
        let mut union = String::new();
        if !of.variants.is_empty() {
            union += "match from.which() {\n";
            for field in &of.variants {
                let (variant, capnp_variant) = (&field.variant, &field.capnp_variant);
                union += &match is_void(field) {
                    true => format!(
                        "Ok({}::Which::{capnp_variant}(())) => {which}::{variant},\n",
                        of.capnp
                    ),
                    false => format!(
                        "Ok({}::Which::{capnp_variant}(value)) => {which}::{variant}({}),\n",
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
            let _ = writeln!(body, "{}: {value},", field.rust);
        }
        if !of.variants.is_empty() {
            let _ = writeln!(body, "which: {union},");
        }
        for parameter in self.unused_parameters() {
            let _ = writeln!(body, "{}: ::core::marker::PhantomData,", phantom(parameter));
        }
        body + "})\n"
    }

    fn write_body(&self) -> String {
        let Self { of, which, .. } = self;
        let mut body = String::new();
        for field in &of.fields {
            if !is_void(field) {
                let place = format!("self.{}", field.rust);
                let write = write(field, &place);
                body += &match &field.kind {
                    // What is a number costs no more to write than to compare.
                    FieldKind::Slot {
                        type_: Type::Primitive(_) | Type::Enum(_),
                        ..
                    }
                    | FieldKind::Group { .. } => write,
                    _ => format!("if !{} {{ {write} }}\n", self.is_default(field, &place)),
                };
            }
        }
        if of.variants.is_empty() {
            return body;
        }
        let union = if of.is_union() { "self" } else { "&self.which" };
        let _ = writeln!(body, "match {union} {{");
        for field in &of.variants {
            let variant = &field.variant;
            if is_void(field) {
                body += &format!("{which}::{variant} => to.set_{}(()),\n", field.accessor);
                continue;
            }
            let is_number = matches!(
                field.kind,
                FieldKind::Slot {
                    type_: Type::Primitive(_) | Type::Enum(_),
                    ..
                }
            );
            // The first member is the one of a message that says nothing.
            if field.discriminant == 0 && !is_number {
                body += &format!(
                    "{which}::{variant}(value) if {} => {{}}\n",
                    self.is_default(field, "(*value)")
                );
            }
            body += &format!(
                "{which}::{variant}(value) => {{ {} }}\n",
                write(field, "(*value)")
            );
        }
        if self.has_phantom_variant() {
            let _ = writeln!(body, "{which}::__Phantom(_, never) => match *never {{}},");
        }
        let _ = writeln!(
            body,
            "{which}::Unknown(number) => return Err({MESSAGE}::member_not_in_schema({:?}, *number)),\n}}",
            of.name
        );
        body
    }

    /// Whether all fields have their defaults, to the last bit.
    fn is_default_body(&self) -> String {
        let Self { of, which, .. } = self;
        let fields = of.fields.iter().filter(|field| !is_void(field));
        let mut all: Vec<String> = fields
            .map(|field| self.is_default(field, &format!("self.{}", field.rust)))
            .collect();
        if let Some(first) = of.variants.iter().find(|field| field.discriminant == 0) {
            let union = if of.is_union() { "self" } else { "&self.which" };
            let variant = &first.variant;
            all.push(match is_void(first) {
                true => format!("::core::matches!({union}, {which}::{variant})"),
                false => format!(
                    "::core::matches!({union}, {which}::{variant}(value) if {})",
                    self.is_default(first, "(*value)")
                ),
            });
        }
        match all.is_empty() {
            true => "true".to_owned(),
            false => all.join(" && "),
        }
    }

    /// Whether `value`, a place, has the default of the field.
    fn is_default(&self, field: &Field, value: &str) -> String {
        let (type_, default) = match &field.kind {
            FieldKind::Group { .. } => return format!("{value}.is_default_group()"),
            FieldKind::Slot {
                is_recursive: true, ..
            } => return format!("{value}.is_none()"),
            FieldKind::Slot { type_, default, .. } => (type_, default),
        };
        match (default, type_) {
            (_, Type::Void) => "true".to_owned(),
            (Default::OfType, Type::Primitive("bool")) => format!("!{value}"),
            (Default::Number(_), Type::Primitive("bool")) => value.to_owned(),
            (Default::OfType, Type::Primitive(number)) if number.starts_with('f') => {
                format!("({value}.to_bits() == 0)")
            }
            (Default::Number(bits), Type::Primitive(number)) if number.starts_with('f') => {
                format!("({value}.to_bits() == {bits})")
            }
            (Default::OfType, Type::Primitive(_)) => format!("({value} == 0)"),
            (Default::Number(number), Type::Primitive(_)) => format!("({value} == {number})"),
            (Default::Number(number), Type::Enum(_)) => format!("({value}.number() == {number})"),
            (_, Type::Enum(_)) => format!("({value}.number() == 0)"),
            (Default::Text(text), _) => format!(
                "({value} == {})",
                format!("{text:?}").replace('$', "\\u{24}")
            ),
            (Default::Data(data), _) if data.is_empty() => format!("{value}.is_empty()"),
            (Default::Data(data), _) => {
                let bytes: Vec<String> = data.iter().map(|byte| format!("{byte}u8")).collect();
                format!("({value}[..] == [{}][..])", bytes.join(", "))
            }
            (Default::Other, _) => {
                let of_default = "<Self as ::core::default::Default>::default()";
                let in_union = self
                    .of
                    .variants
                    .iter()
                    .any(|other| other.index == field.index);
                match in_union {
                    false => format!(
                        "{MESSAGE}::same_bits(&{value}, &{of_default}.{})",
                        field.rust
                    ),
                    true => format!(
                        "::core::matches!({of_default}{}, {}::{}(default) if {MESSAGE}::same_bits(&{value}, &default))",
                        if self.of.is_union() { "" } else { ".which" },
                        self.which,
                        field.variant
                    ),
                }
            }
            (_, Type::Text | Type::Data | Type::List(_)) => format!("{value}.is_empty()"),
            (_, Type::Struct { .. } | Type::Parameter(_)) => {
                format!("{MESSAGE}::Plain::is_default(&{value})")
            }
        }
    }

    /// How deep pointers lead from here, as an expression: without end where a struct can contain itself.
    fn nesting(&self) -> String {
        let of_fields: Vec<String> = self
            .of
            .fields
            .iter()
            .chain(&self.of.variants)
            .filter_map(|field| match &field.kind {
                FieldKind::Group { rust } => Some(format!(
                    "{rust}{}::GROUP_NESTING",
                    match self.used.is_empty() {
                        true => String::new(),
                        false => format!("::{}", self.used),
                    }
                )),
                FieldKind::Slot {
                    is_unbounded: true, ..
                } => Some("u16::MAX".to_owned()),
                FieldKind::Slot { type_, .. } => match type_ {
                    Type::List(_) | Type::Struct { .. } | Type::Parameter(_) => {
                        Some(format!("<{} as {MESSAGE}::Plain>::NESTING", type_.rust()))
                    }
                    _ => None,
                },
            })
            .collect();
        match of_fields.is_empty() {
            true => "0".to_owned(),
            false => format!("{MESSAGE}::deepest(&[{}])", of_fields.join(", ")),
        }
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
fn write(field: &Field, value: &str) -> String {
    let (name, index) = (&field.accessor, field.index);
    let FieldKind::Slot {
        type_,
        is_recursive,
        ..
    } = &field.kind
    else {
        return format!("{value}.write_group(to.reborrow().init_{name}())?;\n");
    };
    match type_ {
        Type::Void => String::new(),
        Type::Primitive(_) => format!("to.set_{name}({value});\n"),
        Type::Enum(_) => format!(
            "match {value}.to_capnp() {{ Ok(known) => to.set_{name}(known), \
             Err(_) => {MESSAGE}::set_number(to.reborrow().into(), {index}, {value}.number())? }}\n"
        ),
        Type::Struct { .. } if *is_recursive => format!(
            "match &{value} {{ Some(value) => {MESSAGE}::Plain::write(&**value, to.reborrow().init_{name}())?, \
             None => {MESSAGE}::set_null(to.reborrow().into(), {index})? }}\n"
        ),
        Type::Struct { .. } => {
            format!("{MESSAGE}::Plain::write(&{value}, to.reborrow().init_{name}())?;\n")
        }
        // A list of enums can have numbers that no builder of it takes.
        Type::Parameter(_) => format!(
            "match {MESSAGE}::Plain::numbers(&{value}) {{ \
             Some(numbers) => to.set_{name}(numbers.get::<<{} as {MESSAGE}::Plain>::Capnp>()?)?, \
             None => {MESSAGE}::Plain::write(&{value}, to.reborrow().initn_{name}({MESSAGE}::len(&{value})?))? }}\n",
            type_.rust()
        ),
        Type::List(element) if matches!(**element, Type::Enum(_)) => format!(
            "match {MESSAGE}::Plain::numbers(&{value}) {{ \
             Some(numbers) => to.set_{name}(numbers.get::<<{} as {MESSAGE}::Plain>::Capnp>()?)?, \
             None => {MESSAGE}::Plain::write(&{value}, to.reborrow().init_{name}({MESSAGE}::len(&{value})?))? }}\n",
            type_.rust()
        ),
        Type::Text | Type::Data | Type::List(_) => format!(
            "{MESSAGE}::Plain::write(&{value}, to.reborrow().init_{name}({MESSAGE}::len(&{value})?))?;\n"
        ),
    }
}
