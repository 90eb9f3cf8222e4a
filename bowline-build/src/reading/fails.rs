//! The struct that `$fails` names, found as the schema language finds the type of a field.

use capnp::schema_capnp::node;

use super::Reading;
use crate::Error;
use crate::annotations::{Annotation, Annotations};
use crate::text;

/// Aliases of aliases are followed so often.
const ALIASES_MAX: usize = 32;

/// What `using` says of a name.
struct Alias {
    /// The imported file where it begins in one.
    file: Option<u64>,
    /// The names from there.
    names: Vec<String>,
}

impl<'a> Reading<'a> {
    /// Path and type ID of the struct that a method of the interface fails with.
    pub(super) fn error_struct(
        &self,
        interface: u64,
        name: &str,
        annotations: &Annotations<'_>,
        place: &str,
    ) -> Result<(String, u64), Error> {
        let names: Vec<&str> = name.split('.').collect();
        let id = match self.resolve(interface, &names, ALIASES_MAX)? {
            Some(id) => id,
            None => self.only_one_named(&names, name, annotations)?,
        };
        let error = |reason: &str| Err(annotations.error(Annotation::Fails, name, reason));
        let node = self.node(id)?;
        match node.which()? {
            node::Struct(_) if node.get_is_generic() => error(
                "has type parameters; name a struct without them, which has this one as a field",
            ),
            node::Struct(_) => Ok((self.rust_path(id, place)?, id)),
            _ => error("is not a struct; name one"),
        }
    }

    /// Finds the first name in a scope or around it, and the others in what was found.
    fn resolve(&self, scope: u64, names: &[&str], aliases: usize) -> Result<Option<u64>, Error> {
        let mut scope = scope;
        // `.A` begins in the file.
        let names = match names {
            ["", rest @ ..] => {
                scope = self.file_of(scope)?;
                rest
            }
            names => names,
        };
        loop {
            if let Some(found) = self.member(scope, names, aliases)? {
                return Ok(Some(found));
            }
            match self.node(scope)?.get_scope_id() {
                0 => return Ok(None),
                outer => scope = outer,
            }
        }
    }

    /// Finds the names in a scope: declared there, or said there by `using`.
    fn member(&self, scope: u64, names: &[&str], aliases: usize) -> Result<Option<u64>, Error> {
        let Some((first, rest)) = names.split_first() else {
            return Ok(Some(scope));
        };
        for nested in self.node(scope)?.get_nested_nodes()? {
            let id = nested.get_id();
            if nested.get_name()?.to_str()? == *first && self.context.node_map.contains_key(&id) {
                return self.member(id, rest, aliases);
            }
        }
        let Some(aliases) = aliases.checked_sub(1) else {
            return Ok(None);
        };
        let Some(alias) = self.alias(scope, first)? else {
            return Ok(None);
        };
        let names: Vec<&str> = alias
            .names
            .iter()
            .map(String::as_str)
            .chain(rest.iter().copied())
            .collect();
        match alias.file {
            Some(file) => self.member(file, &names, aliases),
            None => self.resolve(scope, &names, aliases),
        }
    }

    /// What `using` says of a name in a scope: the imported file where it begins in one, and the names from there.
    fn alias(&self, scope: u64, name: &str) -> Result<Option<Alias>, Error> {
        let place = self.place(scope);
        let (file, declared) = place.split_once(':').unwrap_or((&place, ""));
        let Some((_, text)) = self.sources.read(file) else {
            return Ok(None);
        };
        let outer: Vec<&str> = declared
            .split('.')
            .filter(|name| !name.is_empty())
            .collect();
        let Some(alias) = text::alias(&text, &outer, name) else {
            return Ok(None);
        };
        let Some(import) = alias.import else {
            let (file, names) = (None, alias.names);
            return Ok(Some(Alias { file, names }));
        };
        let file = self.file_of(scope)?;
        for requested in self.context.request.get_requested_files()? {
            if requested.get_id() != file {
                continue;
            }
            for known in requested.get_imports()? {
                if known.get_name()?.to_str()? == import {
                    let (file, names) = (Some(known.get_id()), alias.names);
                    return Ok(Some(Alias { file, names }));
                }
            }
        }
        Ok(None)
    }

    /// The struct of that name in any of the files, where there is only one.
    fn only_one_named(
        &self,
        names: &[&str],
        name: &str,
        annotations: &Annotations<'_>,
    ) -> Result<u64, Error> {
        let mut found = Vec::new();
        for file in self.files.keys() {
            found.extend(self.member(*file, names, 0)?);
        }
        match found[..] {
            [id] => Ok(id),
            [] => Err(annotations.error(
                Annotation::Fails,
                name,
                "names no struct that is known here; import its file, with `using`, or declare it",
            )),
            _ => {
                let mut places: Vec<String> = found.iter().map(|id| self.place(*id)).collect();
                places.sort();
                let reason = format!(
                    "could be any of {}; say which, as in `using Other = import \"other.capnp\"` and `Other.{name}`",
                    places.join(", ")
                );
                Err(annotations.error(Annotation::Fails, name, reason))
            }
        }
    }
}
