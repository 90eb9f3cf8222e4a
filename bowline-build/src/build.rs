//! One compilation from end to end: which files, their request, the model, the code; and what earlier ones of the
//! same build have left in the same directory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use capnp::message::ReaderOptions;
use capnpc::codegen::{CodeGenerationCommand, GeneratorContext};

use crate::emit::{self, Module};
use crate::model::File;
use crate::names::Scope;
use crate::place::Sources;
use crate::reading::Extern;
use crate::{
    Builder, Compiler, Error, compiler, for_capnpc, generic_unions, reading, sources, text,
};

/// What this process has compiled, by the directory that it was written to.
static COMPILED: Mutex<BTreeMap<PathBuf, Vec<Compiled>>> = Mutex::new(BTreeMap::new());

/// One compilation.
struct Compiled {
    directory: PathBuf,
    /// `crate`, or the module below.
    parent: String,
    modules: Vec<Module>,
    names: Vec<Name>,
}

/// A declaration that is found by its name.
struct Name {
    annotation: &'static str,
    name: String,
    /// File and declaration.
    place: String,
}

pub(crate) fn run(builder: &Builder, out_dir: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(out_dir).map_err(Error::file(out_dir))?;
    let out_dir = out_dir.canonicalize().map_err(Error::file(out_dir))?;
    // A request may stand alone, without the schemas that it was made of.
    let directory = real(&builder.directory);
    let parent = match &builder.parent_module {
        Some(module) => format!("crate::{module}"),
        None => "crate".to_owned(),
    };
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let before = compiled.entry(out_dir.clone()).or_default();
    before.retain(|earlier| earlier.directory != directory);
    if let Some(earlier) = before.iter().find(|earlier| earlier.parent != parent) {
        return Err(Error::ParentModules {
            first: earlier.directory.clone(),
            second: directory,
            first_module: earlier.parent.clone(),
            second_module: parent,
        });
    }

    let externs = externs(builder, before)?;
    let mut import_paths = builder.import_paths.clone();
    import_paths.extend(builder.extern_crates.iter().map(|(_, path)| path.clone()));
    let sources = Sources {
        directory: &builder.directory,
        import_paths: &import_paths,
    };
    let request = request(builder, &out_dir, &sources, &externs)?;
    if let Some(path) = &builder.request_to {
        std::fs::write(path, &request).map_err(Error::file(path))?;
    }
    let externs: Vec<Extern> = externs.into_iter().map(|found| found.names).collect();
    let files = generate(&request, &out_dir, &parent, &externs, &sources)
        .map_err(|error| error.located(&sources))?;

    let this = Compiled {
        directory,
        modules: files.iter().map(Module::of).collect(),
        names: files.iter().flat_map(names).collect(),
        parent,
    };
    check(before, &this).map_err(|error| error.located(&sources))?;
    before.push(this);
    let modules: Vec<&Module> = before.iter().flat_map(|one| &one.modules).collect();
    write(&out_dir.join("bowline.rs"), &emit::root(&modules))
}

fn real(directory: &Path) -> PathBuf {
    directory
        .canonicalize()
        .unwrap_or_else(|_| directory.to_owned())
}

/// A directory whose files have their code elsewhere.
struct ExternFiles {
    directory: PathBuf,
    files: Vec<PathBuf>,
    names: Extern,
}

/// Those of other crates, and those that earlier compilations of this build have compiled.
fn externs(builder: &Builder, before: &[Compiled]) -> Result<Vec<ExternFiles>, Error> {
    let compiled_before = builder.import_paths.iter().filter_map(|path| {
        let earlier = before
            .iter()
            .find(|earlier| earlier.directory == real(path))?;
        Some((&earlier.parent, path))
    });
    let of_crates = builder
        .extern_crates
        .iter()
        .map(|(root, path)| (root, path));
    let mut externs = Vec::new();
    for (root, directory) in of_crates.chain(compiled_before) {
        let files = sources::find(directory)?;
        let mut named = HashMap::new();
        for file in &files {
            let text = std::fs::read_to_string(file).map_err(Error::file(file))?;
            if let (Some(id), Ok(path)) = (text::file_id(&text), file.strip_prefix(directory)) {
                let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
                named.insert(id, parts.join("/"));
            }
        }
        externs.push(ExternFiles {
            directory: directory.clone(),
            files,
            names: Extern {
                files: named,
                root: root.clone(),
            },
        });
    }
    Ok(externs)
}

/// Runs the compiler alone, and returns its CodeGeneratorRequest. Tells cargo all that it reads.
fn request(
    builder: &Builder,
    out_dir: &Path,
    sources: &Sources<'_>,
    externs: &[ExternFiles],
) -> Result<Vec<u8>, Error> {
    let mut files = Vec::new();
    if let Compiler::Request(path) = &builder.compiler {
        println!("cargo:rerun-if-changed={}", path.display());
    } else {
        println!("cargo:rerun-if-changed={}", builder.directory.display());
        files = sources::find(&builder.directory)?;
        if files.is_empty() {
            return Err(Error::Empty {
                directory: builder.directory.clone(),
            });
        }
        let imported = sources::imported(&files, sources);
        for file in files.iter().chain(&imported) {
            println!("cargo:rerun-if-changed={}", file.display());
        }
        // The compiler tells all of a file only where it is asked for that file.
        let imported: BTreeSet<PathBuf> = imported.iter().map(|file| real(file)).collect();
        let of_externs = externs.iter().flat_map(|of| &of.files);
        files.extend(
            of_externs
                .filter(|file| imported.contains(&real(file)))
                .cloned(),
        );
    }
    let mut prefixes = vec![&builder.directory];
    prefixes.extend(externs.iter().map(|of| &of.directory));
    let input = compiler::Input {
        files: &files,
        prefixes: &prefixes,
        import_paths: sources.import_paths,
        scratch: out_dir,
    };
    compiler::compile(&builder.compiler, &input)
}

fn generate(
    request: &[u8],
    out_dir: &Path,
    parent: &str,
    externs: &[Extern],
    sources: &Sources<'_>,
) -> Result<Vec<File>, Error> {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(None).nesting_limit(256);
    let message = capnp::serialize::read_message(request, options)?;
    let context = GeneratorContext::new(&message)?;
    let read = reading::read(&context, parent, externs, sources)?;
    let for_capnpc = for_capnpc::request(&context, &read.names, parent)?;
    CodeGenerationCommand::new()
        .output_directory(out_dir)
        .capnp_root(&format!("{parent}::__bowline::__private::capnp"))
        .crates_provide_map(for_capnpc.crates)
        .run(&capnp::serialize::write_message_to_words(&for_capnpc.message)[..])?;
    let parameters = read.names.parameters.values().flatten();
    let parameters: BTreeSet<&str> = parameters.map(String::as_str).collect();
    for file in &read.files {
        let path = file.names.modules.join("/");
        write(
            &out_dir.join(format!("{path}_bowline.rs")),
            &emit::file(file, parent),
        )?;
        if !parameters.is_empty() {
            let path = out_dir.join(format!("{path}_capnp.rs"));
            let code = std::fs::read_to_string(&path).map_err(Error::file(&path))?;
            write(&path, &generic_unions::mend(&code, &parameters))?;
        }
    }
    Ok(read.files)
}

/// Writes a file, unless it is so already: what did not change is not compiled again.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(Error::file(directory))?;
    }
    if std::fs::read(path).is_ok_and(|before| before == text.as_bytes()) {
        return Ok(());
    }
    std::fs::write(path, text).map_err(Error::file(path))
}

/// The topics, queues and services of a file.
fn names(file: &File) -> Vec<Name> {
    let mut names = Vec::new();
    for struct_ in &file.structs {
        for (annotation, name) in [("topic", &struct_.topic), ("queue", &struct_.queue)] {
            names.extend(name.as_ref().map(|name| Name {
                annotation,
                name: name.clone(),
                place: struct_.place.clone(),
            }));
        }
    }
    names.extend(file.interfaces.iter().map(|interface| Name {
        annotation: "service",
        name: interface.service.clone(),
        place: interface.place.clone(),
    }));
    names
}

/// What one compilation alone cannot see: two modules or two topics, queues or services of one name.
fn check(before: &[Compiled], this: &Compiled) -> Result<(), Error> {
    let all = || before.iter().chain([this]);
    let mut modules = Scope::default();
    for module in all().flat_map(|one| &one.modules) {
        let owner = format!("file {}", module.file);
        modules.take(module.path.join("::"), owner, &module.file)?;
    }
    let mut seen: HashMap<(&str, &str), &str> = HashMap::new();
    for name in all().flat_map(|one| &one.names) {
        match seen.insert((name.annotation, &name.name), &name.place) {
            Some(first) if !are_versions(first, &name.place) => {
                return Err(Error::SameName {
                    place: name.place.clone(),
                    annotation: name.annotation,
                    name: name.name.clone(),
                    first: first.to_owned(),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether two declarations are one in two versions of a schema: `v1/user.capnp:Created` and `v2/user.capnp:Created`.
fn are_versions(first: &str, second: &str) -> bool {
    fn without_folders(place: &str) -> &str {
        let file_end = place.find(':').unwrap_or(place.len());
        place[..file_end]
            .rfind('/')
            .map_or(place, |slash| &place[slash + 1..])
    }
    first != second && without_folders(first) == without_folders(second)
}
