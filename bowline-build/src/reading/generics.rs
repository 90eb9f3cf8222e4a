//! Type parameters: what they are called, and which generic structs cannot be had in Rust.

use std::collections::BTreeSet;

use capnp::schema_capnp::{brand, field, type_};

use super::Reading;
use crate::Error;
use crate::names::{free, pascal};

/// What the code of a struct names without its path, so that a parameter of that name would take its place.
const NAMED_IN_CODE: [&str; 9] = [
    "Builder",
    "Option",
    "Owned",
    "Pipeline",
    "Reader",
    "Self",
    "Which",
    "WhichBuilder",
    "WhichReader",
];

impl<'a> Reading<'a> {
    /// The type parameters of a declaration and of all around it, the outermost first.
    pub(super) fn parameters(&self, id: u64) -> Result<Vec<String>, Error> {
        let node = self.node(id)?;
        let mut parameters = match node.get_scope_id() {
            0 => Vec::new(),
            scope => self.parameters(scope)?,
        };
        parameters.extend(
            self.names
                .parameters
                .get(&id)
                .into_iter()
                .flatten()
                .cloned(),
        );
        Ok(parameters)
    }

    /// Names those that a declaration has itself, after those of all around it are named.
    pub(super) fn name_parameters(&mut self, id: u64) -> Result<(), Error> {
        let node = self.node(id)?;
        let declared = node.get_parameters()?;
        if declared.is_empty() {
            return Ok(());
        }
        let mut taken: BTreeSet<String> = NAMED_IN_CODE.map(str::to_owned).into();
        taken.extend(self.parameters(id)?);
        if let Some((_, name)) = self.rust.get(&id) {
            taken.extend([name.clone(), format!("{name}Which")]);
        }
        let mut names = Vec::new();
        for parameter in declared {
            let name = parameter.get_name()?.to_str()?;
            names.push(free(&pascal(name), &mut taken));
        }
        self.names.parameters.insert(id, names);
        Ok(())
    }

    /// A struct that contains itself with ever larger arguments has no end in Rust.
    pub(super) fn check_growth(
        &self,
        field: field::Reader<'a>,
        id: u64,
        place: &str,
    ) -> Result<(), Error> {
        match field.which()? {
            field::Slot(slot) => self.check_growth_of(slot.get_type()?, id, place),
            field::Group(_) => Ok(()),
        }
    }

    fn check_growth_of(&self, type_: type_::Reader<'a>, id: u64, place: &str) -> Result<(), Error> {
        match type_.which()? {
            type_::List(list) => self.check_growth_of(list.get_element_type()?, id, place),
            type_::Struct(struct_) => {
                let inner = struct_.get_type_id();
                let leads_back = inner == id
                    || self
                        .mentions
                        .get(&inner)
                        .is_some_and(|mentioned| mentioned.contains(&id));
                for argument in arguments(struct_.get_brand()?)? {
                    if leads_back && !is_parameter(argument)? && has_parameter(argument)? {
                        return Err(Error::unsupported(
                            place,
                            "a generic struct that contains itself with larger arguments",
                            "use a struct without parameters for what is inside",
                        ));
                    }
                    self.check_growth_of(argument, id, place)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The types that a brand binds, of all scopes.
pub(super) fn arguments(brand: brand::Reader<'_>) -> Result<Vec<type_::Reader<'_>>, Error> {
    let mut arguments = Vec::new();
    for scope in brand.get_scopes()? {
        if let brand::scope::Bind(bindings) = scope.which()? {
            for binding in bindings? {
                if let brand::binding::Type(argument) = binding.which()? {
                    arguments.push(argument?);
                }
            }
        }
    }
    Ok(arguments)
}

fn is_parameter(type_: type_::Reader<'_>) -> Result<bool, Error> {
    Ok(match type_.which()? {
        type_::AnyPointer(any) => matches!(any.which()?, type_::any_pointer::Parameter(_)),
        _ => false,
    })
}

fn has_parameter(type_: type_::Reader<'_>) -> Result<bool, Error> {
    Ok(match type_.which()? {
        type_::List(list) => has_parameter(list.get_element_type()?)?,
        type_::Struct(struct_) => {
            for argument in arguments(struct_.get_brand()?)? {
                if has_parameter(argument)? {
                    return Ok(true);
                }
            }
            false
        }
        _ => is_parameter(type_)?,
    })
}
