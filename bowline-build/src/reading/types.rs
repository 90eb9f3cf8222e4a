//! The types of fields, parameters and results, and which of them have no Rust.

use capnp::schema_capnp::{brand, node, type_};

use super::Reading;
use crate::Error;
use crate::model::Type;

impl<'a> Reading<'a> {
    pub(super) fn type_(&self, from: type_::Reader<'a>, place: &str) -> Result<Type, Error> {
        Ok(match from.which()? {
            type_::Void(()) => Type::Void,
            type_::Bool(()) => Type::Primitive("bool"),
            type_::Int8(()) => Type::Primitive("i8"),
            type_::Int16(()) => Type::Primitive("i16"),
            type_::Int32(()) => Type::Primitive("i32"),
            type_::Int64(()) => Type::Primitive("i64"),
            type_::Uint8(()) => Type::Primitive("u8"),
            type_::Uint16(()) => Type::Primitive("u16"),
            type_::Uint32(()) => Type::Primitive("u32"),
            type_::Uint64(()) => Type::Primitive("u64"),
            type_::Float32(()) => Type::Primitive("f32"),
            type_::Float64(()) => Type::Primitive("f64"),
            type_::Text(()) => Type::Text,
            type_::Data(()) => Type::Data,
            type_::List(list) => {
                let element = self.type_(list.get_element_type()?, place)?;
                match element {
                    Type::Void => {
                        return Err(Error::unsupported(
                            place,
                            "a list of Void",
                            "use a number that says how many there are",
                        ));
                    }
                    Type::Parameter(_) => {
                        return Err(Error::unsupported(
                            place,
                            "a list of a type parameter",
                            "make the whole list the parameter, or put each element into a struct",
                        ));
                    }
                    element => Type::List(Box::new(element)),
                }
            }
            type_::Enum(e) => Type::Enum(self.rust_path(e.get_type_id(), place)?),
            type_::Struct(s) => self.struct_type(s.get_type_id(), s.get_brand()?, place)?,
            type_::Interface(_) => {
                return Err(Error::unsupported(
                    place,
                    "a capability (an interface as a value)",
                    "pass a Link instead",
                ));
            }
            type_::AnyPointer(any) => match any.which()? {
                type_::any_pointer::Parameter(parameter) => {
                    let names = self.names.parameters.get(&parameter.get_scope_id());
                    let index = usize::from(parameter.get_parameter_index());
                    let name = names.and_then(|names| names.get(index)).ok_or_else(|| {
                        capnp::Error::failed(format!("{place}: unknown type parameter"))
                    })?;
                    Type::Parameter(name.clone())
                }
                _ => {
                    return Err(Error::unsupported(
                        place,
                        "AnyPointer",
                        "use a type parameter, or Data with a message in it",
                    ));
                }
            },
        })
    }

    pub(super) fn struct_type(
        &self,
        id: u64,
        brand: brand::Reader<'a>,
        place: &str,
    ) -> Result<Type, Error> {
        Ok(Type::Struct {
            rust: self.rust_path(id, place)?,
            capnp: self.capnp_path(id)?,
            arguments: self.arguments(id, brand, place)?,
        })
    }

    /// What a brand gives for the parameters of a declaration and of all around it, the outermost first.
    fn arguments(
        &self,
        id: u64,
        brand: brand::Reader<'a>,
        place: &str,
    ) -> Result<Vec<Type>, Error> {
        let node = self.node(id)?;
        let mut arguments = match node.get_scope_id() {
            0 => Vec::new(),
            scope => self.arguments(scope, brand, place)?,
        };
        if matches!(node.which()?, node::File(())) || node.get_parameters()?.is_empty() {
            return Ok(arguments);
        }
        let unbound = || {
            Error::unsupported(
                place,
                "a generic type without its arguments",
                "give them in parentheses",
            )
        };
        let is_of = |scope: &brand::scope::Reader<'a>| scope.get_scope_id() == id;
        let scope = brand.get_scopes()?.iter().find(is_of).ok_or_else(unbound)?;
        match scope.which()? {
            brand::scope::Inherit(()) => {
                let names = self.names.parameters.get(&id);
                arguments.extend(names.into_iter().flatten().cloned().map(Type::Parameter));
            }
            brand::scope::Bind(bindings) => {
                for binding in bindings? {
                    match binding.which()? {
                        brand::binding::Type(type_) => arguments.push(self.type_(type_?, place)?),
                        brand::binding::Unbound(()) => return Err(unbound()),
                    }
                }
            }
        }
        Ok(arguments)
    }
}
