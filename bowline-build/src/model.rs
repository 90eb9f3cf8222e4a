//! What the request says, checked and in Rust's terms: files, structs, enums, interfaces.
//!
//! Everything that can be wrong with a schema is found here; writing code from a model cannot fail.

use std::time::Duration;

pub(crate) struct File {
    /// `login` of `auth/login.capnp`: the module.
    pub module: String,
    /// `auth/login.capnp`.
    pub name: String,
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
}

impl Struct {
    /// A struct that is nothing but a union becomes an enum.
    pub fn is_union(&self) -> bool {
        self.fields.is_empty() && !self.variants.is_empty()
    }

    pub fn key(&self) -> Option<&Field> {
        self.fields.iter().find(|field| field.is_key)
    }

    pub fn has_secrets(&self) -> bool {
        self.fields
            .iter()
            .chain(&self.variants)
            .any(|f| f.is_secret)
    }
}

pub(crate) struct Field {
    /// Its name in the schema.
    pub name: String,
    /// In `get_name`, `set_name`.
    pub accessor: String,
    pub kind: FieldKind,
    pub is_secret: bool,
    pub is_key: bool,
    pub docs: String,
}

pub(crate) enum FieldKind {
    Group {
        rust: String,
    },
    Slot {
        type_: Type,
        has_default: bool,
        is_recursive: bool,
    },
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
            Self::Data => "::bowline::__private::bytes::Bytes".into(),
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
    /// Name in the schema, and docs.
    pub enumerants: Vec<(String, String)>,
}

pub(crate) struct Interface {
    pub id: u64,
    /// Its name in Rust.
    pub name: String,
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
    pub methods: Vec<Method>,
}

#[derive(Clone)]
pub(crate) struct Method {
    /// Its name in the schema.
    pub name: String,
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
