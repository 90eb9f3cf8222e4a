//! From the compiler's request to the model: resolves names, checks what Bowline supports.

mod interfaces;
mod structs;

use std::collections::{BTreeSet, HashMap, HashSet};

use capnp::schema_capnp::{brand, field, node, type_};
use capnpc::codegen::GeneratorContext;

use crate::model::{Constant, Enum, File, Type};
use crate::names::{Scope, identifier, module, pascal, screaming, service_static, snake, variant};
use crate::{Error, annotations};

/// Reads the files that were asked for.
///
/// `parent` is the module of the crate that the generated ones are in, `crate` or below.
pub(crate) fn read(context: &GeneratorContext<'_>, parent: &str) -> Result<Vec<File>, Error> {
    let mut reading = Reading {
        context,
        parent,
        files: HashMap::new(),
        rust: HashMap::new(),
        anonymous: HashMap::new(),
        docs: HashMap::new(),
        reaches: HashMap::new(),
    };
    reading.read_docs()?;
    let requested = context.request.get_requested_files()?;
    let mut modules = Scope::new("the schema files");
    for file in requested {
        let name = file.get_filename()?.to_str()?.to_owned();
        let module = module_of(&name);
        modules.take(module.clone(), format!("file {name}"))?;
        reading.files.insert(file.get_id(), (name, module));
    }
    for file in requested {
        reading.name_file(file.get_id())?;
    }
    reading.find_reaches()?;
    requested
        .iter()
        .map(|file| reading.file(file.get_id()))
        .collect()
}

/// `log-in.capnp` to `log_in`; capnpc appends `_capnp` to the same.
fn module_of(file: &str) -> String {
    let stem = file.rsplit('/').next().unwrap_or(file);
    stem.strip_suffix(".capnp")
        .unwrap_or(stem)
        .replace('-', "_")
}

struct Reading<'a> {
    context: &'a GeneratorContext<'a>,
    parent: &'a str,
    /// Of each file by its ID: name and module.
    files: HashMap<u64, (String, String)>,
    /// Of each type by its ID: its file's ID and its name there.
    rust: HashMap<u64, (u64, String)>,
    /// capnpc's module of the structs that interfaces declare for their methods.
    anonymous: HashMap<u64, String>,
    /// Of each node and, by index, of its members.
    docs: HashMap<u64, (String, Vec<String>)>,
    /// The structs that a struct can contain, at any depth.
    reaches: HashMap<u64, HashSet<u64>>,
}

impl<'a> Reading<'a> {
    fn node(&self, id: u64) -> Result<node::Reader<'a>, Error> {
        self.context
            .node_map
            .get(&id)
            .copied()
            .ok_or_else(|| capnp::Error::failed(format!("node {id:#x} is missing")).into())
    }

    fn read_docs(&mut self) -> Result<(), Error> {
        for info in self.context.request.get_source_info()? {
            let mut members = Vec::new();
            for member in info.get_members()? {
                members.push(member.get_doc_comment()?.to_str()?.to_owned());
            }
            let docs = info.get_doc_comment()?.to_str()?.to_owned();
            self.docs.insert(info.get_id(), (docs, members));
        }
        Ok(())
    }

    fn docs_of(&self, id: u64) -> String {
        self.docs.get(&id).map(|d| d.0.clone()).unwrap_or_default()
    }

    fn docs_of_member(&self, id: u64, index: usize) -> String {
        let members = self.docs.get(&id).map(|d| &d.1[..]).unwrap_or_default();
        members.get(index).cloned().unwrap_or_default()
    }

    /// `login.capnp:Login.logIn`, for messages.
    fn place(&self, id: u64) -> String {
        match self.context.node_map.get(&id).map(|n| n.get_display_name()) {
            Some(Ok(name)) => name.to_string().unwrap_or_else(|_| format!("{id:#x}")),
            _ => format!("{id:#x}"),
        }
    }

    // ---- names ----

    fn name_file(&mut self, file: u64) -> Result<(), Error> {
        let place = self.place(file);
        let mut scope = Scope::new(place);
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
            match node.which()? {
                node::Struct(_) => {
                    self.name_struct(file, nested.get_id(), &name, &owner, scope)?;
                }
                node::Enum(_) => scope.take(name.clone(), owner)?,
                node::Interface(_) => {
                    for suffix in ["", "Client", "Server"] {
                        scope.take(format!("{name}{suffix}"), owner.clone())?;
                    }
                    scope.take(service_static(&name), owner)?;
                }
                node::Const(_) => scope.take(constant_name(outer, schema_name), owner)?,
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
        scope.take(name, owner)?;
        self.rust.insert(id, (file, name.to_owned()));
        let node::Struct(struct_) = self.node(id)?.which()? else {
            return Ok(());
        };
        let fields = struct_.get_fields()?;
        let in_union = |f: field::Reader<'_>| f.get_discriminant_value() != field::NO_DISCRIMINANT;
        if fields.iter().any(in_union) && !fields.iter().all(in_union) {
            scope.take(format!("{name}Which"), format!("the union of {owner}"))?;
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
    fn rust_path(&self, id: u64, place: &str) -> Result<String, Error> {
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
    fn capnp_path(&self, id: u64) -> Result<String, Error> {
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

    // ---- types ----

    fn type_(&self, from: type_::Reader<'a>, place: &str) -> Result<Type, Error> {
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

    fn struct_type(&self, id: u64, brand: brand::Reader<'a>, place: &str) -> Result<Type, Error> {
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

    fn parameters(&self, id: u64) -> Result<Vec<String>, Error> {
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

    // ---- recursion ----

    /// A struct that can contain itself needs a box on the way: finds who contains whom.
    fn find_reaches(&mut self) -> Result<(), Error> {
        let mut direct: HashMap<u64, HashSet<u64>> = HashMap::new();
        for (&id, node) in &self.context.node_map {
            if let node::Struct(struct_) = node.which()? {
                let contained = direct.entry(id).or_default();
                for field in struct_.get_fields()? {
                    match field.which()? {
                        field::Group(group) => {
                            contained.insert(group.get_type_id());
                        }
                        field::Slot(slot) => contains(slot.get_type()?, contained)?,
                    }
                }
            }
        }
        for &start in direct.keys() {
            let mut seen = HashSet::new();
            let mut open: Vec<u64> = direct[&start].iter().copied().collect();
            while let Some(id) = open.pop() {
                if seen.insert(id) {
                    open.extend(direct.get(&id).into_iter().flatten());
                }
            }
            self.reaches.insert(start, seen);
        }
        Ok(())
    }

    // ---- files ----

    fn file(&self, id: u64) -> Result<File, Error> {
        let (name, module) = self.files[&id].clone();
        let mut file = File {
            module,
            name,
            structs: Vec::new(),
            enums: Vec::new(),
            interfaces: Vec::new(),
            constants: Vec::new(),
        };
        let mut types: Vec<(&String, u64)> = self
            .rust
            .iter()
            .filter(|(_, (of, _))| *of == id)
            .map(|(id, (_, name))| (name, *id))
            .collect();
        types.sort();
        for (name, id) in types {
            let node = self.node(id)?;
            match node.which()? {
                node::Struct(struct_) => file.structs.push(self.struct_(id, name, struct_)?),
                node::Enum(enum_) => {
                    let mut enumerants = Vec::new();
                    let mut scope = Scope::new(self.place(id));
                    scope.take("Unknown", "the variant for what the schema does not have")?;
                    for (index, enumerant) in enum_.get_enumerants()?.iter().enumerate() {
                        let name = enumerant.get_name()?.to_str()?.to_owned();
                        scope.take(variant(&name, &self.place(id))?, format!("`{name}`"))?;
                        enumerants.push((name, self.docs_of_member(id, index)));
                    }
                    file.enums.push(Enum {
                        name: name.clone(),
                        capnp: self.capnp_path(id)?,
                        docs: self.docs_of(id),
                        enumerants,
                    });
                }
                node::Interface(interface) => {
                    file.interfaces.push(self.interface(id, name, interface)?);
                }
                node::Const(_) => {
                    let capnp = self.capnp_path(node.get_scope_id())?;
                    let schema_name = self.place(id);
                    let schema_name = schema_name.rsplit(['.', ':']).next().unwrap_or_default();
                    let outer = match self.rust.get(&node.get_scope_id()) {
                        Some((_, outer)) => outer.as_str(),
                        None => "",
                    };
                    file.constants.push(Constant {
                        capnp: format!("{capnp}::{}", screaming(schema_name)),
                        name: constant_name(outer, schema_name),
                        docs: self.docs_of(id),
                    });
                }
                _ => {}
            }
        }
        Ok(file)
    }
}

fn constant_name(outer: &str, name: &str) -> String {
    match outer {
        "" => screaming(name),
        outer => format!("{}_{}", snake(outer).to_ascii_uppercase(), screaming(name)),
    }
}

/// The structs that a value of this type holds by itself: not those of lists, which are on the heap.
fn contains(type_: type_::Reader<'_>, into: &mut HashSet<u64>) -> Result<(), Error> {
    if let type_::Struct(struct_) = type_.which()? {
        into.insert(struct_.get_type_id());
        for scope in struct_.get_brand()?.get_scopes()? {
            if let brand::scope::Bind(bindings) = scope.which()? {
                for binding in bindings? {
                    if let brand::binding::Type(argument) = binding.which()? {
                        contains(argument?, into)?;
                    }
                }
            }
        }
    }
    Ok(())
}
