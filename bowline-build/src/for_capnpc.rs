//! What capnpc is given: the request with names that are Rust wherever they meet, and without what it would make of
//! it that nobody here uses.
//!
//! Interfaces become empty structs around those of their signatures, since its own RPC is not used; annotations go,
//! since it would name their types; each file says where its module is.

use std::collections::HashMap;

use capnp::message::{Builder, HeapAllocator};
use capnp::schema_capnp::{code_generator_request, node};
use capnpc::codegen::GeneratorContext;

use crate::reading::CapnpNames;
use crate::{Error, annotations};

/// `$Rust.name` and `$Rust.parentModule`, by which capnpc is told.
const NAME: u64 = 0xc2fe_4c6d_1001_66d0;
const PARENT_MODULE: u64 = 0xabee_386c_d145_0364;

/// The request for capnpc, and for files of other crates the roots of their paths.
pub(crate) struct ForCapnpc {
    pub message: Builder<HeapAllocator>,
    pub crates: HashMap<u64, String>,
}

/// Makes the request for capnpc. The code of a file is written where its modules are: `v1/user_capnp.rs`.
pub(crate) fn request(
    context: &GeneratorContext<'_>,
    names: &CapnpNames,
    parent: &str,
) -> Result<ForCapnpc, Error> {
    let mut message = Builder::new_default();
    message.set_root(context.request)?;
    let mut request: code_generator_request::Builder<'_> = message.get_root()?;
    let mut crates = HashMap::new();
    let mut nodes = request.reborrow().get_nodes()?;
    for index in 0..nodes.len() {
        let mut node = nodes.reborrow().get(index);
        let id = node.reborrow_as_reader().get_id();
        if let Some(file) = names.files.get(&id) {
            let (outer, name) = file.capnp();
            let mut root: Vec<&str> = file
                .root
                .split("::")
                .filter(|part| !part.is_empty())
                .collect();
            if let Some(of_crate) = file.root.strip_prefix("::") {
                crates.insert(
                    id,
                    of_crate.split("::").next().unwrap_or_default().to_owned(),
                );
            }
            root.remove(0);
            let modules: Vec<&str> = root
                .into_iter()
                .chain(outer.iter().map(String::as_str))
                .collect();
            say_where(node.reborrow(), &name, &modules);
        } else if id == annotations::FILE {
            let modules: Vec<&str> = parent.split("::").skip(1).chain(["__bowline"]).collect();
            say_where(node.reborrow(), "bowline_capnp", &modules);
        } else {
            node.reborrow().init_annotations(0);
        }
        rename(node, context, names)?;
    }
    let requested = context.request.get_requested_files()?;
    let own: Vec<u64> = requested
        .iter()
        .map(|file| file.get_id())
        .filter(|id| names.files[id].is_own)
        .collect();
    let mut imports: Vec<u64> = names
        .files
        .iter()
        .filter(|(_, file)| !file.is_own)
        .map(|(id, _)| *id)
        .collect();
    if !own.contains(&annotations::FILE) && context.node_map.contains_key(&annotations::FILE) {
        imports.push(annotations::FILE);
    }
    imports.sort_unstable();
    let mut files = request.init_requested_files(own.len() as u32);
    for (index, id) in (0u32..).zip(own) {
        let mut file = files.reborrow().get(index);
        file.set_id(id);
        file.set_filename(format!("{}.capnp", names.files[&id].modules.join("/")));
        // Each file may name what any other declares, whether it imports it or an alias leads there.
        let mut list = file.init_imports(imports.len() as u32);
        for (index, id) in (0u32..).zip(&imports) {
            let mut import = list.reborrow().get(index);
            import.set_id(*id);
            import.set_name(format!("{id:016x}.capnp"));
        }
    }
    Ok(ForCapnpc { message, crates })
}

/// Tells capnpc the module of a file, from the root of its crate.
fn say_where(node: node::Builder<'_>, name: &str, modules: &[&str]) {
    let mut annotations = node.init_annotations(1 + u32::from(!modules.is_empty()));
    let mut annotation = annotations.reborrow().get(0);
    annotation.set_id(NAME);
    annotation.init_value().set_text(name);
    if !modules.is_empty() {
        let mut annotation = annotations.get(1);
        annotation.set_id(PARENT_MODULE);
        annotation.init_value().set_text(modules.join("::"));
    }
}

/// Gives a declaration and its members their names.
fn rename(
    mut node: node::Builder<'_>,
    context: &GeneratorContext<'_>,
    names: &CapnpNames,
) -> Result<(), Error> {
    let id = node.reborrow_as_reader().get_id();
    let is_annotation = |id: &u64| {
        let node = context.node_map.get(id).map(|node| node.which());
        matches!(node, Some(Ok(node::Annotation(_))))
    };
    let mut nested: Vec<(u64, String)> = Vec::new();
    for inner in node.reborrow_as_reader().get_nested_nodes()? {
        let inner_id = inner.get_id();
        if !is_annotation(&inner_id) {
            let name = match names.nodes.get(&inner_id) {
                Some(name) => name.clone(),
                None => inner.get_name()?.to_string()?,
            };
            nested.push((inner_id, name));
        }
    }
    for inner in names.anonymous.get(&id).into_iter().flatten() {
        nested.push((*inner, names.nodes[inner].clone()));
    }
    let mut list = node.reborrow().init_nested_nodes(nested.len() as u32);
    for (index, (inner, name)) in (0u32..).zip(&nested) {
        let mut entry = list.reborrow().get(index);
        entry.set_id(*inner);
        entry.set_name(&name[..]);
    }
    if let Some(parameters) = names.parameters.get(&id) {
        let mut list = node.reborrow().get_parameters()?;
        for (index, name) in (0u32..).zip(parameters) {
            list.reborrow().get(index).set_name(&name[..]);
        }
    }
    let is_interface = matches!(node.reborrow_as_reader().which()?, node::Interface(_));
    if is_interface {
        node.reborrow().init_struct();
    }
    let members = names
        .members
        .get(&id)
        .map(Vec::as_slice)
        .unwrap_or_default();
    match node.which()? {
        node::Struct(struct_) => {
            let mut fields = struct_.get_fields()?;
            for index in 0..fields.len() {
                let mut field = fields.reborrow().get(index);
                field.reborrow().init_annotations(0);
                if let Some(name) = members.get(index as usize) {
                    field.set_name(&name[..]);
                }
            }
        }
        node::Enum(mut enum_) => {
            let mut enumerants = enum_.reborrow().get_enumerants()?;
            for index in 0..enumerants.len() {
                let mut enumerant = enumerants.reborrow().get(index);
                enumerant.reborrow().init_annotations(0);
                if let Some(name) = members.get(index as usize) {
                    enumerant.set_name(&name[..]);
                }
            }
            if enumerants.is_empty() {
                // An enum with numbers has at least one variant in Rust; nothing names this one.
                enum_.init_enumerants(1).get(0).set_name("none_");
            }
        }
        _ => {}
    }
    Ok(())
}
