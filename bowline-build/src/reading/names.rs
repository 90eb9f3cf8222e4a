//! What each declaration is called in Rust, and where two would be called the same; and the paths of
//! both what is generated here and what capnpc generates.

use std::collections::{BTreeSet, HashMap};

use capnp::schema_capnp::{field, node};

use super::Reading;
use crate::names::{Scope, identifier, module, pascal, screaming, service_static, snake};
use crate::{Error, annotations};

impl<'a> Reading<'a> {
    pub(super) fn name_file(&mut self, file: u64) -> Result<(), Error> {
        let mut scope = Scope::default();
        self.name_nested(file, file, "", &mut scope)?;
        self.name_anonymous(file, &mut scope)
    }

    fn name_nested(
        &mut self,
        file: u64,
        id: u64,
        outer: &str,
        scope: &mut Scope,
    ) -> Result<(), Error> {
        for nested in self.node(id)?.get_nested_nodes()? {
            let schema_name = nested.get_name()?.to_str()?;
            let Some(node) = self.context.node_map.get(&nested.get_id()) else {
                continue; // of an imported file, and not used
            };
            let name = format!("{outer}{}", pascal(schema_name));
            let owner = format!("`{schema_name}`");
            let place = self.place(nested.get_id());
            match node.which()? {
                node::Struct(_) => {
                    self.name_struct(file, nested.get_id(), &name, &owner, scope)?;
                }
                node::Enum(_) => scope.take(name.clone(), owner, &place)?,
                node::Interface(_) => {
                    for suffix in ["", "Client", "Server"] {
                        scope.take(format!("{name}{suffix}"), owner.clone(), &place)?;
                    }
                    scope.take(service_static(&name), owner, &place)?;
                }
                node::Const(_) => scope.take(constant_name(outer, schema_name), owner, &place)?,
                _ => {}
            }
            self.rust.insert(nested.get_id(), (file, name.clone()));
            self.name_nested(file, nested.get_id(), &name, scope)?;
        }
        Ok(())
    }

    /// Names a struct, the enum of its union and its groups.
    fn name_struct(
        &mut self,
        file: u64,
        id: u64,
        name: &str,
        owner: &str,
        scope: &mut Scope,
    ) -> Result<(), Error> {
        let place = self.place(id);
        scope.take(name, owner, &place)?;
        self.rust.insert(id, (file, name.to_owned()));
        let node::Struct(struct_) = self.node(id)?.which()? else {
            return Ok(());
        };
        let fields = struct_.get_fields()?;
        let in_union = |f: field::Reader<'_>| f.get_discriminant_value() != field::NO_DISCRIMINANT;
        if fields.iter().any(in_union) && !fields.iter().all(in_union) {
            scope.take(
                format!("{name}Which"),
                format!("the union of {owner}"),
                &place,
            )?;
        }
        for field in fields {
            if let field::Group(group) = field.which()? {
                let field_name = field.get_name()?.to_str()?;
                let group_name = format!("{name}{}", pascal(field_name));
                let owner = format!("the group `{field_name}` of {owner}");
                self.name_struct(file, group.get_type_id(), &group_name, &owner, scope)?;
            }
        }
        Ok(())
    }

    /// Names the structs of method signatures: `LogInParams`, or `LoginLogInParams` where two
    /// interfaces of the file have a method of the same name.
    fn name_anonymous(&mut self, file: u64, scope: &mut Scope) -> Result<(), Error> {
        let mut interfaces: Vec<(u64, String)> = Vec::new();
        for (id, (of, name)) in &self.rust {
            if *of == file && matches!(self.node(*id)?.which()?, node::Interface(_)) {
                interfaces.push((*id, name.clone()));
            }
        }
        interfaces.sort();
        let mut uses: HashMap<String, usize> = HashMap::new();
        for (id, _) in &interfaces {
            for (_, short, _) in self.anonymous_of(*id)? {
                *uses.entry(short).or_default() += 1;
            }
        }
        let taken: BTreeSet<String> = self
            .rust
            .values()
            .filter(|(of, _)| *of == file)
            .map(|(_, name)| name.clone())
            .collect();
        for (interface, interface_name) in interfaces {
            let outer = self.capnp_path(interface)?;
            for (id, short, module_name) in self.anonymous_of(interface)? {
                let name = if uses[&short] > 1 || taken.contains(&short) {
                    format!("{interface_name}{short}")
                } else {
                    short
                };
                let owner = format!("the signature of a method of `{interface_name}`");
                self.name_struct(file, id, &name, &owner, scope)?;
                self.anonymous.insert(id, format!("{outer}::{module_name}"));
            }
        }
        Ok(())
    }

    /// ID, Rust name and capnpc's module of each struct that an interface declares by itself.
    fn anonymous_of(&self, interface: u64) -> Result<Vec<(u64, String, String)>, Error> {
        let node::Interface(reader) = self.node(interface)?.which()? else {
            return Ok(Vec::new());
        };
        let mut anonymous = Vec::new();
        for method in reader.get_methods()? {
            let name = method.get_name()?.to_str()?;
            for (id, suffix) in [
                (method.get_param_struct_type(), "Params"),
                (method.get_result_struct_type(), "Results"),
            ] {
                let declared_here = self
                    .context
                    .node_map
                    .get(&id)
                    .is_some_and(|node| node.get_scope_id() == 0);
                if declared_here {
                    anonymous.push((
                        id,
                        format!("{}{suffix}", pascal(name)),
                        module(&format!("{name}{suffix}")),
                    ));
                }
            }
        }
        Ok(anonymous)
    }

    /// The path of a type in Rust.
    pub(super) fn rust_path(&self, id: u64, place: &str) -> Result<String, Error> {
        if self.file_of(id)? == annotations::FILE {
            return Ok("::bowline::Link".to_owned()); // its only type
        }
        match self.rust.get(&id).and_then(|(file, name)| {
            let (_, module) = self.files.get(file)?;
            Some(format!("{}::{}::{name}", self.parent, identifier(module)))
        }) {
            Some(path) => Ok(path),
            None => Err(Error::unsupported(
                place,
                format!(
                    "`{}`, of a file that is imported but not compiled along,",
                    self.place(id)
                ),
            )),
        }
    }

    /// The path of what capnpc generates for a node.
    pub(super) fn capnp_path(&self, id: u64) -> Result<String, Error> {
        if let Some(path) = self.anonymous.get(&id) {
            return Ok(path.clone());
        }
        let node = self.node(id)?;
        if matches!(node.which()?, node::Struct(s) if s.get_is_group())
            && let Some(outer) = self.anonymous.get(&node.get_scope_id())
        {
            let name = self.place(id);
            let name = name.rsplit('.').next().unwrap_or_default();
            return Ok(format!("{outer}::{}", module(name)));
        }
        let path = self
            .context
            .scope_map
            .get(&id)
            .ok_or_else(|| capnp::Error::failed(format!("{} has no name", self.place(id))))?;
        let (root, rest) = path
            .split_first()
            .map_or(("", &path[..]), |(r, s)| (&r[..], s));
        let root = match self.file_of(id)? {
            annotations::FILE => "::bowline",
            _ if root == "crate" => self.parent,
            _ => root,
        };
        let mut path = root.to_owned();
        for module in rest {
            path.push_str("::");
            path.push_str(module);
        }
        Ok(path)
    }

    fn file_of(&self, id: u64) -> Result<u64, Error> {
        let mut id = id;
        loop {
            let node = self.node(id)?;
            if matches!(node.which()?, node::File(())) {
                return Ok(id);
            }
            match self.context.node_parents.get(&id) {
                Some(&parent) if parent != 0 => id = parent,
                _ => return Ok(self.rust.get(&id).map_or(0, |(file, _)| *file)),
            }
        }
    }
}

pub(super) fn constant_name(outer: &str, name: &str) -> String {
    match outer {
        "" => screaming(name),
        outer => format!("{}_{}", snake(outer).to_ascii_uppercase(), screaming(name)),
    }
}
