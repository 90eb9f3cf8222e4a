//! Why a schema could not be turned into code.

use std::fmt;
use std::path::PathBuf;

use crate::place::Sources;

/// Why a build failed. `Debug` reads like `Display`, since that is what a failed build.rs prints.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The schema compiler found errors; its messages name file, line and column.
    #[error("the schema compiler says:\n{messages}")]
    Schema {
        /// What it said.
        messages: String,
    },
    /// There is no schema compiler to run.
    #[error("cannot run the schema compiler `{command}`: {reason}")]
    Compiler {
        /// The command that was tried.
        command: String,
        /// What the system says.
        reason: String,
    },
    /// An annotation's argument means nothing.
    #[error("{place}: ${annotation}{} {reason}", in_parentheses(.argument))]
    Annotation {
        /// File, line, column and declaration.
        place: String,
        /// The annotation's name.
        annotation: &'static str,
        /// What it was given, if it takes anything.
        argument: Option<String>,
        /// What is wrong with it.
        reason: String,
    },
    /// Two declarations would get the same name in Rust.
    #[error(
        "{place}: {first} and {second} would both be `{name}` in Rust; rename one, or give it another name \
         in Rust only: $rustName(\"…\")"
    )]
    NameClash {
        /// File, line, column and name of the second.
        place: String,
        /// The name.
        name: String,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// The schema uses what Bowline has no Rust for.
    #[error("{place}: {what} is not supported; {instead}")]
    Unsupported {
        /// File, line, column and declaration.
        place: String,
        /// What it is.
        what: String,
        /// What can be done.
        instead: String,
    },
    /// Two declarations that are found by their names have the same.
    #[error(
        "{place}: ${annotation}({name:?}) is the name of {first} too: jobs, events or calls of one would reach the \
         other; give one another name"
    )]
    SameName {
        /// File, line, column and declaration of the second.
        place: String,
        /// `queue`, `topic` or `service`.
        annotation: &'static str,
        /// The name.
        name: String,
        /// File and declaration of the first.
        first: String,
    },
    /// Two compilations of one build want their code in different modules, and one `include_schemas!()` includes both.
    #[error(
        "the schemas in {} and in {} have different parent modules, `{first_module}` and `{second_module}`: compile \
         both for one, or write one of them elsewhere with `out_dir`",
        .first.display(), .second.display()
    )]
    ParentModules {
        /// The directory that was compiled first.
        first: PathBuf,
        /// The one after it.
        second: PathBuf,
        /// What `parent_module` says of the first.
        first_module: String,
        /// What it says of the second.
        second_module: String,
    },
    /// There is nothing to compile.
    #[error("no .capnp file in {}", .directory.display())]
    Empty {
        /// Where one was looked for.
        directory: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{}: {reason}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The compiler's request is damaged, or of a compiler that this crate does not understand.
    #[error("the compiler's request cannot be read: {0}")]
    Request(#[from] capnp::Error),
    /// Not run from a build.rs, and not told where to write.
    #[error("OUT_DIR is not set: call this from build.rs, or say where to write with `out_dir`")]
    NoOutDir,
}

impl Error {
    pub(crate) fn unsupported(
        place: impl Into<String>,
        what: impl Into<String>,
        instead: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            place: place.into(),
            what: what.into(),
            instead: instead.into(),
        }
    }

    /// The same with the line and column of its place.
    pub(crate) fn located(mut self, sources: &Sources<'_>) -> Self {
        match &mut self {
            Self::Annotation { place, .. }
            | Self::SameName { place, .. }
            | Self::NameClash { place, .. }
            | Self::Unsupported { place, .. } => *place = sources.locate(place),
            _ => {}
        }
        self
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |reason| Self::File { path, reason }
    }
}

fn in_parentheses(argument: &Option<String>) -> String {
    argument
        .as_ref()
        .map_or_else(String::new, |argument| format!("({argument:?})"))
}

impl From<capnp::NotInSchema> for Error {
    fn from(error: capnp::NotInSchema) -> Self {
        Self::Request(error.into())
    }
}

impl From<std::str::Utf8Error> for Error {
    fn from(error: std::str::Utf8Error) -> Self {
        Self::Request(error.into())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
