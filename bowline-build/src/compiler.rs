//! From schema files to a CodeGeneratorRequest: the embedded compiler, a command, or a request
//! that was committed. Does not look into the request.

#[cfg(feature = "embedded-compiler")]
mod stderr;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// The annotations, which every schema may import as `/bowline/bowline.capnp`.
const ANNOTATIONS: &str = include_str!("../schema/bowline.capnp");

/// What compiles schemas.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Compiler {
    /// The compiler in this crate: a Rust toolchain is all that it needs.
    #[cfg(feature = "embedded-compiler")]
    Embedded,
    /// The command that the environment variable `CAPNP` names, or else `capnp` on the PATH.
    Installed,
    /// Nothing: this request was made before, and committed.
    Request(PathBuf),
}

impl Default for Compiler {
    fn default() -> Self {
        #[cfg(feature = "embedded-compiler")]
        return Self::Embedded;
        #[cfg(not(feature = "embedded-compiler"))]
        return Self::Installed;
    }
}

pub(crate) struct Input<'a> {
    pub files: &'a [PathBuf],
    /// What names of files are relative to.
    pub prefixes: &'a [&'a PathBuf],
    pub import_paths: &'a [PathBuf],
    /// A directory of ours for the annotations.
    pub scratch: &'a Path,
}

pub(crate) fn compile(compiler: &Compiler, input: &Input<'_>) -> Result<Vec<u8>, Error> {
    if let Compiler::Request(path) = compiler {
        return std::fs::read(path).map_err(Error::file(path));
    }
    let imports = input.scratch.join("bowline-imports");
    let directory = imports.join("bowline");
    std::fs::create_dir_all(&directory).map_err(Error::file(&directory))?;
    let annotations = directory.join("bowline.capnp");
    std::fs::write(&annotations, ANNOTATIONS).map_err(Error::file(&annotations))?;
    match compiler {
        #[cfg(feature = "embedded-compiler")]
        Compiler::Embedded => embedded(input, &imports),
        _ => installed(input, &imports),
    }
}

#[cfg(feature = "embedded-compiler")]
fn embedded(input: &Input<'_>, imports: &Path) -> Result<Vec<u8>, Error> {
    let mut command = capnpc_embedded::CompileCommand::new();
    command.import_path(imports);
    for prefix in input.prefixes {
        command.src_prefix(prefix);
    }
    for path in input.import_paths {
        command.import_path(path);
    }
    for file in input.files {
        command.file(file);
    }
    let (compiled, said) = stderr::while_heard(input.scratch, || command.compile())?;
    compiled.map_err(|error| Error::Schema {
        messages: match said.trim_end() {
            "" => error.to_string(),
            said => said.to_owned(),
        },
    })
}

fn installed(input: &Input<'_>, imports: &Path) -> Result<Vec<u8>, Error> {
    println!("cargo:rerun-if-env-changed=CAPNP");
    let program = std::env::var_os("CAPNP").unwrap_or_else(|| OsString::from("capnp"));
    let mut command = Command::new(&program);
    command.args(["compile", "-o-"]);
    for path in input
        .import_paths
        .iter()
        .map(PathBuf::as_path)
        .chain([imports])
    {
        command.arg("-I").arg(path);
    }
    for directory in input.prefixes {
        let mut prefix = OsString::from("--src-prefix=");
        prefix.push(directory);
        command.arg(prefix);
    }
    let output = command
        .args(input.files)
        .output()
        .map_err(|error| Error::Compiler {
            command: program.to_string_lossy().into_owned(),
            reason: error.to_string(),
        })?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Error::Schema {
            messages: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
