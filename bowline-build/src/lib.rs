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
//! to implement, a client and a server) and `login_capnp` (readers and builders). A folder is a module:
//! `schema/v1/user.capnp` is `v1::user`. Schemas import Bowline's annotations with
//! `using Bowline = import "/bowline/bowline.capnp";`; no copy of that file is needed.
//!
//! Types of a schema that another crate compiles are that crate's, where build.rs says which it is:
//! `Builder::new("schema").extern_crate("common", "../common/schema")`. Several compilations in one build.rs
//! have their modules beside each other.
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
//! | nested `Outer.Inner` | `OuterInner`, with the type parameters of both |
//! | `Text`, `Data`, `List(T)` | `String`, `Bytes`, `Vec<T>` |
//! | a field that can contain its own struct | `Option<Box<T>>` |
//! | method `logIn (…) -> (…)` | `log_in`, with `LogInParams` and `LogInResults` |
//! | const | a constant, of capnp's type |
//!
//! Any name and any comment may be in a schema. A name that cannot be in Rust gets an underscore (`self_`); where two
//! declarations would get one name, the build says so, and `$rustName("…")` on one of them gives it another.
//!
//! `AnyPointer`, capabilities as values, `-> stream`, and generic interfaces and methods are errors
//! that name the place, with line and column, and what to do instead.

mod annotations;
mod build;
mod compiler;
mod emit;
mod error;
mod for_capnpc;
mod generic_unions;
mod model;
mod names;
mod place;
mod reading;
mod sources;
mod text;

use std::path::{Path, PathBuf};

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
    /// Of each: the module that has the code, and the directory of the schemas.
    extern_crates: Vec<(String, PathBuf)>,
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
            extern_crates: Vec::new(),
            out_dir: None,
            parent_module: None,
            compiler: Compiler::default(),
            request_to: None,
        }
    }

    /// Adds a directory in which `import "/…"` looks. Its files are known, not compiled; where an earlier compilation
    /// of this build has compiled them, their types are those.
    pub fn import_path(mut self, directory: impl AsRef<Path>) -> Self {
        self.import_paths.push(directory.as_ref().to_owned());
        self
    }

    /// Takes the types of the schemas in `directory` from another crate, which compiles them with this one's version of
    /// Bowline. Schemas import them as `/…` from there.
    ///
    /// `path` is the module of that crate which has `bowline::include_schemas!()` in it, as this crate names it: `common`,
    /// or `common::api`.
    pub fn extern_crate(mut self, path: impl AsRef<str>, directory: impl AsRef<Path>) -> Self {
        let path = path.as_ref().trim_start_matches("::");
        self.extern_crates
            .push((format!("::{path}"), directory.as_ref().to_owned()));
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

    /// Compiles. What an earlier compilation of this process has written into the same directory stays: the modules of
    /// both are included together.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn compile(self) -> Result<(), Error> {
        let out_dir = match &self.out_dir {
            Some(out_dir) => out_dir.clone(),
            None => PathBuf::from(std::env::var_os("OUT_DIR").ok_or(Error::NoOutDir)?),
        };
        build::run(&self, &out_dir)
    }
}
