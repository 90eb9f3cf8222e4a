//! The seam below the log: files of a directory, and nothing else of an operating system.
//!
//! A simulated disk stands in for it in tests: one that loses or tears what was not synced.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the log needs of a directory that nobody else uses. Called from blocking threads.
///
/// After a power cut, a file has what was last synced, and any part of what was written since. A file that was created is there, with its length, once `create` has returned, and one that was removed is gone once
/// `remove` has.
pub trait Storage: std::fmt::Debug + Send + Sync + 'static {
    /// The names of all files, in any order.
    ///
    /// # Errors
    /// What the storage says; so for all methods.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes a file of so many zero bytes, for which there is room from then on. Replaces one of that name.
    fn create(&self, name: &str, bytes: u64) -> io::Result<()>;

    /// Reads at an offset; fewer bytes than asked for only at the end of the file.
    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Writes at an offset.
    fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when what was written to the file is safe.
    fn sync(&self, name: &str) -> io::Result<()>;

    /// Cuts the file off, safely.
    fn truncate(&self, name: &str, bytes: u64) -> io::Result<()>;

    /// Removes the file.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A directory of a file system, which one process at a time may have.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// The file that is written to, and the one that is read, of which there is one each nearly always.
    open: std::sync::Mutex<Vec<(String, std::sync::Arc<File>)>>,
    _lock: File,
}

/// Files that are kept open.
const OPEN_MAX: usize = 8;
const LOCK: &str = "lock";
/// How long an opening waits for a queue that has the directory and may be closing.
const LOCK_WAIT: Duration = Duration::from_millis(500);

impl Directory {
    /// Makes the directory if it is not there, and locks it. Waits half a second for a queue that has it, which may be
    /// closing.
    ///
    /// # Errors
    /// What the file system says; [`ErrorKind::WouldBlock`] where it is open already.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        // The working directory of the process may change.
        let path = std::path::absolute(path)?;
        make_directory(&path)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK))?;
        let until = Instant::now() + LOCK_WAIT;
        while let Err(error) = lock.try_lock() {
            match error {
                // A queue that is being closed gives it back in a moment.
                TryLockError::WouldBlock if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                TryLockError::WouldBlock => {
                    let reason = format!(
                        "{}: this process or another has this queue open; close it first",
                        path.display()
                    );
                    return Err(io::Error::new(ErrorKind::WouldBlock, reason));
                }
                TryLockError::Error(error) => return Err(error),
            }
        }
        Ok(Self {
            path,
            open: std::sync::Mutex::default(),
            _lock: lock,
        })
    }

    fn file(&self, name: &str) -> io::Result<std::sync::Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, file)) = open.iter().find(|(of, _)| of == name) {
            return Ok(std::sync::Arc::clone(file));
        }
        let path = self.path.join(name);
        let file = std::sync::Arc::new(OpenOptions::new().read(true).write(true).open(path)?);
        if open.len() == OPEN_MAX {
            open.remove(0);
        }
        open.push((name.to_owned(), std::sync::Arc::clone(&file)));
        Ok(file)
    }

    fn forget(&self, name: &str) {
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        open.retain(|(of, _)| of != name);
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// Makes it with all that it is in, where they are not there, and returns when their names are safe.
fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    let parent = match parent.as_os_str().is_empty() {
        true => Path::new("."),
        false => parent,
    };
    make_directory(parent)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

impl Storage for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<()> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        self.forget(name);
        let file = File::create(self.path.join(name))?;
        // Written and not only reserved: the first write to reserved blocks changes the file's metadata,
        // which each sync would then have to write as well.
        let mut offset = 0;
        while offset < bytes {
            let part = (bytes - offset).min(ZEROS.len() as u64);
            if let Err(error) = file.write_all_at(&ZEROS[..part as usize], offset) {
                // Half a file would take the room that others need to give some back.
                let _ = std::fs::remove_file(self.path.join(name));
                return Err(error);
            }
            offset += part;
        }
        file.sync_all()?;
        self.sync_directory()
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let file = self.file(name)?;
        let mut read = 0;
        while read < into.len() {
            match file.read_at(&mut into[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(bytes) => read += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all_at(bytes, offset)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn truncate(&self, name: &str, bytes: u64) -> io::Result<()> {
        let file = self.file(name)?;
        file.set_len(bytes)?;
        file.sync_all()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.forget(name);
        std::fs::remove_file(self.path.join(name))?;
        self.sync_directory()
    }
}
