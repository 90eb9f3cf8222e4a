//! Reading interfaces and their methods.

use std::collections::HashMap;

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
            return Err(Error::unsupported(
                place,
                "a generic interface",
                "give it no type parameters, and make one interface for each type",
            ));
        }
        let annotations = Annotations::new(&place, node.get_annotations()?);
        annotations.check_each_once()?;
        let service = match annotations.name(Annotation::Service)? {
            Some(name) => name.to_owned(),
            None => snake(name),
        };
        let mut methods = self.methods(id, reader)?;
        let mut supertraits = Vec::new();
        let mut bases = Vec::new();
        for superclass in reader.get_superclasses()? {
            supertraits.push(self.rust_path(superclass.get_id(), &place)?);
            self.collect_bases(superclass.get_id(), &place, &mut bases)?;
        }
        let mut bases: Vec<Base> = bases.into_iter().map(|(_, base)| base).collect();
        self.name_in_client(&mut methods, &mut bases)?;
        Ok(Interface {
            id,
            name: name.to_owned(),
            service,
            docs: self.docs_of(id),
            methods,
            bases,
            supertraits,
            place,
        })
    }

    /// Gives each method its name in the client: its own, but `base_method` to an inherited one that has its name
    /// in common with another.
    fn name_in_client(&self, methods: &mut [Method], bases: &mut [Base]) -> Result<(), Error> {
        let all = || {
            let inherited = bases.iter().flat_map(|base| &base.methods);
            inherited.chain(methods.iter())
        };
        let mut uses: HashMap<String, usize> = HashMap::new();
        for method in all() {
            *uses.entry(method.rust.clone()).or_default() += 1;
        }
        for base in bases.iter_mut() {
            for method in &mut base.methods {
                if uses[&method.rust] > 1 {
                    method.client = format!("{}_{}", snake(&base.name), method.rust);
                }
            }
        }
        let mut names = Scope::default();
        for reserved in ["new", "connect"] {
            names.reserve(reserved, "the client's own function");
        }
        let inherited = bases.iter().flat_map(|base| &base.methods);
        for method in methods.iter().chain(inherited) {
            let owner = format!("method `{}`", method.name);
            let place = format!("{}.{}", self.place(method.interface), method.name);
            let mut suffixes = vec!["", "_plain", "_message"];
            if method.effect.starts_with("Effect::Once") {
                suffixes.push("_outcome");
            }
            for suffix in suffixes {
                names.take(format!("{}{suffix}", method.client), owner.clone(), &place)?;
            }
        }
        Ok(())
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
            name: self
                .rust
                .get(&id)
                .map(|(_, name)| name.clone())
                .unwrap_or_default(),
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
            return Err(Error::unsupported(
                place,
                "`-> stream`",
                "publish to a topic, or let the caller ask for the next part",
            ));
        }
        if !method.get_implicit_parameters()?.is_empty() {
            return Err(Error::unsupported(
                place,
                "a generic method",
                "give it no type parameters, and make one method for each type",
            ));
        }
        let annotations = Annotations::new(&place, method.get_annotations()?);
        annotations.check_each_once()?;
        let rust = snake(&self.base_name(&name, method.get_annotations()?, &place)?);
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
            client: rust.clone(),
            rust,
            name,
            interface,
            ordinal,
        })
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
        () if has(Annotation::Atomic) => "Effect::Once($crate::schema::Recovery::Atomic)",
        () if has(Annotation::Rerun) => "Effect::Once($crate::schema::Recovery::Rerun)",
        () if has(Annotation::Once) => "Effect::Once($crate::schema::Recovery::InDoubt)",
        () if has(Annotation::Idempotent) => "Effect::Idempotent",
        () => "Effect::Unsafe",
    })
}
