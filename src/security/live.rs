//! A value that changes while it is in use, and the file that it comes from.
//!
//! Neither has a task. Whoever uses a file asks now and then whether it is another; the sockets do that
//! more than twice a second.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use zeroize::Zeroizing;

use super::keys::read_text;

/// Looks for which a file that has changed is read even where the system says that it is the same: two changes
/// may come within one tick of its clock.
const LOOKS_UNSETTLED: u8 = 5;

#[derive(Debug)]
pub(super) struct Live<T> {
    value: RwLock<T>,
    generation: AtomicU64,
}

impl<T> Live<T> {
    pub fn new(value: T) -> Self {
        Self {
            value: RwLock::new(value),
            generation: AtomicU64::new(0),
        }
    }

    /// What is in force.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To change it, with nobody in between; [`changed`](Self::changed) comes after that.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.value.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts up with every change.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

/// A file that is looked at now and then.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    path: PathBuf,
    /// Which file it was at first, to tell whether two names are of one.
    canonical: PathBuf,
    stamp: Option<Stamp>,
    hash: Option<blake3::Hash>,
    error: Option<String>,
    looks: u8,
}

/// What the system says of a file, which changes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    /// Its number, and when it was last changed in any way; nobody can set that back.
    inode: (u64, i64, i64),
}

/// What a look at a file came to.
#[derive(Debug)]
pub(super) enum Look {
    Same,
    Changed(Zeroizing<String>),
    /// It cannot be read; said once.
    Failed(String),
}

impl Watched {
    /// Reads it for the first time.
    pub fn open(path: &Path) -> Result<(Self, Zeroizing<String>), String> {
        let mut file = Self {
            path: path.to_owned(),
            canonical: path.canonicalize().unwrap_or_else(|_| path.to_owned()),
            stamp: None,
            hash: None,
            error: None,
            looks: 0,
        };
        match file.look() {
            Look::Changed(text) => Ok((file, text)),
            Look::Failed(error) => Err(file.of_it(&error)),
            Look::Same => Err(file.of_it("there is no such file")),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_of(&self, other: &Self) -> bool {
        self.canonical == other.canonical
    }

    /// An error with the name of the file.
    pub fn of_it(&self, error: &str) -> String {
        format!("{}: {error}", self.path.display())
    }

    /// Takes it for seen what another has seen of the same file.
    pub fn has_seen_as(&mut self, other: &Self) {
        let Self {
            path, canonical, ..
        } = std::mem::replace(self, other.clone());
        (self.path, self.canonical) = (path, canonical);
    }

    pub fn look(&mut self) -> Look {
        let stamp = std::fs::metadata(&self.path).ok().map(|of| Stamp::of(&of));
        if stamp != self.stamp {
            self.looks = 0;
        } else if stamp.is_none() && self.error.is_some() || self.looks >= LOOKS_UNSETTLED {
            return Look::Same;
        }
        self.looks += 1;
        self.stamp = stamp;
        let text = std::fs::File::open(&self.path).and_then(|mut file| read_text(&mut file));
        match text {
            Ok(text) => {
                let hash = blake3::hash(text.as_bytes());
                self.error = None;
                match self.hash.replace(hash) == Some(hash) {
                    true => Look::Same,
                    false => Look::Changed(text),
                }
            }
            Err(error) => {
                let error = error.to_string();
                match self.error.as_ref() == Some(&error) {
                    true => Look::Same,
                    false => Look::Failed(self.error.insert(error).clone()),
                }
            }
        }
    }
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            inode: inode(metadata),
        }
    }
}

#[cfg(unix)]
fn inode(metadata: &std::fs::Metadata) -> (u64, i64, i64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> (u64, i64, i64) {
    (0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(look: Look) -> Option<String> {
        match look {
            Look::Changed(text) => Some(text.to_string()),
            _ => None,
        }
    }

    #[test]
    fn a_file_that_changes_is_read_again_and_a_failure_is_said_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        std::fs::write(&path, "1").unwrap();
        let (mut file, first) = Watched::open(&path).unwrap();
        assert_eq!(&*first, "1");
        assert!(matches!(file.look(), Look::Same));
        std::fs::write(&path, "22").unwrap();
        assert_eq!(text(file.look()).as_deref(), Some("22"));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(file.look(), Look::Failed(_)));
        assert!(matches!(file.look(), Look::Same));
        std::fs::write(&path, "22").unwrap();
        assert!(matches!(file.look(), Look::Same), "it is what it was");
        std::fs::write(&path, "3").unwrap();
        assert_eq!(text(file.look()).as_deref(), Some("3"));
    }

    #[test]
    fn a_change_of_the_same_length_and_time_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).unwrap();
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(long_ago).unwrap();
        };
        write(&path, "web");
        let (mut file, _) = Watched::open(&path).unwrap();
        for _ in 0..3 {
            // At once, and after it has been left alone for a while; in place, and by a new file.
            write(&path, "ops");
            assert_eq!(text(file.look()).as_deref(), Some("ops"));
            while file.looks < LOOKS_UNSETTLED {
                assert!(matches!(file.look(), Look::Same));
            }
            write(&path.with_extension("new"), "web");
            std::fs::rename(path.with_extension("new"), &path).unwrap();
            assert_eq!(text(file.look()).as_deref(), Some("web"));
        }
    }
}
