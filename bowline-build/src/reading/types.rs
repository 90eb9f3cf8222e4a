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
                    Type::Void => return Err(Error::unsupported(place, "a list of Void")),
                    Type::Parameter(_) => {
                        return Err(Error::unsupported(place, "a list of a type parameter"));
                    }
                    element => Type::List(Box::new(element)),
                }
            }
            type_::Enum(e) => Type::Enum(self.rust_path(e.get_type_id(), place)?),
            type_::Struct(s) => self.struct_type(s.get_type_id(), s.get_brand()?, place)?,
            type_::Interface(_) => {
                return Err(Error::unsupported(
                    place,
                    "a capability (an interface as a value); pass a Link instead",
                ));
            }
            type_::AnyPointer(any) => match any.which()? {
                type_::any_pointer::Parameter(parameter) => {
                    let parameters = self.parameters(parameter.get_scope_id())?;
                    let index = usize::from(parameter.get_parameter_index());
                    let name = parameters.get(index).ok_or_else(|| {
                        capnp::Error::failed(format!("{place}: unknown type parameter"))
                    })?;
                    Type::Parameter(name.clone())
                }
                _ => return Err(Error::unsupported(place, "AnyPointer")),
            },
        })
    }

    pub(super) fn struct_type(
        &self,
        id: u64,
        brand: brand::Reader<'a>,
        place: &str,
    ) -> Result<Type, Error> {
        let parameters = self.parameters(id)?;
        let mut arguments = Vec::new();
        for scope in brand.get_scopes()? {
            match scope.which()? {
                brand::scope::Bind(bindings) if scope.get_scope_id() == id => {
                    for binding in bindings? {
                        match binding.which()? {
                            brand::binding::Type(type_) => {
                                arguments.push(self.type_(type_?, place)?);
                            }
                            brand::binding::Unbound(()) => {
                                return Err(Error::unsupported(place, "an unbound type parameter"));
                            }
                        }
                    }
                }
                brand::scope::Inherit(()) if scope.get_scope_id() == id => {
                    arguments = parameters.iter().cloned().map(Type::Parameter).collect();
                }
                _ => return Err(Error::unsupported(place, "a type nested in a generic type")),
            }
        }
        if arguments.len() != parameters.len() {
            return Err(Error::unsupported(
                place,
                "a generic type without its arguments",
            ));
        }
        Ok(Type::Struct {
            rust: self.rust_path(id, place)?,
            capnp: self.capnp_path(id)?,
            arguments,
        })
    }

    pub(super) fn parameters(&self, id: u64) -> Result<Vec<String>, Error> {
        let node = self.node(id)?;
        if let node::Struct(s) = node.which()?
            && s.get_is_group()
        {
            return self.parameters(node.get_scope_id());
        }
        let mut parameters = Vec::new();
        for parameter in node.get_parameters()? {
            parameters.push(parameter.get_name()?.to_str()?.to_owned());
        }
        Ok(parameters)
    }
}
