//! A value that changes while it is in use: from code, or with the file that it was read from.
//!
//! It has no task. Whoever uses it asks it now and then to look at its file; the sockets do that
//! four times a second.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use super::keys::read_text;

#[derive(Debug)]
pub(super) struct Live<T> {
    value: RwLock<T>,
    generation: AtomicU64,
    file: Option<Mutex<File>>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    /// When it was written and how long it was, when it was last looked at.
    seen: Option<(SystemTime, u64)>,
}

/// What looking at a file came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refreshed {
    /// It is as it was, or there is none.
    Same,
    /// It is another, and in force.
    Changed,
    /// It is another and cannot be used; what was in force still is.
    Failed(String),
}

impl<T> Live<T> {
    pub fn new(value: T) -> Self {
        Self {
            value: RwLock::new(value),
            generation: AtomicU64::new(0),
            file: None,
        }
    }

    /// Reads the file for the first time.
    pub fn read<E: ToString>(
        path: &Path,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Self, String> {
        let (seen, text) = look(path)?;
        let mut live = Self::new(parse(&text).map_err(|error| error.to_string())?);
        live.file = Some(Mutex::new(File {
            path: path.to_owned(),
            seen: Some(seen),
        }));
        Ok(live)
    }

    /// Reads what is in force.
    pub fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts up with every change.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn set(&self, value: T) {
        *self.value.write().unwrap_or_else(PoisonError::into_inner) = value;
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Replaces the value by what `change` makes of it, with nobody in between.
    pub fn update<E>(&self, change: impl FnOnce(&T) -> Result<T, E>) -> Result<(), E> {
        let mut value = self.value.write().unwrap_or_else(PoisonError::into_inner);
        *value = change(&value)?;
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Looks at the file, and reads it if it is another than before.
    pub fn refresh<E: ToString>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Refreshed {
        let Some(file) = &self.file else {
            return Refreshed::Same;
        };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = std::fs::metadata(&file.path).ok().and_then(|of| stamp(&of));
        if stamp == file.seen {
            return Refreshed::Same;
        }
        file.seen = stamp;
        let failed = |error: String| Refreshed::Failed(format!("{}: {error}", file.path.display()));
        match look(&file.path) {
            Err(error) => failed(error),
            Ok((_, text)) => match parse(&text) {
                Err(error) => failed(error.to_string()),
                Ok(value) => {
                    self.set(value);
                    Refreshed::Changed
                }
            },
        }
    }
}

fn stamp(metadata: &std::fs::Metadata) -> Option<(SystemTime, u64)> {
    Some((metadata.modified().ok()?, metadata.len()))
}

type Looked = ((SystemTime, u64), zeroize::Zeroizing<String>);

fn look(path: &Path) -> Result<Looked, String> {
    let look = || -> std::io::Result<Looked> {
        let mut file = std::fs::File::open(path)?;
        let seen = stamp(&file.metadata()?)
            .ok_or_else(|| std::io::Error::other("the file has no time of its last change"))?;
        Ok((seen, read_text(&mut file)?))
    };
    look().map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_is_read_again_and_a_bad_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        std::fs::write(&path, "1").unwrap();
        let parse = |text: &str| text.parse::<u32>();
        let live = Live::read(&path, parse).unwrap();
        assert_eq!(live.refresh(parse), Refreshed::Same);
        std::fs::write(&path, "22").unwrap();
        assert_eq!(live.refresh(parse), Refreshed::Changed);
        assert_eq!(live.with(|number| *number), 22);
        std::fs::write(&path, "three").unwrap();
        assert!(matches!(live.refresh(parse), Refreshed::Failed(_)));
        assert_eq!(live.refresh(parse), Refreshed::Same, "said once");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(live.refresh(parse), Refreshed::Failed(_)));
        assert_eq!((live.with(|number| *number), live.generation()), (22, 1));
    }
}
