//! Reading interfaces and their methods.

use capnp::schema_capnp::{method, node};

use super::Reading;
use crate::Error;
use crate::annotations::{Annotation, Annotations};
use crate::model::{Base, Interface, Method, Param};
use crate::names::{Scope, snake};

/// The result type that the compiler gives to `-> stream`.
const STREAM_RESULT: u64 = 0x995f_9a33_77c0_b16e;

impl<'a> Reading<'a> {
    pub(super) fn interface(
        &self,
        id: u64,
        name: &str,
        reader: node::interface::Reader<'a>,
    ) -> Result<Interface, Error> {
        let place = self.place(id);
        let node = self.node(id)?;
        if node.get_is_generic() {
            return Err(Error::unsupported(place, "a generic interface"));
        }
        let annotations = Annotations::new(&place, node.get_annotations()?);
        let service = match annotations.name(Annotation::Service)? {
            Some(name) => name.to_owned(),
            None => snake(name),
        };
        let methods = self.methods(id, reader)?;
        let mut supertraits = Vec::new();
        let mut bases = Vec::new();
        for superclass in reader.get_superclasses()? {
            supertraits.push(self.rust_path(superclass.get_id(), &place)?);
            self.collect_bases(superclass.get_id(), &place, &mut bases)?;
        }
        let mut names = Scope::default();
        for reserved in ["new", "connect"] {
            names.reserve(reserved, "the client's own function");
        }
        for method in bases
            .iter()
            .flat_map(|base| &base.1.methods)
            .chain(&methods)
        {
            let owner = format!("method `{}`", method.name);
            let place = format!("{}.{}", self.place(method.interface), method.name);
            names.take(snake(&method.name), owner.clone(), &place)?;
            names.take(
                format!("{}_plain", snake(&method.name)),
                owner.clone(),
                &place,
            )?;
            if method.effect.starts_with("Effect::Once") {
                names.take(format!("{}_outcome", snake(&method.name)), owner, &place)?;
            }
        }
        Ok(Interface {
            id,
            name: name.to_owned(),
            service,
            docs: self.docs_of(id),
            methods,
            bases: bases.into_iter().map(|(_, base)| base).collect(),
            supertraits,
        })
    }

    fn collect_bases(
        &self,
        id: u64,
        place: &str,
        into: &mut Vec<(u64, Base)>,
    ) -> Result<(), Error> {
        if into.iter().any(|(known, _)| *known == id) {
            return Ok(());
        }
        let node::Interface(reader) = self.node(id)?.which()? else {
            return Ok(());
        };
        let base = Base {
            path: self.rust_path(id, place)?,
            methods: self.methods(id, reader)?,
        };
        into.push((id, base));
        for superclass in reader.get_superclasses()? {
            self.collect_bases(superclass.get_id(), place, into)?;
        }
        Ok(())
    }

    fn methods(&self, id: u64, reader: node::interface::Reader<'a>) -> Result<Vec<Method>, Error> {
        let place = self.place(id);
        let annotations = Annotations::new(&place, self.node(id)?.get_annotations()?);
        let timeout_of_all = annotations.timeout()?;
        let mut methods = Vec::new();
        for (ordinal, method) in reader.get_methods()?.iter().enumerate() {
            let mut method = self.method(id, ordinal as u16, method)?;
            method.timeout = method.timeout.or(timeout_of_all);
            methods.push(method);
        }
        Ok(methods)
    }

    fn method(
        &self,
        interface: u64,
        ordinal: u16,
        method: method::Reader<'a>,
    ) -> Result<Method, Error> {
        let name = method.get_name()?.to_str()?.to_owned();
        let place = format!("{}.{name}", self.place(interface));
        if method.get_result_struct_type() == STREAM_RESULT {
            return Err(Error::unsupported(place, "`-> stream`"));
        }
        if !method.get_implicit_parameters()?.is_empty() {
            return Err(Error::unsupported(place, "a generic method"));
        }
        let annotations = Annotations::new(&place, method.get_annotations()?);
        let effect = effect(&annotations)?;
        let param = |id, brand| -> Result<Param, Error> {
            Ok(Param {
                id,
                type_: self.struct_type(id, brand, &place)?,
            })
        };
        Ok(Method {
            params: param(method.get_param_struct_type(), method.get_param_brand()?)?,
            results: param(method.get_result_struct_type(), method.get_result_brand()?)?,
            fails: match annotations.text(Annotation::Fails)? {
                Some(error) => Some(self.error_struct(interface, error, &annotations, &place)?),
                None => None,
            },
            effect,
            timeout: annotations.timeout()?,
            docs: self.docs_of_member(interface, usize::from(ordinal)),
            name,
            interface,
            ordinal,
        })
    }

    /// Finds the struct that `$fails` names: in the interface or around it, else anywhere if there
    /// is only one of that name.
    fn error_struct(
        &self,
        interface: u64,
        name: &str,
        annotations: &Annotations<'_>,
        place: &str,
    ) -> Result<(String, u64), Error> {
        let mut scope = interface;
        loop {
            if let Some(id) = self.find_nested(scope, name)? {
                return Ok((self.rust_path(id, place)?, id));
            }
            match self.node(scope)?.get_scope_id() {
                0 => break,
                outer => scope = outer,
            }
        }
        let mut found = Vec::new();
        for file in self.files.keys() {
            found.extend(self.find_nested(*file, name)?);
        }
        match found[..] {
            [id] => Ok((self.rust_path(id, place)?, id)),
            [] => Err(annotations.error(Annotation::Fails, name, "names no struct of these files")),
            _ => {
                let places: Vec<String> = found.iter().map(|id| self.place(*id)).collect();
                let reason = format!("could be any of {}", places.join(", "));
                Err(annotations.error(Annotation::Fails, name, reason))
            }
        }
    }

    /// The struct `A.B` in the scope of a node.
    fn find_nested(&self, scope: u64, name: &str) -> Result<Option<u64>, Error> {
        let (first, rest) = match name.split_once('.') {
            Some((first, rest)) => (first, Some(rest)),
            None => (name, None),
        };
        for nested in self.node(scope)?.get_nested_nodes()? {
            if nested.get_name()?.to_str()? != first
                || !self.context.node_map.contains_key(&nested.get_id())
            {
                continue;
            }
            return match rest {
                Some(rest) => self.find_nested(nested.get_id(), rest),
                None => Ok(match self.node(nested.get_id())?.which()? {
                    node::Struct(_) => Some(nested.get_id()),
                    _ => None,
                }),
            };
        }
        Ok(None)
    }
}

/// What it means to call a method twice, as a path in `bowline::schema`.
fn effect(annotations: &Annotations<'_>) -> Result<&'static str, Error> {
    let has = |which| annotations.has(which);
    if has(Annotation::Once) && has(Annotation::Idempotent) {
        let reason =
            "and $idempotent together mean nothing: an idempotent method needs no stored reply";
        return Err(annotations.error(Annotation::Once, None, reason));
    }
    for recovery in [Annotation::Rerun, Annotation::Atomic] {
        if has(recovery) && !has(Annotation::Once) {
            return Err(annotations.error(recovery, None, "means something only beside $once"));
        }
    }
    if has(Annotation::Rerun) && has(Annotation::Atomic) {
        let reason = "is said already by $atomic";
        return Err(annotations.error(Annotation::Rerun, None, reason));
    }
    Ok(match () {
        () if has(Annotation::Atomic) => "Effect::Once(::bowline::schema::Recovery::Atomic)",
        () if has(Annotation::Rerun) => "Effect::Once(::bowline::schema::Recovery::Rerun)",
        () if has(Annotation::Once) => "Effect::Once(::bowline::schema::Recovery::InDoubt)",
        () if has(Annotation::Idempotent) => "Effect::Idempotent",
        () => "Effect::Unsafe",
    })
}
