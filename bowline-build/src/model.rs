//! What the request says, checked and in Rust's terms: files, structs, enums, interfaces.
//!
//! Everything that can be wrong with a schema is found here; writing code from a model cannot fail.

use std::time::Duration;

use crate::reading::FileNames;

pub(crate) struct File {
    pub names: FileNames,
    pub structs: Vec<Struct>,
    pub enums: Vec<Enum>,
    pub interfaces: Vec<Interface>,
    pub constants: Vec<Constant>,
}

pub(crate) struct Struct {
    pub id: u64,
    /// Its name in Rust.
    pub name: String,
    /// Its name in the schema, or of the group's field.
    pub schema_name: String,
    /// File and declaration.
    pub place: String,
    /// The module of capnpc's reader and builder.
    pub capnp: String,
    pub parameters: Vec<String>,
    pub is_group: bool,
    pub fields: Vec<Field>,
    pub variants: Vec<Field>,
    /// The names of its secret fields, those of groups as `group.field`.
    pub secrets: Vec<String>,
    pub docs: String,
    pub topic: Option<String>,
    pub queue: Option<String>,
    pub key: Option<Key>,
}

impl Struct {
    /// A struct that is nothing but a union becomes an enum.
    pub fn is_union(&self) -> bool {
        self.fields.is_empty() && !self.variants.is_empty()
    }

    pub fn has_secrets(&self) -> bool {
        self.fields
            .iter()
            .chain(&self.variants)
            .any(|f| f.is_secret)
    }
}

/// The field with `$key`.
pub(crate) struct Key {
    /// Its name in the schema; of one in a group, `group.field`.
    pub name: String,
    /// From the struct to it, in Rust.
    pub path: Vec<String>,
    pub is_text: bool,
}

pub(crate) struct Field {
    /// Its name in the schema.
    pub name: String,
    /// Its name in Rust, as an identifier.
    pub rust: String,
    /// The variant that it is in an enum.
    pub variant: String,
    /// In capnpc's `get_name`, `set_name`.
    pub accessor: String,
    /// Of capnpc's `Which`.
    pub capnp_variant: String,
    /// Among the fields of its struct, as the request has them.
    pub index: u16,
    /// Of a member of a union.
    pub discriminant: u16,
    pub kind: FieldKind,
    pub is_secret: bool,
    pub docs: String,
}

pub(crate) enum FieldKind {
    Group {
        rust: String,
    },
    Slot {
        type_: Type,
        default: Default,
        /// Whether its type can hold its own struct by value.
        is_recursive: bool,
        /// The same, in lists too.
        is_unbounded: bool,
    },
}

/// What a field has that nobody set.
pub(crate) enum Default {
    /// What the type has without a word about it.
    OfType,
    /// Of a number: its value, or the bits of a float. Of an enum: its number.
    Number(String),
    Text(String),
    Data(Vec<u8>),
    /// Of a struct or a list.
    Other,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Type {
    Void,
    /// A number or a bool, by its name in Rust.
    Primitive(&'static str),
    Text,
    Data,
    List(Box<Type>),
    /// By its path in Rust.
    Enum(String),
    Struct {
        rust: String,
        capnp: String,
        arguments: Vec<Type>,
    },
    /// A parameter of the generic struct around it.
    Parameter(String),
}

impl Type {
    /// In Rust.
    pub fn rust(&self) -> String {
        match self {
            Self::Void => "()".into(),
            Self::Primitive(name) => (*name).into(),
            Self::Text => "::std::string::String".into(),
            Self::Data => "$crate::__private::bytes::Bytes".into(),
            Self::List(element) => format!("::std::vec::Vec<{}>", element.rust()),
            Self::Enum(path) => path.clone(),
            Self::Struct {
                rust, arguments, ..
            } if arguments.is_empty() => rust.clone(),
            Self::Struct {
                rust, arguments, ..
            } => {
                let arguments: Vec<_> = arguments.iter().map(Self::rust).collect();
                format!("{rust}<{}>", arguments.join(", "))
            }
            Self::Parameter(name) => name.clone(),
        }
    }
}

pub(crate) struct Enum {
    pub name: String,
    pub capnp: String,
    pub docs: String,
    pub enumerants: Vec<Enumerant>,
}

pub(crate) struct Enumerant {
    /// Its name in the schema.
    pub name: String,
    pub variant: String,
    /// Of capnpc's enum.
    pub capnp_variant: String,
    pub docs: String,
}

pub(crate) struct Interface {
    pub id: u64,
    /// Its name in Rust.
    pub name: String,
    /// File and declaration.
    pub place: String,
    /// What it is found under.
    pub service: String,
    pub docs: String,
    pub methods: Vec<Method>,
    /// All that it extends, near or far, each once.
    pub bases: Vec<Base>,
    /// Paths of the traits that it extends itself.
    pub supertraits: Vec<String>,
}

pub(crate) struct Base {
    /// Path of its trait.
    pub path: String,
    /// Its name in Rust.
    pub name: String,
    pub methods: Vec<Method>,
}

#[derive(Clone)]
pub(crate) struct Method {
    /// Its name in the schema.
    pub name: String,
    /// Its name in Rust, before it is an identifier.
    pub rust: String,
    /// The same in the client: another where an interface has two of one name.
    pub client: String,
    pub interface: u64,
    pub ordinal: u16,
    pub params: Param,
    pub results: Param,
    /// Path and type ID of the error.
    pub fails: Option<(String, u64)>,
    /// A variant of `Effect`.
    pub effect: &'static str,
    pub timeout: Option<Duration>,
    pub docs: String,
}

#[derive(Clone)]
pub(crate) struct Param {
    pub id: u64,
    /// With generic arguments, if it has any.
    pub type_: Type,
}

pub(crate) struct Constant {
    /// Path of capnpc's constant.
    pub capnp: String,
    pub name: String,
    pub docs: String,
}
