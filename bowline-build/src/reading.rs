//! From the compiler's request to the model: resolves names, checks what Bowline supports.
//!
//! First all declarations are named, so that each can be spoken of; then each is read. Writes no code.

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
use crate::model::File;
use crate::names::Scope;

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
    let mut modules = Scope::default();
    for file in requested {
        let name = file.get_filename()?.to_str()?.to_owned();
        let module = module_of(&name)?;
        modules.take(module.clone(), format!("file {name}"), &name)?;
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
fn module_of(file: &str) -> Result<String, Error> {
    let stem = file.rsplit('/').next().unwrap_or(file);
    let module = stem
        .strip_suffix(".capnp")
        .unwrap_or(stem)
        .replace('-', "_");
    let is_word = module.chars().all(|c| c.is_alphanumeric() || c == '_');
    match is_word && !module.starts_with(|c: char| c.is_numeric()) && !module.is_empty() {
        true => Ok(module),
        false => Err(Error::unsupported(
            file,
            "a file whose name cannot be that of a module",
        )),
    }
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

    fn file(&self, id: u64) -> Result<File, Error> {
        // There: it is asked only for the files of the request, and these are put in first.
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
}
