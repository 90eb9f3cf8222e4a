//! Compiles Cap'n Proto schemas into Bowline's typed messages, clients and servers.
//!
//! For a team's `build.rs`:
//!
//! ```no_run
//! fn main() -> Result<(), bowline_build::Error> {
//!     bowline_build::compile("schema/")
//! }
//! ```
//!
//! and at the root of its crate:
//!
//! ```ignore
//! bowline::include_schemas!();
//! ```
//!
//! Then `schema/login.capnp` is the modules `login` (plain structs, and for each interface a trait
//! to implement, a client and a server) and `login_capnp` (readers and builders). Schemas import
//! Bowline's annotations with `using Bowline = import "/bowline/bowline.capnp";`; no copy of that
//! file is needed.
//!
//! It does not run anything at run time, and knows nothing of sockets.
//!
//! # What a schema becomes
//!
//! | schema | Rust |
//! |---|---|
//! | struct, group | struct; an enum where it is nothing but a union |
//! | struct with fields and a union | struct with a field `which` |
//! | enum | enum, with `Unknown(u16)` for what a newer peer may send |
//! | nested `Outer.Inner` | `OuterInner` |
//! | `Text`, `Data`, `List(T)` | `String`, `Bytes`, `Vec<T>` |
//! | a field that can contain its own struct | `Option<Box<T>>` |
//! | method `logIn (…) -> (…)` | `log_in`, with `LogInParams` and `LogInResults` |
//! | const | a constant, of capnp's type |
//!
//! `AnyPointer`, capabilities as values, `-> stream`, and generic interfaces and methods are errors
//! that name the place, with line and column.

mod annotations;
mod compiler;
mod emit;
mod error;
mod model;
mod names;
mod place;
mod reading;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use capnp::message::ReaderOptions;
use capnpc::codegen::{CodeGenerationCommand, GeneratorContext};

pub use compiler::Compiler;
pub use error::Error;

/// Compiles all schemas in a directory and below it, with default settings.
///
/// # Errors
/// See [`Error`]. Nothing is left half written that a later build would take for whole.
pub fn compile(directory: impl AsRef<Path>) -> Result<(), Error> {
    Builder::new(directory).compile()
}

/// Settings of a compilation.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    directory: PathBuf,
    import_paths: Vec<PathBuf>,
    out_dir: Option<PathBuf>,
    parent_module: Option<String>,
    compiler: Compiler,
    request_to: Option<PathBuf>,
}

impl Builder {
    /// Of all schemas in a directory and below it.
    pub fn new(directory: impl AsRef<Path>) -> Self {
        Self {
            directory: directory.as_ref().to_owned(),
            import_paths: Vec::new(),
            out_dir: None,
            parent_module: None,
            compiler: Compiler::default(),
            request_to: None,
        }
    }

    /// A further directory in which `import "/…"` looks. Its files are known, not compiled.
    pub fn import_path(mut self, directory: impl AsRef<Path>) -> Self {
        self.import_paths.push(directory.as_ref().to_owned());
        self
    }

    /// Where to write, instead of cargo's `OUT_DIR`.
    pub fn out_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.out_dir = Some(directory.as_ref().to_owned());
        self
    }

    /// The module that has `bowline::include_schemas!()` in it, such as `api::generated`, where
    /// that is not the root of the crate.
    pub fn parent_module(mut self, path: impl Into<String>) -> Self {
        self.parent_module = Some(path.into());
        self
    }

    /// What compiles the schemas. Default: the compiler in this crate.
    pub fn compiler(mut self, compiler: Compiler) -> Self {
        self.compiler = compiler;
        self
    }

    /// Keeps the compiler's request, to be committed for [`Compiler::Request`].
    pub fn write_request(mut self, path: impl AsRef<Path>) -> Self {
        self.request_to = Some(path.as_ref().to_owned());
        self
    }

    /// Compiles.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn compile(self) -> Result<(), Error> {
        let out_dir = match &self.out_dir {
            Some(out_dir) => out_dir.clone(),
            None => PathBuf::from(std::env::var_os("OUT_DIR").ok_or(Error::NoOutDir)?),
        };
        let request = self.request(&out_dir)?;
        if let Some(path) = &self.request_to {
            std::fs::write(path, &request).map_err(Error::file(path))?;
        }
        self.generate(&request, &out_dir)
    }

    /// Runs the compiler alone, and returns its CodeGeneratorRequest.
    fn request(&self, out_dir: &Path) -> Result<Vec<u8>, Error> {
        let mut files = Vec::new();
        if let Compiler::Request(path) = &self.compiler {
            println!("cargo:rerun-if-changed={}", path.display());
        } else {
            println!("cargo:rerun-if-changed={}", self.directory.display());
            find_schemas(&self.directory, &mut files)?;
            if files.is_empty() {
                return Err(Error::Empty {
                    directory: self.directory.clone(),
                });
            }
            for file in &files {
                println!("cargo:rerun-if-changed={}", file.display());
            }
        }
        let input = compiler::Input {
            files: &files,
            prefix: &self.directory,
            import_paths: &self.import_paths,
            scratch: out_dir,
        };
        compiler::compile(&self.compiler, &input)
    }

    fn generate(&self, request: &[u8], out_dir: &Path) -> Result<(), Error> {
        let mut options = ReaderOptions::new();
        options.traversal_limit_in_words(None).nesting_limit(256);
        let message = capnp::serialize::read_message(request, options)?;
        let context = GeneratorContext::new(&message)?;
        let (parent, parent_path) = match &self.parent_module {
            Some(module) => (
                format!("crate::{module}"),
                module.split("::").map(str::to_owned).collect(),
            ),
            None => ("crate".to_owned(), Vec::new()),
        };
        let sources = place::Sources {
            directory: &self.directory,
            import_paths: &self.import_paths,
        };
        let files = reading::read(&context, &parent).map_err(|error| error.located(&sources))?;
        CodeGenerationCommand::new()
            .output_directory(out_dir)
            .default_parent_module(parent_path)
            .capnp_root("::bowline::__private::capnp")
            .crates_provide_map(HashMap::from([(annotations::FILE, "bowline".to_owned())]))
            .run(request)?;
        let mut capnp_paths = Vec::new();
        for file in &files {
            let directory = match file.name.rsplit_once('/') {
                Some((directory, _)) => format!("{directory}/"),
                None => String::new(),
            };
            capnp_paths.push(format!("{directory}{}_capnp.rs", file.module));
            write(
                out_dir,
                &format!("{}_bowline.rs", file.module),
                &emit::file(file),
            )?;
        }
        write(out_dir, "bowline.rs", &emit::root(&files, &capnp_paths))
    }
}

fn write(directory: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = directory.join(name);
    std::fs::write(&path, text).map_err(Error::file(&path))
}

/// All schema files below a directory, in an order that does not depend on the file system.
fn find_schemas(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Error::file(directory))? {
        entries.push(entry.map_err(Error::file(directory))?.path());
    }
    entries.sort();
    for path in entries {
        if path.is_dir() {
            find_schemas(&path, files)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "capnp")
        {
            files.push(path);
        }
    }
    Ok(())
}
