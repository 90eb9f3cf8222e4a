//! Schema files on disk: which there are, what they import, and which of them cargo has to watch.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::place::Sources;
use crate::{Error, text};

/// All schema files below a directory, in an order that does not depend on the file system.
///
/// Files that editors put beside them (names that begin with a dot or a `#`) are not schemas. A link to a directory
/// is followed, unless it leads to one that it lies in.
pub(crate) fn find(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    find_below(directory, &mut Vec::new(), &mut files)?;
    Ok(files)
}

fn find_below(
    directory: &Path,
    outer: &mut Vec<PathBuf>,
    files: &mut Vec<PathBuf>,
) -> Result<(), Error> {
    let real = directory.canonicalize().map_err(Error::file(directory))?;
    if outer.contains(&real) {
        return Ok(());
    }
    outer.push(real);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Error::file(directory))? {
        entries.push(entry.map_err(Error::file(directory))?);
    }
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(['.', '#']) {
            continue;
        }
        // Of a link that leads nowhere there is none.
        let Ok(kind) = std::fs::metadata(&path) else {
            continue;
        };
        if kind.is_dir() {
            find_below(&path, outer, files)?;
        } else if path.extension().is_some_and(|of| of == "capnp") {
            files.push(path);
        }
    }
    outer.pop();
    Ok(())
}

/// All that these files import or embed, at any depth, as far as it lies in a directory that is known here.
pub(crate) fn imported(files: &[PathBuf], sources: &Sources<'_>) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open: Vec<PathBuf> = files.to_vec();
    while let Some(file) = open.pop() {
        // What is embedded may be no text; then it imports nothing.
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        for import in text::imports(&text) {
            if let Some(path) = sources.imported(&file, &import)
                && found.insert(path.clone())
            {
                open.push(path);
            }
        }
    }
    found
}
