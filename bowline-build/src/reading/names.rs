//! What each declaration is called in Rust, and where two would be called the same; and what capnpc is told to call
//! its readers and builders, which follow capnpc's own habits wherever the result is Rust.

use std::collections::{BTreeSet, HashMap};

use capnp::schema_capnp::{annotation, field, node};
use capnp::struct_list;

use super::{FileNames, Reading};
use crate::Error;
use crate::annotations::Annotations;
use crate::names::{
    Scope, capnpc_module, free, identifier, module, pascal, screaming, service_static, snake,
};

/// The names that capnpc is given.
#[derive(Default)]
pub(crate) struct CapnpNames {
    pub files: HashMap<u64, FileNames>,
    /// Of nested declarations and groups: the last part of their paths.
    pub nodes: HashMap<u64, String>,
    /// Of the fields of structs and the enumerants of enums, by index.
    pub members: HashMap<u64, Vec<String>>,
    /// Of the structs that an interface declares for its methods: the interface.
    pub anonymous: HashMap<u64, Vec<u64>>,
    /// Of the type parameters of a declaration itself.
    pub parameters: HashMap<u64, Vec<String>>,
}

/// What capnpc has in the module of every struct.
const OF_EVERY_STRUCT: [&str; 8] = [
    "Builder",
    "Owned",
    "Pipeline",
    "Reader",
    "Which",
    "WhichBuilder",
    "WhichReader",
    "_private",
];

impl<'a> Reading<'a> {
    pub(super) fn name_file(&mut self, file: u64) -> Result<(), Error> {
        let mut scope = Scope::default();
        // The files of the folder of the same name become modules beside its types.
        let names = &self.files[&file];
        for other in self
            .files
            .values()
            .filter(|other| other.is_own == names.is_own)
        {
            if let Some([child, ..]) = other.modules.strip_prefix(&names.modules[..]) {
                scope.reserve(child, &format!("the module of {}", other.name));
                scope.reserve(
                    &format!("{child}_capnp"),
                    &format!("the module of {}", other.name),
                );
            }
        }
        self.name_nested(file, file, "", &mut scope)?;
        self.name_anonymous(file, &mut scope)?;
        self.name_for_capnp(file, BTreeSet::new())
    }

    /// The name that a declaration's Rust names are made of: its own, or the one of `$rustName`.
    pub(super) fn base_name(
        &self,
        schema_name: &str,
        annotations: struct_list::Reader<'a, annotation::Owned>,
        place: &str,
    ) -> Result<String, Error> {
        Annotations::new(place, annotations).rust_name(schema_name)
    }

    /// The same of a field.
    pub(super) fn base_of_field(&self, field: field::Reader<'a>, of: u64) -> Result<String, Error> {
        let name = field.get_name()?.to_str()?;
        let place = format!("{}.{name}", self.place(of));
        self.base_name(name, field.get_annotations()?, &place)
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
            let place = self.place(nested.get_id());
            let base = self.base_name(schema_name, node.get_annotations()?, &place)?;
            let name = format!("{outer}{}", pascal(&base));
            let name = match outer {
                "" => identifier(&name),
                _ => name,
            };
            let owner = format!("`{schema_name}`");
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
                node::Const(_) => scope.take(constant_name(outer, &base), owner, &place)?,
                _ => {}
            }
            self.names.nodes.insert(nested.get_id(), base);
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
                let base = self.base_of_field(field, id)?;
                let group_name = format!("{name}{}", pascal(&base));
                let owner = format!("the group `{field_name}` of {owner}");
                self.names.nodes.insert(group.get_type_id(), base);
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
            for (_, base) in self.anonymous_of(*id)? {
                *uses.entry(pascal(&base)).or_default() += 1;
            }
        }
        let taken: BTreeSet<String> = self
            .rust
            .values()
            .filter(|(of, _)| *of == file)
            .map(|(_, name)| name.clone())
            .collect();
        for (interface, interface_name) in interfaces {
            for (id, base) in self.anonymous_of(interface)? {
                let short = pascal(&base);
                let name = if uses[&short] > 1 || taken.contains(&short) {
                    format!("{interface_name}{short}")
                } else {
                    short
                };
                let owner = format!("the signature of a method of `{interface_name}`");
                self.name_struct(file, id, &name, &owner, scope)?;
                self.names.nodes.insert(id, base);
                self.names.anonymous.entry(interface).or_default().push(id);
            }
        }
        Ok(())
    }

    /// ID and name of each struct that an interface declares by itself.
    fn anonymous_of(&self, interface: u64) -> Result<Vec<(u64, String)>, Error> {
        let node::Interface(reader) = self.node(interface)?.which()? else {
            return Ok(Vec::new());
        };
        let mut anonymous = Vec::new();
        for method in reader.get_methods()? {
            let name = method.get_name()?.to_str()?;
            let place = format!("{}.{name}", self.place(interface));
            let base = self.base_name(name, method.get_annotations()?, &place)?;
            for (id, suffix) in [
                (method.get_param_struct_type(), "Params"),
                (method.get_result_struct_type(), "Results"),
            ] {
                let node = self.context.node_map.get(&id);
                if node.is_some_and(|node| node.get_scope_id() == 0) {
                    anonymous.push((id, format!("{base}{suffix}")));
                }
            }
        }
        Ok(anonymous)
    }

    /// Gives capnpc its names for all that a declaration contains.
    fn name_for_capnp(&mut self, id: u64, mut taken: BTreeSet<String>) -> Result<(), Error> {
        let node = self.node(id)?;
        let mut inner = Vec::new();
        for nested in node.get_nested_nodes()? {
            let id = nested.get_id();
            let Some(nested) = self.context.node_map.get(&id) else {
                continue;
            };
            let base = self.names.nodes[&id].clone();
            let name = match nested.which()? {
                node::Enum(_) => {
                    // Its code says `From`, and is beside a module of the same name.
                    let mut name = pascal(&base);
                    while name == "Self"
                        || name == "From"
                        || taken.contains(&name)
                        || taken.contains(&module(&name))
                    {
                        name.push('_');
                    }
                    taken.extend([name.clone(), module(&name)]);
                    name
                }
                node::Const(_) => {
                    let mut name = module(&base);
                    while !taken.insert(name.to_ascii_uppercase()) {
                        name.push('_');
                    }
                    name
                }
                _ => free(&module(&base), &mut taken),
            };
            self.names.nodes.insert(id, name);
            inner.push(id);
        }
        for id in self.names.anonymous.get(&id).cloned().unwrap_or_default() {
            let name = free(&module(&self.names.nodes[&id]), &mut taken);
            self.names.nodes.insert(id, name);
            inner.push(id);
        }
        match node.which()? {
            node::Struct(struct_) => {
                let mut members = Vec::new();
                for field in struct_.get_fields()? {
                    let mut base = self.base_of_field(field, id)?;
                    // capnpc has the modules of groups and the variants of the union beside all else.
                    let is_variant = field.get_discriminant_value() != field::NO_DISCRIMINANT;
                    let group = match field.which()? {
                        field::Group(group) => Some(group.get_type_id()),
                        field::Slot(_) => None,
                    };
                    loop {
                        let (variant, module) = (pascal(&base), capnpc_module(&base));
                        let is_free =
                            |name: &String| identifier(name) == *name && !taken.contains(name);
                        if (!is_variant || is_free(&variant))
                            && (group.is_none() || is_free(&module))
                        {
                            taken.extend(is_variant.then_some(variant));
                            if let Some(group) = group {
                                taken.insert(module.clone());
                                self.names.nodes.insert(group, module);
                                inner.push(group);
                            }
                            break;
                        }
                        base.push('_');
                    }
                    members.push(base);
                }
                self.names.members.insert(id, members);
            }
            node::Enum(enum_) => {
                let mut members = Vec::new();
                for enumerant in enum_.get_enumerants()? {
                    let name = enumerant.get_name()?.to_str()?;
                    let place = format!("{}.{name}", self.place(id));
                    let base = self.base_name(name, enumerant.get_annotations()?, &place)?;
                    members.push(match &pascal(&base)[..] {
                        "Self" => format!("{base}_"),
                        _ => base,
                    });
                }
                self.names.members.insert(id, members);
            }
            _ => {}
        }
        self.name_parameters(id)?;
        for id in inner {
            // `core::` is in the code of every struct.
            let mut taken: BTreeSet<String> = OF_EVERY_STRUCT.map(str::to_owned).into();
            taken.insert("core".to_owned());
            self.name_for_capnp(id, taken)?;
        }
        Ok(())
    }

    /// The path of a type in Rust.
    pub(super) fn rust_path(&self, id: u64, place: &str) -> Result<String, Error> {
        if self.is_annotations(self.file_of(id)?) {
            return Ok("$crate::Link".to_owned()); // its only type
        }
        match self.rust.get(&id).and_then(|(file, name)| {
            let file = self.files.get(file)?;
            Some(format!("{}::{name}", file.path()))
        }) {
            Some(path) => Ok(path),
            None => Err(Error::unsupported(
                place,
                format!(
                    "`{}`, of a file that is imported but not compiled along,",
                    self.place(id)
                ),
                "say in build.rs which crate has it: `Builder::extern_crate(\"that_crate\", \"its/schema\")`, or put the file \
                 into the directory that is compiled",
            )),
        }
    }

    /// The path of what capnpc generates for a node.
    pub(super) fn capnp_path(&self, id: u64) -> Result<String, Error> {
        let mut names = Vec::new();
        let mut at = id;
        loop {
            if self.is_annotations(at) {
                names.push("$crate::bowline_capnp".to_owned());
                break;
            }
            if let Some(file) = self.files.get(&at) {
                let (outer, name) = file.capnp();
                names.push(name);
                names.extend(outer.into_iter().rev());
                names.push(file.root.clone());
                break;
            }
            let node = self.node(at)?;
            names.push(match self.names.nodes.get(&at) {
                Some(name) => name.clone(),
                // Of bowline.capnp, which is not named here.
                None => module(self.place(at).rsplit([':', '.']).next().unwrap_or_default()),
            });
            at = match (node.get_scope_id(), self.context.node_parents.get(&at)) {
                (0, Some(&parent)) if parent != 0 => parent,
                (0, _) => {
                    return Err(
                        capnp::Error::failed(format!("{} has no file", self.place(id))).into(),
                    );
                }
                (scope, _) => scope,
            };
        }
        names.reverse();
        Ok(names.join("::"))
    }

    pub(super) fn file_of(&self, id: u64) -> Result<u64, Error> {
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
