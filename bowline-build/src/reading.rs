//! From the compiler's request to the model: resolves names, checks what Bowline supports.
//!
//! First all declarations are named, so that each can be spoken of; then each is read. Writes no code.

mod fails;
mod generics;
mod interfaces;
mod names;
mod recursion;
mod structs;
mod types;
mod values;

use std::collections::{HashMap, HashSet};

use capnp::schema_capnp::node;
use capnpc::codegen::GeneratorContext;

use crate::Error;
use crate::annotations::{self, Annotations};
use crate::model::File;
use crate::names::{Scope, identifier, module_of_file};
use crate::place::Sources;

pub(crate) use names::CapnpNames;

/// Where the code of files comes from that are not compiled here.
pub(crate) struct Extern {
    /// Of each file: its ID, and its path in that directory.
    pub files: HashMap<u64, String>,
    /// The module that has them, from the root of all: `::common` or `crate`.
    pub root: String,
}

/// What the files of a request become, and what their readers and builders are called.
pub(crate) struct Read {
    pub files: Vec<File>,
    pub names: CapnpNames,
}

/// Reads the files that were asked for and are of no other crate.
///
/// `parent` is the module of the crate that the generated ones are in, `crate` or below.
pub(crate) fn read(
    context: &GeneratorContext<'_>,
    parent: &str,
    externs: &[Extern],
    sources: &Sources<'_>,
) -> Result<Read, Error> {
    let mut reading = Reading {
        context,
        sources,
        files: HashMap::new(),
        rust: HashMap::new(),
        names: CapnpNames::default(),
        docs: HashMap::new(),
        reaches: HashMap::new(),
        mentions: HashMap::new(),
    };
    reading.read_docs()?;
    let requested = context.request.get_requested_files()?;
    for file in requested {
        let id = file.get_id();
        let name = file.get_filename()?.to_str()?;
        let of_extern = externs.iter().find_map(|of| Some((of, of.files.get(&id)?)));
        let (root, path) = match of_extern {
            Some((of, path)) => (&of.root[..], &path[..]),
            None => (parent, name),
        };
        let named = FileNames {
            name: name.to_owned(),
            modules: reading.modules_of(id, path)?,
            root: root.to_owned(),
            is_own: of_extern.is_none(),
        };
        reading.files.insert(id, named);
    }
    reading.check_modules()?;
    for file in requested {
        reading.name_file(file.get_id())?;
    }
    reading.find_reaches()?;
    let own = |file: &capnp::schema_capnp::code_generator_request::requested_file::Reader<'_>| {
        reading.files[&file.get_id()].is_own
    };
    let files = requested
        .iter()
        .filter(own)
        .map(|file| reading.file(file.get_id()))
        .collect::<Result<_, _>>()?;
    let mut names = reading.names;
    for (id, file) in reading.files {
        names.files.insert(id, file);
    }
    Ok(Read { files, names })
}

/// What a schema file is called.
#[derive(Clone, Debug)]
pub(crate) struct FileNames {
    /// As the request has it: `auth/login.capnp`.
    pub name: String,
    /// `auth`, `login`: not escaped.
    pub modules: Vec<String>,
    /// The module that the first of these is in.
    pub root: String,
    pub is_own: bool,
}

impl FileNames {
    /// The path of its module.
    pub fn path(&self) -> String {
        let modules = self.modules.iter().map(|module| identifier(module));
        let path: Vec<String> = std::iter::once(self.root.clone()).chain(modules).collect();
        path.join("::")
    }

    /// The modules around that of its readers and builders, and its name.
    pub fn capnp(&self) -> (Vec<String>, String) {
        let (last, outer) = self.modules.split_last().expect("a file has a module");
        let outer = outer.iter().map(|module| identifier(module)).collect();
        (outer, format!("{last}_capnp"))
    }
}

struct Reading<'a> {
    context: &'a GeneratorContext<'a>,
    sources: &'a Sources<'a>,
    /// By their IDs.
    files: HashMap<u64, FileNames>,
    /// Of each type by its ID: its file's ID and its name there.
    rust: HashMap<u64, (u64, String)>,
    names: CapnpNames,
    /// Of each node and, by index, of its members.
    docs: HashMap<u64, (String, Vec<String>)>,
    /// The structs that a struct can contain, at any depth: by value.
    reaches: HashMap<u64, HashSet<u64>>,
    /// The same with what is in lists.
    mentions: HashMap<u64, HashSet<u64>>,
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

    /// `["auth", "login"]` of `auth/log-in.capnp $rustName("login")`.
    fn modules_of(&self, id: u64, path: &str) -> Result<Vec<String>, Error> {
        let mut modules: Vec<String> = path.split('/').map(str::to_owned).collect();
        if let Some(file) = modules.last_mut() {
            let stem = file.strip_suffix(".capnp").unwrap_or(file);
            *file = match self.context.node_map.get(&id) {
                Some(node) => Annotations::new(path, node.get_annotations()?).rust_name(stem)?,
                None => stem.to_owned(),
            };
        }
        Ok(modules.iter().map(|name| module_of_file(name)).collect())
    }

    /// Two files must not become one module.
    fn check_modules(&self) -> Result<(), Error> {
        let mut files: Vec<&FileNames> = self.files.values().filter(|file| file.is_own).collect();
        files.sort_by_key(|file| &file.name);
        let mut modules = Scope::default();
        for file in &files {
            let module = file.modules.join("::");
            let owner = format!("file {}", file.name);
            modules.take(format!("{module}_capnp"), owner.clone(), &file.name)?;
            modules.take(module, owner, &file.name)?;
        }
        for file in files {
            for depth in 1..file.modules.len() {
                let folder = file.modules[..depth].join("::");
                if folder.ends_with("_capnp") && modules.has(&folder) {
                    let owner = format!("the folder of {}", file.name);
                    modules.take(folder, owner, &file.name)?;
                }
            }
        }
        Ok(())
    }

    fn file(&self, id: u64) -> Result<File, Error> {
        // There: it is asked only for the files of the request, and these are put in first.
        let names = self.files[&id].clone();
        let mut file = File {
            names,
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
            match self.node(id)?.which()? {
                node::Struct(struct_) => file.structs.push(self.struct_(id, name, struct_)?),
                node::Enum(enum_) => file.enums.push(self.enum_(id, name, enum_)?),
                node::Interface(interface) => {
                    file.interfaces.push(self.interface(id, name, interface)?);
                }
                node::Const(_) => file.constants.push(self.constant(id)?),
                _ => {}
            }
        }
        Ok(file)
    }

    fn is_annotations(&self, id: u64) -> bool {
        id == annotations::FILE
    }
}
